"""A copy of a GGUF model in a format that this processor reads twice as fast.

llama.cpp has fast kernels for 4-bit weights of the kind Q4_0 (32 weights share one scale; blocks are interleaved
as it loads them), and none for Q4_1 (a scale and a minimum). For a small model on one thread that is half of the
time to the first word: with SmolLM2-135M 88 instead of 177 ms for a question of 17 tokens, and 11 instead of
17.5 ms for each token after (two cores of an AMD EPYC with AVX-512, one thread, median of 15).

The copy is not the same model to the bit: its weights differ by 8 % (RMS). On 24 everyday questions, two seeds
each, both get 33 of 48 right.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

log = logging.getLogger("duplex.cascade")

BLOCK = 32
_VERSION = 1  # of the quantisation below; another number makes another copy
_SCALES = np.arange(-4, 5) * 0.25 - 8.0  # tried for each block: the largest weight at −9 … −7 steps


def repacked(model: Path, directory: Path) -> Path:
    """The copy of ``model`` in ``directory``, made if it is not there: once, about 15 s for 135 M weights.

    ``model`` itself if it has no Q4_1 weights or the library ``gguf`` is not installed. Raises ``OSError`` if the
    copy cannot be written.
    """
    with model.open("rb") as file:
        head = hashlib.sha256(file.read(1 << 20) + str(model.stat().st_size).encode()).hexdigest()[:16]
    copy = directory / f"{model.stem}-{head}-q4_0-{_VERSION}.gguf"
    if copy.is_file():
        return copy
    try:
        import gguf
    except ImportError:
        log.info("gguf is not installed, so %s is used as it is. Run: pip install 'duplex-runtime[local]'", model.name)
        return model
    reader = gguf.GGUFReader(model)
    if not any(tensor.tensor_type == gguf.GGMLQuantizationType.Q4_1 for tensor in reader.tensors):
        return model
    log.info("Preparing %s for this processor. This happens once and takes about 15 s …", model.name)
    directory.mkdir(parents=True, exist_ok=True)
    part = directory / f".{copy.name}.{os.getpid()}.part"
    try:
        _write(gguf, reader, part)
        part.replace(copy)
    finally:
        part.unlink(missing_ok=True)
    return copy


def _write(gguf: Any, reader: Any, path: Path) -> None:
    """The same metadata and tensors, Q4_1 ones as Q4_0."""
    kinds, array = gguf.GGMLQuantizationType, gguf.GGUFValueType.ARRAY
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for name, entry in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        inner = entry.types[-1] if entry.types[0] == array else None
        writer.add_key_value(name, entry.contents(), entry.types[0], sub_type=inner)
    for tensor in reader.tensors:
        if tensor.tensor_type == kinds.Q4_1:
            weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, as_q4_0(weights), raw_dtype=kinds.Q4_0)
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def as_q4_0(weights: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """float32[..., n] (n a multiple of 32) as Q4_0: uint8[..., n / 32 * 18].

    A block is a float16 scale d and 32 numbers of 4 bits, w = d * (q − 8), the first 16 in the low halves of the
    bytes. Of nine scales the one with the least squared error is taken, fitted to its own rounding.
    """
    blocks = weights.reshape(-1, BLOCK).astype(np.float32)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    error = np.full(len(blocks), np.inf, dtype=np.float32)
    scale = np.zeros(len(blocks), dtype=np.float32)
    steps = np.zeros(blocks.shape, dtype=np.int8)
    for at in _SCALES:
        trial = largest / np.float32(at)
        rounded = np.clip(np.rint(np.divide(blocks, trial, out=np.zeros_like(blocks), where=trial != 0)), -8, 7)
        weight = (rounded * rounded).sum(axis=1)
        fitted = np.divide((rounded * blocks).sum(axis=1), weight, out=np.zeros_like(weight), where=weight > 0)
        fitted = fitted.astype(np.float16).astype(np.float32)
        missed = ((rounded * fitted[:, None] - blocks) ** 2).sum(axis=1)
        better = missed < error
        error[better], scale[better], steps[better] = missed[better], fitted[better], rounded[better]
    nibbles = (steps + 8).astype(np.uint8)
    packed = nibbles[:, : BLOCK // 2] | (nibbles[:, BLOCK // 2 :] << 4)
    coded = np.concatenate([scale.astype(np.float16)[:, None].view(np.uint8), packed], axis=1)
    return coded.reshape(*weights.shape[:-1], -1)
