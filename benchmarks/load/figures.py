"""What is made of a load's observations: waits, underruns, cost, drift, slopes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from duplex.benchmarks.turns.results import Interval
from duplex.benchmarks.turns.statistics import bootstrap, percentile

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Look:
    """The server at one moment of a load. None: it does not tell. ``lag``: loop lag, count by upper bound (s)."""

    at_s: float
    cpu_s: float | None = None
    memory_mb: float | None = None
    sessions: float | None = None
    underruns: float | None = None
    lag: Mapping[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """One load, as it went. ``told``: what the clients wrote; ``looks``: at the server, first before, last after."""

    offered: int
    doors: tuple[str, ...]
    seconds: float
    told: tuple[Mapping[str, Any], ...]
    looks: tuple[Look, ...]
    clients_cpu_s: float | None = None


@dataclass(frozen=True, slots=True)
class Waits:
    """Voice-to-voice of the turns that were answered, ms."""

    n: int
    p50: float
    p95: float
    p95_ci95: Interval | None

    @classmethod
    def of(cls, waits_ms: Sequence[float]) -> Waits | None:
        """None without any."""
        if not waits_ms:
            return None
        interval = bootstrap(waits_ms).get("p95")
        return cls(len(waits_ms), percentile(waits_ms, 50), percentile(waits_ms, 95), interval)


@dataclass(frozen=True, slots=True)
class Summary:
    """One load in figures. ``underruns``: the server's count; ``late``: packets that a client heard a gap for.

    ``lag_p99_ms``: at most this (the upper bound of the histogram's bucket); None if the server does not tell.
    ``server_percent``, ``clients_percent``: of one core.
    """

    offered: int
    doors: tuple[str, ...]
    seconds: float
    calls: int
    refused: int
    broken: int
    turns: int
    unanswered: int
    took_over: int
    waits: Waits | None
    underruns: float | None
    late: int
    lag_p99_ms: float | None
    server_percent: float | None
    clients_percent: float | None
    memory_mb: float | None
    send_late_ms: float
    why_broken: tuple[str, ...] = ()


def summed(load: Load) -> Summary:
    """The figures of a load."""
    calls = [line for line in load.told if line["kind"] == "call"]
    turns = [line for line in load.told if line["kind"] == "turn"]
    whole = [line for line in calls if "seconds" in line]
    first, last = load.looks[0], load.looks[-1]
    seconds = last.at_s - first.at_s
    broken = [str(line["broken"]) for line in calls if "broken" in line]
    return Summary(
        offered=load.offered,
        doors=load.doors,
        seconds=load.seconds,
        calls=len(whole),
        refused=sum(bool(line.get("refused")) for line in calls),
        broken=len(broken),
        turns=len(turns),
        unanswered=sum(line["wait_ms"] is None and not line["took_over"] for line in turns),
        took_over=sum(bool(line["took_over"]) for line in turns),
        waits=Waits.of(waits_of(load)),
        underruns=_less(last.underruns, first.underruns),
        late=sum(int(line["late"]) for line in whole if line["door"] == "webrtc"),
        lag_p99_ms=lag_ms(last.lag, first.lag, 99.0),
        server_percent=server_percent(load),
        clients_percent=_percent(load.clients_cpu_s, seconds),
        memory_mb=max((look.memory_mb for look in load.looks if look.memory_mb is not None), default=None),
        send_late_ms=max((float(line["send_late_ms"]) for line in whole), default=0.0),
        why_broken=tuple(dict.fromkeys(broken))[:3],
    )


def server_percent(load: Load) -> float | None:
    """What the server used while all that were offered (nine in ten) were there; else over the whole load."""
    full = [look for look in load.looks if look.sessions is not None and look.sessions >= 0.9 * load.offered]
    first, last = (full[0], full[-1]) if len(full) >= 3 else (load.looks[0], load.looks[-1])
    return _percent(_less(last.cpu_s, first.cpu_s), last.at_s - first.at_s)


def waits_of(load: Load, from_s: float = 0.0, to_s: float = float("inf")) -> list[float]:
    """Voice-to-voice of the turns that were said between these seconds of the load, ms."""
    return [wait_ms for at_s, wait_ms in _timed_waits(load) if from_s <= at_s < to_s]


def _timed_waits(load: Load) -> tuple[tuple[float, float], ...]:
    turns = [line for line in load.told if line["kind"] == "turn" and line["wait_ms"] is not None]
    return tuple(sorted((float(line["at_s"]), float(line["wait_ms"])) for line in turns))


def lag_ms(after: Mapping[float, float] | None, before: Mapping[float, float] | None, rank: float) -> float | None:
    """The bound that ``rank`` percent of what was observed meanwhile was not over; None without observations."""
    if after is None or before is None:
        return None
    counts = {bound: after[bound] - before.get(bound, 0.0) for bound in sorted(after)}
    total = counts.get(float("inf"), 0.0)
    if total <= 0.0:
        return None
    return next(1000.0 * bound for bound, count in counts.items() if count >= total * rank / 100.0)


def cost_percent(loads: Sequence[Summary]) -> tuple[float, Interval | None] | None:
    """What one more session costs, percent of a core: the slope of the server's use over the sessions offered.

    The interval is twice the slope's standard error and needs three loads. None for fewer than two that tell.
    """
    told = [(load.offered, load.server_percent) for load in loads if load.server_percent is not None]
    if len({offered for offered, _ in told}) < 2:
        return None
    slope, error = slope_of([float(offered) for offered, _ in told], [float(percent) for _, percent in told])
    return slope, None if error is None else Interval(slope - 2.0 * error, slope + 2.0 * error)


def slope_of(x: Sequence[float], y: Sequence[float]) -> tuple[float, float | None]:
    """Least squares: the slope and its standard error (None for two points). Raises ``ValueError`` for one."""
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    spread = float(np.sum((xs - xs.mean()) ** 2)) if len(xs) else 0.0
    if spread <= 0.0:
        raise ValueError("a slope needs two different places")
    slope = float(np.sum((xs - xs.mean()) * (ys - ys.mean())) / spread)
    if len(xs) < 3:
        return slope, None
    rest = ys - ys.mean() - slope * (xs - xs.mean())
    return slope, float(np.sqrt(np.sum(rest**2) / (len(xs) - 2) / spread))


@dataclass(frozen=True, slots=True)
class Ageing:
    """A long load from its beginning to its end, warm-up left out.

    ``growth_mb_per_hour``: slope of the server's memory; ``noise_mb_per_hour``: what the same number of looks gives
    without a leak, 95 % (blocks of the residuals, shuffled: memory is a staircase, so its looks are not independent).
    ``p95_drift``: of the last third against the first, as a share. The course of it: ``memory_mb`` and ``waits_ms`` as
    (s into the load, value), ``p95_of_thirds`` as (from s, to s, ms).
    """

    growth_mb_per_hour: float | None
    noise_mb_per_hour: float | None
    p95_drift: float | None
    minutes: float
    memory_mb: tuple[tuple[float, float], ...] = ()
    waits_ms: tuple[tuple[float, float], ...] = ()
    p95_of_thirds: tuple[tuple[float, float, float], ...] = ()

    @property
    def leaks(self) -> bool | None:
        """Whether the memory grew by more than its noise."""
        if self.growth_mb_per_hour is None or self.noise_mb_per_hour is None:
            return None
        return self.growth_mb_per_hour > self.noise_mb_per_hour


def ageing(load: Load, warm_up_s: float = 120.0, blocks: int = 12, seed: int = 0) -> Ageing:
    """What a long load says about growing old."""
    warm = [look for look in load.looks if look.at_s >= warm_up_s and look.memory_mb is not None]
    growth = noise = None
    if len(warm) >= 2 * blocks:
        at_h = np.array([look.at_s / 3600.0 for look in warm])
        memory = np.array([float(look.memory_mb or 0.0) for look in warm])
        growth, _ = slope_of(list(at_h), list(memory))
        noise = _shuffled_slope(at_h, memory, growth, blocks, seed)
    third_s = (load.seconds - warm_up_s) / 3.0
    starts_s = [warm_up_s + k * third_s for k in range(3)]
    thirds = [waits_of(load, from_s, to_s) for from_s, to_s in pairwise([*starts_s, float("inf")])]
    early, _, late = thirds
    drift = percentile(late, 95) / percentile(early, 95) - 1.0 if len(early) >= 20 and len(late) >= 20 else None
    p95s = [
        (from_s, from_s + third_s, percentile(waits, 95))
        for from_s, waits in zip(starts_s, thirds, strict=True)
        if waits
    ]
    memory_mb = tuple((look.at_s, float(look.memory_mb)) for look in load.looks if look.memory_mb is not None)
    return Ageing(growth, noise, drift, load.seconds / 60.0, memory_mb, _timed_waits(load), tuple(p95s))


def _shuffled_slope(at_h: Any, memory: Any, growth: float, blocks: int, seed: int) -> float:
    """How steep chance alone gets: 95th percentile of the slope with the residuals' blocks in random order."""
    rest = np.array_split(memory - memory.mean() - growth * (at_h - at_h.mean()), blocks)
    rng = np.random.default_rng(seed)
    spread = float(np.sum((at_h - at_h.mean()) ** 2))
    slopes = []
    for _ in range(RESAMPLES):
        shuffled = np.concatenate([rest[k] for k in rng.permutation(blocks)])
        slopes.append(float(np.sum((at_h - at_h.mean()) * shuffled)) / spread)
    return float(np.percentile(slopes, 95))


def _less(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def _percent(cpu_s: float | None, seconds: float) -> float | None:
    return None if cpu_s is None or seconds <= 0.0 else 100.0 * cpu_s / seconds
