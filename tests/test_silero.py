from __future__ import annotations

import importlib.util
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from duplex.errors import WeightsCorruptError, WeightsMissingError
from duplex.thinker_talker.silero import CONTEXT_SAMPLES, WINDOW_SAMPLES, SileroModel, SileroState

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def model(models) -> SileroModel:
    return SileroModel(models.path("silero-vad") / "silero_vad.onnx")


@pytest.fixture(scope="module")
def speech() -> npt.NDArray[np.float32]:
    """Ten seconds of a man reading six short sentences with pauses: float32[n] at 16 kHz."""
    [package] = importlib.util.find_spec("moonshine_voice").submodule_search_locations
    samples, rate_hz = soundfile.read(Path(package) / "assets" / "beckett.wav", dtype="float32")
    assert rate_hz == 16_000
    return samples


@settings(deadline=None, max_examples=25)
@given(cuts=st.lists(st.integers(0, 16_000), max_size=12))
def test_the_answer_does_not_depend_on_how_the_audio_is_cut(
    model: SileroModel, speech: npt.NDArray[np.float32], cuts: list[int]
) -> None:
    audio = speech[16_000:32_000]
    whole = model.open().push(audio)
    stream = model.open()
    streamed: list[float] = []
    for piece in np.split(audio, sorted(cuts)):
        streamed += stream.push(piece)
    assert len(whole) == 16_000 // WINDOW_SAMPLES
    assert streamed == whole
    assert stream.pending_samples == 16_000 % WINDOW_SAMPLES


def test_hears_speech_and_nothing_else(model: SileroModel, speech: npt.NDArray[np.float32]) -> None:
    in_speech = np.array(model.open().push(speech))
    assert 0.35 < (in_speech > 0.5).mean() < 0.95  # sentences, and the pauses between them
    assert in_speech.max() > 0.98
    noise = np.random.default_rng(0).normal(0.0, 0.01, 48_000).astype(np.float32)
    assert max(model.open().push(noise)) < 0.5
    assert max(model.open().push(np.zeros(48_000, dtype=np.float32))) < 0.1


def test_each_window_hears_the_end_of_the_one_before(model: SileroModel, speech: npt.NDArray[np.float32]) -> None:
    """The network takes 64 samples of context; called without, it hears nothing in the loudest speech."""
    state = SileroState()
    for start in range(16_000, 32_000, WINDOW_SAMPLES):
        window = speech[start : start + WINDOW_SAMPLES]
        before = state.context
        model.probability(window, state)
        assert state.context[0].tolist() == window[-CONTEXT_SAMPLES:].tolist()
        assert state.context is not before
    assert state.hidden.any()


def test_reset_forgets_everything(model: SileroModel, speech: npt.NDArray[np.float32]) -> None:
    stream = model.open()
    fresh = stream.push(speech[:20_000])
    assert stream.push(speech[:20_000]) != fresh
    stream.reset()
    assert stream.push(speech[:20_000]) == fresh


def test_streams_on_two_threads_do_not_disturb_each_other(model: SileroModel, speech: npt.NDArray[np.float32]) -> None:
    halves = [speech[:64_000], speech[64_000:128_000]]
    alone = [model.open().push(half) for half in halves]
    together: dict[int, list[float]] = {}

    def listen(index: int) -> None:
        together[index] = model.open().push(halves[index])

    threads = [threading.Thread(target=listen, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[0], together[1]] == alone


@pytest.mark.parametrize("bad", [np.zeros(512), np.zeros((1, 512), dtype=np.float32)], ids=["float64", "2-d"])
def test_audio_of_the_wrong_kind_is_refused(model: SileroModel, bad: npt.NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match=r"expected float32\[n\]"):
        model.open().push(bad)


def test_a_missing_or_broken_file_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissingError, match="duplex models pull"):
        SileroModel(tmp_path / "silero_vad.onnx")
    (tmp_path / "silero_vad.onnx").write_bytes(b"not a network")
    with pytest.raises(WeightsCorruptError, match="duplex models"):
        SileroModel(tmp_path / "silero_vad.onnx")
