"""``duplex bench load``: asks the questions of :mod:`.phases` of servers that are started here, and writes it down."""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from duplex import __version__
from duplex.benchmarks.load.client import Plan, beeps, save_sounds
from duplex.benchmarks.load.figures import Load, Look, Summary
from duplex.benchmarks.load.offer import offer
from duplex.benchmarks.load.phases import PHASES, Held, Mixed, Overload, hold, in_order, mixed, overloaded
from duplex.benchmarks.load.plot import picture
from duplex.benchmarks.load.report import print_report, row_of
from duplex.benchmarks.server_process import ServerProcess, machine, started_server
from duplex.benchmarks.stimuli_cuts import Split
from duplex.benchmarks.turns.material import Material
from duplex.errors import DuplexError
from duplex.frames import Samples

DOORS = ("webrtc", "websocket")
_MOST_TRANSPORT, _MOST_CASCADE = 256, 32
_SPARE = 4  # places beyond those that are meant to be taken: calls that are still hanging up


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 if it ran, whatever it found; 1 if it could not."""
    args = _parser().parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 170)
    try:
        report = Runner(args, console).run()
    except DuplexError as error:
        console.print(f"[red]{error}[/red]")
        return 1
    print_report(report, console)
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "load.json").write_text(json.dumps(report, indent=1) + "\n")
        picture(report, args.out / "load.png")
        console.print(f"Wrote {args.out}/load.json and {args.out}/load.png")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="duplex bench load",
        description="How many calls a server holds, what each costs, what it does with too many, whether it ages.",
    )
    parser.add_argument("--only", type=_phases, default=PHASES[:3], metavar="A,B", help=f"of {', '.join(PHASES)}")
    parser.add_argument("--door", choices=DOORS, action="append", help="of transport and cascade (both, one by one)")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each load is held (30)")
    parser.add_argument("--minutes", type=float, default=30.0, help="of mixed calls (30)")
    parser.add_argument("--most", type=int, help=f"sessions to try at most ({_MOST_TRANSPORT}; {_MOST_CASCADE})")
    parser.add_argument("--held", type=int, help="for overload and mixed: what the cascade holds, if it is known")
    parser.add_argument("--per-process", type=int, help="callers in a process (8)")
    parser.add_argument("--serve", default="", metavar="ARGS", help="more arguments for the servers")
    parser.add_argument("--split", choices=("tuning", "reporting"), default="reporting", help="what callers say")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write load.json and load.png there")
    return parser


def _phases(text: str) -> tuple[str, ...]:
    wanted = tuple(text.split(","))
    if unknown := [name for name in wanted if name not in PHASES]:
        raise argparse.ArgumentTypeError(f"there is no {unknown[0]!r}; there are {', '.join(PHASES)}")
    return wanted


class Runner:
    """One run of the command."""

    def __init__(self, args: argparse.Namespace, console: Console) -> None:
        self._args, self._console = args, console
        self._rows: list[dict[str, Any]] = []
        self._cascade_held: int | None = args.held

    def run(self) -> dict[str, Any]:
        """Everything that was asked for, as plain values. Stopped by Ctrl-C it has what had ended."""
        before = machine()
        report: dict[str, Any] = {"version": __version__, "machine": before, "seed": self._args.seed}
        with tempfile.TemporaryDirectory() as folder:
            try:
                self._phases(Path(folder), report)
            except KeyboardInterrupt:
                self._console.print("[yellow]Stopped. What follows is what had ended.[/yellow]")
        report["load_after"] = machine()["load_average"]
        report["loads"] = self._rows
        return report

    def _phases(self, folder: Path, report: dict[str, Any]) -> None:
        args = self._args
        phases = in_order(args.only)
        if args.held is not None and "cascade" not in args.only:
            phases = [phase for phase in phases if phase != "cascade"]
        doors = tuple(args.door or DOORS)
        for phase in phases:
            if phase == "transport":
                plan = self._plan(folder / "beeps.npz", beeps(), call_s=args.seconds)
                with started_server(self._serve(args.most or _MOST_TRANSPORT, "--agent", "echo")) as server:
                    report["transport"] = [
                        asdict(self._hold(phase, server, plan, door, first=4, most=args.most or _MOST_TRANSPORT))
                        for door in doors
                    ]
                continue
            plan = self._plan(folder / "speech.npz", self._speech(), call_s=max(20.0, args.seconds))
            if phase == "cascade":
                with started_server(self._serve(args.most or _MOST_CASCADE)) as server:
                    found = [
                        self._hold(phase, server, plan, door, first=1, most=args.most or _MOST_CASCADE)
                        for door in doors
                    ]
                report["cascade"] = [asdict(one) for one in found]
                self._cascade_held = min(one.sessions for one in found)
            elif phase == "overload":
                report["overload"] = asdict(self._overload(replace_doors(plan, DOORS)))
            else:
                report["mixed"] = asdict(self._mixed(replace_doors(plan, DOORS)))

    def _hold(self, phase: str, server: ServerProcess, plan: Plan, door: str, *, first: int, most: int) -> Held:
        return hold(phase, server, replace_doors(plan, (door,)), self._offer, self._told, first=first, most=most)

    def _overload(self, plan: Plan) -> Overload:
        held = self._held()
        with started_server([*self._serve(held, spare=0)]) as server:
            return overloaded(server, plan, held, self._offer, self._told)

    def _mixed(self, plan: Plan) -> Mixed:
        """Half of what is held, so that it is age and not load that shows."""
        callers = max(1, (self._cascade_held or 2) // 2)
        with started_server(self._serve(callers)) as server:
            long = Plan(**{**asdict(plan), "callers": callers, "hold_s": self._args.minutes * 60.0, "call_s": 60.0})
            warm_up_s = min(120.0, 6.0 * self._args.minutes)
            return mixed(server, long, self._offer, self._told, warm_up_s=warm_up_s)

    def _held(self) -> int:
        if not self._cascade_held:
            raise DuplexError("The cascade held no session, so there is no twice of it. Say --held N to try anyway.")
        return self._cascade_held

    # --- what is said, and to whom -------------------------------------------------------------------------

    def _plan(self, path: Path, sounds: list[Samples], *, call_s: float) -> Plan:
        if not path.exists():
            save_sounds(sounds, path)
        seed, seconds = self._args.seed, self._args.seconds
        return Plan("", DOORS, 1, str(path), hold_s=seconds, call_s=call_s, seed=seed)

    def _speech(self) -> list[Samples]:
        split: Split = self._args.split
        material = Material.load(split, lambda line: self._console.print(f"[dim]{line}[/dim]"), seed=self._args.seed)
        return [question.samples for question in material.questions()]

    def _serve(self, sessions: int, *more: str, spare: int = _SPARE) -> list[str]:
        return ["--max-sessions", str(sessions + spare), *more, *shlex.split(self._args.serve)]

    # --- offering and telling ---------------------------------------------------------------------------------

    def _offer(self, server: ServerProcess, plan: Plan) -> Load:
        plan = Plan(**{**asdict(plan), "url": server.url})
        with Live(console=self._console, transient=True, refresh_per_second=2) as live:

            def progress(at_s: float, told: Sequence[Mapping[str, Any]], look: Look) -> None:
                turns = sum(line["kind"] == "turn" for line in told)
                live.update(
                    Text(
                        f"{plan.callers} callers by {'+'.join(plan.doors)}: {at_s:.0f} of {plan.hold_s:.0f} s, "
                        f"{look.sessions or 0:.0f} sessions, {turns} turns, {look.underruns or 0:.0f} underruns"
                    )
                )

            return asyncio.run(offer(server, plan, progress, per_process=self._args.per_process))

    def _told(self, phase: str, summary: Summary, why: str | None) -> None:
        row = {"phase": phase, **asdict(summary), "why": why}
        self._rows.append(row)
        self._console.print(row_of(row))


def replace_doors(plan: Plan, doors: tuple[str, ...]) -> Plan:
    return Plan(**{**asdict(plan), "doors": doors})


if __name__ == "__main__":
    sys.exit(main())
