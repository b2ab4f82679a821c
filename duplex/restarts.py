"""When a worker that ended is started again, and when no more. Pure."""

from __future__ import annotations

import math


class Restarts:
    """Pauses that double from ``first_pause_s`` up to ``longest_pause_s``, for ``limit`` ends in a row (None: any).

    A worker that lived for ``calm_s`` is not in a spin: its end begins a new row.
    """

    def __init__(
        self, first_pause_s: float, *, calm_s: float, limit: int | None = None, longest_pause_s: float = math.inf
    ) -> None:
        self._first_pause_s, self._longest_pause_s = first_pause_s, longest_pause_s
        self._calm_s, self._limit = calm_s, limit
        self._in_a_row, self._next_s = 0, first_pause_s

    def pause_s(self, lived_s: float) -> float | None:
        """How long to wait now that it ended after ``lived_s``; None: it is given up."""
        if lived_s >= self._calm_s:
            self._in_a_row, self._next_s = 0, self._first_pause_s
        if self._limit is not None and self._in_a_row >= self._limit:
            return None
        pause_s = self._next_s
        self._in_a_row += 1
        self._next_s = min(2.0 * pause_s, self._longest_pause_s)
        return pause_s
