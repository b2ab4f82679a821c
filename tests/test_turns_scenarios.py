"""The suite finds what is there: it fails agents that must fail, and measures a known delay; on virtual time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from turns_material import bench

from duplex.agent import Agent
from duplex.benchmarks.turns.agents import EagerAgent, SilentAgent, StagedAgent, StageDelays, delayed_agent
from duplex.benchmarks.turns.contract import Trial
from duplex.benchmarks.turns.doors import InProcessDoor
from duplex.benchmarks.turns.results import ScenarioResult
from duplex.benchmarks.turns.runner import Quiet, Runner
from duplex.benchmarks.turns.scenarios import SCENARIOS, chosen
from duplex.benchmarks.turns.scenarios_self import broken_agents, is_caught, measured, slower_stages
from duplex.clock import VirtualClock
from duplex.errors import DuplexError
from duplex.testing import ScriptedAgent, ScriptedReply, ScriptedTiming, run_virtual

PLAYOUT_MS = 20.0


def found_out(agent: Callable[[], Agent], numbers: Sequence[int], trials: int = 4) -> dict[int, ScenarioResult]:
    """The results of those scenarios with an agent, by number."""

    async def run() -> dict[int, ScenarioResult]:
        async with InProcessDoor(agent(), clock=VirtualClock(), max_sessions=8) as door:
            results = await Runner(bench(door)).run(chosen(set(numbers)), lambda _scenario: trials, Quiet())
        return {result.scenario: result for result in results}

    return run_virtual(run())


def storyteller(**timing: float) -> ScriptedAgent:
    return ScriptedAgent(
        (ScriptedReply("one two three four five six seven eight nine ten", 0.1, 9.0),), ScriptedTiming(**timing)
    )


# --- agents that must fail ---------------------------------------------------------------------------------


def test_an_agent_that_always_takes_the_floor_fails() -> None:
    found = found_out(EagerAgent, (1, 3, 7))
    assert [found[number].verdict for number in (1, 3, 7)] == ["miss", "miss", "miss"]
    assert found[3].measures["takeover"].mean == 1.0
    assert found[1].measures["answered"].mean == 0.0
    assert is_caught(list(found.values()))


def test_an_agent_that_never_takes_the_floor_fails() -> None:
    found = found_out(SilentAgent, (1, 3, 7))
    assert found[1].verdict == "miss"
    assert found[1].measures["answered"].mean == 0.0
    assert found[3].measures["takeover"].mean == 0.0  # it never spoke, so never into a pause either
    assert found[7].verdict == "not judged"
    assert is_caught(list(found.values()))


def test_an_agent_that_is_careful_passes_where_it_is() -> None:
    found = found_out(lambda: delayed_agent(0.4), (1, 6, 7))
    assert found[1].verdict == "pass"
    assert found[7].verdict == "pass"
    assert not is_caught([found[1], found[7]])


@pytest.mark.parametrize("delay_ms", [300, 400, 700])
def test_a_known_delay_is_measured_within_twenty_ms(delay_ms: int) -> None:
    result = found_out(lambda: delayed_agent(delay_ms / 1000.0), (1,), trials=10)[1]
    measured_ms = np.asarray(result.measures["voice_to_voice_ms"].values)
    assert len(measured_ms) == 10
    assert np.all(np.abs(measured_ms - (delay_ms + PLAYOUT_MS)) <= 20.0), measured_ms


def test_the_suite_tries_itself() -> None:
    async def run() -> list[Trial]:
        return [trial async for trial in broken_agents(bench(None), 4)]

    trials = run_virtual(run())
    assert [trial.values for trial in trials] == [{"caught": 1.0}, {"caught": 1.0}, {"cleared": 1.0}]
    assert not any(trial.failed for trial in trials)


# --- what each scenario makes of agents with known manners ---------------------------------------------------


def test_pauses_are_left_alone_or_taken() -> None:
    hasty = found_out(lambda: ScriptedAgent(timing=ScriptedTiming(complete_s=0.5)), (3, 5))
    assert hasty[3].measures["takeover"].mean == 1.0
    assert hasty[5].measures["one_turn"].mean == 0.0
    patient = found_out(lambda: ScriptedAgent(timing=ScriptedTiming(complete_s=0.8)), (3, 5))
    assert (patient[3].verdict, patient[5].verdict) == ("pass", "pass")


def test_a_backchannel_is_resumed_from_or_given_in_to() -> None:
    kept = found_out(storyteller, (6,))[6]
    assert kept.measures["abandoned"].mean == 0.0
    # held with the first voiced frame, resumed 200 ms after the last: 300 + 200 ms, and packets at both ends
    assert kept.measures["resume_gap_ms"].p95 == pytest.approx(500, abs=45)
    yielded = found_out(lambda: storyteller(interrupt_s=0.1), (6,))[6]
    assert yielded.measures["abandoned"].mean == 1.0
    assert yielded.verdict == "miss"
    assert len(yielded.failures) == 4


def test_an_interruption_is_yielded_to_or_not() -> None:
    found = found_out(storyteller, (7,))[7]
    assert found.verdict == "pass"
    assert found.measures["stop_ms"].p95 <= 100
    deaf = found_out(EagerAgent, (7,))[7]
    assert deaf.measures["yielded"].mean == 0.0
    stubborn = found_out(lambda: storyteller(interrupt_s=9.0), (7,))[7]
    assert stubborn.measures["yielded"].mean == 0.0  # it pauses, and goes on with what it was saying


def test_after_stop_it_has_to_stay_silent() -> None:
    talkative = found_out(storyteller, (8,))[8]  # it answers "Stop." like anything else
    assert talkative.measures["stayed_silent"].mean == 0.0
    assert talkative.measures["silent_ms"].p95 < 2000
    assert talkative.verdict == "miss"


def test_memory_after_an_interruption_is_compared_with_the_sound() -> None:
    found = found_out(storyteller, (9,))[9]
    assert found.verdict == "pass", found.trials
    kept = [trial.details["kept"] for trial in found.trials]
    assert all(1 <= len(text.split()) <= 14 for text in kept)  # 0.3 s each


def test_early_interruptions_leave_one_reply_and_a_floor() -> None:
    assert found_out(storyteller, (10,))[10].verdict == "pass"


def test_noise_silence_and_other_people() -> None:
    found = found_out(storyteller, (11, 12, 13, 14))
    assert {number: result.verdict for number, result in found.items()} == {
        11: "pass",
        12: "pass",
        13: "pass",
        14: "miss",
    }
    assert found[14].measures["replied_idle"].mean == 1.0  # energy is all it goes by
    assert found[14].measures["false_stop"].mean == 0.0


def test_an_agent_that_talks_to_itself_is_found() -> None:
    echoing = found_out(lambda: storyteller(interrupt_s=0.06), (15,))[15]
    assert echoing.verdict == "miss"
    assert echoing.measures["per_10_min"].max > 1.0


def test_monologues_of_both_sides() -> None:
    found = found_out(storyteller, (18, 19))
    assert found[18].verdict == "pass"
    assert found[19].verdict == "pass"
    hasty = ScriptedTiming(pause_s=0.06, complete_s=0.12)
    interrupting = found_out(lambda: ScriptedAgent((ScriptedReply(duration_s=0.5),), hasty), (18,))[18]
    assert interrupting.measures["interruptions"].max > 1
    assert interrupting.verdict == "miss"


def test_half_an_hour_is_three_times_the_same() -> None:
    found = found_out(lambda: delayed_agent(0.8), (24,))[24]
    assert found.measures["p95_drift"].max <= 0.10
    assert found.verdict == "not judged"  # nobody can weigh a process that is not there


def test_what_needs_a_network_or_a_process_says_so() -> None:
    found = found_out(storyteller, (20, 21, 22, 23))
    assert {result.verdict for result in found.values()} == {"not run"}
    assert all(result.note for result in found.values())


def test_both_start_at_once() -> None:
    assert found_out(storyteller, (16, 17))[17].measures["resolved"].mean == 1.0


# --- the gate --------------------------------------------------------------------------------------------------


def test_the_stage_that_got_slower_is_named() -> None:
    async def run() -> list[Trial]:
        return [trial async for trial in slower_stages(bench(None), 4)]

    trials = run_virtual(run())
    assert [trial.values for trial in trials] == [{"named": 1.0}] * 3 + [{"quiet": 1.0}]


def test_stages_take_as_long_as_they_are_told_to() -> None:
    rows = measured(bench(None), StageDelays(listener=60, thinker=160, talker=80, spread_ms=0))
    assert len(rows) == 20
    for stage, wanted_ms in (("listener", 60), ("thinker", 160), ("talker", 80)):
        assert [row[stage] for row in rows] == pytest.approx([wanted_ms] * 20, abs=0.2)


def test_an_agent_of_stages_can_be_slowed_in_one() -> None:
    delays = StageDelays().more("thinker", 80)
    assert (delays.listener, delays.thinker, delays.talker) == (60, 240, 80)
    assert StagedAgent(delays).info.name == "staged"


# --- the table -----------------------------------------------------------------------------------------------------


def test_every_row_of_the_table_is_there_once_and_has_limits() -> None:
    assert [scenario.number for scenario in SCENARIOS] == list(range(1, 27))
    assert all(scenario.limits for scenario in SCENARIOS)
    assert all(scenario.trials >= 20 for scenario in SCENARIOS if scenario.number != 21)
    for scenario in SCENARIOS:
        for limit in scenario.limits:
            assert (limit.at_most is None) != (limit.at_least is None)


def test_scenarios_are_chosen_by_number() -> None:
    assert [scenario.number for scenario in chosen({7, 1})] == [1, 7]
    assert len(chosen(None)) == 26
    with pytest.raises(DuplexError, match="no scenario 27"):
        chosen({27})
