"""What pictures of figures in rows have alike: no frame, a faint grid, and the unit below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duplex.timeline import FAINT, QUIET

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def in_rows(axes: Axes, rows: int, unit: str, family: list[str]) -> None:
    """Row 0 on top, each one high. To be called once the limits along ``unit`` are set."""
    axes.set_ylim(rows, 0)
    axes.set_yticks([])
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(axis="x", colors=QUIET, labelsize=9)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    for tick in axes.get_xticklabels():
        tick.set_fontfamily(family)
    axes.set_xlabel(unit, color=QUIET, family=family, fontsize=10)
