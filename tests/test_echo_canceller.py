"""WebRTC's canceller behind our contract: echo goes, a person stays, and packets keep their length."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from duplex.benchmarks.echo_paths import EchoPath
from duplex.echo import EchoCanceller
from duplex.errors import ConfigError, MissingDependencyError
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Samples, ms_to_samples
from duplex.transport.echo_canceller import WebRtcEchoCanceller

SECOND = SAMPLE_RATE_HZ


def babble(seconds: float, seed: int, level_dbfs: float = -20.0) -> Samples:
    """Noise with the spectrum and the syllables of speech: float32[n] at 24 kHz."""
    rng = np.random.default_rng([seed, 3])
    n = round(seconds * SECOND)
    spectrum = np.fft.rfft(rng.normal(0.0, 1.0, n))
    hz = np.fft.rfftfreq(n, 1.0 / SECOND)
    sound = np.fft.irfft(spectrum * (hz > 120) / (1.0 + (hz / 700.0) ** 2), n)
    t = np.arange(n) / SECOND
    sound *= np.clip(np.sin(2 * np.pi * (3.1 + 0.4 * seed) * t + seed) + 0.3, 0.0, 1.0)
    return (sound * 10 ** (level_dbfs / 20) / np.sqrt(np.mean(sound**2))).astype(np.float32)


def dbfs(samples: Samples) -> float:
    return float(10.0 * np.log10(np.mean(np.square(samples, dtype=np.float64)) + 1e-12))


def in_packets(canceller: EchoCanceller, heard: Samples, played: Samples, packets: int = 1) -> Samples:
    size = packets * PACKET_SAMPLES
    return np.concatenate(
        [canceller.process(heard[i : i + size], played[i : i + size]) for i in range(0, len(heard) - size + 1, size)]
    )


@pytest.mark.parametrize("delay_ms", [40.0, 150.0, 400.0])
@pytest.mark.parametrize("line", ["pcm", "opus", "phone"])
def test_an_echo_is_lowered_within_a_second_whatever_its_delay(line: str, delay_ms: float) -> None:
    played = babble(4.0, seed=1)
    heard, _ = EchoPath(-10.0, delay_ms, line, seed=4).heard(played)  # type: ignore[arg-type]
    cleaned = in_packets(WebRtcEchoCanceller(), heard, played)
    assert cleaned.shape == heard.shape
    assert cleaned.dtype == np.float32
    assert dbfs(cleaned[2 * SECOND :]) < dbfs(heard[2 * SECOND :]) - 20.0


def test_a_person_somewhat_louder_than_the_echo_stays() -> None:
    played, person = babble(6.0, seed=1), np.zeros(6 * SECOND, dtype=np.float32)
    person[3 * SECOND :] = babble(3.0, seed=2, level_dbfs=-25.0)
    heard, _ = EchoPath(-10.0, 120.0, seed=4).heard(played, person)
    canceller = WebRtcEchoCanceller()
    cleaned = in_packets(canceller, heard, played)
    assert dbfs(cleaned[3 * SECOND + canceller.latency_samples :]) > -28.0
    assert dbfs(cleaned[2 * SECOND : 3 * SECOND]) < -50.0


def test_without_echo_a_voice_passes_as_it_is_and_as_late_as_stated() -> None:
    person = babble(3.0, seed=2)
    canceller = WebRtcEchoCanceller()
    cleaned = in_packets(canceller, person, np.zeros_like(person))
    assert dbfs(cleaned) == pytest.approx(dbfs(person), abs=0.5)
    lags = np.arange(ms_to_samples(20.0))
    alike = [float(np.dot(cleaned[SECOND + lag : 2 * SECOND + lag], person[SECOND : 2 * SECOND])) for lag in lags]
    assert int(np.argmax(alike)) == pytest.approx(canceller.latency_samples, abs=ms_to_samples(1.0))


def test_the_size_of_the_frames_does_not_matter() -> None:
    played = babble(1.0, seed=1)
    heard, _ = EchoPath(-10.0, 80.0).heard(played)
    one = in_packets(WebRtcEchoCanceller(), heard, played, packets=1)
    assert in_packets(WebRtcEchoCanceller(), heard, played, packets=5).tolist() == one.tolist()


def test_reset_forgets_the_path() -> None:
    played = babble(2.0, seed=1)
    heard, _ = EchoPath(-10.0, 80.0).heard(played)
    canceller = WebRtcEchoCanceller()
    fresh = in_packets(canceller, heard, played)
    assert in_packets(canceller, heard, played).tolist() != fresh.tolist()
    canceller.reset()
    assert in_packets(canceller, heard, played).tolist() == fresh.tolist()


def test_two_calls_do_not_disturb_each_other() -> None:
    played = babble(1.0, seed=1)
    heard, _ = EchoPath(-10.0, 80.0).heard(played)
    alone = in_packets(WebRtcEchoCanceller(), heard, played)
    one, other = WebRtcEchoCanceller(), WebRtcEchoCanceller()
    together = []
    for start in range(0, len(heard), PACKET_SAMPLES):
        packet = slice(start, start + PACKET_SAMPLES)
        together.append(one.process(heard[packet], played[packet]))
        other.process(played[packet], heard[packet])
    assert np.concatenate(together).tolist() == alone.tolist()


def test_sound_beyond_full_scale_is_clipped_and_what_came_in_is_left_alone() -> None:
    heard = np.full(PACKET_SAMPLES, 1.5, dtype=np.float32)
    cleaned = WebRtcEchoCanceller().process(heard, np.zeros_like(heard))
    assert np.abs(cleaned).max() <= 1.01
    assert (heard == 1.5).all()


@pytest.mark.parametrize(("heard", "played"), [(480, 960), (481, 481), (240, 240)])
def test_other_lengths_are_refused(heard: int, played: int) -> None:
    with pytest.raises(ValueError, match=r"n \* 480"):
        WebRtcEchoCanceller().process(np.zeros(heard, dtype=np.float32), np.zeros(played, dtype=np.float32))


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "livekit", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'duplex-runtime\[echo\]'"):
        WebRtcEchoCanceller()


def test_a_library_that_does_not_load_here_says_how_to_go_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    from livekit import rtc

    def broken(**_options: object) -> None:
        raise ImportError("failed to load liblivekit_ffi.so: wrong architecture")

    monkeypatch.setattr(rtc, "AudioProcessingModule", broken)
    with pytest.raises(ConfigError, match=r"wrong architecture.*echo_canceller"):
        WebRtcEchoCanceller()
