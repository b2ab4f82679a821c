"""``python -m fuzz`` (in ``tests/``): every target for so many seconds, each in a process of its own.

A process that is killed, hangs, or runs out of the memory it is allowed leaves the input behind that did it. Inputs
that break a promise are written to ``build/fuzz/``; once mended, move them to ``tests/fuzz/corpus/TARGET/``.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import logging
import mmap
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

FOUND = Path(__file__).parents[2] / "build" / "fuzz"
HANG_S = 60.0
ADDRESS_SPACE_MB = 2048  # beyond what the process has once it has imported everything
_LAST_BYTES = 1024 * 1024


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target (60)")
    parser.add_argument("--target", default="all", help="one or several, with commas (all)")
    parser.add_argument("--seed", type=int, default=None, help="so that a run can be repeated (the time)")
    parser.add_argument("--input", type=Path, help="run this one file against --target, and say what comes of it")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    seed = int(time.time()) if args.seed is None else args.seed
    from .targets import TARGETS

    names = list(TARGETS) if args.target == "all" else args.target.split(",")
    if unknown := [name for name in names if name not in TARGETS]:
        print(f"There is no target {', '.join(unknown)}. There are: {', '.join(TARGETS)}.", file=sys.stderr)
        return 2
    if args.input is not None:
        from .target import attempt

        print(attempt(TARGETS[names[0]], args.input.read_bytes()))
        return 0
    if args.child:
        _child(names[0], args.seconds, seed)
        return 0
    FOUND.mkdir(parents=True, exist_ok=True)
    print(f"seed {seed}, {args.seconds:g} s each; findings go to {FOUND}\n")
    print(f"{'target':<16}{'executions':>12}{'a second':>10}{'outcomes':>10}{'findings':>10}")
    return 1 if sum([_parent(name, args.seconds, seed) for name in names]) else 0


# --- a process for each target ---------------------------------------------------------------------------------


def _parent(name: str, seconds: float, seed: int) -> int:
    """Runs a target until its time is over, again after each time its process died. Returns the number of findings."""
    ends_s, executions, outcomes, found = time.monotonic() + seconds, 0, 0, 0
    notes: list[str] = []
    while (left_s := ends_s - time.monotonic()) > 1.0:
        command = [sys.executable, "-m", "fuzz", "--child", "--target", name]
        command += ["--seconds", f"{left_s:.1f}", "--seed", str(seed)]
        child = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, check=False)
        seed += 1
        if child.returncode == 0:
            result = json.loads(child.stdout.splitlines()[-1])
            executions, outcomes = executions + result["executions"], max(outcomes, result["outcomes"])
            found += len(result["findings"])
            notes += result["findings"]
            break
        found += 1
        last = FOUND / f"{name}.last"
        data = last.read_bytes() if last.exists() else b""
        data = data[4 : 4 + int.from_bytes(data[:4], "little")]
        why = child.stderr.decode("utf-8", "replace").strip()[-800:]
        notes.append(f"its process ended with {child.returncode}; input: {_save(name, data)}\n{why}")
        if not data:
            break  # it did not even begin
    print(f"{name:<16}{executions:>12}{executions / seconds:>10.0f}{outcomes:>10}{found:>10}", flush=True)
    for note in notes:
        print(f"    {note}")
    return found


def _child(name: str, seconds: float, seed: int) -> None:
    from .run import fuzz
    from .targets import TARGETS

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    target = TARGETS[name]
    target.seeds()
    _limit_memory()
    faulthandler.enable()
    with (FOUND / f"{name}.last").open("w+b") as handle:
        handle.truncate(_LAST_BYTES)
        with mmap.mmap(handle.fileno(), _LAST_BYTES) as last:

            def before(data: bytes) -> None:
                """What is being run now is in the file when this process dies of it; it does after ``HANG_S``."""
                last[:4] = len(data).to_bytes(4, "little")
                last[4 : 4 + len(data)] = data[: _LAST_BYTES - 4]
                faulthandler.dump_traceback_later(HANG_S, exit=True)

            result = fuzz(target, seconds, seed, before=before)
    faulthandler.cancel_dump_traceback_later()
    notes = [f"{finding.what}; input: {_save(name, finding.data)}" for finding in result.findings.values()]
    print(json.dumps({"executions": result.executions, "outcomes": result.outcomes, "findings": notes}))
    sys.stdout.flush()
    os._exit(0)  # threads of libraries that were started on the way need not be waited for


def _limit_memory() -> None:
    """What would take the machine's memory is a ``MemoryError`` here, or the end of this process."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return
    limit = pages * resource.getpagesize() + ADDRESS_SPACE_MB * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _save(name: str, data: bytes) -> str:
    folder = FOUND / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(data).hexdigest()[:12]
    path.write_bytes(data)
    return str(path)


if __name__ == "__main__":
    sys.exit(main())
