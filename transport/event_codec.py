"""What a door needs from whoever speaks the public vocabulary (``duplex.transport.realtime``)."""

from __future__ import annotations

from typing import Any, Protocol

from duplex.errors import ProtocolError
from duplex.events import At, Event
from duplex.requests import Request


class EventCodec(Protocol):
    """One session's translation between its own events and requests and JSON objects on the wire."""

    def encode(self, event: Event) -> list[dict[str, Any]]:
        """The server events that tell a client of ``event``, in order."""
        ...

    def decode(self, text: str | bytes) -> Request | None:
        """What a client event asks the session for; None if nothing. Raises ``ProtocolError``."""
        ...

    def answers(self) -> list[dict[str, Any]]:
        """What answers the client event just decoded, once; ask after the session accepted the request."""
        ...

    def told(self, kind: str, **fields: Any) -> dict[str, Any]:
        """An event of the door's own, in its place among the others."""
        ...

    def refusal(self, error: ProtocolError, at: At) -> list[dict[str, Any]]:
        """The ``error`` event for the client event decoded last."""
        ...

    @property
    def client_event_id(self) -> str | None:
        """``event_id`` of the client event decoded last."""
        ...
