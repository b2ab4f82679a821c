"""What a backbone remembers of each slot: keys and values, streams on their way, and how the slot samples."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields

import torch

from .delays import Delays
from .kv_cache import KvLayer
from .sampling import Sampling, signed_64


@dataclass(slots=True)
class Memory:
    """Tensors a slot keeps between steps, one row a slot. ``step`` int64: steps made, also the next position.
    ``tokens`` int64[n, K, ring] and ``forced`` int64[n, dep_q, ring]: see :class:`.delays.Delays`."""

    step: torch.Tensor
    tokens: torch.Tensor
    forced: torch.Tensor
    seed: torch.Tensor
    temperature_text: torch.Tensor
    temperature_audio: torch.Tensor
    top_k_text: torch.Tensor
    top_k_audio: torch.Tensor


@dataclass(slots=True)
class Work:
    """What the temporal half of a step leaves to its depth half, and to nobody later. ``hidden`` ``[n, d]``, ``keys``
    int64[n, streams] to sample from, ``text`` int64[n], ``forced`` int64[n, dep_q], ``finite`` bool[n]."""

    hidden: torch.Tensor
    keys: torch.Tensor
    text: torch.Tensor
    forced: torch.Tensor
    finite: torch.Tensor


class BackboneState:
    """A :class:`duplex.codec.SlotState`. Made by :meth:`.backbone.Backbone.new_state`."""

    def __init__(
        self, memory: Memory, caches: Sequence[KvLayer], work: Work, delays: Delays, default: Sampling, max_top_k: int
    ) -> None:
        self.memory = memory
        self.caches = tuple(caches)
        self.work = work
        self._delays = delays
        self._default = default
        self._max_top_k = max_top_k
        self._views: dict[int, BackboneState] = {}
        self._tensors = {f.name: getattr(memory, f.name) for f in fields(memory)} | {
            f"layer{number}.{name}": tensor
            for number, cache in enumerate(self.caches)
            for name, tensor in cache.named()
        }

    @property
    def n_slots(self) -> int:
        return int(self.memory.step.shape[0])

    def tensors(self) -> Mapping[str, torch.Tensor]:
        return self._tensors

    @property
    def rings(self) -> Collection[str]:
        """Keys and values: a step writes its own place, which no step looks into before."""
        return [name for name in self._tensors if name.startswith("layer")]

    def first(self, n_slots: int) -> BackboneState:
        if n_slots not in self._views:
            self._views[n_slots] = self.rows(0, n_slots)
        return self._views[n_slots]

    def rows(self, start: int, stop: int) -> BackboneState:
        """Those slots as a state of their own on the same memory; a new object at each call."""
        if not 0 <= start < stop <= self.n_slots:
            raise IndexError(f"slots {start} to {stop} of {self.n_slots}")
        memory = Memory(**{f.name: getattr(self.memory, f.name)[start:stop] for f in fields(Memory)})
        work = Work(**{f.name: getattr(self.work, f.name)[start:stop] for f in fields(Work)})
        caches = [cache.rows(start, stop) for cache in self.caches]
        return BackboneState(memory, caches, work, self._delays, self._default, self._max_top_k)

    @torch.no_grad()
    def reset(self, slot: int) -> None:
        """As new: step 0, nothing remembered, the default way of sampling. Everything is overwritten, since a weight of
        zero on what is not a number would still be no number."""
        for tensor in self._tensors.values():
            tensor[slot].zero_()
        self._delays.clear(self.memory.tokens[slot], self.memory.forced[slot])
        self.set_sampling(slot, self._default)

    @torch.no_grad()
    def set_sampling(self, slot: int, sampling: Sampling) -> None:
        """From its next step on. Raises ``ConfigError``."""
        sampling.check(self._max_top_k)
        memory = self.memory
        memory.seed[slot] = signed_64(sampling.seed)
        for name in ("temperature_text", "temperature_audio", "top_k_text", "top_k_audio"):
            getattr(memory, name)[slot] = getattr(sampling, name)
