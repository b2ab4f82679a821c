"""A run of ``duplex bench load`` as a picture, from its plain values: the loads tried, and the long one's course."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from duplex.benchmarks.load.phases import LAG_P99_MS, MOST_P95_MS
from duplex.timeline import FAINT, INK, PAPER, QUIET, installed_fonts

_DOOR_COLOURS = {"webrtc": "#1c2330", "websocket": "#c8372d", "webrtc+websocket": "#5b8def"}
_ROW_IN = 4.0  # height of a row of charts
_TOP_IN = 0.9
_SEARCHED = ("transport", "cascade")  # the phases that try one number of sessions after another

_LOADS: tuple[tuple[str, Callable[[Mapping[str, Any]], float | None], float | None], ...] = (
    ("voice-to-voice p95, ms", lambda row: row["waits"] and row["waits"]["p95"], MOST_P95_MS),
    ("loop lag p99, at most ms", lambda row: row["lag_p99_ms"], LAG_P99_MS),
    ("server, % of a core", lambda row: row["server_percent"], None),
)


def picture(report: Mapping[str, Any], path: Path) -> None:
    """Writes the picture to ``path``, whose folder need not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn(report).savefig(path, facecolor=PAPER)


def drawn(report: Mapping[str, Any]) -> Any:
    """A row of charts over the sessions offered, if that was searched; one over the minutes of the long load, if there
    was one."""
    from matplotlib.figure import Figure

    family = installed_fonts()
    searched = [row for row in report["loads"] if row["phase"] in _SEARCHED]
    aged = (report.get("mixed") or {}).get("ageing")
    rows = max(1, bool(searched) + (aged is not None))
    height = _TOP_IN + rows * _ROW_IN
    figure = Figure(figsize=(16, height), dpi=100, facecolor=PAPER)

    def chart(row: int, column: int, columns: int, title: str, below: str) -> Any:
        width = 0.96 / columns
        bottom = 1.0 - (_TOP_IN + (row + 1) * _ROW_IN - 0.7) / height
        axes = figure.add_axes((0.045 + column * width, bottom, width - 0.055, (_ROW_IN - 1.1) / height))
        _dress(axes, below, family)
        axes.set_title(title, loc="left", fontsize=11, color=INK, family=family)
        return axes

    if searched or aged is None:
        for column, (title, value_of, limit) in enumerate(_LOADS):
            _loads(chart(0, column, len(_LOADS), title, "sessions offered"), searched, value_of, limit, family)
    if aged is not None:
        below = "minutes into the mixed load"
        _waits(chart(rows - 1, 0, 2, "voice-to-voice, ms; line: p95 of each third", below), aged)
        _memory(chart(rows - 1, 1, 2, "server memory, MB", below), aged)
    about = report["machine"]
    figure.text(0.015, 1 - 0.38 / height, "duplex bench load", fontsize=16, weight="bold", color=INK, family=family)
    notes = [f"{about['cpu']}, {about['cores']} cores"]
    notes += ["a hollow mark was not held", "dashed: the limit"] if searched else []
    figure.text(0.17, 1 - 0.36 / height, "; ".join(notes), fontsize=10, color=QUIET, family=family)
    return figure


def _dress(axes: Any, below: str, family: list[str]) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=QUIET, labelsize=9)
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(below, color=QUIET, family=family, fontsize=10)


def _loads(
    axes: Any,
    rows: Sequence[Mapping[str, Any]],
    value_of: Callable[[Mapping[str, Any]], float | None],
    limit: float | None,
    family: list[str],
) -> None:
    lines: dict[tuple[str, str], list[tuple[int, float, bool]]] = {}
    for row in rows:
        if (value := value_of(row)) is not None:
            key = (row["phase"], "+".join(row["doors"]))
            lines.setdefault(key, []).append((row["offered"], float(value), row["why"] is None))
    for (phase, door), points in sorted(lines.items()):
        points.sort()
        colour = _DOOR_COLOURS.get(door, INK)
        style = "-" if phase == "transport" else ":"
        axes.plot(
            [p[0] for p in points], [p[1] for p in points], style, color=colour, linewidth=1.6, label=f"{phase}, {door}"
        )
        for offered, value, held in points:
            axes.plot([offered], [value], "o", color=colour, markersize=6, markerfacecolor=colour if held else PAPER)
    if lines:
        axes.legend(fontsize=8, frameon=False, labelcolor=INK, prop={"family": family, "size": 8})
    if limit is not None:
        axes.axhline(limit, color=QUIET, linewidth=1.0, linestyle="--")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)


def _waits(axes: Any, aged: Mapping[str, Any]) -> None:
    waits_ms = aged.get("waits_ms", ())
    axes.plot([at_s / 60.0 for at_s, _ in waits_ms], [ms for _, ms in waits_ms], ".", color=INK, alpha=0.6)
    for from_s, to_s, p95_ms in aged.get("p95_of_thirds", ()):
        axes.plot([from_s / 60.0, to_s / 60.0], [p95_ms, p95_ms], color=_DOOR_COLOURS["websocket"], linewidth=1.6)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)


def _memory(axes: Any, aged: Mapping[str, Any]) -> None:
    memory_mb = aged.get("memory_mb", ())
    axes.plot([at_s / 60.0 for at_s, _ in memory_mb], [mb for _, mb in memory_mb], color=INK, linewidth=1.4)
    axes.set_xlim(left=0)
