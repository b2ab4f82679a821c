"""The WebSocket door: ``GET /v1/realtime``, one JSON event a message, sound in base64 both ways.

Theory of operation
-------------------
``WebSocketLine`` is what the session sees: nothing in it blocks or awaits. Two tasks of the connection move
bytes. The *reader* decodes one client event at a time and stops reading while the outgoing queue is long, so
a client cannot make us queue answers without end. The *sender* takes events off the bounded queue in order.

When the queue is full, the oldest event whose successor makes up for it goes; if there is none (sound and
what happened in the conversation are never dropped), the client is not reading and the connection ends. So
it does when one message takes longer than ``STALL_LIMIT_S`` to be taken.

A session may outlive its connection: :mod:`duplex.transport.resume`. Then the line is *parked*: it has no connection,
its events are kept, and the session stands still until another connection takes the line over.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from duplex.agent import AgentSettings
from duplex.clock import Clock
from duplex.errors import DuplexError, InvalidEventError, ProtocolError
from duplex.events import At, ErrorRaised, Event
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Packet
from duplex.hub import SessionHub
from duplex.line import OutPacket
from duplex.metrics import Metrics
from duplex.requests import AcknowledgePlayout, ClearInput, CommitInput, LoseLine, RegainLine
from duplex.session import Session
from duplex.transport.event_ring import EventRing, number_of
from duplex.transport.locks.caller import current_visit
from duplex.transport.realtime import DROPPABLE, RealtimeCodec
from duplex.transport.resume import Held, Resumption, read_resume
from duplex.transport.session_socket import SessionSocket
from duplex.transport.socket_line import STALL_LIMIT_S, TOO_SLOW, close_websocket, hold_connection

log = logging.getLogger("duplex.websocket")

LEAD_PACKETS = 10
BIG_EVENT_CHARS = 64 * 1024  # decoded off the event loop
LOOK_S = 0.1
LOST_AFTER_S = 0.6
"""Of a client that says several times a second how far it has played, and falls silent."""
_GOODBYES = (1000, 1001, 1005)  # the client meant it: normal, going away, closed without a code (RFC 6455, 7.4.1)


@dataclass(slots=True)
class _Outgoing:
    """One message to send, or a stretch of silence between two of them (``text`` None) that is not sent.

    ``number``: the event's, if it is one to be sent again to a client that lost it.
    """

    text: str | None
    samples: int = 0
    droppable: bool = False
    number: int = 0


class WebSocketLine(SessionSocket[_Outgoing]):
    """The session's side of a call by WebSocket. Implements ``duplex.line.Line``."""

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
        super().__init__(
            clock, metrics, max_unsent=max_unsent_events, stall_limit_s=stall_limit_s, max_input_s=max_input_s
        )
        self.codec = codec
        self.session: Session | None = None
        self.held: Held | None = None  # the session may outlive the connection
        self.started = asyncio.Event()  # the session told us something: it takes requests now
        self.left = asyncio.Event()  # the connection at hand is over for us; a new one may have come
        self.let_go = asyncio.Event()  # no connection carries the line
        self.parked = False
        self._ring = EventRing(2 * max_unsent_events)
        self._overflowing = False
        self._lost = False
        self._message_s = clock.now()  # when the client sent something last
        self._ack_s = self._audible_s = float("-inf")  # when it said how far it has played; when we sent sound

    # --- what the session calls -------------------------------------------------------------------

    @property
    def lead_packets(self) -> int:
        return LEAD_PACKETS

    def receive(self) -> Sequence[Packet]:
        packets = super().receive()
        if len(self._input) < PACKET_SAMPLES:
            self._overflowing = False
        return packets

    def send(self, packet: OutPacket) -> None:
        events = self.codec.encode_audio(packet)
        if events:
            self.tell(events[:-1])
            self._audible_s = self._clock.now()
            self.put(_Outgoing(_dump(events[-1]), PACKET_SAMPLES))
        elif self._queued_samples:
            # Silence is not sent, but while sound is still queued it has its place behind it for ``flush``.
            self.put(_Outgoing(None, PACKET_SAMPLES))

    def emit(self, event: Event) -> None:
        self.tell(self.codec.encode(event))
        self.started.set()

    async def close(self, reason: str) -> None:
        if self.held is not None:
            self.held.forget()
        if self.parked:
            self.closed = True
            self.gone.set()
        await super().close(reason)

    def end_if_stalled(self, now_s: float) -> None:
        stalled = self._sending_since_s is not None and now_s - self._sending_since_s > self._stall_limit_s
        if stalled and self.held is not None and self.held.may_wait:
            self.left.set()  # a network that is gone looks like this; the client may come back by another
        else:
            super().end_if_stalled(now_s)

    # --- the queue ----------------------------------------------------------------------------------

    def put(self, waiting: _Outgoing) -> None:
        if not self.parked:
            super().put(waiting)
        elif waiting.text is not None and waiting.number and not self.closed:
            self._ring.keep(waiting.number, waiting.text)

    def _sound_in(self, waiting: _Outgoing) -> int:
        return waiting.samples

    def _messages(self, waiting: _Outgoing) -> Iterable[str]:
        if waiting.text is None:
            return
        if waiting.number:
            self._ring.keep(waiting.number, waiting.text)
        yield waiting.text

    def _make_room(self) -> bool:
        for index, waiting in enumerate(self._queue):
            if waiting.droppable:
                del self._queue[index]
                self._metrics.queue_drops.labels("websocket_events").inc()
                return True
        return False

    def _too_slow(self) -> str:
        return f"The client did not keep up: {self._max_unsent} events were waiting for it."

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
            droppable = event["type"] in DROPPABLE
            number = 0 if droppable or "event_id" not in event else number_of(event["event_id"])
            self.put(_Outgoing(_dump(event), droppable=droppable, number=number))

    # --- a client out of reach ----------------------------------------------------------------------

    def came(self, *, ack: bool = False) -> None:
        """The client sent something. What we sent meanwhile has reached it too, or will: TCP loses nothing."""
        self._message_s = self._clock.now()
        if ack:
            self._ack_s = self._message_s
        if self._lost and not self.parked:
            self._regain(delivered=True)

    def look(self) -> None:
        """Judges whether the client is there; to be called every ``LOOK_S``."""
        now_s = self._clock.now()
        reports = self._message_s - self._ack_s < 1.0 and now_s - self._audible_s < 1.0
        if reports and now_s - self._message_s > LOST_AFTER_S:
            self._lose()

    def park(self) -> None:
        """Goes on without a connection: sound waits with the session, and events are kept."""
        self._lose()  # which takes back the sound that has not left yet
        self.parked = True
        self.let_go.set()
        for waiting in self._queue:
            if waiting.text is not None and waiting.number:
                self._ring.keep(waiting.number, waiting.text)
        self._queue.clear()
        self._queued_samples, self._sending_since_s = 0, None
        self.look_at_room()

    def take_over(self, last_event: int, played: tuple[str, float] | None) -> None:
        """Another connection carries the line from now on. Its client had ``last_event`` last, and has played
        ``played`` (reply, ms). What it missed is sent again, first of all."""
        self.parked = False
        self.left.clear()
        self.let_go.clear()
        self._message_s = self._clock.now()
        again, complete = self._ring.take_after(last_event)
        self._queue.extend(_Outgoing(text, number=number) for number, text in again)
        self._queued.set()
        self.tell([self.codec.told("duplex.session.resumed", missed=len(again), complete=complete)])
        if played is not None and self.session is not None:
            try:
                self.session.request(AcknowledgePlayout(*played))
            except ProtocolError as error:
                self.tell(self.codec.refusal(error, self.at))
        self._regain(delivered=False)

    def _lose(self) -> None:
        if not self._lost and self.session is not None and self.started.is_set():
            self._lost = True
            self.session.request(LoseLine(self._clock.now() - self._message_s))

    def _regain(self, *, delivered: bool) -> None:
        if self._lost and self.session is not None:
            self._lost = False
            self.session.request(RegainLine(delivered))


async def serve_websocket(
    websocket: WebSocket,
    hub: SessionHub,
    make_codec: Callable[[], RealtimeCodec],
    resumption: Resumption | None = None,
) -> None:
    """Holds one conversation on a connection that is not accepted yet. Raises ``AgentFullError`` before accepting.

    ``resumption``: who keeps sessions whose connection was lost; without it they end.
    """
    if resumption is not None and "resume" in websocket.query_params:
        await _resume(websocket, resumption)
        return
    reservation = hub.reserve()
    try:
        await _accept(websocket)
        line = WebSocketLine(make_codec(), hub.clock, hub.metrics, max_unsent_events=hub.config.max_unsent_events)
        line.session = hub.open(line, AgentSettings(), reservation)
        if resumption is not None:
            line.held = resumption.hold(line.session.id, line, line.codec.resume_token, _key_id())
        await _converse(websocket, line, line.session)
    finally:
        reservation.release()


async def _accept(websocket: WebSocket) -> None:
    offered: list[str] = websocket.scope.get("subprotocols", [])
    await websocket.accept(subprotocol="realtime" if "realtime" in offered else None)


def _key_id() -> str | None:
    visit = current_visit()
    return None if visit is None or visit.caller.key is None else visit.caller.key.key_id


async def _resume(websocket: WebSocket, resumption: Resumption) -> None:
    """A connection that says it goes on with a session: what comes first has to prove it."""
    await _accept(websocket)
    try:
        asked = await read_resume(websocket)
        line = resumption.find(asked, _key_id())
    except ProtocolError as error:
        told = {"type": "invalid_request_error", "code": error.code, "message": str(error), "param": error.param}
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            await websocket.send_text(_dump({"type": "error", "event_id": "event_0", "error": told}))
        await close_websocket(websocket, TOO_SLOW, str(error))
        return
    assert isinstance(line, WebSocketLine)
    assert line.session is not None
    while not line.let_go.is_set():
        line.left.set()  # the connection before may have looked well to us
        await line.let_go.wait()
    if line.closed:
        await close_websocket(websocket, TOO_SLOW, "The session is over.")
        return
    visit = current_visit()
    if visit is not None and visit.place is not None:
        visit.place.begin()
    if line.held is not None:
        line.held.resumed()
    line.take_over(asked.last_event, asked.played)
    await _converse(websocket, line, line.session)


async def _converse(websocket: WebSocket, line: WebSocketLine, session: Session) -> None:
    """Carries the line until it ends, or the connection does; then the line may be parked."""
    try:
        await hold_connection(
            websocket,
            line,
            reader=_read(websocket, line, session),
            sender=line.run_sender(websocket),
            log=log,
            also=(_look(line), line.left.wait()),
            parks=lambda reading: _parks(line, reading),
        )
    finally:
        if line.closed:
            line.let_go.set()


def _parks(line: WebSocketLine, reading: asyncio.Task[int]) -> bool:
    """Parks the line, unless somebody meant it to end."""
    meant = reading.done() and not reading.cancelled() and not reading.exception() and reading.result() in _GOODBYES
    if meant or line.ending is not None or line.closed or line.held is None or not line.held.wait():
        return False
    line.park()
    return True


async def _look(line: WebSocketLine) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        line.look()


async def _read(websocket: WebSocket, line: WebSocketLine, session: Session) -> int:
    """Reads until the far end is gone; returns the code it left with."""
    await line.started.wait()
    while True:
        await line.has_room.wait()
        message = await websocket.receive()
        if message["type"] != "websocket.receive":
            # uvicorn says 1005 of a connection that broke, too, but then without a reason, empty or not.
            return int(message.get("code") or 1005) if "reason" in message else 1006
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
    line.came()
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
    if isinstance(request, AcknowledgePlayout):
        line.came(ack=True)
    if request is not None:
        session.request(request, codec.client_event_id)
    line.tell(codec.answers())


def _dump(event: dict[str, Any]) -> str:
    return json.dumps(event, separators=(",", ":"))
