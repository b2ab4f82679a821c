"""The scheduler's pure parts: when a tick begins, what is late, who is let in, what is given up."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duplex.scheduler import Memory, ShedOptions
from duplex.scheduler.admission import TickTimes, no_room
from duplex.scheduler.deadlines import DeadlineLog, TickRecord, spread
from duplex.scheduler.prefill import SliceTimes
from duplex.scheduler.shedding import Level, Shedder
from duplex.scheduler.ticks import (
    Lane,
    WaitingFrame,
    due_s,
    next_arrival_s,
    prefill_budget_s,
    tick_at,
    window_s,
)

FRAME_S = 0.08


def lane(*arrived_s: float, expected_s: float | None = None, held: bool = False) -> Lane:
    made = Lane(limit=4, frame_s=FRAME_S, held=held)
    for seq, at_s in enumerate(arrived_s):
        made.put(WaitingFrame(seq, None, at_s))  # type: ignore[arg-type]
    if expected_s is not None:
        made.expected_s = expected_s
    return made


# --- ticks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lanes", "expected"),
    [
        ([], (math.inf, 0)),
        ([lane()], (math.inf, 0)),
        ([lane(10.0, held=True)], (math.inf, 0)),
        ([lane(10.0)], (10.001, 0)),  # alone: at once
        ([lane(10.0), lane(10.001)], (10.001, 0)),  # all are there
        ([lane(10.0), lane(expected_s=10.002)], (10.004, 1)),  # soon
        ([lane(10.0), lane(expected_s=10.006)], (10.001, 0)),  # too late to be waited for
        ([lane(10.0), lane(expected_s=9.998)], (10.004, 1)),  # a little overdue
        ([lane(10.0), lane(expected_s=9.99)], (10.001, 0)),  # overdue: it may never come
        ([lane(10.0), lane(expected_s=10.002, held=True)], (10.001, 0)),
        ([lane(9.99), lane(expected_s=10.002)], (10.001, 0)),  # waited long enough already
        ([lane(10.0), lane(expected_s=10.002), lane(expected_s=10.003)], (10.004, 2)),
    ],
)
def test_when_a_tick_begins(lanes: list[Lane], expected: tuple[float, int]) -> None:
    assert tick_at(lanes, 10.001, 0.004) == (pytest.approx(expected[0]), expected[1])
    assert sum(each.awaited for each in lanes) == expected[1]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.booleans(), st.booleans()), max_size=8), st.floats(1, 2))
def test_no_frame_waits_longer_than_the_window(drawn: list[tuple[float, float, bool, bool]], now_s: float) -> None:
    lanes = [lane(*([at_s] if has else []), expected_s=due, held=held) for at_s, due, has, held in drawn]
    at_s, awaited = tick_at(lanes, now_s, 0.004)
    waiting = [each.frames[0].arrived_s for each in lanes if each.frames and not each.held]
    assert at_s == math.inf if not waiting else now_s <= at_s <= max(now_s, min(waiting) + 0.004)
    assert awaited == 0 or at_s > now_s


def test_the_window_is_half_a_tick_at_most() -> None:
    assert window_s(0.004, 0.002) == 0.001
    assert window_s(0.004, 0.05) == 0.004


def test_next_arrival() -> None:
    assert next_arrival_s([], 5.0, 0.004) == math.inf
    assert next_arrival_s([lane(expected_s=5.05), lane(expected_s=5.02)], 5.0, 0.004) == 5.02
    assert next_arrival_s([lane(expected_s=5.05), lane(expected_s=4.9)], 5.0, 0.004) == 5.05
    assert next_arrival_s([lane(4.99)], 5.0, 0.004) == 5.0
    assert next_arrival_s([lane(4.99, held=True)], 5.0, 0.004) == math.inf


def test_a_frame_is_due_one_frame_after_its_tick_began_and_two_after_it_came() -> None:
    assert due_s(10.0, 10.0, FRAME_S) == pytest.approx(10.08)
    assert due_s(10.0, 9.95, FRAME_S) == pytest.approx(10.08)
    assert due_s(10.0, 9.9, FRAME_S) == pytest.approx(10.06)


@given(st.lists(st.sampled_from(["put", "take", "stale", "all"]), max_size=60))
def test_every_frame_of_a_lane_is_taken_or_dropped_once_and_in_order(actions: list[str]) -> None:
    queue, fates, told = Lane(limit=3, frame_s=FRAME_S), [], []

    def tell() -> None:
        for first, n, _ in queue.dropped:
            told.append(n)
            fates.extend(range(first, first + n))
        queue.dropped = []

    for now, action in enumerate(actions):
        if action == "put":
            queue.put(WaitingFrame(queue.next_seq, None, float(now)))  # type: ignore[arg-type]
            assert len(queue.frames) <= 3
        elif action == "stale":
            queue.drop_stale(float(now), 5.0)
        elif action == "all":
            queue.drop_all("reset")
        elif queue.frames:
            tell()
            fates.append(queue.take().seq)
    tell()
    assert fates + [waiting.seq for waiting in queue.frames] == list(range(queue.next_seq))
    assert all(n > 0 for n in told)


def test_a_flood_is_told_as_one_stretch() -> None:
    queue = Lane(limit=4, frame_s=FRAME_S)
    for seq in range(1000):
        queue.put(WaitingFrame(seq, None, 0.0))  # type: ignore[arg-type]
    assert queue.dropped == [(0, 996, "full")]


def test_a_frame_alone_is_never_stale() -> None:
    queue = lane(0.0)
    assert queue.drop_stale(100.0, 0.16) == 0
    queue.put(WaitingFrame(1, None, 99.0))  # type: ignore[arg-type]
    queue.put(WaitingFrame(2, None, 99.5))  # type: ignore[arg-type]
    assert queue.drop_stale(100.0, 0.16) == 2
    assert [waiting.seq for waiting in queue.frames] == [2]


@pytest.mark.parametrize(
    ("now_s", "next_s", "starves_at_s", "budget_s"),
    [
        (10.0, math.inf, 10.05, 0.01),  # nobody is expected: a slice
        (10.0, 10.004, 10.05, 0.004),  # until the next frame
        (10.0, 10.0, 10.05, 0.0),  # a frame waits
        (10.06, 10.06, 10.05, 0.01),  # nothing for a whole frame: now, whoever waits
    ],
)
def test_prefill_budget(now_s: float, next_s: float, starves_at_s: float, budget_s: float) -> None:
    assert prefill_budget_s(
        now_s, next_s=next_s, starves_at_s=starves_at_s, slice_s=0.01, frame_s=FRAME_S, tick_s=0.05
    ) == pytest.approx(budget_s)


@pytest.mark.parametrize(
    ("fixed_s", "step_s", "budget_s", "tried"),
    [
        (0.0, 0.001, 0.01, [1, 2, 4, 8, 8, 8]),  # in proportion to its steps
        (0.008, 0.00001, 0.01, [1, 2, 4, 8, 16, 32, 64, 128, 128]),  # hardly
        (0.02, 0.0, 0.01, [1, 0, 0]),  # too long in any case
    ],
)
def test_a_slice_is_as_long_as_fits(fixed_s: float, step_s: float, budget_s: float, tried: list[int]) -> None:
    times = SliceTimes()
    for steps in tried:
        assert times.fit(budget_s) == steps
        times.observe(max(1, steps), fixed_s + max(1, steps) * step_s)


def test_a_slice_that_was_slow_once_is_tried_again() -> None:
    times = SliceTimes()
    for steps in (1, 2, 4):
        times.observe(steps, 0.001 * steps)
    times.observe(4, 0.5)
    assert times.fit(0.004) == 4  # two of two steps take no longer


# --- deadlines -------------------------------------------------------------------------------------


def record(began_s: float, total_s: float, late: int = 0) -> TickRecord:
    return TickRecord(began_s, 2, 2, total_s * 0.9, total_s, late, {})


def test_percentiles_by_nearest_rank() -> None:
    values = [float(i) for i in range(1, 101)]
    assert spread(values) == spread(reversed(values))
    assert (spread(values).p50, spread(values).p95, spread(values).p99, spread(values).max) == (50, 95, 99, 100)
    assert spread([7.0]).p50 == spread([7.0]).p99 == 7.0
    assert spread([]).max == 0.0


def test_the_log_counts_and_forgets() -> None:
    log = DeadlineLog(keep=10)
    for i in range(100):
        log.add(record(i * 0.1, 0.05, late=2 if i % 10 == 0 else 0))
    assert (log.ticks, log.missed_ticks, log.late_results, log.results) == (100, 10, 20, 200)
    assert log.miss_share == 0.1
    assert len(log.records()) == 10
    assert log.total().p50 == 0.05
    assert log.overhead().max == pytest.approx(0.005)
    assert log.utilisation(9.95) == pytest.approx(0.5, abs=0.02)
    assert log.utilisation(20.0) == 0.0


# --- admission -------------------------------------------------------------------------------------


def test_a_size_that_was_not_run_is_put_on_a_line() -> None:
    times = TickTimes((1, 2, 4, 8, 16))
    assert times.predict(1, 0.0) is None
    times.observe(1, 0.010, 0.0)
    assert times.predict(1, 0.0) == 0.010
    assert times.predict(3, 0.0) == pytest.approx(0.040)  # in proportion: too much, and the only thing known
    times.observe(2, 0.011, 0.0)
    assert times.predict(3, 0.0) == pytest.approx(0.013)
    assert times.predict(16, 0.0) == pytest.approx(0.025)
    times.calibrate(8, [0.012])
    assert times.predict(3, 0.0) == 0.012  # no longer than twice as many
    assert times.predict(9, 0.0) == pytest.approx(0.012 + 8 * 0.001 / 6)


def test_few_measurements_count_by_their_median_many_by_their_95th_percentile() -> None:
    times = TickTimes((1,))
    for took_s in (0.01, 0.01, 0.5):
        times.observe(1, took_s, 0.0)
    assert times.predict(1, 0.0) == 0.01
    for i in range(64):
        times.observe(1, 0.02 if i % 10 else 0.05, 0.0)
    assert times.predict(1, 0.0) == 0.05
    for _ in range(64):
        times.observe(1, 0.02, 0.0)
    assert times.predict(1, 0.0) == 0.02


def test_a_slow_time_is_forgotten_where_nothing_is_measured_any_more() -> None:
    times = TickTimes((1, 2))
    times.calibrate(2, [0.03, 0.01, 0.02])
    assert times.predict(2, 0.0) == 0.02
    times.observe(1, 0.2, 10.0)
    times.observe(2, 0.3, 10.0)
    assert (times.predict(1, 70.0), times.predict(2, 70.0)) == (0.2, 0.3)
    assert (times.predict(1, 70.1), times.predict(2, 70.1)) == (0.02, 0.02)
    times.observe(2, 0.04, 80.0)
    assert times.predict(2, 80.0) == 0.04


def reason(**given: object) -> str | None:
    facts: dict[str, object] = {
        "used": 3,
        "max_slots": 8,
        "predicted_s": 0.05,
        "limit_s": 0.068,
        "memory": Memory(weights=0, kv=0, per_slot=10, free=100),
        "used_when_measured": 3,
        "reserve_bytes": 50.0,
    }
    refusal = no_room(**{**facts, **given})  # type: ignore[arg-type]
    return None if refusal is None else refusal[0]


def test_why_a_call_does_not_fit() -> None:
    assert reason() is None
    assert reason(used=8) == "slots"
    assert reason(predicted_s=0.07) == "headroom"
    assert reason(predicted_s=None) is None
    assert reason(used=7) is None  # 40 of the 50 are taken since: 10 are left
    assert reason(used=7, reserve_bytes=51.0) == "memory"
    assert reason(used=1, used_when_measured=6, memory=Memory(0, 0, 10, 11)) is None  # five left since
    assert reason(memory=Memory(0, 0, 0, 0)) is None
    assert reason(memory=None) is None


# --- shedding --------------------------------------------------------------------------------------


def drive(shedder: Shedder, from_s: float, seconds: float, every: int) -> float:
    """Ticks every frame, each ``every``-th of them late (0: none, and with time to spare); when they end."""
    for i in range(round(seconds / FRAME_S)):
        from_s += FRAME_S
        late = every > 0 and i % every == 0
        shedder.tick(from_s, -0.1 if late else 0.5, late)
    return from_s


def test_a_single_stall_gives_nothing_up() -> None:
    shedder = Shedder(ShedOptions(), 8)
    now_s = drive(shedder, 0.0, 10, 0)
    now_s = drive(shedder, now_s, 4 * FRAME_S, 1)
    drive(shedder, now_s, 4, 0)
    assert (shedder.level, shedder.policy.ceiling) == (Level.NOTHING, 8)


def test_ticks_that_are_only_just_in_time_take_a_few_codebooks() -> None:
    shedder = Shedder(ShedOptions(), 8)
    for k in range(12):
        shedder.tick(k * FRAME_S, 0.04, False)
    assert (shedder.level, shedder.policy.ceiling) == (Level.CODEBOOKS, 6)


def test_misses_take_codebooks_then_calls_and_quiet_gives_them_back() -> None:
    shedder = Shedder(ShedOptions(), 8)
    now_s = drive(shedder, 0.0, 6 * FRAME_S, 1)
    assert (shedder.level, shedder.policy.ceiling) == (Level.CODEBOOKS, 4)
    now_s = drive(shedder, now_s, 5 * FRAME_S, 1)
    assert shedder.level is Level.CODEBOOKS  # its own ticks decide
    now_s = drive(shedder, now_s, FRAME_S, 1)
    assert (shedder.level, shedder.policy.ceiling) == (Level.CALLS, 4)  # never fewer than half
    now_s = drive(shedder, now_s, 10.0, 1)
    assert shedder.level is Level.CALLS
    now_s = drive(shedder, now_s, 4.9, 0)
    assert (shedder.level, shedder.policy.ceiling) == (Level.CALLS, 6)  # one for every two seconds of time to spare
    now_s = drive(shedder, now_s, 0.2, 0)
    assert shedder.level is Level.CODEBOOKS
    drive(shedder, now_s, 10.0, 0)
    assert shedder.level is Level.NOTHING


def test_without_any_ticks_everything_is_given_back() -> None:
    shedder = Shedder(ShedOptions(), 8)
    now_s = drive(shedder, 0.0, 3.0, 1)
    assert shedder.level is Level.CALLS
    shedder.settle(now_s + 20.0)
    assert (shedder.level, shedder.policy.ceiling) == (Level.NOTHING, 8)


def test_rare_misses_take_nothing_more() -> None:
    shedder = Shedder(ShedOptions(), 8)
    now_s = drive(shedder, 0.0, 6 * FRAME_S, 1)
    drive(shedder, now_s, 60.0, 20)  # 5 %
    assert not shedder.refusing
    assert shedder.policy.ceiling >= 4


def test_a_load_that_just_does_not_fit_is_tried_ever_more_rarely() -> None:
    """It fits what is in, and not the calls that come as soon as they may."""
    shedder, now_s, tries = Shedder(ShedOptions(), 8), 0.0, []
    for _ in range(12_000):
        before = shedder.refusing
        now_s += FRAME_S
        shedder.tick(now_s, 0.0, missed=not shedder.refusing)
        if before and not shedder.refusing:
            tries.append(now_s)
    waits = [round(b - a) for a, b in pairwise(tries)]
    assert all(b >= a - 1 for a, b in pairwise(waits))
    assert waits[:4] == [11, 21, 41, 80]
    assert waits[-1] >= 80
    assert len(tries) < 20
    shedder.settle(now_s + 1000.0)
    assert (shedder.level, shedder.patience_s) == (Level.NOTHING, 5.0)


def test_running_out_of_memory_refuses_calls_and_takes_nothing_from_those_who_are_in() -> None:
    shedder = Shedder(ShedOptions(), 8)
    shedder.refuse(1.0)
    assert (shedder.level, shedder.policy.ceiling) == (Level.CALLS, 8)


@pytest.mark.parametrize(("codebooks", "fewest"), [(1, 1), (7, 4), (8, 4), (32, 16)])
def test_a_call_keeps_half_of_its_codebooks(codebooks: int, fewest: int) -> None:
    assert Shedder(ShedOptions(), codebooks).policy.options.fewest == fewest
