"""Full-Duplex-Bench v1 and v1.5: streams its samples to a server and computes its offline metrics.

    duplex bench fdb run DATA_DIR [--url URL] [--door webrtc|websocket] [--force] [--clean]
    duplex bench fdb score DATA_DIR [--task TASK] [--words any|given|local] [--json FILE]

DATA_DIR is one of its subsets (…/candor_pause_handling) or a directory of them. Its data cannot be shipped here;
its ``v1_v1.5/dataset/README.md`` says where it is. docs/full-duplex-bench.md states every rule.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from duplex.benchmarks.fdb_layout import TASK_NAMES, find_samples, subsets, task_of
from duplex.benchmarks.fdb_score import MEASURES, SubsetScore, score_subset
from duplex.errors import DuplexError

DEFAULT_URL = "http://127.0.0.1:8998"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 if every sample was run or scored, 1 if any was not (each is named on the way)."""
    args = _parser().parse_args(argv)
    console = Console(highlight=False, soft_wrap=True)
    try:
        return int(args.run(args, console))
    except DuplexError as error:
        console.print(f"[red]{escape(str(error))}[/red]")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="duplex bench fdb", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    run = commands.add_parser("run", help="stream each input.wav to a server and write output.wav beside it")
    run.add_argument("data_dir", type=Path, metavar="DATA_DIR", help="a subset, or a directory of subsets")
    run.add_argument("--url", default=DEFAULT_URL, help=f"the server ({DEFAULT_URL})")
    run.add_argument("--door", choices=("webrtc", "websocket"), help="how to call (webrtc; websocket for ws://…)")
    run.add_argument("--force", action="store_true", help="also those that have an output already")
    run.add_argument("--clean", action="store_true", help="also clean_input.wav → clean_output.wav (v1.5)")
    run.add_argument("--limit", type=int, metavar="N", help="only the first N samples of each subset")
    run.add_argument("--instructions", help="the system prompt of these calls")
    run.set_defaults(run=_run)
    score = commands.add_parser("score", help="compute the metrics from what is on disk")
    score.add_argument("data_dir", type=Path, metavar="DATA_DIR", help="a subset, or a directory of subsets")
    score.add_argument("--task", choices=sorted(TASK_NAMES), help="what the samples are about (told by their files)")
    score.add_argument(
        "--words",
        choices=("any", "given", "local"),
        default="any",
        help="output.json if there, else made here (any); only what is there (given); always made here (local)",
    )
    score.add_argument(
        "--reference", type=Path, metavar="FILE", help="the original's icc_gt_distribution.json, for JSD"
    )
    score.add_argument("--limit", type=int, metavar="N", help="only the first N samples of each subset")
    score.add_argument("--json", type=Path, metavar="FILE", help="write everything there, sample by sample")
    score.set_defaults(run=_score)
    return parser


# --- run -----------------------------------------------------------------------------------------------


def _run(args: argparse.Namespace, console: Console) -> int:
    from duplex.benchmarks.fdb_run import run_samples
    from duplex.benchmarks.turns.contract import CallOptions
    from duplex.benchmarks.turns.doors import door_of

    found = find_samples(args.data_dir, clean=args.clean)
    samples = [sample for subset in subsets(found).values() for sample in subset[: args.limit]]
    options = CallOptions(instructions=args.instructions)
    door = door_of(args.url, door=args.door)
    findings = asyncio.run(
        run_samples(
            samples,
            lambda: door.call(options),
            force=args.force,
            about={"url": args.url, "door": door.name, "instructions": args.instructions},
            tell=lambda line: console.print(escape(line)),
        )
    )
    kept = f", {findings.passed_over} had an output already (--force runs them again)" if findings.passed_over else ""
    console.print(f"{findings.done} of {len(samples)} samples run{kept}.")
    if findings.busy:
        named = ", ".join(str(sample) for sample in findings.busy[:5])
        console.print(f"[yellow]This machine was too busy to send in time in {len(findings.busy)}: {named}[/yellow]")
    return _failed(findings.errors, console)


# --- score ---------------------------------------------------------------------------------------------


def _score(args: argparse.Namespace, console: Console) -> int:
    from duplex.benchmarks.fdb_words import LocalEar

    ear = LocalEar()
    scores = []
    for directory, samples in subsets(find_samples(args.data_dir)).items():
        task = task_of(directory, samples, args.task)
        with console.status("") as status:
            scores.append(
                score_subset(
                    directory,
                    samples[: args.limit],
                    task,
                    ear,
                    words_from=args.words,
                    reference=args.reference,
                    tell=lambda line, status=status: status.update(escape(line)),  # type: ignore[misc]
                )
            )
    for score in scores:
        console.print(_table(score))
        for note in score.notes:
            console.print(f"[yellow]{escape(note)}[/yellow]")
    if args.json is not None:
        args.json.write_text(json.dumps([score.to_json() for score in scores], indent=1) + "\n", "utf-8")
        console.print(f"Wrote {escape(str(args.json))}")
    return _failed([error for score in scores for error in score.errors], console)


def _table(score: SubsetScore) -> Table:
    measures: dict[str, Any] = score.to_json()["measures"]
    table = Table(title=f"{score.name}: {score.task}", title_justify="left")
    for name in ("measure", "mean", "95 % interval", "n", "better"):
        table.add_column(name, justify="left" if name in {"measure", "better"} else "right")
    for name, unit, better in MEASURES[score.task]:
        found = measures.get(name)
        if found is None:
            table.add_row(name, "–", "", "0", better)
            continue
        interval = "" if found["ci95"] is None else "{:.3f} – {:.3f}".format(*found["ci95"])
        shown = f"{found['mean']:.3f}" + (f" {unit}" if unit not in {"", "share"} else "")
        table.add_row(name, shown, interval, str(found["n"]), better)
    return table


def _failed(errors: Sequence[DuplexError], console: Console) -> int:
    for error in errors:
        console.print(f"[red]{escape(str(error))}[/red]")
    if errors:
        console.print(f"[red]{len(errors)} samples could not be used.[/red]")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
