"""The echo score on seeded echo paths: our own voice is told from a person's, with and without a known delay."""

from __future__ import annotations

import importlib.util
import queue
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from duplex.benchmarks.echo_paths import EchoPath, Line
from duplex.errors import AgentFaultError
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Samples
from duplex.thinker_talker.ear import EarWorker, Window
from duplex.thinker_talker.echo_score import MAX_DELAY_MS, WINDOW_SAMPLES, EchoEstimate, EchoScore
from duplex.thinker_talker.silero import SileroModel
from duplex.weights import ModelStore

SECOND = SAMPLE_RATE_HZ
WINDOWS = 16_000 / WINDOW_SAMPLES  # a second
ECHO = 0.4  # from here on a window is taken for our own voice
PATIENCE_S = 20.0


def recording(name: str, start_s: float, seconds: float) -> Samples:
    """A reader from the package of recordings, at −20 dBFS: float32[n] at 24 kHz."""
    [package] = importlib.util.find_spec("moonshine_voice").submodule_search_locations
    with soundfile.SoundFile(Path(package) / "assets" / name) as file:
        file.seek(round(start_s * file.samplerate))
        samples = file.read(round(seconds * file.samplerate), dtype="float32", always_2d=True).mean(axis=1)
        samples = soxr.resample(samples, file.samplerate, SECOND)
    return (samples * 0.1 / np.sqrt(np.mean(samples**2))).astype(np.float32)


@pytest.fixture(scope="module")
def ours() -> Samples:
    """Five seconds of one reader: our voice."""
    return recording("two_cities.wav", 0.5, 5.0)


@pytest.fixture(scope="module")
def theirs() -> Samples:
    """Five seconds of another: the person's."""
    return recording("beckett.wav", 0.0, 5.0)


def estimates(heard: Samples, played: Samples, score: EchoScore | None = None) -> list[EchoEstimate]:
    score = score or EchoScore()
    heard_16k, played_16k = (soxr.resample(s, SECOND, 16_000).astype(np.float32) for s in (heard, played))
    starts = range(0, len(heard_16k) - WINDOW_SAMPLES + 1, WINDOW_SAMPLES)
    return [score.push(heard_16k[i : i + WINDOW_SAMPLES], played_16k[i : i + WINDOW_SAMPLES]) for i in starts]


def loud(samples: Samples, below_peak_db: float = 20.0) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Per window of 32 ms, whether there is something to judge."""
    size = WINDOW_SAMPLES * SECOND // 16_000
    levels = np.square(samples[: len(samples) // size * size]).reshape(-1, size).mean(axis=1)
    return np.asarray(levels > levels.max() * 10 ** (-below_peak_db / 10))


def test_a_player_whose_buffer_moves_is_followed(ours: Samples) -> None:
    heard, echo = EchoPath(-10.0, 120.0, wobble_ms=25.0, seed=5).heard(ours)
    found = estimates(heard, ours)
    judged = loud(echo)[: len(found)]
    judged[: round(0.4 * WINDOWS)] = False
    strangers = np.array([estimate.score < ECHO for estimate in found]) & judged
    in_a_row = strangers[:-3] & strangers[1:-2] & strangers[2:-1] & strangers[3:]
    assert not in_a_row.any()  # four are what an overlap takes to begin
    assert np.mean(strangers[judged]) < 0.06
    assert found[-1].line_echoes


def test_a_line_is_taken_to_echo_until_we_were_heard_to_speak_without(ours: Samples) -> None:
    score = EchoScore()
    silent = np.zeros(WINDOW_SAMPLES, dtype=np.float32)
    played = soxr.resample(ours, SECOND, 16_000).astype(np.float32)
    told = [
        score.push(silent, played[i : i + WINDOW_SAMPLES], voice=False).line_echoes
        for i in range(0, len(played) - WINDOW_SAMPLES, WINDOW_SAMPLES)
    ]
    assert told[0]
    assert not told[-1]
    assert 0.8 <= told.index(False) / WINDOWS <= 2.0


@pytest.mark.parametrize("line", ["pcm", "opus", "phone"])
@pytest.mark.parametrize(("level_db", "delay_ms"), [(-10.0, 40.0), (-20.0, 120.0), (-30.0, 250.0), (-20.0, 600.0)])
def test_echo_alone_is_echo_from_the_first_quarter_second(
    ours: Samples, level_db: float, delay_ms: float, line: Line
) -> None:
    path = EchoPath(level_db, delay_ms, line, drive=1.5, seed=3)
    heard, echo = path.heard(ours)
    found = estimates(heard, ours)
    judged = loud(echo)[: len(found)]
    judged[: round((delay_ms / 1000 + 0.25) * WINDOWS)] = False
    scores = np.array([estimate.score for estimate in found])[judged]
    assert np.mean(scores >= ECHO) > 0.98
    assert np.median(scores) > 0.8
    line_delay_ms = {"pcm": 0.0, "opus": 20.0, "phone": 5.0}[line]
    assert found[-1].delay_ms is not None
    assert -3.0 <= found[-1].delay_ms - delay_ms <= line_delay_ms + 3.0


def test_a_reverberant_room_is_learnt(ours: Samples) -> None:
    heard, echo = EchoPath(-20.0, 120.0, "opus", dry_db=0.0, decay_s=0.4, seed=5).heard(ours)
    scores = np.array([estimate.score for estimate in estimates(heard, ours)])
    judged = loud(echo)[: len(scores)]
    early, late = scores[: len(scores) // 3], scores[len(scores) // 2 :]
    assert np.mean(early[judged[: len(early)]] >= ECHO) > 0.8
    assert np.mean(late[judged[len(scores) // 2 :]] >= ECHO) > 0.95


def test_a_person_is_no_echo_while_we_speak_without_any(ours: Samples, theirs: Samples) -> None:
    scores = [estimate.score for estimate in estimates(theirs, ours)]
    assert np.mean(np.array(scores) >= ECHO) < 0.01
    assert all(estimate.delay_ms is None for estimate in estimates(theirs, ours)[:30])


@pytest.mark.parametrize("above_db", [5.0, 10.0])
def test_a_person_over_the_echo_is_noticed_within_200_ms(ours: Samples, theirs: Samples, above_db: float) -> None:
    starts = 2.5
    person = np.zeros_like(ours)
    voice = theirs[: len(ours) - round(starts * SECOND)] * np.float32(10 ** ((above_db - 20.0) / 20.0))
    person[len(ours) - len(voice) :] = voice
    heard, _ = EchoPath(-20.0, 120.0, "opus", seed=3).heard(ours, person)
    scores = np.array([estimate.score for estimate in estimates(heard, ours)])
    onset = int(np.argmax(loud(person)))
    assert np.mean(scores[round(0.5 * WINDOWS) : onset] >= ECHO) > 0.95
    assert (scores[onset : onset + round(0.2 * WINDOWS)] < ECHO).any()


def test_a_delay_that_changes_in_the_call_is_found_again(ours: Samples) -> None:
    first, _ = EchoPath(-20.0, 60.0, seed=3).heard(ours)
    second, echo = EchoPath(-20.0, 210.0, seed=3).heard(ours)
    score = EchoScore()
    assert estimates(first, ours, score)[-1].delay_ms == pytest.approx(60.0, abs=3.0)
    found = estimates(second, ours, score)
    assert found[-1].delay_ms == pytest.approx(210.0, abs=3.0)
    judged = loud(echo)[: len(found)]
    judged[: round(0.6 * WINDOWS)] = False
    assert np.mean(np.array([estimate.score for estimate in found])[judged] >= ECHO) > 0.95


def test_what_the_first_reply_taught_serves_from_the_first_window_of_the_second(ours: Samples) -> None:
    heard, echo = EchoPath(-20.0, 120.0, seed=3).heard(ours)
    score = EchoScore()
    estimates(heard, ours, score)
    silence = np.zeros(SECOND, dtype=np.float32)
    assert all(estimate.score == 0.0 for estimate in estimates(silence, silence, score)[-3:])
    scores = np.array([estimate.score for estimate in estimates(heard, ours, score)])
    onset = int(np.argmax(loud(echo, 10.0)))
    assert (scores[onset : onset + 4] >= ECHO).all()


def test_nothing_is_echo_while_we_are_silent(theirs: Samples) -> None:
    assert {estimate.score for estimate in estimates(theirs, np.zeros_like(theirs))} == {0.0}


def test_a_tone_of_ours_is_not_found_in_a_voice_nor_another_tone(theirs: Samples) -> None:
    """A tone looks alike at every delay; it must not explain what it is not part of."""
    t = np.arange(len(theirs)) / SECOND
    tone, other = (0.1 * np.sin(2 * np.pi * hz * t).astype(np.float32) for hz in (440.0, 523.0))
    assert np.mean([estimate.score >= ECHO for estimate in estimates(theirs, tone)]) < 0.02
    assert np.mean([estimate.score >= ECHO for estimate in estimates(other, tone)]) < 0.02


def test_windows_that_are_no_voice_are_followed_but_not_judged(ours: Samples) -> None:
    heard, _ = EchoPath(-20.0, 120.0, seed=3).heard(ours)
    score = EchoScore()
    windows = [s.reshape(-1, WINDOW_SAMPLES) for s in (_cut_16k(heard), _cut_16k(ours))]
    assert {score.push(h, p, voice=False).score for h, p in zip(*windows, strict=True)} == {0.0}
    assert score.delay_ms is None


def test_reset_forgets_the_call(ours: Samples) -> None:
    heard, _ = EchoPath(-20.0, 120.0, seed=3).heard(ours[: 2 * SECOND])
    score = EchoScore()
    fresh = estimates(heard, ours[: 2 * SECOND], score)
    score.reset()
    assert score.delay_ms is None
    assert estimates(heard, ours[: 2 * SECOND], score) == fresh


def test_the_residual_is_the_level_of_what_is_left(ours: Samples) -> None:
    heard, _ = EchoPath(-20.0, 120.0, dry_db=40.0, seed=3).heard(ours)
    left = [estimate.residual_dbfs for estimate in estimates(heard, ours)[40:]]
    assert np.median(left) < 20.0 * np.log10(np.sqrt(np.mean(heard**2))) - 10.0
    silent = np.zeros_like(ours)
    [*_, last] = estimates(ours, silent)
    assert last.residual_dbfs > -60.0


@pytest.mark.parametrize("shape", [(511,), (512, 1), (0,)])
def test_windows_of_another_length_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="512"):
        EchoScore().push(np.zeros(shape, dtype=np.float32), np.zeros(512, dtype=np.float32))
    assert MAX_DELAY_MS == 640.0


def _cut_16k(samples: Samples) -> Samples:
    narrow = soxr.resample(samples, SECOND, 16_000).astype(np.float32)
    return narrow[: len(narrow) // WINDOW_SAMPLES * WINDOW_SAMPLES]


# --- in the ear -------------------------------------------------------------------------------------


@pytest.fixture
def worker(models: ModelStore) -> Iterator[EarWorker]:
    worker = EarWorker(SileroModel(models.path("silero-vad") / "silero_vad.onnx"))
    yield worker
    worker.close()


def windows_of(worker: EarWorker, heard: Samples, played: Samples | None) -> list[Window]:
    told: queue.Queue[Window | AgentFaultError] = queue.Queue()
    ear = worker.open(told.put)
    for start in range(0, len(heard) - PACKET_SAMPLES + 1, PACKET_SAMPLES):
        cut = slice(start, start + PACKET_SAMPLES)
        ear.hear(start, heard[cut], None if played is None else played[cut])
    found: list[Window] = []
    while len(found) < int(len(heard) / SECOND * WINDOWS) - 1:
        window = told.get(timeout=PATIENCE_S)
        assert isinstance(window, Window)
        found.append(window)
    ear.close()
    return found


@pytest.mark.models
def test_the_ear_says_which_voice_is_ours(worker: EarWorker, ours: Samples, theirs: Samples) -> None:
    heard, _ = EchoPath(-10.0, 120.0, "opus", seed=3).heard(ours)
    own = [window.echo for window in windows_of(worker, heard, ours)[12:] if window.probability > 0.6]
    assert len(own) > 50
    assert np.mean(np.array(own) >= ECHO) > 0.98
    person = [window.echo for window in windows_of(worker, theirs, ours) if window.probability > 0.6]
    assert len(person) > 20
    assert np.mean(np.array(person) >= ECHO) < 0.02


@pytest.mark.models
def test_an_ear_without_a_reference_hears_no_echo(worker: EarWorker, ours: Samples) -> None:
    assert {window.echo for window in windows_of(worker, ours, None)} == {0.0}
