"""Events to a browser over its data channel: bounded, and in order.

What a client does not take waits here. When the queue is full, the oldest event whose successor says all it
said goes first. If there is none and the channel is open, the client is not reading, and the call ends:
losing what happened in the conversation would leave it believing something else than we do. As long as
there is no channel (a client may never open one), the oldest go.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from aiortc import RTCDataChannel

from duplex.metrics import Metrics
from duplex.transport.event_ring import EventRing, number_of
from duplex.transport.realtime_encode import DROPPABLE

LABEL = "oai-events"
_HIGH_WATER_BYTES = 256 * 1024  # beyond this the channel itself is the queue that grows
MAX_CHANNELS = 16
"""Data channels of one call; we speak on one. SCTP would allow 65535."""
_WINDOW_BYTES = 1024 * 1024  # what aiortc offers to hold of messages that are not complete


class _Waiting(NamedTuple):
    droppable: bool
    text: str
    number: int


class EventOutbox:
    """``put`` events at any time; they leave when there is an open channel with room.

    ``on_overflow`` is called once, when an event that must not be lost found no room on an open channel.
    """

    def __init__(self, max_events: int, metrics: Metrics, on_overflow: Callable[[], None]) -> None:
        self._max, self._metrics, self._on_overflow = max_events, metrics, on_overflow
        self._waiting: deque[_Waiting] = deque()  # bounded by put
        self._channel: RTCDataChannel | None = None
        self._overflowed = False
        self._ring = EventRing(2 * max_events)

    def __len__(self) -> int:
        return len(self._waiting)

    def attach(self, channel: RTCDataChannel) -> None:
        """Sends over ``channel`` from now on."""
        self._channel = channel
        channel.bufferedAmountLowThreshold = _HIGH_WATER_BYTES // 2
        channel.on("open", self._pump)
        channel.on("bufferedamountlow", self._pump)
        self._pump()

    def detach(self, channel: RTCDataChannel | None = None) -> None:
        """Sends nothing over ``channel`` any more, or over any."""
        if channel is None or channel is self._channel:
            self._channel = None

    def resend(self, after: int) -> bool:
        """What was sent after that event goes out once more, before what waits. False: some of it is kept no more."""
        again, complete = self._ring.take_after(after)
        self._waiting.extendleft(_Waiting(False, text, number) for number, text in reversed(again))
        self._pump()
        return complete

    def put(self, events: Iterable[dict[str, Any]]) -> None:
        for event in events:
            text = json.dumps(event, separators=(",", ":"), ensure_ascii=False)
            if len(self._waiting) >= self._max:
                self._make_room()
            number = number_of(event["event_id"]) if "event_id" in event else 0
            self._waiting.append(_Waiting(event.get("type") in DROPPABLE, text, number))
        self._pump()

    async def drained(self, limit_s: float) -> None:
        """Returns when everything has left, or after ``limit_s``."""
        channel = self._channel
        if channel is None or channel.readyState != "open":
            return
        channel.bufferedAmountLowThreshold = 0
        left = asyncio.Event()
        channel.on("bufferedamountlow", left.set)
        self._pump()
        try:
            async with asyncio.timeout(limit_s):
                while (self._waiting or channel.bufferedAmount) and channel.readyState == "open":
                    left.clear()
                    await left.wait()
        except TimeoutError:
            pass

    def _is_open(self) -> bool:
        return self._channel is not None and self._channel.readyState == "open"

    def _make_room(self) -> None:
        index = next((i for i, waiting in enumerate(self._waiting) if waiting.droppable), None)
        if index is None:
            if self._is_open() and not self._overflowed:
                self._overflowed = True
                self._on_overflow()
            index = 0
        del self._waiting[index]
        self._metrics.queue_drops.labels("data_channel_events").inc()

    def _pump(self) -> None:
        channel = self._channel
        while self._waiting and channel is not None and channel.readyState == "open":
            if channel.bufferedAmount > _HIGH_WATER_BYTES:
                return
            waiting = self._waiting.popleft()
            try:
                channel.send(waiting.text)
            except ValueError:  # longer than the far end takes in one message
                self._metrics.queue_drops.labels("data_channel_events").inc()
                continue
            if not waiting.droppable and waiting.number:
                self._ring.keep(waiting.number, waiting.text)


def unread_limit_passed(sctp: Any) -> bool:
    """Whether the far end sent twice what it was offered room for, and never the rest of it.

    ``sctp``: an ``aiortc.RTCSctpTransport`` or None. It says how much room there is, and holds nobody to it.
    """
    return sctp is not None and bool(sctp._advertised_rwnd < -_WINDOW_BYTES)
