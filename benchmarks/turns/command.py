"""``duplex bench turns``: the whole table, or some rows of it, against a server or an agent in this process.

    duplex bench turns                                    start a server here and run everything
    duplex bench turns --only 1,3,7 --url http://host:8998
    duplex bench turns --in-process --quick               the default agent in this process, no network

Every verdict comes from the stereo recording made at the client; docs/measuring.md has the rules.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from duplex import __version__
from duplex.benchmarks.narrowband import LINES, WIDE, line_named
from duplex.benchmarks.server_process import ServerProcess, machine, started_server
from duplex.benchmarks.stimuli_cuts import Split
from duplex.benchmarks.turns.contract import Scenario
from duplex.benchmarks.turns.doors import DOORS, OpenedDoor, door_of
from duplex.benchmarks.turns.lines import LineDoor
from duplex.benchmarks.turns.material import Material
from duplex.benchmarks.turns.printing import Progress, print_results
from duplex.benchmarks.turns.results import ScenarioResult, SuiteResult
from duplex.benchmarks.turns.runner import ConfiguredDoor, Runner
from duplex.benchmarks.turns.scenarios import chosen
from duplex.benchmarks.turns.sizes import FULL, QUICK, SuiteBench
from duplex.config import load_config
from duplex.errors import DuplexError

QUICK_TRIALS = 5
SESSIONS = 8  # of a server that is started here: calls side by side, and some that are still hanging up


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 if the suite ran, whatever it found; 1 if it could not, or with ``--strict`` on any miss."""
    args = _parser().parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    try:
        scenarios = chosen(args.only)
        result = _run(args, scenarios, console)
    except DuplexError as error:
        console.print(f"[red]{error}[/red]")
        return 1
    print_results(result, console)
    _write(result, args, console)
    return 1 if args.strict and not result.passed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="duplex bench turns",
        description=(__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = parser.add_argument_group("what to test")
    where.add_argument("--url", help="a running server (default: one is started)")
    where.add_argument("--server-pid", type=int, metavar="PID", help="with --url: its process, to weigh it")
    where.add_argument("--door", choices=DOORS[:-1], help="which way in (by the address; else webrtc)")
    where.add_argument("--line", choices=tuple(LINES), default=WIDE.name, help="what the user speaks over (wide)")
    where.add_argument("--in-process", action="store_true", help="the default agent in this process, no server")
    where.add_argument("--serve", default="", metavar="ARGS", help="arguments for the server that is started")
    where.add_argument("--instructions", help="for every call that has none of its own")
    where.add_argument("--turn-taking", type=_table, metavar="JSON", help='such as \'{"preset": "patient"}\'')
    how = parser.add_argument_group("what to run")
    how.add_argument("--only", type=_numbers, metavar="N,N", help="these scenarios: 1,3,7 or 12-15 (all)")
    how.add_argument("--trials", type=int, metavar="N", help="of each scenario (20; the long ones have their own)")
    how.add_argument("--quick", action="store_true", help=f"{QUICK_TRIALS} trials, and short long ones: a first look")
    how.add_argument("--split", choices=get_args(Split), default="reporting", help="which set of sounds (reporting)")
    how.add_argument("--seed", type=int, default=1, help="order, pauses, luck of the line (1)")
    out = parser.add_argument_group("what becomes of it")
    out.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    out.add_argument("--out", type=Path, metavar="DIR", help="write JSON, report.html and failing trials' sound there")
    out.add_argument("--strict", action="store_true", help="exit with 1 unless every limit is met")
    return parser


def _numbers(text: str) -> set[int]:
    """``1,3,12-15`` → {1, 3, 12, 13, 14, 15}."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _table(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


# --- running -----------------------------------------------------------------------------------------------


def _run(args: argparse.Namespace, scenarios: Sequence[Scenario], console: Console) -> SuiteResult:
    before, started_at = machine(), datetime.datetime.now(datetime.UTC)
    began_s = time.perf_counter()
    material = Material.load(args.split, lambda line: console.print(f"[dim]{line}[/dim]"), seed=args.seed)
    results: list[ScenarioResult] = []
    with _server(args) as server:
        door = _door(args, server)
        try:
            asyncio.run(_through_door(door, args, server, material, scenarios, results, console))
        except KeyboardInterrupt:
            console.print("[yellow]Stopped. What follows are the scenarios that had ended.[/yellow]")
    after = machine()
    configuration = {name: value for name, value in vars(args).items() if name not in {"json", "out", "strict"}}
    configuration["only"] = sorted(args.only) if args.only else None
    return SuiteResult(
        version=__version__,
        machine={name: value for name, value in before.items() if name != "load_average"},
        load={"before": before["load_average"], "after": after["load_average"]},
        configuration=configuration,
        door=door.name if args.line == WIDE.name else f"{door.name}, {args.line} line",
        seed=args.seed,
        split=args.split,
        quick=args.quick or (args.trials is not None and args.trials < 20),
        started_at=started_at.isoformat(timespec="seconds"),
        took_s=round(time.perf_counter() - began_s, 1),
        results=tuple(results),
    )


@contextmanager
def _server(args: argparse.Namespace) -> Iterator[ServerProcess | None]:
    """The server to test: a running one, one that is started, or None for an agent in this process."""
    if args.in_process and args.url:
        raise DuplexError("--in-process has no --url: it is one or the other.")
    if args.in_process:
        yield None
    elif args.url:
        yield ServerProcess(args.url, args.server_pid)
    else:
        doors = ["--door", "twilio"] if args.door == "twilio" else []
        with started_server(["--max-sessions", str(SESSIONS), *doors, *shlex.split(args.serve)]) as server:
            yield server


async def _through_door(
    opened: OpenedDoor,
    args: argparse.Namespace,
    server: ServerProcess | None,
    material: Material,
    scenarios: Sequence[Scenario],
    results: list[ScenarioResult],
    console: Console,
) -> None:
    """Fills ``results`` as scenarios end, so that a run that is stopped was not for nothing."""
    async with opened as door:
        bench = SuiteBench(
            door=ConfiguredDoor(LineDoor(door, line_named(args.line)), args.instructions, args.turn_taking),
            material=material,
            seed=args.seed,
            server_pid=None if server is None else server.pid,
            sizes=QUICK if args.quick else FULL,
            server_url=None if server is None else server.url,
        )
        with Progress(scenarios, trials_of(args), console) as progress:
            await Runner(bench, keep=args.out, results=results).run(scenarios, trials_of(args), progress)


def _door(args: argparse.Namespace, server: ServerProcess | None) -> OpenedDoor:
    if server is not None:
        return door_of(server.url, door=args.door)
    from duplex.registry import create_agent

    config = load_config(environ=os.environ)
    return door_of(agent=create_agent(config.agent.name, config.agent.options), config=config.session)


def trials_of(args: argparse.Namespace) -> Callable[[Scenario], int]:
    """How many trials each scenario gets. Long ones count calls, and keep to what is theirs unless it is less."""

    def count(scenario: Scenario) -> int:
        if args.trials is not None:
            return int(args.trials) if scenario.trials >= 20 else min(int(args.trials), scenario.trials)
        return min(QUICK_TRIALS, scenario.trials) if args.quick else scenario.trials

    return count


# --- what becomes of it --------------------------------------------------------------------------------------


def _write(result: SuiteResult, args: argparse.Namespace, console: Console) -> None:
    if args.json is not None:
        result.save(args.json)
        console.print(f"Wrote {args.json}")
    if args.out is None:
        return
    result.save(args.out / "turns.json")
    from duplex.benchmarks.turns.report import write_report

    console.print(f"Wrote {args.out}/turns.json and {write_report(result, args.out)}")


if __name__ == "__main__":
    sys.exit(main())
