"""What the engine benchmark measures, as values: spreads of times, one row a configuration and number of sessions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

DEADLINE_S = 0.080  # a frame of the family
IN_TURNS = "in turns with stock"  # the note of our row that was measured so


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles by the nearest rank, seconds; ``n`` observations."""

    p50: float
    p95: float
    p99: float
    max: float
    n: int

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Raises ``ValueError`` without values."""
        if not values:
            raise ValueError("nothing was measured")
        ranked = sorted(values)

        def at(share: float) -> float:
            return ranked[max(0, math.ceil(share * len(ranked)) - 1)]

        return Spread(at(0.5), at(0.95), at(0.99), ranked[-1], len(ranked))


@dataclass(frozen=True, slots=True)
class Row:
    """``who``: "duplex", or "stock": the package's loop. ``parts_s``: medians. ``missed``: share of steps over the
    deadline. ``overhead``: a tick beside the model's calls, through the scheduler, paced. ``first_packet_s``: medians,
    from the connect to the first sound, the 80 ms of the caller's first frame included. ``limit_s``: how long reading
    the weights, keys and values takes. ``note``: why there are no figures."""

    who: str
    precision: str
    sessions: int
    step: Spread | None = None
    parts_s: Mapping[str, float] = field(default_factory=dict)
    missed: float | None = None
    overhead: Spread | None = None
    paced: Spread | None = None
    paced_missed: float | None = None
    first_packet_s: float | None = None
    memory_bytes: int | None = None
    kv_bytes: int | None = None
    limit_s: float | None = None
    note: str = ""

    @property
    def held(self) -> bool:
        """Whether 99 of 100 steps meet the deadline."""
        return self.step is not None and self.step.p99 < DEADLINE_S

    @property
    def of_limit(self) -> float | None:
        """The median step over the physical limit; 1 cannot be beaten."""
        return None if self.step is None or not self.limit_s else self.step.p50 / self.limit_s

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "held": self.held, "of_limit": self.of_limit}


def sessions_held(rows: Sequence[Row], who: str, precision: str) -> int:
    """The most sessions measured whose p99 meets the deadline; 0 if none does."""
    return max((row.sessions for row in rows if (row.who, row.precision) == (who, precision) and row.held), default=0)


def one_after_the_other(step: Spread, deadline_s: float = DEADLINE_S) -> int:
    """Sessions a loop of one holds if it is run for each in turn."""
    return int(deadline_s / step.p99)
