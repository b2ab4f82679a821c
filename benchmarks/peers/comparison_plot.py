"""A side-by-side run as a picture: a panel per latency, a column of dots per contender; shares as bars below."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from duplex.benchmarks.peers.comparison import Comparison, Contender, Row
from duplex.timeline import FAINT, INK, PAPER, QUIET, installed_fonts

_COLOURS = ("#0e8074", "#c27a2c", "#9a72d8", "#5b8def")
_WIDTH_IN, _PANEL_IN, _SHARE_IN, _TOP_IN = 12.0, 3.6, 0.62, 0.95
_PANELS_PER_ROW = 3


def save_plot(comparison: Comparison, path: Path, *, title: str, subtitle: str) -> None:
    """Writes a PNG; rows nobody has a value for are left out, and without any there is no file."""
    from matplotlib.figure import Figure

    shown = [row for row in comparison.rows if any(side.summary(row) for side in comparison.contenders)]
    latencies = [row for row in shown if row.kind == "ms"]
    shares = [row for row in shown if row.kind == "share"]
    if not shown:
        return
    family = installed_fonts()
    shelves = -(-len(latencies) // _PANELS_PER_ROW)
    height = _TOP_IN + shelves * _PANEL_IN + (0.5 + _SHARE_IN * len(shares) if shares else 0.0) + 0.3
    figure = Figure(figsize=(_WIDTH_IN, height), dpi=100, facecolor=PAPER)
    figure.text(0.25 / _WIDTH_IN, 1 - 0.42 / height, title, fontsize=17, weight="bold", color=INK, family=family)
    figure.text(0.25 / _WIDTH_IN, 1 - 0.70 / height, subtitle, fontsize=10, color=QUIET, family=family)
    for number, row in enumerate(latencies):
        shelf, place = divmod(number, _PANELS_PER_ROW)
        left = 0.75 + place * (_WIDTH_IN - 0.5) / _PANELS_PER_ROW
        bottom = height - _TOP_IN - (shelf + 1) * _PANEL_IN + 0.45
        box = (left, bottom, (_WIDTH_IN - 0.5) / _PANELS_PER_ROW - 0.75, _PANEL_IN - 0.85)
        _draw_dots(_axes(figure, box, height), comparison.contenders, row, family)
    for number, row in enumerate(shares):
        bottom = 0.25 + (len(shares) - 1 - number) * _SHARE_IN
        _draw_bars(_axes(figure, (4.3, bottom, 5.2, _SHARE_IN - 0.14), height), comparison.contenders, row, family)
    figure.savefig(path, dpi=100)


def _axes(figure: Any, box_in: tuple[float, float, float, float], height_in: float) -> Any:
    """Axes at (left, bottom, width, height) in inches, without a frame."""
    left, bottom, width, height = box_in
    axes = figure.add_axes((left / _WIDTH_IN, bottom / height_in, width / _WIDTH_IN, height / height_in))
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(colors=QUIET, labelsize=9, length=0)
    return axes


def _draw_dots(axes: Any, sides: Sequence[Contender], row: Row, family: Sequence[str]) -> None:
    """One dot per trial, and a bar with its figure at p50 and at p95."""
    rng = random.Random(0)
    highest = max((found.max for side in sides if (found := side.summary(row)) is not None), default=0.0)
    for column, side in enumerate(sides):
        found = side.summary(row)
        if found is None:
            continue
        colour = _COLOURS[column % len(_COLOURS)]
        across = [column + rng.uniform(-0.16, 0.16) for _ in found.values]
        axes.scatter(across, found.values, s=24, color=colour, alpha=0.4, linewidth=0, zorder=3)
        apart = max(0.0, 0.07 * highest - (found.p95 - found.p50)) / 2.0  # or their figures would overlap
        for name, value, nudge in (("p50", found.p50, -apart), ("p95", found.p95, apart)):
            axes.plot([column - 0.26, column + 0.26], [value, value], color=colour, linewidth=2.2, zorder=4)
            told = f"{name} {value:.0f}"
            axes.text(column + 0.3, value + nudge, told, va="center", fontsize=9, color=INK, family=family)
    axes.set_ylim(0, highest * 1.08 or 1.0)
    axes.set_xlim(-0.5, len(sides) - 1 + 0.85)
    labels = [f"{side.name}\nn = {found.n if (found := side.summary(row)) else 0}" for side in sides]
    axes.set_xticks(range(len(sides)), labels, color=INK, family=family)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(f"{row.label}, ms", loc="left", fontsize=11, color=INK, family=family)


def _draw_bars(axes: Any, sides: Sequence[Contender], row: Row, family: Sequence[str]) -> None:
    """A bar per contender from 0 to 100 %, with the count behind it."""
    for line, side in enumerate(sides):
        found = side.summary(row)
        axes.barh(line, 100.0, height=0.8, color=FAINT, zorder=1)
        told = f"{side.name}  –"
        if found is not None:
            axes.barh(line, 100.0 * found.mean, height=0.8, color=_COLOURS[line % len(_COLOURS)], zorder=2)
            told = f"{side.name}  {round(found.sum)} of {found.n}"
        axes.text(102, line, told, va="center", fontsize=9, color=INK, family=family)
    axes.set_xlim(0, 100)
    axes.set_ylim(len(sides) - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    better = "more is better" if row.more else "less is better"
    axes.text(
        -2, (len(sides) - 1) / 2, f"{row.label}\n({better})", ha="right", va="center", fontsize=10, color=INK,
        family=family, linespacing=1.3,
    )  # fmt: skip
