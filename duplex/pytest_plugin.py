"""pytest for voice bots: calls on virtual time, budgets for stages, and a gate against getting slower.

Loaded by pytest through the entry point ``duplex``. It registers the fixture ``duplex_call`` and a few options, and
imports nothing of the runtime before a test asks for that fixture, so a suite that does not use it does not notice it.
``docs/testing.md`` is its manual.

    def test_answers(duplex_call):
        call = duplex_call(MyAgent())
        turn = call.say("What time is it?")
        assert turn.answered
        budget(turn, voice_to_voice_ms=800, thinker_ms=300)

The gate: ``--duplex-baseline FILE`` compares what was measured in this run with what the file has, and fails the run
if a stage got slower; with ``--duplex-update-baseline`` it writes the file. Under pytest-xdist the workers hand their
measurements to the controller, and it judges.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from duplex.agent import Agent, AgentSettings
    from duplex.bots import Bot
    from duplex.config import BotConfig, SessionConfig
    from duplex.testing import VirtualCall
    from duplex.testing.bots import BotCall
    from duplex.testing.gate import Gate

_CALLS: pytest.StashKey[list[VirtualCall]] = pytest.StashKey()
_GATE: pytest.StashKey[Gate] = pytest.StashKey()
_XDIST = "duplex_measured"


class CallOpener:
    """What the fixture ``duplex_call`` gives: call it with an agent to open a call on virtual time."""

    def __init__(self) -> None:
        self.calls: list[VirtualCall] = []

    def __call__(
        self,
        agent: Agent,
        *,
        config: SessionConfig | None = None,
        settings: AgentSettings | None = None,
        answer_timeout_s: float = 10.0,
    ) -> VirtualCall:
        """See :class:`duplex.testing.VirtualCall`. The call is hung up when the test is over."""
        from duplex.testing import VirtualCall

        call = VirtualCall(agent, config=config, settings=settings, answer_timeout_s=answer_timeout_s)
        self.calls.append(call)
        return call

    def to(
        self,
        bot: Bot | Callable[..., object],
        agent: Agent | None = None,
        *,
        config: SessionConfig | None = None,
        settings: AgentSettings | None = None,
        bots: BotConfig | None = None,
        facts: Mapping[str, str] | None = None,
        answer_timeout_s: float = 10.0,
    ) -> BotCall:
        """A call that a bot answers; see :class:`duplex.testing.bots.BotCall`."""
        from duplex.testing.bots import BotCall

        call = BotCall(
            bot,
            agent,
            config=config,
            settings=settings,
            bots=bots,
            facts=facts,
            answer_timeout_s=answer_timeout_s,
        )
        self.calls.append(call)
        return call


@pytest.fixture
def duplex_call(request: pytest.FixtureRequest) -> Iterator[CallOpener]:
    """Opens calls on virtual time: ``call = duplex_call(agent)``. Every turn in them is measured."""
    opener = CallOpener()
    node = cast(pytest.Item, request.node)
    node.stash[_CALLS] = opener.calls
    yield opener
    for call in opener.calls:
        call.close()
    if (gate := request.config.stash.get(_GATE, None)) is not None:
        gate.measured(node.nodeid, opener.calls)


# --- options -----------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("duplex", "duplex: latency of voice agents")
    group.addoption(
        "--duplex-baseline",
        metavar="FILE",
        default=None,
        help="compare the latency of every stage with this file, and fail if one got slower",
    )
    group.addoption(
        "--duplex-update-baseline",
        action="store_true",
        default=False,
        help="write what this run measured into the baseline instead of comparing with it",
    )
    group.addoption(
        "--duplex-threshold-ms",
        metavar="MS",
        type=float,
        default=None,
        help="how much a stage's p95 may grow, in milliseconds (20)",
    )
    group.addoption(
        "--duplex-threshold-percent",
        metavar="PERCENT",
        type=float,
        default=None,
        help="how much a stage's p95 may grow, in percent (10); the larger of the two counts",
    )
    parser.addini("duplex_baseline", "default of --duplex-baseline, relative to the root directory", default="")
    parser.addini("duplex_threshold_ms", "default of --duplex-threshold-ms", default="20")
    parser.addini("duplex_threshold_percent", "default of --duplex-threshold-percent", default="10")


def pytest_configure(config: pytest.Config) -> None:
    path = _baseline_path(config)
    update = bool(config.getoption("--duplex-update-baseline"))
    if path is None:
        if update:
            raise pytest.UsageError("--duplex-update-baseline needs --duplex-baseline FILE to say where.")
        return
    from duplex.baseline import BaselineError, Threshold
    from duplex.testing.gate import Gate

    threshold = Threshold(_threshold(config, "ms"), _threshold(config, "percent"))
    try:
        # A worker of pytest-xdist only measures.
        config.stash[_GATE] = Gate(path, threshold, update=update, judges=not hasattr(config, "workerinput"))
    except BaselineError as error:
        raise pytest.UsageError(
            f"{error} To make it: pytest --duplex-baseline {path} --duplex-update-baseline"
        ) from error


def _baseline_path(config: pytest.Config) -> Path | None:
    if given := config.getoption("--duplex-baseline"):
        return config.invocation_params.dir / str(given)
    ini = str(config.getini("duplex_baseline"))
    return config.rootpath / ini if ini else None


def _threshold(config: pytest.Config, unit: str) -> float:
    given = config.getoption(f"--duplex-threshold-{unit}")
    text = config.getini(f"duplex_threshold_{unit}") if given is None else given
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < float("inf"):
        raise pytest.UsageError(f"duplex_threshold_{unit} is {text!r}. Give a number, zero or more.")
    return value


# --- the run -----------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failing test shows what was said in its calls, and where the time went."""
    report = yield
    if report.when == "call" and report.failed:
        none: list[VirtualCall] = []
        calls = item.stash.get(_CALLS, none)
        for number, call in enumerate(calls, start=1):
            report.sections.append((f"duplex call {number}", str(call)))
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker of pytest-xdist is done: take over what it measured."""
    if (gate := node.config.stash.get(_GATE, None)) is not None:
        gate.merge(getattr(node, "workeroutput", {}).get(_XDIST, {}))


def pytest_sessionfinish(session: pytest.Session) -> None:
    gate = session.config.stash.get(_GATE, None)
    if gate is None:
        return
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[_XDIST] = gate.rows
        return
    if session.config.option.collectonly:
        return
    if not gate.judge(passed=session.exitstatus == pytest.ExitCode.OK) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    gate = config.stash.get(_GATE, None)
    if gate is None or not gate.told:
        return
    terminalreporter.section("duplex baseline")
    for line, failed in gate.told:
        terminalreporter.write_line(line, red=failed)
