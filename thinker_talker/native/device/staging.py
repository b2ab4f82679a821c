"""Host and device ends of one copy a tick: every field of a slot side by side in one row of bytes.

A tick fills the first n rows on the host, copies that prefix once, and reads the device's views of it; results come
back the same way. On the CPU both ends are the same memory and a copy is nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_ALIGNMENT = 16  # bytes; a multiple of every field's item size

_NUMPY: Mapping[torch.dtype, type[Any]] = {
    torch.bool: np.bool_,
    torch.int64: np.int64,
    torch.float32: np.float32,
}


@dataclass(frozen=True, slots=True)
class Field:
    """One value a slot has: ``shape`` without the slots' dimension."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...] = ()


class Rows:
    """``n_rows`` rows of fields. ``host[name]`` is numpy, ``device[name]`` torch; both ``[n_rows, *shape]``.

    The host's end is pinned where there is a CUDA device, so that a copy does not wait.
    """

    def __init__(self, fields: Sequence[Field], n_rows: int, device: torch.device) -> None:
        offsets, row_bytes = [], 0
        for field in fields:
            offsets.append(row_bytes)
            size = field.dtype.itemsize * math.prod(field.shape)
            row_bytes += math.ceil(size / _ALIGNMENT) * _ALIGNMENT
        cuda = device.type == "cuda"
        self._host = torch.zeros(n_rows, row_bytes, dtype=torch.uint8, pin_memory=cuda)
        self._device = torch.zeros(n_rows, row_bytes, dtype=torch.uint8, device=device) if cuda else self._host
        self.host: dict[str, npt.NDArray[Any]] = {}
        self.device: dict[str, torch.Tensor] = {}
        for field, offset in zip(fields, offsets, strict=True):
            self.host[field.name] = _field(self._host, field, offset).numpy()
            self.device[field.name] = _field(self._device, field, offset)
            assert self.host[field.name].dtype == _NUMPY[field.dtype]

    @property
    def row_bytes(self) -> int:
        return self._host.shape[1]

    def upload(self, n_rows: int) -> None:
        """Queues the copy of the first rows to the device; does not wait."""
        if self._device is not self._host:
            self._device[:n_rows].copy_(self._host[:n_rows], non_blocking=True)

    def download(self, n_rows: int) -> None:
        """Queues the copy of the first rows to the host; its end is only there once the stream got so far."""
        if self._device is not self._host:
            self._host[:n_rows].copy_(self._device[:n_rows], non_blocking=True)


def _field(rows: torch.Tensor, field: Field, offset: int) -> torch.Tensor:
    size = field.dtype.itemsize * math.prod(field.shape)
    flat = rows[:, offset : offset + size].view(field.dtype)
    return flat.view(len(rows), *field.shape) if len(field.shape) > 1 else flat if field.shape else flat[:, 0]
