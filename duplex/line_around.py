"""A line around another one: the base of everything that listens in on a line, or changes what passes.

Around the line and not in the session, so that each of them is one idea, and a door knows of none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from duplex.events import Event
from duplex.frames import Image, Packet
from duplex.line import Line, OutPacket, PlayoutReport

T = TypeVar("T")


class LineAround:
    """Implements :class:`~duplex.line.Line` by passing everything on to ``inner``; override what is different."""

    def __init__(self, inner: Line) -> None:
        self.inner = inner

    @property
    def lead_packets(self) -> int:
        return self.inner.lead_packets

    @property
    def closed(self) -> bool:
        return self.inner.closed

    def receive(self) -> Sequence[Packet]:
        return self.inner.receive()

    def take_image(self) -> Image | None:
        return self.inner.take_image()

    def send(self, packet: OutPacket) -> None:
        self.inner.send(packet)

    def flush(self) -> int:
        return self.inner.flush()

    def playout(self) -> PlayoutReport | None:
        return self.inner.playout()

    def emit(self, event: Event) -> None:
        self.inner.emit(event)

    async def close(self, reason: str) -> None:
        await self.inner.close(reason)


def ability(line: Line, kind: type[T]) -> T | None:
    """What a line can besides, as an optional (runtime-checkable) protocol: of itself, or of a line it is around.

    None if none of them can.
    """
    found: object = line
    while found is not None:
        if isinstance(found, kind):
            return found
        found = found.inner if isinstance(found, LineAround) else None
    return None
