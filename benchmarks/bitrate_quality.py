"""How near a decoded recording is to the original: two distances that fail in different ways.

*SI-SDR* compares waveforms. It is exact and hard to fool, and unfair to codecs that were trained to sound right rather
than to match: Mimi's comes from an adversarial loss, and is poor at any rate. *Log-mel distance* compares what is heard
when, at which pitch and how loud; phase does not matter to it, and neither does what lies far below the voice.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from duplex.frames import SAMPLE_RATE_HZ, Samples

_Float = npt.NDArray[np.float64]

MEL_BANDS = 80
MEL_TOP_HZ = 8000.0
"""Most public recordings of speech end here, and what a codec puts above them is no likeness of anything."""
FLOOR_DB = 50.0
"""Bands more than this below the original's loudest are as good as silent, in both."""

_WINDOW, _HOP = 600, 240  # 25 ms, 10 ms


def si_sdr_db(original: Samples, decoded: Samples) -> float:
    """Scale-invariant signal-to-distortion ratio (Le Roux et al., 2019, "SDR – half-baked or well done?").

    float32[n] each, means removed. Infinite for equal up to scale; −inf where nothing of the original is left.
    """
    if original.shape != decoded.shape:
        raise ValueError(f"{original.shape} samples against {decoded.shape}")
    s, d = (np.asarray(x, dtype=np.float64) - float(np.mean(x)) for x in (original, decoded))
    target = (float(d @ s) / max(float(s @ s), 1e-20)) * s
    kept, lost = float(target @ target), float(np.sum((d - target) ** 2))
    if kept == 0.0:
        return -np.inf
    return float(np.inf if lost == 0.0 else 10.0 * np.log10(kept / lost))


def log_mel_distance_db(original: Samples, decoded: Samples) -> float:
    """Mean absolute difference, in dB, of 80 mel bands (0 to 8 kHz; 25 ms windows every 10 ms), both floored 50 dB
    below the original's loudest band. 0 for equal; of speech against silence, as far as it is above the floor."""
    if original.shape != decoded.shape:
        raise ValueError(f"{original.shape} samples against {decoded.shape}")
    a, b = _mel_power(original), _mel_power(decoded)
    floor = max(float(a.max()), 1e-12) * 10.0 ** (-FLOOR_DB / 10.0)
    difference = 10.0 * np.log10(np.maximum(a, floor) / np.maximum(b, floor))
    return float(np.mean(np.abs(difference)))


def _mel_power(samples: Samples) -> _Float:
    """float64[frames, bands]"""
    padded = np.pad(np.asarray(samples, dtype=np.float64), (0, max(0, _WINDOW - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(_WINDOW), axis=1)) ** 2
    power: _Float = spectrum @ _mel_bands().T
    return power


@cache
def _mel_bands() -> _Float:
    """float64[bands, bins]: triangles at equal steps of mel, 2595 log10(1 + f / 700 Hz), each summing to 1."""
    hz = np.fft.rfftfreq(_WINDOW, 1.0 / SAMPLE_RATE_HZ)
    top = 2595.0 * np.log10(1.0 + MEL_TOP_HZ / 700.0)
    edges = 700.0 * (10.0 ** (np.linspace(0.0, top, MEL_BANDS + 2) / 2595.0) - 1.0)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bands = np.maximum(0.0, np.minimum((hz - low) / (centre - low), (high - hz) / (high - centre)))
    # The lowest bands are narrower than a bin: such a one takes the nearest.
    for index in np.flatnonzero(bands.sum(axis=1) == 0.0):
        bands[index, np.argmin(np.abs(hz - centre[index, 0]))] = 1.0
    normalised: _Float = bands / bands.sum(axis=1, keepdims=True)
    return normalised
