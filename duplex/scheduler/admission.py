"""Whether one more call fits: from ticks measured at each batch size, and from the device's memory. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from .contract import Memory
from .deadlines import quantile


class TickTimes:
    """How long a tick takes at each of an engine's batch sizes: the 95th percentile of the last 64 measured there, or,
    of fewer than 20, the median, since one disturbed measurement says nothing about a size.

    A size that was not run for a minute is what it was at calibration, or unknown: a slow time must not keep calls out
    for good, and without calls nothing is measured.
    """

    WINDOW = 64
    KEEP_S = 60.0
    _FEW = 20

    def __init__(self, batch_sizes: Sequence[int]) -> None:
        self.batch_sizes = tuple(batch_sizes)
        self._measured: dict[int, deque[float]] = {size: deque(maxlen=self.WINDOW) for size in self.batch_sizes}
        self._recent: dict[int, float] = {}
        self._until_s = dict.fromkeys(self.batch_sizes, -math.inf)
        self._calibrated: dict[int, float] = {}

    def calibrate(self, batch_size: int, ticks_s: Sequence[float]) -> None:
        """What ticks took when nothing else was going on."""
        self._calibrated[self.size_for(batch_size)] = quantile(sorted(ticks_s), 0.5)

    def observe(self, batch_size: int, tick_s: float, now_s: float) -> None:
        size = self.size_for(batch_size)
        measured = self._measured[size]
        if now_s > self._until_s[size]:
            measured.clear()
        self._until_s[size] = now_s + self.KEEP_S
        measured.append(tick_s)
        self._recent[size] = quantile(sorted(measured), 0.95 if len(measured) >= self._FEW else 0.5)

    def keep(self, batch_size: int, now_s: float) -> None:
        """Ticks were run at that size that say nothing about it, so what is known stays known."""
        size = self.size_for(batch_size)
        if now_s <= self._until_s[size]:
            self._until_s[size] = now_s + self.KEEP_S

    def _known(self, size: int, now_s: float) -> float | None:
        return self._recent[size] if now_s <= self._until_s[size] else self._calibrated.get(size)

    def size_for(self, n_slots: int) -> int:
        """The smallest batch size that holds ``n_slots``; the largest if none does."""
        return next((size for size in self.batch_sizes if size >= n_slots), self.batch_sizes[-1])

    def predict(self, n_slots: int, now_s: float) -> float | None:
        """Seconds a tick of ``n_slots`` will take; ``None`` if nothing is known yet.

        A size that is not known is put on the line through the two largest known below it (a step's cost is a constant
        plus something for each slot), or, with one alone, in proportion, which is too much by the constant and errs on
        the side of those who are in. It takes no longer than a larger size does.
        """
        wanted = self.size_for(n_slots)
        if (known_s := self._known(wanted, now_s)) is not None:
            return known_s
        known = [(size, s) for size in self.batch_sizes if (s := self._known(size, now_s)) is not None]
        guesses = [s for size, s in known if size > wanted][:1]
        below = [(size, s) for size, s in known if size < wanted][-2:]
        if len(below) == 2:
            (a, a_s), (b, b_s) = below
            guesses.append(b_s + max(0.0, b_s - a_s) / (b - a) * (wanted - b))
        elif below:
            guesses.append(below[0][1] * wanted / below[0][0])
        return min(guesses) if guesses else None


def no_room(
    *,
    used: int,
    max_slots: int,
    predicted_s: float | None,
    limit_s: float,
    memory: Memory | None,
    used_when_measured: int,
    reserve_bytes: float,
) -> tuple[str, str] | None:
    """Why a call more than the ``used`` ones does not fit, as a word and a sentence; ``None``: it fits.

    ``predicted_s``: of a tick with it. ``memory``: as of when ``used_when_measured`` calls were in; a slot that takes
    no memory of its own (``per_slot`` 0) fits any.
    """
    if used >= max_slots:
        return "slots", f"All {max_slots} slots are taken. Try again when a call has ended."
    if predicted_s is not None and predicted_s > limit_s:
        return "headroom", (
            f"One more call would make a tick {predicted_s * 1e3:.0f} ms long, and {limit_s * 1e3:.0f} ms is the limit"
            f" with {used} calls. Try again when one has ended."
        )
    if memory is not None and memory.per_slot > 0:
        free = memory.free - (used - used_when_measured) * memory.per_slot - reserve_bytes
        if free < memory.per_slot:
            return "memory", (
                f"The device has {max(0.0, free) / 2**20:.0f} MiB left for calls and one takes"
                f" {memory.per_slot / 2**20:.0f} MiB. Try again when a call has ended."
            )
    return None
