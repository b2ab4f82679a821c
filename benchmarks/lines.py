"""Results of ``duplex bench turns`` side by side: wideband beside a telephone line, or one door beside another.

    duplex bench turns --json wide.json
    duplex bench turns --line telephone --json telephone.json
    duplex bench lines wide.json telephone.json [--json FILE] [--plot PNG]

A row for each limit of each scenario that more than one of the runs has; what each found, with its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from duplex.benchmarks.lines_plot import Dot, Row, save_dots
from duplex.benchmarks.turns.contract import Limit
from duplex.benchmarks.turns.printing import shown
from duplex.benchmarks.turns.report_words import unit_of
from duplex.benchmarks.turns.results import Interval, LimitVerdict, ScenarioResult, SuiteResult
from duplex.errors import DuplexError


@dataclass(frozen=True, slots=True)
class Cell:
    """What one run found for one limit. ``value`` None: nothing to go by."""

    value: float | None
    passed: bool | None
    n: int
    share: bool
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Compared:
    """One limit of one scenario, by run."""

    scenario: int
    name: str
    limit: Limit
    cells: Mapping[str, Cell]

    @property
    def label(self) -> str:
        return f"{self.limit.measure} {self.limit.statistic}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="duplex bench lines", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT.json", help="the first is compared with")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    args = parser.parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    try:
        runs = named([SuiteResult.load_file(path) for path in args.results])
        rows = compared(runs)
    except DuplexError as error:
        console.print(f"[red]{error}[/red]")
        return 1
    _print(runs, rows, console)
    if args.json is not None:
        args.json.write_text(json.dumps(to_json(runs, rows), indent=1) + "\n")
    if args.plot is not None:
        about = next(iter(runs.values())).machine
        subtitle = f"{about['cpu']}, {about['cores']} cores; bars: 95 %"
        save_dots(plotted(rows), args.plot, "duplex bench turns, side by side", subtitle)
    return 0


def named(results: Sequence[SuiteResult]) -> dict[str, SuiteResult]:
    """Each run by its door and line; twice the same gets a number. Raises ``DuplexError`` for fewer than two."""
    if len(results) < 2:
        raise DuplexError("Give at least two results of duplex bench turns --json FILE.")
    runs: dict[str, SuiteResult] = {}
    for result in results:
        name, number = result.door, 1
        while name in runs:
            number += 1
            name = f"{result.door} ({number})"
        runs[name] = result
    return runs


def compared(runs: Mapping[str, SuiteResult]) -> list[Compared]:
    """A row for each limit that at least two of the runs judged. Raises ``DuplexError`` if there is none."""
    found: dict[tuple[int, str, str], tuple[str, Limit, dict[str, Cell]]] = {}
    for run, result in runs.items():
        for scenario in result.results:
            if scenario.verdict == "not run":
                continue
            for verdict in scenario.limits:
                key = (scenario.scenario, verdict.limit.measure, verdict.limit.statistic)
                row = found.setdefault(key, (scenario.name, verdict.limit, {}))
                row[2][run] = _cell(scenario, verdict)
    rows = [Compared(key[0], name, limit, cells) for key, (name, limit, cells) in sorted(found.items(), key=_order)]
    rows = [row for row in rows if len(row.cells) > 1]
    if not rows:
        raise DuplexError("These runs have no scenario in common.")
    return rows


def _order(item: tuple[tuple[int, str, str], Any]) -> int:
    return item[0][0]


def _cell(scenario: ScenarioResult, verdict: LimitVerdict) -> Cell:
    summary = scenario.measures.get(verdict.limit.measure)
    if summary is None:
        return Cell(verdict.value, verdict.passed, 0, False, None)
    interval = summary.ci95.get(verdict.limit.statistic)
    return Cell(verdict.value, verdict.passed, summary.n, summary.share, interval)


def _print(runs: Mapping[str, SuiteResult], rows: Sequence[Compared], console: Console) -> None:
    table = Table(title="duplex bench turns, side by side", title_justify="left", title_style="bold")
    table.add_column("#", justify="right")
    table.add_column("scenario and measure")
    table.add_column("limit")
    for name in runs:
        table.add_column(name, justify="right")
    last = None
    for row in rows:
        if row.scenario != last:
            verdicts = [
                next((each.verdict for each in result.results if each.scenario == row.scenario), "")
                for result in runs.values()
            ]
            table.add_row(str(row.scenario), f"[bold]{row.name}[/bold]", "", *verdicts)
            last = row.scenario
        limit = str(LimitVerdict(row.limit, None, None)).removeprefix(f"{row.limit.measure} ")
        table.add_row("", f"  {row.limit.measure}", limit, *(_shown(row.cells.get(name)) for name in runs))
    console.print(table)
    for name, result in runs.items():
        load = result.load["before"][0]
        console.print(f"{name}: {result.split}, seed {result.seed}, load {load:g}, {result.started_at}", style="dim")


def _shown(cell: Cell | None) -> str:
    if cell is None or cell.value is None:
        return "–"
    colour = {True: "green", False: "red", None: "dim"}[cell.passed]
    text = f"{100 * cell.value:.0f} %" if cell.share else shown(cell.value)
    between = ""
    if cell.interval is not None:
        low, high = cell.interval.low, cell.interval.high
        between = f"{100 * low:.0f}–{100 * high:.0f}" if cell.share else f"{shown(low)}–{shown(high)}"
        between = f" ({between})"
    return f"[{colour}]{text}[/{colour}][dim]{between}, {cell.n}[/dim]"


def plotted(rows: Sequence[Compared]) -> list[Row]:
    """Shares and milliseconds as rows of a picture; what is counted in something else is left to the table."""
    drawn: list[Row] = []
    for row in rows:
        share = any(cell.share for cell in row.cells.values())
        unit = "%" if share else unit_of(row.limit.measure)
        if unit not in {"%", "ms"}:
            continue
        factor = 100.0 if share else 1.0
        dots = tuple(
            Dot(
                name,
                cell.value * factor,
                None if cell.interval is None else cell.interval.low * factor,
                None if cell.interval is None else cell.interval.high * factor,
            )
            for name, cell in row.cells.items()
            if cell.value is not None
        )
        limit = row.limit.at_most if row.limit.at_most is not None else row.limit.at_least
        drawn.append(Row(f"{row.scenario} {row.label}", unit, dots, None if limit is None else limit * factor))
    return drawn


def to_json(runs: Mapping[str, SuiteResult], rows: Sequence[Compared]) -> dict[str, Any]:
    """Plain values."""
    about = ("version", "machine", "load", "split", "seed", "started_at", "quick")
    return {
        "runs": {name: {field: getattr(result, field) for field in about} for name, result in runs.items()},
        "rows": [asdict(row) for row in rows],
    }


if __name__ == "__main__":
    sys.exit(main())
