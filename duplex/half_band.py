"""48 kHz to 24 kHz while sound flows: Opus decodes at the one, a session runs at the other.

A windowed-sinc low-pass at a quarter of the rate, −70 dB above 14 kHz, then every second sample. Half a millisecond of
delay and 10 µs a packet, so a decoder needs no resampler with a buffer of its own.
"""

from __future__ import annotations

import numpy as np

from duplex.frames import Samples, silence

_TAPS = 47


def _low_pass() -> Samples:
    n = np.arange(_TAPS) - _TAPS // 2
    response = 0.5 * np.sinc(n / 2) * np.kaiser(_TAPS, 7.0)
    taps: Samples = (response / response.sum()).astype(np.float32)
    return taps


class Halver:
    """One stream. ``first``: which of the first two samples is kept, 0 or 1; with 1 the delay is a whole number of
    output samples (11), with 0 half a sample more."""

    _filter = _low_pass()

    def __init__(self, first: int = 1) -> None:
        self._first = first
        self.reset()

    def reset(self) -> None:
        self._tail = silence(_TAPS - 1)

    def __call__(self, samples: Samples) -> Samples:
        """float32[n] at 48 kHz, n even, to float32[n / 2] at 24 kHz."""
        wide = np.concatenate([self._tail, samples])
        self._tail = wide[-(_TAPS - 1) :]
        halved: Samples = np.convolve(wide, self._filter, "valid")[self._first :: 2].astype(np.float32)
        return halved
