"""From options to an engine that can be started: configuration, weights, codec, and what a call may set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from duplex.clock import Clock
from duplex.codec import CodecFactory, SlotCodec
from duplex.errors import ConfigError
from duplex.frames import Samples
from duplex.registry import lookup
from duplex.scheduler.contract import SlotSettings
from duplex.thinker_talker.native.checkpoints.checkpoint import Checkpoint, find_checkpoint, load_lm
from duplex.thinker_talker.native.checkpoints.config import ModelConfig, preset
from duplex.thinker_talker.native.checkpoints.persona import Prompts
from duplex.thinker_talker.native.checkpoints.precision import (
    Precision,
    apply_precision,
    precision_of,
    read_bytes,
    weight_bytes,
)
from duplex.thinker_talker.native.checkpoints.random_weights import random_lm
from duplex.thinker_talker.native.checkpoints.text_tokens import ByteTokens, SentencePieceTokens, TextVocabulary
from duplex.thinker_talker.native.checkpoints.voices import VoiceFolder
from duplex.thinker_talker.native.device.device_engine import DeviceEngine
from duplex.thinker_talker.native.device.engine_options import EngineOptions
from duplex.thinker_talker.native.device.engine_parts import Codes, EngineParts
from duplex.thinker_talker.native.device.graphs import backend_for
from duplex.thinker_talker.native.device.memory import free_bytes, in_words, slots_that_fit, tensor_bytes, total_bytes
from duplex.thinker_talker.native.model.backbone import Backbone, BackboneOptions
from duplex.thinker_talker.native.model.sampling import Sampling

MOST_SLOTS = 64


@dataclass(frozen=True, slots=True)
class Model:
    """``lm``: the package's ``LMModel``, in its final precision. ``read_bytes``: of its weights that a step reads."""

    config: ModelConfig
    lm: Any
    precision: Precision
    device: torch.device
    checkpoint: Checkpoint | None = None
    """Where it was read from; ``None``: random weights."""

    @property
    def weight_bytes(self) -> int:
        return sum(weight_bytes(self.lm).values())

    @property
    def read_bytes(self) -> int:
        return sum(read_bytes(self.lm).values())


def load_engine(
    options: EngineOptions, *, codec_factory: CodecFactory | None = None, clock: Clock | None = None
) -> DeviceEngine:
    """An engine that was not started. ``codec_factory``: instead of the entry point ``options.codec``.

    Raises ``ConfigError``, ``WeightsError`` and ``MissingDependencyError``, each of which says what to do.
    """
    model = load_model(options)
    codec = load_codec(options, model, codec_factory)
    return engine_of(options, model, codec, clock=clock)


def load_model(options: EngineOptions) -> Model:
    """The language model, read or drawn at random, on its device."""
    device = device_named(options.device)
    precision = precision_of(options.precision, device)
    checkpoint = None if options.weights is None else find_checkpoint(options.weights)
    config = preset(options.preset) if checkpoint is None else checkpoint.config
    try:
        if checkpoint is not None:
            lm = load_lm(checkpoint, device, precision)
        else:
            lm = random_lm(config.served_lm_kwargs, options.weights_seed, device, precision.dtype("temporal"))
            apply_precision(lm, precision)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"The weights of {options.weights or options.preset} do not fit the {in_words(total_bytes(device))} of "
            f"{device}. precision = int8 halves them."
        ) from error
    return Model(config, lm, precision, device, checkpoint)


def load_codec(options: EngineOptions, model: Model, factory: CodecFactory | None = None) -> SlotCodec:
    """The codec by its entry point, for as many codebooks as the model's streams have."""
    table: dict[str, Any] = {
        "codebooks": model.config.codebooks,
        "device": str(model.device),
        "dtype": model.precision.codec,
        "seed": options.weights_seed,
    }
    if model.checkpoint is not None:
        table |= model.checkpoint.codec_options()
    elif options.preset == "tiny":
        table["config"] = "tiny"
    return (factory or cast(CodecFactory, lookup("duplex.codecs", options.codec)))(table)


def engine_of(options: EngineOptions, model: Model, codec: SlotCodec, *, clock: Clock | None = None) -> DeviceEngine:
    """The engine over a model and a codec that are there."""
    if codec.info.codebooks < model.config.codebooks or codec.info.codebook_size != model.config.card:
        raise ConfigError(
            f"The codec {codec.info.name} has {codec.info.codebooks} codebooks of {codec.info.codebook_size} entries; "
            f"the model needs {model.config.codebooks} of {model.config.card}."
        )
    default = default_sampling(options, model.config)
    backbone = Backbone(
        model.lm,
        BackboneOptions(
            context=options.context,
            sinks=options.sinks or 0,
            kv_dtype=_kv_dtype(model.precision),
            sampling=default,
        ),
    )
    voices = VoiceFolder(options.voices_dir)
    prompts = Prompts(
        config=model.config,
        tokens=text_vocabulary(model),
        voices=voices,
        encode=_Encoding(codec, model.device).of,
        frame_s=codec.info.frame_samples / codec.info.sample_rate_hz,
        most_steps=backbone.kv_layout.capacity // 2,
    )
    parts = EngineParts(
        device=model.device,
        codec=codec,
        backbone=backbone,
        weight_bytes=model.weight_bytes + _codec_bytes(codec),
        text_padding=model.config.existing_text_padding_id,
        prompt=prompts.of,
        sampling=_Samplings(default).of,
        seed=options.seed,
        voices=voices.names[: Prompts.KEPT],
    )
    max_slots = options.max_slots or _slots_for(parts)
    return DeviceEngine(parts, max_slots, backend=backend_for(model.device, graphs=options.graphs), clock=clock)


def default_sampling(options: EngineOptions, config: ModelConfig) -> Sampling:
    """The options', and where they say nothing the authors'."""
    authors = config.lm_gen_config

    def chosen(given: float | None, theirs: float) -> float:
        return (theirs if authors.use_sampling else 0.0) if given is None else given

    return Sampling(
        temperature_text=chosen(options.temperature_text, authors.temp_text),
        temperature_audio=chosen(options.temperature_audio, authors.temp),
        top_k_text=authors.top_k_text if options.top_k_text is None else options.top_k_text,
        top_k_audio=authors.top_k if options.top_k_audio is None else options.top_k_audio,
    )


@dataclass(frozen=True, slots=True)
class _Samplings:
    default: Sampling

    def of(self, settings: SlotSettings, seed: int) -> Sampling:
        names = ("temperature_text", "temperature_audio", "top_k_text", "top_k_audio")
        given = {name: value for name in names if (value := getattr(settings, name)) is not None}
        return replace(self.default, seed=seed, **given)


@dataclass(frozen=True, slots=True)
class _Encoding:
    """A voice through the codec, all of it, on its own."""

    codec: SlotCodec
    device: torch.device

    @torch.inference_mode()
    def of(self, samples: Samples) -> Codes:
        """float32[frames · frame_samples] to int64[frames, codebooks]."""
        state = self.codec.new_state(1)
        active = torch.ones(1, dtype=torch.bool, device=self.device)
        given = torch.from_numpy(samples).to(self.device)[None]
        many = getattr(self.codec, "encode_frames", None)
        if many is not None:
            codes = many(state, given, active)[0]
        else:
            frames = torch.split(given, self.codec.info.frame_samples, dim=1)
            codes = torch.cat([self.codec.encode(state, frame, active) for frame in frames])
        found: Codes = codes.cpu().numpy()
        return found


def text_vocabulary(model: Model) -> TextVocabulary:
    """The checkpoint's tokenizer; a token a byte for random weights. Raises ``WeightsError`` and ``ConfigError``."""
    config = model.config
    padding = (config.existing_text_padding_id, config.existing_text_end_padding_id)
    if model.checkpoint is None:
        return ByteTokens(config.text_card, padding)
    return SentencePieceTokens(model.checkpoint.tokenizer, config.text_card, padding)


def _kv_dtype(precision: Precision) -> Any:
    if precision.kv == "int8":
        return "int8"
    if precision.dtype("kv") == precision.dtype("temporal"):
        return "model"
    if precision.kv == "bfloat16":
        return "bfloat16"
    raise ConfigError(f"A {precision.kv} cache of a model in {precision.temporal} gains nothing; choose kv=bfloat16.")


def _codec_bytes(codec: SlotCodec) -> int:
    return int(getattr(codec, "weight_bytes", 0))


def _slots_for(parts: EngineParts) -> int:
    """As many as the device's memory has room for, two rows' worth set aside for reading prompts and a snapshot."""
    row = tensor_bytes(
        tensor
        for state in (parts.backbone.new_state(1), parts.codec.new_state(1))
        for tensor in state.tensors().values()
    )
    fit = slots_that_fit(free_bytes(parts.device), row, total_bytes(parts.device)) - 2
    if fit < 1:
        raise ConfigError(
            f"{in_words(free_bytes(parts.device))} are left on {parts.device} beside the weights, and one call takes "
            f"{in_words(row)}. A shorter context or an int8 cache needs less."
        )
    return min(MOST_SLOTS, fit)


def device_named(name: str) -> torch.device:
    """``auto``: CUDA where there is one. Raises ``ConfigError`` for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device = {name!r} is no device; auto, cpu, cuda, cuda:1 … are.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device = {name!r}, but torch {torch.__version__} sees no GPU here. Set device = 'cpu'.")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device = {name!r}: the engine runs on cpu and cuda.")
    # A device without a number is the current one; naming it keeps comparisons of devices simple.
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else device
