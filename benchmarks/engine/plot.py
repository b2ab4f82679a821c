"""The engine benchmark as a picture: step time over sessions, its parts stacked, beside deadline and physical limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from duplex.benchmarks.engine.measures import DEADLINE_S, IN_TURNS, Row
from duplex.timeline import FAINT, INK, PAPER, QUIET, installed_fonts

_PARTS = {
    "copy": "#c9ced6",
    "encode": "#2fae9f",
    "temporal": "#5b8def",
    "depth": "#9a72d8",
    "decode": "#f0b429",
}
_STOCK = "#c8372d"


def save_plot(rows: Sequence[Row], path: Path, *, title: str, subtitle: str) -> None:
    """Writes a PNG: bars for each number of sessions, one a configuration; p50 by part, a line for p99."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    shown = [row for row in rows if row.step is not None and row.note != IN_TURNS]
    if not shown:
        return
    family = installed_fonts()
    sessions = sorted({row.sessions for row in shown})
    kinds = list(dict.fromkeys((row.who, row.precision) for row in shown))
    width = 0.8 / len(kinds)
    figure = Figure(figsize=(12, 6.4), dpi=100, facecolor=PAPER)
    axes = figure.add_axes((0.07, 0.16, 0.9, 0.64))
    for row in shown:
        assert row.step is not None
        kind = kinds.index((row.who, row.precision))
        at = sessions.index(row.sessions) + (kind - (len(kinds) - 1) / 2) * width
        bottom = 0.0
        if row.who == "stock":
            axes.bar(at, row.step.p50 * 1e3, width * 0.9, color=_STOCK, alpha=0.75)
        else:
            for part, colour in _PARTS.items():
                height = row.parts_s.get(part, 0.0) * 1e3
                axes.bar(at, height, width * 0.9, bottom=bottom, color=colour)
                bottom += height
            axes.bar(at, max(0.0, row.step.p50 * 1e3 - bottom), width * 0.9, bottom=bottom, color=INK, alpha=0.5)
        half = width * 0.42
        axes.plot([at - half, at + half], [row.step.p99 * 1e3] * 2, color=INK, linewidth=1.6)
        if row.limit_s:
            axes.plot([at - half, at + half], [row.limit_s * 1e3] * 2, color=INK, linewidth=1.6, linestyle=":")
        axes.annotate(
            row.precision if row.who == "duplex" else "stock", (at, 0), xytext=(0, -4), textcoords="offset points",
            ha="center", va="top", fontsize=7, color=QUIET, family=family, rotation=0 if len(kinds) < 3 else 20,
        )  # fmt: skip
    axes.axhline(DEADLINE_S * 1e3, color=_STOCK, linewidth=1.2, linestyle="--")
    axes.set_xticks(range(len(sessions)), [f"\n{n} session{'s'[: n > 1]}" for n in sessions], family=family)
    axes.set_ylabel("ms a step", color=QUIET, family=family)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    legend = [Patch(color=colour, label=part) for part, colour in _PARTS.items()]
    legend += [Patch(color=INK, alpha=0.5, label="the rest"), Patch(color=_STOCK, alpha=0.75, label="stock loop")]
    axes.legend(
        handles=legend, ncols=len(legend), loc="lower left", bbox_to_anchor=(-0.01, 1.0), frameon=False, fontsize=9
    )
    figure.text(0.02, 0.95, title, fontsize=16, weight="bold", color=INK, family=family)
    told = "Bars: p50 of a step, by part. Line: p99. Dotted: the physical limit. Dashed: the deadline, 80 ms."
    figure.text(0.02, 0.91, told, fontsize=10, color=QUIET, family=family)
    figure.text(0.02, 0.025, subtitle, fontsize=8, color=QUIET, family=family)
    figure.savefig(path, dpi=100)
