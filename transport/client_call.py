"""What every client call is, whatever carries it: a time line, a script, events to wait for, a recording.

A carrier (WebRTC, WebSocket, a session in this process) brings three things: how a packet of the user leaves,
what was heard of the agent, and how an event is sent. The rest is here, so that "audible", "settled" and the
recording mean the same through every door.

Two clocks
----------
The recording's time line is real time. The *sound clock* of the client counts samples and may run fast
(``skew_ppm``), as cheap sound cards do: then more samples leave in a real second and the agent's are played
out faster. Sound is kept on the sound clock and brought to real time once, when the recording is made.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr

from duplex.clock import Clock
from duplex.errors import TransportError
from duplex.frames import PACKET_MS, SAMPLE_RATE_HZ, Samples
from duplex.recording import RecordedEvent, Recording, Span, WireStats
from duplex.transport.client_link import LinkLike
from duplex.transport.client_script import PACKET_S, Script

MAX_EVENTS = 50_000


@dataclass(frozen=True, slots=True)
class CallSettings:
    """What a call asks for. ``instructions``, ``voice`` and ``turn_taking``: None leaves them to the server.

    ``playout_ms``: the listener's delay, part of every latency measured on the recording.
    ``max_call_s`` bounds the recording; a call past it is an error, not a memory leak.
    ``link``: a bad line to simulate (:mod:`duplex.transport.client_link`); None is a perfect one.
    ``ice_servers``: STUN and TURN servers as WebRTC writes them (urls, username, credential); ``relay_only``: through
    TURN or not at all. Both are for WebRTC; a relayed call has no simulated link.
    """

    instructions: str | None = None
    voice: str | None = None
    playout_ms: float = 20.0
    max_call_s: float = 900.0
    connect_timeout_s: float = 15.0
    turn_taking: Mapping[str, Any] | None = None
    link: LinkLike | None = None
    ice_servers: Sequence[Mapping[str, Any]] = ()
    relay_only: bool = False

    def session(self) -> dict[str, Any]:
        """The ``session`` object of the wire, empty when nothing is asked for."""
        session: dict[str, Any] = {}
        if self.instructions is not None:
            session["instructions"] = self.instructions
        if self.voice is not None:
            session["audio"] = {"output": {"voice": self.voice}}
        if self.turn_taking is not None:
            session["duplex"] = {"turn_taking": dict(self.turn_taking)}
        return {"type": "realtime", **session} if session else {}

    @property
    def skew_ppm(self) -> float:
        return 0.0 if self.link is None else self.link.skew_ppm

    @property
    def listening_delay_ms(self) -> float:
        """The playout delay of a listener who knows this line: its whole spread of delays comes on top."""
        return self.playout_ms + (0.0 if self.link is None else 2.0 * self.link.jitter_ms)


class CallBase(ABC):
    """One call. Times are milliseconds of the recording's time line, which begins when sound may flow."""

    def __init__(
        self,
        settings: CallSettings,
        clock: Clock,
        on_event: Callable[[RecordedEvent], None] | None,
        *,
        rate_hz: int = SAMPLE_RATE_HZ,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._on_event = on_event
        self._script = Script(
            clock,
            rate_hz=rate_hz,
            max_packets=round(settings.max_call_s / PACKET_S),
            skew_ppm=settings.skew_ppm,
        )
        self._events: list[RecordedEvent] = []
        self._events_dropped = 0
        self._turn_began = 0  # index of the first event after the last play()
        self._next_of: dict[str, int] = {}
        self._open_replies: set[str] = set()
        self._last_reply_ms = -1.0  # when the newest event of any reply came
        self._news = asyncio.Event()
        self._ended: str | None = None
        self._ended_ms: float | None = None
        self.connected_in_s = 0.0

    # --- what a carrier brings ---------------------------------------------------------------------

    @property
    @abstractmethod
    def last_audible_ms(self) -> float | None:
        """When the last audible sound of the agent ends for the listener; None before the first."""

    @abstractmethod
    def send(self, event: Mapping[str, Any]) -> None:
        """Sends one client event, such as ``{"type": "response.create"}``."""

    @abstractmethod
    async def outage(self, duration_s: float) -> None:
        """Cuts the line both ways for that long, then goes on the way this carrier can.

        Raises ``NotImplementedError`` with a sentence if it cannot.
        """

    @abstractmethod
    def _heard(self, n_samples: int) -> tuple[Samples, WireStats]:
        """What the listener heard: float32[n_samples] of the sound clock from the origin."""

    @property
    def _full(self) -> bool:
        """The call is as long as it may be."""
        return self._script.full

    async def _to_wire(self, samples: Samples) -> Samples:
        """float32[n] at 24 kHz to the script's rate."""
        return np.asarray(samples, dtype=np.float32)

    # --- the conversation --------------------------------------------------------------------------

    @property
    def now_ms(self) -> float:
        """This moment on the recording's time line; 0 before it begins."""
        if not self._script.started.is_set():
            return 0.0
        return (self._clock.now() - self._script.origin_s) * 1000.0

    @property
    def events(self) -> list[RecordedEvent]:
        return self._events

    @property
    def ended(self) -> str | None:
        """Why the call is over; None while it goes on."""
        return self._ended

    async def play(self, samples: Samples) -> Span:
        """Speaks float32[n] at 24 kHz, in real time; returns when the last packet left, with where it lies.

        ``wait_for`` then looks at events from when this began. Two at once follow one another.
        """
        self._check_open()
        wire = await self._to_wire(samples)
        self._turn_began = len(self._events)
        self._next_of.clear()
        start, end = self._script.push(wire)
        while self._script.sent < end:
            self._check_open()
            await self._script.wait_sent(end)
        start_ms = start * PACKET_MS / self._script.speed
        return Span(start_ms, start_ms + len(samples) * 1000.0 / (SAMPLE_RATE_HZ * self._script.speed))

    async def wait_for(
        self,
        kind: str,
        *,
        timeout_s: float,
        where: Callable[[Mapping[str, Any]], bool] = lambda _event: True,
    ) -> RecordedEvent:
        """The next event of type ``kind`` for which ``where`` holds, received since the last ``play`` began.

        Each event is returned once. Raises ``TimeoutError`` when none came, ``TransportError`` when the call ended.
        """
        async with asyncio.timeout(timeout_s):
            index = max(self._turn_began, self._next_of.get(kind, 0))
            while True:
                while index < len(self._events):
                    found = self._events[index]
                    index += 1
                    if found.type == kind and where(found.event):
                        self._next_of[kind] = index
                        return found
                self._check_open()
                self._news.clear()
                await self._news.wait()

    async def wait_audible(self, *, timeout_s: float) -> float:
        """Waits until the agent is audible; returns since when (ms)."""
        asked_ms = self.now_ms
        async with asyncio.timeout(timeout_s):
            while (audible_ms := self.last_audible_ms) is None or audible_ms < asked_ms:
                self._check_open()
                await asyncio.sleep(PACKET_S)
        return audible_ms

    async def wait_quiet(self, quiet_ms: float, *, timeout_s: float) -> None:
        """Waits until the agent has not been audible for ``quiet_ms``."""
        async with asyncio.timeout(timeout_s):
            while (audible_ms := self.last_audible_ms) is not None and (
                left := audible_ms + quiet_ms - self.now_ms
            ) > 0:
                self._check_open()
                await asyncio.sleep(max(left, 1.0) / 1000.0)

    async def wait_settled(self, after_ms: float, *, answer_timeout_s: float, quiet_ms: float = 800.0) -> bool:
        """Waits until what was said until ``after_ms`` is answered and nobody speaks any more.

        That is: a reply was begun after that moment (or was still open then), every reply is done, and the agent
        has been silent for ``quiet_ms``. Returns False if no such reply began within ``answer_timeout_s`` of it.
        """
        while True:
            self._check_open()
            answered = bool(self._open_replies) or self._last_reply_ms >= after_ms
            audible_ms = self.last_audible_ms
            quiet = audible_ms is None or self.now_ms - audible_ms >= quiet_ms
            if answered and not self._open_replies and quiet and self.now_ms - self._last_reply_ms >= quiet_ms:
                return True
            if not answered and self.now_ms - after_ms > answer_timeout_s * 1000.0:
                return False
            await asyncio.sleep(2 * PACKET_S)

    async def wait_ms(self, duration_ms: float) -> None:
        """Lets the call go on in silence."""
        await self._clock.sleep_until(self._clock.now() + duration_ms / 1000.0)
        self._check_open()

    # --- the recording -----------------------------------------------------------------------------

    def recording(self) -> Recording:
        """Everything so far; also after the call. About 0.2 s of work per minute of call."""
        script = self._script
        duration_ms = self.now_ms if self._ended_ms is None else self._ended_ms
        rate_hz = script.rate_hz * script.speed  # of the sound clock, in real time
        n_samples = max(1, round(duration_ms * rate_hz / 1000.0))
        heard, stats = self._heard(n_samples)
        stereo = np.stack([script.spoken(n_samples), heard], axis=1)
        if rate_hz != SAMPLE_RATE_HZ:
            stereo = soxr.resample(stereo, rate_hz, SAMPLE_RATE_HZ).astype(np.float32)
        stats = WireStats(
            stats.received, stats.lost, stats.late, stats.out_of_order, stats.stalled_ms, script.late_s * 1000.0
        )
        return Recording(stereo, self._settings.listening_delay_ms, tuple(self._events), stats, self._events_dropped)

    # --- inside ------------------------------------------------------------------------------------

    def _keep_event(self, event: Mapping[str, Any]) -> None:
        """Enters one event from the server, now."""
        if len(self._events) >= MAX_EVENTS:
            self._events_dropped += 1
            return
        recorded = RecordedEvent(self.now_ms, event)
        self._events.append(recorded)
        if recorded.type in {"response.created", "response.done"}:
            reply_id = str((event.get("response") or {}).get("id"))
            if recorded.type == "response.created":
                self._open_replies.add(reply_id)
            else:
                self._open_replies.discard(reply_id)
            self._last_reply_ms = recorded.at_ms
        self._news.set()
        if self._on_event is not None:
            self._on_event(recorded)

    def _end(self, reason: str) -> None:
        """The call is over; the first reason given counts."""
        if self._ended is None:
            self._ended, self._ended_ms = reason, self.now_ms
        self._script.end()
        self._news.set()

    def _check_open(self) -> None:
        if self._ended is not None:
            raise TransportError(f"The call is over: {self._ended}.")
        if self._full:
            raise TransportError(f"The call is longer than max_call_s = {self._settings.max_call_s:g} s.")
