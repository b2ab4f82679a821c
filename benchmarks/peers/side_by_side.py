"""The same turns, pauses, interruptions and backchannels with duplex and with Pipecat, in one run.

    duplex bench peers [--quick] [--pipecat defaults min-words] [--json FILE] [--out DIR]

Both are servers on this machine, called by the same client through WebRTC, given the same sounds with the same
seeds, and judged by the same rules from the client's stereo recording (the scenarios of ``duplex bench turns``).
They take turns in blocks of a few trials, and who goes first alternates; while one talks, the other is stopped.
Pipecat is installed into an environment of its own the first time (about 1 GB).

README.md beside this file says how Pipecat's bot is put together, and why so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console

from duplex import __version__
from duplex.benchmarks.peers import pipecat_env
from duplex.benchmarks.peers.blocks import PARTS, Part, Side, SideBySide, blocks
from duplex.benchmarks.peers.comparison import Comparison, Contender, Row
from duplex.benchmarks.peers.pipecat_server import Strategy, started_pipecat
from duplex.benchmarks.server_process import machine, peak_memory_mb, started_server
from duplex.benchmarks.turns.material import Material
from duplex.benchmarks.turns.scenarios import SCENARIOS
from duplex.errors import DuplexError

OURS = "duplex"
PIPECAT: Mapping[Strategy, str] = {"defaults": "Pipecat", "min-words": "Pipecat, 3 words"}

SOONER = Row(1, "voice_to_voice_ms", "voice-to-voice", "ms")
CUTS = (
    Row(1, "took_over", "spoke before a turn's end", "share"),
    Row(3, "takeover", "spoke into a pause of 0.4 to 1.0 s", "share"),
    Row(4, "takeover", "spoke into 1.5 s after “um”", "share"),
)
ROWS = (
    SOONER,
    Row(7, "stop_ms", "stop when interrupted", "ms"),
    Row(6, "resume_gap_ms", "gap after a backchannel", "ms"),
    Row(1, "answered", "answered", "share", more=True),
    *CUTS,
    Row(3, "one_turn", "one turn made of it, after a pause", "share", more=True),
    Row(4, "one_turn", "one turn made of it, after “um”", "share", more=True),
    Row(7, "yielded", "yields when interrupted", "share", more=True),
    Row(6, "abandoned", "gives its reply up on “uh-huh”", "share"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 if the comparison ran, whatever it found; 1 with ``--strict`` if a claim did not hold."""
    args = _parser().parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    try:
        comparison = _run(args, console)
    except DuplexError as error:
        console.print(f"[red]{error}[/red]")
        return 1
    comparison.print_to(console)
    claims = list(comparison.claims(SOONER, CUTS))
    for claim in claims:
        mark = {True: "[green]✓[/green]", False: "[red]✗[/red]", None: "·"}[claim.held]
        console.print(f"{mark} {claim.text}")
    console.print(f"[dim]{_machine_line(comparison)}[/dim]")
    if args.json is not None:
        args.json.write_text(json.dumps(comparison.to_json(), indent=1, default=str) + "\n", "utf-8")
        console.print(f"Wrote {args.json}")
    if args.out is not None:
        from duplex.benchmarks.peers.comparison_plot import save_plot

        save_plot(comparison, args.out / "peers.png", title="duplex bench peers", subtitle=_machine_line(comparison))
        console.print(f"Wrote {args.out}/peers.png, and the sound of what failed")
    return 1 if args.strict and any(claim.held is not True for claim in claims) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="duplex bench peers", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few trials of each: about seven minutes")
    parser.add_argument("--trials", type=int, metavar="N", help="N of each part instead of their own numbers")
    names = [part.name for part in PARTS]
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="PART", help=f"of: {', '.join(names)}"
    )
    parser.add_argument(
        "--pipecat", nargs="+", choices=list(PIPECAT), default=["defaults"], metavar="STRATEGY",
        help="its turn strategies: defaults, min-words (three words to interrupt), or both (defaults)",
    )  # fmt: skip
    parser.add_argument("--pipecat-threads", type=int, default=1, help="threads of its llama.cpp (1, as ours)")
    parser.add_argument("--serve", default="", metavar="ARGS", help="arguments for our server")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every trial there")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write a plot and the sound of failed trials there")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a claim does not hold")
    return parser


def _run(args: argparse.Namespace, console: Console) -> Comparison:
    before, began_s = machine(), time.perf_counter()

    def tell(line: str) -> None:
        console.print(f"[dim]{time.perf_counter() - began_s:6.0f} s  {line}[/dim]")

    parts = [part for part in PARTS if part.name in args.only]
    planned = blocks(parts, {part.name: _trials(part, args) for part in parts})
    material = Material.load(note=tell, seed=args.seed)
    python = pipecat_env.ensure(tell=tell)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
    with _servers(args, python, tell) as sides:
        runner = SideBySide(sides, {scenario.number: scenario for scenario in SCENARIOS}, material, args.seed, args.out)
        asyncio.run(runner.run(planned, tell))
        for side in sides:
            side.contender.peak_mb = peak_memory_mb(side.server.pid)
    asked = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    load_after = machine()["load_average"]
    took_s = round(time.perf_counter() - began_s, 1)
    rows = [row for row in ROWS if row.scenario in {part.scenario for part in parts}]
    return Comparison([side.contender for side in sides], rows, before, load_after, asked, took_s)


def _trials(part: Part, args: argparse.Namespace) -> int:
    if args.trials is not None:
        return int(args.trials)
    return part.quick if args.quick else part.trials


@contextmanager
def _servers(args: argparse.Namespace, python: Path, tell: Callable[[str], None]) -> Iterator[list[Side]]:
    """Every contender's server, started one after the other."""
    with ExitStack() as stack:
        tell("Starting duplex")
        ours = stack.enter_context(started_server(shlex.split(args.serve)))
        sides = [Side(Contender(OURS, __version__, ready_s=ours.ready_s), ours)]
        for strategy in args.pipecat:
            tell(f"Starting {PIPECAT[strategy]}")
            log = None if args.out is None else args.out / f"pipecat-{strategy}.log"
            theirs = stack.enter_context(
                started_pipecat(python, strategy=strategy, thinker_threads=args.pipecat_threads, log=log)
            )
            sides.append(Side(Contender(PIPECAT[strategy], pipecat_env.VERSION, ready_s=theirs.ready_s), theirs))
        yield sides


def _machine_line(comparison: Comparison) -> str:
    found = comparison.machine
    versions = ", ".join(f"{side.name} {side.version}" for side in comparison.contenders)
    return (
        f"{versions}; {found['cores']} cores, {found['cpu']}; load {found['load_average'][0]:.2f} before, "
        f"{comparison.load_after[0]:.2f} after; {comparison.took_s / 60:.0f} min"
    )
