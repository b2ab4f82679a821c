"""The engine's side of every call: its slot, its prompt, what its owner asked for, and what goes wrong with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from duplex.clock import Clock
from duplex.errors import AgentError, AgentFullError, DuplexError

from .board import Board, Call, Command, Kind, Phase
from .contract import Engine, SlotSettings
from .deliveries import Delivery, Dropped, Ended, Ready
from .faults import out_of_memory, typed_error
from .metrics import SchedulerMetrics
from .options import SchedulerOptions
from .prefill import Prefiller
from .ticks import next_arrival_s

log = logging.getLogger("duplex.scheduler")


class Slots:
    """``calls``: those that have a slot. Everything runs on the engine's thread, between two ticks."""

    def __init__(
        self, engine: Engine, board: Board, options: SchedulerOptions, clock: Clock, metrics: SchedulerMetrics
    ) -> None:
        self._engine, self._board, self._clock, self._metrics = engine, board, clock, metrics
        self._command_budget_s = options.command_budget_ms / 1e3
        self._retry_after_s = options.retry_after_s
        self.calls: list[Call] = []
        self.prefill = Prefiller(options.prefill_slice_ms / 1e3, engine.frame_s)
        self._do: Mapping[Kind, Callable[[Call, Any], Any]] = {
            Kind.JOIN: self._join,
            Kind.LEAVE: self._leave,
            Kind.RESET: self._reset,
            Kind.SNAPSHOT: self._snapshot,
            Kind.RESTORE: self._restore,
            Kind.FORK: self._fork,
        }

    # --- telling --------------------------------------------------------------------------------

    def tell(self, call: Call, delivery: Delivery) -> None:
        if call.gone:
            return
        try:
            call.deliver(delivery)
        except Exception as error:  # an owner that fails harms nobody else
            self._metrics.faults.labels("delivery").inc()
            log.error("a call could not be told of %s: %s", type(delivery).__name__, error, exc_info=error)

    def tell_dropped(self, dropped: list[tuple[Call, list[tuple[int, int, str]]]]) -> None:
        for call, stretches in dropped:
            for seq, count, reason in stretches:
                self.tell(call, Dropped(seq, count, reason))

    # --- beginning and ending -------------------------------------------------------------------

    def begin_reading(self, call: Call) -> None:
        """A slot that is new, or as new: its prompt first, if it has one."""
        if call.gone:
            return
        with self._board.changed:
            call.phase = Phase.READING
            call.hold_or_not()
        try:
            left = self._engine.prefill(call.key, 0)
        except Exception as error:
            self.end(call, typed_error(error, "when it read a prompt"))
            return
        if left:
            self.prefill.add(call, left, self._clock.now())
        else:
            self._ready(call)

    def _ready(self, call: Call) -> None:
        took_s = self._clock.now() - call.asked_s
        self._metrics.prefill_s.observe(took_s)
        self.tell(call, Ready(took_s))
        with self._board.changed:
            call.phase = Phase.READY
            call.hold_or_not()

    def end(self, call: Call, error: DuplexError) -> None:
        """The call cannot go on."""
        self.tell(call, Ended(error))
        with self._board.changed:
            if not call.gone:
                self._board.remove(call)
        self._give_back(call)

    def _give_back(self, call: Call) -> None:
        self.prefill.remove(call)
        if call in self.calls:
            self.calls.remove(call)
            try:
                self._engine.leave(call.key)
            except Exception as error:
                self._metrics.faults.labels("leave").inc()
                log.error("a slot could not be given back: %s", error, exc_info=error)

    def end_all(self, error: DuplexError) -> None:
        """The last thing: every call is told, every command answered. The engine is not asked any more."""
        board = self._board
        with board.changed:
            board.ended = error
            commands = list(board.commands)
            board.commands.clear()
        for command in commands:
            if command.future.set_running_or_notify_cancel():
                command.future.set_exception(error)
        new = [command.call for command in commands if command.kind in _NEW]
        for call in (*self.calls, *new):
            self.tell(call, Ended(error))
            with board.changed:
                if not call.gone:
                    board.remove(call)
        self.calls.clear()
        self.prefill.clear()

    # --- spare time -----------------------------------------------------------------------------

    def read_on(self, tick_s: float, window_s: float) -> bool:
        """Reads a slice of the first joining call's prompt if there is time before the next frame. True: it did."""
        call = self.prefill.first()
        if call is None:
            return False
        now_s = self._clock.now()
        with self._board.changed:
            next_s = next_arrival_s(self.calls, now_s, window_s)
        steps = self.prefill.steps(call, now_s, next_s, tick_s)
        if not steps:
            return False
        try:
            left = self._engine.prefill(call.key, steps)
        except Exception as error:
            self._metrics.faults.labels("prefill").inc()
            self.end(call, typed_error(error, "when it read a prompt"))
            return True
        ended_s = self._clock.now()
        self.prefill.did(call, steps, left, ended_s - now_s, ended_s)
        if not left:
            self._ready(call)
        return True

    # --- commands -------------------------------------------------------------------------------

    def run_commands(self) -> None:
        """In the order they were asked. While frames wait, no longer than the budget at a time."""
        commands, began_s = self._board.commands, self._clock.now()
        moved = False
        while commands:
            command = commands.popleft()
            self._run(command)
            moved = moved or command.kind in _MOVES_MEMORY
            if self._clock.now() - began_s >= self._command_budget_s and self._frames_wait():
                break
        if moved:
            self.measure_memory()

    def _frames_wait(self) -> bool:
        return any(call.frames and not call.held for call in self.calls)

    def _run(self, command: Command) -> None:
        kind, future = command.kind, command.future
        wanted = future.set_running_or_notify_cancel()
        whose = command.payload if kind is Kind.FORK else command.call
        if kind in _HOLDING:
            with self._board.changed:
                whose.commands -= 1
                whose.hold_or_not()
        if kind is Kind.SNAPSHOT and not wanted:
            return
        try:
            result = self._do[kind](command.call, command.payload)
        except Exception as error:
            typed = self._refused(kind, error)
            if kind is not Kind.SNAPSHOT:
                self.end(command.call, typed)
            if wanted:
                future.set_exception(typed)
        else:
            if wanted:
                future.set_result(result)

    def _refused(self, kind: Kind, error: Exception) -> DuplexError:
        if isinstance(error, DuplexError):
            return error
        log.error("%s failed: %s", kind.value, error, exc_info=error)
        self._metrics.faults.labels(kind.value).inc()
        if kind in _NEW and out_of_memory(error):
            self._metrics.refused.labels("memory").inc()
            return AgentFullError(
                "The device has no memory for another call. Try again when one has ended.", self._retry_after_s
            )
        return typed_error(error, f"at a {kind.value}")

    def _join(self, call: Call, settings: SlotSettings) -> None:
        if not call.gone:
            self._seat(call, self._engine.join(settings))
            self.begin_reading(call)

    def _restore(self, call: Call, snapshot: Any) -> None:
        if not call.gone:
            self._seat(call, self._engine.restore(snapshot))
            self._ready(call)

    def _fork(self, call: Call, original: Call) -> None:
        if not call.gone:
            self._restore(call, self._snapshot(original, None))

    def _seat(self, call: Call, key: int) -> None:
        call.key = key
        self.calls.append(call)

    def _leave(self, call: Call, _: None) -> None:
        self._give_back(call)

    def _reset(self, call: Call, _: None) -> None:
        if call in self.calls and not call.gone:
            call.asked_s = self._clock.now()
            self.prefill.remove(call)
            self._engine.reset(call.key)
            self.begin_reading(call)

    def _snapshot(self, call: Call, _: None) -> Any:
        if call not in self.calls or call.gone:
            raise AgentError("This call's slot is gone.")
        if call.phase is not Phase.READY:
            raise AgentError("This call still reads its prompt; there is nothing to keep yet.")
        return self._engine.snapshot(call.key)

    # --- memory ---------------------------------------------------------------------------------

    def measure_memory(self) -> None:
        try:
            memory = self._engine.memory()
        except Exception as error:
            self._metrics.faults.labels("memory").inc()
            log.error("the device's memory could not be read: %s", error, exc_info=error)
            return
        with self._board.changed:
            self._board.memory = memory
            self._board.used_when_measured = len(self.calls)
        self._metrics.kv_bytes.set(memory.kv)
        self._metrics.weights_bytes.set(memory.weights)
        self._metrics.free_bytes.set(memory.free)


_NEW = frozenset({Kind.JOIN, Kind.RESTORE, Kind.FORK})
_HOLDING = frozenset({Kind.RESET, Kind.SNAPSHOT, Kind.FORK})
_MOVES_MEMORY = _NEW | {Kind.LEAVE}
