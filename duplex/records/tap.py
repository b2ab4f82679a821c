"""Listening in on a session: its clock, its line and its agent, each wrapped, and its life as journal entries.

The session knows nothing of it. Its clock says when it sleeps and wakes, so where one entry ends and the next
begins; the other wrappers note what passes through them. Two things are done to what passes, so that a replay
gets the very same: times are whole microseconds, and sound is rounded to 16 bits.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from duplex.agent import (
    Agent,
    AgentCommand,
    AgentEvent,
    AgentInfo,
    AgentSession,
    AgentSettings,
    Aside,
    Heard,
    Preparing,
    ReplyAudio,
)
from duplex.clock import Clock, Timer
from duplex.config import SessionConfig
from duplex.errors import ProtocolError
from duplex.events import Event
from duplex.frames import Image, Origin, Packet
from duplex.line import Line, OutPacket, PlayoutReport
from duplex.metrics import Metrics
from duplex.records.journal import CANCEL, REQUEST, START, STOP, TICK, WAKE, Entry, Raised, on_grid
from duplex.requests import Request
from duplex.session import Session

Sink = Callable[[Entry], None]


class Tap:
    """Cuts a session's life into entries and hands each to ``sink`` when the next begins. For one event loop."""

    def __init__(self, sink: Sink) -> None:
        self.entry = Entry(START)
        self.begun = False
        self.resting = False  # the session sleeps; whatever happens now was not begun by a tick
        self.calls: Counter[str] = Counter()  # of the agent's methods, in this entry
        self._sink = sink
        self._stop: str | None = None

    def begin(self, kind: str) -> Entry:
        self._hand_over()
        self.entry = Entry(kind)
        self.calls.clear()
        if kind in (TICK, CANCEL):
            self.resting = False
        return self.entry

    def stop(self, reason: str) -> None:
        """The session was told to end, by itself or from outside: an entry after this one."""
        if not self.begun:
            self.entry.stop = reason
        elif self._stop is None:
            self._stop = reason

    def end(self) -> None:
        self._hand_over()

    def _hand_over(self) -> None:
        self._sink(self.entry)
        if self._stop:
            self._sink(Entry(STOP, stop=self._stop))
            self._stop = ""  # once

    def raised(self, where: str, error: Exception) -> None:
        self.entry.raised = Raised(where, self.calls[where] - 1, type(error).__name__, str(error))


class TappedClock:
    """The session's own clock. Workers of the agent have the one underneath."""

    def __init__(self, inner: Clock, tap: Tap) -> None:
        self._inner, self._tap = inner, tap
        self._thread = threading.get_ident()

    def now(self) -> float:
        now_us = round(self._inner.now() * 1e6)
        if threading.get_ident() == self._thread:
            self._tap.entry.readings_us.append(now_us)
        return now_us / 1e6

    def call_at(self, deadline_s: float, callback: Callable[[], None]) -> Timer:
        return self._inner.call_at(deadline_s, callback)

    async def sleep_until(self, deadline_s: float) -> None:
        self._tap.resting = True
        try:
            await self._inner.sleep_until(deadline_s)
        except BaseException:
            self._tap.begin(CANCEL)
            raise
        self._tap.begin(TICK)


class TappedLine:
    def __init__(self, inner: Line, tap: Tap) -> None:
        self._inner, self._tap = inner, tap

    @property
    def lead_packets(self) -> int:
        return self._inner.lead_packets

    @property
    def closed(self) -> bool:
        closed = self._inner.closed
        self._tap.entry.closed |= closed
        return closed

    def receive(self) -> Sequence[Packet]:
        packets = [_rounded(packet) for packet in self._inner.receive()]
        self._tap.entry.heard.extend(packets)
        return packets

    def take_image(self) -> Image | None:
        image = self._inner.take_image()
        self._tap.entry.images.append(image)
        return image

    def send(self, packet: OutPacket) -> None:
        self._tap.entry.sent.append(packet)
        self._inner.send(packet)

    def flush(self) -> int:
        samples = self._inner.flush()
        self._tap.entry.flushed.append(samples)
        return samples

    def playout(self) -> PlayoutReport | None:
        report = self._inner.playout()
        self._tap.entry.reports.append(report)
        return report

    def emit(self, event: Event) -> None:
        self._tap.entry.told.append(event)
        self._inner.emit(event)

    async def close(self, reason: str) -> None:
        await self._inner.close(reason)


def _rounded(packet: Packet) -> Packet:
    if packet.origin is Origin.SILENCE:
        return packet
    return Packet(packet.pts, on_grid(packet.samples), packet.origin)


class TappedAgent:
    def __init__(self, inner: Agent, tap: Tap) -> None:
        self._inner, self._tap = inner, tap

    @property
    def info(self) -> AgentInfo:
        return self._inner.info

    async def start(self) -> None:
        await self._inner.start()

    def open(self, settings: AgentSettings, clock: Clock, wake: Callable[[], None]) -> AgentSession:
        self._tap.calls["open"] += 1
        try:
            inner = clock._inner if isinstance(clock, TappedClock) else clock
            mind = self._inner.open(settings, inner, wake)
            return TappedPreparingMind(mind, self._tap) if isinstance(mind, Preparing) else TappedMind(mind, self._tap)
        except Exception as error:
            self._tap.raised("open", error)
            raise

    async def close(self) -> None:
        await self._inner.close()


class TappedMind:
    def __init__(self, inner: AgentSession, tap: Tap) -> None:
        self._inner, self._tap = inner, tap

    def step(self, heard: Heard) -> None:
        self._tap.calls["step"] += 1
        try:
            self._inner.step(heard)
        except Exception as error:
            self._tap.raised("step", error)
            raise

    def collect(self) -> Sequence[AgentEvent]:
        if self._tap.resting:
            self._tap.begin(WAKE)
        self._tap.calls["collect"] += 1
        try:
            events = [_on_grid(event) for event in self._inner.collect()]
        except Exception as error:
            self._tap.raised("collect", error)
            raise
        self._tap.entry.collected.append(events)
        return events

    def command(self, command: AgentCommand) -> None:
        self._tap.calls["command"] += 1
        self._tap.entry.commands.append(command)
        try:
            self._inner.command(command)
        except Exception as error:
            self._tap.raised("command", error)
            raise

    def close(self) -> None:
        self._inner.close()


class TappedPreparingMind(TappedMind):
    async def wait_ready(self) -> None:
        assert isinstance(self._inner, Preparing)
        await self._inner.wait_ready()


def _on_grid(event: AgentEvent) -> AgentEvent:
    match event:
        case ReplyAudio(samples=samples) | Aside(samples=samples):
            return replace(event, samples=on_grid(samples))
        case _:
            return event


class TappedSession(Session):
    """A session whose life is told to ``tap``; ``ended`` is called after its last entry."""

    def __init__(
        self,
        tap: Tap,
        *,
        session_id: str,
        line: Line,
        agent: Agent,
        clock: Clock,
        config: SessionConfig,
        settings: AgentSettings,
        metrics: Metrics,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._tap, self._ended = tap, ended
        super().__init__(
            session_id=session_id,
            line=TappedLine(line, tap),
            agent=TappedAgent(agent, tap),
            clock=TappedClock(clock, tap),
            config=config,
            settings=settings,
            metrics=metrics,
        )

    async def run(self) -> None:
        self._tap.begun = True
        try:
            await super().run()
        finally:
            self._tap.end()
            self._ended()

    def request(self, request: Request, client_event_id: str | None = None) -> None:
        if not self._tap.begun:
            return super().request(request, client_event_id)  # which says that it is too early
        entry = self._tap.begin(REQUEST)
        entry.request, entry.event_id = request, client_event_id
        try:
            super().request(request, client_event_id)
        except ProtocolError as error:
            entry.refused = f"{error.code}: {error}"
            raise

    def stop(self, reason: str) -> None:
        self._tap.stop(reason)
        super().stop(reason)
