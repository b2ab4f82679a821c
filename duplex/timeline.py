"""The picture of a call: both voices, who held the floor, what was said, where the time went.

Drawn in pixels: one axes over the whole figure whose unit is a pixel at 100 dpi, y downwards, so that text
and bars can be measured and kept apart. Long calls are cut into rows of about 15 s. matplotlib is used
through explicit ``Figure`` objects, without pyplot and without global state.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from duplex.frames import Samples
from duplex.recording import Recording
from duplex.story import FLOORS, SpokenWord, Story, TurnLatency, Utterance, tell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_PX = 1600
ROW_S = 15.0
_DPI = 100
_LEFT, _RIGHT = 92, 36
_LINE, _WAVE, _RIBBON, _ARROW_LANE = 19, 70, 10, 34
_BAR = 15  # one bar of a waterfall with its label
_CARD_WIDTH, _CARDS_PER_SHELF = 300, 4
# The last one comes with matplotlib.
_FONTS = ("Inter", "Helvetica Neue", "Arial", "Liberation Sans", "Noto Sans", "DejaVu Sans")
_OTHER_SCRIPTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "WenQuanYi Zen Hei")

INK, QUIET, FAINT, PAPER, PANEL = "#1c2330", "#667085", "#e4e7ec", "#ffffff", "#f7f8fa"
USER, AGENT, ARROW, STOP = "#2f5fd0", "#0e8074", "#1c2330", "#c8372d"
FLOOR_COLOURS = {
    "listening": "#d5dae3",
    "thinking": "#f0b429",
    "speaking": "#2fae9f",
    "holding": "#9a72d8",
    "yielding": "#e2574c",
}
SPAN_COLOURS = {
    "end_of_turn": "#98a2b3",
    "listener": "#5b8def",
    "thinker": "#f0b429",
    "talker": "#9a72d8",
    "first_packet": "#2fae9f",
}


def save_timeline(recording: Recording, path: Path, *, title: str = "duplex call", subtitle: str = "") -> None:
    """Writes the picture of ``recording`` as PNG, 1600 pixels wide."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box stands in for it
        draw_timeline(recording, title=title, subtitle=subtitle).savefig(path, dpi=_DPI)


def draw_timeline(recording: Recording, *, title: str = "duplex call", subtitle: str = "") -> Figure:
    """The picture as a matplotlib figure; save it at 100 dpi."""
    story = tell(recording)
    page = _Page()
    rows = [_Row.plan(page, story, start, end) for start, end in _cut(story.duration_ms)]
    header = 96
    height = header + sum(row.height for row in rows) + 28
    page.open(height)
    _draw_header(page, recording, story, title, subtitle)
    top = float(header)
    for row in rows:
        _draw_row(page, recording, story, row, top)
        top += row.height
    return page.figure


def _cut(duration_ms: float) -> list[tuple[float, float]]:
    """Rows of equal length, at most about 15 s, at least 4 s, whole seconds."""
    count = max(1, math.ceil(duration_ms / (ROW_S * 1000.0) - 0.1))
    length = max(4000.0, math.ceil(duration_ms / count / 1000.0) * 1000.0)
    return [(k * length, (k + 1) * length) for k in range(count)]


# --- the page: pixels and text ---------------------------------------------------------------------------


def installed_fonts() -> list[str]:
    """The first of our fonts that this machine has, and those that stand in for what it cannot write."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    first = next((name for name in _FONTS if name in installed), _FONTS[-1])
    return [first, *(name for name in (_FONTS[-1], *_OTHER_SCRIPTS) if name in installed and name != first)]


class _Page:
    """One axes in pixels, and the width of text in it."""

    def __init__(self) -> None:
        from matplotlib import font_manager
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self._family = installed_fonts()
        self.figure = Figure(figsize=(WIDTH_PX / _DPI, 1.0), dpi=_DPI, facecolor=PAPER)
        self._renderer: Any = FigureCanvasAgg(self.figure).get_renderer()  # type: ignore[no-untyped-call]
        self._font_properties = font_manager.FontProperties
        self._widths: dict[tuple[str, float, str], float] = {}
        self.axes: Any = None

    def open(self, height: float) -> None:
        self.figure.set_size_inches(WIDTH_PX / _DPI, height / _DPI)
        self.axes = self.figure.add_axes((0.0, 0.0, 1.0, 1.0))
        self.axes.set_xlim(0, WIDTH_PX)
        self.axes.set_ylim(height, 0)
        self.axes.axis("off")

    def width(self, text: str, size: float, weight: str = "normal") -> float:
        key = (text, size, weight)
        if key not in self._widths:
            font = self._font_properties(family=self._family, size=size * 0.72, weight=weight)
            self._widths[key] = self._renderer.get_text_width_height_descent(text, font, ismath=False)[0]
        return self._widths[key]

    def text(self, x: float, y: float, text: str, size: float = 14, colour: str = INK, **more: Any) -> None:
        """``size`` in pixels; ``y`` is the baseline. Text is literal: no mathematics in dollar signs."""
        more.setdefault("va", "baseline")
        self.axes.text(
            x, y, text, fontsize=size * 0.72, color=colour, family=self._family, parse_math=False, zorder=5, **more
        )

    def box(self, x: float, y: float, width: float, height: float, colour: str, **more: Any) -> None:
        from matplotlib.patches import Rectangle

        self.axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, linewidth=0, **more))

    def panel(self, x: float, y: float, width: float, height: float) -> None:
        from matplotlib.patches import FancyBboxPatch

        style = "round,pad=0,rounding_size=6"
        self.axes.add_patch(
            FancyBboxPatch(
                (x, y), width, height, boxstyle=style, facecolor=PAPER, edgecolor=FAINT, linewidth=1, zorder=3
            )
        )

    def line(self, x0: float, y0: float, x1: float, y1: float, colour: str = FAINT, **more: Any) -> None:
        more.setdefault("linewidth", 1.0)
        self.axes.plot([x0, x1], [y0, y1], color=colour, solid_capstyle="butt", **more)

    def arrow(self, x0: float, x1: float, y: float, colour: str) -> None:
        style = {"arrowstyle": "-|>,head_width=0.22,head_length=0.4", "color": colour, "linewidth": 1.6}
        self.axes.annotate("", (x1, y), (x0, y), arrowprops={**style, "shrinkA": 0, "shrinkB": 0}, zorder=6)

    def waveform(self, samples: Samples, x: float, width: float, middle: float, colour: str) -> None:
        """Peak and RMS per pixel, −20 dBFS speech filling about half the lane."""
        columns = max(1, int(width))
        whole = samples[: len(samples) // columns * columns].reshape(columns, -1)
        xs = x + np.arange(columns) * (width / columns)
        for level, alpha in ((np.abs(whole).max(axis=1), 0.38), (np.sqrt(np.square(whole).mean(axis=1)), 1.0)):
            half = np.clip(np.power(level, 0.6), 0.0, 1.0) * (_WAVE / 2 - 2)
            self.axes.fill_between(xs, middle - half, middle + half, color=colour, alpha=alpha, linewidth=0, zorder=2)


# --- the plan of a row -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Caption:
    """Lines of words at ``x``; each line is runs of (text, heard)."""

    x: float
    lines: tuple[tuple[tuple[str, bool], ...], ...]


@dataclass(frozen=True, slots=True)
class _Row:
    start_ms: float
    end_ms: float
    captions: dict[str, tuple[_Caption, ...]]
    cards: tuple[tuple[float, int, int], ...]  # (x, shelf, index of the turn)
    arrows: bool
    card_lines: int

    @classmethod
    def plan(cls, page: _Page, story: Story, start_ms: float, end_ms: float) -> _Row:
        captions = {
            who: tuple(_captions(page, [said for said in story.utterances if said.who == who], start_ms, end_ms))
            for who in ("user", "agent")
        }
        turns = [index for index, turn in enumerate(story.turns) if start_ms <= turn.asked_ms < end_ms]
        cards = []
        for shelf, first in enumerate(range(0, len(turns), _CARDS_PER_SHELF)):
            some = turns[first : first + _CARDS_PER_SHELF]
            xs = _place_cards([_x(story.turns[index].asked_ms, start_ms, end_ms) for index in some])
            cards += [(x, shelf, index) for x, index in zip(xs, some, strict=True)]
        arrows = any(began < end_ms and ended >= start_ms for began, ended, _, _ in _arrows(story))
        lines = max((len(story.turns[index].spans) for index in turns), default=0)
        return cls(start_ms, end_ms, captions, tuple(cards), arrows, lines)

    def lines(self, who: str) -> int:
        return max((len(caption.lines) for caption in self.captions[who]), default=0)

    @property
    def cards_height(self) -> float:
        return self.shelf_height * (1 + self.cards[-1][1]) if self.cards else 0

    @property
    def shelf_height(self) -> float:
        return self.card_lines * _BAR + 42

    @property
    def height(self) -> float:
        lanes = 2 * _WAVE + (self.lines("user") + self.lines("agent")) * _LINE
        return 18 + _RIBBON + lanes + 8 + (_ARROW_LANE if self.arrows else 10) + 30 + self.cards_height + 26


def _x(at_ms: float, start_ms: float, end_ms: float) -> float:
    return _LEFT + (WIDTH_PX - _LEFT - _RIGHT) * (at_ms - start_ms) / (end_ms - start_ms)


def _captions(page: _Page, said: Sequence[Utterance], start_ms: float, end_ms: float) -> Iterator[_Caption]:
    """Wraps each utterance between its own start and the next one's; one that goes on into the next row is cut
    at the word that is spoken there."""
    parts: list[tuple[float, list[SpokenWord]]] = []
    for utterance in said:
        words = [word for word in utterance.words if start_ms <= word.start_ms < end_ms]
        if words:
            parts.append((_x(words[0].start_ms, start_ms, end_ms), _shortened(words)))
    right = 0.0
    for index, (wanted, words) in enumerate(parts):
        limit = parts[index + 1][0] - 14 if index + 1 < len(parts) else WIDTH_PX - _RIGHT
        whole = page.width(" ".join(word.text for word in words), 14)
        x = max(right, min(wanted, WIDTH_PX - _RIGHT - min(whole, 200.0)))
        spoken = _x(words[-1].end_ms, start_ms, end_ms) - x
        lines = tuple(_wrap(page, words, max(160.0, min(limit - x, max(spoken, 260.0))), 4))
        right = x + 14 + max(page.width(" ".join(text for text, _ in line), 14) for line in lines)
        yield _Caption(x, lines)


def _shortened(words: Sequence[SpokenWord], most_unheard: int = 9) -> list[SpokenWord]:
    """Of what was not heard, the beginning is enough."""
    kept = [word for word in words if word.heard]
    unheard = [word for word in words if not word.heard]
    if len(unheard) <= most_unheard:
        return [*kept, *unheard]
    last = unheard[most_unheard - 1]
    return [*kept, *unheard[: most_unheard - 1], SpokenWord(f"{last.text} …", last.start_ms, last.end_ms, False)]


def _wrap(page: _Page, words: Sequence[SpokenWord], room: float, most: int) -> list[tuple[tuple[str, bool], ...]]:
    """At most ``most`` lines of runs; what does not fit ends in an ellipsis."""
    lines: list[list[SpokenWord]] = [[]]
    for word in words:
        text = " ".join(other.text for other in [*lines[-1], word])
        if lines[-1] and page.width(text, 14) > room:
            lines.append([])
        lines[-1].append(word)
    if len(lines) > most:
        last = lines[most - 1][-1]
        lines = lines[:most]
        lines[-1][-1] = SpokenWord(last.text + " …", last.start_ms, last.end_ms, last.heard)
    runs = []
    for line in lines:
        run: list[tuple[str, bool]] = []
        for word in line:
            if run and run[-1][1] == word.heard:
                run[-1] = (f"{run[-1][0]} {word.text}", word.heard)
            else:
                run.append((word.text, word.heard))
        runs.append(tuple(run))
    return runs


def _place_cards(wanted: Sequence[float]) -> list[float]:
    """Left edges for cards that begin near ``wanted``, in order, not over one another, inside the page."""
    placed: list[float] = []
    for x in wanted:
        placed.append(max(x, placed[-1] + _CARD_WIDTH + 14) if placed else x)
    edge = float(WIDTH_PX - _RIGHT - _CARD_WIDTH)
    for index in range(len(placed) - 1, -1, -1):
        placed[index] = min(placed[index], edge)
        edge = placed[index] - _CARD_WIDTH - 14
    return [max(_LEFT, x) for x in placed]


# --- drawing -------------------------------------------------------------------------------------------------


def _draw_header(page: _Page, recording: Recording, story: Story, title: str, subtitle: str) -> None:
    page.text(_LEFT, 44, title, 25, weight="bold")
    page.text(_LEFT, 70, "   ·   ".join(filter(None, [subtitle, *_facts(recording, story)])), 14, QUIET)
    x = float(WIDTH_PX - _RIGHT)
    page.text(x, 42, "who has the floor", 12, QUIET, ha="right")
    for floor in reversed(FLOORS):
        x -= page.width(floor, 13)
        page.text(x, 69, floor, 13, INK)
        x -= 18
        page.box(x, 59, 12, 11, FLOOR_COLOURS[floor])
        x -= 20


def _facts(recording: Recording, story: Story) -> Iterator[str]:
    waits = [f"{turn.voice_to_voice_ms:.0f}" for turn in story.turns if turn.voice_to_voice_ms is not None]
    if waits:
        shown = ", ".join(waits[:6]) + (" …" if len(waits) > 6 else "")
        yield f"voice to voice {shown} ms, {recording.playout_ms:.0f} ms of playout included"
    wire = recording.wire
    if wire.lost or wire.late:
        yield f"{wire.lost} packets lost, {wire.late} late"


def _draw_row(page: _Page, recording: Recording, story: Story, row: _Row, top: float) -> None:
    def x_of(at_ms: float) -> float:
        return _x(min(max(at_ms, row.start_ms), row.end_ms), row.start_ms, row.end_ms)

    ribbon = top + 18
    user_wave = ribbon + _RIBBON + 8
    user_text = user_wave + _WAVE
    arrows = user_text + row.lines("user") * _LINE
    agent_wave = arrows + (_ARROW_LANE if row.arrows else 10)
    agent_text = agent_wave + _WAVE
    axis = agent_text + row.lines("agent") * _LINE + 10
    cards = axis + 32

    _draw_axis(page, row, ribbon, axis, min(row.end_ms, story.duration_ms))
    for span in story.floors:
        if span.end_ms > row.start_ms and span.start_ms < row.end_ms:
            left, right = x_of(span.start_ms), x_of(span.end_ms)
            page.box(left, ribbon, max(1.0, right - left), _RIBBON, FLOOR_COLOURS.get(span.floor, FAINT), zorder=2)
    page.text(_LEFT - 16, ribbon + 10, "floor", 12, QUIET, ha="right")
    for who, channel, wave, text, colour in (
        ("user", recording.user, user_wave, user_text, USER),
        ("agent", recording.agent, agent_wave, agent_text, AGENT),
    ):
        page.text(_LEFT - 16, wave + _WAVE / 2 + 5, who, 14, colour, ha="right", weight="bold")
        first, last = (round(ms * recording.sample_rate_hz / 1000.0) for ms in (row.start_ms, row.end_ms))
        part = channel[first:last]
        width = (WIDTH_PX - _LEFT - _RIGHT) * len(part) / max(1, last - first)
        page.line(_LEFT, wave + _WAVE / 2, _LEFT + width, wave + _WAVE / 2, colour, linewidth=0.8, alpha=0.45)
        if width >= 1:
            page.waveform(part, _LEFT, width, wave + _WAVE / 2, colour)
        _draw_captions(page, row.captions[who], text)
    lane = arrows + _ARROW_LANE / 2 + 2
    for began, ended, label, colour in _arrows(story):
        if began < row.end_ms and ended >= row.start_ms:
            # Where it goes on in another row, there is neither a guide nor a head.
            top_of_guide = user_wave + 4 if began >= row.start_ms else None
            foot_of_guide = agent_wave + _WAVE - 4 if ended < row.end_ms else None
            _draw_arrow(page, x_of(began), x_of(ended), top_of_guide, foot_of_guide, lane, label, colour)
    for x, shelf, index in row.cards:
        y = cards + shelf * row.shelf_height
        _draw_card(page, story.turns[index], index, x, y, x_of(story.turns[index].asked_ms), axis)


def _draw_axis(page: _Page, row: _Row, top: float, axis: float, end_ms: float) -> None:
    seconds = (row.end_ms - row.start_ms) / 1000.0
    step = 1.0 if seconds > 5 else 0.5
    page.box(_LEFT, top + _RIBBON, WIDTH_PX - _LEFT - _RIGHT, axis - top - _RIBBON, PANEL, zorder=0)
    for k in range(math.floor(seconds / step) + 1):
        at_ms = row.start_ms + k * step * 1000.0
        x = _x(at_ms, row.start_ms, row.end_ms)
        page.line(x, top + _RIBBON, x, axis, FAINT, linewidth=0.8, zorder=1)
        label = f"{at_ms / 1000.0:g}" + (" s" if k == 0 else "")
        page.text(x, axis + 15, label, 12, QUIET, ha="center")
    if end_ms < row.end_ms:
        x = _x(end_ms, row.start_ms, row.end_ms)
        page.box(x, top, WIDTH_PX - _RIGHT - x + 1, axis - top, PAPER, alpha=0.85, zorder=1.5)


def _draw_captions(page: _Page, captions: Sequence[_Caption], top: float) -> None:
    for caption in captions:
        for number, line in enumerate(caption.lines):
            x = caption.x
            y = top + (number + 0.72) * _LINE
            for text, heard in line:
                width = page.width(text, 14)
                page.box(x - 2, y - 13, width + 4, 17, PANEL, zorder=4.5)  # guides pass behind words
                page.text(x, y, text, 14, INK if heard else "#a3abb8")
                if not heard:
                    page.line(x, y - 4.5, x + width, y - 4.5, "#a3abb8", linewidth=0.9, zorder=6)
                x += width + page.width(" ", 14)


def _arrows(story: Story) -> Iterator[tuple[float, float, str, str]]:
    """(from, to, label, colour) of every latency: from a moment of the user's to one of the agent's, ms."""
    for turn in story.turns:
        if turn.answered_ms is not None and turn.voice_to_voice_ms is not None:
            yield turn.asked_ms, turn.answered_ms, f"{turn.voice_to_voice_ms:.0f} ms", ARROW
    for stop in story.stops:
        yield stop.said_ms, stop.silent_ms, f"stopped after {stop.silent_ms - stop.said_ms:.0f} ms", STOP


def _draw_arrow(
    page: _Page, x0: float, x1: float, top: float | None, foot: float | None, y: float, label: str, colour: str
) -> None:
    """One latency, with dotted guides up to ``top`` where it begins and down to ``foot`` where it ends."""
    dotted = (0, (2, 2))
    if top is not None:
        page.line(x0, top, x0, y, colour, linewidth=1.0, linestyle=dotted, zorder=4)
    if foot is None:
        page.line(x0, y, x1, y, colour, linewidth=1.6, zorder=6)
        return
    page.line(x1, y, x1, foot, colour, linewidth=1.0, linestyle=dotted, zorder=4)
    page.arrow(x0, max(x1, x0 + 2), y, colour)
    if x1 + 7 + page.width(label, 14, "bold") < WIDTH_PX - _RIGHT:
        page.text(max(x1, x0) + 7, y + 5, label, 14, colour, weight="bold")
    else:
        page.text(x1 - 7, y - 6, label, 14, colour, weight="bold", ha="right")


def _draw_card(page: _Page, turn: TurnLatency, index: int, x: float, top: float, asked_x: float, axis: float) -> None:
    """The waterfall of one turn, enlarged: a lane of 450 ms would be 45 pixels wide."""
    height = len(turn.spans) * _BAR + 34
    page.panel(x, top, _CARD_WIDTH, height)
    anchor = min(max(asked_x, x + 10), x + _CARD_WIDTH - 10)
    page.line(asked_x, axis, anchor, top, QUIET, linewidth=0.8, linestyle=(0, (2, 2)), zorder=2)
    page.text(x + 12, top + 20, f"turn {index + 1}", 13, INK, weight="bold")
    spoken = "begun before the turn was over" if turn.speculative else "begun when the turn was over"
    page.text(x + _CARD_WIDTH - 12, top + 20, spoken, 12, QUIET, ha="right")
    names_width, values_width = 86.0, 66.0
    earliest = min((start for _, start, _ in turn.spans), default=0.0)
    latest = max((end for _, _, end in turn.spans), default=1.0)
    scale = (_CARD_WIDTH - 24 - names_width - values_width) / max(1.0, latest - min(0.0, earliest))
    zero = x + 12 + names_width - min(0.0, earliest) * scale
    for number, (name, start, end) in enumerate(turn.spans):
        y = top + 30 + number * _BAR
        page.text(x + 12, y + 10, name.replace("_", " "), 12, QUIET)
        page.box(
            zero + start * scale, y + 2, max(1.5, (end - start) * scale), 9, SPAN_COLOURS.get(name, QUIET), zorder=4
        )
        page.text(x + _CARD_WIDTH - 12, y + 10, f"{end - start:.0f} ms", 12, INK, ha="right")
