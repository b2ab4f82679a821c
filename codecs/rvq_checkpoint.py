"""Quantisers on disk: safetensors with the configuration inside, and codebooks taken over from the Moshi family.

A file holds the tensors of :class:`~.rvq.Rvq` under their own names. Its metadata has ``format`` = "duplex-rvq",
``config`` (JSON), and with a trainer ``options``; the trainer's state is in the tensors ``training.step`` and
``training.generator``. Nothing is unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from duplex.codecs.rvq import Rvq, RvqConfig
from duplex.codecs.rvq_training import RvqTrainer, TrainingOptions, TrainingState
from duplex.config import validated
from duplex.errors import ConfigError, MissingDependencyError, WeightsCorruptError, WeightsMissingError

try:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save as save_bytes
except ImportError as error:
    raise MissingDependencyError("safetensors", "moshi") from error

FORMAT = "duplex-rvq"
_TRAINING = "training."
_SUM_NAMES = ("embedding_sum", "embed_sum", "embed_avg")
_USAGE_NAMES = ("cluster_usage", "cluster_size")


def save(path: Path, rvq: Rvq, trainer: RvqTrainer | None = None) -> None:
    """Writes a quantiser, and what its training needs to go on. The file is there whole, or as it was before."""
    tensors = dict(rvq.state_dict())
    metadata = {"config": rvq.config.model_dump_json()}
    if trainer is not None:
        state = trainer.state()
        tensors |= {f"{_TRAINING}step": torch.tensor(state.step), f"{_TRAINING}generator": state.generator}
        metadata["options"] = trainer.options.model_dump_json()
    write_tensors(path, FORMAT, tensors, metadata)


def load(path: Path) -> Rvq:
    """The quantiser in a file, on the CPU. Raises ``WeightsMissingError`` or ``WeightsCorruptError``."""
    return _load(path)[0]


def load_trainer(path: Path) -> RvqTrainer:
    """The quantiser in a file with its trainer, as it was. Raises as :func:`load`, or if no trainer was saved."""
    rvq, tensors, metadata = _load(path)
    if "options" not in metadata or f"{_TRAINING}step" not in tensors:
        raise WeightsCorruptError(
            f"{path} holds a quantiser and no training state; save it with save(path, rvq, trainer)."
        )
    trainer = RvqTrainer(rvq, validated(TrainingOptions, json.loads(metadata["options"])))
    trainer.restore(TrainingState(int(tensors[f"{_TRAINING}step"]), tensors[f"{_TRAINING}generator"]))
    return trainer


def from_moshi(state: Mapping[str, Tensor]) -> Rvq:
    """A quantiser with the codebooks and projections of the package ``moshi``.

    ``state``: the state of its ``ResidualVectorQuantizer`` or ``SplitResidualVectorQuantizer``, or of a whole Mimi
    model (a loaded ``tokenizer-….safetensors``), where it lies under ``quantizer.``. Raises ``WeightsCorruptError``
    if there is none in it.
    """
    prefix = "quantizer." if any(name.startswith("quantizer.") for name in state) else ""
    names = ("rvq_first.", "rvq_rest.") if f"{prefix}rvq_rest.vq.layers.0._codebook.embedding_sum" in state else ("",)
    chains = [_chain_of(state, prefix + name) for name in names]
    if not all(sums for sums, _ in chains):
        raise WeightsCorruptError("There is no residual quantiser of the Moshi family in these weights.")
    size, dim = chains[0][0][0].shape
    projection = state.get(f"{prefix}{names[0]}input_proj.weight")
    config = RvqConfig(
        input_dim=dim if projection is None else projection.shape[1],
        dim=dim,
        codebooks=sum(len(sums) for sums, _ in chains),
        codebook_size=size,
        semantic_codebooks=len(chains[0][0]) if len(chains) == 2 else 0,
    )
    rvq = Rvq(config)
    for chain, name, (sums, usages) in zip(rvq.chains, names, chains, strict=True):
        for codebook, sum_, usage in zip(chain.codebooks, sums, usages, strict=True):
            codebook.fill(sum_, usage)
        if config.projected:
            for ours, theirs in ((chain.project_in, "input_proj"), (chain.project_out, "output_proj")):
                # Theirs is a convolution over one frame: its weights have one more dimension, of one.
                ours.load_state_dict({"weight": state[f"{prefix}{name}{theirs}.weight"].squeeze(-1)})
    return rvq


def _chain_of(state: Mapping[str, Tensor], prefix: str) -> tuple[list[Tensor], list[Tensor]]:
    """Sums and usages of its codebooks, under the names of today and those of older checkpoints."""
    sums: list[Tensor] = []
    usages: list[Tensor] = []
    while True:
        at = f"{prefix}vq.layers.{len(sums)}._codebook."
        sum_ = next(
            (state[at + name] for name in ("embedding_sum", "embed_sum", "embed_avg") if at + name in state), None
        )
        usage = next((state[at + name] for name in ("cluster_usage", "cluster_size") if at + name in state), None)
        if sum_ is None or usage is None:
            return sums, usages
        sums.append(sum_.float())
        usages.append(usage.float())


def write_tensors(path: Path, format_name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """One safetensors file with its format's name in the metadata; whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        # Through bytes: the library's own way to a file makes it readable by its owner alone.
        part.write_bytes(save_bytes(whole, {"format": format_name, **metadata}))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_tensors(path: Path, format_name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that :func:`write_tensors` wrote. Raises ``WeightsMissingError`` if there is none,
    ``WeightsCorruptError`` if it is something else."""
    if not path.is_file():
        raise WeightsMissingError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsCorruptError(
            f"{path} is not a safetensors file ({error}). Other formats, pickled ones among them, are not read."
        ) from error
    if metadata.get("format") != format_name:
        raise WeightsCorruptError(f"{path} is a {metadata.get('format', 'safetensors')} file, not a {format_name} one.")
    return tensors, metadata


def fill(rvq: Rvq, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Puts tensors of a file (by :meth:`Rvq.state_dict`'s names) into ``rvq``. Raises ``WeightsCorruptError``."""
    wanted = rvq.state_dict()
    for name, tensor in wanted.items():
        found = tensors.get(name)
        if found is None or found.shape != tensor.shape:
            has = "nothing" if found is None else f"shape {tuple(found.shape)}"
            raise WeightsCorruptError(f"{path} has {has} where {name} of shape {tuple(tensor.shape)} belongs.")
    rvq.load_state_dict({name: tensors[name] for name in wanted})


def config_of(metadata: Mapping[str, str], path: Path) -> RvqConfig:
    """The configuration in a file's metadata. Raises ``WeightsCorruptError``."""
    try:
        table: Any = json.loads(metadata.get("config", "null"))
        return validated(RvqConfig, table if isinstance(table, dict) else {})
    except (ValueError, ConfigError) as error:
        raise WeightsCorruptError(f"The configuration inside {path} cannot be used: {error}") from error


def _load(path: Path) -> tuple[Rvq, dict[str, Tensor], dict[str, str]]:
    tensors, metadata = read_tensors(path, FORMAT)
    rvq = Rvq(config_of(metadata, path))
    fill(rvq, tensors, path)
    return rvq, tensors, metadata
