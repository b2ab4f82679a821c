"""A worker's thread that a fault does not end: it is told, and the work goes on.

A loop that serves every session must not be lost to one of them. Faults of one request are caught where the request is
known; this is for the rest, from a callback that raises to a bug in the loop itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from duplex.clock import Clock, MonotonicClock
from duplex.restarts import Restarts

log = logging.getLogger("duplex.workers")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 5.0
_CALM_S = 10.0
"""A loop that ran for so long is not in a spin."""


class SupervisedThread(threading.Thread):
    """Runs ``work`` until it returns, again whenever it raises; a daemon.

    ``crashed`` is told of each fault, on the thread, to tell those whom it concerns; what it raises is logged. A loop
    that fails again and again is begun again after pauses that double, up to 5 s. ``pause`` waits; for tests.
    """

    def __init__(
        self,
        work: Callable[[], None],
        name: str,
        *,
        crashed: Callable[[Exception], None] = lambda error: None,
        pause: Callable[[float], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.restarts = 0
        self._work, self._crashed = work, crashed
        self._pause = pause or _wait
        self._now_s = (clock or MonotonicClock()).now

    def run(self) -> None:
        again = Restarts(_FIRST_PAUSE_S, calm_s=_CALM_S, longest_pause_s=_LONGEST_PAUSE_S)
        while True:
            began_s = self._now_s()
            try:
                self._work()
            except Exception as error:
                log.exception("%s failed and is started again", self.name)
                self._tell(error)
                pause_s = again.pause_s(self._now_s() - began_s)
                assert pause_s is not None  # there is no limit
                self._pause(pause_s)
                self.restarts += 1
            else:
                return

    def _tell(self, error: Exception) -> None:
        try:
            self._crashed(error)
        except Exception:
            log.exception("nobody could be told of the fault of %s", self.name)


def _wait(seconds: float) -> None:
    threading.Event().wait(seconds)
