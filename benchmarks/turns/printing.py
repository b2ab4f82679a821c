"""What a person sees: how the run goes on, and the table at its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from duplex.benchmarks.turns.contract import Scenario, Trial
from duplex.benchmarks.turns.results import LimitVerdict, MeasureSummary, ScenarioResult, SuiteResult

_COLOURS = {"pass": "green", "miss": "red", "not judged": "yellow", "not run": "dim"}


class Progress:
    """Bars on a terminal, a line per scenario elsewhere. Implements :class:`.runner.Watcher`."""

    def __init__(self, scenarios: Sequence[Scenario], trials_of: Callable[[Scenario], int], console: Console) -> None:
        self._console = console
        self._left = {s.number: s.minutes * min(1.0, trials_of(s) / max(1, s.trials)) for s in scenarios}
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bars.add_task("", total=None)
        self._valid = 0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._bars.stop()

    def began(self, scenario: Scenario, trials: int) -> None:
        self._valid = 0
        left = f"about {self.minutes_left:.0f} min left"
        self._bars.reset(self._task, total=trials, description=f"{scenario.number:>2} {scenario.name} ({left})")

    def tried(self, scenario: Scenario, trial: Trial) -> None:
        self._valid += trial.valid
        self._bars.update(self._task, completed=self._valid)

    def ended(self, result: ScenarioResult) -> None:
        self._left.pop(result.scenario, None)
        colour = _COLOURS[result.verdict]
        line = f"{result.scenario:>2} {result.name}: [{colour}]{result.verdict}[/{colour}]"
        self._console.print(f"{line} [dim]({result.took_s:.0f} s)[/dim]")

    @property
    def minutes_left(self) -> float:
        """By the scenarios' own estimates, of what has not ended yet."""
        return sum(self._left.values())


def print_results(result: SuiteResult, console: Console) -> None:
    """The table: a row per limit, with what else was measured below it, dimmed."""
    table = Table(title=f"duplex bench turns {result.version}", title_justify="left", title_style="bold")
    table.add_column("#", justify="right")
    table.add_column("scenario and measure")
    for name in ("p50", "p95", "mean"):
        table.add_column(name, justify="right")
    table.add_column("95 % interval", justify="right", style="dim")
    table.add_column("n", justify="right")
    table.add_column("limit")
    table.add_column("")
    for row in result.results:
        _add(table, row)
    console.print(table)
    if result.quick:
        console.print("[yellow]A quick run: fewer or shorter trials than the table asks for. Not a figure.[/yellow]")
    loads = " ".join(f"{load:g}" for load in result.load["before"])
    about = result.machine
    console.print(
        f"{about['cpu']}, {about['cores']} cores, load {loads} before; Python {about['python']}, {about['system']}. "
        f"Door: {result.door}; sounds: {result.split}; seed {result.seed}; {result.took_s / 60.0:.0f} min."
    )
    counts = {verdict: sum(row.verdict == verdict for row in result.results) for verdict in _COLOURS}
    console.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count))


def _add(table: Table, row: ScenarioResult) -> None:
    colour = _COLOURS[row.verdict]
    notes = [row.note] if row.note else []
    notes += [f"{row.invalid} trials left out"] if row.invalid else []
    title = f"[bold]{row.name}[/bold]" + (f" [dim]({'; '.join(notes)})[/dim]" if notes else "")
    table.add_row(str(row.scenario), title, "", "", "", "", "", "", f"[{colour}]{row.verdict}[/{colour}]")
    limited = list(dict.fromkeys(limit.limit.measure for limit in row.limits))
    for name in [*limited, *(name for name in row.measures if name not in limited)]:
        limits = [limit for limit in row.limits if limit.limit.measure == name]
        _add_measure(table, name, row.measures.get(name), limits)


def _add_measure(table: Table, name: str, summary: MeasureSummary | None, limits: Sequence[LimitVerdict]) -> None:
    style = "" if limits else "dim"
    verdict = {None: "", True: "[green]ok[/green]", False: "[red]miss[/red]"}
    judged = {limit.passed for limit in limits}
    passed = None if not limits or None in judged else False not in judged
    wanted = ", ".join(str(limit).removeprefix(f"{name} ") for limit in limits)
    if summary is None:
        table.add_row("", f"  {name}", "–", "–", "–", "", "0", wanted, "", style=style)
        return
    middle, high = ("", "") if summary.share else (shown(summary.p50), shown(summary.p95))
    mean = f"{100 * summary.mean:.0f} %" if summary.share else shown(summary.mean)
    table.add_row(
        "",
        f"  {name}",
        middle,
        high,
        mean,
        _interval(summary, limits),
        str(summary.n),
        wanted,
        verdict[passed],
        style=style,
    )


def _interval(summary: MeasureSummary, limits: Sequence[LimitVerdict]) -> str:
    """Of the statistic that is judged last, or of the mean."""
    name = next((limit.limit.statistic for limit in reversed(limits) if limit.limit.statistic in summary.ci95), "mean")
    if name not in summary.ci95:
        return ""
    interval = summary.ci95[name]
    if summary.share and name == "mean":
        return f"{100 * interval.low:.0f} – {100 * interval.high:.0f} %"
    return f"{shown(interval.low)} – {shown(interval.high)}"


def shown(value: float) -> str:
    """A figure with as many digits as it deserves."""
    return f"{value:.0f}" if abs(value) >= 20 or value == int(value) else f"{value:.2f}"
