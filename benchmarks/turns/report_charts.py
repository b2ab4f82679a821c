"""The report's charts as inline SVG: distributions against their limits, and waterfalls.

Everything across is in percent of the chart's width, so that a chart fills whatever room it has and its text
stays as large as the page's, on a phone and on paper. Colours are the style sheet's; see :mod:`.report_page`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from duplex.benchmarks.turns.contract import Statistic
from duplex.benchmarks.turns.report_words import label_of, limit_text, shown, statistic_word, unit_of
from duplex.benchmarks.turns.results import LimitVerdict, MeasureSummary

SPANS = ("end_of_turn", "listener", "thinker", "talker", "first_packet")
_SPAN_WORDS = {
    "end_of_turn": "end of turn (until commit)",
    "listener": "listener",
    "thinker": "thinker",
    "talker": "talker",
    "first_packet": "commit → first packet",
}
_TOLD: tuple[Statistic, ...] = ("p50", "p95", "max")
_BASE = 52  # the axis, px from the top
_ROW_PX = 17

Place = Callable[[float], str]


def esc(text: object) -> str:
    """``text`` as HTML, in an element or an attribute."""
    return escape(str(text), quote=True)


def is_share(measure: str, summary: MeasureSummary, limits: Sequence[LimitVerdict]) -> bool:
    """Whether to show a measure as a share: every value is yes or no, and no limit counts or sums them.

    (Twenty trials without an underrun look like shares too.)
    """
    asked = {verdict.limit.statistic for verdict in limits if verdict.limit.measure == measure}
    return summary.share and asked <= {"mean", "min"} and not unit_of(measure)


def inset(share: float) -> str:
    """Like :func:`pct`, with room at both ends for a dot."""
    return pct(0.02 + 0.96 * share)


def pct(share: float) -> str:
    """0.5 → ``50%``; kept inside the chart."""
    return f"{min(1.0, max(0.0, share)) * 100:.2f}".rstrip("0").rstrip(".") + "%"


def ticks(right: float, most: int = 6) -> list[float]:
    """Round numbers from 0 to ``right``, at most ``most`` steps."""
    if right <= 0:
        return [0.0]
    step = 10.0**-9
    while right / step > most:
        for factor in (1, 2, 5):
            if right / (step * factor) <= most:
                step *= factor
                break
        else:
            step *= 10
    return [step * k for k in range(int(right / step + 1e-9) + 1)]


# --- distributions -------------------------------------------------------------------------------------------


def distribution(measure: str, summary: MeasureSummary, limits: Sequence[LimitVerdict]) -> str:
    """One measure: a dot per trial, p50 and p95, the 95 % intervals, and each limit as a line with its far side shaded.

    Shares are drawn as the share with its interval, since a dot of yes or no would say nothing.
    """
    own = [verdict for verdict in limits if verdict.limit.measure == measure]
    bounds = [edge for each in own for edge in (each.limit.at_most, each.limit.at_least) if edge is not None]
    share = is_share(measure, summary, limits)
    low = min(0.0, summary.min)
    right = 1.0 if share else max([summary.max, *bounds])
    span = (right - low) * (1.0 if share else 1.12) or 1.0  # a label beside the last dot has to fit

    def x(value: float) -> str:
        return inset((value - low) / span)

    parts = [*_grid(low, span, measure, share, x), *_limits(own, x)]
    parts += _share(summary, x) if share else _dots(summary, own, low, span, x)
    told = _told(measure, summary, share)
    alt = _alt(measure, summary, own, share)
    return (
        f'<figure class="lane"><figcaption><b>{esc(label_of(measure))}</b> <span>{esc(told)}</span></figcaption>'
        f'<svg class="chart" width="100%" height="{_BASE + 24}" role="img" aria-label="{esc(alt)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _grid(low: float, span: float, measure: str, share: bool, x: Place) -> Iterator[str]:
    unit = unit_of(measure, share=share)
    marks = [0.0, 0.25, 0.5, 0.75, 1.0] if share else [low, 0.0] if low < 0 else ticks(span, 5)
    yield f'<line class="axis" x1="0" x2="100%" y1="{_BASE}" y2="{_BASE}"/>'
    for value in marks:
        at = (value - low) / span
        anchor = "start" if at < 0.03 else "end" if at > 0.93 else "middle"
        number = f"{value * 100:g}" if share else f"{value:.4g}"
        text = f"{number} {unit}".strip() if value == 0 else number
        yield f'<line class="tick" x1="{x(value)}" x2="{x(value)}" y1="6" y2="{_BASE}"/>'
        yield f'<text class="num" x="{x(value)}" y="{_BASE + 16}" text-anchor="{anchor}">{esc(text)}</text>'


def _limits(own: Sequence[LimitVerdict], x: Place) -> Iterator[str]:
    for verdict in own:
        limit, kind = verdict.limit, "missed" if verdict.passed is False else "kept"
        if limit.at_most is not None:
            # As wide as the whole chart, which cuts it off at its edge.
            yield f'<rect class="beyond" x="{x(limit.at_most)}" width="100%" y="0" height="{_BASE}"/>'
        if limit.at_least is not None:
            yield f'<rect class="beyond" x="0" width="{x(limit.at_least)}" y="0" height="{_BASE}"/>'
        for bound in (limit.at_most, limit.at_least):
            if bound is not None:
                yield f'<line class="limit {kind}" x1="{x(bound)}" x2="{x(bound)}" y1="0" y2="{_BASE + 4}"/>'


def _dots(summary: MeasureSummary, own: Sequence[LimitVerdict], low: float, span: float, x: Place) -> Iterator[str]:
    for name, y in (("p50", _BASE - 5), ("p95", _BASE - 2)):
        if (interval := summary.ci95.get(name)) is not None:
            yield f'<line class="interval" x1="{x(interval.low)}" x2="{x(interval.high)}" y1="{y}" y2="{y}"/>'
    columns = [int((value - low) / span * 110) for value in sorted(summary.values)]
    most = max(columns.count(column) for column in set(columns))
    step_px = min(6.5, 30.0 / max(1, most - 1))
    for index, value in enumerate(sorted(summary.values)):
        row = columns[:index].count(columns[index])
        kind = "dot bad" if _is_beyond(value, own) else "dot"
        yield f'<circle class="{kind}" cx="{x(value)}" cy="{_BASE - 11 - row * step_px:g}" r="3.6"/>'
    near = summary.p95 - summary.p50 < 0.1 * span
    for name, figure in (("p50", summary.p50), ("p95", summary.p95)):
        yield f'<line class="stat" x1="{x(figure)}" x2="{x(figure)}" y1="8" y2="{_BASE}"/>'
        left = name == "p50" and near
        if left and (figure - low) / span < 0.1:
            continue  # no room beside p95's own label
        yield (
            f'<text class="stat" x="{x(figure)}" dx="{-4 if left else 4}" y="13" '
            f'text-anchor="{"end" if left else "start"}">{name}</text>'
        )


def _is_beyond(value: float, own: Sequence[LimitVerdict]) -> bool:
    """Beyond every upper limit, or below every lower one: such a trial is part of why a limit is missed, or nearly."""
    upper = [verdict.limit.at_most for verdict in own if verdict.limit.at_most is not None]
    lower = [verdict.limit.at_least for verdict in own if verdict.limit.at_least is not None]
    return (bool(upper) and value > max(upper)) or (bool(lower) and value < min(lower))


def _share(summary: MeasureSummary, x: Place) -> Iterator[str]:
    y = _BASE - 20
    if (interval := summary.ci95.get("mean")) is not None:
        yield f'<line class="interval wide" x1="{x(interval.low)}" x2="{x(interval.high)}" y1="{y}" y2="{y}"/>'
    yield f'<circle class="dot mean" cx="{x(summary.mean)}" cy="{y}" r="6"/>'


def _told(measure: str, summary: MeasureSummary, share: bool) -> str:
    if share:
        return f"{round(summary.sum)} of {summary.n} = {shown(summary.mean, measure, share=True)}"
    if summary.n == 1:
        return f"{shown(summary.mean, measure)} · n = 1"
    figures = [f"{name} {shown(summary.statistic(name), measure)}" for name in _TOLD]
    return " · ".join([*figures, f"n = {summary.n}"])


def _alt(measure: str, summary: MeasureSummary, own: Sequence[LimitVerdict], share: bool) -> str:
    told = f"{label_of(measure)}: {_told(measure, summary, share)}"
    for verdict in own:
        name = statistic_word(verdict.limit.statistic, share=share)
        kept = "not judged" if verdict.passed is None else "kept" if verdict.passed else "missed"
        told += f"; limit {name} {limit_text(verdict.limit, share=share)} {kept}"
    return told


def bullet(verdict: LimitVerdict, summary: MeasureSummary | None, *, share: bool) -> str:
    """A found figure against its limit, small enough for a table: interval, figure, and the limit as a line."""
    limit = verdict.limit
    bound = limit.at_most if limit.at_most is not None else limit.at_least
    if verdict.value is None or bound is None or summary is None:
        return ""
    right = 1.0 if share else max(bound * 1.5, verdict.value * 1.05) or 1.0
    interval = summary.ci95.get(limit.statistic)
    kind = "missed" if verdict.passed is False else "kept"

    def x(value: float) -> str:
        return pct(0.04 + 0.92 * min(1.0, value / right))

    parts = ['<line class="axis" x1="0" x2="100%" y1="9" y2="9"/>']
    if interval is not None:
        low, high = x(interval.low), x(interval.high)
        parts.append(f'<line class="interval wide {kind}" x1="{low}" x2="{high}" y1="9" y2="9"/>')
    parts.append(f'<line class="limit {kind}" x1="{x(bound)}" x2="{x(bound)}" y1="1" y2="17"/>')
    parts.append(f'<circle class="dot {kind}" cx="{x(verdict.value)}" cy="9" r="4"/>')
    return f'<svg class="bullet" width="100%" height="18" aria-hidden="true">{"".join(parts)}</svg>'


# --- waterfalls ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Waterfall:
    """One turn's work. ``spans``: (name, start, end) in ms after the user's last voiced sample."""

    label: str
    spans: tuple[tuple[str, float, float], ...]
    speculative: bool = False


def waterfall_of(label: str, trace: Mapping[str, Any]) -> Waterfall | None:
    """From a ``duplex.trace`` event; None if it has no spans that can be drawn."""
    spans = []
    for span in trace.get("spans") or ():
        try:
            spans.append((str(span["name"]), float(span["start_ms"]), float(span["end_ms"])))
        except (KeyError, TypeError, ValueError):
            continue
    return Waterfall(label, tuple(spans), bool(trace.get("speculative"))) if spans else None


def waterfalls(turns: Sequence[Waterfall]) -> str:
    """A row per turn on one time axis: above, the wait for the end of the turn and the way out; below, the work.

    Work may begin before 0 (while the user still spoke) and before the commit: that is speculation.
    """
    if not turns:
        return ""
    low = min(0.0, min(start for turn in turns for _, start, _ in turn.spans))
    right = max(end for turn in turns for _, _, end in turn.spans)
    span = (right - low) * 1.03 or 1.0

    def x(value: float) -> str:
        return pct((value - low) / span)

    height = len(turns) * _ROW_PX
    parts = []
    for value in ticks(right, 5):
        at = (value - low) / span
        anchor = "start" if at < 0.02 else "end" if at > 0.97 else "middle"
        unit = "" if value else " ms"
        parts.append(f'<line class="tick" x1="{x(value)}" x2="{x(value)}" y1="0" y2="{height}"/>')
        parts.append(
            f'<text class="num" x="{x(value)}" y="{height + 15}" text-anchor="{anchor}">{value:g}{unit}</text>'
        )
    for number, turn in enumerate(turns):
        y = number * _ROW_PX
        title = ", ".join(f"{name.replace('_', ' ')} {start:.0f} to {end:.0f} ms" for name, start, end in turn.spans)
        bars = "".join(
            f'<rect class="span-{esc(name)}" x="{x(start)}" width="{pct(max((end - start) / span, 0.003))}" '
            f'y="{y + (2 if name in {"end_of_turn", "first_packet"} else 8)}" height="6" rx="1"/>'
            for name, start, end in turn.spans
        )
        parts.append(f"<g><title>{esc(f'{turn.label}: {title}')}</title>{bars}</g>")
    names = [name for name in SPANS if any(name == span[0] for turn in turns for span in turn.spans)]
    key = "".join(f'<li><i class="key span-{name}"></i>{esc(_SPAN_WORDS[name])}</li>' for name in names)
    waits = sorted(max(end for _, _, end in turn.spans) for turn in turns)
    median = waits[len(waits) // 2]
    alt = f"Waterfalls of {len(turns)} turns; in the median the last span ends {median:.0f} ms after the user."
    return (
        '<figure class="falls"><figcaption><b>Where the time went</b> <span>one row per turn; 0 is the user’s last '
        f'voiced sample</span></figcaption><ul class="keys">{key}</ul>'
        f'<svg class="chart" width="100%" height="{height + 22}" role="img" aria-label="{esc(alt)}">'
        f"{''.join(parts)}</svg></figure>"
    )
