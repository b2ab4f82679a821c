"""The scheduler's loop body on virtual time: callers submit while ticks run, and every result is checked."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from duplex.bitrate import LinkReport
from duplex.clock import Timer
from duplex.errors import DuplexError
from duplex.scheduler import (
    Delivery,
    Dropped,
    Ended,
    Ready,
    SchedulerMetrics,
    SchedulerOptions,
    SlotFrame,
    SlotSettings,
    Stepped,
)
from duplex.scheduler.simulated import SimulatedEngine, fold
from duplex.scheduler.ticker import Ticker

FRAME_S = 0.08
FRAME_SAMPLES = 4
OPTIONS = SchedulerOptions(calibrate_ticks=0)


class Simulation:
    """A clock, an engine whose ticks take time on it, and the loop of the scheduler's thread.

    The loop is called only when it asked for it or was signalled, as the thread would be: a lost wake-up shows.
    """

    def __init__(
        self,
        max_slots: int = 8,
        cost_s: Callable[[int], float] = lambda batch_size: 0.01,
        options: SchedulerOptions = OPTIONS,
        metrics: SchedulerMetrics | None = None,
        **engine: Any,
    ) -> None:
        self.now_s = 100.0
        self.engine = SimulatedEngine(
            max_slots, cost_s=cost_s, spend=self.spend, frame_samples=FRAME_SAMPLES, frame_s=FRAME_S, **engine
        )
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._n = 0
        self.wrong: list[AssertionError] = []
        self._next_s = -math.inf
        self.engine.start()
        self.ticker = Ticker(self.engine, options, self, metrics)
        self.ticker.calibrate()

    def now(self) -> float:
        return self.now_s

    def call_at(self, deadline_s: float, callback: Callable[[], None]) -> Timer:
        raise NotImplementedError("the scheduler only asks for the time")

    async def sleep_until(self, deadline_s: float) -> None:
        raise NotImplementedError("the scheduler only asks for the time")

    def at(self, time_s: float, do: Callable[[], None]) -> None:
        self._n += 1
        heapq.heappush(self._events, (time_s, self._n, do))

    def spend(self, seconds: float) -> None:
        """Time passes; what is due in it happens, each at its own instant."""
        until_s = self.now_s + seconds
        while self._events and self._events[0][0] <= until_s:
            time_s, _, do = heapq.heappop(self._events)
            self.now_s = max(self.now_s, time_s)
            do()
        self.now_s = until_s

    def run(self, seconds: float) -> None:
        """The thread's loop for so long."""
        end_s = self.now_s + seconds
        rounds_at_once = 0
        while self.now_s < end_s:
            if self.ticker.board.signal or self._next_s <= self.now_s:
                before_s = self.now_s
                self._next_s = self.ticker.run_once(self.now_s)
                rounds_at_once = rounds_at_once + 1 if self.now_s == before_s else 0
                assert rounds_at_once < 1000, "the loop spins"
                continue
            event_s = self._events[0][0] if self._events else math.inf
            self.spend(max(0.0, min(event_s, self._next_s, end_s) - self.now_s))
        self.check()

    def check(self) -> None:
        """What a scheduler contains, as it must, is not lost on a test."""
        assert not self.wrong, self.wrong
        assert not self.engine.broken_rules, self.engine.broken_rules


def frame(number: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Says which it is."""
    return np.full(FRAME_SAMPLES, number / 1024, np.float32)


class Caller:
    """One call. Frames are numbered from ``first``; every delivery is checked against what was submitted."""

    def __init__(
        self,
        sim: Simulation,
        *,
        settings: SlotSettings = SlotSettings(),  # noqa: B008
        first: int = 0,
        restore: Any = None,
        fork: Caller | None = None,
    ) -> None:
        self.sim = sim
        self.state = self.seed = settings.seed or 0
        self.sent: list[int] = []  # frame numbers by seq
        self.fated = 0  # next seq without a fate
        self.stepped: list[Stepped] = []
        self.dropped: list[Dropped] = []
        self.ready: list[float] = []
        self.ended: DuplexError | None = None
        self.left = False
        self.number = first
        self._begins_at: Callable[[], int] = lambda: self.seed
        if fork is not None:
            self.seed = fork.seed
            self._begins_at = lambda: fork.state
            self.session = fork.session.fork(self.on)
        elif restore is not None:
            self.seed = restore.seed
            self._begins_at = lambda: int(restore.state)
            self.session = sim.ticker.restore(restore, self.on)
        else:
            self.session = sim.ticker.open(settings, self.on)

    def fork(self) -> Caller:
        return Caller(self.sim, fork=self, first=self.number + 100)

    def on(self, delivery: Delivery) -> None:
        try:
            self._on(delivery)
        except AssertionError as wrong:
            self.sim.wrong.append(wrong)

    def _on(self, delivery: Delivery) -> None:
        assert not self.left, "told something after it left"
        assert self.ended is None, "told something after it ended"
        match delivery:
            case Ready():
                self.state = self.seed if self.ready else self._begins_at()  # again: it was made as new
                self.ready.append(self.sim.now_s)
            case Stepped(seq=seq, result=result, arrived_s=arrived_s, done_s=done_s):
                assert seq == self.fated, "a frame was left out or doubled"
                assert arrived_s <= done_s <= self.sim.now_s
                self.fated += 1
                assert self.ready, "stepped before it was ready"
                if result.error is None:
                    samples = frame(self.sent[seq])
                    self.state = fold(self.state, SlotFrame(0, samples))
                    assert result.samples is not None
                    assert np.array_equal(result.samples, samples), "another frame's result"
                    assert result.text_token == self.state, "a slot that saw other frames"
                self.stepped.append(delivery)
            case Dropped(seq=seq, count=count):
                assert seq == self.fated
                assert count > 0
                self.fated += count
                self.dropped.append(delivery)
            case Ended(error=error):
                self.ended = error

    def submit(self, link: LinkReport | None = None) -> bool:
        taken = self.session.submit(frame(self.number), link=link)
        if taken:
            self.sent.append(self.number)
        self.number += 1
        return taken

    def talk(self, seconds: float, phase_s: float = 0.0, skip: Sequence[int] = ()) -> None:
        """A frame every 80 ms from ``phase_s`` on, but those in ``skip``."""
        for i in range(round(seconds / FRAME_S)):
            if i not in skip:
                self.sim.at(self.sim.now_s + phase_s + i * FRAME_S, lambda: self.submit() or None)

    def leave(self) -> None:
        self.session.leave()
        self.left = True

    @property
    def latencies_s(self) -> list[float]:
        return [told.done_s - told.arrived_s for told in self.stepped]

    @property
    def n_dropped(self) -> int:
        return sum(told.count for told in self.dropped)

    def settled(self) -> bool:
        """Every frame has its fate."""
        return self.fated == len(self.sent)


def talking(sim: Simulation, n: int, seconds: float, spread_s: float = 0.0) -> list[Caller]:
    """``n`` callers, ready, whose frames' phases lie evenly in ``spread_s``."""
    callers = [Caller(sim, settings=SlotSettings(seed=i), first=1000 * i) for i in range(n)]
    sim.run(0.02)
    for i, caller in enumerate(callers):
        caller.talk(seconds, phase_s=i * spread_s / n)
    return callers
