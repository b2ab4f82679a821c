"""How much of what we hear is our own voice coming back: echo evidence for the predictor, without a canceller.

Theory of operation
-------------------
Everything runs at 8 kHz in windows of 32 ms, heard beside played. Three steps, each causal:

1. *Where is it?* Heard and played are whitened (each spectrum divided by its own smoothed magnitude, so that
   pitch and vowels, which all voices share, do not look alike) and correlated over 256 ms for delays of 0 to
   640 ms. An echo gives a peak of 0.3 to 0.8, a stranger's voice hardly ever 0.2. One such look is dear, so
   it is taken only while there is something unexplained to explain.
2. *How much does it explain?* Around that delay, a short filter (8 ms) is fitted to the last 256 ms by least
   squares. It needs no past, so it works within a few windows of the first echo of a call.
3. *And what does the room explain?* A long filter (192 ms) learns the whole path as the call goes on: the
   partitioned-block Kalman filter of Enzner and Vary ("Frequency-domain adaptive Kalman filter for acoustic
   echo control in hands-free telephones", Signal Processing 86, 2006; partitioned as in Kuech, Mabande and
   Enzner, ICASSP 2014), without which a reverberant room leaves a third of the echo unexplained.

The score is the share of the last 256 ms of heard energy that the better of the two filters explains: 1 is
echo, 0 is somebody else. A person who speaks over the echo lowers it as their energy grows.

A player with a buffer moves what it plays by some milliseconds whenever that fills or runs dry, so the delay is not one
for all of the last 256 ms: when it has moved, each window keeps the delay it was heard with, and the newest half is
looked at by itself.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from duplex.frames import Samples

WINDOW_SAMPLES = 512  # of 16 kHz: the ear's window
MAX_DELAY_MS = 640.0

_N = 256  # samples of a window at 8 kHz, 32 ms
_PER_MS = 8
_HISTORY = 8  # windows that are explained together, 256 ms
_MAX_LAG = 20 * _N
_PLAYED = _HISTORY * _N + _MAX_LAG + _N  # played samples kept: all that can echo, and the short filter's past
_FFT = 8192  # holds them
_SMOOTH = 33  # bins of about 1 Hz each over which a spectrum is flattened

_TAPS = 64  # the short filter: 8 ms, of which
_EARLY = 16  # 2 ms before the delay found
_RIDGE = 1e-3

_NEWEST = 4 * _N  # the newest half of them, 128 ms, which a delay that just moved is found in
_SURE_NEWEST = 0.35
_SURE = 0.3  # a peak believed at once
_LIKELY = 0.18  # a peak believed when a second look finds it again
_SAME_LAG = 4 * _PER_MS
_PLAIN = 0.8  # explained to this share by one filter, the other is not asked
_EXPLAINED = 0.6  # the delay is plainly right: no need to look again soon
_AGAIN = 2  # windows between looks while something is unexplained
_SELDOM = 32  # and while all is well
_LOUD = 1e-4  # mean square of a voice of ours that an echo would be heard of (−40 dBFS)
_SILENCE = 1e-7  # mean square at which nobody hears anything (−70 dBFS)

_ECHOED = 0.7  # a score that says: this line echoes
_REMEMBERED = 2000  # windows of our own voice for which that is remembered, about a minute
_PROVEN = 25  # windows of our voice without anybody's in them that show the line has no echo

Array = npt.NDArray[np.float64]
Spectra = npt.NDArray[np.complex128]


@dataclass(frozen=True, slots=True)
class EchoEstimate:
    """``score``: share of the heard energy that is our own voice, 0 to 1. ``delay_ms``: how late it comes, if known.

    ``residual_dbfs``: the level of what is left. ``line_echoes``: our voice came back lately, or nobody can say yet
    that it does not: we have hardly spoken on this call.
    """

    score: float
    delay_ms: float | None
    residual_dbfs: float
    line_echoes: bool = False


class EchoScore:
    """One session's. ``push`` a window at a time: about 0.2 ms each while it echoes, 0.03 ms otherwise."""

    def __init__(self) -> None:
        self._low = _low_pass()
        self.reset()

    def reset(self) -> None:
        """Forgets the call: the path, the delay, what was heard."""
        self._heard_tail = np.zeros(len(self._low) - 1)
        self._played_tail = np.zeros(len(self._low) - 1)
        self._heard: Array = np.zeros(_HISTORY * _N)
        self._played: Array = np.zeros(_PLAYED)
        self._audible = 0  # windows for which what we played can still echo
        self._lag: int | None = None
        self._candidate: int | None = None
        self._wait = 0  # windows until the next look
        self._fits: deque[_Fit | None] = deque([None] * _HISTORY, maxlen=_HISTORY)
        self._room: RoomFilter | None = None
        self._left: deque[float] = deque([0.0] * _HISTORY, maxlen=_HISTORY)  # energy the room filter left, by window
        self._score_before = 0.0
        self._clean = 0  # windows of our voice in which nothing like a voice was heard
        self._echoed_for = 0  # windows for which the line is taken to echo
        self._total = 0.0  # energy of the windows explained together

    @property
    def delay_ms(self) -> float | None:
        return None if self._lag is None else self._lag / _PER_MS

    def push(self, heard_16k: Samples, reference_16k: Samples, *, voice: bool = True) -> EchoEstimate:
        """One window: float32[512] at 16 kHz heard, and float32[512] played meanwhile.

        ``voice``: whether the window sounds like a voice; others are followed but not judged (score 0), which is
        what makes this cheap on a line without echo. Raises ``ValueError`` for windows of another length.
        """
        if heard_16k.shape != (WINDOW_SAMPLES,) or reference_16k.shape != (WINDOW_SAMPLES,):
            raise ValueError(f"expected float32[{WINDOW_SAMPLES}], got {heard_16k.shape} and {reference_16k.shape}")
        heard, self._heard_tail = self._halved(heard_16k, self._heard_tail)
        played, self._played_tail = self._halved(reference_16k, self._played_tail)
        _shift(self._heard, heard)
        _shift(self._played, played)
        self._fits.append(None)
        energy = float(heard @ heard)
        if float(played @ played) > _SILENCE * _N:
            self._audible = _PLAYED // _N
        elif self._audible:
            self._audible -= 1
        if not self._audible:
            self._left.append(energy)
            return EchoEstimate(0.0, self.delay_ms, _dbfs(energy / _N))
        self._left.append(self._room_left(energy))
        self._echoed_for = max(0, self._echoed_for - 1)
        if not voice:
            self._clean += float(played @ played) > _LOUD * _N
            return EchoEstimate(0.0, self.delay_ms, _dbfs(energy / _N), self._line_echoes)
        score = self._score()
        self._wait -= 1
        if score <= _EXPLAINED < self._score_before:  # something new: our echo, moved, or a person
            self._wait = 0
        if self._wait <= 0:
            if self._look():
                score = self._score()
            self._wait = _SELDOM if score > _EXPLAINED else 1 if self._score_before > _EXPLAINED else _AGAIN
        elif score <= _EXPLAINED:
            self._wait = min(self._wait, _AGAIN)
        self._score_before = score
        if score > _ECHOED:
            self._echoed_for = _REMEMBERED
        return EchoEstimate(
            score, self.delay_ms, _dbfs((1.0 - score) * self._total / len(self._heard)), self._line_echoes
        )

    @property
    def _line_echoes(self) -> bool:
        return self._echoed_for > 0 or self._clean < _PROVEN

    # --- 1. where is it? -------------------------------------------------------------------------

    def _look(self) -> bool:
        """Searches all delays; True if the one we go by changed."""
        peak, lag = _correlate(self._heard, self._played[_N:])
        again = self._candidate is not None and abs(lag - self._candidate) <= _SAME_LAG
        self._candidate = lag if peak > _LIKELY else None
        if self._lag is not None and (peak < _SURE or self._is_known(lag)):
            newest, newest_lag = _correlate(self._heard[-_NEWEST:], self._played[_PLAYED - _NEWEST - _MAX_LAG :])
            if newest > _SURE_NEWEST and not self._is_known(newest_lag):
                peak, lag = newest, newest_lag
        if peak < _LIKELY or (peak < _SURE and not again) or self._is_known(lag):
            return False
        before, self._lag = self._lag, max(lag, _EARLY)
        self._refit(before)
        self._follow_room()
        return True

    def _is_known(self, lag: int) -> bool:
        return self._lag is not None and abs(lag - self._lag) <= _PER_MS // 2

    def _refit(self, before: int | None) -> None:
        """The delay was ``before`` and is ``_lag``: finds since when, and lets older windows keep the old one."""
        assert self._lag is not None
        new = [self._fit(self._lag, age) for age in range(_HISTORY)]
        best = new
        if before is not None:
            old = [self._fits[-1 - age] or self._fit(before, age) for age in range(_HISTORY)]
            total = float(self._heard @ self._heard)
            best = min((new[:age] + old[age:] for age in range(1, _HISTORY + 1)), key=lambda fits: _left(fits, total))
        self._fits.extend(reversed(best))

    # --- 2. the short filter ---------------------------------------------------------------------

    def _score(self) -> float:
        self._total = float(self._heard @ self._heard) + 1e-9
        if self._lag is None or self._total < _SILENCE * len(self._heard):
            return 0.0
        left = sum(self._left)
        if left > (1.0 - _PLAIN) * self._total:  # else the room filter does, and the fit is saved
            left = min(left, self._short_left(self._lag))
        return min(1.0, max(0.0, 1.0 - left / self._total))

    def _short_left(self, lag: int) -> float:
        """Energy of the last windows that no filter of ``_TAPS`` around ``lag`` explains."""
        for age in range(_HISTORY):
            if self._fits[-1 - age] is None:
                self._fits[-1 - age] = self._fit(lag, age)
        return _left([fit for fit in self._fits if fit is not None], self._total)

    def _fit(self, lag: int, age: int) -> _Fit:
        """The normal equations of the window ``age`` windows ago."""
        end = _PLAYED - lag + _EARLY - age * _N
        played = np.lib.stride_tricks.sliding_window_view(self._played[end - _N - _TAPS + 1 : end], _TAPS)
        # In blocks that BLAS does not spread over threads, which would cost more than it saves.
        blocks = played.reshape(-1, _TAPS, _TAPS).transpose(0, 2, 1)
        heard = self._heard[len(self._heard) - (age + 1) * _N : len(self._heard) - age * _N]
        return _Fit((blocks @ blocks.transpose(0, 2, 1)).sum(axis=0), played.T @ heard)

    # --- 3. the room -----------------------------------------------------------------------------

    def _room_left(self, energy: float) -> float:
        """Energy of the newest window after the room filter, which learns from it."""
        if self._room is None:
            return energy
        return self._room.push(self._heard[-_N:], self._played_at(self._room.offset, 0))

    def _follow_room(self) -> None:
        """Starts a room filter at a new delay, and lets it learn from what is still there."""
        assert self._lag is not None
        offset = max(0, self._lag - _N // 2)
        if self._room is not None and abs(self._room.offset - offset) < _N // 3:
            return
        self._room = RoomFilter(offset, self._gain(self._lag))
        before = list(self._left)  # a window that the old delay explained stays explained
        for age in range(_HISTORY - 1, -1, -1):
            start = len(self._heard) - (age + 1) * _N
            left = self._room.push(self._heard[start : start + _N], self._played_at(offset, age))
            self._left.append(min(left, before[-1 - age]))

    def _gain(self, lag: int) -> float:
        """Power of the echo against what is played, at most: as if all that was heard were echo."""
        played = self._played[_PLAYED - lag - len(self._heard) : _PLAYED - lag]
        return float(self._heard @ self._heard) / (float(played @ played) + 1e-9)

    def _played_at(self, offset: int, age: int) -> Array:
        end = _PLAYED - offset - age * _N
        return self._played[end - _N : end]

    # --- small things ----------------------------------------------------------------------------

    def _halved(self, samples_16k: Samples, tail: Array) -> tuple[Array, Array]:
        wide: Array = np.concatenate((tail, samples_16k.astype(np.float64)))
        return np.convolve(wide, self._low, "valid")[::2], wide[len(wide) - len(tail) :]


@dataclass(frozen=True, slots=True)
class _Fit:
    """One window's part of the normal equations. ``gram``: [_TAPS, _TAPS]; ``cross``: [_TAPS]."""

    gram: Array
    cross: Array


def _left(fits: Sequence[_Fit], total: float) -> float:
    """What the best filter of ``_TAPS`` for all of these windows leaves of their energy, ``total``."""
    gram = np.sum([fit.gram for fit in fits], axis=0)
    cross = np.sum([fit.cross for fit in fits], axis=0)
    ridge = _RIDGE * np.trace(gram) / _TAPS + 1e-9
    taps = np.linalg.solve(gram + ridge * np.eye(_TAPS), cross)
    return float(total - 2.0 * taps @ cross + taps @ gram @ taps)


class RoomFilter:
    """The echo's path as a filter of ``PARTS`` windows that begins ``offset`` samples (8 kHz) after what was played.

    Per bin and part a weight and its uncertainty; a step as in the papers above. ``push`` takes float64[256] heard
    and played (``offset`` samples ago), and returns the energy that is left of the heard window.
    """

    PARTS = 6
    _KEEP = 0.998  # how much of the path is the same after 32 ms
    _DECAY = 0.6  # expected power of a part against the one before; of the first, ``gain``

    def __init__(self, offset: int, gain: float) -> None:
        self.offset = offset
        bins = _N + 1
        self._weights: Spectra = np.zeros((self.PARTS, bins), dtype=np.complex128)
        self._doubt: Array = np.outer(min(gain, 1.0) * self._DECAY ** np.arange(self.PARTS), np.ones(bins))
        self._spectra: Spectra = np.zeros((self.PARTS, bins), dtype=np.complex128)
        self._power: Array = np.zeros((self.PARTS, bins))
        self._error_power: Array = np.full(bins, 1e-6)
        self._before: Array = np.zeros(_N)

    def push(self, heard: Array, played: Array) -> float:
        spectra, power = self._spectra, self._power
        spectra[1:], power[1:] = spectra[:-1].copy(), power[:-1].copy()
        spectra[0] = np.fft.rfft(np.concatenate((self._before, played)))
        power[0] = np.square(spectra[0].real) + np.square(spectra[0].imag)
        self._before = played.copy()
        left = heard - np.fft.irfft((spectra * self._weights).sum(axis=0))[_N:]
        error = np.fft.rfft(np.concatenate((np.zeros(_N), left)))
        self._error_power = 0.5 * (self._error_power + np.square(error.real) + np.square(error.imag))
        gain = self._doubt / (0.5 * (power * self._doubt).sum(axis=0) + self._error_power + 1e-9)
        weights = np.fft.irfft(self._weights + gain * spectra.conj() * error, axis=1)
        weights[:, _N:] = 0.0  # each part is as long as a window, no longer
        self._weights = self._KEEP * np.fft.rfft(weights, axis=1)
        grown = (1.0 - self._KEEP**2) * (np.square(self._weights.real) + np.square(self._weights.imag))
        self._doubt = self._KEEP**2 * (1.0 - 0.5 * gain * power) * self._doubt + grown
        return float(left @ left)


def _correlate(heard: Array, played: Array) -> tuple[float, int]:
    """(normalised peak, its lag in samples) of the whitened signals' correlation; lags from 0 to ``_MAX_LAG``."""
    heard, played = _whitened(heard), _whitened(played)
    product = np.fft.rfft(played, _FFT) * np.fft.rfft(heard, _FFT).conj()
    correlation = np.abs(np.fft.irfft(product)[: _MAX_LAG + 1])  # [k]: lag of _MAX_LAG − k
    running = np.concatenate(((0.0,), np.cumsum(np.square(played))))
    energy = running[len(heard) :] - running[: -len(heard)]
    floor = 1e-3 * float(energy.max()) + 1e-12  # where next to nothing was played, nothing is alike
    alike = correlation / np.sqrt((energy + floor) * (float(heard @ heard) + 1e-12))
    best = int(np.argmax(alike))
    return float(alike[best]), _MAX_LAG - best


def _whitened(samples: Array) -> Array:
    spectrum = np.fft.rfft(samples, _FFT)
    magnitude = np.abs(spectrum)
    half = _SMOOTH // 2
    running = np.cumsum(np.pad(magnitude, (half + 1, half)))
    smooth = (running[_SMOOTH:] - running[:-_SMOOTH]) / _SMOOTH
    return np.fft.irfft(spectrum / (smooth + 1e-4 * float(magnitude.max()) + 1e-9))[: len(samples)]


def _shift(ring: Array, new: Array) -> None:
    ring[: -len(new)] = ring[len(new) :]
    ring[-len(new) :] = new


def _low_pass(taps: int = 31) -> Array:
    """A windowed sinc at a quarter of the rate, for halving it."""
    n = np.arange(taps) - taps // 2
    response = np.sinc(n / 2) * np.kaiser(taps, 6.0)
    halving: Array = response / response.sum()
    return halving


def _dbfs(power: float) -> float:
    return 10.0 * math.log10(power + 1e-12)
