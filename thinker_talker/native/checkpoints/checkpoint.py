"""Published checkpoints of the family, loaded unchanged: a directory with ``config.json``, safetensors and a tokenizer,
or a hub repository by its entry in the weights manifest. A directory needs no network.

Theory of operation. The model is built without memory; then each tensor is read from the file straight onto the device,
taken apart or cut where the file's layout differs from the model's, turned into the wanted precision, and put in place,
one at a time: besides the model there is never more than one tensor. What differs:

- The package fuses the per-step projections of the depth transformer in its files (``in_proj_weight`` of all steps in
  one matrix) and has a module for each step.
- PersonaPlex has steps of depth that are never run (``config.py``): their tensors are skipped, fused ones read in part.
- A q8 file holds int8 linears with a largest magnitude for each row, ``weight_scb``.
- A LoRA adapter beside the weights is added to them as they pass: ``W + scaling * B @ A``.

Names and shapes are compared before the first byte is read, so what does not fit is told at once and in full.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from duplex.errors import ConfigError, WeightsError, WeightsMissingError
from duplex.weights import ModelStore

from .config import CONFIG_NAME, MOSHI_NAME, PRESETS, ModelConfig, file_in, parse_config, read_config
from .int8_linear import Int8Linear, dequantise_rows
from .package import empty_lm
from .precision import Precision, join_parts, part_of
from .tensor_files import TensorFiles, TensorInfo, open_tensors, refuse_pickle

_FUSED = {  # how a file may call the fused projections of an attention: the modules they are taken apart into
    "in_proj_weight": "in_projs",
    "in_proj.weight": "in_projs",
    "out_proj.weight": "out_projs",
}
_SCB = "_scb"  # of bitsandbytes' int8: float32[out], the largest magnitude of each row; its int8 are steps of 1/127
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where everything of a model is. ``mimi_config``: the codec's configuration, if not the published one."""

    directory: Path
    config: ModelConfig
    lm: Path
    mimi: Path
    tokenizer: Path
    mimi_config: Path | None = None
    lora: Path | None = None

    def codec_options(self) -> dict[str, Any]:
        """Options for the codec ``mimi`` of ``duplex.codecs``."""
        return {"weights": self.mimi, "config": self.mimi_config, "codebooks": self.config.codebooks}


def find_checkpoint(weights: str, store: ModelStore | None = None) -> Checkpoint:
    """``weights``: a directory; or a hub repository, or a name, of the weights manifest, which must have been pulled.

    Raises ``ConfigError`` (neither, or a config that does not fit), ``WeightsMissingError`` and ``WeightsCorruptError``
    with the command that mends it, ``WeightsError`` (a pickle).
    """
    directory = Path(weights).expanduser()
    if not directory.is_dir():
        if directory.exists():
            raise ConfigError(f"weights = {weights!r} is a file. Name the directory that holds it and {CONFIG_NAME}.")
        store = store or ModelStore()
        entry = store.manifest.find(weights)
        if entry is None:
            known = ", ".join(e.name for e in store.manifest.model if e.role == "native")
            raise ConfigError(
                f"weights = {weights!r} is neither a directory nor in the weights manifest (there: {known}). "
                "Fetch that repository by your own means, and give its directory."
            )
        directory = store.path(entry.name)
    config = _config_in(directory)
    found = Checkpoint(
        directory=directory,
        config=config,
        lm=file_in(directory, config.moshi_name, "moshi_name"),
        mimi=file_in(directory, config.mimi_name, "mimi_name"),
        tokenizer=file_in(directory, config.tokenizer_name, "tokenizer_name"),
        mimi_config=_optional(directory, config.mimi_config_name, "mimi_config_name"),
        lora=_optional(directory, config.lora_name, "lora_name"),
    )
    for what, path in (("the codec", found.mimi), ("the text tokenizer", found.tokenizer), ("LoRA", found.lora)):
        if path is not None and not path.is_file():
            raise WeightsMissingError(f"There is no {path}, {what} of this model. Put the published file there.")
    refuse_pickle(found.mimi)
    return found


def _optional(directory: Path, name: str | None, field: str) -> Path | None:
    return None if name is None else file_in(directory, name, field)


def _config_in(directory: Path) -> ModelConfig:
    path = directory / CONFIG_NAME
    if path.is_file():
        return read_config(path)
    # The first releases have none. Their shape is the 7B's; PersonaPlex shows in its steps of depth.
    lm = directory / MOSHI_NAME
    if not lm.is_file():
        raise WeightsMissingError(f"{directory} has neither a {CONFIG_NAME} nor a {lm.name}: no model of this family.")
    with open_tensors(lm, torch.device("cpu")) as files:
        name = "personaplex" if "linears.15.weight" in files.tensors else "moshi-7b"
    return parse_config(PRESETS[name], f"{directory} without a {CONFIG_NAME}")


@dataclass(frozen=True, slots=True)
class _Piece:
    """Where a tensor of the model comes from: rows of a file's tensor (all: ``None``), and its scales', if int8."""

    source: str
    rows: slice | None
    scales: str | None = None


def load_lm(checkpoint: Checkpoint, device: torch.device, precision: Precision) -> Any:
    """The backbone (an ``LMModel`` of the package with the steps of depth that are run) on ``device``: in evaluation
    mode, without gradients, in the given precision (see :func:`.precision.apply_precision`).

    Raises ``WeightsError`` when files and configuration do not fit, with the first few of what is wrong and how many
    there are, ``WeightsMissingError``, ``WeightsCorruptError``, ``ConfigError``, ``MissingDependencyError``.
    """
    config = checkpoint.config
    model = empty_lm(config.served_lm_kwargs, torch.float32)
    published = model if config.agent_q == config.dep_q else empty_lm(config.lm_kwargs, torch.float32)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    unused = published.state_dict().keys() - wanted.keys()
    with ExitStack() as stack:
        files = stack.enter_context(open_tensors(checkpoint.lm, device))
        pieces = _plan(files.tensors, wanted, unused, checkpoint.lm)
        lora = stack.enter_context(open_tensors(checkpoint.lora, device)) if checkpoint.lora else None
        adapters = _adapters(lora, wanted, config, checkpoint.lora)
        for name, piece in pieces.items():
            tensor, scale = _read(files, piece)
            if lora is not None and name in adapters:
                tensor = _adapted(tensor, lora, adapters[name], config.lora_scaling)
            _place(model, name, tensor, scale, precision)
    join_parts(model)
    if config.model_type == "hibiki":
        # As the package does: an end of text that comes too early becomes padding, so that it goes on translating.
        with torch.no_grad():
            model.text_emb.weight[2] = model.text_emb.weight[3]
    return model.eval().requires_grad_(False)


def _plan(
    there: Mapping[str, TensorInfo], wanted: Mapping[str, tuple[int, ...]], unused: set[str], path: Path
) -> dict[str, _Piece]:
    """Which of the file's tensors make which of the model's. Raises ``WeightsError``."""
    pieces: dict[str, _Piece] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    extra: list[str] = []
    for name, info in there.items():
        if name.endswith(_SCB):
            continue
        scales = name + _SCB if name + _SCB in there else None
        targets = _targets(name, wanted)
        if targets is None:
            if name not in unused:
                extra.append(name)
            continue
        rows = wanted[targets[0]][0] if wanted[targets[0]] else 1
        for i, target in enumerate(targets):
            whole = len(targets) == 1 and info.shape == wanted[target]
            pieces[target] = _Piece(name, None if whole else slice(i * rows, (i + 1) * rows), scales)
            # A fused tensor may have rows of steps that are not run, in whole steps.
            steps_fit = len(info.shape) == 2 and info.shape[0] % rows == 0 and info.shape[0] >= len(targets) * rows
            cut = (rows, *info.shape[1:]) if name not in wanted and steps_fit else info.shape
            shapes[target] = cut
    missing = [name for name in wanted if name not in pieces]
    wrong = [
        f"{name} is {list(shapes[name])}, the configuration says {list(wanted[name])}"
        for name in wanted
        if name in shapes and shapes[name] != wanted[name]
    ]
    problems = [
        f"{len(found)} {what}: {', '.join(found[:_SHOWN])}{', …' if len(found) > _SHOWN else ''}"
        for what, found in (("missing", missing), ("not of this model", extra), ("of another shape", wrong))
        if found
    ]
    if problems:
        raise WeightsError(
            f"{path} does not fit its {CONFIG_NAME}. Tensors " + "; ".join(problems) + ". Use the config it came with."
        )
    return pieces


def _targets(name: str, wanted: Mapping[str, tuple[int, ...]]) -> list[str] | None:
    """The model's names for a file's tensor: itself, or the steps it is fused of; ``None``: the model has none."""
    if name in wanted:
        return [name]
    for ending, modules in _FUSED.items():
        if name.endswith(ending):
            prefix = name.removesuffix(ending) + modules
            steps: list[str] = []
            while f"{prefix}.{len(steps)}.weight" in wanted:
                steps.append(f"{prefix}.{len(steps)}.weight")
            return steps or None
    return None


def _read(files: TensorFiles, piece: _Piece) -> tuple[torch.Tensor, torch.Tensor | None]:
    tensor = files.read(piece.source, piece.rows)
    if piece.scales is None:
        if tensor.dtype == torch.int8:
            raise WeightsError(f"{piece.source} is int8, and there is no {piece.source}{_SCB} with its scales.")
        return tensor, None
    return tensor, files.read(piece.scales, piece.rows).float() / 127.0


@torch.no_grad()
def _place(model: nn.Module, name: str, tensor: torch.Tensor, scale: torch.Tensor | None, precision: Precision) -> None:
    """Puts one tensor where it belongs, in the part's precision."""
    path, _, last = name.rpartition(".")
    owner = model.get_submodule(path)
    part = part_of(path)
    dtype = precision.dtype(part)
    if isinstance(owner, nn.Linear) and last == "weight" and getattr(precision, part) == "int8":
        if scale is None:
            linear = nn.Linear(1, 1, bias=False, device="meta")
            linear.weight = nn.Parameter(tensor, requires_grad=False)
            replacement = Int8Linear.of(linear)
        else:
            replacement = Int8Linear(tensor.clone(), scale.clone())
        replacement.bias = owner.bias
        model.set_submodule(path, replacement)
        return
    if scale is not None:
        tensor = dequantise_rows(tensor, scale, dtype)
    if tensor.is_floating_point():
        # A copy even where nothing changes: what is read on the CPU is the mapped file, which may be replaced under us.
        tensor = tensor.to(dtype, copy=True)
    if last in owner._buffers:
        owner._buffers[last] = tensor
    else:
        owner.register_parameter(last, nn.Parameter(tensor, requires_grad=False))


def _adapters(
    lora: TensorFiles | None, wanted: Mapping[str, tuple[int, ...]], config: ModelConfig, path: Path | None
) -> dict[str, str]:
    """By the weight they change: the prefix of an adapter's two matrices. Raises ``WeightsError``."""
    if lora is None:
        if config.lora:
            raise ConfigError(f"{CONFIG_NAME}: lora is true, and lora_name names no file.")
        return {}
    found: dict[str, str] = {}
    odd = []
    for name, info in lora.tensors.items():
        prefix, dot, side = name.rpartition(".lora_")
        other = lora.tensors.get(f"{prefix}.lora_{'B' if side == 'A.weight' else 'A'}.weight")
        weight = f"{prefix}.weight"
        if not dot or other is None or weight not in wanted:
            odd.append(name)
        elif side == "B.weight":
            found[weight] = prefix
            if (info.shape[0], other.shape[-1]) != wanted[weight] or info.shape[-1] != other.shape[0]:
                odd.append(name)
    if odd or not found:
        shown = f"{len(odd)} tensors, such as {', '.join(odd[:_SHOWN])}" if odd else "no adapters"
        raise WeightsError(f"{path} does not fit the model: {shown}. Use the LoRA file made for these weights.")
    return found


def _adapted(weight: torch.Tensor, lora: TensorFiles, prefix: str, scaling: float) -> torch.Tensor:
    down, up = (lora.read(f"{prefix}.lora_{side}.weight").float() for side in "AB")
    return weight.float() + scaling * (up @ down)
