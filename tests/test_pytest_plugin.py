"""The pytest plugin, run on small suites the way its users run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import duplex.testing.gate  # noqa: F401  suites below run in this process, where numpy can be loaded only once
from duplex.testing.delays import SLOWABLE

pytest_plugins = ["pytester"]

SUITE = """
    import os
    from duplex.testing import Jitter, ScriptedAgent, ScriptedReply, ScriptedStages, slowed

    SLOWER = {os.environ["SLOW_STAGE"]: 80.0} if os.environ.get("SLOW_STAGE") else {}
    SEED = int(os.environ.get("SEED", "1"))

    def agent(seed, reply_s=0.3):
        noise = ScriptedStages(*(Jitter(mean, 12, SEED * 100 + seed) for mean in (60, 200, 70)))
        return slowed(ScriptedAgent([ScriptedReply(duration_s=reply_s)], stages=noise), **SLOWER)

    def test_twenty_turns(duplex_call):
        call = duplex_call(agent(1))
        assert all(call.say(speech_s=0.3).answered for _ in range(20))

    def test_interruption(duplex_call):
        assert duplex_call(agent(2, reply_s=1.5)).interrupt(after_s=0.8).yielded

    def test_nothing_to_do_with_calls():
        pass
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Runs pytest in the folder at hand, with no plugin but ours and those named with -p."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(*arguments: str, **environment: str) -> pytest.RunResult:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        plugins = ("-p", "duplex.pytest_plugin", "-p", "no:cacheprovider")
        result = pytester.runpytest_inprocess(*plugins, *arguments)
        for name in environment:
            monkeypatch.delenv(name)
        return result

    return run


# --- calls in tests ----------------------------------------------------------------------------------


def test_a_suite_uses_calls_in_sync_and_in_async_tests(pytester: pytest.Pytester, run) -> None:  # type: ignore[no-untyped-def]
    pytester.makepyfile(
        """
        import asyncio
        import pytest
        from duplex.testing import ScriptedAgent, budget

        def test_sync(duplex_call):
            turn = duplex_call(ScriptedAgent()).say()
            assert turn.answered
            budget(turn, voice_to_voice_ms=400)

        @pytest.mark.asyncio
        async def test_async(duplex_call):
            call = duplex_call(ScriptedAgent())
            await asyncio.sleep(0)
            assert call.say().answered
            assert call.backchannel(after_s=0.8).resumed

        def test_two_calls_at_once(duplex_call):
            one, other = duplex_call(ScriptedAgent()), duplex_call(ScriptedAgent())
            assert one.say().answered
            assert other.turns == []
        """
    )
    run("-p", "pytest_asyncio.plugin", "-W", "ignore").assert_outcomes(passed=3)


def test_calls_need_no_asyncio_plugin(pytester: pytest.Pytester, run) -> None:  # type: ignore[no-untyped-def]
    pytester.makepyfile(
        """
        from duplex.testing import ScriptedAgent

        def test_sync(duplex_call):
            assert duplex_call(ScriptedAgent()).say().answered
        """
    )
    run().assert_outcomes(passed=1)


def test_a_missed_budget_names_the_stage_and_shows_the_turn(pytester: pytest.Pytester, run) -> None:  # type: ignore[no-untyped-def]
    pytester.makepyfile(
        """
        from duplex.testing import ScriptedAgent, ScriptedStages, budget

        def test_budget(duplex_call):
            stages = ScriptedStages(thinker_ms=380)
            call = duplex_call(ScriptedAgent(answer=lambda history, said: "It is noon.", stages=stages))
            budget(call.say("What time is it?"), talker_ms=100, thinker_ms=300)
        """
    )
    result = run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*AssertionError: thinker took 380 ms; the budget is 300 ms (80 ms over)",
            "*thinker * 380 ms *####*",
            "*- duplex call 1 -*",
            "user: What time is it?",
            "assistant: It is noon.",
        ]
    )
    assert "talker took" not in result.stdout.str()
    assert "testing/turns.py" not in result.stdout.str()  # the traceback ends in the test


def test_calls_are_hung_up_when_the_test_fails(pytester: pytest.Pytester, run) -> None:  # type: ignore[no-untyped-def]
    pytester.makepyfile(
        """
        from duplex.testing import ScriptedAgent

        agent = ScriptedAgent()

        def test_fails(duplex_call):
            duplex_call(agent).say()
            assert False

        def test_after():
            assert agent.sessions[0].closed
        """
    )
    run().assert_outcomes(failed=1, passed=1)


def test_loading_the_plugin_loads_nothing_of_the_runtime() -> None:
    script = (
        "import sys, duplex.pytest_plugin; "
        "print([m for m in sys.modules if m.startswith('duplex.') and m != 'duplex.pytest_plugin' or m == 'numpy'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- the gate ----------------------------------------------------------------------------------------


_made: list[bytes] = []  # the suite's baseline, made once


@pytest.fixture
def suite(pytester: pytest.Pytester, run) -> Path:  # type: ignore[no-untyped-def]
    """A suite and its baseline; returns where that lies."""
    pytester.makepyfile(test_bot=SUITE)
    if _made:
        (pytester.path / "b.json").write_bytes(_made[0])
        return pytester.path / "b.json"
    result = run("--duplex-baseline=b.json", "--duplex-update-baseline")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*b.json written: 23 measurements of 2 tests."])
    _made.append((pytester.path / "b.json").read_bytes())
    return pytester.path / "b.json"


def test_an_unchanged_bot_passes_and_the_file_stays(suite: Path, run) -> None:  # type: ignore[no-untyped-def]
    before = suite.read_bytes()
    result = run("--duplex-baseline=b.json")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*2 tests compared with *b.json, stage by stage*"])
    assert suite.read_bytes() == before


@pytest.mark.parametrize("seed", ["2", "3"])
def test_fresh_noise_passes(suite: Path, run, seed: str) -> None:  # type: ignore[no-untyped-def]
    assert run("--duplex-baseline=b.json", SEED=seed).ret == pytest.ExitCode.OK


@pytest.mark.parametrize("seed", ["2"])  # other noise than the baseline's
@pytest.mark.parametrize("stage", SLOWABLE)
def test_80_ms_in_one_stage_fail_the_run_and_that_stage_is_named(suite: Path, run, stage: str, seed: str) -> None:  # type: ignore[no-untyped-def]
    result = run("--duplex-baseline=b.json", SLOW_STAGE=stage, SEED=seed)
    result.assert_outcomes(passed=3)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    slower = [line for line in result.outlines if "got slower" in line]
    assert [line.split()[0] for line in slower] == [stage]
    rows = [line.split() for line in result.outlines if line.endswith("::test_twenty_turns") and "+" in line]
    [row] = rows
    assert row[0] == stage
    assert 60 <= int(row[1]) <= 100


def test_a_generous_threshold_lets_80_ms_pass(suite: Path, run) -> None:  # type: ignore[no-untyped-def]
    slower = {"SLOW_STAGE": "thinker"}
    assert run("--duplex-baseline=b.json", "--duplex-threshold-ms=100", **slower).ret == pytest.ExitCode.OK
    assert run("--duplex-baseline=b.json", "--duplex-threshold-percent=60", **slower).ret == pytest.ExitCode.OK
    assert run("--duplex-baseline=b.json", "--duplex-threshold-ms=60", **slower).ret == pytest.ExitCode.TESTS_FAILED


def test_settings_come_from_the_ini_file_too(pytester: pytest.Pytester, suite: Path, run) -> None:  # type: ignore[no-untyped-def]
    pytester.makeini("[pytest]\nduplex_baseline = b.json\nduplex_threshold_ms = 100\n")
    result = run(SLOW_STAGE="thinker")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*may grow by 100 ms and 10 %*"])
    assert run("--duplex-threshold-ms=20", SLOW_STAGE="thinker").ret == pytest.ExitCode.TESTS_FAILED


def test_a_part_of_the_suite_is_compared_with_its_part(suite: Path, run) -> None:  # type: ignore[no-untyped-def]
    result = run("--duplex-baseline=b.json", "-k", "twenty", SLOW_STAGE="talker")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "test_interruption" not in result.stdout.str()
    unrelated = run("--duplex-baseline=b.json", "-k", "nothing")
    assert unrelated.ret == pytest.ExitCode.OK
    unrelated.stdout.fnmatch_lines(["No test measured anything*"])


def test_updating_a_part_keeps_the_rest(suite: Path, run) -> None:  # type: ignore[no-untyped-def]
    arguments = ("--duplex-baseline=b.json", "--duplex-update-baseline", "-k", "twenty")
    result = run(*arguments, SLOW_STAGE="talker")
    result.stdout.fnmatch_lines(["1 tests that did not run keep what they had*"])
    assert run("--duplex-baseline=b.json", "-k", "twenty", SLOW_STAGE="talker").ret == pytest.ExitCode.OK
    assert run("--duplex-baseline=b.json", "-k", "interruption").ret == pytest.ExitCode.OK


def test_a_new_test_is_news_and_a_lost_stage_is_a_failure(pytester: pytest.Pytester, suite: Path, run) -> None:  # type: ignore[no-untyped-def]
    text = (pytester.path / "test_bot.py").read_text("utf-8")
    more = "\ndef test_new(duplex_call):\n    duplex_call(agent(1)).say()\n"
    (pytester.path / "test_bot.py").write_text(text + more, "utf-8")
    result = run("--duplex-baseline=b.json")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["Not in the baseline, so not compared: test_bot.py::test_new."])
    blind = text.replace(", stages=noise)", ")")
    (pytester.path / "test_bot.py").write_text(blind, "utf-8")
    result = run("--duplex-baseline=b.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["thinker was measured 20 times in *::test_twenty_turns, and now never."])


def test_a_run_that_fails_writes_no_baseline(pytester: pytest.Pytester, suite: Path, run) -> None:  # type: ignore[no-untyped-def]
    before = suite.read_bytes()
    text = (pytester.path / "test_bot.py").read_text("utf-8")
    (pytester.path / "test_bot.py").write_text(text.replace(".answered for", ".took_over for"), "utf-8")
    result = run("--duplex-baseline=b.json", "--duplex-update-baseline")
    result.assert_outcomes(failed=1, passed=2)
    result.stdout.fnmatch_lines(["*b.json was not written: a baseline is made from a run that passes."])
    assert suite.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--duplex-baseline=none.json"], "*no baseline at *none.json yet*--duplex-update-baseline*"),
        (["--duplex-update-baseline"], "*needs --duplex-baseline FILE*"),
        (["--duplex-baseline=b.json", "--duplex-threshold-ms=-1"], "*duplex_threshold_ms is -1.0*"),
        (["--duplex-baseline=bad.json"], "*schema 'duplex.baseline/99'*"),
    ],
)
def test_a_run_that_cannot_be_judged_does_not_begin(
    pytester: pytest.Pytester,
    suite: Path,
    run,  # type: ignore[no-untyped-def]
    arguments: list[str],
    says: str,
) -> None:
    (pytester.path / "bad.json").write_text('{"schema": "duplex.baseline/99"}', "utf-8")
    result = run(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([says])


def test_a_threshold_in_the_ini_file_that_is_no_number_is_refused(pytester: pytest.Pytester, suite: Path, run) -> None:  # type: ignore[no-untyped-def]
    pytester.makeini("[pytest]\nduplex_threshold_percent = much\n")
    result = run("--duplex-baseline=b.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*duplex_threshold_percent is 'much'*"])


def test_a_baseline_that_cannot_be_read_is_replaced_when_told_to(pytester: pytest.Pytester, suite: Path, run) -> None:  # type: ignore[no-untyped-def]
    suite.write_text("{", "utf-8")
    assert run("--duplex-baseline=b.json", "--duplex-update-baseline").ret == pytest.ExitCode.OK
    assert run("--duplex-baseline=b.json").ret == pytest.ExitCode.OK


def test_workers_of_xdist_measure_and_the_controller_judges(suite: Path, run) -> None:  # type: ignore[no-untyped-def]
    before = suite.read_bytes()
    result = run("--duplex-baseline=b.json", "-pxdist.plugin", "-n2", SLOW_STAGE="listener")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert [line.split()[0] for line in result.outlines if "got slower" in line] == ["listener"]
    suite.unlink()
    assert (
        run("--duplex-baseline=b.json", "--duplex-update-baseline", "-pxdist.plugin", "-n2").ret == pytest.ExitCode.OK
    )
    assert suite.read_bytes() == before
