"""One step back: what a tick changes of its slots, copied before it, for when it fails halfway through.

Most of a slot is keys and values in rings, and those need no copy: a step writes where the oldest lie that it will not
look at itself, and a step taken again writes the same places anew before it reads them. So a state says which of its
tensors are such ``rings``; what is left is counters and the windows of streaming convolutions, some 100 kB of a slot.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol, runtime_checkable

import torch

from duplex.codec import SlotState


@runtime_checkable
class Ringed(Protocol):
    """What a state has too of which not everything must be copied."""

    @property
    def rings(self) -> Collection[str]:
        """Names of tensors of which a step overwrites only what it does not read, nor any later one."""
        ...


class Undo:
    """Of the states of a lane. ``sizes``: batch sizes it runs at. Copies are on the device, in the stream's order."""

    def __init__(self, states: Sequence[SlotState], sizes: Sequence[int]) -> None:
        live = [
            tensor
            for state in states
            for name, tensor in state.tensors().items()
            if name not in (state.rings if isinstance(state, Ringed) else ())
        ]
        kept = [torch.empty_like(tensor) for tensor in live]
        # Views made once: making them is as much work for the host as a small copy.
        self._pairs = {
            size: [(mine[:size], theirs[:size]) for mine, theirs in zip(kept, live, strict=True)] for size in sizes
        }
        self._size = 0  # of the tick that could be undone; 0: none

    @property
    def bytes_per_slot(self) -> int:
        return sum(kept[0].numel() * kept.element_size() for kept, _ in self._pairs[max(self._pairs)])

    def keep(self, size: int) -> None:
        """A tick at that size is about to run."""
        for kept, live in self._pairs[size]:
            kept.copy_(live)
        self._size = size

    def forget(self) -> None:
        """It ran."""
        self._size = 0

    def take_back(self) -> None:
        """As it was before the tick that was begun last and did not end."""
        if self._size:
            for kept, live in self._pairs[self._size]:
                live.copy_(kept)
        self._size = 0
