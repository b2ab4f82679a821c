"""The four questions a load asks, each answered with loads of its own.

transport  how many sessions are held without an underrun and with the loop in time, and what each costs
cascade    how many conversations are held with voice-to-voice p95 ≤ 1.5 s
overload   with twice that offered: are the others refused, and do those inside notice
mixed      half an hour of calls through every door: does memory grow, does the p95 drift
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from duplex.benchmarks.load.client import Plan
from duplex.benchmarks.load.figures import Ageing, Load, Summary, Waits, ageing, cost_percent, summed
from duplex.benchmarks.load.search import Search
from duplex.benchmarks.server_process import ServerProcess
from duplex.benchmarks.turns.results import Interval

LAG_P99_MS = 20.0
MOST_P95_MS = 1500.0
OVERLOAD_RISE = 0.20
DRIFT = 0.10
OVERLOAD = 2
PHASES = ("transport", "cascade", "overload", "mixed")

Offer = Callable[[ServerProcess, Plan], Load]
"""Offers a load to a server and returns when it is over."""


class Tell(Protocol):
    """Is told of each load as it ends: its phase, its figures, and why it was too much (None: it was not)."""

    def __call__(self, phase: str, summary: Summary, why: str | None) -> None: ...


@dataclass(frozen=True, slots=True)
class Held:
    """How many sessions of a kind are held. ``loads``: every one that was tried. ``cost``: percent of a core, each."""

    phase: str
    door: str
    sessions: int
    loads: tuple[Summary, ...]
    why_not_more: str | None
    cost: tuple[float, Interval | None] | None = None


@dataclass(frozen=True, slots=True)
class Overload:
    """``rise``: of the p95 of those inside, against the load that was held, as a share."""

    usual: Summary
    overloaded: Summary
    rise: float | None
    passed: bool | None


@dataclass(frozen=True, slots=True)
class Mixed:
    """The long load. ``passed``: nothing leaked, nothing drifted, nothing broke; None if it was too short to say."""

    summary: Summary
    ageing: Ageing
    passed: bool | None


def too_much_for_transport(load: Summary) -> str | None:
    """Why this load was not held by a server that has nothing to do but move sound; None if it was."""
    return (
        _broken(load)
        or (f"{load.underruns:.0f} underruns" if load.underruns else None)
        or (f"{load.unanswered} turns not answered" if load.unanswered else None)
        or (
            f"loop lag p99 up to {load.lag_p99_ms:.0f} ms"
            if load.lag_p99_ms is not None and load.lag_p99_ms > LAG_P99_MS
            else None
        )
        or _too_slow(load)
    )


def too_much_for_cascade(load: Summary) -> str | None:
    """Why this load was not held by an agent with models; None if it was."""
    broken = _broken(load)
    if broken or load.waits is None:
        return broken or "no turn was answered"
    if load.unanswered > 0.05 * load.turns:
        return f"{load.unanswered} of {load.turns} turns not answered"
    return _too_slow(load)


def _too_slow(load: Summary) -> str | None:
    if load.waits is None or load.waits.p95 <= MOST_P95_MS:
        return None
    return f"voice-to-voice p95 {load.waits.p95:.0f} ms"


def _broken(load: Summary) -> str | None:
    if load.broken:
        return f"{load.broken} calls broke: {'; '.join(load.why_broken)}"
    if load.refused:
        return f"{load.refused} calls refused"
    return None if load.calls else "no call came to its end"


def hold(
    phase: str,
    server: ServerProcess,
    plan: Plan,
    offer: Offer,
    tell: Tell,
    *,
    first: int,
    most: int,
) -> Held:
    """Searches for how many callers ``server`` holds."""
    judge = too_much_for_transport if phase == "transport" else too_much_for_cascade
    search = Search(first, most, 0.15 if phase == "transport" else 0.0)
    loads: list[Summary] = []
    why: str | None = None
    while (sessions := search.next) is not None:
        summary = summed(offer(server, replace(plan, callers=sessions)))
        because = judge(summary)
        why = because or why
        search.found(sessions, because is None)
        loads.append(summary)
        tell(phase, summary, because)
    fine = [load for load in loads if judge(load) is None]
    return Held(phase, "+".join(plan.doors), search.held, tuple(loads), why, cost_percent(fine))


def overloaded(server: ServerProcess, plan: Plan, held: int, offer: Offer, tell: Tell) -> Overload:
    """``server`` admits ``held`` calls. As many are offered, then ``OVERLOAD`` times as many."""
    usual = summed(offer(server, replace(plan, callers=held)))
    tell("overload", usual, None)
    more = summed(offer(server, replace(plan, callers=held * OVERLOAD)))
    rise = rise_of(usual.waits, more.waits)
    passed = None if rise is None else rise <= OVERLOAD_RISE and more.refused > 0 and not more.broken
    tell("overload", more, None if passed else verdict_on_overload(more, rise))
    return Overload(usual, more, rise, passed)


def rise_of(usual: Waits | None, more: Waits | None) -> float | None:
    return None if usual is None or more is None else more.p95 / usual.p95 - 1.0


def verdict_on_overload(more: Summary, rise: float | None) -> str:
    if more.broken:
        return f"{more.broken} calls broke: {'; '.join(more.why_broken)}"
    if not more.refused:
        return "nobody was refused"
    return "no turn was answered" if rise is None else f"p95 {100 * rise:+.0f} %"


def mixed(server: ServerProcess, plan: Plan, offer: Offer, tell: Tell, *, warm_up_s: float = 120.0) -> Mixed:
    """One long load."""
    load = offer(server, plan)
    summary, aged = summed(load), ageing(load, warm_up_s)
    leaks, drift = aged.leaks, aged.p95_drift
    passed = None if leaks is None or drift is None else not leaks and drift <= DRIFT and not summary.broken
    why = None if passed is not False else "it leaks" if leaks else f"p95 {100 * (drift or 0.0):+.0f} %"
    tell("mixed", summary, why)
    return Mixed(summary, aged, passed)


def in_order(wanted: Sequence[str]) -> list[str]:
    """The phases that are needed for those that are wanted: what is twice the load has to be known."""
    chosen = set(wanted)
    if "overload" in chosen:
        chosen.add("cascade")
    return [phase for phase in PHASES if phase in chosen]
