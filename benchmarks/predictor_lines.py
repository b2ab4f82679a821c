"""``duplex bench predictor --line telephone``: what the predictor decides on two lines, beside each other.

The same recordings, wide and over the line, are heard by the real models and judged with the default settings:
turns (were pauses taken for an end, how soon was an end believed) and what is said over our own voice (was a real
interruption yielded to and how soon, was encouragement not).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from duplex.benchmarks.lines_plot import Dot, Row
from duplex.benchmarks.narrowband import Line
from duplex.benchmarks.predictor_replay import (
    Models,
    Outcome,
    Spoken,
    Verdict,
    decide,
    hear,
    judge_overlap,
    score,
)
from duplex.benchmarks.turns.material import Material
from duplex.benchmarks.turns.results import Interval
from duplex.benchmarks.turns.statistics import bootstrap, percentile, wilson
from duplex.thinker_talker.turn_options import TurnOptions
from duplex.turn import User

OVER_US = ("interruption", "stop", "backchannel")


@dataclass(frozen=True, slots=True)
class Figure:
    """``value``: a share, or ms. ``interval``: 95 %; none where there is nothing to draw from."""

    measure: str
    unit: str
    value: float
    n: int
    interval: Interval | None = None


def turns_of(material: Material, trials: int) -> Iterator[tuple[str, Spoken]]:
    """Kind and sound: every plain question, and ``trials`` of each kind with pauses."""
    for stimulus in material.questions():
        yield "plain", Spoken(stimulus.name, stimulus.samples, stimulus.voiced.end_ms)
    makers = {"paused": material.paused, "um": material.um_pause, "digits": material.digits}
    for kind, make in makers.items():
        for k in range(trials):
            made = make(k)
            yield kind, Spoken(made.name, made.samples, made.voiced.end_ms, made.pauses)


def overlaps_of(material: Material, trials: int) -> Iterator[tuple[str, Spoken, float]]:
    """Kind, sound, and its first voiced sample (ms): what is said over our voice."""
    makers = dict(zip(OVER_US, (material.interruption, material.stop, material.backchannel), strict=True))
    for kind, make in makers.items():
        for k in range(trials):
            made = make(k)
            yield kind, Spoken(made.name, made.samples, made.voiced.end_ms), made.voiced.start_ms


def over(spoken: Spoken, line: Line) -> Spoken:
    """The same at the other end of ``line``: what was said when does not change."""
    return Spoken(spoken.name, line.through(spoken.samples), spoken.end_ms, spoken.pauses)


def measure_line(
    material: Material, line: Line, trials: int, models: Models, console: Console, options: TurnOptions | None = None
) -> list[Figure]:
    """Hears and judges everything over ``line``; about a second of a core for each recording."""
    options = options or TurnOptions()
    turns: dict[str, list[Outcome]] = {}
    # A recording is judged as soon as it is heard, and then let go: what was heard of all of them is large.
    for kind, spoken in track(
        list(turns_of(material, trials)), f"Turns, {line.name} …", console=console, transient=True
    ):
        turns.setdefault(kind, []).append(decide(hear(over(spoken, line), models), options))
    overlaps: dict[str, list[tuple[Verdict, float]]] = {}
    listed = list(overlaps_of(material, trials))
    for kind, spoken, start_ms in track(listed, f"Over us, {line.name} …", console=console, transient=True):
        verdict = judge_overlap(hear(over(spoken, line), models), options)
        overlaps.setdefault(kind, []).append((verdict, start_ms))
    return [*turn_figures(turns), *overlap_figures(overlaps)]


def turn_figures(turns: Mapping[str, Sequence[Outcome]]) -> list[Figure]:
    """Takeovers of pauses, ends that were never believed in, and the silence before those that were."""
    figures: list[Figure] = []
    for kind, outcomes in turns.items():
        scored = score(outcomes)
        if scored.pauses:
            taken = round(scored.takeover * scored.pauses)
            figures.append(_share(f"{kind}: takeover", taken, scored.pauses))
        figures.append(_share(f"{kind}: end missed", scored.missed, len(outcomes)))
        figures += _waits(f"{kind}: delay", [1000.0 * delay_s for delay_s in scored.delay_s])
    return figures


def overlap_figures(overlaps: Mapping[str, Sequence[tuple[Verdict, float]]]) -> list[Figure]:
    """What was yielded to, and how long after its first voiced sample that was decided."""
    figures: list[Figure] = []
    for kind, verdicts in overlaps.items():
        yielded = [(verdict, start_ms) for verdict, start_ms in verdicts if verdict.user is User.INTERRUPTING]
        figures.append(_share(f"{kind}: yielded to", len(yielded), len(verdicts)))
        if kind != "backchannel":
            waits = [1000.0 * verdict.at_s - start_ms for verdict, start_ms in yielded]
            figures += _waits(f"{kind}: decided after", waits)
    return figures


def _share(measure: str, count: int, n: int) -> Figure:
    return Figure(measure, "%", 100.0 * count / n, n, _scaled(wilson(count, n), 100.0))


def _waits(measure: str, waits_ms: Sequence[float]) -> list[Figure]:
    if not waits_ms:
        return []
    between = bootstrap(waits_ms)
    return [
        Figure(f"{measure} p{rank}", "ms", percentile(waits_ms, rank), len(waits_ms), between.get(f"p{rank}"))
        for rank in (50, 95)
    ]


def _scaled(interval: Interval, factor: float) -> Interval:
    return Interval(interval.low * factor, interval.high * factor)


def print_lines(found: Mapping[str, Sequence[Figure]], split: str, console: Console) -> None:
    """A row a measure, a column a line."""
    table = Table(title=f"The predictor on the {split} set, by line", title_justify="left", title_style="bold")
    table.add_column("")
    for line in found:
        table.add_column(line, justify="right")
    for measure in dict.fromkeys(figure.measure for figures in found.values() for figure in figures):
        cells = ({figure.measure: figure for figure in figures}.get(measure) for figures in found.values())
        table.add_row(measure, *(_shown(cell) for cell in cells))
    console.print(table)


def _shown(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    between = ""
    if figure.interval is not None:
        between = f" ({figure.interval.low:.0f}–{figure.interval.high:.0f})"
    return f"{figure.value:.0f} {figure.unit}[dim]{between}, {figure.n}[/dim]"


def plotted(found: Mapping[str, Sequence[Figure]]) -> list[Row]:
    """Shares in one panel, milliseconds in the other; medians only, since a p95 of few has a long bar."""
    rows: list[Row] = []
    for measure in dict.fromkeys(figure.measure for figures in found.values() for figure in figures):
        if measure.endswith(" p95"):
            continue
        dots, unit = [], ""
        for line, figures in found.items():
            for figure in figures:
                if figure.measure == measure:
                    unit = figure.unit
                    between = figure.interval
                    dots.append(Dot(line, figure.value, *((between.low, between.high) if between else ())))
        rows.append(Row(measure, unit, tuple(dots)))
    return rows


def to_json(found: Mapping[str, Sequence[Figure]]) -> dict[str, Any]:
    """Plain values."""
    return {line: [asdict(figure) for figure in figures] for line, figures in found.items()}
