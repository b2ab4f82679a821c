"""What became of the last ticks: how long they took, what of it was ours, and who was late. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TickRecord:
    """``frames`` of as many calls at ``batch_size``; ``engine_s`` of ``total_s`` were the engine's; ``late`` results
    came past their deadline. A tick with any missed. ``parts_s``: the engine's own account."""

    began_s: float
    frames: int
    batch_size: int
    engine_s: float
    total_s: float
    late: int
    parts_s: Mapping[str, float]

    @property
    def missed(self) -> bool:
        return self.late > 0

    @property
    def overhead_s(self) -> float:
        return self.total_s - self.engine_s


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds."""

    p50: float
    p95: float
    p99: float
    max: float


class DeadlineLog:
    """The last ``keep`` ticks, and totals since the beginning."""

    UTILISATION_WINDOW_S = 5.0

    def __init__(self, keep: int = 1024) -> None:
        self._records: deque[TickRecord] = deque(maxlen=keep)
        self._busy: deque[tuple[float, float]] = deque()
        self._busy_s = 0.0
        self.ticks = 0
        self.missed_ticks = 0
        self.late_results = 0
        self.results = 0

    def add(self, record: TickRecord) -> None:
        self._records.append(record)
        self.ticks += 1
        self.missed_ticks += record.missed
        self.late_results += record.late
        self.results += record.frames
        end_s = record.began_s + record.total_s
        self._busy.append((end_s, record.total_s))
        self._busy_s += record.total_s
        self._forget(end_s)

    def utilisation(self, now_s: float) -> float:
        """Share of the last five seconds in which a tick ran."""
        self._forget(now_s)
        return min(1.0, max(0.0, self._busy_s) / self.UTILISATION_WINDOW_S)

    def _forget(self, now_s: float) -> None:
        busy = self._busy
        while busy and busy[0][0] < now_s - self.UTILISATION_WINDOW_S:
            self._busy_s -= busy.popleft()[1]

    @property
    def miss_share(self) -> float:
        """Of all ticks."""
        return self.missed_ticks / self.ticks if self.ticks else 0.0

    def records(self) -> list[TickRecord]:
        return list(self._records)

    def total(self) -> Spread:
        """Of whole ticks."""
        return spread(record.total_s for record in self._records)

    def overhead(self) -> Spread:
        """Of what a tick takes beside the engine: gathering, handing out, counting."""
        return spread(record.overhead_s for record in self._records)


def spread(values: Iterable[float]) -> Spread:
    """Percentiles by the nearest rank; all 0 for no values."""
    ranked = sorted(values)
    if not ranked:
        return Spread(0.0, 0.0, 0.0, 0.0)
    return Spread(quantile(ranked, 0.5), quantile(ranked, 0.95), quantile(ranked, 0.99), ranked[-1])


def quantile(ranked: list[float], share: float) -> float:
    """The smallest value that at least ``share`` of the ascending ``ranked`` do not exceed (nearest rank)."""
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]
