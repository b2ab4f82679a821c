"""A line that ends a session that is over its time, and says so; around any door's line, on the session's clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from duplex import events as ev
from duplex.clock import Clock
from duplex.config import LimitsConfig
from duplex.frames import PACKET_SAMPLES, Packet
from duplex.line import Line
from duplex.line_around import LineAround
from duplex.session import Session
from duplex.transport.locks.caller import Visit, current_visit

_LOOK_EVERY_S = 1.0
_NO_ACTIVITY = (ev.SessionStarted, ev.SessionUpdated, ev.FloorChanged, ev.ErrorRaised, ev.SessionClosed)
"""Events that come of nobody saying or doing anything. Everything else keeps a session from being idle."""


class WatchedLine(LineAround):
    """Ends a session that is over its limits.

    ``welcome`` says why the caller is not any more (a revoked key), or None. When a limit is passed, the client is told
    by an ``error`` event and ``duplex.session.closed``, and the line is closed to its session.
    """

    def __init__(
        self,
        line: Line,
        clock: Clock,
        limits: LimitsConfig,
        visit: Visit | None = None,
        welcome: Callable[[], str | None] = lambda: None,
    ) -> None:
        super().__init__(line)
        self._clock, self._visit, self._welcome = clock, visit, welcome
        self._session_s, self._idle_s = limits.session_s or math.inf, limits.idle_s or math.inf
        self._began_s = self._active_s = clock.now()
        self._look_at_s = self._began_s
        self._heard_pts = 0
        self._over: str | None = None

    @property
    def closed(self) -> bool:
        return self._over is not None or self.inner.closed

    def receive(self) -> Sequence[Packet]:
        packets = self.inner.receive()
        if packets:
            self._heard_pts = packets[-1].pts + PACKET_SAMPLES
        now_s = self._clock.now()
        if now_s >= self._look_at_s and not self.closed:
            self._look_at_s = now_s + _LOOK_EVERY_S
            if (why := self._why_over(now_s)) is not None:
                self._finish(*why, now_s)
        return packets

    def emit(self, event: ev.Event) -> None:
        if not isinstance(event, _NO_ACTIVITY):
            self._active_s = self._clock.now()
        self.inner.emit(event)

    async def close(self, reason: str) -> None:
        if self._visit is not None and self._visit.place is not None:
            self._visit.place.end()
        await self.inner.close(self._over or reason)

    def _why_over(self, now_s: float) -> tuple[str, str] | None:
        """(code, reason)."""
        if now_s - self._began_s >= self._session_s:
            return "session_expired", f"Your session hit the maximum duration of {_duration(self._session_s)}."
        if now_s - self._active_s >= self._idle_s:
            return "session_idle", f"Nothing was said for {_duration(self._idle_s)}."
        if self._visit is not None and self._visit.expelled is not None:
            return "rate_limit_exceeded", self._visit.expelled
        if (why := self._welcome()) is not None:
            return "invalid_api_key", why
        return None

    def _finish(self, code: str, reason: str, now_s: float) -> None:
        at = ev.At(self._heard_pts, now_s)
        self.inner.emit(ev.ErrorRaised(at, code, reason))
        self.inner.emit(ev.SessionClosed(at, reason))
        self._over = reason


def watched(
    make_session: Callable[..., Session], limits: LimitsConfig, welcome: Callable[[Visit], str | None]
) -> Callable[..., Session]:
    """``make_session`` with the line of each session watched; it begins the visit's place, and its end ends it."""

    def make(*, line: Line, clock: Clock, **rest: Any) -> Session:
        visit = current_visit()
        if visit is not None and visit.place is not None:
            visit.place.begin()
        line = WatchedLine(line, clock, limits, visit, lambda: None if visit is None else welcome(visit))
        return make_session(line=line, clock=clock, **rest)

    return make


def _duration(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 120 else f"{seconds:g} s"
