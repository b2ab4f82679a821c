"""Step time, sessions at the deadline and memory of the native engine, beside the package's own loop.

    duplex bench engine [--preset tiny|1b|moshi-7b|personaplex] [--sessions 1,2,4,8] [--precision auto …]

Random weights unless --weights names a directory: time does not depend on their values. Each number of sessions is
measured twice: back to back, with every call's context full (step time by part, p50 to max), and through the
scheduler, with a frame each 80 ms (overhead, late results, first packet). The package's loop (``MimiModel.encode`` →
``LMGen.step`` → ``MimiModel.decode``, as ``moshi.server`` runs it) is measured on the same weights in the same run: at
one session, in turns with ours, and batched.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from duplex.errors import DuplexError, MissingDependencyError


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 if the benchmark ran, whatever it found."""
    args = _parser().parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 230)
    try:
        _run(args, console)
    except DuplexError as error:
        console.print(f"[red]{error}[/red]")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="duplex bench engine", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", default="tiny", help="tiny, 1b, moshi-7b, personaplex: random weights (tiny)")
    parser.add_argument("--weights", metavar="DIR", help="a checkpoint's directory, instead of a preset")
    parser.add_argument("--sessions", type=_counts, default=None, metavar="N,N", help="1,2,4,8 (tiny: 1 to 64)")
    parser.add_argument(
        "--precision", action="append", help="of the model's parts; again for another (auto; on CUDA also kv=int8)"
    )
    parser.add_argument("--stock", type=_counts, default=None, metavar="N,N", help="batch sizes of the package's loop")
    parser.add_argument("--no-stock", action="store_true", help="leave the package's loop out")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="of torch, on the CPU (tiny: 1, else one a core)")
    parser.add_argument("--context", type=int, help="steps that are remembered (the model's)")
    parser.add_argument("--sinks", type=int, help="of those, kept from the beginning (none)")
    parser.add_argument("--no-graphs", action="store_true", help="call every part instead of replaying CUDA graphs")
    parser.add_argument("--fresh", action="store_true", help="measure calls that have just begun: short contexts")
    parser.add_argument("--steps", type=int, default=200, help="of each measurement (200)")
    parser.add_argument("--paced", type=int, default=50, metavar="FRAMES", help="through the scheduler (50; 0: not)")
    parser.add_argument(
        "--call-minutes", type=int, default=0, metavar="N", help="then one call of N minutes: does it stay as it was?"
    )
    parser.add_argument("--limit-s", type=float, default=3600.0, help="what would begin later is left out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a PNG there")
    return parser


def _counts(text: str) -> list[int]:
    counts = sorted({int(part) for part in text.split(",")})
    if not counts or counts[0] < 1:
        raise argparse.ArgumentTypeError("numbers of sessions are 1 or more")
    return counts


def _run(args: argparse.Namespace, console: Console) -> None:
    began_s = time.monotonic()
    os.environ.setdefault("NO_TORCH_COMPILE", "1")  # the package reads it when it is imported
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise MissingDependencyError("torch", "moshi") from error

    from duplex.benchmarks.engine.limits import measured_bandwidth_bytes_per_s
    from duplex.benchmarks.engine.plans import Plan, measure
    from duplex.benchmarks.engine.report import as_json, print_table, verdicts
    from duplex.benchmarks.server_process import machine
    from duplex.thinker_talker.native.device.engine_loading import device_named
    from duplex.thinker_talker.native.device.engine_options import EngineOptions

    device = device_named(args.device)
    tiny = args.preset == "tiny" and args.weights is None
    if device.type == "cpu":
        torch.set_num_threads(args.threads or (1 if tiny else os.cpu_count() or 1))
    model: dict[str, Any] = {"weights": args.weights} if args.weights else {"preset": args.preset}
    options = EngineOptions(
        **model, device=str(device), graphs=not args.no_graphs, context=args.context, sinks=args.sinks, seed=0
    )
    sessions = args.sessions or ([1, 2, 4, 8, 16, 32, 64] if tiny or device.type == "cuda" else [1, 2, 4, 8])
    stock = args.stock or [n for n in sessions if n in (1, 8, 32)]
    plan = Plan(
        options=options,
        precisions=args.precision or (["auto"] if device.type == "cpu" else ["auto", "kv=int8"]),
        sessions=sessions,
        stock_sessions=[] if args.no_stock else stock,
        steps=args.steps,
        paced_frames=args.paced,
        full_context=not args.fresh,
        until_s=began_s + args.limit_s,
    )
    about: dict[str, Any] = {"model": args.weights or args.preset, "machine": dict(machine()), "device": str(device)}
    about |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "graphs": not args.no_graphs}
    if device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
    bandwidth = measured_bandwidth_bytes_per_s(device)
    about["bandwidth_gb_per_s"] = round(bandwidth / 1e9, 1)
    rows = measure(plan, bandwidth, lambda line: console.print(f"[dim]{line}[/dim]"))
    about |= {"load_average_after": [round(load, 2) for load in os.getloadavg()], "full_context": not args.fresh}
    about["took_s"] = round(time.monotonic() - began_s, 1)
    print_table(rows, f"duplex bench engine: {about['model']}", console)
    for line in verdicts(rows):
        console.print(line)
    console.print(machine_line(about))
    if args.call_minutes:
        about["long_call"] = _long_call(args.call_minutes, str(device), console)
    if args.json is not None:
        args.json.write_text(json.dumps(as_json(rows, about), indent=1) + "\n", "utf-8")
        console.print(f"Wrote {args.json}")
    if args.plot is not None:
        from duplex.benchmarks.engine.plot import save_plot

        save_plot(rows, args.plot, title=f"duplex bench engine: {about['model']}", subtitle=machine_line(about))
        console.print(f"Wrote {args.plot}")


def _long_call(minutes: int, device: str, console: Console) -> dict[str, Any]:
    from duplex.benchmarks.engine.long_call import STEPS_PER_MINUTE, long_call

    console.print(f"[dim]one call of {minutes} minutes, tiny, with attention sinks, its window outgrown …[/dim]")
    call = long_call(minutes * STEPS_PER_MINUTE, device=device)
    first, last = (1e3 * call.minute_s[i] for i in (0, -1))
    console.print(
        f"A call of {minutes} minutes, {call.steps} steps, {call.sinks} sinks and a window of {call.context}: a step "
        f"took {first:.2f} ms in the first minute, {last:.2f} in the last ({100 * call.drift:+.1f} % from the second "
        f"to the last quarter); its state {call.state_bytes[0]} bytes, then {call.state_bytes[1]}; "
        f"{'all finite' if call.finite else 'NOT FINITE'}, {call.last_tokens} different text tokens in the last minute."
    )
    return {**asdict(call), "drift": call.drift}


def machine_line(about: Mapping[str, Any]) -> str:
    found = about["machine"]
    loads = (found["load_average"], about["load_average_after"])
    before, after = (" ".join(f"{load:g}" for load in averages) for averages in loads)
    where = about.get("gpu") or f"{about['threads']} of {found['cores']} cores"
    return (
        f"{where}, {found['cpu']}, {about['bandwidth_gb_per_s']:g} GB/s by copying, load {before} before and {after} "
        f"after; torch {about['torch']}, Python {found['python']}, {found['system']}; {about['took_s']:g} s in all"
    )
