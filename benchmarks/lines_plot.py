"""The same measures on several lines, side by side in one picture: a row a measure, a dot a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from duplex.benchmarks.plot_rows import in_rows
from duplex.timeline import INK, PAPER, QUIET, installed_fonts

_COLOURS = ("#1c2330", "#c8372d", "#5b8def", "#f0b429", "#2fae9f")
_ROW_PX, _WIDTH_PX, _TOP_PX, _BOTTOM_PX = 46, 1600, 118, 58
_LABEL_PX, _GAP_PX, _RIGHT_PX = 270, 40, 30
_SPREAD = 0.36  # of a row, over which its dots lie


@dataclass(frozen=True, slots=True)
class Dot:
    """One figure. ``low``, ``high``: its 95 % interval, if there is one."""

    series: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One measure. ``unit``: rows of a unit share an axis. ``limit``: what it is held to, dashed."""

    label: str
    unit: str
    dots: tuple[Dot, ...]
    limit: float | None = None


def save_dots(rows: Sequence[Row], path: Path, title: str, subtitle: str = "") -> None:
    """Writes a PNG with a panel for each unit; nothing if there are no rows."""
    from matplotlib.figure import Figure

    units = list(dict.fromkeys(row.unit for row in rows if row.dots))
    if not units:
        return
    panels = [[row for row in rows if row.unit == unit and row.dots] for unit in units]
    series = list(dict.fromkeys(dot.series for row in rows for dot in row.dots))
    family = installed_fonts()
    height = _TOP_PX + _ROW_PX * max(map(len, panels)) + _BOTTOM_PX
    figure = Figure(figsize=(_WIDTH_PX / 100, height / 100), dpi=100, facecolor=PAPER)
    panel_px = (_WIDTH_PX - _RIGHT_PX) / len(panels)
    for index, (unit, panel) in enumerate(zip(units, panels, strict=True)):
        left = index * panel_px + _LABEL_PX
        place = (
            left / _WIDTH_PX,
            1 - (_TOP_PX + _ROW_PX * len(panel)) / height,
            (panel_px - _LABEL_PX - _GAP_PX) / _WIDTH_PX,
            _ROW_PX * len(panel) / height,
        )
        axes = figure.add_axes(place)
        _draw(axes, panel, unit, series, family)
    figure.text(24 / _WIDTH_PX, 1 - 40 / height, title, fontsize=17, weight="bold", color=INK, family=family)
    figure.text(24 / _WIDTH_PX, 1 - 66 / height, subtitle, fontsize=10, color=QUIET, family=family)
    at_px = 24.0
    for index, name in enumerate(series):
        y = 1 - 92 / height
        figure.text(at_px / _WIDTH_PX, y, "●", fontsize=11, color=_colour(index), family=family)
        figure.text((at_px + 20) / _WIDTH_PX, y, name, fontsize=11, color=INK, family=family)
        at_px += 44 + 8.5 * len(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor=PAPER)


def _draw(axes: object, panel: Sequence[Row], unit: str, series: Sequence[str], family: list[str]) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    highest = max(
        [*(dot.value if dot.high is None else dot.high for row in panel for dot in row.dots)]
        + [row.limit for row in panel if row.limit is not None]
    )
    lowest = min([0.0, *(dot.value if dot.low is None else dot.low for row in panel for dot in row.dots)])
    axes.set_xlim(lowest * 1.06, highest * 1.06 or 1.0)
    in_rows(axes, len(panel), unit, family)
    for at, row in enumerate(panel):
        axes.text(
            -0.02, at + 0.5, row.label, transform=axes.get_yaxis_transform(), ha="right", va="center",
            fontsize=10, color=INK, family=family,
        )  # fmt: skip
        if row.limit is not None:
            axes.plot([row.limit, row.limit], [at + 0.08, at + 0.92], color=QUIET, linewidth=1.0, linestyle=(0, (3, 2)))
        for dot in row.dots:
            index = series.index(dot.series)
            y = at + 0.5 + _SPREAD * ((index + 0.5) / len(series) - 0.5) * 2
            if dot.low is not None and dot.high is not None:
                axes.plot([dot.low, dot.high], [y, y], color=_colour(index), linewidth=1.6, alpha=0.45)
            axes.plot([dot.value], [y], "o", color=_colour(index), markersize=6)


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]
