"""A trial as a timeline: user above, agent below, who had the floor, and when the agent held, went on or gave up.

The same story as :mod:`duplex.timeline` draws to a PNG, as inline SVG of a few kilobytes that follows the page's
colours. Voices are drawn as one stroke per column in which there is sound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from duplex.benchmarks.turns.report_charts import esc, pct, ticks
from duplex.frames import Samples
from duplex.recording import Recording, Span
from duplex.story import FLOORS, Story, Utterance, tell

_COLUMNS = 480
_WAVE_PX, _TEXT_PX = 46, 15
_CHARACTERS = 150  # of caption text that fit across the chart at the width it is drawn for
_MARKS = {
    "duplex.reply.held": ("held", "hold"),
    "duplex.reply.resumed": ("resumed", "resume"),
    "conversation.item.truncated": ("cut off", "cut"),
    "input_audio_buffer.committed": ("commit", "commit"),
}


def timeline(recording: Recording, *, focus: Span | None = None, title: str) -> str:
    """A figure of ``recording``. ``focus``: the stretch that was judged, on its own time line; the rest is dimmed."""
    story = tell(recording)
    length = max(recording.duration_ms, 1.0)

    def x(at_ms: float) -> str:
        return pct(at_ms / length)

    captions = {who: _rows([said for said in story.utterances if said.who == who], length) for who in ("user", "agent")}
    ribbon, user = 16, 30
    user_text = user + _WAVE_PX
    agent = user_text + captions["user"][1] * _TEXT_PX + 8
    agent_text = agent + _WAVE_PX
    axis = agent_text + captions["agent"][1] * _TEXT_PX + 8
    parts: list[str] = []
    parts += _axis(length, axis, x)
    for span in story.floors:
        name = span.floor if span.floor in FLOORS else "listening"
        width = pct((span.end_ms - span.start_ms) / length)
        parts.append(
            f'<rect class="floor-{name}" x="{x(span.start_ms)}" width="{width}" y="{ribbon}" height="7">'
            f"<title>{esc(span.floor)}</title></rect>"
        )
    for who, top, samples in (("user", user, recording.user), ("agent", agent, recording.agent)):
        parts.append(_wave(samples, top, who))
        for place, row, text in captions[who][0]:
            y = (user_text if who == "user" else agent_text) + row * _TEXT_PX + 11
            parts.append(f'<text class="said" x="{x(place)}" y="{y}">{text}</text>')
    parts += _marks(recording, user, axis, length)
    if focus is not None:
        for start, end in ((0.0, focus.start_ms), (focus.end_ms, length)):
            if end > start:
                width = pct((end - start) / length)
                parts.append(
                    f'<rect class="beside" x="{x(start)}" width="{width}" y="{user - 4}" height="{axis - user}"/>'
                )
    for who, top in (("user", user), ("agent", agent)):
        parts.append(f'<text class="who {who}" x="2" y="{top + 9}">{who}</text>')
    parts.append(f'<line class="playhead" x1="0" x2="0" y1="{ribbon}" y2="{axis}"/>')
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{esc(title)}">'
        f'<svg class="chart timeline" data-ms="{length:.0f}" width="100%" height="{axis + 20}" role="img" '
        f'aria-label="{esc(_alt(story, title))}">{"".join(parts)}</svg></div>{_transcript(story)}'
    )


def legend() -> str:
    """What the colours of the ribbon and the marks mean."""
    floors = "".join(f'<li><i class="key floor-{name}"></i>{name}</li>' for name in FLOORS)
    marks = "".join(f'<li><i class="key mark-{kind}"></i>{label}</li>' for label, kind in _MARKS.values())
    return f'<ul class="keys"><li><b>floor</b></li>{floors}<li><b>marks</b></li>{marks}</ul>'


def _axis(length: float, axis: float, x: object) -> Iterator[str]:
    marks = ticks(length / 1000.0, 12)
    for index, second in enumerate(marks):
        at = second * 1000.0 / length
        anchor = "start" if at < 0.01 else "end" if at > 0.985 else "middle"
        unit = " s" if index == 0 else ""
        yield f'<line class="tick" x1="{pct(at)}" x2="{pct(at)}" y1="24" y2="{axis}"/>'
        yield f'<text class="num" x="{pct(at)}" y="{axis + 14}" text-anchor="{anchor}">{second:g}{unit}</text>'


def _wave(samples: Samples, top: float, who: str) -> str:
    """One stroke per column that has sound, from its peak; −20 dBFS speech fills about half the lane."""
    columns = min(_COLUMNS, max(1, len(samples)))
    whole = samples[: len(samples) // columns * columns].reshape(columns, -1)
    peaks = np.abs(whole).max(axis=1) if whole.size else np.zeros(columns)
    half = _WAVE_PX / 2
    heights = np.clip(np.power(peaks, 0.6), 0.0, 1.0) * (half - 1)
    path = "".join(
        f"M{column} {half - height:.0f}v{max(1.0, 2 * height):.0f}"
        for column, height in enumerate(heights.tolist())
        if height >= 0.8
    )
    return (
        f'<line class="axis" x1="0" x2="100%" y1="{top + half:g}" y2="{top + half:g}"/>'
        f'<svg y="{top}" width="100%" height="{_WAVE_PX}" viewBox="-0.5 0 {columns} {_WAVE_PX}" '
        f'preserveAspectRatio="none"><path class="wave {who}" d="{path}"/></svg>'
    )


def _rows(said: Sequence[Utterance], length: float) -> tuple[list[tuple[float, int, str]], int]:
    """Captions as (where, row, markup), in two rows where one would be too narrow; and how many rows there are."""
    placed: list[tuple[float, int, str]] = []
    free = [0.0, 0.0]  # to where each row is taken
    for number, utterance in enumerate(said):
        start = max(0.0, utterance.words[0].start_ms)
        row = 0 if start >= free[0] else 1 if start >= free[1] else min((0, 1), key=lambda k: free[k])
        start = max(start, free[row])
        after = [other.words[0].start_ms for other in said[number + 1 :]]
        limit = after[1] if len(after) > 1 else length
        room = int(max(0.0, limit - start) / length * _CHARACTERS)
        if room < 6:
            continue
        markup, count = _caption(utterance, room)
        free[row] = start + (count + 2) / _CHARACTERS * length
        placed.append((start, row, markup))
    return placed, 1 + max((row for _, row, _ in placed), default=-1)


def _caption(utterance: Utterance, room: int) -> tuple[str, int]:
    """At most ``room`` characters, what was not heard struck through; and how many there are."""
    kept: list[tuple[str, bool]] = []
    count = 0
    for word in utterance.words:
        if count + len(word.text) + 1 > room:
            kept.append(("…", word.heard))
            count += 1
            break
        kept.append((word.text, word.heard))
        count += len(word.text) + 1
    runs: list[list[str]] = []
    for index, (text, heard) in enumerate(kept):
        if index == 0 or heard != kept[index - 1][1]:
            runs.append(["" if heard else "unheard"])
        runs[-1].append(text)
    spans = [f'<tspan class="{run[0]}">{esc(" ".join(run[1:]))}</tspan>' for run in runs]
    return " ".join(spans), count


def _marks(recording: Recording, top: float, axis: float, length: float) -> Iterator[str]:
    found = [
        (event.at_ms, *_MARKS[event.type])
        for event in recording.events
        if event.type in _MARKS and 0.0 <= event.at_ms <= length
    ]
    found.sort()
    labelled_to = -1.0
    for at_ms, label, kind in found:
        at = at_ms / length
        yield f'<line class="mark mark-{kind}" x1="{pct(at)}" x2="{pct(at)}" y1="{top - 8}" y2="{axis}"/>'
        if at > labelled_to:
            anchor = "end" if at > 0.94 else "start"
            yield f'<text class="mark-label" x="{pct(at)}" y="11" text-anchor="{anchor}">{esc(label)}</text>'
            labelled_to = at + 0.012 + 0.0065 * len(label)


def _alt(story: Story, title: str) -> str:
    said = "; ".join(
        f"{each.who} at {each.words[0].start_ms / 1000:.1f} s: {each.text}" for each in story.utterances[:6]
    )
    changes = ", ".join(
        f"{after.floor} at {after.start_ms / 1000:.1f} s" for _, after in list(pairwise(story.floors))[:8]
    )
    return f"{title}. {said or 'No words are known'}. Floor: {changes or 'unchanged'}."


def _transcript(story: Story) -> str:
    if not story.utterances:
        return ""
    lines = []
    for each in story.utterances:
        heard = " ".join(word.text for word in each.words if word.heard)
        unheard = " ".join(word.text for word in each.words if not word.heard)
        struck = f' <s aria-label="not heard">{esc(unheard)}</s>' if unheard else ""
        lines.append(
            f'<li class="{each.who}"><span>{each.words[0].start_ms / 1000:.1f} s</span> '
            f"<b>{each.who}</b> {esc(heard)}{struck}</li>"
        )
    return f'<details class="words"><summary>What was said</summary><ol>{"".join(lines)}</ol></details>'
