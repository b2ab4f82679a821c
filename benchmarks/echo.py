"""Echo: how much the canceller takes out, and whether the echo score tells our own voice from a person's.

    duplex bench echo [--cases N] [--half tune|report] [--json FILE]

Offline and seeded, no server. Our own voice is the default talker's, and recorded readers' so that it is not one
voice alone; it comes back through simulated loudspeakers, rooms and lines (:mod:`duplex.benchmarks.echo_paths`) at
−10, −20 or −30 dB, 40 to 250 ms late. Sentences, recordings, rooms and delays of the *tune* half are those the
thresholds were chosen on; what is quoted is the *report* half.

*Canceller*: the echo's level before and after (from the second second on), voiced windows (Silero) of echo alone that
are left, and how much softer a person who speaks at the same time becomes. *Score*: voiced windows of echo alone that
pass as somebody's; how often per minute two in a row do (what an overlap takes to begin), with the score and without;
a person's windows that are taken for echo; and how much later two windows in a row of theirs are noticed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import soxr

from duplex.benchmarks.echo_paths import EchoPath, Line
from duplex.benchmarks.stimuli import load_stimuli, speak
from duplex.frames import SAMPLE_RATE_HZ, Samples, ms_to_samples
from duplex.thinker_talker.echo_score import EchoScore
from duplex.thinker_talker.silero import SILERO_RATE_HZ, WINDOW_SAMPLES, SileroModel
from duplex.transport.echo_canceller import WebRtcEchoCanceller
from duplex.weights import ModelStore

Row = dict[str, Any]
Kind = Literal["echo", "person", "both"]
Flags = npt.NDArray[np.bool_]

ECHO_THRESHOLD = 0.4
_VOICE, _MAYBE_VOICE = 0.6, 0.3  # the predictor's threshold over our own voice, and the ear's
_WINDOW_MS = 32.0
_FIRST_WINDOWS = 16  # of a call's first echo, when nothing is known yet
_CALL_S = 11.0

SENTENCES = (
    "The capital of France is Paris. It lies on the river Seine and has more than two million people.",
    "Sure, I can tell you about that. Cats sleep for most of the day, and they hunt at dawn and at dusk.",
    "Well, the weather today is sunny and warm, with a light breeze from the west. Tomorrow it may rain a little.",
    "William Shakespeare wrote Romeo and Juliet around fifteen ninety five. It is about two families at war.",
    "Yes. For breakfast you could have oats with fruit, or eggs on toast, and a cup of green tea.",
    "The largest planet in our solar system is Jupiter, which is eleven times as wide as the Earth.",
    "I think so. Honey never spoils; jars of it were found in very old tombs, and it was still good to eat.",
    "To get there, take the second street on the left, walk past the library, and cross the bridge.",
    "No, I don't think that is true. Lightning often strikes the same place many times, above all tall towers.",
    "Okay, here is a short story. Once there was a fox who wanted to learn how to swim across the lake.",
)


@dataclass(frozen=True, slots=True)
class Case:
    """One call. ``above_db``: the person's level against the echo's. Audio: float32[n] at 24 kHz."""

    kind: Kind
    path: EchoPath
    above_db: float
    played: Samples
    heard: Samples
    echo: Samples
    person: Samples


def cases(half: int, count: int, seed: int = 0, wobble_ms: float = 0.0) -> list[Case]:
    """``count`` calls of a half (0 tune, 1 report): two of five echo alone, one a person alone, two both."""
    rng = np.random.default_rng([seed, half, 11])
    ours = speak(*SENTENCES[half::2])
    readers = [stimulus.samples for stimulus in load_stimuli() if len(stimulus.samples) > 1.2 * SAMPLE_RATE_HZ][half::2]
    made = []
    for number in range(count):
        kind: Kind = ("echo", "both", "person", "echo", "both")[number % 5]
        voices, n = (readers, 4) if number % 3 == 0 else (ours, 2)
        order = rng.permutation(len(voices))
        played = _sequence([voices[i] for i in order[:n]])
        lines: tuple[Line, ...] = ("opus", "opus", "pcm", "phone")
        path = EchoPath(
            level_db=-120.0 if kind == "person" else float(rng.choice([-10, -20, -30])),
            delay_ms=float(rng.uniform(40.0, 250.0)),
            line=lines[rng.integers(len(lines))],
            drive=float(rng.choice([0.0, 1.5])),
            dry_db=float(rng.choice([0.0, 6.0, 12.0])),
            decay_s=float(rng.uniform(0.1, 0.4)),
            wobble_ms=wobble_ms,
            seed=1000 * half + number,
        )
        person, above_db = np.zeros_like(played), 0.0
        if kind != "echo":
            above_db = float(rng.choice([0, 5, 10])) if kind == "both" else 0.0
            level_db = path.level_db + above_db if kind == "both" else float(rng.choice([0, -10, -20]))
            others = [readers[i] for i in order[n:]] if voices is readers else readers  # nobody says what we say
            voice = others[rng.integers(len(others))] * np.float32(10 ** (level_db / 20))
            at = ms_to_samples(float(rng.uniform(500.0, 6000.0)))
            voice = voice[: len(played) - at]
            person[at : at + len(voice)] = voice
        heard, echo = path.heard(played, person)
        made.append(Case(kind, path, above_db, played, heard, echo, person))
    return made


def _sequence(voices: Sequence[Samples]) -> Samples:
    parts = [np.zeros(ms_to_samples(300.0), dtype=np.float32)]
    for voice in voices:
        parts += [voice, np.zeros(ms_to_samples(500.0), dtype=np.float32)]
    whole = np.concatenate(parts)[: round(_CALL_S * SAMPLE_RATE_HZ)]
    return whole[: len(whole) // 480 * 480]


# --- the score --------------------------------------------------------------------------------------


def scores(case: Case, probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """One score a window of 32 ms: float64[k]."""
    heard, played = _at_16k(case.heard), _at_16k(case.played)
    score = EchoScore()
    windows = [slice(i, i + WINDOW_SAMPLES) for i in range(0, len(heard) - WINDOW_SAMPLES + 1, WINDOW_SAMPLES)]
    return np.array(
        [
            score.push(heard[w], played[w], voice=bool(p >= _MAYBE_VOICE)).score
            for w, p in zip(windows, probabilities, strict=False)
        ]
    )


def score_rows(calls: list[Case], silero: SileroModel) -> tuple[list[Row], list[Row], list[Row]]:
    """(echo alone, a person alone, both), one row a level and line, or a ratio."""
    groups: dict[tuple[str, str], list[tuple[Flags, Flags]]] = {}
    alone = [0, 0]
    added: dict[float, list[float | None]] = {}
    for case in calls:
        heard = _probabilities(case.heard, silero)
        score = scores(case, heard)
        heard = heard[: len(score)]
        voiced, passes = heard >= _VOICE, (heard >= _VOICE) & (score < ECHO_THRESHOLD)
        if case.kind == "echo":
            for group in ((f"{case.path.level_db:.0f} dB", "all"), ("all", case.path.line), ("all", "all")):
                groups.setdefault(group, []).append((voiced, passes))
            continue
        theirs = _probabilities(case.person, silero)[: len(score)] >= _VOICE
        if case.kind == "person":
            alone[0] += int((voiced & theirs & ~passes).sum())
            alone[1] += int((voiced & theirs).sum())
        elif (from_there := _second_in_a_row(theirs, 0)) is not None:
            noticed = _second_in_a_row(passes, max(0, from_there - 1))
            late = None if noticed is None else (noticed - from_there) * _WINDOW_MS
            added.setdefault(case.above_db, []).append(late)
    echo_rows = [_echo_row(level, line, flags) for (level, line), flags in sorted(groups.items())]
    alone_rows: list[Row] = [
        {"person alone: windows": alone[1], "taken for echo %": 100.0 * alone[0] / max(1, alone[1])}
    ]
    both_rows: list[Row] = []
    for above_db, times in sorted(added.items()):
        known = [ms for ms in times if ms is not None]
        p50, p90 = np.percentile(known, [50, 90]) if known else (float("nan"), float("nan"))
        both_rows.append(
            {"person above echo": f"{above_db:+.0f} dB", "later p50 ms": p50, "p90 ms": p90}
            | {"max ms": max(known, default=float("nan")), "never": len(times) - len(known), "n": len(times)}
        )
    return echo_rows, alone_rows, both_rows


def _echo_row(level: str, line: str, flags: list[tuple[Flags, Flags]]) -> Row:
    minutes = sum(len(voiced) for voiced, _ in flags) * _WINDOW_MS / 60_000.0
    voiced_windows = sum(int(voiced.sum()) for voiced, _ in flags)
    first = sum(_onsets(passes[: _first(voiced) + _FIRST_WINDOWS]) for voiced, passes in flags)
    return {
        "echo": level,
        "line": line,
        "pass %": 100.0 * sum(int(passes.sum()) for _, passes in flags) / max(1, voiced_windows),
        "onsets/min": sum(_onsets(passes) for _, passes in flags) / minutes,
        "without": sum(_onsets(voiced) for voiced, _ in flags) / minutes,
        "in first 0.5 s": first,
        "calls": len(flags),
        "windows": voiced_windows,
    }


def _first(flags: Flags) -> int:
    return int(np.argmax(flags)) if flags.any() else len(flags)


def _onsets(flags: Flags) -> int:
    """How often two windows in a row are set after one that was not."""
    pair = flags[:-1] & flags[1:]
    return int(pair[0]) + int((pair[1:] & ~pair[:-1]).sum()) if len(pair) else 0


def _second_in_a_row(flags: Flags, start: int) -> int | None:
    """The second of the first two windows in a row from ``start`` on."""
    found = np.flatnonzero(flags[start:-1] & flags[start + 1 :])
    return start + int(found[0]) + 1 if len(found) else None


# --- the canceller ----------------------------------------------------------------------------------


def canceller_rows(calls: list[Case], silero: SileroModel) -> list[Row]:
    """One row for echo alone at each level, one for each ratio of a person to the echo."""
    lowered: dict[str, list[float]] = {}
    left: dict[str, list[tuple[int, int]]] = {}
    lost: dict[str, list[tuple[float, float]]] = {}
    settled = slice(SAMPLE_RATE_HZ, None)
    for case in calls:
        canceller = WebRtcEchoCanceller()
        cleaned = canceller.process(case.heard, case.played)
        if case.kind == "echo":
            name = f"{case.path.level_db:.0f} dB"
            lowered.setdefault(name, []).append(_dbfs(case.heard[settled]) - _dbfs(cleaned[settled]))
            before = (_probabilities(case.heard, silero) >= _VOICE).sum()
            after = (_probabilities(cleaned, silero) >= _VOICE).sum()
            left.setdefault(name, []).append((int(before), int(after)))
        elif case.kind == "both":
            theirs = _probabilities(case.person, silero) >= _VOICE
            loud = np.repeat(theirs, ms_to_samples(_WINDOW_MS))
            cleaned = np.pad(cleaned[canceller.latency_samples :], (0, canceller.latency_samples))
            softer = _dbfs(case.person[: len(loud)][loud]) - _dbfs(cleaned[: len(loud)][loud])
            kept = (_probabilities(cleaned, silero) >= _VOICE)[theirs].mean()
            lost.setdefault(f"{case.above_db:+.0f} dB", []).append((softer, float(kept)))
    rows: list[Row] = []
    for name, values in sorted(lowered.items()):
        before_sum, after_sum = (sum(counts) for counts in zip(*left[name], strict=True))
        row: Row = {"echo alone": name, "lowered p50 dB": float(np.median(values)), "least dB": min(values)}
        rows.append(row | {"voiced windows before": before_sum, "after": after_sum, "n": len(values)})
    for name, pairs in sorted(lost.items()):
        softer_db, kept_share = np.array(pairs).T
        p50, p90 = np.percentile(softer_db, [50, 90])
        row = {"person above echo": name, "softer p50 dB": p50, "p90 dB": p90}
        rows.append(row | {"voiced windows kept %": 100.0 * float(kept_share.mean()), "n": len(pairs)})
    return rows


# --- the rest ---------------------------------------------------------------------------------------


def cpu_rows(case: Case, silero: SileroModel) -> list[Row]:
    """Share of a core, while our voice echoes and while it does not."""
    seconds = len(case.heard) / SAMPLE_RATE_HZ
    quiet = Case(case.kind, case.path, 0.0, case.played, np.zeros_like(case.heard), case.echo, case.person)
    probabilities = _probabilities(case.heard, silero)
    rows: list[Row] = []
    for name, work in (
        ("score, our voice echoes", lambda: scores(case, probabilities)),
        ("score, it does not", lambda: scores(quiet, np.zeros_like(probabilities))),
        ("canceller", lambda: WebRtcEchoCanceller().process(case.heard, case.played)),
    ):
        least = min(_cpu_s(work) for _ in range(3))
        rows.append({"cost": name, "% of a core": 100.0 * least / seconds})
    return rows


def _cpu_s(work: Any) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _at_16k(samples: Samples) -> Samples:
    narrow: Samples = soxr.resample(samples, SAMPLE_RATE_HZ, SILERO_RATE_HZ).astype(np.float32)
    return narrow


def _probabilities(samples: Samples, silero: SileroModel) -> npt.NDArray[np.float64]:
    return np.array(silero.open().push(_at_16k(samples)))


def _dbfs(samples: Samples) -> float:
    return float(10.0 * np.log10(np.mean(np.square(samples, dtype=np.float64)) + 1e-12))


def _print(title: str, rows: list[Row]) -> None:
    print(title)
    for columns in dict.fromkeys(tuple(row) for row in rows):
        text = [list(columns)]
        for row in rows:
            if tuple(row) == columns:
                text.append([f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()])
        widths = [max(map(len, column)) for column in zip(*text, strict=True)]
        for line in text:
            print("  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
        print()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="duplex bench echo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=100, help="simulated calls of 11 s (default 100)")
    parser.add_argument("--half", choices=["tune", "report"], default="report")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--wobble-ms", type=float, default=0.0, help="how far the far player's buffer moves (default 0)"
    )
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args(argv)
    silero = SileroModel(ModelStore().path("silero-vad") / "silero_vad.onnx")
    calls = cases(["tune", "report"].index(options.half), options.cases, options.seed, options.wobble_ms)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    how = f"{options.half} half, seed {options.seed}, wobble {options.wobble_ms:g} ms"
    print(f"{len(calls)} simulated calls of {_CALL_S:g} s, {how} ({machine})\n")
    echo, alone, both = score_rows(calls, silero)
    tables = {
        f"Echo score, threshold {ECHO_THRESHOLD:g}": [*echo, *alone, *both],
        "Echo canceller (WebRTC AEC3)": canceller_rows(calls, silero),
        "CPU": cpu_rows(next(case for case in calls if case.kind == "echo"), silero),
    }
    for title, rows in tables.items():
        _print(title, rows)
    if options.json is not None:
        options.json.write_text(
            json.dumps({"machine": machine, "half": options.half, "tables": tables}, indent=2) + "\n"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
