"""What a replayed session is given in place of the world: the clock, the line and the wakes of the recording."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from duplex.agent import Agent, AgentCommand, AgentEvent, AgentInfo, AgentSession, AgentSettings, Heard, Preparing
from duplex.clock import Clock, Timer
from duplex.events import Event
from duplex.frames import Image, Packet
from duplex.line import OutPacket, PlayoutReport
from duplex.records.journal import Entry


class ReplayClock:
    """Reads what was read then. Where the session asks more often than it did, the last reading stands."""

    def __init__(self) -> None:
        self._readings: deque[int] = deque()
        self._now_us = 0
        self._sleeper: asyncio.Future[None] | None = None
        self._timers: list[tuple[float, int, _Timer]] = []

    def load(self, readings_us: Sequence[int]) -> None:
        self._readings = deque(readings_us)
        if readings_us:
            self._now_us = readings_us[0]
        while self._timers and self._timers[0][0] <= self._now_us / 1e6:
            heapq.heappop(self._timers)[2].fire()

    def now(self) -> float:
        if self._readings:
            self._now_us = self._readings.popleft()
        return self._now_us / 1e6

    def call_at(self, deadline_s: float, callback: Callable[[], None]) -> Timer:
        timer = _Timer(callback)
        heapq.heappush(self._timers, (deadline_s, id(timer), timer))
        return timer

    async def sleep_until(self, deadline_s: float) -> None:
        self._sleeper = asyncio.get_running_loop().create_future()
        try:
            await self._sleeper
        finally:
            self._sleeper = None

    @property
    def asleep(self) -> bool:
        return self._sleeper is not None

    def wake_up(self) -> None:
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)


class _Timer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback: Callable[[], None] | None = callback

    def fire(self) -> None:
        if self._callback is not None:
            self._callback()

    def cancel(self) -> None:
        self._callback = None


class _ReadOnlyClock:
    """The agent's view: looking at the time takes no reading away from the session."""

    def __init__(self, clock: ReplayClock) -> None:
        self._clock = clock

    def now(self) -> float:
        return self._clock._now_us / 1e6

    def call_at(self, deadline_s: float, callback: Callable[[], None]) -> Timer:
        return self._clock.call_at(deadline_s, callback)

    async def sleep_until(self, deadline_s: float) -> None:
        done = asyncio.Event()
        self._clock.call_at(deadline_s, done.set)
        await done.wait()


class ReplayLine:
    def __init__(self, lead_packets: int) -> None:
        self.lead_packets = lead_packets
        self.closed = False
        self._heard: list[Packet] = []
        self._images: deque[Image | None] = deque()
        self._flushed: deque[int] = deque()
        self._report: PlayoutReport | None = None

    def load(self, entry: Entry) -> None:
        self._heard = entry.heard
        self._images, self._flushed = deque(entry.images), deque(entry.flushed)
        if entry.reports:
            self._report = entry.reports[-1]
        self.closed = self.closed or entry.closed

    def receive(self) -> Sequence[Packet]:
        heard, self._heard = self._heard, []
        return heard

    def take_image(self) -> Image | None:
        return self._images.popleft() if self._images else None

    def send(self, packet: OutPacket) -> None: ...

    def flush(self) -> int:
        return self._flushed.popleft() if self._flushed else 0

    def playout(self) -> PlayoutReport | None:
        return self._report

    def emit(self, event: Event) -> None: ...

    async def close(self, reason: str) -> None:
        self.closed = True


@runtime_checkable
class Settling(Protocol):
    """What the session of an agent that computes on threads of its own needs, to be run anew.

    ``settle`` blocks until everything it was stepped with or told is computed, so that ``collect`` has it. A native
    agent settles what was stepped before the last ``collect``; from the first ``settle`` on it has nothing else.
    """

    def settle(self) -> None: ...


class HeldAgent:
    """An agent whose wakes are the recording's: it is woken where it was then, and nowhere else.

    A native one works at a device's pace: it settles where it had something then, and not sooner.
    """

    def __init__(self, inner: Agent, clock: ReplayClock) -> None:
        self._inner, self._clock = inner, clock
        self._had_something: deque[bool] | None = deque() if inner.info.native else None
        self.wake: Callable[[], None] = lambda: None

    def load(self, entry: Entry) -> None:
        if self._had_something is not None:
            self._had_something.clear()
            self._had_something.extend(bool(events) for events in entry.collected)

    @property
    def info(self) -> AgentInfo:
        return self._inner.info

    async def start(self) -> None:
        await self._inner.start()

    def open(self, settings: AgentSettings, clock: Clock, wake: Callable[[], None]) -> AgentSession:
        self.wake = wake
        mind = self._inner.open(settings, _ReadOnlyClock(self._clock), lambda: None)
        return _SettledMind(mind, self._had_something) if isinstance(mind, Settling) else mind

    async def close(self) -> None:
        await self._inner.close()


class _SettledMind:
    def __init__(self, inner: AgentSession, had_something: deque[bool] | None) -> None:
        self._inner, self._had_something = inner, had_something

    async def wait_ready(self) -> None:
        if isinstance(self._inner, Preparing):
            assert isinstance(self._inner, Settling)
            self._inner.settle()  # at once: no time passes in a replay
            await self._inner.wait_ready()

    def step(self, heard: Heard) -> None:
        self._inner.step(heard)

    def collect(self) -> Sequence[AgentEvent]:
        assert isinstance(self._inner, Settling)
        if self._had_something is None or (self._had_something and self._had_something.popleft()):
            self._inner.settle()
        return self._inner.collect()

    def command(self, command: AgentCommand) -> None:
        self._inner.command(command)

    def close(self) -> None:
        self._inner.close()
