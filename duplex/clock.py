"""Wall time, as a value that is passed in.

``MonotonicClock`` in production, ``VirtualClock`` in tests and replay. Nothing else in the project
asks the operating system or the event loop what time it is, so a session can be replayed.
Times are seconds since the clock's own epoch, as floats; deadlines are absolute.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    """What a session needs to know about wall time."""

    def now(self) -> float:
        """Seconds since this clock's epoch. Never goes back. Safe to call from any thread."""
        ...

    def call_at(self, deadline_s: float, callback: Callable[[], None]) -> Timer:
        """Calls back on the running event loop at ``deadline_s`` (at once if that has passed)."""
        ...

    async def sleep_until(self, deadline_s: float) -> None:
        """Returns at ``deadline_s`` or, if that has passed, after one turn of the loop."""
        ...


class MonotonicClock:
    """The machine's monotonic clock, shifted by a constant so that mixing it up with the loop's shows at once."""

    OFFSET_S = 1_000_000.0

    def now(self) -> float:
        return time.monotonic() + self.OFFSET_S

    def call_at(self, deadline_s: float, callback: Callable[[], None]) -> Timer:
        return asyncio.get_running_loop().call_later(max(0.0, deadline_s - self.now()), callback)

    async def sleep_until(self, deadline_s: float) -> None:
        await asyncio.sleep(max(0.0, deadline_s - self.now()))


class VirtualClock:
    """The time of a virtual-time event loop (:class:`duplex.testing.VirtualTimeLoop`), from zero."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop if loop is not None else asyncio.get_running_loop()

    def now(self) -> float:
        return self._loop.time()

    def call_at(self, deadline_s: float, callback: Callable[[], None]) -> Timer:
        return self._loop.call_at(deadline_s, callback)

    async def sleep_until(self, deadline_s: float) -> None:
        await asyncio.sleep(max(0.0, deadline_s - self.now()))
