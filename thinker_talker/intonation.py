"""The melody at a pause: pitch by autocorrelation, and how far it fell at the end."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import numpy.typing as npt

from duplex.frames import Samples

Floats = npt.NDArray[np.float64]

RATE_HZ = 16_000
_LOWEST_HZ, _HIGHEST_HZ = 70.0, 400.0
_PERIODIC = 0.5  # normalised autocorrelation of a voiced window
_WINDOWS = 150  # 4.8 s of voice
_END_WINDOWS = 5  # the last 160 ms of pitch
_SYLLABLE_WINDOWS = 8
_LEAP_ST = 4.0  # from one window to the next: an error of an octave, or another syllable


def pitch_hz(samples_16k: Samples) -> float | None:
    """The fundamental of float32[512] at 16 kHz, 70 to 400 Hz; None if the window is not periodic.

    Autocorrelation, normalised for the window's taper as in Boersma (1993), without his path finding.
    """
    n = len(samples_16k)
    window, taper = _taper(n)
    tapered = (samples_16k - samples_16k.mean()) * window
    power = float(np.dot(tapered, tapered))
    if power < 1e-7 * n:
        return None
    shortest, longest = int(RATE_HZ / _HIGHEST_HZ), min(int(RATE_HZ / _LOWEST_HZ), n // 2)
    size = 2 * n
    spectrum = np.fft.rfft(tapered, size)
    correlation = np.fft.irfft(spectrum.real**2 + spectrum.imag**2, size)[: longest + 1]
    normal = (correlation / correlation[0]) / taper[: longest + 1]
    # A period's multiples fit as well as the period: the first peak that is nearly the highest is the pitch.
    inner = normal[shortest - 1 : longest + 1]
    peaks = shortest + np.flatnonzero((inner[1:-1] >= inner[:-2]) & (inner[1:-1] > inner[2:]))
    if not len(peaks) or normal[peaks].max() < _PERIODIC:
        return None
    lag = int(peaks[normal[peaks] >= 0.85 * normal[peaks].max()][0])
    return RATE_HZ / lag


@cache
def _taper(n: int) -> tuple[Floats, Floats]:
    """A Hann window and its own autocorrelation, 1 at no lag."""
    window = np.hanning(n)
    spectrum = np.fft.rfft(window, 2 * n)
    own = np.fft.irfft(spectrum.real**2 + spectrum.imag**2, 2 * n)
    return window, own / own[0]


@dataclass(slots=True)
class PitchContour:
    """The pitch of one stretch of speech, window by window."""

    _hz: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOWS))
    _last: list[float] = field(default_factory=list)  # since the last break or leap: the last syllable, about
    _broken: bool = False

    def add(self, hz: float | None) -> None:
        if hz is None:
            self._broken = True
            return
        if self._broken or (self._last and abs(12.0 * math.log2(hz / self._last[-1])) > _LEAP_ST):
            self._last.clear()
            self._broken = False
        self._hz.append(hz)
        self._last.append(hz)
        del self._last[:-_SYLLABLE_WINDOWS]

    def slope_st(self) -> float | None:
        """How far it rose over its last syllable (at most 256 ms), in semitones. None for under 128 ms of voice."""
        if len(self._last) < _SYLLABLE_WINDOWS // 2:
            return None
        semitones = 12.0 * np.log2(np.array(self._last))
        return float(np.polyfit(np.arange(len(semitones)), semitones, 1)[0]) * len(semitones)

    def fall_st(self) -> float | None:
        """How far its end lies below its median, in semitones (negative: above). None for too little voice."""
        if len(self._hz) < 3 * _END_WINDOWS:
            return None
        pitches = list(self._hz)
        return 12.0 * math.log2(float(np.median(pitches)) / float(np.median(pitches[-_END_WINDOWS:])))
