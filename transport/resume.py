"""Sessions that outlive their connection: who may go on with one, and for how long it waits.

A client is told a secret with its session (``session.created``: ``session.duplex.resume_token``). When its connection
is lost, it connects again to ``/v1/realtime?resume`` and sends, before anything else::

    {"type": "duplex.session.resume", "session_id": …, "resume_token": …,
     "last_event_id": "event_41", "playback": {"response_id": …, "played_ms": 2140}}

The last two may be left out. The secret is in no address, because addresses end up in logs. What a server asks of a
caller at its door it asks again, and the key has to be the one that the session was opened with.

A session that waits keeps its place for ``session.resume_s``. After a few seconds it gives way to a new caller who
would find no place (:mod:`duplex.hub`), and where ``MOST_PARKED`` wait already, the one that waited longest ends.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.websockets import WebSocket

from duplex.clock import Timer
from duplex.errors import InvalidEventError, ProtocolError
from duplex.hub import SessionHub
from duplex.transport.event_ring import number_of
from duplex.transport.realtime_decode import parse

log = logging.getLogger("duplex.resume")

MOST_PARKED = 16
PROOF_S = 10.0
"""For the first event of a connection that wants to go on."""
MAX_PROOF_BYTES = 4096
_EXPIRED_KNOWN = 1024


def new_token() -> str:
    """A secret of 192 bits."""
    return secrets.token_urlsafe(24)


class Parkable(Protocol):
    """The line of a session that waits."""

    closed: bool
    gone: asyncio.Event


@dataclass(frozen=True, slots=True)
class Asked:
    """A client's wish to go on. ``last_event``: number of the last event it has. ``played``: (reply, ms)."""

    session_id: str
    token: str
    last_event: int
    played: tuple[str, float] | None


def read_asked(event: Any) -> Asked:
    """``duplex.session.resume``, checked. Raises ``InvalidEventError``."""
    if event.get("type") != "duplex.session.resume":
        raise InvalidEventError(
            "A connection to ?resume begins with duplex.session.resume. To begin a new session, leave ?resume out.",
            param="type",
            code="resume_missing",
        )
    for name in ("session_id", "resume_token"):
        if not isinstance(event.get(name), str):
            raise InvalidEventError(f"{name} must be a text, as session.created told it.", param=name)
    played: tuple[str, float] | None = None
    if (playback := event.get("playback")) is not None:
        reply_id = playback.get("response_id") if isinstance(playback, dict) else None
        played_ms = playback.get("played_ms") if isinstance(playback, dict) else None
        if not isinstance(reply_id, str) or isinstance(played_ms, bool) or not isinstance(played_ms, int | float):
            raise InvalidEventError("playback holds response_id, a text, and played_ms, a number.", param="playback")
        played = reply_id, float(played_ms)
    last = event.get("last_event_id")
    return Asked(event["session_id"], event["resume_token"], 0 if last is None else number_of(last), played)


def read_move(session: Any) -> tuple[str, int]:
    """(token, number of the last event) of an offer that moves a call: ``{"duplex": {"resume_token": …}}``.

    Raises ``InvalidEventError``.
    """
    asked = session.get("duplex") if isinstance(session, dict) else None
    token = asked.get("resume_token") if isinstance(asked, dict) else None
    if not isinstance(token, str):
        raise InvalidEventError(
            "Send multipart/form-data with the offer as sdp, and as session "
            '{"duplex": {"resume_token": …, "last_event_id": …}}, as session.created told it.',
            param="session.duplex.resume_token",
        )
    last = asked.get("last_event_id") if isinstance(asked, dict) else None
    return token, 0 if last is None else number_of(last)


def same(token: str, other: str) -> bool:
    """In a time that says nothing."""
    return hmac.compare_digest(token.encode("utf-8", "surrogatepass"), other.encode("utf-8", "surrogatepass"))


async def read_resume(websocket: WebSocket) -> Asked:
    """The first event of an accepted connection. Raises ``ProtocolError``'s kinds."""
    try:
        async with asyncio.timeout(PROOF_S):
            message = await websocket.receive()
    except TimeoutError as error:
        raise InvalidEventError(f"Nothing came within {PROOF_S:g} s.", code="resume_missing") from error
    return read_asked(parse(message.get("text") or "", MAX_PROOF_BYTES))


class Held:
    """One session that may outlive its connection."""

    def __init__(self, resumption: Resumption, session_id: str, line: Parkable, token: str, key_id: str | None) -> None:
        self.session_id, self.line, self.key_id = session_id, line, key_id
        self._resumption, self._token = resumption, token
        self._timer: Timer | None = None

    @property
    def may_wait(self) -> bool:
        return self._resumption.resume_s > 0

    def fits(self, token: str) -> bool:
        return same(self._token, token)

    def wait(self) -> bool:
        """The connection was lost: the session waits from now on, if it may."""
        return self._resumption.park(self)

    def wait_until(self, timer: Timer) -> None:
        self._timer = timer

    def resumed(self) -> None:
        """It waits no more."""
        self._resumption.unpark(self)
        self._stop_timer()

    def expire(self) -> None:
        """Nobody came."""
        self._stop_timer()
        self.line.closed = True
        self.line.gone.set()

    def forget(self) -> None:
        """The session is over."""
        self._stop_timer()
        self._resumption.forget(self)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Resumption:
    """All sessions of a server that may be gone on with. For one event loop."""

    def __init__(self, hub: SessionHub, *, most_parked: int = MOST_PARKED) -> None:
        self.resume_s = hub.config.resume_s
        self._hub, self._most = hub, most_parked
        self._held: dict[str, Held] = {}
        self._parked: OrderedDict[str, Held] = OrderedDict()
        self._over: OrderedDict[str, None] = OrderedDict()  # that could have been gone on with

    @property
    def parked(self) -> int:
        return len(self._parked)

    def hold(self, session_id: str, line: Parkable, token: str | None, key_id: str | None) -> Held | None:
        """Keeps a session that has begun. None where sessions do not wait."""
        if token is None or self.resume_s <= 0:
            return None
        held = self._held[session_id] = Held(self, session_id, line, token, key_id)
        return held

    def find(self, asked: Asked, key_id: str | None) -> Parkable:
        """The line to take over. Raises ``ProtocolError``: there is none, or the caller may not."""
        held = self._held.get(asked.session_id)
        if held is None:
            if asked.session_id in self._over:
                message = f"This session is over: it waits {self.resume_s:g} s for its client. Begin a new one."
                raise ProtocolError(message, param="session_id", code="resume_expired")
            message = "There is no such session. Begin a new one, without ?resume."
            raise ProtocolError(message, param="session_id", code="resume_unknown")
        if not held.fits(asked.token) or held.key_id != key_id:
            message = "The resume_token is not this session's, or the key is another than the one that opened it."
            raise ProtocolError(message, param="resume_token", code="resume_refused")
        return held.line

    def park(self, held: Held) -> bool:
        if held.session_id not in self._held:
            return False
        while len(self._parked) >= self._most:
            self._give_up_oldest()
        self._parked[held.session_id] = held
        clock = self._hub.clock
        held.wait_until(clock.call_at(clock.now() + self.resume_s, lambda: self._expire(held)))
        log.info("session %s waits %g s for its client", held.session_id, self.resume_s)
        return True

    def unpark(self, held: Held) -> None:
        self._parked.pop(held.session_id, None)
        log.info("session %s goes on with its client", held.session_id)

    def forget(self, held: Held) -> None:
        self._parked.pop(held.session_id, None)
        if self._held.pop(held.session_id, None) is not None:
            self._over[held.session_id] = None
            while len(self._over) > _EXPIRED_KNOWN:
                self._over.popitem(last=False)

    def _give_up_oldest(self) -> None:
        session_id, held = self._parked.popitem(last=False)
        log.info("session %s waits no more: others do", session_id)
        held.expire()

    def _expire(self, held: Held) -> None:
        self._parked.pop(held.session_id, None)
        log.info("session %s ends: its client did not come back", held.session_id)
        held.expire()
