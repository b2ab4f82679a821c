"""Figures from few trials, with honest edges.

A percentile is an observation: the one at that rank, or the next higher one, so that a p95 of twenty
latencies is never better than what was seen. Intervals are 95 %: Wilson's for shares, a seeded percentile
bootstrap for everything else, so a rerun over the same values prints the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from duplex.benchmarks.turns.contract import Limit, Trial
from duplex.benchmarks.turns.results import Interval, LimitVerdict, MeasureSummary, Verdict

RESAMPLES = 2000
_Z95 = 1.959963984540054


def percentile(values: Sequence[float], rank: float) -> float:
    """The observation at ``rank`` percent, or the next higher one. Raises ``ValueError`` without values."""
    if not values:
        raise ValueError("a percentile of nothing")
    return float(np.percentile(np.asarray(values, np.float64), rank, method="higher"))


def wilson(successes: int, n: int) -> Interval:
    """Wilson's score interval for a share (E. B. Wilson, 1927): sensible also at 0 and n of n."""
    if n <= 0:
        raise ValueError("a share of nothing")
    share, z2 = successes / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def bootstrap(values: Sequence[float], seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Interval]:
    """Percentile-bootstrap intervals of mean, p50 and p95 (B. Efron, 1979); empty with fewer than two values."""
    if len(values) < 2:
        return {}
    found = np.asarray(values, np.float64)
    rng = np.random.default_rng([seed, len(found)])
    drawn = found[rng.integers(0, len(found), size=(resamples, len(found)))]
    statistics: dict[str, npt.NDArray[np.float64]] = {
        "mean": drawn.mean(axis=1),
        "p50": np.percentile(drawn, 50, axis=1, method="higher"),
        "p95": np.percentile(drawn, 95, axis=1, method="higher"),
    }
    return {
        name: Interval(float(np.percentile(each, 2.5)), float(np.percentile(each, 97.5)))
        for name, each in statistics.items()
    }


COUNTS = frozenset({"spurious", "turns", "interruptions", "self_interruptions", "holds", "underruns", "late"})
"""Measures that count something: none and one of it are no shares."""


def summarise(values: Sequence[float], seed: int = 0, *, share: bool | None = None) -> MeasureSummary:
    """Every figure of one measure. ``share``: None finds out by the values. Raises ``ValueError`` without values."""
    found = [float(value) for value in values]
    share = all(value in (0.0, 1.0) for value in found) if share is None else share
    ci95 = bootstrap(found, seed)
    if share and len(found) > 1:
        ci95["mean"] = wilson(round(sum(found)), len(found))
    return MeasureSummary(
        n=len(found),
        mean=float(np.mean(found)),
        min=min(found),
        p50=percentile(found, 50),
        p95=percentile(found, 95),
        p99=percentile(found, 99),
        max=max(found),
        sum=float(np.sum(found)),
        share=share,
        ci95=ci95,
        values=tuple(found),
    )


def measures_of(trials: Sequence[Trial], seed: int = 0) -> dict[str, MeasureSummary]:
    """A summary of each measure that any valid trial has, in order of first appearance."""
    values: dict[str, list[float]] = {}
    for trial in trials:
        if trial.valid:
            for name, value in trial.values.items():
                values.setdefault(name, []).append(float(value))
    return {
        name: summarise(found, seed, share=None if _may_be_share(name) else False) for name, found in values.items()
    }


def _may_be_share(name: str) -> bool:
    return name not in COUNTS and not name.endswith(
        ("_ms", "_s", "_mb", "_words", "_min", "_growth", "_left", "_drift")
    )


def judge(limits: Sequence[Limit], measures: Mapping[str, MeasureSummary]) -> tuple[LimitVerdict, ...]:
    """Each limit with what was found; nothing found leaves it open."""
    verdicts = []
    for limit in limits:
        summary = measures.get(limit.measure)
        if summary is None:
            verdicts.append(LimitVerdict(limit, None, None))
            continue
        value = summary.statistic(limit.statistic)
        low_enough = limit.at_most is None or value <= limit.at_most
        high_enough = limit.at_least is None or value >= limit.at_least
        verdicts.append(LimitVerdict(limit, value, low_enough and high_enough))
    return tuple(verdicts)


def verdict_of(limits: Sequence[LimitVerdict]) -> Verdict:
    """A pass needs every limit judged and met; one missed is a miss, and one that cannot be judged is no pass."""
    found = [limit.passed for limit in limits]
    if False in found:
        return "miss"
    return "pass" if found and None not in found else "not judged"
