"""One round of the engine's thread: commands, then a tick if one is due, then what spare time is good for.

The same body runs on the thread in production and, called with the times of a simulation, in tests.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from duplex.clock import Clock
from duplex.errors import AgentFaultError, DuplexError

from .admission import TickTimes
from .board import Board, Call
from .calibrate import calibrate
from .contract import Engine, SlotFrame, SlotResult, SlotSettings, StepTimes, Undoing
from .deadlines import DeadlineLog, TickRecord
from .deliveries import Deliver, Stepped
from .faults import out_of_memory, typed_error
from .isolation import step_in_halves
from .metrics import SchedulerMetrics
from .options import SchedulerOptions
from .session import SchedulerSession
from .shedding import Level
from .slots import Slots
from .ticks import WaitingFrame, due_s, next_arrival_s, tick_at, window_s

log = logging.getLogger("duplex.scheduler")

_MEMORY_EVERY_TICKS = 64
_LATER_S = 1e-6  # an instant past another, so that "overdue" is true there

Picked = Sequence[tuple[Call, WaitingFrame]]


class Ticker:
    """Drives an engine that was started: ``calibrate``, ``run_once`` until the end, ``end_all``, all on one thread.

    ``open`` and ``restore`` may be called from any.
    """

    def __init__(
        self, engine: Engine, options: SchedulerOptions, clock: Clock, metrics: SchedulerMetrics | None = None
    ) -> None:
        self._engine, self._options, self._clock = engine, options, clock
        self.metrics = metrics if metrics is not None else SchedulerMetrics()
        self.log = DeadlineLog()
        self.board = Board(
            options,
            clock,
            self.metrics,
            frame_s=engine.frame_s,
            frame_samples=engine.frame_samples,
            max_slots=engine.max_slots,
            codebooks=engine.codebooks,
            times=TickTimes(engine.batch_sizes),
        )
        self._slots = Slots(engine, self.board, options, clock, self.metrics)
        self._frame_s = engine.frame_s
        self._stale_s = options.stale_frames * engine.frame_s
        self.metrics.codebooks.set(engine.codebooks)
        self._undo = engine.undo if isinstance(engine, Undoing) else None
        self._failures = 0  # of ticks from which nothing came, in a row
        self._measure_in_ticks = 0

    def calibrate(self) -> None:
        """Measures what admission needs to know, before the first call."""
        if self._options.calibrate_ticks:
            calibrate(
                self._engine, self.board.times, self._slots.prefill.times, self._clock, self._options.calibrate_ticks
            )
        self._slots.measure_memory()

    # --- from any thread ------------------------------------------------------------------------

    def open(self, settings: SlotSettings, deliver: Deliver) -> SchedulerSession:
        return SchedulerSession(self.board, self.board.open(settings, deliver))

    def restore(self, snapshot: Any, deliver: Deliver) -> SchedulerSession:
        return SchedulerSession(self.board, self.board.restore(snapshot, deliver))

    # --- one round ------------------------------------------------------------------------------

    def run_once(self, now_s: float) -> float:
        """Does what is due at ``now_s``. Returns when to come round again (at once, if that is not later; ``inf``: only
        when ``board.signal`` says so). Raises ``DuplexError`` when the engine is beyond use."""
        board, slots = self.board, self._slots
        board.signal = False  # first, so that whatever is asked from here on is seen now or signals again
        if board.commands:
            slots.run_commands()
        tick_s = board.times.predict(len(slots.calls), now_s) or 0.0
        window = window_s(self._options.gather_ms / 1e3, tick_s)
        if slots.prefill.starved(now_s):
            slots.read_on(tick_s, window)
        began_s = self._clock.now()
        picked: Picked = ()
        with board.changed:
            at_s, board.awaited = tick_at(slots.calls, began_s, window)
            board.idle = at_s == math.inf
            if at_s <= began_s:
                picked = self._gather(began_s)
                board.tick_began_s = began_s
            dropped = [(call, call.dropped) for call in slots.calls if call.dropped]
            for call, _ in dropped:
                call.dropped = []
        slots.tell_dropped(dropped)
        if picked:
            self._tick(picked, began_s)
            return began_s
        if board.commands or (at_s == math.inf and slots.read_on(tick_s, window)):
            return began_s
        if slots.prefill:
            # The frame that kept us from reading may never come; then there is time after all.
            expected_s = next_arrival_s(slots.calls, began_s, window)
            return min(at_s, expected_s + window + _LATER_S, slots.prefill.starves_at_s)
        return at_s

    def end_all(self, error: DuplexError) -> None:
        """Tells every call that it is over, for ``error``."""
        self._slots.end_all(error)

    def _gather(self, now_s: float) -> Picked:
        """The oldest frame of each call that has one and may be stepped. The lock is held."""
        picked = []
        for call in self._slots.calls:
            if call.held or not call.frames:
                continue
            if len(call.frames) > 1 and (stale := call.drop_stale(now_s, self._stale_s)):
                self.metrics.dropped.labels("stale").inc(stale)
            frame = call.take()
            self._limit(call, frame)
            picked.append((call, frame))
        return picked

    def _limit(self, call: Call, frame: WaitingFrame) -> None:
        """As many codebooks as the device and the call's link are good for."""
        bitrate = call.bitrate.frame()
        if bitrate.limited_by == "nothing":
            return
        self.metrics.fewer_codebooks.labels(bitrate.limited_by).inc()
        wanted = frame.codebooks
        frame.codebooks = bitrate.n_codebooks if wanted is None else min(wanted, bitrate.n_codebooks)

    # --- a tick ---------------------------------------------------------------------------------

    def _tick(self, picked: Picked, began_s: float) -> None:
        frames = [
            SlotFrame(call.key, frame.samples, frame.forced_text, frame.silent, frame.codebooks)
            for call, frame in picked
        ]
        start_s = self._clock.now()
        try:
            results, times = self._engine.step(frames)
            _check(frames, results)
        except Exception as error:
            self._failed(picked, frames, began_s, error)
            return
        done_s = self._clock.now()
        self.board.tick_began_s = None
        self._failures = 0
        late, left_s = self._hand_out(picked, results, began_s, done_s)
        self._count(began_s, len(frames), times, done_s - start_s, late, left_s / self._frame_s)
        for (call, _), result in zip(picked, results, strict=True):
            if result.error is not None:
                self.metrics.faults.labels("slot").inc()
                self._refuse_if_out_of_memory(result.error, done_s)
                self._slots.begin_reading(call)
        self._measure_in_ticks -= 1
        if self._measure_in_ticks <= 0:
            self._measure_in_ticks = _MEMORY_EVERY_TICKS
            self._slots.measure_memory()

    def _hand_out(
        self, picked: Picked, results: Sequence[SlotResult], began_s: float, done_s: float
    ) -> tuple[int, float]:
        """How many were late, and what was left until the first was due (below 0 if it was late)."""
        late, least_left_s = 0, math.inf
        for (call, frame), result in zip(picked, results, strict=True):
            left_s = due_s(began_s, frame.arrived_s, self._frame_s) - done_s
            late_s = max(0.0, -left_s)
            late, least_left_s = late + (left_s < 0), min(least_left_s, left_s)
            self._slots.tell(call, Stepped(frame.seq, result, frame.arrived_s, done_s, late_s))
        return late, least_left_s

    def _failed(self, picked: Picked, frames: Sequence[SlotFrame], began_s: float, error: Exception) -> None:
        """Those whose slots are to blame are told, and made as new; if nobody knows which, all in this tick are."""
        log.error("a tick of %d calls failed: %s", len(picked), error, exc_info=error)
        self.metrics.faults.labels("tick").inc()
        found = self._isolate(frames, error)
        done_s = self._clock.now()
        self.board.tick_began_s = None
        self._refuse_if_out_of_memory(error, done_s)
        results = [
            SlotResult(frame.key, error=typed_error(one, "in a tick")) if isinstance(one, Exception) else one
            for frame, one in zip(frames, found, strict=True)
        ]
        self._hand_out(picked, results, began_s, done_s)
        for (call, _), one, result in zip(picked, found, results, strict=True):
            if result.error is None:
                continue
            try:
                if isinstance(one, Exception):  # else the engine has seen to it
                    self._engine.reset(call.key)
            except Exception as again:
                self._slots.end(call, typed_error(again, "when a slot was reset"))
            else:
                self._slots.begin_reading(call)
        self._slots.measure_memory()
        self._failures = 0 if any(result.error is None for result in results) else self._failures + 1
        if self._failures >= self._options.max_failures:
            typed = typed_error(error, "in a tick")
            raise AgentFaultError(f"The engine failed {self._failures} ticks in a row. The last time: {typed}")

    def _isolate(self, frames: Sequence[SlotFrame], error: Exception) -> Sequence[SlotResult | Exception]:
        """What came of each frame after all."""
        if self._undo is None or isinstance(error, _WrongResultsError):
            return [error] * len(frames)
        try:
            self._undo()
            return step_in_halves(self._step_again, self._undo, frames, error)
        except Exception as again:
            log.error("a tick could not be undone: %s", again, exc_info=again)
            return [error] * len(frames)

    def _step_again(self, frames: Sequence[SlotFrame]) -> Sequence[SlotResult]:
        results, _ = self._engine.step(frames)
        _check(frames, results)
        return results

    def _refuse_if_out_of_memory(self, error: Exception, now_s: float) -> None:
        """Whoever is in goes on; nobody else comes in until it has been quiet for a while."""
        if out_of_memory(error):
            with self.board.changed:
                self.board.shedder.refuse(now_s)
            self.metrics.shed_level.set(self.board.shedder.level)

    def _count(
        self, began_s: float, frames: int, times: StepTimes, engine_s: float, late: int, headroom: float
    ) -> None:
        metrics, board = self.metrics, self.board
        now_s = self._clock.now()
        with board.changed:
            before = board.shedder.level
            if before is Level.NOTHING:  # what a tick takes while nothing is given up
                board.times.observe(times.batch_size, engine_s, now_s)
            else:
                board.times.keep(times.batch_size, now_s)
            board.shedder.tick(now_s, headroom, late > 0)
            level, codebooks = board.shedder.level, board.shedder.policy.ceiling
        if level is not before:
            log.warning("overload: level %d, %d codebooks", level, codebooks)
        metrics.shed_level.set(level)
        metrics.codebooks.set(codebooks)
        metrics.batch_frames.observe(frames)
        metrics.batch_size.set(times.batch_size)
        if late:
            metrics.missed.inc()
            metrics.late.inc(late)
        total_s = self._clock.now() - began_s
        metrics.tick_s.observe(total_s)
        metrics.overhead_s.observe(total_s - engine_s)
        self.log.add(TickRecord(began_s, frames, times.batch_size, engine_s, total_s, late, times.parts_s))
        metrics.utilisation.set(self.log.utilisation(now_s))


class _WrongResultsError(AgentFaultError):
    """An engine that mixes slots up is not asked again."""


def _check(frames: Sequence[SlotFrame], results: Sequence[SlotResult]) -> None:
    """A result must never reach another call."""
    if [frame.key for frame in frames] != [result.key for result in results]:
        raise _WrongResultsError("The engine's results are not those of the frames it was given.")
