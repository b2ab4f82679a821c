"""What the scheduler drives: an engine that owns a device and steps many slots at once.

Only the scheduler's thread calls an engine. A slot is named by its ``key``, given at ``join`` and never used again;
where in a batch it lies is the engine's own business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from duplex.errors import DuplexError
from duplex.frames import Samples

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SlotSettings:
    """What one call may choose. ``prompt_tokens``: text the model is made to have said or thought before the call;
    ``voice``: name of a voice prompt; ``seed``: of its sampling. ``None``: the engine's default."""

    prompt: str | None = None
    voice: str | None = None
    seed: int | None = None
    temperature_text: float | None = None
    temperature_audio: float | None = None
    top_k_text: int | None = None
    top_k_audio: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SlotFrame:
    """One slot's input of one tick.

    ``samples``: float32[frame] of the user. ``forced_text``: the token its text stream is to take, or ``None``: it
    chooses. ``silent``: it must say nothing now (the audio of silence; its text is ``forced_text``, which it then only
    reads, or padding). ``codebooks``: how many to decode, ``None``: all.
    """

    key: int
    samples: Samples
    forced_text: int | None = None
    silent: bool = False
    codebooks: int | None = None


@dataclass(frozen=True, slots=True)
class SlotResult:
    """One slot's output of one tick.

    ``samples``: float32[frame], ``None`` while the streams' delays fill. ``text_token``: of this step.
    ``codes``: int64[K], the agent's frame. ``error``: this slot failed and was reset; the others are unharmed.
    """

    key: int
    samples: Samples | None = None
    text_token: int | None = None
    codes: Codes | None = None
    error: DuplexError | None = None


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds the parts of one tick took, by part (``encode``, ``temporal``, ``depth``, ``decode``, ``copy`` …), as far
    as the engine knows them; ``batch_size``: the captured size it ran at."""

    batch_size: int
    parts_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. ``per_slot``: what one more slot needs; ``free``: what the device could still give."""

    weights: int
    kv: int
    per_slot: int
    free: int


class Engine(Protocol):
    """Owns the device. Every call is from the scheduler's thread, ``start`` included."""

    @property
    def frame_s(self) -> float: ...

    @property
    def frame_samples(self) -> int: ...

    @property
    def codebooks(self) -> int:
        """How many the agent's frame has; a tick may decode fewer of it."""
        ...

    @property
    def max_slots(self) -> int: ...

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Sizes a tick can run at, ascending; the last is ``max_slots``."""
        ...

    def start(self) -> None:
        """Loads, warms up, captures; also again after ``close``. Raises ``ModelError`` or ``ConfigError`` that say what
        to do."""
        ...

    def join(self, settings: SlotSettings) -> int:
        """A fresh slot's key. Raises ``AgentFullError`` (no slot, or no memory), ``ConfigError`` (settings)."""
        ...

    def prefill(self, key: int, max_steps: int) -> int:
        """Reads up to ``max_steps`` steps (0: none, it only asks) of the slot's prompt; returns how many are left.
        0: it may be stepped."""
        ...

    def step(self, frames: Sequence[SlotFrame]) -> tuple[Sequence[SlotResult], StepTimes]:
        """One tick: at most one frame a slot; a result for each, in their order. Slots without a frame stand still."""
        ...

    def reset(self, key: int) -> None:
        """The slot as it was after ``join`` and its prefill undone: as new, with the same settings."""
        ...

    def leave(self, key: int) -> None: ...

    def snapshot(self, key: int) -> Any:
        """All of a slot's state, on the host or device; plain tensors and numbers, nothing shared with the slot."""
        ...

    def restore(self, snapshot: Any) -> int:
        """A new slot that goes on bit-identically. Raises ``AgentFullError``, or ``ConfigError`` if it does not fit."""
        ...

    def memory(self) -> Memory: ...

    def close(self) -> None: ...


@runtime_checkable
class Undoing(Protocol):
    """What an engine has too that can take a step back. Without it a tick that raises costs every call in it."""

    def undo(self) -> None:
        """After a ``step`` that raised: its slots stand where they stood before it. After another: does nothing."""
        ...
