"""The WebSocket door: ``GET /v1/realtime``, one JSON event a message, sound in base64 both ways.

Theory of operation
-------------------
``WebSocketLine`` is what the session sees: nothing in it blocks or awaits. Two tasks of the connection move
bytes. The *reader* decodes one client event at a time and stops reading while the outgoing queue is long, so
a client cannot make us queue answers without end. The *sender* takes events off the bounded queue in order.

When the queue is full, the oldest event whose successor makes up for it goes; if there is none (sound and
what happened in the conversation are never dropped), the client is not reading and the connection ends. So
it does when one message takes longer than ``STALL_LIMIT_S`` to be taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from duplex.agent import AgentSettings
from duplex.clock import Clock
from duplex.errors import DuplexError, InvalidEventError, ProtocolError
from duplex.events import At, ErrorRaised, Event
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Image, Packet
from duplex.hub import SessionHub
from duplex.line import OutPacket, PlayoutReport
from duplex.metrics import Metrics
from duplex.requests import ClearInput, CommitInput
from duplex.session import Session
from duplex.transport.pcm import LiveInput
from duplex.transport.realtime import DROPPABLE, RealtimeCodec

log = logging.getLogger("duplex.websocket")

STALL_LIMIT_S = 5.0
DRAIN_LIMIT_S = 2.0
LEAD_PACKETS = 10
BIG_EVENT_CHARS = 64 * 1024  # decoded off the event loop

NORMAL, TOO_SLOW = 1000, 1008  # RFC 6455, 7.4.1


@dataclass(slots=True)
class _Outgoing:
    """One message to send, or a stretch of silence between two of them (``text`` None) that is not sent."""

    text: str | None
    samples: int = 0
    droppable: bool = False


class WebSocketLine:
    """The session's side of one connection. Implements ``duplex.line.Line``."""

    def __init__(
        self,
        codec: RealtimeCodec,
        clock: Clock,
        metrics: Metrics,
        *,
        max_unsent_events: int = 512,
        stall_limit_s: float = STALL_LIMIT_S,
        max_input_s: float = 60.0,
    ) -> None:
        self.codec = codec
        self.closed = False
        self.ending: tuple[int, str] | None = None  # close code and reason, once somebody wants an end
        self.wants_end = asyncio.Event()
        self.started = asyncio.Event()  # the session told us something: it takes requests now
        self.drained = asyncio.Event()  # all that was pushed has been heard
        self.has_room = asyncio.Event()  # the outgoing queue is short enough to read on
        self.gone = asyncio.Event()  # the connection is over, everything of it
        self._input = LiveInput(max_input_s)
        self._clock, self._metrics = clock, metrics
        self._max_unsent, self._stall_limit_s = max_unsent_events, stall_limit_s
        self._queue: deque[_Outgoing] = deque()
        self._queued = asyncio.Event()
        self._queued_samples = 0
        self._sending_since_s: float | None = None
        self._overflowing = False
        self.drained.set()
        self.has_room.set()

    # --- what the session calls -------------------------------------------------------------------

    @property
    def lead_packets(self) -> int:
        return LEAD_PACKETS

    def receive(self) -> Sequence[Packet]:
        now_s = self._clock.now()
        if self._sending_since_s is not None and now_s - self._sending_since_s > self._stall_limit_s:
            self.end(TOO_SLOW, f"The client took nothing for {self._stall_limit_s:g} s.")
        packets = self._input.receive(now_s)
        if len(self._input) < PACKET_SAMPLES:
            self._overflowing = False
            self.drained.set()
        return packets

    def take_image(self) -> Image | None:
        return None  # pictures come as conversation items here

    def send(self, packet: OutPacket) -> None:
        events = self.codec.encode_audio(packet)
        if events:
            self.tell(events[:-1])
            self._put(_Outgoing(_dump(events[-1]), PACKET_SAMPLES))
        elif self._queued_samples:
            # Silence is not sent, but while sound is still queued it has its place behind it for ``flush``.
            self._put(_Outgoing(None, PACKET_SAMPLES))

    def flush(self) -> int:
        taken_back = self._queued_samples
        if taken_back:
            self._queue = deque(waiting for waiting in self._queue if not waiting.samples)
            self._queued_samples = 0
            self._look_at_room()
        return taken_back

    def playout(self) -> PlayoutReport | None:
        return None  # duplex.playback.ack reaches the session as a request

    def emit(self, event: Event) -> None:
        self.tell(self.codec.encode(event))
        self.started.set()

    async def close(self, reason: str) -> None:
        self.end(NORMAL, reason)
        await self.gone.wait()

    # --- what the connection calls ------------------------------------------------------------------

    @property
    def at(self) -> At:
        return At(self._input.pts, self._clock.now())

    def hear(self, pcm: bytes) -> None:
        """Takes appended sound. What does not fit is dropped, counted, and told once until there is room again."""
        self.drained.clear()
        lost = self._input.push(pcm, self._clock.now())
        if not lost:
            return
        self._metrics.queue_drops.labels("websocket_input").inc()
        if not self._overflowing:
            self._overflowing = True
            message = (
                f"{lost / SAMPLE_RATE_HZ:.1f} s of sound did not fit and was dropped: at most {self._input.max_s:g} s "
                "may be sent ahead of being heard. Send nearer to real time."
            )
            self.emit(ErrorRaised(self.at, "input_audio_buffer_full", message, "audio", self.codec.client_event_id))

    def forget_input(self) -> None:
        self._input.clear()
        self.drained.set()

    def tell(self, events: Sequence[dict[str, Any]]) -> None:
        """Queues wire events."""
        for event in events:
            self._put(_Outgoing(_dump(event), droppable=event["type"] in DROPPABLE))

    def end(self, code: int, reason: str) -> None:
        """Asks for the end of the connection; the first reason given is the one that counts."""
        if self.ending is None:
            self.ending = (code, reason)
            self.wants_end.set()
            self._queued.set()
        if code == TOO_SLOW:
            self.closed = True

    async def run_sender(self, websocket: WebSocket) -> None:
        """Sends what is queued, in order; returns when the end is wanted and everything is out."""
        while True:
            while self._queue:
                outgoing = self._queue.popleft()
                self._queued_samples -= outgoing.samples
                self._look_at_room()
                if outgoing.text is None:
                    continue
                self._sending_since_s = self._clock.now()
                await websocket.send_text(outgoing.text)
                self._sending_since_s = None
            if self.ending is not None:
                return
            self._queued.clear()
            await self._queued.wait()

    def _put(self, outgoing: _Outgoing) -> None:
        if self.closed:
            return
        if len(self._queue) >= self._max_unsent and not self._drop_one():
            self.end(TOO_SLOW, f"The client did not keep up: {self._max_unsent} events were waiting for it.")
            return
        self._queue.append(outgoing)
        self._queued_samples += outgoing.samples
        self._queued.set()
        self._look_at_room()

    def _look_at_room(self) -> None:
        if len(self._queue) < self._max_unsent // 2:
            self.has_room.set()
        else:
            self.has_room.clear()

    def _drop_one(self) -> bool:
        for index, waiting in enumerate(self._queue):
            if waiting.droppable:
                del self._queue[index]
                self._metrics.queue_drops.labels("websocket_events").inc()
                return True
        return False


async def serve_websocket(websocket: WebSocket, hub: SessionHub, make_codec: Callable[[], RealtimeCodec]) -> None:
    """Holds one conversation on a connection that is not accepted yet. Raises ``AgentFullError`` before accepting."""
    reservation = hub.reserve()
    try:
        offered: list[str] = websocket.scope.get("subprotocols", [])
        await websocket.accept(subprotocol="realtime" if "realtime" in offered else None)
        line = WebSocketLine(make_codec(), hub.clock, hub.metrics, max_unsent_events=hub.config.max_unsent_events)
        await _converse(websocket, line, hub.open(line, AgentSettings(), reservation))
    finally:
        reservation.release()


async def _converse(websocket: WebSocket, line: WebSocketLine, session: Session) -> None:
    sender = asyncio.create_task(line.run_sender(websocket), name="websocket sender")
    reader = asyncio.create_task(_read(websocket, line, session), name="websocket reader")
    ending = asyncio.create_task(line.wants_end.wait(), name="websocket end")
    tasks: list[asyncio.Task[Any]] = [sender, reader, ending]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if line.ending is not None and not line.closed and not reader.done():
            await asyncio.wait([sender], timeout=DRAIN_LIMIT_S)
    finally:
        line.closed = True
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, WebSocketDisconnect):
                log.error("a WebSocket connection failed: %s", result, exc_info=result)
        code, reason = line.ending or (NORMAL, "")
        if code == TOO_SLOW:
            log.warning("closed a WebSocket connection: %s", reason)
        # RuntimeError: the far end closed first. The limit: a client that does not read takes no goodbye either.
        with contextlib.suppress(RuntimeError, WebSocketDisconnect, TimeoutError):
            async with asyncio.timeout(DRAIN_LIMIT_S):
                await websocket.close(code, _fitting(reason))
        line.gone.set()


async def _read(websocket: WebSocket, line: WebSocketLine, session: Session) -> None:
    """Reads until the far end is gone."""
    await line.started.wait()
    while True:
        await line.has_room.wait()
        message = await websocket.receive()
        if message["type"] != "websocket.receive":
            return
        if line.ending is not None:
            continue
        try:
            await _handle(message, line, session)
        except ProtocolError as error:
            line.tell(line.codec.refusal(error, line.at))
        except DuplexError as error:
            line.emit(ErrorRaised(line.at, type(error).__name__, str(error), None, line.codec.client_event_id))


async def _handle(message: Any, line: WebSocketLine, session: Session) -> None:
    text = message.get("text")
    codec = line.codec
    if text is None:
        codec.client_event_id = None
        raise InvalidEventError(
            "Send JSON in text messages. Sound goes in base64 into input_audio_buffer.append, not in binary messages."
        )
    if len(text) > BIG_EVENT_CHARS:
        request = await asyncio.to_thread(codec.decode, text)
    else:
        request = codec.decode(text)
    if (audio := codec.take_audio()) is not None:
        line.hear(audio)
    if isinstance(request, CommitInput):
        await line.drained.wait()  # "this was my turn" means all that was sent before it
    if isinstance(request, ClearInput):
        line.forget_input()
    if request is not None:
        session.request(request, codec.client_event_id)
    line.tell(codec.answers())


def _dump(event: dict[str, Any]) -> str:
    return json.dumps(event, separators=(",", ":"))


def _fitting(reason: str) -> str:
    """A close frame holds 123 bytes of reason."""
    return reason.encode("utf-8")[:123].decode("utf-8", "ignore")
