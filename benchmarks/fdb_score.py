"""Scores Full-Duplex-Bench's samples from what is on disk; the rules are in :mod:`.fdb_metrics`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from duplex.benchmarks.fdb_layout import (
    Sample,
    SampleError,
    TaskName,
    check_output,
    duration_s,
    read_json,
    read_sound,
    read_spans,
)
from duplex.benchmarks.fdb_metrics import (
    AGENT_GAP_S,
    USER_GAP_S,
    SpokenWord,
    Stretch,
    after_event,
    at_event,
    backchannels,
    divergence,
    latency_s,
    merged,
    response_intervals,
    stop_intervals,
    took_turn,
)
from duplex.benchmarks.fdb_words import LocalEar, make_words, read_words, write_text

REFERENCE = "icc_gt_distribution.json"
"""Where people put backchannels, by sample; part of the original's evaluation code, not of its data."""

WordsFrom = Literal["any", "given", "local"]
"""``any``: ``output.json`` if there is one, else ours; ``given``: only that; ``local``: always ours."""

MEASURES: Mapping[TaskName, tuple[tuple[str, str, str], ...]] = {
    # measure, unit, which way is better (for the agent)
    "pause_handling": (("TOR", "share", "lower"),),
    "backchannel": (
        ("TOR", "share", "lower"),
        ("TOR, any stretch", "share", "lower"),
        ("frequency", "/s", "higher"),
        ("JSD", "", "lower"),
    ),
    "smooth_turn_taking": (("TOR", "share", "higher"), ("latency", "s", "lower")),
    "user_interruption": (("TOR", "share", "higher"), ("latency", "s", "lower")),
    "overlap": (
        ("stop latency, all overlaps", "s", "lower"),
        ("response latency, all gaps", "s", "lower"),
        ("stop latency at the event", "s", ""),
        ("response latency after the event", "s", ""),
    ),
}


@dataclass(slots=True)
class SubsetScore:
    """One subset's values by measure, and the samples that have none. ``notes``: what a reader should know."""

    name: str
    task: TaskName
    values: dict[str, list[float]] = field(default_factory=dict)
    samples: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    errors: list[SampleError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        from duplex.benchmarks.turns.statistics import summarise

        summaries = {}
        for name, values in self.values.items():
            if values:
                found = summarise(values)
                interval = found.ci95.get("mean")
                summaries[name] = {
                    "mean": found.mean,
                    "ci95": None if interval is None else [interval.low, interval.high],
                    "p50": found.p50,
                    "n": found.n,
                }
        return {
            "subset": self.name,
            "task": self.task,
            "measures": summaries,
            "samples": self.samples,
            "errors": [str(error) for error in self.errors],
            "notes": self.notes,
        }


def score_subset(
    directory: Path,
    samples: Sequence[Sample],
    task: TaskName,
    ear: LocalEar,
    *,
    words_from: WordsFrom = "any",
    reference: Path | None = None,
    tell: Callable[[str], None] = lambda _line: None,
) -> SubsetScore:
    """Every sample of one subset. Errors of samples are collected; a missing model (``WeightsError``) is raised."""
    score = SubsetScore(directory.name, task, {name: [] for name, _, _ in MEASURES[task]})
    people = _reference(directory, reference, score) if task == "backchannel" else None
    for number, sample in enumerate(samples, 1):
        tell(f"{score.name} {number}/{len(samples)}")
        try:
            check_output(sample)
            found = _score_one(sample, task, ear, words_from, people, score)
        except SampleError as error:
            score.errors.append(error)
            continue
        score.samples[sample.directory.name] = found
        for name, value in found.items():
            if name in score.values:
                score.values[name] += value if isinstance(value, list) else [] if value is None else [float(value)]
    return score


def _score_one(
    sample: Sample,
    task: TaskName,
    ear: LocalEar,
    words_from: WordsFrom,
    people: Mapping[str, Any] | None,
    score: SubsetScore,
) -> dict[str, Any]:
    spans = read_spans(sample, task)
    if task == "overlap":
        return _score_overlap(sample, spans[0], ear)
    since_s = spans[0][1] if task == "user_interruption" else 0.0
    words = _words(sample, ear, words_from, since_s)
    if task == "pause_handling":
        return {"TOR": took_turn(words)}
    if task == "backchannel":
        return _score_backchannel(sample, words, ear, people)
    if task == "smooth_turn_taking":
        return {"TOR": took_turn(words), "latency": latency_s(words, spans[0][0])}
    if words and words[0].start_s < since_s - 0.5:
        score.notes.append(
            f"{sample.words}: begins before the interruption ends ({since_s:.2f} s), so this latency counts as 0. "
            "Transcribe with asr.py --task user_interruption, or score with --words local."
        )
    return {"TOR": took_turn(words), "latency": latency_s(words, since_s)}


def _words(sample: Sample, ear: LocalEar, words_from: WordsFrom, from_s: float) -> list[SpokenWord]:
    if words_from == "local" or (words_from == "any" and not sample.words.exists()):
        return make_words(sample, ear, from_s)
    return read_words(sample)


def _score_backchannel(
    sample: Sample, words: Sequence[SpokenWord], ear: LocalEar, people: Mapping[str, Any] | None
) -> dict[str, Any]:
    voiced = [(round(start, 1), round(end, 1)) for start, end in ear.stretches(*read_sound(sample.output))]
    length_s = duration_s(sample.output)
    heard = backchannels(voiced, words)
    found = {
        "TOR": heard.took_turn,
        "TOR, any stretch": heard.ever_took_turn,
        "frequency": len(heard.stretches) / length_s,
        "stretches": heard.stretches,
    }
    if people is not None:
        found["JSD"] = divergence(heard.stretches, length_s, _people_of(sample, people))
    return found


def _score_overlap(sample: Sample, event: Stretch, ear: LocalEar) -> dict[str, Any]:
    """Also writes ``latency_intervals.json``, as ``get_timing.py`` does."""
    user = merged(ear.stretches(*read_sound(sample.input)), USER_GAP_S)
    agent = merged(ear.stretches(*read_sound(sample.output)), AGENT_GAP_S)
    stops, responses = stop_intervals(user, agent), response_intervals(user, agent)
    lists = {"latency_stop_list": stops, "latency_resp_list": responses}
    write_text(sample.intervals, json.dumps(lists, indent=2) + "\n")
    return {
        "stop latency, all overlaps": [end - start for start, end in stops],
        "response latency, all gaps": [end - start for start, end in responses],
        "stop latency at the event": at_event(stops, event),
        "response latency after the event": after_event(responses, event),
    }


# --- where people put backchannels --------------------------------------------------------------------------


def _reference(directory: Path, given: Path | None, score: SubsetScore) -> Mapping[str, Any] | None:
    """The distribution by sample, from ``given`` or from beside the data; None (and a note) without one."""
    places = [given] if given else [directory / REFERENCE, directory.parent / REFERENCE]
    path = next((place for place in places if place.is_file()), None)
    if path is None and given is None:
        score.notes.append(
            f"no JSD: {REFERENCE} is not beside the data. It is in the original's v1_v1.5/evaluation; "
            "give it with --reference FILE"
        )
        return None
    found = read_json(path or places[0])
    if not isinstance(found, dict):
        raise SampleError(path or places[0], 'should be {"ID": [share, share, …]}')
    return {**found, "": str(path)}


def _people_of(sample: Sample, people: Mapping[str, Any]) -> Sequence[float]:
    found = people.get(sample.directory.name)
    usable = isinstance(found, list) and len(found) > 1 and all(isinstance(share, (int, float)) for share in found)
    if not isinstance(found, list) or not usable or sum(found) <= 0:
        raise SampleError(Path(people[""]), "should be a list of shares for this sample", repr(sample.directory.name))
    return found
