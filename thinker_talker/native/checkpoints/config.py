"""The family's ``config.json`` as a checked value: shapes, streams, delays, file names, and how it likes to be sampled.

A published checkpoint's own file is read as it is. Streams are ordered ``[text, agent's codebooks, user's codebooks]``,
and ``delays`` has one entry for each. Two kinds of files say less than they need:

- *No file at all* (the first Moshi releases): the package takes the 7B's shape then, and so do we.
- *PersonaPlex* publishes ``{"model_type": "personaplex", "version": "7b-v1"}``: the shape is Moshi-7B's with 16 steps
  of depth, 8 for the agent's codebooks and 8 that guess the user's. Attention in the depth transformer looks back only,
  and the user's codes come from the user: so the last 8 steps change nothing that is used. They are neither loaded nor
  run, which halves the depth transformer (``served_lm_kwargs``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from duplex.config import Settings
from duplex.errors import ConfigError

CONFIG_NAME = "config.json"
MOSHI_NAME = "model.safetensors"
MIMI_NAME = "tokenizer-e351c8d8-checkpoint125.safetensors"
TOKENIZER_NAME = "tokenizer_spm_32k_3.model"

Positions = Literal["sin", "rope", "sin_rope", "none", "rope_concat"]
Norm = Literal["layer_norm", "layer_norm_f32", "rms_norm", "rms_norm_f32"]

# Fields that are about the checkpoint, not arguments of the package's LMModel.
_NOT_ARGUMENTS = {
    *("moshi_name", "mimi_name", "mimi_config_name", "tokenizer_name", "lora_name", "model_type", "version"),
    *("lm_gen_config", "tts_config", "stt_config", "model_id", "conditioners", "fuser"),
    *("lora", "lora_rank", "lora_scaling", "quantize"),
}
_RENAMED = {"demux_second_stream": "demux_second_text_stream"}
_IGNORED = {"depformer_causal"}  # the package ignores it, too


class GenerationConfig(Settings):
    """How the authors sample: ``temp`` and ``top_k`` of audio, ``temp_text`` and ``top_k_text`` of text."""

    temp: float = Field(0.8, ge=0, le=2)
    temp_text: float = Field(0.7, ge=0, le=2)
    top_k: int = Field(250, ge=0)
    top_k_text: int = Field(25, ge=0)
    use_sampling: bool = True
    cfg_coef: float = 1.0
    cfg_is_masked_until: list[int] | None = None
    cfg_is_no_text: bool = False
    check: bool = False
    support_out_of_sync: bool = False


class ModelConfig(Settings):
    """A model of the family. Names and defaults are those of ``config.json`` and of the package's ``LMModel``."""

    model_type: str = "moshi"
    version: str | None = None
    moshi_name: str = MOSHI_NAME
    mimi_name: str = MIMI_NAME
    mimi_config_name: str | None = None
    tokenizer_name: str = TOKENIZER_NAME

    # The temporal transformer.
    dim: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    num_layers: int = Field(ge=1)
    hidden_scale: float = Field(4, gt=0)
    context: int = Field(ge=1, description="steps that attention looks back")
    max_period: float = Field(10_000, gt=1)
    causal: bool = True
    gating: str = "none"
    norm: Norm = "layer_norm"
    norm_emb: bool = False
    bias_proj: bool = False
    layer_scale: float | None = None
    positional_embedding: Positions = "sin"
    positional_scale: float = 1.0
    kv_repeat: int = Field(1, ge=1)
    cross_attention: bool = False

    # The streams.
    n_q: int = Field(ge=2, description="audio streams: the agent's codebooks and the user's")
    dep_q: int = Field(ge=1, description="steps of the depth transformer")
    card: int = Field(ge=2, description="entries of a codebook")
    text_card: int = Field(ge=4, description="entries of the text vocabulary")
    text_card_out: int | None = None
    delays: tuple[int, ...]
    existing_text_padding_id: int = Field(3, ge=0)
    existing_text_end_padding_id: int = Field(0, ge=0)
    demux_second_text_stream: bool = False
    extra_heads_num_heads: int = Field(0, ge=0)
    extra_heads_dim: int = Field(6, ge=1)

    # The depth transformer. What is not given is as in the temporal one.
    depformer_dim: int = Field(256, ge=1)
    depformer_dim_feedforward: int | list[int] | None = None
    depformer_num_heads: int | None = Field(None, ge=1)
    depformer_num_layers: int | None = Field(None, ge=1)
    depformer_multi_linear: bool = False
    depformer_weights_per_step: bool = False
    depformer_weights_per_step_schedule: list[int] | None = None
    depformer_low_rank_embeddings: int | None = None
    depformer_pos_emb: Positions = "sin"
    depformer_norm: Norm | None = None
    depformer_layer_scale: float | None = None
    depformer_gating: str | None = None
    depformer_context: int | None = None
    depformer_max_period: float | None = None
    depformer_kv_repeat: int | None = None

    # The checkpoint.
    quantize: bool = Field(False, description="its linears are int8 with a scale for each row")
    lora: bool = False
    lora_name: str | None = None
    lora_rank: int = Field(128, ge=1)
    lora_scaling: float = 2.0
    lm_gen_config: GenerationConfig = GenerationConfig()
    conditioners: dict[str, Any] = Field(default_factory=dict)
    fuser: dict[str, Any] | None = None
    tts_config: dict[str, Any] = Field(default_factory=dict)
    stt_config: dict[str, Any] = Field(default_factory=dict)
    model_id: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        return {_RENAMED.get(name, name): value for name, value in given.items() if name not in _IGNORED}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.delays) != self.n_q + 1:
            raise ValueError(f"delays has {len(self.delays)} entries and needs n_q + 1 = {self.n_q + 1}")
        if min(self.delays) < 0:
            raise ValueError("delays cannot be negative")
        if self.dim % self.num_heads:
            raise ValueError(f"dim = {self.dim} is not divisible by num_heads = {self.num_heads}")
        if self.depformer_dim % (self.depformer_num_heads or self.num_heads):
            raise ValueError(f"depformer_dim = {self.depformer_dim} is not divisible by its number of heads")
        if self.existing_text_padding_id >= self.text_card:
            raise ValueError(f"existing_text_padding_id is outside text_card = {self.text_card}")
        schedule = self.depformer_weights_per_step_schedule
        if schedule is not None and len(schedule) != self.dep_q:
            raise ValueError(f"depformer_weights_per_step_schedule has {len(schedule)} entries, dep_q is {self.dep_q}")
        if self.tts_config or self.dep_q > self.n_q or (self.n_q == self.dep_q and self.model_type != "personaplex"):
            raise ValueError("this model hears no user (n_q = dep_q): it reads text aloud, and cannot hold a call")
        if self.stt_config:
            raise ValueError("this model only listens (stt_config), and cannot hold a call")
        for name in ("conditioners", "fuser", "cross_attention", "demux_second_text_stream"):
            if getattr(self, name):
                raise ValueError(f"{name} is not something this engine serves")
        if self.lm_gen_config.cfg_coef != 1.0:
            raise ValueError("lm_gen_config.cfg_coef is not 1, and guidance is not something this engine serves")
        if self.lora and self.quantize:
            raise ValueError("lora and quantize exclude each other")
        if self.model_type == "personaplex" and self.n_q % 2:
            raise ValueError(f"n_q = {self.n_q} cannot be halved between agent and user")
        return self

    @property
    def agent_q(self) -> int:
        """Codebooks of the agent: the steps of depth that are run."""
        return self.n_q // 2 if self.model_type == "personaplex" else self.dep_q

    @property
    def user_q(self) -> int:
        """Codebooks of the user."""
        return self.n_q - self.agent_q

    @property
    def codebooks(self) -> int:
        """Codebooks the codec encodes and decodes."""
        return max(self.agent_q, self.user_q)

    @property
    def lm_kwargs(self) -> dict[str, Any]:
        """Arguments of the package's ``LMModel`` for the model as published."""
        # Only what the file says: the package's depth transformer inherits from the temporal one what it is not given.
        given = {k: v for k, v in self.model_dump(exclude_unset=True).items() if k not in _NOT_ARGUMENTS}
        return given | {"delays": list(self.delays)}

    @property
    def served_lm_kwargs(self) -> dict[str, Any]:
        """The same with only the steps of depth that are run: what an engine builds and loads."""
        given = self.lm_kwargs | {"dep_q": self.agent_q}
        for name in ("depformer_weights_per_step_schedule", "depformer_dim_feedforward"):
            if isinstance(given.get(name), list):
                given[name] = given[name][: self.agent_q]
        return given


def parse_config(table: Mapping[str, Any], where: str = CONFIG_NAME) -> ModelConfig:
    """A ``config.json``'s content, checked. Raises ``ConfigError`` that names the field and says what is accepted."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} must hold a JSON object, not {type(table).__name__}.")
    if table.get("model_type") == "personaplex":
        table = PRESETS["personaplex"] | dict(table)
    try:
        return ModelConfig.model_validate(dict(table))
    except ValidationError as error:
        raise ConfigError(_say(error, where)) from error


def _say(error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"{where} has no {name!r}, which a model of this family needs. Use the file it was published with."
    if first["type"] == "extra_forbidden":
        return f"{where}: {name!r} is nothing this engine knows. Remove it if it is only a note; else it is not served."
    told = first["msg"].removeprefix("Value error, ")
    return f"{where}: {name} = {first['input']!r}: {told}." if name else f"{where}: {told}."


def read_config(path: Path) -> ModelConfig:
    """The file at ``path``. Raises ``ConfigError``."""
    try:
        table = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}.") from error
    return parse_config(table, str(path))


def file_in(directory: Path, name: str, field: str) -> Path:
    """The file that ``config.json`` calls ``name``: in the directory, or anywhere on this machine as ``file://PATH``.

    Raises ``ConfigError`` for names that lead out of the directory and for ``hf://…``: a directory needs no network.
    """
    if name.startswith("file://"):
        return Path(name.removeprefix("file://"))
    plain = PurePosixPath(name)
    if name.startswith("hf://"):
        raise ConfigError(
            f"{field} = {name!r} is on the hub, and a directory is read without a network. "
            f"Put that file into {directory}, and its name into {CONFIG_NAME}."
        )
    if not name or plain.is_absolute() or ".." in plain.parts:
        raise ConfigError(f"{field} = {name!r} must be a file inside {directory}, or file:// and a path.")
    return directory / plain


def preset(name: str) -> ModelConfig:
    """A configuration by name: ``tiny``, ``1b``, ``moshi-7b``, ``personaplex``. Raises ``ConfigError``."""
    if name not in PRESETS:
        raise ConfigError(f"There is no preset {name!r}. Known: {', '.join(PRESETS)}.")
    return parse_config(PRESETS[name], f"preset {name}")


def _delays(per_side: int) -> list[int]:
    """The family's: text and the semantic codebooks at once, acoustic ones a step later."""
    side = [0, *[1] * (per_side - 1)]
    return [0, *side, *side]


# Kyutai's published 7B: `_lm_kwargs` of moshi 0.2.13, models/loaders.py. 7 687 729 152 parameters.
MOSHI_7B: Mapping[str, Any] = {
    "model_type": "moshi",
    **{"dim": 4096, "num_heads": 32, "num_layers": 32, "hidden_scale": 4.125, "context": 3000},
    **{"text_card": 32_000, "card": 2048, "n_q": 16, "dep_q": 8, "delays": _delays(8)},
    **{"gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope"},
    **{"depformer_dim": 1024, "depformer_dim_feedforward": 4224, "depformer_num_heads": 16},
    **{"depformer_num_layers": 6, "depformer_gating": "silu", "depformer_pos_emb": "none"},
    **{"depformer_multi_linear": True, "depformer_weights_per_step": True, "depformer_max_period": 10_000},
}

PRESETS: dict[str, dict[str, Any]] = {
    # Everything the 7B has, at 2 ms a step on one core.
    "tiny": {
        **MOSHI_7B,
        **{"dim": 64, "num_heads": 4, "num_layers": 2, "context": 100},
        **{"text_card": 320, "card": 64, "n_q": 8, "dep_q": 4, "delays": _delays(4)},
        **{"depformer_dim": 32, "depformer_dim_feedforward": 64, "depformer_num_heads": 2, "depformer_num_layers": 1},
    },
    # The temporal transformer of Kyutai's 1B models (16 layers of 2048) with Moshi's streams.
    "1b": {**MOSHI_7B, **{"dim": 2048, "num_heads": 16, "num_layers": 16}},
    "moshi-7b": dict(MOSHI_7B),
    # nvidia/personaplex-7b-v1: 8 371 408 896 parameters as published.
    "personaplex": {**MOSHI_7B, "model_type": "personaplex", "dep_q": 16},
}
