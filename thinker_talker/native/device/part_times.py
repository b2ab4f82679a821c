"""How long each part of a tick took on the device, without asking the device before the tick is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch


class PartTimes(Protocol):
    """``begin``, then ``end_of`` each part in turn; ``read`` after the tick's one synchronisation."""

    def begin(self) -> None: ...

    def end_of(self, part: str) -> None: ...

    def read(self) -> dict[str, float]:
        """Seconds by part, in the order they ended. A part that ended twice has the sum."""
        ...


class ClockPartTimes:
    """On a CPU a call returns when its work is done, so the clock tells."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._last_s = 0.0
        self._parts_s: dict[str, float] = {}

    def begin(self) -> None:
        self._parts_s = {}
        self._last_s = self._now()

    def end_of(self, part: str) -> None:
        now_s = self._now()
        self._parts_s[part] = self._parts_s.get(part, 0.0) + now_s - self._last_s
        self._last_s = now_s

    def read(self) -> dict[str, float]:
        return dict(self._parts_s)


class CudaPartTimes:
    """Events between the parts on the current stream; the device stamps them as it passes."""

    MOST_PARTS = 16

    def __init__(self) -> None:
        event: Any = torch.cuda.Event
        self._events = [event(enable_timing=True) for _ in range(self.MOST_PARTS + 1)]
        self._parts: list[str] = []

    def begin(self) -> None:
        self._parts = []
        self._events[0].record()

    def end_of(self, part: str) -> None:
        self._parts.append(part)
        self._events[len(self._parts)].record()

    def read(self) -> dict[str, float]:
        parts_s: dict[str, float] = {}
        for i, part in enumerate(self._parts):
            parts_s[part] = parts_s.get(part, 0.0) + self._events[i].elapsed_time(self._events[i + 1]) / 1000.0
        return parts_s
