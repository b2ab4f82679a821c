"""The contract of a neural codec that serves many calls at once: sound to tokens and back, slot by slot.

A codec is found by name (entry points ``duplex.codecs``), so that the minds need not know which one it is. Tensors
are opaque here: they belong to the codec's own library and live on its device. State is *slot-first*: every tensor of
it has one row per slot, so a slot is copied, saved and moved without knowing what its rows mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Tensor = Any
"""A tensor of the codec's library (torch)."""


@dataclass(frozen=True, slots=True)
class CodecInfo:
    """``frame_samples`` at ``sample_rate_hz``, mono; ``codebooks``: how many it can encode and decode;
    ``codebook_size``: entries of each."""

    name: str
    sample_rate_hz: int
    frame_samples: int
    codebooks: int
    codebook_size: int


class SlotState(Protocol):
    """What a model remembers of each slot."""

    def tensors(self) -> Mapping[str, Tensor]:
        """Name to tensor, one row a slot (dimension 0); live references, pointer-stable for the state's life."""
        ...

    def first(self, n_slots: int) -> SlotState:
        """The first ``n_slots`` rows as a view: the same memory. The same object for the same ``n_slots``."""
        ...

    def reset(self, slot: int) -> None:
        """Makes one row as new."""
        ...


class SlotCodec(Protocol):
    """Streaming, batched by slots. Nothing here synchronises with the device, and every shape depends on n alone."""

    @property
    def info(self) -> CodecInfo: ...

    def new_state(self, n_slots: int) -> SlotState: ...

    def encode(self, state: SlotState, samples: Tensor, active: Tensor) -> Tensor:
        """float32[n, frame_samples] to int64[n, codebooks]. Rows that are not ``active`` (bool[n]) keep their state;
        what comes out for them means nothing."""
        ...

    def decode(self, state: SlotState, codes: Tensor, active: Tensor, n_codebooks: Tensor) -> Tensor:
        """int64[n, codebooks] to float32[n, frame_samples]; row i uses its first ``n_codebooks[i]`` codes."""
        ...


CodecFactory = Callable[[Mapping[str, Any]], SlotCodec]
"""What an entry point of ``duplex.codecs`` that is a slot codec names: options (a config table) to a loaded codec."""
