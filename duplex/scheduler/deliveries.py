"""What the scheduler tells a call, in order: exactly one fate for each frame that was taken."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from duplex.errors import DuplexError

from .contract import SlotResult


@dataclass(frozen=True, slots=True)
class Ready:
    """The prompt is read; frames are stepped from here on. Comes again after a reset. ``took_s``: since asked for."""

    took_s: float


@dataclass(frozen=True, slots=True)
class Stepped:
    """What came of frame ``seq``. ``result.error``: the slot failed in it and is being made as new.

    ``arrived_s``, ``done_s``: when the frame was submitted and its tick ended, on the scheduler's clock. ``late_s``:
    how far past its deadline that was, 0 if in time. Of a late result's sound as much is to be left out as the line
    had to fill in, so that lateness never adds up.
    """

    seq: int
    result: SlotResult
    arrived_s: float
    done_s: float
    late_s: float


@dataclass(frozen=True, slots=True)
class Dropped:
    """Frames ``seq`` … ``seq + count - 1`` were taken and never stepped. ``reason``: "full" (more waited than may),
    "stale" (they waited too long behind a slow device) or "reset"."""

    seq: int
    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The slot is gone: the last thing a call is told. ``error`` says why."""

    error: DuplexError


Delivery = Ready | Stepped | Dropped | Ended

Deliver = Callable[[Delivery], None]
"""Called on the scheduler's thread, between ticks: it must not block, only put away and wake."""


class Inbox:
    """A ``Deliver`` that keeps deliveries until they are collected, and wakes their owner.

    At most ``limit`` are kept; beyond that the oldest go, and are counted in ``lost``.
    """

    def __init__(self, wake: Callable[[], None] = lambda: None, limit: int = 256) -> None:
        self._wake = wake
        self._limit = limit
        self._kept: deque[Delivery] = deque()
        self._lock = threading.Lock()
        self.lost = 0

    def __call__(self, delivery: Delivery) -> None:
        with self._lock:
            if len(self._kept) >= self._limit:
                self._kept.popleft()
                self.lost += 1
            self._kept.append(delivery)
        self._wake()

    def collect(self) -> list[Delivery]:
        """Everything since the last time, oldest first. From any thread."""
        with self._lock:
            kept = list(self._kept)
            self._kept.clear()
        return kept
