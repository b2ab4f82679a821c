"""Keys and values of the temporal transformer: a ring per slot, its first places kept for ever.

Theory of operation
-------------------
A slot has ``capacity`` places. Position p lies in place p while p < ``sinks``, else in
``sinks + (p - sinks) % (capacity - sinks)``: once full, a new position takes the place of the oldest that is no sink.
Places fill in order and stay filled, so at position p exactly the places 0 … p are valid (all of them, beyond
``capacity``), and since attention does not care in which order keys come, that is the only mask a step needs.

With ``sinks`` 0 this is the sliding window of the ``moshi`` package. With sinks it is StreamingLLM (Xiao et al.,
"Efficient Streaming Language Models with Attention Sinks", arXiv:2309.17453): the window alone loses the first
positions, on which attention leans whatever they say, and a model without them falls apart; with a handful of them it
goes on for millions of steps. That paper gives positions *within the cache*: sinks at 0 … sinks - 1, the query at
capacity - 1. We keep keys rotated at the positions they came at, and get the same numbers: rotary attention depends on
distances alone, those within the window are what they were, and for the sinks' few columns the query is rotated a
second time, as if it stood at min(p, capacity - 1). No key is ever rotated again, so nothing drifts, and inside the
window both queries are the same: full attention, to the last bit of the position.

Memory is bounded and a step's work constant. Keys and values are kept in the model's dtype, in bfloat16, or as int8
with one scale for each head and position (the largest magnitude over 127; rounding to nearest).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from duplex.errors import ConfigError

KvDtype = Literal["model", "bfloat16", "int8"]


@dataclass(frozen=True, slots=True)
class KvLayout:
    """``capacity`` places of a slot, the first ``sinks`` kept; ``heads`` of ``dim``; ``dtype`` of what is stored."""

    capacity: int
    sinks: int
    heads: int
    dim: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if self.capacity < 2:
            raise ConfigError(f"The context must be at least 2 steps, not {self.capacity}.")
        if not 0 <= self.sinks < self.capacity:
            raise ConfigError(f"sinks must be between 0 and {self.capacity - 1} (below the context), not {self.sinks}.")

    @property
    def quantised(self) -> bool:
        return self.dtype == torch.int8

    @property
    def ring(self) -> int:
        return self.capacity - self.sinks

    @property
    def bytes_per_slot(self) -> int:
        """Of one layer."""
        return 2 * self.heads * (self.capacity + 1) * (self.dim * self.dtype.itemsize + (4 if self.quantised else 0))

    def place(self, positions: torch.Tensor) -> torch.Tensor:
        """int64 of any shape to places."""
        wrapped = torch.remainder(positions - self.sinks, self.ring) + self.sinks
        return torch.where(positions < self.sinks, positions, wrapped)

    def positions_after(self, last: torch.Tensor) -> torch.Tensor:
        """``last`` int64[n], the newest position written, to int64[n, capacity]: the position in each place, negative
        where there is none."""
        places = torch.arange(self.capacity, dtype=torch.int64, device=last.device)
        newest = torch.remainder(last[:, None] - self.sinks, self.ring) + self.sinks
        ring = last[:, None] - torch.remainder(newest - places, self.ring)
        positions = torch.where(places < self.sinks, places, ring)
        return torch.where(places <= last[:, None], positions, -1)


@dataclass(slots=True)
class KvLayer:
    """One layer's cache of n slots. Tensors have one place more than ``capacity``, the last: what a slot that stands
    still would write goes there, and it is never read. Scales are float32 and there for int8 alone."""

    layout: KvLayout
    keys: torch.Tensor  # [n, heads, capacity + 1, dim]
    values: torch.Tensor
    key_scales: torch.Tensor | None = None  # [n, heads, capacity + 1]
    value_scales: torch.Tensor | None = None

    @classmethod
    def empty(cls, layout: KvLayout, n_slots: int, device: torch.device) -> KvLayer:
        places = (n_slots, layout.heads, layout.capacity + 1)

        def tensor() -> torch.Tensor:
            return torch.zeros(*places, layout.dim, dtype=layout.dtype, device=device)

        def scales() -> torch.Tensor | None:
            return torch.zeros(*places, dtype=torch.float32, device=device) if layout.quantised else None

        return cls(layout, tensor(), tensor(), scales(), scales())

    def rows(self, start: int, stop: int) -> KvLayer:
        """Those slots, the same memory."""
        scales = [None if t is None else t[start:stop] for t in (self.key_scales, self.value_scales)]
        return KvLayer(self.layout, self.keys[start:stop], self.values[start:stop], *scales)

    def named(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What a slot remembers, without the place that is never read."""
        everything = {"keys": self.keys, "values": self.values}
        if self.key_scales is not None and self.value_scales is not None:
            everything |= {"key_scales": self.key_scales, "value_scales": self.value_scales}
        for name, tensor in everything.items():
            yield name, tensor[:, :, : self.layout.capacity]

    def write(self, rows: torch.Tensor, places: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """``rows`` and ``places`` int64[m]; ``keys`` and ``values`` ``[m, heads, dim]``."""
        for new, held, scales in ((keys, self.keys, self.key_scales), (values, self.values, self.value_scales)):
            stored, scale = pack(new, held.dtype)
            held[rows, :, places] = stored
            if scales is not None:
                assert scale is not None
                scales[rows, :, places] = scale


def pack(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``[..., dim]`` as it is stored, and its scales float32 ``[...]`` (int8 only). What is not a number makes its
    scale not a number, so it is not lost in an integer."""
    if dtype != torch.int8:
        return x.to(dtype), None
    scale = x.abs().amax(dim=-1).float() / 127.0
    stored = (x.float() / scale.clamp(min=1e-30)[..., None]).round_().clamp_(-127, 127).to(torch.int8)
    return stored, scale


def unpack(stored: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """What attention sees of what :func:`pack` stored."""
    return stored.to(dtype) if scale is None else (stored.float() * scale[..., None]).to(dtype)


def stored_dtype(kind: KvDtype, model: torch.dtype) -> torch.dtype:
    """Raises ``ConfigError``."""
    choices: dict[str, torch.dtype] = {"model": model, "bfloat16": torch.bfloat16, "int8": torch.int8}
    if kind not in choices:
        raise ConfigError(f"kv_dtype must be one of {', '.join(choices)}, not {kind!r}.")
    return choices[kind]
