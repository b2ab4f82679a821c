"""When an engine that ended is started again, and when no more. Pure."""

from __future__ import annotations

_CALM_S = 60.0
"""An engine that served for so long is not in a spin."""


class Restarts:
    """At most ``limit`` in a row, after pauses that double from ``first_pause_s``."""

    def __init__(self, limit: int, first_pause_s: float) -> None:
        self._limit, self._first_pause_s = limit, first_pause_s
        self._in_a_row = 0

    def pause_s(self, lived_s: float) -> float | None:
        """How long to wait now that it ended after ``lived_s``; None: it is given up."""
        if lived_s >= _CALM_S:
            self._in_a_row = 0
        if self._in_a_row >= self._limit:
            return None
        self._in_a_row += 1
        return self._first_pause_s * 2.0 ** (self._in_a_row - 1)
