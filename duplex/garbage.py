"""What a call leaves behind in cycles goes soon after it, and not when the collector gets round to it.

A peer connection, its codecs and their threads refer to one another, so they are not freed when a call ends but when
Python next looks through its oldest objects, which may be dozens of calls later. Looking through everything takes a
tenth of a second, in which nobody is heard; so what there was once the models were loaded is set aside
(:func:`set_aside`), and what came after it is looked through after each call, in a few milliseconds.
"""

from __future__ import annotations

import asyncio
import gc

from duplex.events import Event, SessionClosed

AFTER_S = 1.0
"""After a call: its tasks have ended by then, and calls that end together are looked for once."""


def set_aside() -> None:
    """Takes everything there is now for something that stays. Blocks for some 0.1 s."""
    gc.collect()
    gc.freeze()


def take_back() -> None:
    """What was set aside is looked through again, like everything else."""
    gc.unfreeze()


class AfterCalls:
    """An observer of every session (:func:`duplex.telemetry_line.observed`); collects once calls have ended."""

    def __init__(self, after_s: float = AFTER_S) -> None:
        self._after_s = after_s
        self._due: asyncio.TimerHandle | None = None
        self.collections = 0

    def __call__(self, session_id: str, at_unix_s: float, event: Event) -> None:
        if isinstance(event, SessionClosed) and self._due is None:
            self._due = asyncio.get_running_loop().call_later(self._after_s, self._collect)

    def _collect(self) -> None:
        self._due = None
        self.collections += 1
        gc.collect()
