"""Where a Mimi's weights come from: a safetensors file as published, or random numbers of a given seed.

Random weights are for tests and capacity runs. Left as they are initialised they would be a poor stand-in: the
codebooks are zero, and what comes out is the biases' doing. So there are none, convolutions keep a signal's power, the
codebooks are spread over what the encoder makes of noise, and the decoder is levelled to :data:`RANDOM_LEVEL`: codes
follow the sound, and the sound follows the codes.
"""

from __future__ import annotations

import copy
import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from duplex.config import Settings
from duplex.errors import ConfigError, MissingDependencyError, WeightsCorruptError, WeightsError, WeightsMissingError

Model = Any
"""A ``moshi.models.MimiModel``."""

RANDOM_LEVEL = 0.1  # root mean square of what random weights make of random codes: -20 dBFS
RANDOM_LAYER_SCALE = 0.3  # so that a random transformer has a say; untrained it starts at 0.01
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}

PICKLE_ENDINGS = (".pt", ".pth", ".bin", ".th", ".ckpt", ".pkl", ".pickle")
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

# A few milliseconds a frame on one core, and everything the real one has: two transformers, 32 codebooks.
TINY: Mapping[str, Any] = {
    "seanet": {"dimension": 32, "n_filters": 4},
    "quantizer": {"dimension": 16, "n_q": 32, "bins": 64, "input_dimension": 32, "output_dimension": 32},
    "transformer": {
        "d_model": 32,
        "num_heads": 2,
        "num_layers": 1,
        "dim_feedforward": 64,
        "input_dimension": 32,
        "output_dimensions": [32],
        "context": 50,
    },
}


class MimiOptions(Settings):
    """``weights``: a safetensors file; ``None``: random ones of ``seed``. ``config``: tables that replace entries of
    the published configuration, the path of a JSON file with such tables, or ``tiny``. ``codebooks``: how many are
    encoded, and at most decoded. ``dtype``: of the networks and their state; the quantiser is never below float32."""

    weights: Path | None = None
    config: dict[str, Any] | Path | Literal["tiny"] | None = None
    seed: int = Field(0, ge=0)
    codebooks: int = Field(8, ge=1)
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"


def build(options: MimiOptions) -> Model:
    """A ``MimiModel``, in evaluation mode and without gradients, on its device and in its dtype.

    Raises ``MissingDependencyError``, ``ConfigError`` (the options, or weights that do not fit the configuration) and
    ``WeightsError`` (the file: missing, a pickle, cut short).
    """
    config = _config(options.config)
    device = device_named(options.device)
    state = None if options.weights is None else _read(options.weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = _empty(config)
        if state is None:
            _randomise(model)
    if state is not None:
        _fill(model, state, str(options.weights))
    if options.codebooks > model.total_codebooks:
        raise ConfigError(f"codebooks = {options.codebooks}, and this Mimi has {model.total_codebooks}.")
    if model.channels != 1:
        raise ConfigError(f"This Mimi has {model.channels} channels; a call is mono.")
    dtype = DTYPES[options.dtype]
    model.eval().requires_grad_(False).to(device=device, dtype=dtype)
    if dtype == torch.bfloat16:
        model.quantizer.float()
    return model


def device_named(name: str) -> torch.device:
    """Raises ``ConfigError`` for a device that is not there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device = {name!r} is no device; 'cpu' or 'cuda' (or 'cuda:1' …) is.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device = {name!r}, but torch {torch.__version__} sees no GPU here. Set device = 'cpu'.")
    return device


def _loaders() -> Any:
    os.environ.setdefault("NO_TORCH_COMPILE", "1")  # read at import; compiling takes seconds and a C++ compiler
    try:
        from moshi.models import loaders
    except ImportError as error:
        raise MissingDependencyError(error.name or "moshi", "moshi") from error
    return loaders


def _config(given: dict[str, Any] | Path | str | None) -> dict[str, Any]:
    """The published configuration with the given entries in it."""
    if isinstance(given, Path):
        try:
            given = json.loads(given.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"config: {given} cannot be read as JSON: {error}.") from error
        if not isinstance(given, dict):
            raise ConfigError("config: the file must hold a JSON object.")
    tables = TINY if given == "tiny" else (given or {})
    assert isinstance(tables, Mapping)
    config: dict[str, Any] = copy.deepcopy(_loaders()._mimi_config)
    for name, value in tables.items():
        if name not in config:
            raise ConfigError(f"config: Mimi's configuration has no {name!r}. Known: {', '.join(config)}.")
        if isinstance(config[name], dict):
            if not isinstance(value, Mapping):
                raise ConfigError(f"config: {name!r} must be a table.")
            config[name] |= copy.deepcopy(dict(value))
        else:
            config[name] = value
    return config


def _empty(config: dict[str, Any]) -> Model:
    loaders = _loaders()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return loaders.get_mimi(None, mimi_config=config, num_codebooks=config["quantizer"]["n_q"])
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise ConfigError(f"config: no Mimi can be built from it: {type(error).__name__}: {error}.") from error


def _read(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise WeightsMissingError(f"There is no file {path}. Mimi's weights are a .safetensors file.")
    with path.open("rb") as file:
        start = file.read(4)
    if path.suffix.lower() in PICKLE_ENDINGS or start.startswith(PICKLE_STARTS):
        raise WeightsError(
            f"{path} is a pickle, which can run code when it is read, and is refused. "
            "Use the .safetensors file of the same model, or convert it where you trust it."
        )
    try:
        return dict(load_file(path))
    except (SafetensorError, ValueError, OSError) as error:
        raise WeightsCorruptError(f"{path} is no whole safetensors file: {error}. Fetch it again.") from error


def _fill(model: Model, state: dict[str, torch.Tensor], name: str) -> None:
    try:
        model.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        # One problem a line, after a heading; the loading hooks of the package may raise with one line.
        problems = [line.strip() for line in str(error).splitlines() if line.strip()]
        shown = " ".join(problems[1:4] or problems)
        more = f" … and {len(problems) - 4} more." if len(problems) > 4 else ""
        raise ConfigError(
            f"The weights in {name} do not fit this Mimi's configuration (give the one they were made with as config). "
            f"{shown[:600]}{more}"
        ) from error


@torch.no_grad()
def _randomise(model: Model) -> None:
    """From torch's random state."""
    for name, parameter in model.named_parameters():
        if "layer_scale" in name:
            parameter.fill_(RANDOM_LAYER_SCALE)
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            transposed = isinstance(module, nn.ConvTranspose1d)
            taps = module.kernel_size[0] // module.stride[0] if transposed else module.kernel_size[0]
            module.weight.normal_(std=(taps * module.in_channels / module.groups) ** -0.5)
            if module.bias is not None:
                module.bias.zero_()
    frames = 12
    latent = model._encode_to_unquantized_latent(0.1 * torch.randn(1, 1, frames * model.frame_size))
    for group in (model.quantizer.rvq_first, model.quantizer.rvq_rest):
        residual = group.input_proj(latent)[0].T  # [frames, dimension]
        for layer in group.vq.layers:
            book = layer._codebook
            mean = residual.mean(0)
            spread = (residual - mean).pow(2).mean().sqrt()
            book.embedding_sum.copy_(mean + spread * torch.randn_like(book.embedding_sum))
            book.cluster_usage.fill_(1.0)
            book._initialized.fill_(1.0)
            entries = book.embedding_sum
            residual = residual - entries[torch.cdist(residual, entries).argmin(-1)]
    codes = torch.randint(0, model.cardinality, (1, model.total_codebooks, frames))
    level = model.decode(codes).std().item()
    last = [module for module in model.decoder.modules() if isinstance(module, nn.Conv1d)][-1]
    last.weight.mul_(RANDOM_LEVEL / level if math.isfinite(level) and level > 0 else 1.0)
