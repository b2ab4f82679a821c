"""Full-Duplex-Bench: its layout, its rules against values worked out by hand, and a run against a real server."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from voices import Voice

from duplex.benchmarks import fdb
from duplex.benchmarks.fdb_layout import (
    Sample,
    SampleError,
    find_samples,
    is_answered,
    read_sound,
    read_spans,
    subsets,
    task_of,
)
from duplex.benchmarks.fdb_metrics import (
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
from duplex.benchmarks.fdb_run import RunFindings, run_samples
from duplex.benchmarks.fdb_score import score_subset
from duplex.benchmarks.fdb_words import MADE_BY, LocalEar, grouped, speech_stretches, spread
from duplex.config import load_config
from duplex.errors import AgentFullError, DuplexError, TransportError
from duplex.frames import SAMPLE_RATE_HZ, Samples
from duplex.recording import RecordedEvent, Recording, Span, WireStats, voiced_extent
from duplex.serve import running
from duplex.testing import tone
from duplex.weights import ModelStore

RATE_HZ = 16_000


def words(*edges: tuple[float, float | None]) -> list[SpokenWord]:
    return [SpokenWord(f"w{index}", start, end) for index, (start, end) in enumerate(edges)]


def even(count: int, start: float, end: float) -> list[SpokenWord]:
    """``count`` words that fill the time from ``start`` to ``end``."""
    step = (end - start) / count
    return words(*((start + k * step, start + (k + 1) * step) for k in range(count)))


# --- the rules -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        ([], False),
        (even(3, 2.0, 2.99), False),
        (even(4, 2.0, 2.99), True),  # more than three words
        (even(3, 2.0, 3.0), True),  # a whole second
        (words((1.0, 1.2), (1.9, 2.1)), True),  # from the first word's start to the last one's end, pause included
        (words((1.0, 1.2), (1.9, None)), False),  # an open end counts from where the word begins: 0.9 s
    ],
)
def test_a_turn_is_taken_by_a_second_or_by_more_than_three_words(said: list[SpokenWord], taken: bool) -> None:
    assert took_turn(said) is taken


def test_latency_is_clamped_and_only_of_turns_that_were_taken() -> None:
    assert latency_s(even(6, 5.25, 7.0), 4.0) == pytest.approx(1.25)
    assert latency_s(even(6, 3.5, 7.0), 4.0) == 0.0
    assert latency_s(even(2, 5.0, 5.5), 4.0) is None


@pytest.mark.parametrize(
    ("voiced", "said", "taken", "ever", "counted"),
    [
        ([], [], False, False, 0),
        ([(1.0, 1.5)], even(1, 1.0, 1.5), False, False, 1),
        ([(1.0, 1.5)], even(2, 1.0, 1.5), False, False, 1),
        ([(1.0, 1.5)], even(3, 1.0, 1.5), True, True, 1),  # three words are no backchannel
        ([(1.0, 2.0)], even(1, 1.0, 2.0), True, True, 1),  # nor is a second
        ([(1.0, 4.1)], [], True, True, 0),  # over 3 s: the floor is taken, and nothing is counted
        ([(1.0, 4.0)], even(1, 1.0, 4.0), True, True, 1),  # 3 s exactly is not over 3 s
        ([(1.0, 1.4), (2.0, 5.5), (6.0, 6.3)], [], True, True, 1),  # and what follows it is not looked at
        ([(1.0, 2.5), (4.0, 4.3)], [], False, True, 2),  # the last stretch decides
    ],
)
def test_backchannels(voiced: list[Stretch], said: list[SpokenWord], taken: bool, ever: bool, counted: int) -> None:
    found = backchannels(voiced, said)
    assert (found.took_turn, found.ever_took_turn, len(found.stretches)) == (taken, ever, counted)


def test_words_belong_to_the_stretch_they_touch() -> None:
    before, across, after = words((0.5, 1.0)), words((0.9, 1.1)), words((1.5, 1.7))
    assert not backchannels([(1.0, 1.5)], [*before, *across, *across]).took_turn  # two touch it
    assert backchannels([(1.0, 1.5)], [*across, *across, *after]).took_turn  # three: an edge shared at its end counts


def test_divergence_against_arithmetic() -> None:
    # One stretch in the first of six windows, people anywhere: p = (1, 0, …), q = 1/6 each, m = (7/12, 1/12, …).
    expected = math.sqrt((math.log(12 / 7) + math.log(2 / 7) / 6 + 5 / 6 * math.log(2)) / 2)
    assert divergence([(0.0, 0.1)], 1.0, [1, 1, 1]) == pytest.approx(expected, abs=1e-6)
    assert divergence([(0.0, 1.0)], 1.0, [0.5, 0.5]) == pytest.approx(0.0, abs=1e-6)
    assert divergence([], 1.0, [1, 1]) == 1.0
    # Nowhere near: the most that two distributions can differ, but for what interpolation smears.
    assert divergence([(0.0, 0.1)], 1.0, [0, 0, 0, 0, 0, 1]) == pytest.approx(math.sqrt(math.log(2)), abs=1e-4)


def test_overlaps_and_gaps() -> None:
    user = merged([(0.0, 2.0), (2.5, 4.0), (10.0, 12.0)], 0.6)
    agent = merged([(5.0, 8.0), (8.5, 10.4), (13.0, 15.0)], 0.5)
    assert user == [(0.0, 4.0), (10.0, 12.0)]
    assert agent == [(5.0, 10.4), (13.0, 15.0)]
    assert stop_intervals(user, agent) == [(10.0, 10.4)]
    assert response_intervals(user, agent) == [(4.0, 5.0), (12.0, 13.0)]
    assert response_intervals([(0.0, 1.0), (2.0, 3.0)], [(3.5, 4.0)]) == [(3.0, 3.5)]  # the later end, the shorter gap
    assert response_intervals(user, [(3.0, 3.5)]) == []


def test_an_event_picks_its_own_intervals() -> None:
    stops, gaps = [(1.0, 1.5), (10.0, 10.4)], [(4.0, 5.0), (11.8, 13.0)]
    assert at_event(stops, (9.5, 12.0)) == pytest.approx(0.4)
    assert at_event(stops, (2.0, 3.0)) is None
    assert after_event(gaps, (9.5, 12.0)) == pytest.approx(1.2)
    assert after_event(gaps, (20.0, 21.0)) is None


# --- hearing without their recogniser -----------------------------------------------------------------------


def test_speech_stretches_follow_silero_s_rule() -> None:
    step = 512 / RATE_HZ
    loud, soft, none = 0.9, 0.4, 0.1
    # 12 windows of speech, one that is neither, 5 of silence (the 100 ms pass in the fifth), 6 of speech (too short).
    probabilities = [none] * 4 + [loud] * 12 + [soft] + [none] * 5 + [loud] * 6 + [none] * 10
    found = speech_stretches(probabilities, len(probabilities) * 512)
    assert found == [(pytest.approx(4 * step - 0.03), pytest.approx(17 * step + 0.03))]
    # A pause of 64 ms is none; speech to the very end is closed there.
    probabilities = [loud] * 6 + [none] * 2 + [loud] * 6
    assert speech_stretches(probabilities, 14 * 512) == [(0.0, pytest.approx(14 * step))]


def test_words_are_spread_over_the_voice_by_their_length() -> None:
    said = spread("well now", [(1.0, 1.6), (2.0, 2.1)])
    assert [word.text for word in said] == ["well", "now"]
    assert [(word.start_s, word.end_s) for word in said] == [
        (1.0, pytest.approx(1.4)),
        (pytest.approx(1.4), pytest.approx(2.1)),
    ]
    # A word begins after a pause and ends before it.
    assert spread("ab cd", [(1.0, 2.0), (5.0, 6.0)])[0].end_s == pytest.approx(2.0)
    assert spread("ab cd", [(1.0, 2.0), (5.0, 6.0)])[1].start_s == pytest.approx(5.0)
    assert spread("", [(1.0, 2.0)]) == []


def test_what_is_recognised_together() -> None:
    assert grouped([(0.0, 1.0), (1.5, 2.0), (4.0, 5.0)]) == [[(0.0, 1.0), (1.5, 2.0)], [(4.0, 5.0)]]
    pieces = grouped([(0.0, 30.0)])
    assert [len(group) for group in pieces] == [1, 1, 1]
    assert pieces[-1][0] == (20.0, 30.0)


# --- the layout ----------------------------------------------------------------------------------------------


def write_sound(path: Path, seconds: float, speech: Sequence[Stretch] = (), rate_hz: int = RATE_HZ) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    on = np.zeros(len(t), dtype=bool)
    for start, end in speech:
        on |= (t >= start) & (t < end)
    soundfile.write(path, (0.3 * np.sin(2 * np.pi * 200 * t) * on).astype(np.float32), rate_hz, subtype="PCM_16")


def write_json(path: Path, found: Any) -> None:
    path.write_text(json.dumps(found), "utf-8")


def chunks(said: Sequence[SpokenWord]) -> dict[str, Any]:
    return {"text": "", "chunks": [{"text": w.text, "timestamp": [w.start_s, w.end_s]} for w in said]}


def make_sample(
    directory: Path,
    annotation: tuple[str, Any] | None,
    said: Sequence[SpokenWord] | None = None,
    *,
    input_s: float = 8.0,
    output_s: float = 8.0,
) -> Sample:
    sample = Sample(directory)
    write_sound(sample.input, input_s, [(0.5, 3.0)])
    write_sound(sample.output, output_s)
    if annotation is not None:
        write_json(directory / annotation[0], annotation[1])
    if said is not None:
        write_json(sample.words, chunks(said))
    return sample


def at(start: float, end: float) -> list[dict[str, Any]]:
    return [{"text": "[X]", "timestamp": [start, end]}]


PAUSE = ("pause.json", at(1.0, 2.0))


def test_samples_are_found_subset_by_subset_in_order(tmp_path: Path) -> None:
    for name in ("b/10", "b/9", "a/1"):
        write_sound(tmp_path / name / "input.wav", 1.0)
    write_sound(tmp_path / "b/9/clean_input.wav", 1.0)
    assert [str(sample) for sample in find_samples(tmp_path)] == ["a/1", "b/9", "b/10"]
    assert [str(sample) for sample in find_samples(tmp_path, clean=True)] == ["a/1", "b/9", "b/9 (clean)", "b/10"]
    assert [directory.name for directory in subsets(find_samples(tmp_path))] == ["a", "b"]
    assert len(find_samples(tmp_path / "b")) == 2
    with pytest.raises(DuplexError, match=r"no input\.wav"):
        find_samples(_empty(tmp_path / "none"))
    with pytest.raises(DuplexError, match="not a directory"):
        find_samples(tmp_path / "nowhere")


def _empty(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("subset", "file", "asked", "task"),
    [
        ("candor_pause_handling", "pause.json", None, "pause_handling"),
        ("candor_turn_taking", "turn_taking.json", None, "smooth_turn_taking"),
        ("synthetic_user_interruption", "interrupt.json", None, "user_interruption"),
        ("user_interruption", "metadata.json", None, "overlap"),
        ("user_interruption", "metadata.json", "user_interruption", "overlap"),
        ("user_interruption", "interrupt.json", "user_interruption", "user_interruption"),
        ("icc_backchannel", "transcription.json", None, "backchannel"),
        ("mine", "transcription.json", "backchannel", "backchannel"),
        ("talking_to_other", "metadata.json", "talking_to_other", "overlap"),
    ],
)
def test_the_task_is_told_by_the_files(tmp_path: Path, subset: str, file: str, asked: str | None, task: str) -> None:
    sample = make_sample(tmp_path / subset / "1", (file, []))
    assert task_of(tmp_path / subset, [sample], asked) == task


def test_a_subset_that_tells_nothing_needs_a_task(tmp_path: Path) -> None:
    sample = make_sample(tmp_path / "mine" / "1", None)
    with pytest.raises(DuplexError, match="--task"):
        task_of(tmp_path / "mine", [sample])


@pytest.mark.parametrize(
    ("task", "annotation", "field", "problem"),
    [
        (
            "pause_handling",
            ("pause.json", at(1.0, 8.2)),
            "[0].timestamp",
            "ends at 8.2 s, but input.wav is 8.00 s",
        ),
        ("pause_handling", ("pause.json", at(2.0, 1.0)), "[0].timestamp", "no stretch of time"),
        ("pause_handling", ("pause.json", [{"text": "[PAUSE]"}]), "[0].timestamp", "missing"),
        ("pause_handling", ("pause.json", [at(1, 2)[0], {"timestamp": [1, "2"]}]), "[1].timestamp", "two numbers"),
        ("smooth_turn_taking", ("turn_taking.json", []), None, "list"),
        ("user_interruption", ("interrupt.json", {"timestamp": [1, 2]}), None, "list"),
        ("overlap", ("metadata.json", {"timestamps": [7.0]}), "timestamps", "two numbers"),
        ("overlap", ("metadata.json", {"context_text": ""}), "timestamps", "missing"),
        ("overlap", ("metadata.json", {"timestamps": [7.0, 11.0]}), "timestamps", "ends at 11 s"),
        ("smooth_turn_taking", None, None, "not there"),
    ],
)
def test_annotations_that_do_not_fit_are_named(
    tmp_path: Path, task: Any, annotation: Any, field: str | None, problem: str
) -> None:
    sample = make_sample(tmp_path / "1", annotation)
    with pytest.raises(SampleError, match=problem.replace("[", r"\[")) as caught:
        read_spans(sample, task)
    assert caught.value.field == field
    assert caught.value.file.parent == sample.directory
    assert caught.value.file.name in str(caught.value)


def test_an_annotation_may_end_with_the_sound(tmp_path: Path) -> None:
    sample = make_sample(tmp_path / "1", ("pause.json", at(7.0, 8.04)))
    assert read_spans(sample, "pause_handling") == [(7.0, 8.04)]


# --- scores from files -------------------------------------------------------------------------------------


class ToldEar(LocalEar):
    """Hears what it was told, by file length: the voices of input and output."""

    def __init__(self, by_length_s: dict[float, list[Stretch]] | None = None, said: list[SpokenWord] | None = None):
        super().__init__()
        self.by_length_s, self.said = by_length_s or {}, said or []

    def stretches(self, samples: Samples, rate_hz: int) -> list[Stretch]:
        return self.by_length_s[round(len(samples) / rate_hz, 2)]

    def words(self, samples: Samples, rate_hz: int, from_s: float = 0.0) -> list[SpokenWord]:
        return [word for word in self.said if word.start_s >= from_s]


def test_pause_handling_is_scored_sample_by_sample_and_bad_ones_are_named(tmp_path: Path) -> None:
    make_sample(tmp_path / "1", PAUSE, even(8, 2.0, 5.0))
    make_sample(tmp_path / "2", PAUSE, even(2, 2.0, 2.5))
    make_sample(tmp_path / "3", PAUSE, [])
    make_sample(tmp_path / "4", PAUSE, [], output_s=7.0)
    make_sample(tmp_path / "5", ("pause.json", at(1.0, 9.0)), [])
    make_sample(tmp_path / "6", PAUSE, even(2, 8.0, 9.5))
    (tmp_path / "7").mkdir()
    write_sound(tmp_path / "7" / "input.wav", 8.0)
    score = score_subset(tmp_path, find_samples(tmp_path), "pause_handling", ToldEar(), words_from="given")
    assert score.values["TOR"] == [1.0, 0.0, 0.0]
    assert [(error.file.parent.name, error.file.name, error.field) for error in score.errors] == [
        ("4", "output.wav", None),
        ("5", "pause.json", "[0].timestamp"),
        ("6", "output.json", "chunks[1].timestamp"),
        ("7", "output.wav", None),
    ]
    assert "7.00 s long and input.wav 8.00 s" in str(score.errors[0])
    assert "fdb run" in str(score.errors[3])
    assert score.to_json()["measures"]["TOR"]["n"] == 3


def test_smooth_turn_taking_counts_from_the_annotated_start(tmp_path: Path) -> None:
    turn = ("turn_taking.json", at(3.0, 3.4))
    make_sample(tmp_path / "1", turn, even(5, 3.8, 6.0))
    make_sample(tmp_path / "2", turn, even(5, 2.0, 6.0))  # too early: clamped to 0
    make_sample(tmp_path / "3", turn, even(1, 4.0, 4.3))  # not taken: no latency
    score = score_subset(tmp_path, find_samples(tmp_path), "smooth_turn_taking", ToldEar())
    assert score.values["TOR"] == [1.0, 1.0, 0.0]
    assert score.values["latency"] == [pytest.approx(0.8), 0.0]


def test_interruptions_count_from_their_end_and_only_what_is_said_after_it(tmp_path: Path) -> None:
    cut_in = ("interrupt.json", [{"context": "", "interrupt": "", "timestamp": [2.0, 4.0]}])
    make_sample(tmp_path / "1", cut_in, even(5, 4.5, 7.0))
    make_sample(tmp_path / "2", cut_in, even(9, 1.0, 7.0))  # a transcript of everything, not of what came after
    make_sample(tmp_path / "3", cut_in)  # no transcript: our own, from the interruption's end on
    ear = ToldEar(said=[*even(4, 0.0, 2.0), *even(4, 5.0, 7.0)])
    score = score_subset(tmp_path, find_samples(tmp_path), "user_interruption", ear)
    assert score.values["latency"] == [pytest.approx(0.5), 0.0, pytest.approx(1.0)]
    assert len(score.notes) == 1
    assert str(tmp_path / "2" / "output.json") in score.notes[0]
    made = json.loads((tmp_path / "3" / "output.json").read_text("utf-8"))
    assert made["made_by"] == MADE_BY
    assert made["chunks"][0]["timestamp"] == [5.0, 5.5]


def test_backchannels_are_scored_with_people_s_distribution(tmp_path: Path) -> None:
    subset = tmp_path / "icc_backchannel"
    for name in ("0", "1", "2"):
        make_sample(subset / name, None, even(1, 2.0, 2.3))
    ear = ToldEar({8.0: [(2.04, 2.31), (6.0, 6.4)]})
    score = score_subset(subset, find_samples(subset), "backchannel", ear)
    assert score.values["TOR"] == [0.0, 0.0, 0.0]
    assert score.values["frequency"] == [pytest.approx(2 / 8)] * 3
    assert score.values["JSD"] == []
    assert "no JSD" in score.notes[0]
    assert score.samples["0"]["stretches"] == ((2.0, 2.3), (6.0, 6.4))  # to a tenth of a second, as in the original

    write_json(subset / "icc_gt_distribution.json", {"0": [0.5, 0.5], "1": "everywhere"})
    score = score_subset(subset, find_samples(subset), "backchannel", ear)
    # 5 of 41 windows (10, 11; 30, 31, 32: two, and three since 6.4 s opens the next) against a flat line.
    counts = np.full(41, 1e-10)
    counts[[10, 11, 30, 31, 32]] += 1
    p, q = counts / counts.sum(), np.full(41, 1 / 41)
    m = (p + q) / 2
    expected = math.sqrt(float(np.sum(p * np.log(p / m)) + np.sum(q * np.log(q / m))) / 2)
    assert score.values["JSD"] == [pytest.approx(expected, abs=1e-9)]
    assert [error.field for error in score.errors] == ["'1'", "'2'"]


def test_overlaps_are_timed_and_written_as_the_original_writes_them(tmp_path: Path) -> None:
    sample = make_sample(tmp_path / "1", ("metadata.json", {"timestamps": [4.0, 6.0]}), output_s=8.05)
    ear = ToldEar({8.0: [(0.5, 2.0), (4.1, 5.9)], 8.05: [(2.5, 4.6), (6.7, 8.0)]})
    score = score_subset(tmp_path, [sample], "overlap", ear)
    assert {name: [round(value, 3) for value in values] for name, values in score.values.items()} == {
        "stop latency, all overlaps": [0.5],
        "response latency, all gaps": [0.5, 0.8],
        "stop latency at the event": [0.5],
        "response latency after the event": [0.8],
    }
    assert json.loads(sample.intervals.read_text("utf-8")) == {
        "latency_stop_list": [[4.1, 4.6]],
        "latency_resp_list": [[2.0, 2.5], [5.9, 6.7]],
    }


def test_the_command_scores_names_what_is_wrong_and_says_so_by_its_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_sample(tmp_path / "set" / "1", PAUSE, even(8, 2.0, 5.0))
    assert fdb.main(["score", str(tmp_path), "--json", str(tmp_path / "found.json")]) == 0
    assert "1.000" in capsys.readouterr().out
    assert json.loads((tmp_path / "found.json").read_text("utf-8"))[0]["measures"]["TOR"]["mean"] == 1.0
    make_sample(tmp_path / "set" / "2", ("pause.json", at(1.0, 99.0)), [])
    assert fdb.main(["score", str(tmp_path)]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "set/2/pause.json: [0].timestamp: ends at 99 s" in out
    assert "1.000" in out  # the other one is scored all the same


# --- runs ----------------------------------------------------------------------------------------------------


class TapeCall:
    """A call to somebody who says a tone from 0.5 to 1.0 s after the file begins, wherever that lies on the call."""

    def __init__(self, late_ms: float) -> None:
        self.span = Span(340.0, 340.0)
        self.late_ms = late_ms

    async def play(self, samples: Samples) -> Span:
        self.length_ms = len(samples) * 1000.0 / SAMPLE_RATE_HZ
        self.span = Span(340.0, 340.0 + self.length_ms)
        return self.span

    async def wait_ms(self, duration_ms: float) -> None: ...

    def recording(self) -> Recording:
        stereo = np.zeros((round((self.span.end_ms + 300.0) * 24), 2), dtype=np.float32)
        first = round((self.span.start_ms + 500.0) * 24)
        stereo[first : first + 12_000, 1] = tone(0.5)
        events = (RecordedEvent(200.0, {"type": "session.created"}), RecordedEvent(900.0, {"type": "duplex.floor"}))
        return Recording(stereo, 20.0, events, WireStats(send_late_ms=self.late_ms))


class Line:
    """Opens tape calls; fails with what is in ``failures`` first."""

    def __init__(self, *failures: Exception, late_ms: float = 1.0) -> None:
        self.failures, self.late_ms, self.opened = list(failures), late_ms, 0

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[TapeCall]:
        self.opened += 1
        if self.failures and (failure := self.failures.pop(0)) is not None:
            raise failure
        yield TapeCall(self.late_ms)


async def run_all(tmp_path: Path, line: Line, **options: Any) -> RunFindings:
    return await run_samples(find_samples(tmp_path), line, **options)


@pytest.mark.parametrize(("rate_hz", "frames"), [(16_000, 35_207), (24_000, 52_801), (48_000, 100_000)])
async def test_the_output_is_aligned_as_long_and_at_the_same_rate(tmp_path: Path, rate_hz: int, frames: int) -> None:
    write_sound(tmp_path / "1" / "input.wav", frames / rate_hz, [(0.1, 1.0)], rate_hz)
    findings = await run_all(tmp_path, Line())
    assert (findings.done, findings.errors, findings.busy) == (1, [], [])
    info = soundfile.info(tmp_path / "1" / "output.wav")
    assert (info.frames, info.samplerate, info.channels, info.subtype) == (frames, rate_hz, 1, "PCM_16")
    samples, _ = read_sound(tmp_path / "1" / "output.wav")
    heard = voiced_extent(samples, rate_hz)
    assert heard is not None
    assert (heard.start_ms, heard.end_ms) == (pytest.approx(500.0, abs=10), pytest.approx(1000.0, abs=10))
    head, *events = [json.loads(line) for line in (tmp_path / "1" / "output.events.jsonl").open(encoding="utf-8")]
    assert head["wire"]["send_late_ms"] == 1.0
    assert [(event["at_ms"], event["type"]) for event in events] == [
        (-140.0, "session.created"),
        (560.0, "duplex.floor"),
    ]


async def test_a_run_goes_on_where_it_stopped_and_starts_over_when_told_to(tmp_path: Path) -> None:
    for name in ("1", "2"):
        write_sound(tmp_path / name / "input.wav", 1.5)
    line = Line()
    assert (await run_all(tmp_path, line)).done == 2
    write_sound(tmp_path / "2" / "output.wav", 0.4)  # what a run that was cut off by hand might leave
    findings = await run_all(tmp_path, line)
    assert (findings.done, findings.passed_over, line.opened) == (1, 1, 3)

    theirs, ours = tmp_path / "1" / "output.json", tmp_path / "2" / "output.json"
    write_json(theirs, chunks([]))
    write_json(ours, {**chunks([]), "made_by": MADE_BY})
    assert (await run_all(tmp_path, line, force=True)).done == 2
    assert not ours.exists()  # a transcript of the old output
    assert not theirs.exists()
    assert theirs.with_name("output.json.old").exists()
    assert find_parts(tmp_path) == []


def find_parts(place: Path) -> list[Path]:
    return list(place.rglob("*.part"))


async def test_one_bad_sample_does_not_stop_the_others(tmp_path: Path) -> None:
    for name in ("1", "2", "3", "4"):
        write_sound(tmp_path / name / "input.wav", 1.0)
    (tmp_path / "2" / "input.wav").write_text("not a sound")
    line = Line(AgentFullError("full", 0.0), None, TransportError("cut off"))  # type: ignore[arg-type]
    findings = await run_all(tmp_path, line)
    assert findings.done == 2  # the first at the second try, and the last
    assert [str(error).partition(": ")[0] for error in findings.errors] == [
        str(tmp_path / "2" / "input.wav"),
        str(tmp_path / "3" / "input.wav"),
    ]
    assert not is_answered(Sample(tmp_path / "3"))


async def test_without_a_server_the_run_ends_at_once(tmp_path: Path) -> None:
    for name in ("1", "2"):
        write_sound(tmp_path / name / "input.wav", 1.0)
    line = Line(TransportError("There is no server"), TransportError("There is no server"))
    with pytest.raises(TransportError):
        await run_all(tmp_path, line)
    assert line.opened == 1


async def test_a_machine_that_sends_late_is_reported(tmp_path: Path) -> None:
    write_sound(tmp_path / "1" / "input.wav", 1.0)
    assert [str(sample) for sample in (await run_all(tmp_path, Line(late_ms=120.0))).busy] == [f"{tmp_path.name}/1"]


async def test_a_real_server_answers_a_sample_in_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The echo agent says back what it heard, after the turn is over: into the silence at the end of the file."""
    write_sound(tmp_path / "set" / "1" / "input.wav", 3.0, [(0.2, 1.0)])
    async with running(load_config(assignments=["server.port=0", "agent.name=echo"])) as server:
        arguments = ["run", str(tmp_path), "--url", server.url]
        assert await asyncio.to_thread(fdb.main, arguments) == 0
        assert "1 of 1 samples run" in capsys.readouterr().out
        assert await asyncio.to_thread(fdb.main, arguments) == 0
        assert "0 of 1 samples run, 1 had an output already" in capsys.readouterr().out
    sample = Sample(tmp_path / "set" / "1")
    samples, rate = read_sound(sample.output)
    assert (len(samples), rate) == (3 * RATE_HZ, RATE_HZ)
    heard = voiced_extent(samples, rate)
    assert heard is not None
    assert 1000.0 < heard.start_ms < 2500.0
    events = [json.loads(line) for line in sample.events.open(encoding="utf-8")][1:]
    started = [event["at_ms"] for event in events if event["type"] == "output_audio_buffer.started"]
    assert len(started) == 1
    assert abs(started[0] - heard.start_ms) < 1000.0  # the same time line


@pytest.mark.models
def test_our_own_ears_put_words_where_the_voice_is(models: ModelStore) -> None:
    text = "What is the weather like in Paris today?"
    said = Voice(models).say(text)
    silence = np.zeros(2 * SAMPLE_RATE_HZ, dtype=np.float32)
    whole = np.concatenate([silence, said, silence])
    voiced = voiced_extent(whole)
    assert voiced is not None
    found = LocalEar(models).words(whole, SAMPLE_RATE_HZ)
    read = " ".join(word.text for word in found)
    assert SequenceMatcher(None, text.lower(), read.lower()).ratio() > 0.6, read  # both models have moods
    assert found[0].start_s == pytest.approx(voiced.start_ms / 1000.0, abs=0.15)
    last = found[-1].end_s
    assert last is not None
    assert last == pytest.approx(voiced.end_ms / 1000.0, abs=0.3)
    assert all(one.start_s <= two.start_s for one, two in itertools.pairwise(found))
    # Cut at a time, it hears only what comes after.
    assert LocalEar(models).words(whole, SAMPLE_RATE_HZ, from_s=5.5) == []
    assert LocalEar(models).words(silence, SAMPLE_RATE_HZ) == []
