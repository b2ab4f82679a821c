"""The melody at a pause: pitch by autocorrelation, and how far it fell at the end."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from duplex.frames import Samples

RATE_HZ = 16_000
_LOWEST_HZ, _HIGHEST_HZ = 70.0, 400.0
_PERIODIC = 0.5  # normalised autocorrelation of a voiced window
_WINDOWS = 150  # 4.8 s of voice
_END_WINDOWS = 5  # the last 160 ms of pitch


def pitch_hz(samples_16k: Samples) -> float | None:
    """The fundamental of float32[512] at 16 kHz, 70 to 400 Hz; None if the window is not periodic.

    Autocorrelation, normalised for the window's taper as in Boersma (1993), without his path finding.
    """
    n = len(samples_16k)
    window = np.hanning(n)
    tapered = (samples_16k - samples_16k.mean()) * window
    power = float(np.dot(tapered, tapered))
    if power < 1e-7 * n:
        return None
    shortest, longest = int(RATE_HZ / _HIGHEST_HZ), min(int(RATE_HZ / _LOWEST_HZ), n // 2)
    size = 2 * n
    spectrum = np.fft.rfft(tapered, size)
    own = np.fft.rfft(window, size)
    correlation = np.fft.irfft(spectrum.real**2 + spectrum.imag**2, size)[: longest + 1]
    taper = np.fft.irfft(own.real**2 + own.imag**2, size)[: longest + 1]
    normal = (correlation / correlation[0]) / (taper / taper[0])
    lag = shortest + int(np.argmax(normal[shortest : longest + 1]))
    return None if normal[lag] < _PERIODIC else RATE_HZ / lag


@dataclass(slots=True)
class PitchContour:
    """The pitch of one stretch of speech, window by window."""

    _hz: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOWS))

    def add(self, hz: float | None) -> None:
        if hz is not None:
            self._hz.append(hz)

    def fall_st(self) -> float | None:
        """How far its end lies below its median, in semitones (negative: above). None for too little voice."""
        if len(self._hz) < 3 * _END_WINDOWS:
            return None
        pitches = list(self._hz)
        return 12.0 * math.log2(float(np.median(pitches)) / float(np.median(pitches[-_END_WINDOWS:])))
