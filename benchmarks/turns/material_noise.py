"""Sounds that are not speech: coughs, clicks and doors, and a minute of noise. All synthetic, all seeded.

None of them is made of speech, and none moves at the pace of syllables (3 to 8 Hz), so that an agent that answers
one has mistaken noise for a person. Levels are RMS over the loud part, in dBFS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from duplex.frames import SAMPLE_RATE_HZ, Samples
from duplex.recording import normalised

_Wave = npt.NDArray[np.float64]


def coloured(rng: np.random.Generator, n_samples: int, slope_db: float) -> _Wave:
    """Noise whose spectrum falls by ``slope_db`` per octave (3: pink, 6: brown) from 40 Hz; RMS 1."""
    hz = np.fft.rfftfreq(n_samples, 1.0 / SAMPLE_RATE_HZ)
    shape = (np.maximum(hz, 40.0) / 40.0) ** (-slope_db / 6.0206) * (hz > 20.0)
    return _unit(np.fft.irfft(np.fft.rfft(rng.standard_normal(n_samples)) * shape, n_samples))


def band(rng: np.random.Generator, n_samples: int, low_hz: float, high_hz: float) -> _Wave:
    """Noise between two frequencies, with skirts of 12 dB per octave; RMS 1."""
    hz = np.fft.rfftfreq(n_samples, 1.0 / SAMPLE_RATE_HZ)
    shape = 1.0 / (1.0 + (low_hz / np.maximum(hz, 1.0)) ** 2) / (1.0 + (hz / high_hz) ** 2)
    return _unit(np.fft.irfft(np.fft.rfft(rng.standard_normal(n_samples)) * shape, n_samples))


# --- single sounds -----------------------------------------------------------------------------------


def cough(rng: np.random.Generator) -> Samples:
    """One or two bursts: an explosive onset, turbulent air, and a short voiced tail, as coughs are described."""
    parts: list[_Wave] = []
    for burst in range(int(rng.integers(1, 3))):
        length = round(SAMPLE_RATE_HZ * rng.uniform(0.22, 0.34))
        t = np.arange(length) / SAMPLE_RATE_HZ
        explosive = band(rng, length, 400.0, 2500.0) * np.exp(-t / 0.035)
        turbulent = band(rng, length, 250.0, 1600.0) * np.exp(-t / 0.12) * 0.5
        pitch_hz = rng.uniform(140.0, 260.0) * (1.0 - 0.5 * t)
        tail = np.sin(2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE_HZ) * np.exp(-(((t - 0.2) / 0.05) ** 2)) * 0.35
        onset = np.minimum(1.0, t / 0.004)
        parts.append((explosive + turbulent + tail) * onset * (1.0 if burst == 0 else 0.7))
        parts.append(np.zeros(round(SAMPLE_RATE_HZ * rng.uniform(0.06, 0.12))))
    return _event(np.concatenate(parts))


def click(rng: np.random.Generator) -> Samples:
    """A switch: two short resonant ticks, some 60 to 120 ms apart."""
    length = round(SAMPLE_RATE_HZ * 0.2)
    wave = np.zeros(length)
    for at_s, gain in ((0.005, 1.0), (0.005 + rng.uniform(0.06, 0.12), 0.6)):
        wave += gain * _ring(rng, length, at_s, rng.uniform(1800.0, 4200.0), 0.006)
    return _event(wave, peak=0.5)


def door(rng: np.random.Generator) -> Samples:
    """A door that closes: a latch, a low thud, and the frame that rattles after it."""
    length = round(SAMPLE_RATE_HZ * 0.7)
    t = np.arange(length) / SAMPLE_RATE_HZ
    wave = 0.3 * _ring(rng, length, 0.01, rng.uniform(1500.0, 2500.0), 0.01)
    since = np.maximum(0.0, t - 0.06)
    thud = np.sin(2 * np.pi * rng.uniform(70.0, 110.0) * since) * np.exp(-since / 0.07)
    wave += (thud + 0.5 * band(rng, length, 60.0, 500.0) * np.exp(-since / 0.06)) * (t >= 0.06)
    for _ in range(3):
        wave += 0.15 * _ring(rng, length, rng.uniform(0.12, 0.35), rng.uniform(300.0, 900.0), 0.02)
    return _event(wave, peak=0.5)


EVENTS: Mapping[str, Callable[[np.random.Generator], Samples]] = {"cough": cough, "click": click, "door": door}


# --- a minute of noise ----------------------------------------------------------------------------------


def pink(rng: np.random.Generator, n_samples: int) -> _Wave:
    return coloured(rng, n_samples, 3.0)


def brown(rng: np.random.Generator, n_samples: int) -> _Wave:
    return coloured(rng, n_samples, 6.0)


def fan(rng: np.random.Generator, n_samples: int) -> _Wave:
    """Blades and a motor: a hum with harmonics on broad noise, drifting a little."""
    t = np.arange(n_samples) / SAMPLE_RATE_HZ
    base_hz = rng.uniform(90.0, 130.0) * (1.0 + 0.01 * np.sin(2 * np.pi * 0.1 * t))
    phase = 2 * np.pi * np.cumsum(base_hz) / SAMPLE_RATE_HZ
    hum = sum(np.sin(h * phase + rng.uniform(0, 2 * np.pi)) / h for h in range(1, 7))
    return _unit(_unit(np.asarray(hum)) * 0.6 + coloured(rng, n_samples, 4.0))


def street(rng: np.random.Generator, n_samples: int) -> _Wave:
    """Traffic: brown noise that swells and ebbs over seconds, and tyres above it."""
    swell = _slow(rng, n_samples, 0.25)
    tyres = _slow(rng, n_samples, 0.4)
    return _unit(coloured(rng, n_samples, 6.0) * (0.5 + swell) + 0.3 * band(rng, n_samples, 500.0, 2000.0) * tyres)


def keyboard(rng: np.random.Generator, n_samples: int) -> _Wave:
    """Typing over a quiet room: keys in bursts, each a tick and a thud."""
    wave = 0.02 * coloured(rng, n_samples, 3.0)
    at_s = 0.3
    while round(at_s * SAMPLE_RATE_HZ) < n_samples - SAMPLE_RATE_HZ // 4:
        start = round(at_s * SAMPLE_RATE_HZ)
        length = SAMPLE_RATE_HZ // 8
        key = _ring(rng, length, 0.0, rng.uniform(1800.0, 5000.0), 0.004)
        key += 0.6 * _ring(rng, length, 0.004, rng.uniform(200.0, 500.0), 0.012)
        wave[start : start + length] += key * rng.uniform(0.5, 1.0)
        at_s += rng.exponential(0.13) + 0.07 if rng.random() > 0.08 else rng.uniform(0.8, 2.5)
    return _unit(wave)


BEDS: Mapping[str, Callable[[np.random.Generator, int], _Wave]] = {
    "pink": pink,
    "fan": fan,
    "street": street,
    "brown": brown,
    "keyboard": keyboard,
}


def bed(kind: str, rng: np.random.Generator, seconds: float, level_dbfs: float) -> Samples:
    """``seconds`` of one of :data:`BEDS`, its RMS at ``level_dbfs``, its peaks held below full scale: float32[n]."""
    wave = BEDS[kind](rng, round(seconds * SAMPLE_RATE_HZ)) * 10.0 ** (level_dbfs / 20.0)
    edge = np.minimum(1.0, np.arange(len(wave)) / (0.05 * SAMPLE_RATE_HZ))
    samples: Samples = np.clip(wave * edge * edge[::-1], -0.99, 0.99).astype(np.float32)
    return samples


# --- helpers -----------------------------------------------------------------------------------------------


def _ring(rng: np.random.Generator, length: int, at_s: float, hz: float, decay_s: float) -> _Wave:
    since = np.arange(length) / SAMPLE_RATE_HZ - at_s
    ring = np.sin(2 * np.pi * hz * since) + 0.5 * rng.standard_normal(length)
    return np.where(since >= 0.0, ring * np.exp(-np.maximum(since, 0.0) / decay_s), 0.0)


def _slow(rng: np.random.Generator, n_samples: int, hz: float) -> _Wave:
    """A random curve in [0, 1] that changes at most about ``hz`` times a second."""
    points = rng.random(max(4, round(n_samples / SAMPLE_RATE_HZ * hz) + 3))
    at = np.linspace(0.0, len(points) - 1.0, n_samples)
    left = np.minimum(at.astype(int), len(points) - 2)
    ease = 0.5 - 0.5 * np.cos(np.pi * (at - left))
    curve: _Wave = points[left] * (1.0 - ease) + points[left + 1] * ease
    return curve


def _event(wave: _Wave, peak: float | None = None) -> Samples:
    """At the user's level; a sound too short to have one is set by its ``peak``."""
    if peak is None:
        return normalised(wave.astype(np.float32))
    return (wave * (peak / float(np.max(np.abs(wave))))).astype(np.float32)


def _unit(wave: _Wave) -> _Wave:
    unit: _Wave = wave / np.sqrt(np.mean(np.square(wave)))
    return unit
