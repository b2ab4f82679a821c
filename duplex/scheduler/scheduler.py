"""The thread that owns the device. docs/scheduler.md tells how it works; :mod:`.ticker` is what it does."""

from __future__ import annotations

import logging
import threading
from typing import Any

from duplex.clock import Clock, MonotonicClock
from duplex.errors import AgentError, AgentFaultError, AgentFullError, DuplexError

from .contract import Engine, SlotSettings
from .deadlines import DeadlineLog
from .deliveries import Deliver
from .faults import typed_error
from .metrics import SchedulerMetrics
from .options import SchedulerOptions
from .session import SchedulerSession
from .ticker import Ticker

log = logging.getLogger("duplex.scheduler")


class Scheduler:
    """Steps every call of a process on one engine, in batches, on a thread of its own.

    ``start`` once, then ``open`` a call at a time, from any thread; ``close`` ends them all.
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
        self._up = threading.Event()
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
            self._engine.start()
            ticker = Ticker(self._engine, self._options, self._clock, self._metrics)
            ticker.calibrate()
        except BaseException as error:
            self._failed = _told(error, "when it started")
            self._close_engine()
            self._up.set()
            return
        self._ticker = ticker
        ticker.board.closing = self._closing
        self._up.set()
        board, clock = ticker.board, self._clock
        ended: DuplexError = AgentError("The server is stopping.")
        try:
            while not board.closing:
                board.wait(ticker.run_once(clock.now()))
        except BaseException as error:
            ended = _told(error, "and stopped")
            log.critical("the engine's thread ends: %s", ended, exc_info=error)
        finally:
            ticker.end_all(ended)
            self._close_engine()

    def _close_engine(self) -> None:
        try:
            self._engine.close()
        except Exception as error:
            log.error("the engine did not close: %s", error, exc_info=error)


def _told(error: BaseException, when: str) -> DuplexError:
    if isinstance(error, Exception):
        return typed_error(error, when)
    return AgentFaultError(f"The engine's thread was ended {when}: {type(error).__name__}")
