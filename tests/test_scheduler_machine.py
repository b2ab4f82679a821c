"""Anything a caller may do, at any moment: nothing is lost, doubled, swapped, out of order or given to another call."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from scheduler_simulation import FRAME_S, OPTIONS, Caller, Simulation

from duplex.errors import AgentFaultError, AgentFullError
from duplex.scheduler import ShedOptions, SlotSettings

SLOTS = 4
LENIENT = OPTIONS.model_copy(
    update={"max_failures": 10**6, "max_utilisation": 100.0, "shed": ShedOptions(window_ticks=10**6, miss_share=0.99)}
)
"""Calls are refused only when all slots are taken, and the engine is never given up."""
which = st.integers(0, SLOTS - 1)


class Calls(RuleBasedStateMachine):
    """``Caller`` checks every delivery; here is what must be true of all calls together."""

    def __init__(self) -> None:
        super().__init__()
        self.sim = Simulation(SLOTS, options=LENIENT, prefill_step_s=0.004)
        self.callers: list[Caller] = []
        self.snapshots: list[Future[Any]] = []
        self.number = 0

    def _live(self) -> list[Caller]:
        self.callers = [caller for caller in self.callers if caller.ended is None and not caller.left]
        return self.callers

    def _pick(self, index: int) -> Caller | None:
        live = self._live()
        return live[index % len(live)] if live else None

    def _add(self, make: Any) -> None:
        self.number += 1
        try:
            caller = make()
        except AgentFullError:
            assert len(self._live()) == SLOTS
        else:
            assert len(self._live()) < SLOTS
            self.callers.append(caller)

    @rule(words=st.sampled_from([0, 0, 1, 30]))
    def open(self, words: int) -> None:
        chosen = SlotSettings(seed=self.number, prompt="word " * words)
        self._add(lambda: Caller(self.sim, settings=chosen, first=1000 * self.number))

    @rule(index=which, frames=st.sampled_from([1, 1, 1, 2, 10]))
    def submit(self, index: int, frames: int) -> None:
        if caller := self._pick(index):
            for _ in range(frames):
                assert caller.submit() or caller.left

    @rule(index=which, delay_s=st.floats(0, 0.1), seconds=st.floats(0.1, 1.0))
    def talk(self, index: int, delay_s: float, seconds: float) -> None:
        if caller := self._pick(index):
            caller.talk(seconds, delay_s)

    @rule(
        seconds=st.sampled_from([0.0, 0.001, 0.005, 0.02, FRAME_S, 0.5]), cost_s=st.sampled_from([0.0, 0.01, 0.07, 0.2])
    )
    def run(self, seconds: float, cost_s: float) -> None:
        self.sim.engine.cost_s = lambda n: cost_s
        self.sim.run(seconds)

    @rule(index=which, delay_s=st.sampled_from([0.0, 0.005, 0.05]))
    def leave(self, index: int, delay_s: float) -> None:
        if caller := self._pick(index):
            self.sim.at(self.sim.now_s + delay_s, caller.leave)

    @rule(index=which, delay_s=st.floats(0, 0.1))
    def reset(self, index: int, delay_s: float) -> None:
        if caller := self._pick(index):
            self.sim.at(self.sim.now_s + delay_s, lambda: caller.session.reset() and None)

    @rule(index=which, cancel=st.booleans())
    def snapshot(self, index: int, cancel: bool) -> None:
        if caller := self._pick(index):
            future = caller.session.snapshot()
            if cancel:
                future.cancel()
            self.snapshots.append(future)

    @precondition(lambda self: self.snapshots)
    @rule(index=which)
    def restore(self, index: int) -> None:
        future = self.snapshots[index % len(self.snapshots)]
        if future.done() and not future.cancelled() and future.exception() is None:
            self._add(lambda: Caller(self.sim, restore=future.result(), first=1000 * self.number))

    @rule(index=which)
    def fork(self, index: int) -> None:
        if caller := self._pick(index):
            self._add(caller.fork)

    @rule(tick=st.booleans(), index=which)
    def fail(self, tick: bool, index: int) -> None:
        if tick:
            self.sim.engine.step_error = RuntimeError("a bad tick")
        elif self.sim.engine.ticks:
            keys = self.sim.engine.ticks[-1]
            self.sim.engine.slot_errors[keys[index % len(keys)]] = AgentFaultError("a bad slot")

    @invariant()
    def places_are_counted(self) -> None:
        self.sim.check()
        live = self._live()
        assert self.sim.ticker.board.used == len(live)
        assert self.sim.engine.live <= SLOTS
        assert all(caller.session.waiting <= OPTIONS.queue_frames for caller in live)

    def teardown(self) -> None:
        self.sim.engine.cost_s = lambda n: 0.01
        self.sim.run(10.0)
        for caller in self._live():
            assert caller.settled(), "a frame without a fate"
            assert caller.ready
        assert self.sim.engine.live == len(self.callers)
        assert not self.sim.ticker.board.commands
        assert all(future.done() for future in self.snapshots)
        self.sim.ticker.end_all(AgentFaultError("over"))
        assert all(caller.ended is not None for caller in self.callers)


Calls.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestCalls = Calls.TestCase
