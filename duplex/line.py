"""The line contract: one connected person, seen from the session.

A transport gives the session a *line* and drives nothing else. The session asks for what was heard
once per 20 ms tick and hands over packets to be played at its own pace, so a line never needs a
queue longer than ``lead_packets`` plus its network's jitter. None of these methods block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from duplex.events import Event
from duplex.frames import Image, Packet, Samples


@dataclass(frozen=True, slots=True)
class OutPacket:
    """20 ms to be played: float32[480] at 24 kHz. ``reply_id`` is None for silence between replies.

    ``aside``: it belongs to no reply either, but is to be heard.
    """

    pts: int
    samples: Samples
    reply_id: str | None = None
    item_id: str | None = None
    aside: bool = False


@dataclass(frozen=True, slots=True)
class PlayoutReport:
    """What a line knows by itself about what the far end played.

    ``pts``: every sample of ours before this one was played, as of wall time ``at_s``, give or take
    ``error_ms``. ``grade``: "rtp", "mark" or "ack".
    """

    pts: int
    at_s: float
    error_ms: float
    grade: str


class Line(Protocol):
    @property
    def lead_packets(self) -> int:
        """How many packets ahead of real time the line wants to be kept (1 for RTP, more for a WebSocket)."""
        ...

    @property
    def closed(self) -> bool: ...

    def receive(self) -> Sequence[Packet]:
        """What was heard since the last tick, in order, without gaps in ``pts``.

        Usually one packet; none while a stream has not begun; several when a client sends faster than
        real time (bounded by the line).
        """
        ...

    def take_image(self) -> Image | None:
        """The newest camera frame not yet taken."""
        ...

    def send(self, packet: OutPacket) -> None:
        """Plays one packet. Called in real time, ``lead_packets`` ahead at most."""
        ...

    def flush(self) -> int:
        """Drops packets handed over but not yet on the wire; returns how many samples that were."""
        ...

    def playout(self) -> PlayoutReport | None:
        """The newest evidence of what was played, if this line has any."""
        ...

    def emit(self, event: Event) -> None:
        """Tells the client. A client that does not read loses the oldest events that may be lost."""
        ...

    async def close(self, reason: str) -> None: ...
