"""What a side-by-side run found: trials by contender and scenario, the rows that are compared, table and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from duplex.benchmarks.turns.results import MeasureSummary, ScenarioResult, TrialResult
from duplex.benchmarks.turns.statistics import summarise

SOONER = 3.0  # what we hold ourselves to: at least so many times sooner, at no more false cut-offs


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the comparison: a measure of a scenario. ``more``: a higher share is the better one."""

    scenario: int
    measure: str
    label: str
    kind: Literal["ms", "share"]
    more: bool = False


@dataclass(slots=True)
class Contender:
    """One side. ``server_s``: processor time its server used during its blocks, ``wall_s``: how long they took."""

    name: str
    version: str
    trials: dict[int, list[TrialResult]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    ready_s: float | None = None
    server_s: float = 0.0
    wall_s: float = 0.0
    peak_mb: float | None = None

    def take(self, result: ScenarioResult) -> None:
        """Adds a block."""
        self.trials.setdefault(result.scenario, []).extend(result.trials)
        if result.note and result.verdict in {"not run", "miss"} and not result.trials:
            self.notes.append(f"{result.name}: {result.note}")

    def valid(self, scenario: int) -> list[TrialResult]:
        return [trial for trial in self.trials.get(scenario, ()) if trial.valid]

    def summary(self, row: Row) -> MeasureSummary | None:
        """None without a value."""
        values = [trial.values[row.measure] for trial in self.valid(row.scenario) if row.measure in trial.values]
        return summarise(values) if values else None

    def together(self, rows: Sequence[Row]) -> MeasureSummary | None:
        """Several shares as one."""
        found = [summary.values for row in rows if (summary := self.summary(row)) is not None]
        return summarise([value for values in found for value in values]) if found else None

    @property
    def cpu_percent(self) -> float | None:
        """Of one core, over its own blocks, silences included."""
        return 100.0 * self.server_s / self.wall_s if self.wall_s else None


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing the run was to show. ``held`` is None if it was not measured."""

    text: str
    held: bool | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The first contender is ours; the ratio of a latency is the other's over ours."""

    contenders: Sequence[Contender]
    rows: Sequence[Row]
    machine: Mapping[str, Any]
    load_after: Sequence[float]
    configuration: Mapping[str, Any]
    took_s: float

    def ratio(self, row: Row, other: Contender, statistic: Literal["p50", "p95"]) -> float | None:
        """How many times as long the other one takes; None for shares and where a side has no value."""
        ours, theirs = self.contenders[0].summary(row), other.summary(row)
        if row.kind != "ms" or ours is None or theirs is None or ours.statistic(statistic) <= 0:
            return None
        return theirs.statistic(statistic) / ours.statistic(statistic)

    def claims(self, sooner: Row, cuts: Sequence[Row]) -> Iterator[Claim]:
        """At least three times sooner (``sooner``), and no more takeovers in all (``cuts``, as one share)."""
        ours = self.contenders[0]
        for other in self.contenders[1:]:
            for statistic in ("p50", "p95"):
                ratio = self.ratio(sooner, other, statistic)
                told = "not measured" if ratio is None else f"{other.name} takes {ratio:.1f} times as long"
                yield Claim(
                    f"{sooner.label}, {statistic}: {told} (wanted: at least {SOONER:g})",
                    None if ratio is None else ratio >= SOONER,
                )
            mine, theirs = ours.together(cuts), other.together(cuts)
            if mine is None or theirs is None:
                yield Claim("false cut-offs: not measured on both sides", None)
                continue
            yield Claim(
                f"false cut-offs: {ours.name} {told_share(mine)}, {other.name} {told_share(theirs)} (wanted: no more)",
                mine.mean <= theirs.mean,
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``: every trial of every side, and the rows as they were printed."""
        return {
            "machine": dict(self.machine),
            "load_after": list(self.load_after),
            "configuration": dict(self.configuration),
            "took_s": self.took_s,
            "rows": [
                {
                    **asdict(row),
                    "sides": {
                        side.name: None if (found := side.summary(row)) is None else asdict(found)
                        for side in self.contenders
                    },
                    "ratio": {
                        other.name: {"p50": self.ratio(row, other, "p50"), "p95": self.ratio(row, other, "p95")}
                        for other in self.contenders[1:]
                    },
                }
                for row in self.rows
            ],
            "contenders": [{**asdict(side), "cpu_percent": side.cpu_percent} for side in self.contenders],
        }

    def print_to(self, console: Console) -> None:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("")
        for side in self.contenders:
            table.add_column(side.name, justify="right")
        for other in self.contenders[1:]:
            table.add_column(f"{other.name} / {self.contenders[0].name}" if len(self.contenders) > 2 else "  p50 / p95")
        for row in self.rows:
            cells = [self._cell(side, row) for side in self.contenders]
            table.add_row(row.label, *cells, *(self._ratios(row, other) for other in self.contenders[1:]))
        for label, values in (
            ("server, % of a core", [side.cpu_percent for side in self.contenders]),
            ("server, peak memory (MB)", [side.peak_mb for side in self.contenders]),
            ("start to ready (s)", [side.ready_s for side in self.contenders]),
        ):
            table.add_row(label, *("–" if value is None else f"{value:.{1 if value < 10 else 0}f}" for value in values))
        console.print(table)
        for side in self.contenders:
            for note in side.notes:
                console.print(f"[yellow]{side.name}: {note}[/yellow]")

    @staticmethod
    def _cell(side: Contender, row: Row) -> str:
        found = side.summary(row)
        if found is None:
            return f"–  (of {len(side.valid(row.scenario))})"
        if row.kind == "share":
            return told_share(found)
        return f"p50 {found.p50:.0f}  p95 {found.p95:.0f} ms  (n = {found.n})"

    def _ratios(self, row: Row, other: Contender) -> str:
        ratios = [self.ratio(row, other, "p50"), self.ratio(row, other, "p95")]
        return "  " + " / ".join(f"{ratio:.1f}" for ratio in ratios if ratio is not None)


def told_share(found: MeasureSummary) -> str:
    """``7 of 20  (18–57 %)``, with the 95 % interval."""
    told = f"{round(found.sum)} of {found.n}"
    if (interval := found.ci95.get("mean")) is not None:
        told += f"  ({100 * interval.low:.0f}–{100 * interval.high:.0f} %)"
    return told
