from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import soxr

from duplex.thinker_talker.smart_turn import HEARD_SAMPLES, SmartTurn, left_padded, log_mel

PAUSE = np.zeros(3200, dtype=np.float32)  # 200 ms: when the model is asked


@pytest.fixture(scope="module")
def model(models) -> SmartTurn:
    return SmartTurn(models.path("smart-turn") / "smart-turn-v3.2-cpu.onnx")


@pytest.fixture(scope="module")
def reading() -> npt.NDArray[np.float32]:
    """A woman reading the opening of A Tale of Two Cities: float32[n] at 16 kHz."""
    [package] = importlib.util.find_spec("moonshine_voice").submodule_search_locations
    samples, rate_hz = soundfile.read(Path(package) / "assets" / "two_cities.wav", dtype="float32")
    return soxr.resample(samples, rate_hz, 16_000)


def whisper_features_by_the_book(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Whisper's log-mel features from their definition, one frame and one band at a time, in float64."""
    x = samples.astype(np.float64)
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-7)
    x = np.concatenate((x[200:0:-1], x, x[-2:-202:-1]))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)

    def hz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    top = 15 + 27 * np.log(8.0) / np.log(6.4)
    edges = [hz(top * i / 81) for i in range(82)]
    fft_hz = np.arange(201) * 40.0
    features = np.zeros((80, 800))
    for frame in range(800):
        power = np.abs(np.fft.fft(x[frame * 160 : frame * 160 + 400] * window)[:201]) ** 2
        for band in range(80):
            low, mid, high = edges[band : band + 3]
            weight = np.interp(fft_hz, [low, mid, high], [0.0, 2 / (high - low), 0.0], left=0.0, right=0.0)
            features[band, frame] = np.log10(max(1e-10, float(power @ weight)))
    return (np.maximum(features, features.max() - 8) + 4) / 4


def test_features_follow_their_definition() -> None:
    rng = np.random.default_rng(3)
    t = np.arange(HEARD_SAMPLES) / 16_000
    samples = (0.3 * np.sin(2 * np.pi * 300 * t * (1 + t / 8)) + rng.normal(0, 0.01, HEARD_SAMPLES)).astype(np.float32)
    samples[:40_000] = 0.0
    features = log_mel(samples)
    assert features.shape == (80, 800)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, whisper_features_by_the_book(samples), atol=2e-3)


def test_the_end_of_the_audio_is_always_at_the_end() -> None:
    short = np.arange(1, 4, dtype=np.float32)
    assert left_padded(short)[-3:].tolist() == [1, 2, 3]
    assert not left_padded(short)[:-3].any()
    long = np.arange(HEARD_SAMPLES + 5, dtype=np.float32)
    assert left_padded(long)[0] == 5
    assert left_padded(long).shape == (HEARD_SAMPLES,)


@pytest.mark.parametrize("bad", [np.zeros(0, dtype=np.float32), np.zeros((1, 9), dtype=np.float32)])
def test_audio_of_the_wrong_shape_is_refused(bad: npt.NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match=r"expected float32\[n\]"):
        left_padded(bad)


@pytest.mark.models
def test_tells_a_finished_sentence_from_a_broken_one(model: SmartTurn, reading: npt.NDArray[np.float32]) -> None:
    def heard_up_to(end_s: float) -> float:
        return model.probability_complete(np.concatenate((reading[: round(end_s * 16_000)], PAUSE)))

    finished = [heard_up_to(end_s) for end_s in (3.0, 5.0, 13.25, 44.3)]  # "… of times."  "… incredulity."
    broken = [heard_up_to(end_s) for end_s in (1.5, 3.5, 5.5, 7.0, 11.0)]  # "It was the …"
    assert min(finished) > 0.5
    assert max(broken) < 0.3


@pytest.mark.models
def test_only_the_last_eight_seconds_count(model: SmartTurn, reading: npt.NDArray[np.float32]) -> None:
    assert model.probability_complete(reading[: 20 * 16_000]) == model.probability_complete(
        reading[12 * 16_000 : 20 * 16_000]
    )
