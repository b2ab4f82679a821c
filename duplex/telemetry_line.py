"""A line whose events are also told to observers: the log, and traces. It is around any door's line."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from duplex.clock import Clock
from duplex.events import At, Event, SessionClosed
from duplex.line import Line
from duplex.line_around import LineAround
from duplex.logs import enter_session
from duplex.session import Session

log = logging.getLogger("duplex.telemetry")


class Observer(Protocol):
    def __call__(self, session_id: str, at_unix_s: float, event: Event) -> None:
        """Called on the event loop, so it puts away and returns. ``at_unix_s``: when the event came to be."""


class ObservedLine(LineAround):
    """An observer that fails is logged, and the call goes on.

    Observers are told of a ``SessionClosed`` also where the client is not, because it hung up.
    """

    def __init__(
        self, line: Line, session_id: str, clock: Clock, unix_s: Callable[[], float], observers: Sequence[Observer]
    ) -> None:
        super().__init__(line)
        self._session_id = session_id
        self._clock, self._unix_s, self._observers = clock, unix_s, observers
        self._pts = 0
        self._over = False

    def emit(self, event: Event) -> None:
        self.inner.emit(event)  # the client first
        self._tell(event)

    async def close(self, reason: str) -> None:
        if not self._over:
            self._tell(SessionClosed(At(self._pts, self._clock.now()), reason))
        await self.inner.close(reason)

    def _tell(self, event: Event) -> None:
        self._pts = event.at.pts
        self._over = self._over or isinstance(event, SessionClosed)
        at_unix_s = self._unix_s() - self._clock.now() + event.at.at_s
        for observer in self._observers:
            try:
                observer(self._session_id, at_unix_s, event)
            except Exception:
                log.exception("an event could not be told: %s", type(event).__name__)


def observed(
    make_session: Callable[..., Session], *observers: Observer, unix_s: Callable[[], float] = time.time
) -> Callable[..., Session]:
    """``make_session``, with each session's events told to ``observers``; its log lines carry its name from here on."""

    def make(*, session_id: str, line: Line, clock: Clock, **rest: Any) -> Session:
        enter_session(session_id)
        told = ObservedLine(line, session_id, clock, unix_s, observers)
        return make_session(session_id=session_id, line=told, clock=clock, **rest)

    return make
