"""The session's side of one Moshi connection: sound in and out in real time, words as they are spoken.

The protocol has no acknowledgements, and what has left cannot be taken back. So nothing is sent ahead: one packet
every 20 ms, silence too (a stock page takes ten quiet seconds for a dead server), and what was heard is known by the
clock. A packet is encoded at the moment it leaves, so that one taken back before leaves no trace in the stream.

A client that falls behind loses silence first. When sound it must not lose piles up, the connection ends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from starlette.websockets import WebSocket

from duplex import events as ev
from duplex.clock import Clock
from duplex.errors import DuplexError
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Image, Packet, Samples
from duplex.line import OutPacket, PlayoutReport
from duplex.metrics import Metrics
from duplex.transport import moshi_chat_wire as wire
from duplex.transport.moshi_chat_text import SpokenText
from duplex.transport.pcm import LiveInput, to_pcm16
from duplex.transport.websocket import NORMAL, STALL_LIMIT_S, TOO_SLOW

MAX_MESSAGE_S = 30.0
AHEAD_S = 2.0
"""Sound may be sent this far ahead of being heard (at up to sixteen times real time); then reading waits."""
BEHIND_PACKETS = 16
"""A client this far behind (320 ms) is sent no more silence until it has caught up."""


class SoundWriter(Protocol):
    def write(self, samples: Samples) -> bytes:
        """The next bytes of the outgoing stream for float32[n] at 24 kHz."""
        ...


@dataclass(frozen=True, slots=True)
class _Rest:
    """Stands in the queue behind a reply's last packet."""

    reply_id: str


class MoshiLine:
    """Implements ``duplex.line.Line``. ``native``: the agent writes its words as it says them.

    ``max_message_s``: the most sound one message may hold.
    """

    lead_packets = 1

    def __init__(
        self,
        clock: Clock,
        metrics: Metrics,
        *,
        native: bool = False,
        max_unsent: int = 512,
        stall_limit_s: float = STALL_LIMIT_S,
        max_message_s: float = MAX_MESSAGE_S,
    ) -> None:
        self.closed = False
        self.ending: tuple[int, str] | None = None  # close code and reason, once somebody wants an end
        self.wants_end = asyncio.Event()
        self.drained = asyncio.Event()  # all that was pushed has been heard
        self.has_room = asyncio.Event()  # the outgoing queue is short enough to read on,
        self.can_hear = asyncio.Event()  # and so is what was sent ahead of being heard
        self.gone = asyncio.Event()  # the connection is over, everything of it
        self._clock, self._metrics = clock, metrics
        self._max_unsent, self._stall_limit_s = max_unsent, stall_limit_s
        # One message fits on top of what is there when it is read; the decoder may go over by one packet.
        self._input = LiveInput(max_message_s + AHEAD_S + 1.0)
        self._answered = False
        self._complaint: str | None = None  # told last, and not to be told again for the same trouble
        self._spoken = SpokenText(by_words=not native)
        self._queue: deque[OutPacket | _Rest | bytes] = deque()
        self._queued = asyncio.Event()
        self._sending_since_s: float | None = None
        self.drained.set()
        self.has_room.set()
        self.can_hear.set()

    # --- what the session calls -------------------------------------------------------------------

    def receive(self) -> Sequence[Packet]:
        now_s = self._clock.now()
        if self._sending_since_s is not None and now_s - self._sending_since_s > self._stall_limit_s:
            self.end(TOO_SLOW, f"The client took nothing for {self._stall_limit_s:g} s.")
        packets = self._input.receive(now_s)
        if len(self._input) < PACKET_SAMPLES:
            self.drained.set()
        if len(self._input) < AHEAD_S * SAMPLE_RATE_HZ:
            self.can_hear.set()
        return packets

    def take_image(self) -> Image | None:
        return None

    def send(self, packet: OutPacket) -> None:
        if len(self._queue) >= BEHIND_PACKETS and not (packet.reply_id or packet.aside):
            self._metrics.queue_drops.labels("moshi_silence").inc()
            return
        self._put(packet)

    def flush(self) -> int:
        n_before = len(self._queue)
        self._queue = deque(waiting for waiting in self._queue if not isinstance(waiting, OutPacket))
        self._look_at_room()
        return (n_before - len(self._queue)) * PACKET_SAMPLES

    def playout(self) -> PlayoutReport | None:
        return None

    def emit(self, event: ev.Event) -> None:
        match event:
            case ev.SessionStarted():
                self._answered = True
                self._put(wire.HANDSHAKE)
            case ev.ReplyTextAdded(reply_id=reply_id, delta=delta):
                self._spoken.add_text(reply_id, delta)
            case ev.ReplyWords(reply_id=reply_id, words=words):
                self._spoken.add_words(reply_id, words)
            case ev.ReplyFinished(reply_id=reply_id, status="completed"):
                self._put(_Rest(reply_id))
            case ev.ReplyTruncated(reply_id=reply_id) | ev.ReplyFinished(reply_id=reply_id):
                self._spoken.forget(reply_id)
            case ev.AsideStarted(text=text):
                self._put(wire.text(" " + text.strip()))
            case ev.ErrorRaised(message=message):
                self._put(wire.error(message))
            case _:
                pass  # the protocol has no words for it

    async def close(self, reason: str) -> None:
        self.end(NORMAL, reason)
        await self.gone.wait()

    # --- what the connection calls ------------------------------------------------------------------

    def hear(self, samples: Samples) -> None:
        """Takes float32[n] at 24 kHz. What comes before the handshake is nobody's to hear: live sound does not wait."""
        if not self._answered or not len(samples):
            return
        self._complaint = None
        self.drained.clear()
        self._input.push(to_pcm16(samples), self._clock.now())
        if len(self._input) >= AHEAD_S * SAMPLE_RATE_HZ:
            self.can_hear.clear()

    def complain(self, trouble: DuplexError) -> None:
        """Tells the client what was wrong with what it sent; once, until it has sent sound that can be heard."""
        message = str(trouble)
        if message != self._complaint:
            self._complaint = message
            self._put(wire.error(message))

    def end(self, code: int, reason: str) -> None:
        """Asks for the end of the connection; the first reason given is the one that counts."""
        if self.ending is None:
            self.ending = (code, reason)
            self.wants_end.set()
            self._queued.set()
        if code == TOO_SLOW:
            self.closed = True

    async def run_sender(self, websocket: WebSocket, writer: SoundWriter) -> None:
        """Sends what is queued, in order; returns when the end is wanted and everything is out."""
        while True:
            while self._queue:
                waiting = self._queue.popleft()
                self._look_at_room()
                for message in self._messages(waiting, writer):
                    self._sending_since_s = self._clock.now()
                    await websocket.send_bytes(message)
                    self._sending_since_s = None
            if self.ending is not None:
                return
            self._queued.clear()
            await self._queued.wait()

    def _messages(self, waiting: OutPacket | _Rest | bytes, writer: SoundWriter) -> Iterator[bytes]:
        match waiting:
            case OutPacket(samples=samples, reply_id=reply_id):
                if reply_id is not None and (words := self._spoken.passing(reply_id)):
                    yield wire.text(words)
                yield wire.audio(writer.write(samples))
            case _Rest(reply_id=reply_id):
                if words := self._spoken.rest(reply_id):
                    yield wire.text(words)
            case bytes():
                yield waiting

    def _put(self, waiting: OutPacket | _Rest | bytes) -> None:
        if self.closed:
            return
        if len(self._queue) >= self._max_unsent:
            seconds = self._max_unsent * PACKET_SAMPLES / SAMPLE_RATE_HZ
            self.end(TOO_SLOW, f"The client did not keep up: {seconds:.0f} s of sound were waiting for it.")
            return
        self._queue.append(waiting)
        self._queued.set()
        self._look_at_room()

    def _look_at_room(self) -> None:
        if len(self._queue) < self._max_unsent // 2:
            self.has_room.set()
        else:
            self.has_room.clear()
