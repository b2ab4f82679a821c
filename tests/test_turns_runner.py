"""What goes wrong with one trial, call or scenario stays there; and what a person gets to see."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from turns_material import Tones, bench

from duplex.benchmarks.turns.agents import delayed_agent
from duplex.benchmarks.turns.command import _numbers, _parser, main, trials_of
from duplex.benchmarks.turns.contract import Bench, Call, CallOptions, Limit, Scenario, Trial
from duplex.benchmarks.turns.doors import InProcessDoor
from duplex.benchmarks.turns.material import Material
from duplex.benchmarks.turns.play import Said, share_calls
from duplex.benchmarks.turns.printing import Progress, print_results, shown
from duplex.benchmarks.turns.results import ScenarioResult, SuiteResult, load_clip
from duplex.benchmarks.turns.runner import ConfiguredDoor, Quiet, Runner
from duplex.benchmarks.turns.scenarios import SCENARIOS
from duplex.benchmarks.turns.server_counts import metrics_url, read_metrics, weigh
from duplex.benchmarks.turns.trials import PLAIN, CannotRunError, called, one_by_one, rng_of, seed_of, side_by_side
from duplex.cli_bench import benchmarks
from duplex.clock import VirtualClock
from duplex.errors import AgentFullError, DuplexError, TransportError
from duplex.recording import Recording, Span
from duplex.testing import run_virtual


class NoDoor:
    """A door nobody goes through."""

    name = "none"

    def call(self, options: CallOptions = PLAIN) -> AbstractAsyncContextManager[Call]:
        raise AssertionError


def collect(trials: AsyncIterator[Trial]) -> list[Trial]:
    async def run() -> list[Trial]:
        return [trial async for trial in trials]

    return run_virtual(run())


def judged(number: int, valid: bool = True) -> Trial:
    return Trial(1, number, f"t{number}", {"x": 1.0}, valid=valid)


# --- trials ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_judged_is_repeated_within_bounds() -> None:
    async def every_other(_bench: Bench, number: int) -> Trial:
        return judged(number, valid=number % 2 == 1)

    async def never(_bench: Bench, number: int) -> Trial:
        return judged(number, valid=False)

    trials = collect(one_by_one(bench(NoDoor()), 1, 4, every_other))
    assert sum(trial.valid for trial in trials) == 3  # 4 and half as many again were tried
    assert len(trials) == 6
    assert len(collect(one_by_one(bench(NoDoor()), 1, 4, never))) == 6
    assert len(collect(side_by_side(bench(NoDoor()), 1, 4, never, 2))) == 6


@pytest.mark.parametrize("error", [TransportError("the line is dead"), TimeoutError()])
def test_a_broken_line_fails_its_trial_only(error: Exception) -> None:
    async def second_breaks(_bench: Bench, number: int) -> Trial:
        if number == 1:
            raise error
        return judged(number)

    first, second, third = collect(one_by_one(bench(NoDoor()), 1, 3, second_breaks))
    assert (first.failed, third.failed) == (None, None)
    assert second.valid
    assert second.failed
    assert second.values == {"broken": 1.0}


def test_side_by_side_keeps_order_and_width() -> None:
    at_once, most = 0, 0

    async def slow(_bench: Bench, number: int) -> Trial:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(10.0 - number)
        at_once -= 1
        return judged(number)

    trials = collect(side_by_side(bench(NoDoor()), 1, 7, slow, 3))
    assert [trial.seed for trial in trials] == list(range(7))
    assert most == 3


def test_a_full_server_is_waited_for_and_not_for_ever() -> None:
    class FullDoor(NoDoor):
        refusals = 3

        def call(self, options: CallOptions = PLAIN) -> AbstractAsyncContextManager[Call]:
            return self._call()

        @asynccontextmanager
        async def _call(self) -> AsyncIterator[Any]:
            if self.refusals > 0:
                self.refusals -= 1
                raise AgentFullError("full", 5.0)
            yield "a call"

    async def run(door: FullDoor) -> float:
        async with called(bench(door)) as call:
            assert call == "a call"
        return asyncio.get_running_loop().time()

    assert run_virtual(run(FullDoor())) == pytest.approx(15.0)
    never = FullDoor()
    never.refusals = 10_000
    with pytest.raises(AgentFullError):
        run_virtual(run(never))


def test_seeds_depend_on_scenario_and_number_alone() -> None:
    here = bench(NoDoor())
    assert seed_of(here, 7, 3) == seed_of(here, 7, 3)
    assert len({seed_of(here, scenario, number) for scenario in range(1, 27) for number in range(100)}) == 2600
    assert rng_of(here, 7, 3).random() == rng_of(here, 7, 3).random()
    assert seed_of(bench(NoDoor(), seed=2), 7, 3) != seed_of(here, 7, 3)


def test_turns_after_a_broken_call_go_on_on_another() -> None:
    calls = 0

    class Breaking(InProcessDoor):
        def call(self, options: CallOptions = PLAIN) -> AbstractAsyncContextManager[Call]:
            return self._breaking(options)

        @asynccontextmanager
        async def _breaking(self, options: CallOptions) -> AsyncIterator[Call]:
            nonlocal calls
            calls += 1
            async with super().call(options) as call:
                if calls == 1:
                    whole, said = call.play, 0

                    async def play(samples: Any) -> Span:
                        nonlocal said
                        said += 1
                        if said == 3:
                            raise TransportError("the line is dead")
                        return await whole(samples)

                    call.play = play  # type: ignore[method-assign]
                yield call

    async def run() -> list[Trial]:
        async with Breaking(delayed_agent(0.4), clock=VirtualClock()) as door:
            things = [Tones().question(k) for k in range(5)]

            def judge(recording: Recording, said: Said) -> Trial:
                return Trial(1, said.number, said.what.name, {"from": said.start_ms})

            return [trial async for trial in share_calls(bench(door), 1, things, judge)]

    trials = run_virtual(run())
    assert [trial.stimulus for trial in trials] == [f"question {k}" for k in range(5)]
    assert [trial.failed for trial in trials] == [None, None, "the line is dead", None, None]
    assert calls == 2


# --- the runner -------------------------------------------------------------------------------------------------


def scenario(run: Any, *limits: Limit, number: int = 1) -> Scenario:
    return Scenario(number, f"scenario {number}", limits or (Limit("x", "mean", at_least=1.0),), run)


def run_all(*scenarios: Scenario, keep: Path | None = None) -> list[ScenarioResult]:
    return run_virtual(Runner(bench(NoDoor()), keep=keep).run(scenarios, lambda _s: 3, Quiet()))


async def three(_bench: Bench, trials: int) -> AsyncIterator[Trial]:
    stereo = np.full((240_000, 2), 0.1, np.float32)
    for number in range(trials):
        failed = "badly" if number == 1 else None
        yield Trial(1, number, "s", {"x": float(failed is None)}, Recording(stereo, 20.0), Span(5000, 6000), failed)


def test_a_scenario_that_breaks_off_is_a_miss_and_the_next_one_is_run() -> None:
    async def breaks(_bench: Bench, trials: int) -> AsyncIterator[Trial]:
        yield judged(0)
        raise DuplexError("the server is gone")

    async def cannot(_bench: Bench, trials: int) -> AsyncIterator[Trial]:
        raise CannotRunError("no network here")
        yield judged(0)

    broken, unable, fine = run_all(scenario(breaks), scenario(cannot, number=2), scenario(three, number=3))
    assert (broken.verdict, unable.verdict, fine.verdict) == ("miss", "not run", "miss")
    assert "the server is gone" in (broken.note or "")
    assert unable.note == "no network here"
    assert fine.measures["x"].mean == pytest.approx(2 / 3)


def test_failing_trials_are_kept_with_what_was_around_them(tmp_path: Path) -> None:
    [result] = run_all(scenario(three), keep=tmp_path)
    first, failing, other = result.trials
    assert first.clip is not None  # one that went well, to compare with
    assert failing.clip is not None
    assert other.clip is None
    assert load_clip(tmp_path, failing.clip).duration_ms == pytest.approx(7000)
    assert failing.clip.start_ms == 2000
    assert (failing.start_ms, failing.end_ms, failing.failed) == (5000, 6000, "badly")


def test_a_configured_door_asks_for_what_no_scenario_asks_for() -> None:
    asked: list[CallOptions] = []

    class Listening(NoDoor):
        def call(self, options: CallOptions = PLAIN) -> AbstractAsyncContextManager[Call]:
            asked.append(options)
            raise TransportError("enough")

    door = ConfiguredDoor(Listening(), "Be brief.", {"preset": "patient"})
    for options in (CallOptions(), CallOptions(instructions="Tell a story.")):
        with pytest.raises(TransportError):
            door.call(options)
    assert [each.instructions for each in asked] == ["Be brief.", "Tell a story."]
    assert all(each.turn_taking == {"preset": "patient"} for each in asked)


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command_is_among_the_benchmarks() -> None:
    found = benchmarks()
    assert found["turns"].startswith("Turn-taking")
    assert "voice" in found


def test_numbers_and_ranges() -> None:
    assert _numbers("1,3,12-15") == {1, 3, 12, 13, 14, 15}
    with pytest.raises(SystemExit):
        _parser().parse_args(["--only", "one"])
    with pytest.raises(SystemExit):
        _parser().parse_args(["--turn-taking", "[1]"])
    assert _parser().parse_args(["--turn-taking", '{"preset": "eager"}']).turn_taking == {"preset": "eager"}


def test_trials_are_twenty_unless_asked_otherwise() -> None:
    rows = {each.number: each for each in SCENARIOS}
    assert trials_of(_parser().parse_args([]))(rows[7]) == 20
    assert trials_of(_parser().parse_args(["--quick"]))(rows[7]) == 5
    assert trials_of(_parser().parse_args(["--trials", "30"]))(rows[7]) == 30
    assert trials_of(_parser().parse_args(["--trials", "30"]))(rows[21]) == 2  # calls of ten minutes each


def test_the_table_tells_what_was_missed_and_what_was_not_run() -> None:
    async def cannot(_bench: Bench, trials: int) -> AsyncIterator[Trial]:
        raise CannotRunError("no network here")
        yield judged(0)

    out = StringIO()
    console = Console(file=out, width=160)
    scenarios = [scenario(three), scenario(cannot, number=2)]
    with Progress(scenarios, lambda _s: 3, console) as progress:
        results = run_virtual(Runner(bench(NoDoor())).run(scenarios, lambda _s: 3, progress))
        assert progress.minutes_left == 0
    about = {"cpu": "a machine", "cores": 2, "python": "3.11", "system": "Linux"}
    suite = SuiteResult("0", about, {"before": [0.1]}, {}, "webrtc", 1, "reporting", True, "now", 60.0, tuple(results))
    print_results(suite, console)
    text = out.getvalue()
    for wanted in ("scenario 1", "67 %", "mean ≥ 1", "miss", "not run", "no network here", "quick run", "a machine"):
        assert wanted in text
    assert not suite.passed


def test_a_run_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Material, "load", lambda *_args, **_more: Tones())
    monkeypatch.setenv("DUPLEX_AGENT__NAME", "echo")
    out = ["--json", str(tmp_path / "here.json"), "--out", str(tmp_path / "out"), "--strict"]
    assert main(["--in-process", "--only", "26", *out]) == 0
    found = SuiteResult.load_file(tmp_path / "here.json")
    assert found.passed
    assert (found.door, found.seed, [row.verdict for row in found.results]) == ("in-process", 1, ["pass"])
    assert SuiteResult.load_file(tmp_path / "out" / "turns.json") == found
    assert "80 ms more in one stage" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_what_cannot_be_run_is_said_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "27"]) == 1
    assert "no scenario 27" in capsys.readouterr().out


def test_figures_have_the_digits_they_deserve() -> None:
    assert [shown(value) for value in (1234.5, 20.4, 0.123, 2.0)] == ["1234", "20", "0.12", "2"]


# --- what a server weighs ------------------------------------------------------------------------------------------


def test_metrics_are_added_up_by_name() -> None:
    replies = 'duplex_replies_total{status="a"} 1.0\nduplex_replies_total{status="b"} 2\n'
    text = f"# HELP x y\nduplex_underruns_total 3.0\n{replies}"
    assert read_metrics(text, ("duplex_underruns_total", "duplex_replies_total", "none")) == {
        "duplex_underruns_total": 3.0,
        "duplex_replies_total": 3.0,
    }


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "ws://h:1/v1/realtime", "http://h:1/v1/realtime/calls"])
def test_metrics_are_asked_for_at_the_root(url: str) -> None:
    assert metrics_url(url) == "http://h:1/metrics"


def test_this_process_can_be_weighed_and_one_that_is_not_there_cannot() -> None:
    import os

    weight = weigh(os.getpid())
    assert weight is not None
    assert weight.memory_mb > 10
    assert weight.threads >= 1
    assert weigh(None) is None
    assert weigh(2**22 + 1) is None
