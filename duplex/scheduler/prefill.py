"""Joining calls' prompts, read in slices in the time that ticks leave. Pure: the ticker does the reading."""

from __future__ import annotations

import math

from .board import Call
from .ticks import prefill_budget_s


class SliceTimes:
    """How long slices of a prompt take, by their steps: 1, 2, 4, 8 … A slice costs something for itself and something
    for each step, and either may be all of it, so sizes are measured rather than multiplied."""

    MOST_STEPS = 512

    def __init__(self) -> None:
        self._measured: dict[int, float] = {}

    def observe(self, steps: int, took_s: float) -> None:
        if steps & (steps - 1) == 0:
            before_s = self._measured.get(steps, took_s)
            self._measured[steps] = before_s + 0.5 * (took_s - before_s)

    @property
    def one_s(self) -> float:
        """Of a slice of one step; 0 if it was never read."""
        return self._measured.get(1, 0.0)

    def fit(self, budget_s: float) -> int:
        """The most steps that take no longer than ``budget_s``; 0: not one does.

        A size that was never read is put on the line through the two below it. Two steps are tried once as if they
        cost what one does.
        """
        if not self._measured:
            return 1
        fits, steps = 0, 1
        smaller_s, half_s = 0.0, self.one_s  # of a quarter and of half as many steps
        while steps <= self.MOST_STEPS:
            measured_s = self._measured.get(steps)
            if measured_s is not None:
                took_s = measured_s if steps == 1 else min(measured_s, 2 * half_s)
            else:
                took_s = half_s if steps == 2 else 3 * half_s - 2 * smaller_s
            if took_s > budget_s:
                break
            fits = steps
            if measured_s is None:
                break
            smaller_s, half_s, steps = half_s, max(took_s, half_s), 2 * steps
        return fits


class Prefiller:
    """First come, first read: so the first caller is answered soonest, and the last no later than by taking turns."""

    def __init__(self, slice_s: float, frame_s: float) -> None:
        self._slice_s, self._frame_s = slice_s, frame_s
        self.times = SliceTimes()
        self._reading: dict[Call, int] = {}  # to steps left
        self._last_slice_s = -math.inf

    def __bool__(self) -> bool:
        return bool(self._reading)

    def add(self, call: Call, steps_left: int, now_s: float) -> None:
        if not self._reading:
            self._last_slice_s = now_s
        self._reading[call] = steps_left

    def remove(self, call: Call) -> None:
        self._reading.pop(call, None)

    def clear(self) -> None:
        self._reading.clear()

    def first(self) -> Call | None:
        """Whose prompt is read next."""
        for call in tuple(self._reading):
            if not call.gone:
                return call
            del self._reading[call]
        return None

    @property
    def starves_at_s(self) -> float:
        """When nothing was read for a whole frame."""
        return self._last_slice_s + self._frame_s

    def starved(self, now_s: float) -> bool:
        return bool(self._reading) and now_s >= self.starves_at_s

    def steps(self, call: Call, now_s: float, next_s: float, tick_s: float) -> int:
        """How many to read now. ``next_s``: when a frame is expected; ``tick_s``: what a tick takes."""
        least_s = 1.5 * self.times.one_s  # a step may be longer than a slice; more of them may cost little more
        budget_s = prefill_budget_s(
            now_s,
            next_s=next_s,
            starves_at_s=self.starves_at_s,
            slice_s=max(self._slice_s, least_s),
            frame_s=self._frame_s,
            tick_s=tick_s,
        )
        if now_s >= self.starves_at_s:
            budget_s = max(budget_s, least_s)  # and longer than all the time there is
        return min(self._reading[call], self.times.fit(budget_s)) if budget_s > 0 or not least_s else 0

    def did(self, call: Call, steps: int, left: int, took_s: float, now_s: float) -> None:
        """``steps`` were read in ``took_s``; ``left`` are to come."""
        self.times.observe(steps, took_s)
        self._last_slice_s = now_s
        if left:
            self._reading[call] = left
        else:
            self._reading.pop(call, None)
