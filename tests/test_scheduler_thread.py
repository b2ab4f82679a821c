"""The scheduler's real thread, with an engine that costs nothing: nothing hangs, and everything is on one thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from duplex.errors import AgentError, AgentFaultError, AgentFullError, WeightsMissingError
from duplex.restarts import Restarts
from duplex.scheduler import (
    Delivery,
    Dropped,
    Ended,
    Ready,
    Scheduler,
    SchedulerOptions,
    ShedOptions,
    SlotSettings,
    Stepped,
)
from duplex.scheduler.session import SchedulerSession
from duplex.scheduler.simulated import SimulatedEngine

LIMIT_S = 20.0
"""Until a test gives up waiting."""
PATIENT = SchedulerOptions(
    queue_frames=1000,
    stale_frames=1e9,
    max_utilisation=100.0,
    stall_limit_s=1e9,
    shed=ShedOptions(window_ticks=10**6, miss_share=0.99),
)
"""However slow this machine is, nothing is given up."""
FRAME = np.full(1920, 0.25, np.float32)


class Waiting:
    """What a call was told, and a way to wait for more of it."""

    def __init__(self) -> None:
        self.told: list[Delivery] = []
        self._changed = threading.Condition()

    def __call__(self, delivery: Delivery) -> None:
        assert threading.current_thread().name == "duplex-engine"
        with self._changed:
            self.told.append(delivery)
            self._changed.notify_all()

    def until(self, kind: type[Delivery], n: int = 1) -> list[Delivery]:
        def enough() -> bool:
            return sum(isinstance(told, kind) for told in self.told) >= n

        with self._changed:
            assert self._changed.wait_for(enough, LIMIT_S), f"no {kind.__name__}: {self.told}"
            return [told for told in self.told if isinstance(told, kind)]


def token(told: Delivery) -> int | None:
    assert isinstance(told, Stepped)
    return told.result.text_token


def until_taken(scheduler: Scheduler, deliver: Waiting) -> SchedulerSession:
    """A slot, as soon as calls are taken again."""
    deadline_s = time.monotonic() + LIMIT_S
    while True:
        try:
            return scheduler.open(SlotSettings(), deliver)
        except AgentFullError:
            assert time.monotonic() < deadline_s
            time.sleep(1e-3)


@contextmanager
def running(engine: SimulatedEngine, options: SchedulerOptions | None = None) -> Iterator[Scheduler]:
    scheduler = Scheduler(engine, options if options is not None else PATIENT)
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.close(LIMIT_S)
        assert engine.closed


def test_four_calls_on_a_real_thread() -> None:
    engine = SimulatedEngine(8)
    with running(engine) as scheduler:
        calls = [Waiting() for _ in range(4)]
        sessions = [scheduler.open(SlotSettings(seed=i, prompt="a few words"), call) for i, call in enumerate(calls)]
        for call in calls:
            call.until(Ready)
        for n in range(1, 51):  # one at a time, so that every wake-up counts
            for session, call in zip(sessions, calls, strict=True):
                assert session.submit(FRAME)
                call.until(Stepped, n)
        assert sessions[0].snapshot().result(LIMIT_S) is not None
        sessions[0].reset().result(LIMIT_S)
        calls[0].until(Ready, 2)
        copy = Waiting()
        sessions[1].fork(copy).submit(FRAME)
        sessions[1].submit(FRAME)
        assert token(copy.until(Stepped)[0]) == token(calls[1].until(Stepped, 51)[-1])
        assert len({token(call.until(Stepped, 50)[49]) for call in calls}) == 4
        sessions[3].leave()
        assert scheduler.deadlines.results >= 200
    assert all(isinstance(call.told[-1], Ended) for call in (*calls[:3], copy))
    assert not any(isinstance(told, Ended) for told in calls[3].told)
    with pytest.raises(AgentFaultError, match="takes no calls"):
        scheduler.open(SlotSettings(), Waiting())


def test_frames_from_many_threads_at_once() -> None:
    engine = SimulatedEngine(8)
    with running(engine, PATIENT) as scheduler:
        calls = [Waiting() for _ in range(8)]

        def talk(call: Waiting) -> None:
            session = scheduler.open(SlotSettings(), call)
            for _ in range(300):
                session.submit(FRAME)

        threads = [threading.Thread(target=talk, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        for call in calls:
            told = call.until(Stepped, 300)
            assert [each.seq for each in told] == list(range(300))  # type: ignore[union-attr]
        assert not any(isinstance(told, Dropped) for call in calls for told in call.told)


def test_an_engine_that_does_not_start_says_why() -> None:
    engine = SimulatedEngine()
    engine.start_error = WeightsMissingError("Run: duplex models pull moshi")
    scheduler = Scheduler(engine)
    with pytest.raises(AgentFullError, match="still being loaded"):
        scheduler.open(SlotSettings(), Waiting())
    with pytest.raises(WeightsMissingError, match="models pull"):
        scheduler.start()
    assert engine.closed
    scheduler.close()
    with pytest.raises(AgentFaultError, match="models pull"):
        scheduler.open(SlotSettings(), Waiting())


def test_closing_with_work_in_flight_tells_everybody() -> None:
    entered, go_on = threading.Event(), threading.Event()

    def spend(seconds: float) -> None:
        if seconds == 1.0:
            entered.set()
            assert go_on.wait(LIMIT_S)

    engine = SimulatedEngine(4, cost_s=lambda n: 1.0, spend=spend)
    scheduler = Scheduler(engine, PATIENT.model_copy(update={"calibrate_ticks": 0}))
    scheduler.start()
    call, waiting = Waiting(), Waiting()
    session = scheduler.open(SlotSettings(), call)
    call.until(Ready)
    session.submit(FRAME)
    assert entered.wait(LIMIT_S)
    session.submit(FRAME)  # waits behind the tick that runs
    future = session.snapshot()
    scheduler.open(SlotSettings(), waiting)
    with pytest.raises(AgentFaultError, match="did not finish its tick within 0 s"):
        scheduler.close(0)
    with pytest.raises(AgentFaultError, match="stopping"):
        scheduler.open(SlotSettings(), Waiting())
    go_on.set()
    scheduler.close(LIMIT_S)
    assert [type(told) for told in call.told] == [Ready, Stepped, Ended]
    assert [type(told) for told in waiting.told] == [Ended]
    with pytest.raises(AgentError, match="stopping"):
        future.result(LIMIT_S)
    assert not session.submit(FRAME)
    session.leave()  # harmless
    with pytest.raises(AgentError, match="gone"):
        session.snapshot().result(0)


@pytest.mark.parametrize("crash", [SystemExit("out of nowhere"), RuntimeError("a bug of ours")])
def test_a_thread_that_crashes_leaves_nobody_waiting(crash: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SimulatedEngine(4)
    scheduler = Scheduler(engine, PATIENT.model_copy(update={"restarts": 0}))
    scheduler.start()
    calls = [Waiting(), Waiting()]
    sessions = [scheduler.open(SlotSettings(), call) for call in calls]
    for call in calls:
        call.until(Ready)
    if isinstance(crash, SystemExit):
        engine.step_error = crash
    else:
        monkeypatch.setattr("duplex.scheduler.ticker.tick_at", lambda *_: (_ for _ in ()).throw(crash))
    sessions[0].submit(FRAME)
    for call in calls:
        (ended,) = call.until(Ended)
        assert isinstance(ended, Ended)
        assert isinstance(ended.error, AgentFaultError)
    scheduler.close(LIMIT_S)
    assert engine.closed
    with pytest.raises(AgentFaultError, match="takes no calls"):
        scheduler.open(SlotSettings(), Waiting())
    with pytest.raises(AgentError):
        sessions[1].reset().result(LIMIT_S)


@pytest.mark.parametrize("starts_that_fail", [0, 2])
def test_an_engine_that_ended_is_started_again_and_takes_calls(starts_that_fail: int) -> None:
    engine = SimulatedEngine(4)
    options = PATIENT.model_copy(update={"restart_pause_s": 1e-3})
    with running(engine, options) as scheduler:
        first, fails = Waiting(), iter(range(starts_that_fail))
        session = scheduler.open(SlotSettings(), first)
        first.until(Ready)
        begin = engine.start

        def start() -> None:
            if next(fails, None) is not None:
                raise RuntimeError("the device is not there yet")
            begin()

        engine.start = start  # type: ignore[method-assign]
        engine.step_error = SystemExit("out of nowhere")
        session.submit(FRAME)
        first.until(Ended)
        assert not session.submit(FRAME)
        second = Waiting()
        again = until_taken(scheduler, second)
        second.until(Ready)
        again.submit(FRAME)
        second.until(Stepped)
        assert engine.starts == 2
        assert not engine.broken_rules
        assert scheduler._metrics.restarts._value.get() == 1
        assert scheduler._metrics.slots_used._value.get() == 1, "the calls before are forgotten"


def test_an_engine_that_does_not_start_again_is_given_up() -> None:
    engine = SimulatedEngine(4)
    scheduler = Scheduler(engine, PATIENT.model_copy(update={"restart_pause_s": 1e-3}))
    scheduler.start()
    call = Waiting()
    session = scheduler.open(SlotSettings(), call)
    call.until(Ready)
    engine.start_error = RuntimeError("the device fell off the bus")
    engine.step_error = SystemExit("out of nowhere")
    session.submit(FRAME)
    call.until(Ended)
    assert scheduler._thread is not None
    scheduler._thread.join(LIMIT_S)
    with pytest.raises(AgentFaultError, match="fell off the bus"):
        scheduler.open(SlotSettings(), Waiting())
    scheduler.close(LIMIT_S)
    assert engine.closed


def test_closing_does_not_wait_for_a_restart() -> None:
    engine = SimulatedEngine(4)
    scheduler = Scheduler(engine, PATIENT.model_copy(update={"restart_pause_s": 1e6}))
    scheduler.start()
    call = Waiting()
    session = scheduler.open(SlotSettings(), call)
    call.until(Ready)
    engine.step_error = SystemExit("out of nowhere")
    session.submit(FRAME)
    call.until(Ended)
    scheduler.close(LIMIT_S)
    with pytest.raises(AgentFaultError, match="stopping"):
        scheduler.open(SlotSettings(), Waiting())


def test_pauses_between_restarts_double_and_a_minute_that_went_well_ends_the_row() -> None:
    again = Restarts(0.5, calm_s=60.0, limit=3)
    assert [again.pause_s(lived_s) for lived_s in (1e4, 0.0, 59.0, 0.0)] == [0.5, 1.0, 2.0, None]
    assert again.pause_s(60.0) == 0.5


def test_close_is_harmless_before_a_start_and_twice() -> None:
    scheduler = Scheduler(SimulatedEngine())
    scheduler.close()
    with pytest.raises(AgentError, match="started once"):
        scheduler.start()
    with running(SimulatedEngine()) as scheduler:
        scheduler.close(LIMIT_S)
        with pytest.raises(AgentError, match="started once"):
            scheduler.start()
