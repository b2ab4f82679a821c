"""A telephone line: what Twilio's and Asterisk's doors share.

Theory of operation
-------------------
The session hands over packets in real time, ``lead_packets`` ahead while a reply plays. A packet leaves when the far
end has room for it (:class:`~duplex.transport.telephone_playout.FarEnd`): so much is with the far end at most, however
unevenly we are woken, and the rest waits here, where it can be taken back without a word. Silence between replies is
not sent; a telephone makes its own.

``flush`` takes back what waits here *and* what the far end was sent and has not begun to play: a ``clear`` goes out.
The packet that is being played is played to its end, so the sound stops with a whole packet, the session fades the
next one, and the reply can go on from the very sample. A door without a ``clear`` takes back what waits here.

    session.send ─► queue ─► Mouth (rate, companding) ─► Wire (the door's words) ─► run_sender
    session.receive ◄─ LiveInput ◄─ Ear ◄─ hear(bytes)            returned(mark) ─► FarEnd ─► playout()
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, fields

from duplex import events as ev
from duplex.clock import Clock, Timer
from duplex.frames import PACKET_SAMPLES, Image, Packet
from duplex.line import OutPacket, PlayoutReport
from duplex.metrics import Metrics
from duplex.transport.pcm import LiveInput, to_pcm16
from duplex.transport.socket_line import STALL_LIMIT_S, SocketLine
from duplex.transport.telephone_edge import Ear, Encoding, Mouth
from duplex.transport.telephone_playout import FarEnd, Fate

log = logging.getLogger("duplex.telephone")

LEAD_PACKETS = 10
"""200 ms: what a connection across a continent may stutter without being heard. A ``clear`` takes it back."""
MAX_INPUT_S = 5.0

Message = str | bytes


@dataclass(frozen=True, slots=True)
class Wire:
    """How a door says things, each as one message. ``clear`` makes the far end drop what it has not played.

    None: the door has no word for that.
    """

    media: Callable[[bytes], Message]
    mark: Callable[[str], Message] | None = None
    clear: Callable[[], Message] | None = None


class TelephoneLine(SocketLine["OutPacket | Message"]):
    """Implements ``duplex.line.Line`` for one call.

    ``name``: of the call, for the log. ``lead_packets``: how much the far end may hold; few for one without a
    ``clear``. ``continuous``: silence is sent too, for far ends that want a packet every 20 ms.
    ``assumed_delay_ms``: one way, until a mark has measured it. ``facts``: what is known of the caller, for a bot.
    """

    def __init__(
        self,
        clock: Clock,
        metrics: Metrics,
        wire: Wire,
        encoding: Encoding,
        *,
        name: str,
        facts: Mapping[str, str] | None = None,
        lead_packets: int = LEAD_PACKETS,
        continuous: bool = False,
        assumed_delay_ms: float = 100.0,
        max_unsent: int = 512,
        stall_limit_s: float = STALL_LIMIT_S,
        max_input_s: float = MAX_INPUT_S,
    ) -> None:
        super().__init__(clock, max_unsent=max_unsent, stall_limit_s=stall_limit_s)
        self.name = name
        self.facts = dict(facts or {})
        self.started = asyncio.Event()  # the session takes requests now
        self.lead_packets = lead_packets
        self.far_end = FarEnd(lead_packets=lead_packets, assumed_delay_s=assumed_delay_ms / 1000.0)
        self._metrics, self._wire, self._continuous = metrics, wire, continuous
        self._input = LiveInput(max_input_s)
        self._ear, self._mouth = Ear(encoding), Mouth(encoding)
        self._timer: Timer | None = None
        self._overflowing = False

    # --- what the session calls -------------------------------------------------------------------

    def receive(self) -> Sequence[Packet]:
        now_s = self._clock.now()
        self.end_if_stalled(now_s)
        return self._input.receive(now_s)

    def take_image(self) -> Image | None:
        return None

    def send(self, packet: OutPacket) -> None:
        self.put(packet)

    def flush(self) -> int:
        """Takes back what waits here, and what the far end has not begun to play, if it can be told to drop it."""
        waiting = len(self._queue)
        self._queue = deque(each for each in self._queue if not isinstance(each, OutPacket))
        packets = waiting - len(self._queue)
        self.look_at_room()
        now_s = self._clock.now()
        if self._wire.clear is not None and (cut := self.far_end.cut(now_s)) is not None:
            packets += cut.packets
            self.put(self._wire.clear())
            if cut.before is not None:
                self._mouth.resume_after(cut.before)
            self._put_mark(now_s)
        return packets * PACKET_SAMPLES

    def playout(self) -> PlayoutReport | None:
        return self.far_end.report(self._clock.now())

    def emit(self, event: ev.Event) -> None:
        """A telephone is told nothing; the log says what and of which ids, and no word of what was said."""
        if isinstance(event, ev.SessionStarted):
            self.started.set()
        if isinstance(event, ev.ErrorRaised):
            log.warning("%s: %s (%s)", self.name, event.message, event.code)
        elif log.isEnabledFor(logging.DEBUG):
            ids = {f.name: getattr(event, f.name) for f in fields(event) if f.name.endswith("_id")}
            log.debug("%s: %s %s", self.name, type(event).__name__, ids)

    # --- what the connection calls ------------------------------------------------------------------

    def greet(self) -> None:
        """The far end listens from now on. A mark for its empty buffer tells how long the way there and back is."""
        self._put_mark(self._clock.now())

    def hear(self, code: bytes) -> None:
        """Takes sound as it comes. What is sent far ahead of real time and does not fit is dropped and counted."""
        samples = self._ear.hear(code)
        lost = self._input.push(to_pcm16(samples), self._clock.now())
        if lost:
            self._metrics.queue_drops.labels("telephone_input").inc()
            if not self._overflowing:
                log.warning(
                    "%s: sound comes faster than real time; what is over %g s ahead of being heard is dropped.",
                    self.name,
                    self._input.max_s,
                )
        self._overflowing = bool(lost)

    def returned(self, mark: str) -> Fate:
        """A mark of ours came back, or something that claims to be one."""
        fate = self.far_end.returned(mark, self._clock.now())
        if fate is Fate.UNKNOWN:
            self._metrics.queue_drops.labels("telephone_marks").inc()
            log.debug("%s: a mark came back that is not out: %.64r", self.name, mark)
        elif fate is Fate.PLAYED:
            self._queued.set()  # there may be more room than was reckoned
        return fate

    async def run_sender(self, send: Callable[[Message], Awaitable[None]]) -> None:
        """Sends what is queued, each packet in its time; returns when the end is wanted and everything is out."""
        try:
            while True:
                while self._queue and self._may_leave():
                    for message in self._messages(self._queue.popleft()):
                        await self.sending(send(message))
                    self.look_at_room()
                if self.ending is not None and not self._queue:
                    return
                self._queued.clear()
                self._wake_in_time()
                await self._queued.wait()
        finally:
            if self._timer is not None:
                self._timer.cancel()

    # --- pacing -------------------------------------------------------------------------------------

    def _may_leave(self) -> bool:
        now_s = self._clock.now()
        return not isinstance(self._queue[0], OutPacket) or self.far_end.room_at_s(now_s) <= now_s

    def _wake_in_time(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._queue:
            self._timer = self._clock.call_at(self.far_end.room_at_s(self._clock.now()), self._queued.set)

    def _messages(self, waiting: OutPacket | Message) -> list[Message]:
        if not isinstance(waiting, OutPacket):
            return [waiting]
        now_s, end_pts = self._clock.now(), waiting.pts + PACKET_SAMPLES
        code = self._mouth.speak(waiting.samples)
        if self._mouth.quiet and not (self._continuous or waiting.reply_id or waiting.aside):
            self.far_end.put_silence(end_pts, now_s)
            return self._marks(now_s, quiet=True)
        self.far_end.put(end_pts, waiting.samples, now_s)
        return [self._wire.media(code), *self._marks(now_s)]

    def _marks(self, now_s: float, *, quiet: bool = False) -> list[Message]:
        if self._wire.mark is None or not self.far_end.mark_due(now_s, quiet=quiet):
            return []
        return [self._wire.mark(self.far_end.mark(now_s))]

    def _put_mark(self, now_s: float) -> None:
        if self._wire.mark is not None:
            self.put(self._wire.mark(self.far_end.mark(now_s)))
