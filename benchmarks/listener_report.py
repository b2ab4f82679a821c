"""``duplex bench listener --line telephone``: word errors on two lines at several levels."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from duplex.benchmarks.lines_plot import Dot, Row, save_dots
from duplex.benchmarks.listener_lines import (
    SessionEars,
    Understood,
    WordErrors,
    difference,
    spoken_by_machine,
    spoken_by_people,
    summed,
)
from duplex.benchmarks.narrowband import WIDE, Line, line_named, parsed_levels
from duplex.benchmarks.server_process import machine
from duplex.benchmarks.stimuli import LEVEL_DBFS, Stimulus
from duplex.benchmarks.turns.material import Material
from duplex.benchmarks.turns.results import Interval
from duplex.benchmarks.turns.statistics import bootstrap, percentile
from duplex.errors import DuplexError
from duplex.thinker_talker.gain import VoiceGain
from duplex.thinker_talker.moonshine import MoonshineModel
from duplex.thinker_talker.silero import SileroModel
from duplex.weights import ModelStore


@dataclass(frozen=True, slots=True)
class Found:
    """One set of recordings on one line at one level. ``more``: the rate less that of the wide line at −20 dBFS, 95 %.

    ``onset_ms``: how long after its first voiced sample a voice was noticed; its median, its 95th percentile, and the
    interval of the median.
    """

    voices: str
    line: str
    level_dbfs: float
    errors: WordErrors
    more: Interval | None
    onset_p50_ms: float
    onset_p95_ms: float
    onset_ci95: Interval | None
    offset_p50_ms: float

    @property
    def label(self) -> str:
        return f"{self.voices}, {self.level_dbfs:.0f} dBFS"


def measure_lines(options: argparse.Namespace) -> int:
    """Runs it with the parsed options of ``duplex bench listener``."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    try:
        levels = parsed_levels(options.levels)
        lines = (WIDE, line_named(options.line))
        material = Material.load(options.split, console.print)
        store = ModelStore()
        ears = SessionEars(
            SileroModel(store.path("silero-vad") / "silero_vad.onnx"),
            MoonshineModel(options.model or store.path("moonshine-tiny-en")),
        )
    except DuplexError as error:
        console.print(f"[red]{error}[/red]")
        return 1
    sets = {"people": spoken_by_people(material), "synthetic": spoken_by_machine(material)}
    found, heard = measured(sets, lines, levels, ears, console, gain=options.gain)
    _print(found, options.split, sets, console)
    about = machine()
    if options.json:
        report = {
            "machine": about,
            "split": options.split,
            "gain": options.gain,
            "found": [asdict(one) | {"rate": one.errors.rate} for one in found],
            "heard": {name: [asdict(one) for one in some] for name, some in heard.items()},
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.plot:
        people = len(sets["people"])
        subtitle = f"{options.split} set: {people} human recordings, {len(sets['synthetic'])} synthetic; bars: 95 %"
        save_dots(plotted(found), options.plot, "What the listener understands over a telephone line", subtitle)
    return 0


def measured(
    sets: Mapping[str, Sequence[Stimulus]],
    lines: Sequence[Line],
    levels: Sequence[float],
    ears: SessionEars,
    console: Console,
    *,
    gain: bool = False,
) -> tuple[list[Found], dict[str, list[Understood]]]:
    """Every set on every line at every level; and what was heard of each recording, by ``set, line, level``.

    ``gain``: each such row is one call, on which the detector's gain learns from one recording to the next.
    """
    found: list[Found] = []
    heard: dict[str, list[Understood]] = {}
    for voices, recordings in sets.items():
        usual: list[Understood] | None = None
        for level in levels:
            for line in lines:
                name = f"{voices}, {line.name}, {level:g} dBFS"
                told = track(recordings, f"{name} …", console=console, transient=True)
                learned = VoiceGain() if gain else None
                understood = [ears.hear(said, line.with_speech_at(level), learned) for said in told]
                heard[name] = understood
                if line is WIDE and level == LEVEL_DBFS:
                    usual = understood
                more = None if usual is None or usual is understood else difference(understood, usual)
                found.append(_found(voices, line, level, understood, more))
    return found, heard


def _found(voices: str, line: Line, level: float, understood: Sequence[Understood], more: Interval | None) -> Found:
    onsets = [one.onset_ms for one in understood if one.onset_ms is not None]
    offsets = [one.offset_ms for one in understood if one.offset_ms is not None]
    return Found(
        voices,
        line.name,
        level,
        summed(understood),
        more,
        percentile(onsets, 50) if onsets else float("nan"),
        percentile(onsets, 95) if onsets else float("nan"),
        bootstrap(onsets).get("p50"),
        float(np.median(offsets)) if offsets else float("nan"),
    )


def _print(found: Sequence[Found], split: str, sets: Mapping[str, Sequence[Any]], console: Console) -> None:
    table = Table(title=f"Word errors as a session hears the {split} set", title_justify="left", title_style="bold")
    for name in ("voices", "line", "speech at"):
        table.add_column(name)
    for name in ("word errors", "95 %", "of", "more than wide at −20", "not noticed", "noticed after p50 / p95, ms"):
        table.add_column(name, justify="right")
    for one in found:
        errors = one.errors
        more = "" if one.more is None else f"{100 * one.more.low:+.1f} to {100 * one.more.high:+.1f}"
        table.add_row(
            one.voices,
            one.line,
            f"{one.level_dbfs:.0f} dBFS",
            f"{100 * errors.rate:.1f} %",
            f"{100 * errors.interval.low:.1f} – {100 * errors.interval.high:.1f}",
            f"{errors.words} words, {errors.recordings}",
            more,
            str(errors.unnoticed),
            f"{one.onset_p50_ms:.0f} / {one.onset_p95_ms:.0f}",
        )
    console.print(table)
    about = machine()
    counts = ", ".join(f"{len(some)} {name}" for name, some in sets.items())
    console.print(f"{about['cpu']}, {about['cores']} cores. Recordings: {counts}. Differences in points, by recording.")


def plotted(found: Sequence[Found]) -> list[Row]:
    """Word errors in one panel, how soon a voice is noticed in the other."""
    labels = list(dict.fromkeys(one.label for one in found))
    words, onsets = [], []
    for label in labels:
        some = [one for one in found if one.label == label]
        words.append(
            Row(
                label,
                "words wrong, %",
                tuple(
                    Dot(o.line, 100 * o.errors.rate, 100 * o.errors.interval.low, 100 * o.errors.interval.high)
                    for o in some
                ),
            )
        )
        onsets.append(
            Row(
                label,
                "voice noticed after, ms (median)",
                tuple(
                    Dot(o.line, o.onset_p50_ms, *((o.onset_ci95.low, o.onset_ci95.high) if o.onset_ci95 else ()))
                    for o in some
                ),
            )
        )
    return words + onsets


if __name__ == "__main__":
    raise SystemExit("Run: duplex bench listener --line telephone")
