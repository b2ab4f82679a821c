"""The load benchmark finds what is held, adds up what it saw, and its callers are real."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from serving import running_app, running_hub

from duplex.benchmarks.load import command
from duplex.benchmarks.load.client import Plan, beeps, run, save_sounds
from duplex.benchmarks.load.figures import (
    Load,
    Look,
    Summary,
    Waits,
    ageing,
    cost_percent,
    lag_ms,
    server_percent,
    slope_of,
    summed,
    waits_of,
)
from duplex.benchmarks.load.offer import read_buckets
from duplex.benchmarks.load.phases import (
    hold,
    in_order,
    mixed,
    overloaded,
    rise_of,
    too_much_for_cascade,
    too_much_for_transport,
)
from duplex.benchmarks.load.plot import drawn, picture
from duplex.benchmarks.load.report import answers, print_report
from duplex.benchmarks.load.search import Search
from duplex.benchmarks.server_process import ServerProcess
from duplex.clock import VirtualClock
from duplex.config import Config, ServerConfig
from duplex.loop_lag import watch_loop_lag
from duplex.recording import voiced_extent, voiced_level_dbfs
from duplex.testing import load_echo_agent, run_virtual
from duplex.transport.app import create_app

SERVER = ServerProcess("http://here", None)
PLAN = Plan("http://here", ("webrtc",), 1, "sounds.npz", hold_s=30.0)


# --- the search -----------------------------------------------------------------------------------------------


@given(st.integers(0, 300), st.integers(1, 10), st.floats(0.0, 0.3))
def test_the_search_finds_what_is_held(capacity: int, first: int, fineness: float) -> None:
    search = Search(first, 256, fineness)
    tries = 0
    while (sessions := search.next) is not None:
        search.found(sessions, sessions <= capacity)
        tries += 1
        assert tries < 30
    held = min(capacity, 256)
    assert search.held <= held
    if fineness == 0.0:
        assert search.held == held
    if held >= 256:
        assert search.held == 256
    elif search.held:
        assert held - search.held <= max(1, round(fineness * (search.failed or 0)))


# --- figures --------------------------------------------------------------------------------------------------


def turn(at_s: float, wait_ms: float | None = 400.0, took_over: bool = False) -> dict[str, Any]:
    return {"kind": "turn", "door": "webrtc", "caller": 0, "at_s": at_s, "wait_ms": wait_ms, "took_over": took_over}


def ended(**more: Any) -> dict[str, Any]:
    call = {"kind": "call", "door": "webrtc", "caller": 0, "at_s": 0.0, "seconds": 30.0, "turns": 1, "late": 0}
    return {**call, "send_late_ms": 2.0, **more}


def look(at_s: float, **more: Any) -> Look:
    values: dict[str, Any] = {"cpu_s": at_s * 0.5, "memory_mb": 100.0, "sessions": 2.0, "underruns": 0.0}
    return Look(at_s, **{**values, **more})


def load(*told: dict[str, Any], looks: tuple[Look, ...] | None = None, offered: int = 2, seconds: float = 30.0) -> Load:
    looks = looks or tuple(look(at_s) for at_s in (0.0, 10.0, 20.0, 30.0))
    return Load(offered, ("webrtc",), seconds, told, looks, clients_cpu_s=3.0)


def test_a_load_is_added_up() -> None:
    refused = {"kind": "call", "door": "webrtc", "caller": 1, "at_s": 0.0, "refused": True}
    broken = {"kind": "call", "door": "webrtc", "caller": 1, "at_s": 0.0, "broken": "it rang off"}
    some = [turn(1.0, 300.0), turn(2.0, 500.0), turn(3.0, None), turn(4.0, None, True)]
    looks = (look(0.0, underruns=3.0), look(10.0, memory_mb=150.0), look(30.0, underruns=8.0))
    found = summed(load(*some, ended(late=4), ended(late=1, door="websocket"), refused, broken, broken, looks=looks))
    assert (found.calls, found.refused, found.broken, found.why_broken) == (2, 1, 2, ("it rang off",))
    assert (found.turns, found.unanswered, found.took_over) == (4, 1, 1)
    assert found.waits is not None
    assert (found.waits.n, found.waits.p50, found.waits.p95) == (2, 500.0, 500.0)
    assert (found.underruns, found.late, found.memory_mb) == (5.0, 4, 150.0)  # a WebSocket loses no packets
    assert found.server_percent == pytest.approx(50.0)
    assert found.clients_percent == pytest.approx(10.0)


def test_the_servers_share_is_taken_while_all_callers_were_there() -> None:
    looks = (look(0.0, sessions=0.0, cpu_s=0.0), look(5.0, sessions=2.0, cpu_s=1.0), look(6.0, cpu_s=1.9))
    assert server_percent(load(looks=(*looks, look(7.0, cpu_s=2.8), look(20.0, sessions=0.0, cpu_s=3.0)))) == (
        pytest.approx(90.0)
    )
    assert server_percent(load(looks=(look(0.0, cpu_s=None), look(10.0)))) is None


def test_loop_lag_is_the_bucket_that_most_fell_into() -> None:
    text = 'x_bucket{le="0.01"} 5\nx_bucket{le="0.02"} 6\nx_bucket{le="+Inf"} 6\nx_count 6\nxx_bucket{le="1"} 9\n'
    before = read_buckets(text, "x_bucket")
    assert before == {0.01: 5.0, 0.02: 6.0, math.inf: 6.0}
    assert read_buckets(text, "y_bucket") is None
    after = {0.01: 94.0, 0.02: 105.0, math.inf: 106.0}
    assert lag_ms(after, before, 50.0) == 10.0
    assert lag_ms(after, before, 99.0) == 20.0
    assert lag_ms(after, before, 100.0) == math.inf
    assert lag_ms(before, before, 99.0) is None
    assert lag_ms(None, before, 99.0) is None


def summary(**changes: Any) -> Summary:
    values: dict[str, Any] = {
        "offered": 2, "doors": ("webrtc",), "seconds": 30.0, "calls": 2, "refused": 0, "broken": 0, "turns": 40,
        "unanswered": 0, "took_over": 0, "waits": Waits(40, 400.0, 800.0, None), "underruns": 0.0, "late": 0,
        "lag_p99_ms": 10.0, "server_percent": 20.0, "clients_percent": 30.0, "memory_mb": 100.0, "send_late_ms": 1.0,
    }  # fmt: skip
    return Summary(**{**values, **changes})


def test_the_cost_of_a_session_is_a_slope() -> None:
    loads = [summary(offered=n, server_percent=5.0 + 1.5 * n) for n in (4, 8, 16)]
    found = cost_percent(loads)
    assert found is not None
    assert found[0] == pytest.approx(1.5)
    assert found[1] is not None
    assert found[1].high - found[1].low == pytest.approx(0.0, abs=1e-6)
    assert cost_percent(loads[:1]) is None
    assert cost_percent([summary(server_percent=None), summary(offered=9, server_percent=None)]) is None
    two = cost_percent(loads[:2])
    assert two is not None
    assert two[1] is None
    with pytest.raises(ValueError, match="two different places"):
        slope_of([1.0, 1.0], [2.0, 3.0])


def long_load(growth_mb_per_hour: float, late_ms: float) -> Load:
    """Half an hour, a look a second; memory is a staircase that also goes down."""
    looks = tuple(
        look(float(s), memory_mb=200.0 + growth_mb_per_hour * s / 3600.0 + 3.0 * ((s // 97) % 5)) for s in range(1800)
    )
    told = [turn(float(s), 400.0 + s % 7 if s < 1200 else late_ms + s % 7) for s in range(120, 1800, 5)]
    return load(*told, ended(), looks=looks, seconds=1800.0)


def test_a_leak_is_more_growth_than_chance_gives() -> None:
    steady, leaking = ageing(long_load(0.0, 400.0)), ageing(long_load(200.0, 400.0))
    assert steady.leaks is False
    assert leaking.leaks is True
    assert leaking.growth_mb_per_hour == pytest.approx(200.0, abs=20.0)
    assert steady.p95_drift == pytest.approx(0.0, abs=0.01)
    assert ageing(long_load(0.0, 800.0)).p95_drift == pytest.approx(1.0, abs=0.05)
    short = ageing(load(turn(1.0), ended()))
    assert (short.leaks, short.p95_drift) == (None, None)


def test_waits_are_picked_by_when_they_were_said() -> None:
    some = load(turn(1.0, 100.0), turn(5.0, 200.0), turn(5.0, None), turn(9.0, 300.0))
    assert waits_of(some, 2.0, 9.0) == [200.0]
    assert Waits.of([]) is None


# --- phases ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "transport", "cascade"),
    [
        ({}, None, None),
        ({"underruns": 2.0}, "2 underruns", None),
        ({"underruns": None, "lag_p99_ms": None}, None, None),
        ({"lag_p99_ms": 30.0}, "loop lag p99 up to 30 ms", None),
        ({"unanswered": 1}, "1 turns not answered", None),
        ({"unanswered": 3}, "3 turns not answered", "3 of 40 turns not answered"),
        ({"waits": Waits(40, 900.0, 1600.0, None)}, "voice-to-voice p95 1600 ms", "voice-to-voice p95 1600 ms"),
        ({"waits": None}, None, "no turn was answered"),
        ({"broken": 1, "why_broken": ("x",)}, "1 calls broke: x", "1 calls broke: x"),
        ({"refused": 1}, "1 calls refused", "1 calls refused"),
        ({"calls": 0}, "no call came to its end", "no call came to its end"),
    ],
)
def test_what_is_too_much(changes: dict[str, Any], transport: str | None, cascade: str | None) -> None:
    assert too_much_for_transport(summary(**changes)) == transport
    assert too_much_for_cascade(summary(**changes)) == cascade


def offering(capacity: int) -> Callable[[ServerProcess, Plan], Load]:
    """A server that holds so many, and then answers late and turns others away."""

    def offer(_server: ServerProcess, plan: Plan) -> Load:
        n = plan.callers
        wait_ms = 400.0 if n <= capacity else 450.0
        refused = [{"kind": "call", "door": "webrtc", "caller": 0, "at_s": 0.0, "refused": True}] * max(0, n - capacity)
        looks = tuple(look(at_s, sessions=float(min(n, capacity)), cpu_s=0.01 * n * at_s) for at_s in (0.0, 9.0, 30.0))
        return load(*[turn(1.0, wait_ms)] * 5, *[ended()] * min(n, capacity), *refused, looks=looks, offered=n)

    return offer


def test_a_phase_searches_and_tells_each_load() -> None:
    told: list[tuple[str, int, str | None]] = []
    held = hold(
        "transport", SERVER, PLAN, offering(11), lambda p, s, why: told.append((p, s.offered, why)), first=4, most=64
    )
    assert (held.sessions, held.door, held.why_not_more) == (10, "webrtc", "1 calls refused")
    assert [offered for _, offered, _ in told] == [4, 8, 16, 12, 10]
    assert held.cost is not None
    assert held.cost[0] == pytest.approx(1.0)


def test_overload_passes_if_others_are_refused_and_those_inside_do_not_notice() -> None:
    found = overloaded(SERVER, PLAN, 4, offering(4), lambda *_: None)
    assert (found.passed, found.rise) == (True, pytest.approx(0.125))
    none_refused = overloaded(SERVER, PLAN, 4, offering(99), lambda *_: None)
    assert none_refused.passed is False
    assert rise_of(None, Waits(1, 1.0, 1.0, None)) is None


def test_the_long_load_is_judged_or_said_to_be_too_short() -> None:
    told: list[str | None] = []
    assert mixed(SERVER, PLAN, lambda *_: long_load(0.0, 400.0), lambda _p, _s, why: told.append(why)).passed is True
    assert mixed(SERVER, PLAN, lambda *_: long_load(500.0, 400.0), lambda _p, _s, why: told.append(why)).passed is False
    assert mixed(SERVER, PLAN, offering(4), lambda _p, _s, why: told.append(why)).passed is None
    assert told == [None, "it leaks", None]


def test_twice_the_load_needs_to_know_the_load() -> None:
    assert in_order(("overload",)) == ["cascade", "overload"]
    assert in_order(("mixed", "transport")) == ["transport", "mixed"]


# --- callers and the loop -------------------------------------------------------------------------------------


def test_a_plan_survives_the_way_to_its_process() -> None:
    plan = Plan("http://x", ("webrtc", "websocket"), 3, "s.npz", 4.0)
    assert Plan.from_json(plan.to_json()) == plan
    for sound in beeps():
        assert voiced_level_dbfs(sound) == pytest.approx(-20.0, abs=0.3)
        assert voiced_extent(sound) is not None


async def test_callers_call_a_real_server_and_tell_what_came_of_it(tmp_path: Path) -> None:
    save_sounds(beeps(1), tmp_path / "s.npz")
    config = Config(server=ServerConfig(max_sessions=1))
    told: list[dict[str, Any]] = []
    async with running_hub(load_echo_agent({}), config) as hub, running_app(create_app(hub, config), config) as url:
        plan = Plan(url, ("websocket",), 2, str(tmp_path / "s.npz"), hold_s=4.0, call_s=1.0, stagger_s=0.0, again=False)
        await run(plan, told.append)
    kinds = [line["kind"] for line in told]
    assert kinds.count("admitted") == 1
    [refused] = [line for line in told if line.get("refused")]
    [whole] = [line for line in told if "seconds" in line]
    [said] = [line for line in told if line["kind"] == "turn"]
    assert refused["caller"] != whole["caller"]
    assert 100.0 < said["wait_ms"] < 5000.0
    assert whole["turns"] == 1
    json.dumps(told)


class EnoughError(Exception):
    pass


def test_loop_lag_is_how_late_a_sleep_ends() -> None:
    """The clock jumps to the deadline exactly; a callback at the same moment that takes 70 ms is what makes it late."""
    seen: list[float] = []

    async def main() -> None:
        clock = VirtualClock()

        def observe(lag_s: float) -> None:
            seen.append(round(lag_s, 3))
            if len(seen) == 3:
                raise EnoughError

        with pytest.raises(EnoughError):
            await watch_loop_lag(Late(clock, [0.0, 0.07, 0.0]), observe)

    run_virtual(main())
    assert seen == [0.0, 0.07, 0.0]


class Late:
    """A clock whose sleeps end late."""

    def __init__(self, inner: VirtualClock, late_s: list[float]) -> None:
        self._inner, self._late_s = inner, late_s

    def now(self) -> float:
        return self._inner.now()

    async def sleep_until(self, deadline_s: float) -> None:
        await self._inner.sleep_until(deadline_s + self._late_s.pop(0))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


# --- what is told ----------------------------------------------------------------------------------------------


def test_a_run_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from contextlib import contextmanager

    served: list[list[str]] = []

    @contextmanager
    def started(arguments: list[str]) -> Any:
        served.append(arguments)
        yield SERVER

    monkeypatch.setattr(command, "started_server", started)
    monkeypatch.setattr(command.Runner, "_offer", lambda _self, server, plan: offering(5)(server, plan))
    monkeypatch.setattr(command.Runner, "_speech", lambda _self: beeps(1))
    out = ["--json", str(tmp_path / "load.json"), "--out", str(tmp_path / "out")]
    assert command.main(["--only", "transport,overload,mixed", "--door", "webrtc", *out]) == 0
    assert [arguments[1] for arguments in served] == ["260", "36", "5", "6"]
    assert served[0][2:] == ["--agent", "echo"]
    text = capsys.readouterr().out
    for wanted in ("transport, webrtc: 5 sessions held", "5 refusals", "+12 %", "too short to say", "not judged"):
        assert wanted in text
    report = json.loads((tmp_path / "load.json").read_text())
    assert report == json.loads((tmp_path / "out" / "load.json").read_text())
    assert (tmp_path / "out" / "load.png").read_bytes().startswith(b"\x89PNG")
    again = StringIO()
    print_report(report, Console(file=again, width=170))
    assert answers(report)[0] in again.getvalue()
    with pytest.raises(SystemExit):
        command.main(["--only", "nothing"])


def test_nothing_held_has_no_twice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command.Runner, "_speech", lambda _self: beeps(1))
    assert command.main(["--only", "overload", "--held", "0"]) == 1
    assert "--held N" in capsys.readouterr().out


def test_the_long_load_is_drawn_over_its_minutes() -> None:
    aged = ageing(long_load(200.0, 400.0))
    assert len(aged.p95_of_thirds) == 3
    assert aged.p95_of_thirds[0][2] == pytest.approx(aged.p95_of_thirds[2][2], rel=0.5)
    assert aged.waits_ms == tuple(sorted(aged.waits_ms))
    report = {"loads": [], "machine": {"cpu": "x", "cores": 2}, "mixed": {"ageing": asdict(aged)}}
    waits, memory = drawn(report).axes  # and no empty charts of what was not searched
    assert memory.lines[0].get_ydata()[-1] > memory.lines[0].get_ydata()[0]
    assert len(waits.lines) == 4
    without = asdict(aged) | {"memory_mb": (), "waits_ms": (), "p95_of_thirds": ()}
    assert len(drawn(report | {"mixed": {"ageing": without}}).axes) == 2


def test_an_empty_picture_is_still_a_picture(tmp_path: Path) -> None:
    picture({"loads": [], "machine": {"cpu": "x", "cores": 2}}, tmp_path / "none.png")
    assert (tmp_path / "none.png").exists()
