"""Tensors on disk: one safetensors file, or several with an index; opened, listed and read piece by piece.

Nothing else is read. A pickle runs whatever its author wrote the moment it is opened, so it is refused by its first
bytes, whatever its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from duplex.errors import MissingDependencyError, WeightsCorruptError, WeightsError, WeightsMissingError

PICKLE_ENDINGS = (".pt", ".pth", ".bin", ".th", ".ckpt", ".pkl", ".pickle")
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
INDEX_ENDING = ".index.json"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """``dtype`` as safetensors names it (``BF16``, ``F32``, ``I8`` …)."""

    shape: tuple[int, ...]
    dtype: str


class TensorFiles:
    """Open files. ``tensors``: what is in them, by name. Read with :meth:`read`; a slice of rows reads only those."""

    def __init__(self, opened: Mapping[str, Any], device: torch.device) -> None:
        self._opened, self._device = opened, device
        self.tensors = {name: _info(file, name) for name, file in opened.items()}

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """The tensor, or the given rows of it, in the file's dtype. On the CPU it may still be the mapped file: clone
        what is to be kept."""
        file = self._opened[name]
        if rows is None:
            tensor: torch.Tensor = file.get_tensor(name)
        else:
            tensor = file.get_slice(name)[rows]
        return tensor.to(self._device)


@contextmanager
def open_tensors(path: Path, device: torch.device) -> Iterator[TensorFiles]:
    """The file at ``path``; or the files of ``path`` + ``.index.json``. What is read goes straight to ``device``.

    Raises ``WeightsMissingError``, ``WeightsCorruptError`` (cut short), ``WeightsError`` (a pickle, another format),
    ``MissingDependencyError``.
    """
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise MissingDependencyError("safetensors", "moshi") from error
    with ExitStack() as stack:
        opened: dict[str, Any] = {}
        for part in _parts(path):
            refuse_pickle(part)
            try:
                file = stack.enter_context(safe_open(part, framework="pt", device=str(device)))
                opened |= dict.fromkeys(file.keys(), file)
            except Exception as error:  # the library's error has no public base of its own in every version
                raise _unreadable(part, error) from error
        yield TensorFiles(opened, device)


def _parts(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    index = path.with_name(path.name + INDEX_ENDING)
    if not index.is_file():
        raise WeightsMissingError(f"There is no {path}, nor {index.name} beside it. Put the checkpoint's files there.")
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsCorruptError(f"{index} is no index of tensors ({error}). Fetch it again.") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise WeightsError(f"{index} names {name!r}, which is no file beside it.")
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise WeightsMissingError(f"{index} names {len(missing)} files that are not there: {', '.join(missing[:3])}.")
    return [path.parent / name for name in names]


def refuse_pickle(path: Path) -> None:
    """Raises ``WeightsError`` for a file that is, or is named like, a pickle."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise WeightsMissingError(f"{path} cannot be read: {error.strerror or error}.") from error
    if path.suffix.lower() in PICKLE_ENDINGS or start.startswith(PICKLE_STARTS):
        raise WeightsError(
            f"{path} is a pickle, which can run code when it is read, and is refused. "
            "Use the .safetensors file of the same model, or convert it where you trust it."
        )


def _info(file: Any, name: str) -> TensorInfo:
    entry = file.get_slice(name)
    return TensorInfo(tuple(entry.get_shape()), str(entry.get_dtype()))


def _unreadable(path: Path, error: Exception) -> WeightsError:
    size = path.stat().st_size if path.exists() else 0
    return WeightsCorruptError(
        f"{path} ({size} bytes) is no whole safetensors file: {error}. It may be cut short: fetch it again."
    )
