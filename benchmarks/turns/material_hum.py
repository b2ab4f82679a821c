"""Sounds of assent that no spelling gives: "mm", "mm-hm", "uh-huh", made of harmonics and breath.

A text-to-speech voice reads these as words ("mm-hm" as "amend them"), with the burst of a plosive before them. They
are the simplest of speech sounds, so they are made here: the harmonics of a gliding pitch, shaped by three
resonances (Peterson and Barney 1952 for the vowel of "but"; a nasal murmur at 270 Hz for "m"), and noise for "h".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from duplex.benchmarks.stimuli import to_voice
from duplex.frames import SAMPLE_RATE_HZ, Samples

_Wave = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Tone:
    """``resonances``: (Hz, bandwidth Hz, gain dB) of the mouth; ``semitones``: pitch at its start and its end."""

    seconds: float
    resonances: tuple[tuple[float, float, float], ...]
    semitones: tuple[float, float]
    gain: float = 1.0


_M = ((270.0, 90.0, 0.0), (1000.0, 200.0, -22.0), (2200.0, 300.0, -30.0))
_UH = ((640.0, 90.0, 0.0), (1190.0, 110.0, -4.0), (2390.0, 170.0, -14.0))

_SOUNDS: Mapping[str, tuple[_Tone | float, ...]] = {
    "mm": (_Tone(0.32, _M, (1.0, -2.0)),),
    "mm-hm": (_Tone(0.17, _M, (0.0, -1.0), 0.8), 0.07, _Tone(0.24, _M, (2.0, 4.0))),
    "uh-huh": (_Tone(0.16, _UH, (0.0, -1.0), 0.9), 0.10, _Tone(0.28, _UH, (2.0, 3.0))),
    "hm": (0.06, _Tone(0.30, _M, (2.0, -2.0))),
    "ah": (_Tone(0.30, ((730.0, 90.0, 0.0), (1090.0, 110.0, -3.0), (2440.0, 170.0, -16.0)), (3.0, -3.0)),),
}
"""Name → tones and, between them, seconds of breath."""

HUMS = tuple(_SOUNDS)


def hum(kind: str, rng: np.random.Generator, pitch_hz: float, mouth: float = 1.0) -> Samples:
    """One of :data:`HUMS`: float32[n] at 24 kHz, −20 dBFS, cut to its voice.

    ``pitch_hz``: the speaker's; ``mouth``: scales the resonances (about 1.15 for a woman, 1.0 for a man).
    """
    tones = _SOUNDS[kind]
    stretch = rng.uniform(0.9, 1.15)
    parts = [
        _voiced(rng, tone, pitch_hz, mouth, stretch) if isinstance(tone, _Tone) else _breath(rng, tone * stretch)
        for tone in tones
    ]
    return to_voice(_overlapped(parts).astype(np.float32))[0]


def _voiced(rng: np.random.Generator, tone: _Tone, pitch_hz: float, mouth: float, stretch: float) -> _Wave:
    n = round(tone.seconds * stretch * SAMPLE_RATE_HZ)
    t = np.linspace(0.0, 1.0, n)
    glide = tone.semitones[0] + (tone.semitones[1] - tone.semitones[0]) * t
    wander = 0.15 * np.interp(t, np.linspace(0, 1, 6), rng.standard_normal(6))
    f0 = pitch_hz * 2.0 ** ((glide + wander) / 12.0)
    phase = 2 * np.pi * np.cumsum(f0) / SAMPLE_RATE_HZ
    wave = np.zeros(n)
    for harmonic in range(1, int(5000.0 / pitch_hz)):
        hz = f0 * harmonic
        envelope = sum(
            10 ** (gain_db / 20) / np.sqrt(1.0 + ((hz - centre * mouth) / bandwidth) ** 2)
            for centre, bandwidth, gain_db in tone.resonances
        )
        wave += envelope * np.sin(harmonic * phase + rng.uniform(0, 0.3)) / harmonic**0.5
    loud = np.minimum(1.0, np.minimum(t * tone.seconds / 0.04, (1.0 - t) * tone.seconds / 0.07))
    shaped: _Wave = tone.gain * wave * np.sin(np.clip(loud, 0.0, 1.0) * np.pi / 2)
    return shaped


def _breath(rng: np.random.Generator, seconds: float) -> _Wave:
    n = round(seconds * SAMPLE_RATE_HZ)
    hz = np.fft.rfftfreq(n, 1.0 / SAMPLE_RATE_HZ)
    spectrum = np.fft.rfft(rng.standard_normal(n)) * np.exp(-(((hz - 1000.0) / 900.0) ** 2))
    return np.fft.irfft(spectrum, n) * np.sin(np.linspace(0, np.pi, n)) * 0.25


def _overlapped(parts: list[_Wave], seconds: float = 0.03) -> _Wave:
    """One after the other, each running ``seconds`` into the next; faded already."""
    lap = round(seconds * SAMPLE_RATE_HZ)
    out = parts[0]
    for part in parts[1:]:
        shared = min(lap, len(out), len(part))
        joined = np.zeros(len(out) + len(part) - shared)
        joined[: len(out)] += out
        joined[len(out) - shared :] += part
        out = joined
    return out
