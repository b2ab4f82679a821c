"""The thread that owns the device. docs/scheduler.md tells how it works; :mod:`.ticker` is what it does."""

from __future__ import annotations

import logging
import threading
from typing import Any

from duplex.clock import Clock, MonotonicClock
from duplex.errors import AgentError, AgentFaultError, AgentFullError, DuplexError
from duplex.restarts import Restarts

from .contract import Engine, SlotSettings
from .deadlines import DeadlineLog
from .deliveries import Deliver
from .faults import typed_error
from .metrics import SchedulerMetrics
from .options import SchedulerOptions
from .session import SchedulerSession
from .ticker import Ticker

log = logging.getLogger("duplex.scheduler")

_STOPPING = "The server is stopping."
_CALM_S = 60.0  # an engine that served for so long is not in a spin


class Scheduler:
    """Steps every call of a process on one engine, in batches, on a thread of its own.

    ``start`` once, then ``open`` a call at a time, from any thread; ``close`` ends them all. An engine that ends is
    started again, so that a fault costs the calls that are up, and not the next ones.
    """

    def __init__(
        self,
        engine: Engine,
        options: SchedulerOptions | None = None,
        clock: Clock | None = None,
        metrics: SchedulerMetrics | None = None,
    ) -> None:
        self._engine = engine
        self._options = options if options is not None else SchedulerOptions()
        self._clock = clock if clock is not None else MonotonicClock()
        self._metrics = metrics if metrics is not None else SchedulerMetrics()
        self._ticker: Ticker | None = None
        self._failed: DuplexError | None = None
        self._closing = False
        self._up, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def deadlines(self) -> DeadlineLog:
        """The last ticks, for benchmarks and reports."""
        return self._running().log

    def start(self) -> None:
        """Starts the engine on its thread, measures it, and returns when the first call would be served at full speed.

        Blocks (seconds to minutes): use ``asyncio.to_thread``. Raises what the engine raised.
        """
        if self._thread is not None or self._closing:
            raise AgentError("A scheduler is started once.")
        self._thread = threading.Thread(target=self._run, name="duplex-engine", daemon=True)
        self._thread.start()
        self._up.wait()
        if self._failed is not None:
            self._thread.join()
            raise self._failed

    def open(self, settings: SlotSettings, deliver: Deliver) -> SchedulerSession:
        """A slot for a call, decided at once from what was measured; ``deliver`` is told everything else, ``Ready``
        first. Raises ``AgentFullError``, or ``AgentFaultError`` if the engine is gone. What only the engine can tell
        (settings that it cannot honour) comes as ``Ended``.
        """
        return self._running().open(settings, deliver)

    def admit(self) -> None:
        """Whether there is room for a call, without taking it. Raises what ``open`` would raise now."""
        self._running().board.admit()

    def restore(self, snapshot: Any, deliver: Deliver) -> SchedulerSession:
        """A new call that goes on where ``SchedulerSession.snapshot`` was taken. Raises what ``open`` does."""
        return self._running().restore(snapshot, deliver)

    def close(self, timeout_s: float = 30.0) -> None:
        """Ends every call (told ``Ended``), closes the engine and its thread. Harmless when closed.

        Blocks until the tick at hand is over. Raises ``AgentFaultError`` if that takes longer than ``timeout_s``.
        """
        self._closing = True
        self._stop.set()
        if (ticker := self._ticker) is not None:
            with ticker.board.changed:
                ticker.board.closing = True
                ticker.board.notify()
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        thread.join(timeout_s)
        if thread.is_alive():
            raise AgentFaultError(
                f"The device did not finish its tick within {timeout_s:g} s; its thread was left behind."
            )

    def _running(self) -> Ticker:
        if self._failed is not None:
            raise AgentFaultError(f"The engine takes no calls: {self._failed}")
        if self._ticker is None:
            raise AgentFullError("The model is still being loaded. Try again in a moment.", self._options.retry_after_s)
        return self._ticker

    # --- on the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            ticker = self._begun()
        except BaseException as error:
            self._failed = _told(error, "when it started")
            self._up.set()
            return
        self._up.set()
        again = Restarts(self._options.restart_pause_s, calm_s=_CALM_S, limit=self._options.restarts)
        while True:
            began_s = self._clock.now()
            fault = self._serve(ticker)
            if fault is None:
                return
            found = self._begun_again(again, self._clock.now() - began_s, fault)
            if found is None:
                return
            ticker = found

    def _begun(self) -> Ticker:
        try:
            self._engine.start()
            ticker = Ticker(self._engine, self._options, self._clock, self._metrics)
            ticker.calibrate()
        except BaseException:
            self._close_engine()
            raise
        self._ticker = ticker
        ticker.board.closing = self._closing
        return ticker

    def _serve(self, ticker: Ticker) -> DuplexError | None:
        """Until the end, at which every call is told. Returns why it came, if nobody asked for it."""
        board, clock = ticker.board, self._clock
        fault: DuplexError | None = None
        try:
            while not board.closing:
                board.wait(ticker.run_once(clock.now()))
        except BaseException as error:
            fault = _told(error, "and stopped")
            log.critical("the engine's thread ends: %s", fault, exc_info=error)
            self._metrics.faults.labels("thread").inc()
        self._ticker = None if fault is not None else ticker
        ticker.end_all(fault if fault is not None else AgentError(_STOPPING))
        self._close_engine()
        return fault

    def _begun_again(self, again: Restarts, lived_s: float, fault: DuplexError) -> Ticker | None:
        """The engine with fresh state; None if it does not start, or somebody closes. Callers are told to come back."""
        while (pause_s := again.pause_s(lived_s)) is not None:
            if self._stop.wait(pause_s):
                self._failed = AgentError(_STOPPING)
                return None
            log.warning("the engine is started again")
            try:
                ticker = self._begun()
            except BaseException as error:
                fault, lived_s = _told(error, "when it was started again"), 0.0
                log.error("the engine did not start again: %s", fault, exc_info=error)
            else:
                self._metrics.restarts.inc()
                return ticker
        self._failed = fault
        log.critical("the engine is given up; no call will be taken: %s", fault)
        return None

    def _close_engine(self) -> None:
        try:
            self._engine.close()
        except Exception as error:
            log.error("the engine did not close: %s", error, exc_info=error)


def _told(error: BaseException, when: str) -> DuplexError:
    if isinstance(error, Exception):
        return typed_error(error, when)
    return AgentFaultError(f"The engine's thread was ended {when}: {type(error).__name__}")
