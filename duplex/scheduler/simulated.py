"""An engine without a device: what it does is exact, and what it costs is spent on any clock. For tests and profiles.

A slot's state is one number, to which every frame it was stepped with adds in order, so a result tells which frames a
slot has seen: one lost, doubled, swapped or given to another call shows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from duplex.errors import AgentFullError, ConfigError, DuplexError

from .contract import Memory, SlotFrame, SlotResult, SlotSettings, StepTimes

_PRIME = (1 << 61) - 1
_NO_MEMORY = Memory(weights=0, kv=0, per_slot=0, free=0)


def fold(state: int, frame: SlotFrame) -> int:
    """A slot's state after ``frame``. Of the samples the first says which they are."""
    forced = -1 if frame.forced_text is None else frame.forced_text
    return (state * 1_000_003 + int(frame.samples[0] * 1024) * 31 + forced * 7 + frame.silent + 1) % _PRIME


@dataclass(slots=True)
class _Slot:
    seed: int
    state: int
    prompt_steps: int
    left: int


class SimulatedEngine:
    """``cost_s`` of a batch size is spent in every tick, ``prefill_step_s`` for every step of a prompt and
    ``prefill_call_s`` for every slice of one, ``move_s`` for
    every join, leave, reset, snapshot and restore; ``spend`` passes the time (nothing by default). A prompt has as
    many steps as words. ``codebooks`` decoded cost their share of ``decode_share`` of a tick.

    To fail: put an error into ``step_error``, or one for a key into ``slot_errors``; each is used once. A key in
    ``poisoned`` makes every step raise that it is in, halfway through, until it is reset.
    """

    def __init__(
        self,
        max_slots: int = 8,
        *,
        cost_s: Callable[[int], float] = lambda batch_size: 0.0,
        spend: Callable[[float], None] = lambda seconds: None,
        frame_samples: int = 1920,
        frame_s: float = 0.08,
        prefill_step_s: float = 0.0,
        prefill_call_s: float = 0.0,
        move_s: float = 0.0,
        codebooks: int = 8,
        decode_share: float = 0.0,
        memory: Memory = _NO_MEMORY,
    ) -> None:
        self.frame_samples, self.frame_s, self.max_slots = frame_samples, frame_s, max_slots
        self.batch_sizes = (*(1 << i for i in range((max_slots - 1).bit_length())), max_slots)
        self.cost_s, self.move_s = cost_s, move_s
        self.prefill_step_s, self.prefill_call_s = prefill_step_s, prefill_call_s
        self.codebooks, self.decode_share = codebooks, decode_share
        self.step_error: BaseException | None = None
        self.start_error: Exception | None = None
        self.join_error: Exception | None = None
        self.reset_error: Exception | None = None
        self.slot_errors: dict[int, DuplexError] = {}
        self.poisoned: dict[int, Exception] = {}
        self.ticks: list[tuple[int, ...]] = []
        """The keys of every tick's frames."""
        self.broken_rules: list[str] = []
        """Of the contract, by whoever drives it: a scheduler contains an engine's errors, so look here."""
        self.closed = False
        self.starts = 0
        self._memory = memory
        self._spend = spend
        self._slots: dict[int, _Slot] = {}
        self._before: dict[int, int] = {}  # states before a step that raised
        self._next_key = 0
        self._thread: int | None = None

    def _mine(self) -> None:
        """Everything happens on one thread."""
        here = threading.get_ident()
        self._must(self._thread in (None, here), "an engine belongs to one thread")
        self._thread = here
        self._must(not self.closed, "a closed engine is not called")

    def _must(self, holds: bool, rule: str) -> None:
        if not holds:
            self.broken_rules.append(rule)
            raise AssertionError(rule)

    def start(self) -> None:
        self.closed = False
        self._mine()
        if self.start_error is not None:
            raise self.start_error
        self.starts += 1

    def join(self, settings: SlotSettings) -> int:
        self._mine()
        self._spend(self.move_s)
        if (error := self.join_error) is not None:
            self.join_error = None
            raise error
        if settings.voice is not None:
            raise ConfigError(f"There is no voice {settings.voice!r}: this engine has none.")
        steps = len((settings.prompt or "").split())
        return self._put(_Slot(settings.seed or 0, settings.seed or 0, steps, steps))

    def _put(self, slot: _Slot) -> int:
        if len(self._slots) >= self.max_slots:
            raise AgentFullError(f"All {self.max_slots} slots are taken.")
        self._next_key += 1
        self._slots[self._next_key] = slot
        return self._next_key

    def prefill(self, key: int, max_steps: int) -> int:
        self._mine()
        slot = self._slots[key]
        steps = min(max_steps, slot.left)
        if steps:
            self._spend(self.prefill_call_s + steps * self.prefill_step_s)
        slot.left -= steps
        return slot.left

    def step(self, frames: Sequence[SlotFrame]) -> tuple[Sequence[SlotResult], StepTimes]:
        self._mine()
        keys = [frame.key for frame in frames]
        self._must(len(keys) > 0, "a tick has a frame")
        self._must(len(set(keys)) == len(keys), "a tick has one frame of a slot")
        self._must(all(key in self._slots for key in keys), "a slot that is stepped is there")
        self._must(all(self._slots[key].left == 0 for key in keys), "a slot's prompt comes first")
        self.ticks.append(tuple(frame.key for frame in frames))
        size = next(size for size in self.batch_sizes if size >= len(self._slots))
        most = max(self.codebooks if frame.codebooks is None else frame.codebooks for frame in frames)
        self._spend(self.cost_s(size) * (1 - self.decode_share * (1 - most / self.codebooks)))
        if (error := self.step_error) is not None:
            self.step_error = None
            raise error
        self._before = {key: self._slots[key].state for key in keys}
        results = [self._step(frame) for frame in frames]
        self._before = {}
        return results, StepTimes(size)

    def undo(self) -> None:
        self._mine()
        for key, state in self._before.items():
            self._slots[key].state = state
        self._before = {}

    def _step(self, frame: SlotFrame) -> SlotResult:
        slot = self._slots[frame.key]
        if frame.key in self.poisoned:
            raise self.poisoned[frame.key]
        if (error := self.slot_errors.pop(frame.key, None)) is not None:
            self.reset(frame.key)
            return SlotResult(frame.key, error=error)
        slot.state = fold(slot.state, frame)
        return SlotResult(
            frame.key, frame.samples, slot.state, np.full(frame.codebooks or self.codebooks, slot.state % 2048)
        )

    def reset(self, key: int) -> None:
        self._mine()
        self._spend(self.move_s)
        if self.reset_error is not None:
            raise self.reset_error
        slot = self._slots[key]
        slot.state, slot.left = slot.seed, slot.prompt_steps
        self.poisoned.pop(key, None)

    def leave(self, key: int) -> None:
        self._mine()
        self._spend(self.move_s)
        del self._slots[key]

    def snapshot(self, key: int) -> _Slot:
        self._mine()
        self._spend(self.move_s)
        slot = self._slots[key]
        return _Slot(slot.seed, slot.state, slot.prompt_steps, slot.left)

    def restore(self, snapshot: _Slot) -> int:
        self._mine()
        self._spend(self.move_s)
        if not isinstance(snapshot, _Slot):
            raise ConfigError("That is no snapshot of this engine.")
        return self._put(_Slot(snapshot.seed, snapshot.state, snapshot.prompt_steps, snapshot.left))

    def memory(self) -> Memory:
        self._mine()
        taken = len(self._slots) * self._memory.per_slot
        return Memory(self._memory.weights, self._memory.kv + taken, self._memory.per_slot, self._memory.free - taken)

    def close(self) -> None:
        self.closed = True
        self._slots.clear()

    @property
    def live(self) -> int:
        """Slots that are taken."""
        return len(self._slots)
