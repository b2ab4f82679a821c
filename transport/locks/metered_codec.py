"""A codec whose client sends only so many events: for a data channel, which cannot be read more slowly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from duplex.errors import ProtocolError
from duplex.events import At, ErrorRaised, Event
from duplex.requests import Request
from duplex.transport.event_codec import EventCodec
from duplex.transport.locks.caller import Visit

CODE = "rate_limit_exceeded"
MAX_REFUSED = 1000
"""Events refused until the call ends: reading them costs, too."""


class MeteredCodec:
    """Implements :class:`EventCodec` around another. An event too many is refused, and told once a second at most."""

    def __init__(self, codec: EventCodec, visit: Visit, now_s: Callable[[], float]) -> None:
        self._codec, self._visit, self._now_s = codec, visit, now_s
        self._refused = 0
        self._tell_at_s = -1.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)

    def encode(self, event: Event) -> list[dict[str, Any]]:
        return self._codec.encode(event)

    def answers(self) -> list[dict[str, Any]]:
        return self._codec.answers()

    def told(self, kind: str, **fields: Any) -> dict[str, Any]:
        return self._codec.told(kind, **fields)

    @property
    def client_event_id(self) -> str | None:
        return self._codec.client_event_id

    def decode(self, text: str | bytes) -> Request | None:
        wait_s = self._visit.meter.wait_s(len(text), self._now_s())
        if wait_s > 0:
            self._refused += 1
            if self._refused >= MAX_REFUSED:
                self._visit.expelled = "The client sent far more events than are taken."
            raise ProtocolError(f"Too many events, or too large: send none for {wait_s:.1f} s.", code=CODE)
        return self._codec.decode(text)

    def refusal(self, error: ProtocolError, at: At) -> list[dict[str, Any]]:
        if error.code == CODE:
            if at.at_s < self._tell_at_s:
                return []
            self._tell_at_s = at.at_s + 1.0
            return self._codec.encode(ErrorRaised(at, error.code, str(error)))  # the event was not read: it has no id
        return self._codec.refusal(error, at)
