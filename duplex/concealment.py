"""Waveform surgery: filling a gap in sound that did not come in time, and taking out or putting in a little time.

A gap is filled by going on with the last pitch period, which fades away within ``FADE_END_MS``: longer
than that nobody can guess what was said, and a held vowel sounds worse than silence. Speeding up and
slowing down cut or repeat one pitch period with an overlap-add, so pitch stays what it was (the idea
of WSOLA: Verhelst & Roelands, ICASSP 1993; the fade follows ITU-T G.711 Appendix I, which needs
3.75 ms of delay for its smooth start where we bend the beginning of the fill instead).

All signals are mono float32 at 24 kHz; nothing here knows about packets or clocks.
"""

from __future__ import annotations

import numpy as np

from duplex.frames import Samples, ms_to_samples, silence

MIN_LAG = 60  # 400 Hz
MAX_LAG = 360  # 67 Hz
_WINDOW = 360  # what is compared: 15 ms
HISTORY = MAX_LAG + _WINDOW
_COARSE = 4  # the first search runs on every 4th sample

BLEND = ms_to_samples(5)
_FULL_MS = 10.0  # a fill is as loud as what came before for this long
FADE_END_MS = 80.0  # and silent from here on
_BEND = ms_to_samples(2.5)

QUIET_RMS = 10 ** (-50 / 20)  # below −50 dBFS a cut anywhere is inaudible
_ALIKE = 0.7  # correlation from which a cut of one period is inaudible enough


def rms(samples: Samples) -> float:
    return float(np.sqrt(np.dot(samples, samples) / max(1, len(samples))))


def pitch_lag(samples: Samples) -> tuple[int, float]:
    """How far back the last 15 ms resemble themselves most, and how much (−1 to 1).

    ``samples``: float32[n], n ≥ ``HISTORY``. The lag lies between ``MIN_LAG`` and ``MAX_LAG``.
    """
    recent = samples[-HISTORY:]
    coarse = recent.reshape(-1, _COARSE).mean(axis=1)
    lags = np.arange(MIN_LAG // _COARSE, MAX_LAG // _COARSE + 1)
    best = lags[int(np.argmax(_similarities(coarse, lags, _WINDOW // _COARSE)))] * _COARSE
    fine = np.arange(max(MIN_LAG, best - _COARSE), min(MAX_LAG, best + _COARSE) + 1)
    similarities = _similarities(recent, fine, _WINDOW)
    at = int(np.argmax(similarities))
    return int(fine[at]), float(similarities[at])


def _similarities(samples: Samples, lags: np.ndarray[tuple[int], np.dtype[np.int_]], window: int) -> Samples:
    """Normalised correlation of the last ``window`` samples with those ``lags`` earlier."""
    end = len(samples) - window
    template = samples[end:]
    windows = np.lib.stride_tricks.sliding_window_view(samples, window)[end - lags]
    energy = np.einsum("ij,ij->i", windows, windows) * np.dot(template, template)
    result: Samples = (windows @ template) / np.sqrt(energy + 1e-9)
    return result


def crossfade(old: Samples, new: Samples) -> Samples:
    """From ``old`` to ``new`` over their whole (equal) length."""
    rise = ((np.arange(len(old)) + 0.5) / max(1, len(old))).astype(np.float32)
    blended: Samples = old + rise * (new - old)
    return blended


def _lag_forward(samples: Samples, at_most: int) -> tuple[int, int] | None:
    """(lag, blend length) by which the beginning of ``samples`` may be moved, or None if it would be heard."""
    if at_most < MIN_LAG or len(samples) < MIN_LAG + BLEND:
        return None
    if rms(samples) < QUIET_RMS:
        lag = min(at_most, len(samples) - BLEND)
        return lag, min(BLEND, lag)
    if len(samples) < HISTORY:
        return None
    lag, similarity = pitch_lag(np.ascontiguousarray(samples[HISTORY - 1 :: -1]))  # forward in time
    if similarity < _ALIKE or lag > at_most:
        return None
    return lag, min(lag, BLEND * 2, len(samples) - lag)


def compress(samples: Samples, at_most: int) -> Samples:
    """``samples`` shorter by one pitch period, or by up to ``at_most`` where it is quiet; unchanged if neither fits.

    The first sample stays, so it joins what was played before.
    """
    found = _lag_forward(samples, at_most)
    if found is None:
        return samples
    lag, blend = found
    return np.concatenate([crossfade(samples[:blend], samples[lag : lag + blend]), samples[lag + blend :]])


def expand(samples: Samples, at_most: int) -> Samples:
    """``samples`` longer by one pitch period, or by up to ``at_most`` where it is quiet; unchanged if neither fits."""
    found = _lag_forward(samples, at_most)
    if found is None:
        return samples
    lag, blend = found
    return np.concatenate([samples[:lag], crossfade(samples[lag : lag + blend], samples[:blend]), samples[blend:]])


class Concealer:
    """Goes on where the sound broke off, and back to the real thing when it is there again.

    ``remember`` what was played, ``extend`` through a gap as often as needed, ``rejoin`` after it.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._past = silence(HISTORY)
        self._loop: Samples | None = None  # one period, made for going round
        self._made = 0  # samples filled in this gap

    @property
    def concealing(self) -> bool:
        return self._loop is not None

    @property
    def silent(self) -> bool:
        """The fill has faded away."""
        return self._made >= ms_to_samples(FADE_END_MS)

    def remember(self, samples: Samples) -> None:
        """Takes note of real sound, float32[n]; ends a gap."""
        self._loop, self._made = None, 0
        self._past = np.concatenate([self._past, samples])[-HISTORY:]

    def extend(self, n_samples: int) -> Samples:
        """The next float32[n_samples] of a fill."""
        if self.silent:
            self._made += n_samples
            return silence(n_samples)
        filled = self._fill(n_samples)
        self._made += n_samples
        return filled

    def rejoin(self, samples: Samples) -> Samples:
        """``samples``, the first real ones after a gap or a cut, with their beginning blended into what came before."""
        blend = min(BLEND, len(samples))
        tail = silence(blend) if self.silent else self._fill(blend)
        self._loop, self._made = None, 0
        return np.concatenate([crossfade(tail, samples[:blend]), samples[blend:]])

    def _fill(self, n_samples: int) -> Samples:
        if self._loop is None:
            self._loop = self._make_loop()
        positions = self._made + np.arange(n_samples)
        sound = self._loop[positions % len(self._loop)]
        # Bend the beginning so that the fill starts from the very sample it follows.
        step = self._past[-1] - self._past[-1 - len(self._loop)]
        sound = sound + step * np.clip(1.0 - (positions + 1) / _BEND, 0.0, 1.0)
        ms = positions / ms_to_samples(1.0)
        level = np.clip((FADE_END_MS - ms) / (FADE_END_MS - _FULL_MS), 0.0, 1.0)
        filled: Samples = (sound * level).astype(np.float32)
        return filled

    def _make_loop(self) -> Samples:
        lag, similarity = pitch_lag(self._past)
        if similarity < 0.3:
            lag = MAX_LAG  # noise: the longer the loop, the less it buzzes
        loop = self._past[-lag:].copy()
        seam = lag // 4
        loop[-seam:] = crossfade(loop[-seam:], self._past[-lag - seam : -lag])
        return loop
