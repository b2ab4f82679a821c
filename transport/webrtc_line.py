"""One WebRTC call as the session sees it: a line.

The network pushes into the jitter buffer as packets arrive; the session pops one packet per tick. What
the session sends is encoded (0.2 ms) and handed to aiortc in the same breath, so nothing of ours queues.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from aiortc import RTCDataChannel

from duplex.bitrate import LinkReport
from duplex.clock import Clock
from duplex.errors import DuplexError, InvalidEventError, ProtocolError, TooLargeError
from duplex.events import At, ErrorRaised, Event, SessionStarted
from duplex.frames import PACKET_SAMPLES, Image, Packet
from duplex.line import OutPacket, PlayoutReport
from duplex.metrics import Metrics
from duplex.requests import LoseLine, RegainLine
from duplex.session import Session
from duplex.transport.camera import Camera
from duplex.transport.data_channel import EventOutbox
from duplex.transport.event_codec import EventCodec
from duplex.transport.jitter import JitterBuffer
from duplex.transport.metronome import Metronome
from duplex.transport.receiver_reports import ReceiverReports
from duplex.transport.rtp_audio import Voice

log = logging.getLogger("duplex.webrtc")

_SPEAKING_S = 0.2  # since there was something to hear
_GOODBYE_S = 0.5  # for the last events to leave before the connection goes
_MAX_EARLY = 32  # events that may come before the session has begun; clients send their session.update at once


@dataclass(slots=True)
class Media:
    """What belongs to one connection, and not to the call: it may get another. ``hang_up`` closes it, once."""

    voice: Voice
    jitter: JitterBuffer
    hang_up: Callable[[], Awaitable[None]]
    reports: ReceiverReports | None = None
    camera: Camera | None = None
    channel: RTCDataChannel | None = None

    def attach(self, channel: RTCDataChannel, line: WebRtcLine) -> None:
        """The connection's channel of events. The line takes it at once, if this is its connection by now."""
        self.channel = channel
        if line.media is self:
            line.attach(channel)


class WebRtcLine:
    """Implements :class:`duplex.line.Line`. ``media``: the connection it is carried by, once there is one.

    Events are told through ``codec``; client events go to ``session`` once the session has started.
    """

    lead_packets = 1

    def __init__(
        self, codec: EventCodec, clock: Clock, metrics: Metrics, *, max_unsent_events: int, max_event_bytes: int
    ) -> None:
        self.closed = False
        self.gone = asyncio.Event()
        self.reason = ""
        self.session: Session | None = None
        self.media: Media | None = None
        self.token: str | None = getattr(codec, "resume_token", None)  # with which the call may move
        self.outbox = EventOutbox(max_unsent_events, metrics, lambda: self.lose("the client does not read its events"))
        self._codec, self._clock, self._metrics = codec, clock, metrics
        self._max_event_bytes = max_event_bytes
        self._metronome = Metronome()
        self._connected = False
        self._started = False
        self._early: list[str | bytes] = []
        self._heard_pts = 0
        self._counted = (0, 0)
        self._audible_s = float("-inf")  # when something to be heard was sent last
        self._lost = False
        self._at = At(0, clock.now())

    # --- the connection's side ------------------------------------------------------------------------

    def connected(self) -> None:
        """Sound may flow; what is heard begins here."""
        self._connected = True

    @property
    def speaking(self) -> bool:
        return self._clock.now() - self._audible_s < _SPEAKING_S

    def out_of_touch(self, silent_s: float) -> None:
        """There has been no sign of the far end for so long."""
        if self.session is not None and self._started and not self._lost:
            self._lost = True
            self.session.request(LoseLine(silent_s))

    def in_touch(self) -> None:
        """There is again."""
        if self.session is not None and self._lost:
            self._lost = False
            self.session.request(RegainLine())

    def move(self, media: Media) -> Media | None:
        """Goes on over another connection; returns the one before, to be hung up. What is heard goes on in time."""
        before, self.media = self.media, media
        self._metronome.reset()
        self._counted = (0, 0)
        return before

    def lose(self, reason: str) -> None:
        """The far end is gone, or has to go. The session ends by itself."""
        if not self.closed:
            self.closed, self.reason = True, reason
            self.gone.set()

    def arrive(self, last_event: int) -> None:
        """The connection that the line moved to is up; its client had ``last_event`` last."""
        self.outbox.detach()  # from the channel before, which may still look open
        complete = self.outbox.resend(last_event)
        self.outbox.put([self._codec.told("duplex.session.resumed", complete=complete)])
        if self.media is not None and self.media.channel is not None:
            self.attach(self.media.channel)
        self._lost = False
        if self.session is not None and self._started:
            self.session.request(RegainLine())

    @property
    def heard_pts(self) -> int:
        """Media time of what is heard now, in samples."""
        return self._heard_pts

    def attach(self, channel: RTCDataChannel) -> None:
        """Takes client events from ``channel`` and tells ours there."""
        channel.on("message", self._received)
        channel.on("close", lambda: self.outbox.detach(channel))
        self.outbox.attach(channel)

    def _received(self, message: str | bytes) -> None:
        if self.closed:
            return
        try:
            self._handle(message)
        except ProtocolError as error:
            self.outbox.put(self._codec.refusal(error, self._now()))
        except DuplexError as error:
            self.emit(ErrorRaised(self._now(), type(error).__name__, str(error), None, self._codec.client_event_id))

    def _handle(self, message: str | bytes) -> None:
        size = len(message) if isinstance(message, bytes) else len(message.encode("utf-8", "surrogatepass"))
        if size > self._max_event_bytes:
            raise TooLargeError(f"The event has {size} bytes; at most {self._max_event_bytes} are taken.")
        if self.session is None or not self._started:
            if len(self._early) >= _MAX_EARLY:
                raise InvalidEventError("Wait for session.created before sending more.", code="session_not_ready")
            self._early.append(message)
            return
        request = self._codec.decode(message)
        if request is not None:
            self.session.request(request, self._codec.client_event_id)
        self.outbox.put(self._codec.answers())

    def _catch_up(self) -> None:
        """Reads what came before the session had begun, in order."""
        self._started = True
        early, self._early = self._early, []
        for message in early:
            self._received(message)

    def _now(self) -> At:
        return At(self._heard_pts, self._clock.now())

    # --- the session's side ---------------------------------------------------------------------------

    def receive(self) -> Sequence[Packet]:
        if not self._connected or self.media is None:
            return ()
        packets = []
        for due_s in self._metronome.tick(self._clock.now()):
            packet = self.media.jitter.pop(due_s)
            # A connection that took over counts from zero; the call goes on.
            packets.append(packet if packet.pts == self._heard_pts else replace(packet, pts=self._heard_pts))
            self._heard_pts += PACKET_SAMPLES
        if packets:
            self._count(self.media.jitter)
        return packets

    def _count(self, jitter: JitterBuffer) -> None:
        stats = jitter.stats
        self._metrics.jitter_depth_s.set(jitter.delay_ms / 1000.0)
        lost, late = self._counted
        if (stats.lost, stats.late) != self._counted:
            self._metrics.packets_lost.inc(stats.lost - lost)
            self._metrics.packets_late.inc(stats.late - late)
            self._counted = (stats.lost, stats.late)

    def take_image(self) -> Image | None:
        return self.media.camera.take() if self.media is not None and self.media.camera is not None else None

    def send(self, packet: OutPacket) -> None:
        if self.closed or self.media is None:
            return
        if packet.reply_id is not None or packet.aside:
            self._audible_s = self._clock.now()
        self.media.voice.put(packet)

    def flush(self) -> int:
        return self.media.voice.take_back() * PACKET_SAMPLES if self.media is not None else 0

    def take_link(self) -> LinkReport | None:
        reports = self.media.reports if self.media is not None else None
        return reports.take_link() if reports is not None else None

    def playout(self) -> PlayoutReport | None:
        reports = self.media.reports if self.media is not None else None
        return reports.latest if reports is not None else None

    def emit(self, event: Event) -> None:
        self.outbox.put(self._codec.encode(event))
        if isinstance(event, SessionStarted):
            asyncio.get_running_loop().call_soon(self._catch_up)  # the session takes requests from its first tick on

    async def close(self, reason: str) -> None:
        if not self.closed:
            await self.outbox.drained(_GOODBYE_S)
        self.lose(reason)
        if self.media is not None:
            if self.media.camera is not None:
                self.media.camera.close()
            await self.media.hang_up()
