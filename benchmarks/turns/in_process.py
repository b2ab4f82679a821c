"""A call without a network: a session in this process, on whatever clock it is given.

On virtual time an hour of conversation with a scripted agent takes seconds and comes out the same every time;
on the real clock it measures an agent without anything in between. The session is the one a server opens, its
events go through the same encoder, and what it plays is heard with the same playout delay.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from duplex.clock import Clock
from duplex.errors import ProtocolError, TransportError
from duplex.events import At, Event, SessionStarted
from duplex.frames import PACKET_MS, PACKET_SAMPLES, SAMPLE_RATE_HZ, Image, Packet, Samples
from duplex.hub import SessionHub
from duplex.line import OutPacket, PlayoutReport
from duplex.recording import AUDIBLE_DBFS, Arrival, RecordedEvent, WireStats, level_dbfs, play_out
from duplex.session import Session
from duplex.transport.client_call import CallBase, CallSettings
from duplex.transport.client_echo import EchoPath, Listener
from duplex.transport.client_script import PACKET_S, Script
from duplex.transport.realtime import RealtimeCodec, SessionDefaults, read_call_session

_TOGETHER_S = 0.001  # a packet that is due within this is due now: the session's ticks and ours began together


class CallLine:
    """The call as its session sees it. Implements :class:`duplex.line.Line`.

    ``tell`` gets every event; ``close`` sets ``gone``. ``playout_s``: the listener's delay.
    """

    lead_packets = 1

    def __init__(
        self, script: Script, clock: Clock, tell: Callable[[Event], None], playout_s: float, echo: EchoPath | None
    ) -> None:
        self._script, self._clock, self._tell = script, clock, tell
        self._playout_s, self._echo = playout_s, echo
        self._listener = Listener(rate_hz=SAMPLE_RATE_HZ, playout_s=playout_s)
        self.closed = False
        self.reason = ""
        self.gone = asyncio.Event()
        self.arrivals: list[Arrival] = []
        self.last_audible_s: float | None = None

    def receive(self) -> Sequence[Packet]:
        script = self._script
        packets: list[Packet] = []
        while script.started.is_set() and not script.full and script.due_s <= self._clock.now() + _TOGETHER_S:
            start = script.sent * PACKET_SAMPLES
            samples = script.take()
            if self._echo is not None:
                samples = np.clip(
                    samples + self._echo.over(start, PACKET_SAMPLES, self._listener.played), -1.0, 1.0
                ).astype(np.float32)
            packets.append(Packet(start, samples))
        return packets

    def take_image(self) -> Image | None:
        return None

    def send(self, packet: OutPacket) -> None:
        if self._script.full or not self._script.started.is_set():
            return
        now_s = self._clock.now()
        samples = (np.clip(packet.samples, -1.0, 1.0) * 32767.0).astype(np.int16)
        arrival = Arrival(now_s, packet.pts // PACKET_SAMPLES, packet.pts, samples)
        self.arrivals.append(arrival)
        if level_dbfs(packet.samples) >= AUDIBLE_DBFS:
            self.last_audible_s = now_s
        if self._echo is not None:
            self._listener.add(arrival, self._script.at(now_s))

    def flush(self) -> int:
        return 0

    def playout(self) -> PlayoutReport | None:
        """What the listener's loudspeaker has played by now: here nobody has to guess."""
        if not self.arrivals:
            return None
        last, now_s = self.arrivals[-1], self._clock.now()
        since = round((now_s - last.at_s - self._playout_s) * SAMPLE_RATE_HZ)
        return PlayoutReport(max(0, last.timestamp + min(since, PACKET_SAMPLES)), now_s, float(PACKET_MS), "ack")

    def emit(self, event: Event) -> None:
        if isinstance(event, SessionStarted):
            self._script.start(event.at.at_s)
        self._tell(event)

    async def close(self, reason: str) -> None:
        if not self.closed:
            self.closed, self.reason = True, reason
            self.gone.set()


class InProcessCall(CallBase):
    """One call to a session of ``hub``. Made by :meth:`connect`."""

    def __init__(
        self, settings: CallSettings, hub: SessionHub, on_event: Callable[[RecordedEvent], None] | None
    ) -> None:
        super().__init__(settings, hub.clock, on_event)
        link = settings.link
        if link is not None and (link.loss or link.jitter_ms or link.reorder or link.skew_ppm):
            raise TransportError(
                "There is no network inside one process that could lose, delay or skew anything. "
                "Call a server by its address to test a bad line; an echo works here too."
            )
        self._playout_s = settings.playout_ms / 1000.0
        self._defaults = SessionDefaults(voices=hub.agent.info.voices)
        self._codec = RealtimeCodec(self._defaults, audio_deltas=False)
        self._session: Session | None = None
        echo = None
        if link is not None and link.echo is not None:
            echo = EchoPath(link.echo.level_db, link.echo.delay_ms, rate_hz=SAMPLE_RATE_HZ, seed=link.seed)
        self._line = CallLine(self._script, hub.clock, self._emitted, self._playout_s, echo)

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        hub: SessionHub,
        settings: CallSettings | None = None,
        *,
        on_event: Callable[[RecordedEvent], None] | None = None,
    ) -> AsyncIterator[InProcessCall]:
        """Opens a session and ends it. Raises ``AgentFullError``, or ``TransportError`` for what it cannot do."""
        call = cls(settings or CallSettings(), hub, on_event)
        began_s = hub.clock.now()
        try:
            wanted = read_call_session(call._settings.session() or {"type": "realtime"}, call._defaults)
        except ProtocolError as error:
            raise TransportError(f"The session refused the call: {error}") from error
        call._session = hub.open(call._line, wanted)
        watch = asyncio.create_task(call._watch(), name="in-process call")
        try:
            await call.wait_for("session.created", timeout_s=call._settings.connect_timeout_s)
            call.connected_in_s = hub.clock.now() - began_s
            yield call
        finally:
            call._session.stop("this side hung up")
            await watch

    async def _watch(self) -> None:
        """Ends the call when the session has ended, whoever ended it."""
        await self._line.gone.wait()
        self._end(self._line.reason)

    # --- what the carrier brings -------------------------------------------------------------------

    @property
    def last_audible_ms(self) -> float | None:
        if self._line.last_audible_s is None:
            return None
        return (self._line.last_audible_s + PACKET_S + self._playout_s - self._script.origin_s) * 1000.0

    def send(self, event: Mapping[str, Any]) -> None:
        self._check_open()
        assert self._session is not None
        try:
            request = self._codec.decode(json.dumps(event))
            if request is not None:
                self._session.request(request, self._codec.client_event_id)
        except ProtocolError as error:
            self._tell(self._codec.refusal(error, At(0, self._clock.now())))
            return
        self._tell(self._codec.answers())

    async def outage(self, duration_s: float) -> None:
        raise NotImplementedError(
            "A call inside one process has no line that could fail. Call a server by its address."
        )

    def _heard(self, n_samples: int) -> tuple[Samples, WireStats]:
        return play_out(
            self._line.arrivals,
            rate_hz=SAMPLE_RATE_HZ,
            origin_s=self._script.origin_s,
            n_samples=n_samples,
            playout_s=self._playout_s,
        )

    def _emitted(self, event: Event) -> None:
        self._tell(self._codec.encode(event))

    def _tell(self, events: Sequence[Mapping[str, Any]]) -> None:
        for event in events:
            # Through JSON, as on a wire: what a client gets is its own, and of the types JSON has.
            self._keep_event(json.loads(json.dumps(event)))
