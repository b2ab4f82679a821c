"""Latency, interruptions, CPU and memory of a real server over WebRTC, with human recordings.

    duplex bench voice [--url URL] [--turns 30] [--interruptions 20] [--json FILE] [--out DIR]

Without --url it starts ``duplex serve`` on a free port of this machine, so server and client share its
cores. Figures with "at the client" are measured on the client's recording, whose right channel includes a
declared playout delay; the others come from the server's own trace. p95 is the observation at that rank or
the next higher one, never interpolated downwards.

    end-of-turn delay   user's last voiced sample → turn committed (server)
    first packet        turn committed → first non-silent packet on the wire (server)
    voice-to-voice      last voiced sample leaves → first audible sample heard (client; and server's own)
    barge-in stop       interruption's first voiced sample → agent silent for 300 ms (client)
    yield rate          share of interruptions after which it is silent within 2 s and stays so while one speaks
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from duplex import __version__
from duplex.benchmarks.server_process import CpuMeter, ServerProcess, machine, peak_memory_mb, started_server
from duplex.benchmarks.stimuli import QUESTIONS, SETS, Stimulus, load_interruptions, load_stimuli, speak
from duplex.benchmarks.voice_scenarios import (
    Findings,
    keep_recordings,
    run_idle,
    run_interruptions,
    run_questions,
    run_turns,
)
from duplex.errors import DuplexError
from duplex.transport.client import CallSettings


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of the report. ``limits``: statistic → (limit that holds now, aim); lower is better unless ``more``."""

    name: str
    unit: str
    values: tuple[float, ...]
    limits: Mapping[str, tuple[float, float]]
    more: bool = False

    def statistic(self, name: str) -> float | None:
        """ "p50", "p95", "max" or "value" (the mean: of one figure, or of yes and no); None without values."""
        if not self.values:
            return None
        if name == "value":
            return float(np.mean(self.values))
        rank = {"p50": 50.0, "p95": 95.0, "max": 100.0}[name]
        return float(np.percentile(self.values, rank, method="higher"))

    def passed(self) -> bool | None:
        """Whether every limit holds; None if there is none, or nothing to judge."""
        found = [(self.statistic(name), limit) for name, (limit, _aim) in self.limits.items()]
        judged = [value >= limit if self.more else value <= limit for value, limit in found if value is not None]
        return all(judged) if judged else None


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 if the benchmark ran, whatever it found; 1 with ``--strict`` if a limit was missed."""
    args = _parser().parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 130)
    try:
        stimuli = load_stimuli(args.stimuli, lambda line: console.print(f"[dim]{line}[/dim]"))
        report = _run(args, stimuli, console)
    except DuplexError as error:
        console.print(f"[red]{error}[/red]")
        return 1
    measures: list[Measure] = report.pop("measures")
    _print(measures, report, console)
    if args.json is not None:
        args.json.write_text(json.dumps({**report, "measures": [_as_dict(m) for m in measures]}, indent=1) + "\n")
        console.print(f"Wrote {args.json}")
    if args.out is not None:
        from duplex.benchmarks.voice_plot import save_distributions

        args.out.mkdir(parents=True, exist_ok=True)
        save_distributions(measures, args.out / "voice.png", subtitle=_machine_line(report["machine"]))
        console.print(f"Wrote {args.out}/voice.png and the recordings")
    missed = any(measure.passed() is False for measure in measures)
    return 1 if missed and args.strict else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="duplex bench voice", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", help="a running server (default: one is started)")
    parser.add_argument("--server-pid", type=int, help="with --url: its process, to weigh it")
    parser.add_argument("--serve", default="", metavar="ARGS", help="arguments for the server that is started")
    parser.add_argument("--turns", type=int, default=30, help="plain turns (30)")
    parser.add_argument("--interruptions", type=int, default=20, help="interruptions (20)")
    parser.add_argument("--questions", type=int, default=len(QUESTIONS), help=f"synthetic ones ({len(QUESTIONS)})")
    parser.add_argument("--starts", type=int, default=3, help="how often to measure start to ready (3)")
    parser.add_argument("--idle-s", type=float, default=10.0, help="length of the idle call that is watched (10)")
    parser.add_argument("--stimuli", choices=SETS, default="packages", help="which recordings (packages)")
    parser.add_argument("--seed", type=int, default=1, help="order and pauses (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write recordings, timelines and a plot there")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a limit is missed")
    return parser


def _run(args: argparse.Namespace, stimuli: Sequence[Stimulus], console: Console) -> dict[str, Any]:
    before = machine()
    starts: list[float] = []
    serve = shlex.split(args.serve)
    if args.url is None:
        for _ in range(args.starts - 1):
            with started_server(serve) as extra:
                starts.append(extra.ready_s or 0.0)
    own: AbstractContextManager[ServerProcess]
    own = started_server(serve) if args.url is None else nullcontext(ServerProcess(args.url, args.server_pid))
    findings = Findings()
    with own as server:
        starts += [server.ready_s] if server.ready_s is not None else []
        cpu, spoke_unasked = asyncio.run(_converse(args, server, stimuli, findings, console))
        peak_mb = peak_memory_mb(server.pid)
    return {
        "version": __version__,
        "machine": before,
        "stimuli": {"set": args.stimuli, "distinct": len(stimuli), "level_dbfs": -20, "seed": args.seed},
        "playout_ms": CallSettings().playout_ms,
        "cpu": cpu,
        "spoke_unasked": spoke_unasked,
        "findings": findings.as_dict(),
        "measures": _measures(findings, starts, cpu, peak_mb),
    }


async def _converse(
    args: argparse.Namespace, server: ServerProcess, stimuli: Sequence[Stimulus], findings: Findings, console: Console
) -> tuple[dict[str, float | None], bool]:
    """All calls, one after the other; returns CPU shares by phase, and whether the agent spoke on the idle call."""
    rng = random.Random(args.seed)
    keep = keep_recordings(args.out)
    cpu: dict[str, float | None] = {}
    with console.status("A call on which nobody speaks …"):
        idle = await run_idle(server.url, server.pid, args.idle_s)
        cpu["opening_s"], cpu["idle"] = idle.opening_s, idle.percent
    with console.status(f"{args.turns} turns …"):
        meter, client = CpuMeter(server.pid), CpuMeter(_own_pid())
        await run_turns(server.url, stimuli, args.turns, rng, findings, keep)
        cpu["talking"], cpu["client"] = meter.percent(), client.percent()
    with console.status(f"{args.interruptions} interruptions …"):
        chosen = load_interruptions(list(stimuli))
        await run_interruptions(server.url, chosen, args.interruptions, rng, findings, keep)
    if args.questions:
        with console.status(f"{args.questions} synthetic questions …"):
            asked = QUESTIONS[: args.questions]
            sounds = await asyncio.to_thread(speak, *(text for text, _ in asked))
            given = [(text, sound, wanted) for (text, wanted), sound in zip(asked, sounds, strict=True)]
            await run_questions(server.url, given, findings)
    return cpu, idle.spoke


def _own_pid() -> int:
    import os

    return os.getpid()


def _measures(
    findings: Findings, starts: Sequence[float], cpu: Mapping[str, float | None], peak_mb: float | None
) -> list[Measure]:
    turns, cuts = findings.turns, [cut for cut in findings.interruptions if cut.valid]

    def traced(name: str) -> tuple[float, ...]:
        return tuple(turn.traced[name] for turn in turns if name in turn.traced and not turn.took_over)

    def one(value: float | None) -> tuple[float, ...]:
        return () if value is None else (value,)

    heard = tuple(turn.voice_to_voice_ms for turn in turns if turn.voice_to_voice_ms is not None)
    stops = tuple(cut.stop_ms for cut in cuts if cut.stop_ms is not None and cut.yielded)
    return [
        Measure("answered", "%", tuple(100.0 * turn.answered for turn in turns), {"value": (95, 95)}, more=True),
        Measure("took over in mid-turn", "%", tuple(100.0 * turn.took_over for turn in turns), {"value": (10, 10)}),
        Measure("end-of-turn delay", "ms", traced("end_of_turn"), {}),
        Measure("first packet", "ms", traced("first_packet"), {"p95": (200, 60)}),
        Measure("voice-to-voice at the client", "ms", heard, {"p50": (600, 450), "p95": (1200, 900)}),
        Measure("voice-to-voice at the server", "ms", traced("voice_to_voice"), {}),
        Measure("listener", "ms", traced("listener"), {}),
        Measure("thinker", "ms", traced("thinker"), {}),
        Measure("talker", "ms", traced("talker"), {}),
        Measure("barge-in stop at the client", "ms", stops, {"p95": (500, 350)}),
        Measure("yielded", "%", tuple(100.0 * cut.yielded for cut in cuts), {"value": (98, 98)}, more=True),
        Measure("interruption answered", "%", tuple(100.0 * cut.answered for cut in cuts), {}, more=True),
        Measure("sensible answers", "%", tuple(100.0 * asked.sensible for asked in findings.questions), {}, more=True),
        Measure("CPU of the server, talking", "% of a core", one(cpu.get("talking")), {}),
        Measure("CPU of the server, idle call", "% of a core", one(cpu.get("idle")), {"value": (10, 10)}),
        Measure("CPU of the server, opening a call", "core s", one(cpu.get("opening_s")), {}),
        Measure("peak memory of the server", "MB", one(peak_mb), {"max": (1500, 1500)}),
        Measure("start to ready", "s", tuple(starts), {"max": (8, 8)}),
    ]


# --- the report ----------------------------------------------------------------------------------------


def _print(measures: Sequence[Measure], report: Mapping[str, Any], console: Console) -> None:
    table = Table(title=f"duplex bench voice {report['version']}", title_justify="left", title_style="bold")
    for name, justify in (("", "left"), ("p50", "right"), ("p95", "right"), ("n", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("limit")
    table.add_column("")
    table.add_column("aim", style="dim")
    for measure in measures:
        if not measure.values and not measure.limits:
            continue
        single = "value" in measure.limits or len(measure.values) == 1 or measure.unit == "%"
        middle = _shown(measure, "value" if single else "p50")
        passed = measure.passed()
        verdict = {True: "[green]pass[/green]", False: "[red]miss[/red]", None: ""}[passed]
        limits, aims = ([_limit(measure, name, which) for name in measure.limits] for which in (0, 1))
        edge = "" if single else _shown(measure, "p95")
        table.add_row(
            f"{measure.name}, {measure.unit}",
            middle,
            edge,
            str(len(measure.values)),
            ", ".join(limits),
            verdict,
            ", ".join(aims),
        )
    console.print(table)
    console.print(_machine_line(report["machine"]))
    wire = report["findings"]["wire"]
    lost, late = (sum(call[key] for call in wire) for key in ("lost", "late"))
    behind = max((call["send_late_ms"] for call in wire), default=0.0)
    console.print(
        f"Recordings: {report['stimuli']['distinct']} distinct ({report['stimuli']['set']}), at −20 dBFS. Client: "
        f"{report['playout_ms']:g} ms of playout included, {lost} packets lost, {late} late, its own sent up to "
        f"{behind:.0f} ms after their time, {_or_none(report['cpu'].get('client'))} % of a core."
    )
    if behind > 40.0 or report["machine"]["load_average"][0] > 0.5 * report["machine"]["cores"]:
        console.print("[yellow]This machine was busy with other things; run it again when it is not.[/yellow]")
    if report["spoke_unasked"]:
        console.print("[red]On the idle call the agent spoke without having been spoken to.[/red]")
    invalid = sum(not cut["valid"] for cut in report["findings"]["interruptions"])
    if invalid:
        console.print(f"[yellow]{invalid} interruptions fell into a pause of the agent and are left out.[/yellow]")
    for error in report["findings"]["errors"]:
        console.print(f"[yellow]{error}[/yellow]")


def _shown(measure: Measure, name: str) -> str:
    return _or_none(measure.statistic(name), 0 if measure.unit in {"ms", "MB", "%"} else 1)


def _or_none(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _limit(measure: Measure, statistic: str, which: int) -> str:
    sign = "≥" if measure.more else "≤"
    prefix = "" if statistic == "value" else f"{statistic} "
    return f"{prefix}{sign} {measure.limits[statistic][which]:g}"


def _machine_line(found: Mapping[str, Any]) -> str:
    loads = " ".join(f"{load:g}" for load in found["load_average"])
    return f"{found['cpu']}, {found['cores']} cores, load {loads} before; Python {found['python']}, {found['system']}"


def _as_dict(measure: Measure) -> dict[str, Any]:
    return {
        "name": measure.name,
        "unit": measure.unit,
        "n": len(measure.values),
        "p50": measure.statistic("p50"),
        "p95": measure.statistic("p95"),
        "max": measure.statistic("max"),
        "mean": measure.statistic("value"),
        "limits": {name: {"limit": limit, "aim": aim} for name, (limit, aim) in measure.limits.items()},
        "passed": measure.passed(),
        "values": list(measure.values),
    }


if __name__ == "__main__":
    sys.exit(main())
