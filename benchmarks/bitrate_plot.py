"""The bit-rate benchmark as a picture: each distance over the bit rate, median and spread."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from duplex.timeline import FAINT, INK, PAPER, QUIET, installed_fonts

if TYPE_CHECKING:
    from duplex.benchmarks.bitrate import Result

_WIDTH_PX, _HEIGHT_PX = 1600, 620
_PANELS = (
    ("si_sdr_db", "SI-SDR, dB  (more is better)", "#2fae9f"),
    ("log_mel_db", "log-mel distance, dB  (less is better)", "#5b8def"),
)


def save_curves(result: Result, path: Path) -> None:
    """Writes a PNG: a panel for each distance, the median as a line, 10th to 90th percentile as a band."""
    from matplotlib.figure import Figure

    family = installed_fonts()
    figure = Figure(figsize=(_WIDTH_PX / 100, _HEIGHT_PX / 100), dpi=100, facecolor=PAPER)
    figure.text(
        24 / _WIDTH_PX,
        1 - 42 / _HEIGHT_PX,
        "duplex bench bitrate",
        fontsize=17,
        weight="bold",
        color=INK,
        family=family,
    )
    subtitle = f"{result.what}.  n = {result.n} turns by {result.speakers} speakers, {result.seconds:.0f} s"
    figure.text(24 / _WIDTH_PX, 1 - 70 / _HEIGHT_PX, subtitle, fontsize=10, color=QUIET, family=family)
    for panel, (name, label, colour) in enumerate(_PANELS):
        axes = figure.add_axes(((80 + panel * 780) / _WIDTH_PX, 80 / _HEIGHT_PX, 680 / _WIDTH_PX, 400 / _HEIGHT_PX))
        _curve(axes, result, name, colour, family)
        axes.set_title(label, loc="left", color=INK, fontsize=12, family=family)
    figure.savefig(path, dpi=100)


def _curve(axes: Any, result: Result, name: str, colour: str, family: list[str]) -> None:
    kbit_s = [row.bits_per_second / 1000.0 for row in result.rows]
    spreads = [getattr(row, name) for row in result.rows]
    axes.set_xscale("log", base=2)
    axes.fill_between(kbit_s, [s.p10 for s in spreads], [s.p90 for s in spreads], color=colour, alpha=0.15, linewidth=0)
    axes.plot(kbit_s, [s.p50 for s in spreads], color=colour, linewidth=2.4, marker="o", markersize=6)
    for x, spread in zip(kbit_s, spreads, strict=True):
        axes.annotate(
            f"{spread.p50:.1f}", (x, spread.p50), textcoords="offset points", xytext=(0, 9), ha="center",
            fontsize=10, color=INK, family=family,
        )  # fmt: skip
    axes.set_xticks(kbit_s, [f"{x:.3g}\n{row.n_codebooks}" for x, row in zip(kbit_s, result.rows, strict=True)])
    axes.minorticks_off()
    axes.set_xlabel("kbit/s  /  codebooks", color=QUIET, family=family, fontsize=10)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors=QUIET, labelsize=9)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
