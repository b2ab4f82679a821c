"""The voice benchmark as a picture: every observation of every latency on one time axis."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from duplex.benchmarks.plot_rows import in_rows
from duplex.timeline import INK, PAPER, QUIET, installed_fonts

if TYPE_CHECKING:
    from duplex.benchmarks.voice import Measure

_COLOURS = {
    "end-of-turn delay": "#667085",
    "first packet": "#2fae9f",
    "voice-to-voice at the client": "#1c2330",
    "barge-in stop at the client": "#c8372d",
    "listener": "#5b8def",
    "thinker": "#f0b429",
    "talker": "#9a72d8",
}
_LANE_PX, _WIDTH_PX, _LEFT_PX, _RIGHT_PX, _TOP_PX = 74, 1600, 240, 140, 92


def save_distributions(measures: Sequence[Measure], path: Path, *, subtitle: str = "") -> None:
    """Writes a PNG: a lane per latency, a dot per observation, p50 and p95 marked, limits dashed."""
    from matplotlib.figure import Figure

    shown = [measure for measure in measures if measure.name in _COLOURS and measure.values]
    if not shown:
        return
    family = installed_fonts()
    height = _TOP_PX + _LANE_PX * len(shown) + 56
    figure = Figure(figsize=(_WIDTH_PX / 100, height / 100), dpi=100, facecolor=PAPER)
    axes = figure.add_axes(
        (
            _LEFT_PX / _WIDTH_PX,
            44 / height,
            (_WIDTH_PX - _LEFT_PX - _RIGHT_PX) / _WIDTH_PX,
            _LANE_PX * len(shown) / height,
        )
    )
    limits = [limit for measure in shown for limit, _aim in measure.limits.values()]
    right = max([*(value for measure in shown for value in measure.values), *limits]) * 1.06
    axes.set_xlim(0, right)
    in_rows(axes, len(shown), "ms", family)
    figure.text(
        24 / _WIDTH_PX, 1 - 40 / height, "duplex bench voice", fontsize=17, weight="bold", color=INK, family=family
    )
    figure.text(24 / _WIDTH_PX, 1 - 66 / height, subtitle, fontsize=10, color=QUIET, family=family)
    rng = random.Random(0)
    for lane, measure in enumerate(shown):
        colour = _COLOURS[measure.name]
        heights = [lane + 0.5 + rng.uniform(-0.13, 0.13) for _ in measure.values]
        axes.scatter(measure.values, heights, s=26, color=colour, alpha=0.45, linewidth=0, zorder=3)
        told = []
        for name in ("p50", "p95"):
            if (value := measure.statistic(name)) is not None:
                axes.plot([value, value], [lane + 0.28, lane + 0.72], color=colour, linewidth=2.4, zorder=4)
                told.append(f"{name}  {value:.0f} ms")
        axes.text(
            1.015, 1 - (lane + 0.5) / len(shown), "\n".join(told), transform=axes.transAxes, va="center",
            fontsize=11, color=INK, family=family, linespacing=1.5,
        )  # fmt: skip
        for limit, _aim in measure.limits.values():
            axes.plot([limit, limit], [lane + 0.14, lane + 0.86], color=QUIET, linewidth=1.1, linestyle="--", zorder=2)
        axes.text(
            -0.012, 1 - (lane + 0.42) / len(shown), measure.name, transform=axes.transAxes, ha="right", va="center",
            fontsize=11, color=INK, family=family, linespacing=1.3,
        )  # fmt: skip
        axes.text(
            -0.012, 1 - (lane + 0.66) / len(shown), f"n = {len(measure.values)}", transform=axes.transAxes,
            ha="right", va="center", fontsize=9, color=QUIET, family=family,
        )  # fmt: skip
    figure.savefig(path, dpi=100)
