"""Scenarios 25 and 26: can the suite fail, and does the regression gate name the stage that got slower?

Both run inside this process, on virtual time, with agents whose faults and delays are known; no server is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from duplex.agent import Agent
from duplex.baseline import Baseline, Regression, compare
from duplex.benchmarks.turns.agents import STAGES, EagerAgent, SilentAgent, StagedAgent, StageDelays, delayed_agent
from duplex.benchmarks.turns.contract import Bench, Limit, Scenario, Trial
from duplex.benchmarks.turns.doors import InProcessDoor
from duplex.benchmarks.turns.play import Said, several, share_calls
from duplex.benchmarks.turns.results import ScenarioResult
from duplex.benchmarks.turns.runner import Quiet, Runner
from duplex.benchmarks.turns.scenarios_overlap import SCENARIOS as OVERLAP
from duplex.benchmarks.turns.scenarios_turns import SCENARIOS as TURNS
from duplex.benchmarks.turns.sizes import QUICK, SuiteBench
from duplex.benchmarks.turns.told import trace_marks
from duplex.benchmarks.turns.trials import seed_of
from duplex.clock import VirtualClock
from duplex.recording import Recording
from duplex.stages import own_stages
from duplex.testing import run_virtual

TRIED_ON = (1, 3, 7)
"""Turns, pauses and interruptions: between them no way to hold the floor wrongly gets through."""

CLEARED_BY = (2, 7)
"""What a careful agent without ears for words can pass: short synthetic questions, and interruptions."""

SLOWER_MS = 80.0
_TURNS = 20


# --- 25: agents that must fail ----------------------------------------------------------------------------------


def tried(bench: Bench, agent: Callable[[], Agent], numbers: Sequence[int], trials: int) -> list[ScenarioResult]:
    """What the scenarios of those numbers find out about an agent, on virtual time. Blocks; made for a thread."""
    chosen = [scenario for scenario in (*TURNS, *OVERLAP) if scenario.number in numbers]

    async def run() -> list[ScenarioResult]:
        async with InProcessDoor(agent(), clock=VirtualClock()) as door:
            inner = SuiteBench(door, bench.material, bench.seed, sizes=QUICK)
            return await Runner(inner).run(chosen, lambda _scenario: trials, Quiet())

    return run_virtual(run())


def is_caught(results: Sequence[ScenarioResult]) -> bool:
    """Whether at least one limit was missed; a scenario that could not be judged catches nobody."""
    return any(result.verdict == "miss" for result in results)


async def broken_agents(bench: Bench, trials: int) -> AsyncIterator[Trial]:
    """25: always the floor, and never. And one that is careful, since a suite that fails everybody proves nothing."""
    made: tuple[tuple[str, Callable[[], Agent], bool], ...] = (
        ("always-eager", EagerAgent, True),
        ("never-answering", SilentAgent, True),
        ("careful, 700 ms", lambda: delayed_agent(0.7), False),
    )
    for number, (name, agent, must_fail) in enumerate(made):
        numbers = TRIED_ON if must_fail else CLEARED_BY
        results = await asyncio.to_thread(tried, bench, agent, numbers, max(4, min(trials, 10)))
        caught = is_caught(results)
        found = {f"{result.scenario} {result.name}": result.verdict for result in results}
        values = {"caught": float(caught)} if must_fail else {"cleared": float(not caught)}
        failed = None
        if must_fail is not caught:
            failed = "the suite did not fail it" if must_fail else "the suite failed it"
        yield Trial(25, seed_of(bench, 25, number), name, values, failed=failed, details={"verdicts": found})


# --- 26: a stage that got slower ---------------------------------------------------------------------------------


def measured(bench: Bench, delays: StageDelays) -> list[dict[str, float]]:
    """Own stages of each of twenty turns with an agent of those delays, ms; on virtual time. Blocks."""

    async def run() -> list[dict[str, float]]:
        rows: list[dict[str, float]] = []

        def judge(recording: Recording, said: Said) -> Trial:
            marks = trace_marks(recording.between(said.start_ms, said.until_ms))
            rows.append(own_stages(marks[-1]) if marks else {})
            return Trial(26, 0, said.what.name, {})

        async with InProcessDoor(StagedAgent(delays), clock=VirtualClock()) as door:
            inner = SuiteBench(door, bench.material, bench.seed, sizes=QUICK)
            chosen = await several(bench.material.follow_up, _TURNS)
            async for _trial in share_calls(inner, 26, chosen, judge):
                pass
        return rows

    return run_virtual(run())


async def slower_stages(bench: Bench, trials: int) -> AsyncIterator[Trial]:
    """26: 80 ms added to each stage in turn; and nothing added, which must find nothing."""
    usual = StageDelays(seed=bench.seed)
    before = Baseline.of_rows({"turns": await asyncio.to_thread(measured, bench, usual)})
    for number, stage in enumerate((*STAGES, None)):
        delays = replace(usual, seed=bench.seed + 1) if stage is None else usual.more(stage, SLOWER_MS)
        after = Baseline.of_rows({"turns": await asyncio.to_thread(measured, bench, delays)})
        found = compare(before, after)
        yield _named(bench, number, stage, found)


def _named(bench: Bench, number: int, stage: str | None, found: Sequence[Regression]) -> Trial:
    names = [regression.stage for regression in found]
    details = {"found": [str(regression) for regression in found]}
    seed = seed_of(bench, 26, number)
    if stage is None:
        failed = f"it named {', '.join(names)}" if names else None
        return Trial(26, seed, "nothing slower", {"quiet": float(not names)}, failed=failed, details=details)
    right = names == [stage]
    failed = None if right else f"it named {', '.join(names) or 'nothing'}"
    return Trial(26, seed, f"{stage} + 80 ms", {"named": float(right)}, failed=failed, details=details)


SCENARIOS = (
    Scenario(
        25,
        "agents that must fail",
        (Limit("caught", "min", at_least=1.0), Limit("cleared", "min", at_least=1.0)),
        broken_agents,
        trials=20,
        minutes=1.0,
    ),
    Scenario(
        26,
        "80 ms more in one stage",
        (Limit("named", "min", at_least=1.0), Limit("quiet", "min", at_least=1.0)),
        slower_stages,
        trials=20,
        minutes=1.0,
    ),
)
