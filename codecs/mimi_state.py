"""What Mimi remembers of each slot: the last inputs of its convolutions, the tails of its transposed convolutions, the
keys and values its two transformers still look at.

Encoder and decoder remember separately, so that a slot can listen in one tick and speak in another. Each half is
three tensors, whatever the number of layers: a slot is copied, saved or moved in six copies.

======================  =======================================================  =========================
tensor of a half        shape                                                    holds
======================  =======================================================  =========================
``buffers``             [slot, values]                                           every convolution's, packed
``kv``                  [slot, layer, key or value, head, ring, head dimension]  position p at ring index p mod ring
``position``            int64[slot]                                              transformer steps so far; 0: as new
======================  =======================================================  =========================
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch

from duplex.codec import SlotState

Snapshot = Mapping[str, torch.Tensor]
"""One slot: the rows of :meth:`MimiState.tensors`, without the slot's dimension. Shares nothing with the state."""

ALIGNMENT = 16  # values; a convolution's part of the packed buffers starts at a multiple


@dataclass(frozen=True, slots=True)
class HalfLayout:
    """``windows``: (channels, values) that each streaming convolution keeps, in the order in which they run."""

    windows: tuple[tuple[int, int], ...]
    n_layers: int
    n_heads: int
    ring: int
    head_dim: int

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each window lies in a row of ``buffers``; one more than there are windows, the last is its length."""
        sizes = (-(-channels * values // ALIGNMENT) * ALIGNMENT for channels, values in self.windows)
        return tuple(accumulate(sizes, initial=0))


class Half:
    """The encoder's or the decoder's memory of some slots, and the views its layers work on."""

    def __init__(self, layout: HalfLayout, buffers: torch.Tensor, kv: torch.Tensor, position: torch.Tensor) -> None:
        self.layout = layout
        self.buffers = buffers
        self.kv = kv
        self.position = position
        n = len(position)
        self.windows = tuple(
            buffers[:, start : start + channels * values].view(n, channels, values)
            for start, (channels, values) in zip(layout.starts, layout.windows, strict=False)
        )
        self.layers = tuple(kv[:, layer] for layer in range(layout.n_layers))

    @staticmethod
    def new(layout: HalfLayout, n_slots: int, device: torch.device, dtype: torch.dtype) -> Half:
        buffers = torch.zeros(n_slots, layout.starts[-1], device=device, dtype=dtype)
        shape = (n_slots, layout.n_layers, 2, layout.n_heads, layout.ring, layout.head_dim)
        kv = torch.zeros(shape, device=device, dtype=dtype)
        return Half(layout, buffers, kv, torch.zeros(n_slots, device=device, dtype=torch.int64))

    def first(self, n_slots: int) -> Half:
        return Half(self.layout, self.buffers[:n_slots], self.kv[:n_slots], self.position[:n_slots])

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"buffers": self.buffers, "kv": self.kv, "position": self.position}


class MimiState(SlotState):
    """``encoder`` and ``decoder`` are what a step computes on: the first ``n_slots``
    rows, and one spare row more where a step needs company (see :data:`duplex.codecs.mimi.CPU_BATCH`).

    Resetting, saving and restoring are a few copies each, on the device's current stream.
    """

    def __init__(
        self, encoder: Half, decoder: Half, n_slots: int, min_rows: int, root: MimiState | None = None
    ) -> None:
        rows = max(n_slots, min_rows)
        self.encoder = encoder.first(rows)
        self.decoder = decoder.first(rows)
        self.n_slots = n_slots
        self._min_rows = min_rows
        self._root = root or self
        self._views: dict[int, MimiState] = {n_slots: self}
        halves = {"encoder": self.encoder, "decoder": self.decoder}
        self._tensors = {
            f"{side}.{name}": tensor[:n_slots]
            for side, half in halves.items()
            for name, tensor in half.tensors().items()
        }

    @staticmethod
    def new(
        encoder: HalfLayout,
        decoder: HalfLayout,
        n_slots: int,
        device: torch.device,
        dtype: torch.dtype,
        min_rows: int = 1,
    ) -> MimiState:
        if n_slots < 1:
            raise ValueError(f"a state has at least one slot, not {n_slots}")
        rows = max(n_slots, min_rows)
        return MimiState(
            Half.new(encoder, rows, device, dtype), Half.new(decoder, rows, device, dtype), n_slots, min_rows
        )

    def tensors(self) -> Mapping[str, torch.Tensor]:
        return self._tensors

    @property
    def rings(self) -> Collection[str]:
        """Keys and values: a step writes its own places, which no step looks into before."""
        return ("encoder.kv", "decoder.kv")

    def first(self, n_slots: int) -> MimiState:
        if not 1 <= n_slots <= self.n_slots:
            raise ValueError(f"there are {self.n_slots} slots here, not {n_slots}")
        root = self._root
        if n_slots not in root._views:
            root._views[n_slots] = MimiState(root.encoder, root.decoder, n_slots, self._min_rows, root)
        return root._views[n_slots]

    def reset(self, slot: int) -> None:
        """All of the row is cleared, keys and values too: a NaN among them would outlive a mask."""
        for tensor in self._rows(slot):
            tensor.zero_()

    def snapshot(self, slot: int) -> Snapshot:
        return dict(zip(self._tensors, (row.clone() for row in self._rows(slot)), strict=True))

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        """The slot goes on from ``snapshot`` (on any device), bit for bit. Raises ``ValueError`` if it does not fit."""
        rows = dict(zip(self._tensors, self._rows(slot), strict=True))
        for name, row in rows.items():
            saved = snapshot.get(name)
            if saved is None or saved.shape != row.shape or saved.dtype != row.dtype:
                found = "nothing" if saved is None else f"{saved.dtype} {tuple(saved.shape)}"
                raise ValueError(f"the snapshot has {found} for {name}, this state {row.dtype} {tuple(row.shape)}")
        for name, row in rows.items():
            row.copy_(snapshot[name])

    def move(self, source: int, target: int) -> None:
        """Copies a slot over another one."""
        for from_row, to_row in zip(self._rows(source), self._rows(target), strict=True):
            to_row.copy_(from_row)

    @property
    def bytes_per_slot(self) -> int:
        return state_bytes(self) // self.n_slots

    def _rows(self, slot: int) -> list[torch.Tensor]:
        if not 0 <= slot < self.n_slots:
            raise IndexError(f"slot {slot} of {self.n_slots}")
        return [tensor[slot] for tensor in self._tensors.values()]


def state_bytes(state: MimiState) -> int:
    """Bytes of a state's slots on its device."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.tensors().values())
