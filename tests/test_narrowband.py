"""A telephone line is what it says, words are counted as a session hears them, and two runs stand side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from turns_material import said

from duplex.benchmarks import lines
from duplex.benchmarks.lines_plot import Dot, Row, save_dots
from duplex.benchmarks.listener_lines import (
    SessionEars,
    Understood,
    difference,
    spoken_by_people,
    summed,
    word_errors,
    words,
)
from duplex.benchmarks.listener_report import measured, plotted
from duplex.benchmarks.narrowband import TELEPHONE, WIDE, line_named, parsed_levels
from duplex.benchmarks.predictor_lines import over, overlap_figures, turn_figures
from duplex.benchmarks.predictor_replay import Outcome, Spoken, Verdict
from duplex.benchmarks.stimuli import Stimulus
from duplex.benchmarks.turns.contract import Limit
from duplex.benchmarks.turns.lines import LineCall
from duplex.benchmarks.turns.results import Interval, LimitVerdict, MeasureSummary, ScenarioResult, SuiteResult
from duplex.errors import ConfigError, DuplexError
from duplex.frames import SAMPLE_RATE_HZ, Samples
from duplex.recording import Recording, Span, level_dbfs, voiced_level_dbfs
from duplex.thinker_talker.gain import MOST_DB, TARGET_DBFS, VoiceGain
from duplex.turn import User


def sine(hz: float, seconds: float = 0.5, dbfs: float = -20.0) -> Samples:
    t = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    return (np.sqrt(2.0) * 10.0 ** (dbfs / 20.0) * np.sin(2.0 * np.pi * hz * t)).astype(np.float32)


def middle(samples: Samples) -> Samples:
    """Without its edges, where a filter rings."""
    return samples[len(samples) // 4 : -len(samples) // 4]


# --- the line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hz", "least_db", "most_db"),
    [
        (50, -120.0, -35.0),
        (180, -30.0, -10.0),
        (300, -1.5, 0.2),
        (1000, -0.3, 0.3),
        (3000, -0.5, 0.3),
        (3350, -2.0, 0.2),
        (3900, -120.0, -30.0),
        (5000, -120.0, -40.0),
        (9000, -120.0, -40.0),
    ],
)
def test_the_band_is_a_telephones(hz: float, least_db: float, most_db: float) -> None:
    heard = TELEPHONE.with_speech_at(-20.0).through(sine(hz))
    assert least_db <= level_dbfs(middle(heard)) - -20.0 <= most_db


def test_speech_is_ten_decibels_quieter_on_it() -> None:
    assert level_dbfs(middle(TELEPHONE.through(sine(1000.0)))) == pytest.approx(-30.0, abs=0.3)
    assert level_dbfs(middle(WIDE.with_speech_at(-40.0).through(sine(1000.0)))) == pytest.approx(-40.0, abs=0.01)


def test_it_has_the_noise_of_eight_bits() -> None:
    """µ-law's signal to distortion is about 37 dB over a wide range of levels; 16 bits would have 70."""
    clean = sine(1000.0, dbfs=-30.0)
    heard = TELEPHONE.through(sine(1000.0))
    noise_db = level_dbfs(middle(heard - clean)) - level_dbfs(middle(clean))
    assert -42.0 < noise_db < -30.0


def test_it_adds_no_delay() -> None:
    rng = np.random.default_rng(0)
    noise = np.convolve(rng.standard_normal(SAMPLE_RATE_HZ // 2), np.ones(12) / 12, "same").astype(np.float32) * 0.1
    heard = TELEPHONE.through(noise)
    lags = range(-24, 25)
    found = [float(np.dot(np.roll(heard, -lag)[100:-100], noise[100:-100])) for lag in lags]
    assert lags[int(np.argmax(found))] == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5000))
def test_what_comes_out_is_as_long_as_what_went_in(n: int) -> None:
    heard = TELEPHONE.through(np.full(n, 0.1, np.float32))
    assert (len(heard), heard.dtype) == (n, np.float32)


def test_silence_stays_silent_and_a_wide_line_changes_nothing() -> None:
    assert not TELEPHONE.through(np.zeros(4800, np.float32)).any()
    loud = sine(440.0)
    assert WIDE.through(loud) is loud
    assert (WIDE.label, TELEPHONE.label) == ("wide", "telephone -30 dBFS")


def test_lines_and_levels_are_read_from_the_command_line() -> None:
    assert line_named("telephone") is TELEPHONE
    assert parsed_levels("-20,-35.5") == [-20.0, -35.5]
    with pytest.raises(ConfigError, match="wide, telephone"):
        line_named("carrier pigeon")
    for wrong in ("loud", "-20;-30", "5", "-90"):
        with pytest.raises(ConfigError, match="levels"):
            parsed_levels(wrong)


# --- a call over it -----------------------------------------------------------------------------------------


class FakeCall:
    """Keeps what was played; its clock of sound runs ``speed`` fast."""

    def __init__(self, speed: float = 1.0) -> None:
        self.speed, self.played, self.sent = speed, [np.zeros(2400, np.float32)], list[Any]()

    async def play(self, samples: Samples) -> Span:
        start = sum(map(len, self.played))
        self.played += [samples, np.zeros(2400, np.float32)]
        ms = [at * 1000.0 / SAMPLE_RATE_HZ / self.speed for at in (start, start + len(samples))]
        return Span(ms[0], ms[1])

    def send(self, event: Mapping[str, Any]) -> None:
        self.sent.append(event)

    def recording(self) -> Recording:
        left = np.concatenate(self.played)
        left = left[: round(len(left) / self.speed)]
        return Recording(np.stack([left, np.full_like(left, 0.5)], axis=1), 20.0)


@pytest.mark.parametrize("in_thread", [True, False])
async def test_the_line_is_between_and_the_recording_has_what_was_said(in_thread: bool) -> None:
    inner = FakeCall()
    call = LineCall(inner, TELEPHONE, in_thread=in_thread)  # type: ignore[arg-type]
    first, second = sine(1000.0), sine(9000.0)
    await call.play(first)
    span = await call.play(second)
    call.send({"type": "x"})
    assert inner.sent == [{"type": "x"}]
    assert level_dbfs(middle(inner.played[1])) == pytest.approx(-30.0, abs=0.3)
    assert level_dbfs(inner.played[3]) < -60.0
    recording = call.recording()
    start = round(span.start_ms * SAMPLE_RATE_HZ / 1000.0)
    assert np.array_equal(recording.user[2400 : 2400 + len(first)], first)
    assert np.array_equal(recording.user[start : start + len(second)], second)
    assert np.all(recording.agent == 0.5)


async def test_on_a_skewed_clock_what_was_said_still_fits() -> None:
    inner = FakeCall(speed=1.01)
    call = LineCall(inner, TELEPHONE)  # type: ignore[arg-type]
    span = await call.play(sine(1000.0))
    user = call.recording().user
    n = round((span.end_ms - span.start_ms) * SAMPLE_RATE_HZ / 1000.0)
    assert n == round(len(sine(1000.0)) / 1.01)
    start = round(span.start_ms * SAMPLE_RATE_HZ / 1000.0)
    assert level_dbfs(middle(user[start : start + n])) == pytest.approx(-20.0, abs=0.2)


# --- words --------------------------------------------------------------------------------------------------


def test_words_are_compared_as_they_sound() -> None:
    assert words("Uh, it’s OK — 7 of Mr. Clubs!") == ["it's", "okay", "seven", "of", "mister", "clubs"]
    assert words("Four, seven, 2: 4 7 2, 472") == ["four", "seven", "two"] * 3
    assert words("I'm gonna realise.") == words("um, I'm going to realize")
    assert word_errors(["a", "b", "c"], ["a", "x", "c", "d"]) == 2
    assert word_errors([], ["a", "b"]) == 2


class Loud:
    """Voice activity by level alone, at the place of Silero: at least −45 dBFS is a voice."""

    def open(self) -> Loud:
        return self

    def push(self, window: Samples) -> list[float]:
        return [1.0 if level_dbfs(window) >= -45.0 else 0.0]


class Repeats:
    """At the place of the listener: writes down the same, and how long the sound was."""

    def __init__(self, text: str) -> None:
        self.said, self.lengths = text, list[int]()

    def recognize(self, samples: Samples) -> SimpleNamespace:
        self.lengths.append(len(samples))
        return SimpleNamespace(tokens=[])

    def text(self, _tokens: Sequence[int]) -> str:
        return self.said


def stimulus(text: str = "one two three", seconds: float = 1.0) -> Stimulus:
    made = said(text, seconds * 1000.0)
    return Stimulus("made", "tones", text, made.samples, made.voiced)


def test_a_voice_that_is_too_faint_is_words_that_were_missed() -> None:
    listener = Repeats("One, two, free.")
    ears = SessionEars(Loud(), listener)  # type: ignore[arg-type]
    loud, faint = WIDE, WIDE.with_speech_at(-50.0)
    heard = ears.hear(stimulus(), loud)
    assert (heard.errors, heard.words, heard.noticed) == (1, 3, True)
    assert heard.onset_ms is not None
    assert heard.offset_ms is not None
    assert abs(heard.onset_ms) <= 40.0
    assert abs(heard.offset_ms) <= 40.0
    # The voice, what is recognised before it, and a tenth of a second after it.
    assert listener.lengths[0] / 16_000 == pytest.approx(1.0 + 12 * 0.032 + 0.1, abs=0.08)
    missed = ears.hear(stimulus(), faint)
    assert (missed.errors, missed.noticed, missed.onset_ms) == (3, False, None)
    assert ears.hear(stimulus(), faint, VoiceGain(db=20.0)).noticed


def understood(*errors: int) -> list[Understood]:
    return [Understood(f"r{k}", "", "", 10, each, each < 10) for k, each in enumerate(errors)]


def test_word_errors_are_summed_over_words_and_drawn_over_recordings() -> None:
    found = summed(understood(0, 1, 2, 10))
    assert (found.errors, found.words, found.recordings, found.unnoticed) == (13, 40, 4, 1)
    assert found.rate == 0.325
    assert found.interval.low < 0.325 < found.interval.high
    assert difference(understood(1, 2), understood(1, 2)) == Interval(0.0, 0.0)
    assert difference(understood(3, 3, 3), understood(1, 1, 1)) == Interval(pytest.approx(0.2), pytest.approx(0.2))
    with pytest.raises(ValueError, match="nothing"):
        summed([])


def test_every_line_and_level_is_measured_and_compared_with_the_wide_one() -> None:
    ears = SessionEars(Loud(), Repeats("one two three"))  # type: ignore[arg-type]
    console = Console(file=StringIO())
    found, heard = measured({"people": [stimulus()]}, [WIDE, TELEPHONE], [-20.0, -50.0], ears, console)
    assert [(one.line, one.level_dbfs, one.errors.errors) for one in found] == [
        ("wide", -20.0, 0),
        ("telephone", -20.0, 0),
        ("wide", -50.0, 3),
        ("telephone", -50.0, 3),
    ]
    assert [one.more is None for one in found] == [True, False, False, False]
    assert found[2].more == Interval(1.0, 1.0)
    assert len(heard) == 4
    assert [row.label for row in plotted(found) if "wrong" in row.unit] == ["people, -20 dBFS", "people, -50 dBFS"]


def test_the_people_of_a_split_are_counted_once_and_only_with_their_words() -> None:
    one = stimulus("hello there")
    some = [one, replace(one, text="", use="cough"), replace(one, use="monologue"), replace(one, use="backchannel")]
    assert [each.use for each in spoken_by_people(SimpleNamespace(recordings=some))] == ["turn", "backchannel"]  # type: ignore[arg-type]


# --- the detector's gain --------------------------------------------------------------------------------------


def spoke(gain: VoiceGain, level_dbfs: float, windows: int, probability: float = 0.9) -> list[float]:
    """The gain after each window of voice (dB)."""
    found = []
    for _ in range(windows):
        gain.learn(level_dbfs, probability)
        found.append(gain.db)
    return found


@pytest.mark.parametrize(("speech_dbfs", "gain_db"), [(-10.0, 0.0), (-20.0, 0.0), (-30.0, 10.0), (-55.0, MOST_DB)])
def test_the_gain_brings_speech_to_its_target_and_no_further(speech_dbfs: float, gain_db: float) -> None:
    gain = VoiceGain()
    found = spoke(gain, speech_dbfs, 200)
    assert found[-1] == pytest.approx(gain_db, abs=0.01)
    assert found == sorted(found)  # it does not overshoot
    assert max(np.diff([0.0, *found])) <= 0.25 + 1e-9
    window = sine(1000.0, 0.032, speech_dbfs)
    assert level_dbfs(gain.apply(window)) == pytest.approx(speech_dbfs + gain_db, abs=0.05)


def test_the_gain_stands_still_in_pauses_noise_and_silence() -> None:
    gain = VoiceGain()
    spoke(gain, -30.0, 200)
    before = gain.db
    for level, probability in ((-70.0, 0.9), (-35.0, 0.2), (-120.0, 0.0), (-15.0, 0.49)):
        assert set(spoke(gain, level, 100, probability)) == {before}
    assert set(spoke(gain, TARGET_DBFS, 500)) != {before}  # a louder person is another matter
    assert gain.db == pytest.approx(0.0, abs=0.01)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-120.0, 0.0), st.floats(0.0, 1.0)), max_size=60))
def test_whatever_it_hears_it_is_bounded_and_slow_and_never_clips(heard: list[tuple[float, float]]) -> None:
    gain, last = VoiceGain(), 0.0
    for level, probability in heard:
        gain.learn(level, probability)
        assert 0.0 <= gain.db <= MOST_DB
        assert abs(gain.db - last) <= 0.25 + 1e-9
        last = gain.db
    assert np.max(np.abs(gain.apply(np.array([1.0, -1.0, 0.5], np.float32)))) <= 1.0
    gain.reset()
    assert gain == VoiceGain()


# --- the predictor's figures ---------------------------------------------------------------------------------


def outcome(taken: int, pauses: int, delay_s: float | None) -> Outcome:
    spans = tuple(Span(k * 100.0, k * 100.0 + 50.0) for k in range(pauses))
    return Outcome(Spoken("x", np.zeros(1, np.float32), 0.0, spans), spans[:taken], delay_s, ())


def test_turns_are_takeovers_missed_ends_and_waits() -> None:
    figures = {f.measure: f for f in turn_figures({"plain": [outcome(0, 0, 0.3)], "um": [outcome(1, 2, None)]})}
    assert "plain: takeover" not in figures
    assert (figures["um: takeover"].value, figures["um: takeover"].n) == (50.0, 2)
    assert (figures["um: end missed"].value, figures["plain: end missed"].value) == (100.0, 0.0)
    assert figures["plain: delay p50"].value == 300.0


def test_what_is_said_over_us_is_timed_from_its_first_voiced_sample() -> None:
    yielded, kept = Verdict(User.INTERRUPTING, 0.56, "stop"), Verdict(User.BACKCHANNEL, 0.4, "mm")
    some = {"stop": [(yielded, 60.0), (kept, 60.0)], "backchannel": [(kept, 60.0)]}
    figures = {f.measure: f for f in overlap_figures(some)}
    assert (figures["stop: yielded to"].value, figures["backchannel: yielded to"].value) == (50.0, 0.0)
    assert figures["stop: decided after p50"].value == pytest.approx(500.0)


def test_over_a_line_the_moments_stay() -> None:
    spoken = Spoken("x", sine(1000.0), 444.0, (Span(1.0, 2.0),))
    heard = over(spoken, TELEPHONE)
    assert (heard.end_ms, heard.pauses) == (444.0, spoken.pauses)
    assert voiced_level_dbfs(heard.samples) == pytest.approx(-30.0, abs=0.5)


# --- side by side --------------------------------------------------------------------------------------------


def summary(*values: float, share: bool = False) -> MeasureSummary:
    mean = sum(values) / len(values)
    some = {"mean": Interval(mean - 0.1, mean + 0.1), "p95": Interval(mean, mean + 50.0)}
    top = max(values)
    return MeasureSummary(len(values), mean, min(values), mean, top, top, top, sum(values), share, some, values)


def run(door: str, number: int = 7, stop_ms: float = 200.0) -> SuiteResult:
    limits = (Limit("stop_ms", "p95", at_most=350.0), Limit("yielded", "mean", at_least=0.98))
    measures = {"stop_ms": summary(stop_ms, stop_ms), "yielded": summary(1.0, 1.0, share=True)}
    verdicts = tuple(
        LimitVerdict(limit, measures[limit.measure].statistic(limit.statistic), stop_ms < 350.0) for limit in limits
    )
    row = ScenarioResult(number, "interruption", "pass" if stop_ms < 350.0 else "miss", verdicts, measures, ())
    about = {"cpu": "a machine", "cores": 2}
    return SuiteResult("0", about, {"before": [0.1]}, {}, door, 1, "reporting", False, "now", 1.0, (row,))


def test_two_runs_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for name, result in (("wide", run("webrtc")), ("narrow", run("webrtc, telephone line", stop_ms=400.0))):
        files.append(str(tmp_path / f"{name}.json"))
        result.save(Path(files[-1]))
    out = ["--json", str(tmp_path / "both.json"), "--plot", str(tmp_path / "both.png")]
    assert lines.main([*files, *out]) == 0
    text = capsys.readouterr().out
    for wanted in ("webrtc, telephone line", "p95 ≤ 350", "200", "400", "100 %", "pass", "miss"):
        assert wanted in text
    found = json.loads((tmp_path / "both.json").read_text())
    assert [row["limit"]["measure"] for row in found["rows"]] == ["stop_ms", "yielded"]
    assert found["rows"][0]["cells"]["webrtc, telephone line"]["value"] == 400.0
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_compared_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = tmp_path / "alone.json"
    run("webrtc").save(alone)
    assert lines.main([str(alone)]) == 1
    assert "at least two" in capsys.readouterr().out
    with pytest.raises(DuplexError, match="no scenario in common"):
        lines.compared({"a": run("a", 7), "b": run("b", 8)})
    assert list(lines.named([run("webrtc"), run("webrtc")])) == ["webrtc", "webrtc (2)"]


def test_shares_and_milliseconds_have_a_panel_each() -> None:
    rows = lines.plotted(lines.compared({"a": run("a"), "b": run("b")}))
    assert [(row.label, row.unit, row.limit) for row in rows] == [
        ("7 stop_ms p95", "ms", 350.0),
        ("7 yielded mean", "%", pytest.approx(98.0)),
    ]
    assert [dot.series for dot in rows[0].dots] == ["a", "b"]


def test_a_picture_of_nothing_is_not_made(tmp_path: Path) -> None:
    save_dots([Row("x", "ms", ())], tmp_path / "none.png", "nothing")
    assert not (tmp_path / "none.png").exists()
    save_dots([Row("x", "ms", (Dot("a", 0.0),))], tmp_path / "one.png", "zero")
    assert (tmp_path / "one.png").exists()
