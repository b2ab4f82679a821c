"""One scenario in the report: its distributions, where its turns' time went, and its trials."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duplex.benchmarks.turns.report_charts import (
    Waterfall,
    distribution,
    esc,
    is_share,
    waterfall_of,
    waterfalls,
)
from duplex.benchmarks.turns.report_timeline import legend, timeline
from duplex.benchmarks.turns.report_words import ABOUT, About, label_of, shown
from duplex.benchmarks.turns.results import ScenarioResult, TrialResult, load_clip
from duplex.errors import DuplexError
from duplex.recording import Recording, Span

MOST_TIMELINES = 6
"""Failing trials per scenario that are drawn; all are listed."""
EMBEDDED_BYTES = 4_000_000
"""Sound that is put into the page, as it counts there (base64); what is over is played from ``audio/``."""
EMBEDDED_MS = 40_000.0
"""A clip longer than this is never embedded: it would take the room of many."""
_DETAILS_CHARACTERS = 2500
CLASSES = {"pass": "pass", "miss": "miss", "not judged": "open", "not run": "none"}


@dataclass(slots=True)
class Sections:
    """``directory``: where the clips lie. ``room``: bytes of sound that the page may still take."""

    directory: Path
    room: int = EMBEDDED_BYTES

    def write(self, row: ScenarioResult) -> Iterator[str]:
        about = ABOUT.get(row.scenario, About(row.name, "", ""))
        valid = sum(trial.valid for trial in row.trials)
        told = [f"{valid} trials judged"]
        told += [f"{row.invalid} repeated because they could not be"] if row.invalid else []
        told += [f"{len(row.failures)} failed"] if row.failures else []
        told += [minutes(row.took_s)]
        yield (
            f'<section class="scenario {CLASSES[row.verdict]}" id="s{row.scenario}" aria-labelledby="h{row.scenario}" '
            f'{marks(row)}><header><h2 id="h{row.scenario}">{row.scenario}. {esc(row.name)}</h2>{badge(row)}'
            f'<span class="quiet">{esc(" · ".join(told))}</span></header>'
        )
        yield f'<p class="about">{esc(about.tried)} <span class="quiet">{esc(about.judged)}</span></p>'
        if row.note:
            yield f'<p class="note">{esc(row.note)}</p>'
        yield f'<div class="lanes">{"".join(self._lanes(row))}</div>' if row.measures else ""
        clips = dict(self._clips(row))
        yield waterfalls(list(_turns(row, clips)))
        yield from self._trials(row, clips)
        yield _all_trials(row)
        yield "</section>"

    def _lanes(self, row: ScenarioResult) -> Iterator[str]:
        """Measures with limits first, in their order; then the others."""
        limited = list(dict.fromkeys(verdict.limit.measure for verdict in row.limits))
        for measure in [*limited, *(name for name in row.measures if name not in limited)]:
            if measure in row.measures:
                yield distribution(measure, row.measures[measure], row.limits)

    def _clips(self, row: ScenarioResult) -> Iterator[tuple[int, Recording | str]]:
        """The sound of each trial that is drawn, by its place; or why there is none."""
        failing = [index for index, trial in enumerate(row.trials) if trial.failed is not None]
        typical = next((k for k, trial in enumerate(row.trials) if _is_typical(trial)), None)
        for index in [*failing[:MOST_TIMELINES], *([typical] if typical is not None else [])]:
            clip = row.trials[index].clip
            if clip is None:
                continue
            try:
                yield index, load_clip(self.directory, clip)
            except (OSError, ValueError, KeyError, RuntimeError, DuplexError) as error:
                yield index, f"Its sound cannot be shown: {clip.audio}: {error}"

    def _trials(self, row: ScenarioResult, clips: Mapping[int, Recording | str]) -> Iterator[str]:
        failing = [index for index, trial in enumerate(row.trials) if trial.failed is not None]
        shown_ones = [*failing[:MOST_TIMELINES], *(k for k in clips if row.trials[k].failed is None)]
        if any(isinstance(found, Recording) for found in clips.values()):
            yield legend()
        for index in shown_ones:
            yield from self._trial(row, index, clips.get(index))
        if len(failing) > MOST_TIMELINES:
            rest = len(failing) - MOST_TIMELINES
            yield f'<p class="note">{rest} more failing trials are in the list below.</p>'

    def _trial(self, row: ScenarioResult, index: int, found: Recording | str | None) -> Iterator[str]:
        trial = row.trials[index]
        kind = "Failing trial" if trial.failed is not None else "A trial that did not fail"
        title = f"Scenario {row.scenario}, {kind.lower()} {index + 1}"
        yield (
            f'<article aria-label="{esc(title)}"><h3>{kind} {index + 1} '
            f'<span class="quiet">{esc(trial.stimulus)} · seed {trial.seed}</span></h3>'
        )
        if trial.failed is not None:
            yield f'<p class="reason">{esc(trial.failed)}</p>'
        values = "".join(
            f"<li>{esc(label_of(name))} <b>{esc(_value(value, name, row))}</b></li>"
            for name, value in trial.values.items()
        )
        yield f'<ul class="values">{values}</ul>' if values else ""
        if isinstance(found, Recording):
            yield timeline(found, focus=_focus(trial), title=title)
            yield self._audio(trial, found, title)
        elif found is not None:
            yield f'<p class="note">{esc(found)}</p>'
        details = {name: value for name, value in trial.details.items() if name != "trace"}
        if details:
            text = as_json(details, _DETAILS_CHARACTERS)
            yield f'<details class="more"><summary>Details</summary><pre>{esc(text)}</pre></details>'
        yield "</article>"

    def _audio(self, trial: TrialResult, recording: Recording, title: str) -> str:
        """Sound of failing trials goes into the page while there is room; else it is played from beside it."""
        source: str | None = None
        if trial.failed is not None and self.room > 0 and recording.duration_ms <= EMBEDDED_MS:
            source = _as_data(recording)
            self.room -= len(source) if source is not None else self.room
            if self.room < 0:
                source = None  # and from here on nothing is tried: encoding takes most of a report's time
        if source is None and trial.clip is not None:
            source = trial.clip.audio
        label = f"Sound of {title}: user left, agent right"
        return (
            f'<audio controls preload="none" src="{esc(source)}" aria-label="{esc(label)}"></audio>' if source else ""
        )


# --- pieces ------------------------------------------------------------------------------------------


def marks(row: ScenarioResult) -> str:
    """What the filter looks at."""
    return f'data-verdict="{CLASSES[row.verdict]}" data-failed="{len(row.failures)}"'


def badge(row: ScenarioResult) -> str:
    return f'<span class="badge {CLASSES[row.verdict]}">{esc(row.verdict)}</span>'


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def as_json(value: Any, most: int) -> str:
    text = json.dumps(value, indent=1, ensure_ascii=False, default=str)
    return text if len(text) <= most else text[:most] + "\n…"


def _is_typical(trial: TrialResult) -> bool:
    return trial.failed is None and trial.valid and trial.clip is not None


def _focus(trial: TrialResult) -> Span | None:
    """The judged stretch on the clip's own time line."""
    if trial.clip is None or trial.start_ms is None or trial.end_ms is None:
        return None
    return Span(trial.start_ms - trial.clip.start_ms, trial.end_ms - trial.clip.start_ms)


def _turns(row: ScenarioResult, clips: Mapping[int, Recording | str]) -> Iterator[Waterfall]:
    """Waterfalls of every trial whose trace is known: from its details, or from the events of its clip."""
    for index, trial in enumerate(row.trials):
        label = f"trial {index + 1}, {trial.stimulus}"
        traces: list[Mapping[str, Any]] = []
        for value in trial.details.values():
            found = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
            traces += [each for each in found if isinstance(each, Mapping) and each.get("spans")]
        recording = clips.get(index)
        if not traces and isinstance(recording, Recording):
            traces = [event.event for event in recording.events if event.type == "duplex.trace"]
        for trace in traces:
            turn = waterfall_of(label, trace)
            if turn is not None:
                yield turn


def _all_trials(row: ScenarioResult) -> str:
    """Every trial in a table, folded away."""
    if not row.trials:
        return ""
    names = list(dict.fromkeys(name for trial in row.trials for name in trial.values))
    head = "".join(f'<th scope="col" class="n">{esc(label_of(name))}</th>' for name in names)
    lines = []
    for index, trial in enumerate(row.trials):
        cells = "".join(f'<td class="n">{esc(_value(trial.values.get(name), name, row))}</td>' for name in names)
        result = trial.failed or (
            "ok" if trial.valid else f"not judged: {trial.details.get('invalid', 'no reason kept')}"
        )
        bad = ' class="bad"' if trial.failed is not None else ""
        lines.append(
            f'<tr{bad}><td class="n">{index + 1}</td><td class="n">{trial.seed}</td>'
            f'<td class="wrap">{esc(trial.stimulus)}</td>{cells}<td class="wrap">{esc(result)}</td></tr>'
        )
    return (
        f'<details class="more"><summary>All {len(row.trials)} trials</summary><div class="trials" tabindex="0" '
        f'role="group" aria-label="All trials of scenario {row.scenario}"><table><thead><tr>'
        '<th scope="col" class="n">no.</th><th scope="col" class="n">seed</th><th scope="col">stimulus</th>'
        f'{head}<th scope="col">result</th></tr></thead><tbody>{"".join(lines)}</tbody></table></div></details>'
    )


def _value(value: float | None, name: str, row: ScenarioResult) -> str:
    """One trial's value; yes or no where the measure is a share."""
    if value is None:
        return ""
    share = name in row.measures and is_share(name, row.measures[name], row.limits)
    return ("yes" if value else "no") if share else shown(value, name)


def _as_data(recording: Recording) -> str | None:
    """The clip as Ogg Opus in a ``data:`` address; None if this machine's libsndfile cannot write that."""
    import numpy as np
    import soundfile

    if "OPUS" not in soundfile.available_subtypes("OGG"):
        return None
    sound = io.BytesIO()
    clipped = np.clip(recording.stereo, -1.0, 1.0)
    soundfile.write(sound, clipped, recording.sample_rate_hz, format="OGG", subtype="OPUS", compression_level=0.9)
    return "data:audio/ogg;base64," + base64.b64encode(sound.getvalue()).decode("ascii")
