"""What a listener keeps of one utterance, and where it may be cut.

Recognition looks at all audio at once, so its cost grows with the utterance. A long one is therefore
*frozen* piece by piece: the part before a pause is transcribed a last time, its text is committed and
its audio forgotten; only the tail is heard again with the next request. Pure logic: no thread, no
model, no clock.

Loudness is compared with the loudest 60 ms of the same audio, so nothing depends on the microphone's
gain; steady noise within 35 dB of the speech only means that less is trimmed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .listener import LISTENER_RATE_HZ, Samples16k

FRAME_SAMPLES = 320  # 20 ms

_SILENCE_DB = -75.0  # below this even the loudest frame is a closed microphone
_VOICED_BELOW_PEAK_DB = 35.0
_PAUSE_BELOW_PEAK_DB = 25.0

LEAD_SAMPLES = 3200  # kept before the first voiced frame: soft onsets (h, f, th)
TRAIL_SAMPLES = 2400  # kept after the last one
PAD_SAMPLES = 3200  # of digital silence after that; the last word is then more often right
_LONG_SILENCE_SAMPLES = 16_000
_SETTLED_SAMPLES = 1920  # after this much trail, more of it does not change the words


def _samples(seconds: float) -> int:
    return round(seconds * LISTENER_RATE_HZ)


@dataclass(frozen=True, slots=True)
class CutPolicy:
    """When a tail is cut. Longer tails read better; shorter ones are quicker."""

    soft_s: float = 8.0
    """A partial freezes what lies before the longest pause once the tail is this long."""
    hard_s: float = 16.0
    """Without any pause, or for a final, the tail is cut at this length."""
    capacity_s: float = 60.0
    """Audio kept when the worker does not keep up; beyond it the oldest is lost, and counted."""
    min_pause_s: float = 0.3
    min_piece_s: float = 2.0
    """Nothing shorter than this is frozen on its own."""
    min_tail_s: float = 0.6
    """The newest words are never frozen: their end may still be missing."""

    def __post_init__(self) -> None:
        if not 2 * self.min_piece_s < self.soft_s <= self.hard_s <= self.capacity_s:
            raise ValueError(f"expected 2 * min_piece_s < soft_s <= hard_s <= capacity_s, got {self}")


@dataclass(frozen=True, slots=True)
class Span:
    """Voiced part of a piece of audio, in samples, ``stop`` exclusive."""

    start: int
    stop: int

    def shifted(self, by: int) -> Span:
        return Span(self.start + by, self.stop + by)


@dataclass(frozen=True, slots=True)
class Recognition:
    """What a model made of one piece: ``tokens`` without start and end marks; ``logprob`` summed over ``steps``.

    ``ended``: its probability that a full stop, question or exclamation mark follows the last word; None: not known.
    """

    text: str
    tokens: tuple[int, ...] = ()
    logprob: float = 0.0
    steps: int = 0
    ended: float | None = None


EMPTY = Recognition("")


def frame_levels_db(samples: Samples16k) -> npt.NDArray[np.float64]:
    """Level of each whole 20 ms frame over 60 ms around it, dBFS: float64[n // 320]. A click hardly counts."""
    n_frames = len(samples) // FRAME_SAMPLES
    frames = samples[: n_frames * FRAME_SAMPLES].reshape(n_frames, FRAME_SAMPLES)
    power = np.einsum("ij,ij->i", frames, frames, dtype=np.float64) / FRAME_SAMPLES
    smooth = np.convolve(power, np.ones(3) / 3, mode="same") if n_frames >= 3 else power
    return np.asarray(10.0 * np.log10(smooth + 1e-12), dtype=np.float64)


def voiced_span(levels_db: npt.NDArray[np.float64]) -> Span | None:
    """From the first to the last voiced frame; ``None`` for silence."""
    if not len(levels_db) or levels_db.max() < _SILENCE_DB:
        return None
    voiced = np.flatnonzero(levels_db > max(levels_db.max() - _VOICED_BELOW_PEAK_DB, _SILENCE_DB))
    return Span(int(voiced[0]) * FRAME_SAMPLES, (int(voiced[-1]) + 1) * FRAME_SAMPLES)


def trimmed(samples: Samples16k, span: Span) -> Samples16k:
    """The voiced part with its margins, and digital silence after it."""
    piece = samples[max(0, span.start - LEAD_SAMPLES) : span.stop + TRAIL_SAMPLES]
    return np.concatenate((piece, np.zeros(PAD_SAMPLES, dtype=np.float32)))


def find_cut(levels_db: npt.NDArray[np.float64], policy: CutPolicy, *, final: bool) -> int | None:
    """Where to freeze, in samples from the start of the piece; ``None`` if it is fine whole."""
    per_s = LISTENER_RATE_HZ / FRAME_SAMPLES
    n_frames = len(levels_db)
    if n_frames <= (policy.hard_s if final else policy.soft_s) * per_s:
        return None
    first = math.ceil(policy.min_piece_s * per_s)
    last = min(n_frames - math.ceil(policy.min_tail_s * per_s), math.floor(policy.hard_s * per_s))
    window = levels_db[first:last]
    quiet = window < levels_db.max() - _PAUSE_BELOW_PEAK_DB
    edges = np.flatnonzero(np.diff(np.concatenate(([False], quiet, [False])).astype(np.int8)))
    runs = edges.reshape(-1, 2)  # [n, 2]: start and stop of each quiet run
    if len(runs):
        start, stop = max(runs.tolist(), key=lambda run: run[1] - run[0])
        if (stop - start) / per_s >= policy.min_pause_s:
            return (first + (start + stop) // 2) * FRAME_SAMPLES
    if n_frames <= policy.hard_s * per_s:
        return None
    half = len(window) // 2
    return (first + half + int(np.argmin(window[half:]))) * FRAME_SAMPLES


@dataclass(slots=True)
class Utterance:
    """One utterance as it grows. Positions count samples from its beginning."""

    policy: CutPolicy = field(default_factory=CutPolicy)
    end: int = 0
    """Samples pushed so far."""
    start: int = 0
    """First sample still kept; everything before it is frozen or lost."""
    lost_samples: int = 0
    draft: tuple[int, ...] = ()
    """The tail's most likely tokens, from the request before."""
    _pieces: list[str] = field(default_factory=list)
    _logprob: float = 0.0
    _steps: int = 0
    _ended: float | None = None
    _buffer: Samples16k = field(default_factory=lambda: np.zeros(_samples(4.0), dtype=np.float32))
    _known: tuple[Span, int, Recognition] | None = None
    """The latest recognition of the tail: what was voiced (positions), how far it heard, and what it was."""

    def append(self, samples: Samples16k) -> None:
        """Copies ``samples`` to the end. Amortised O(n); at most ``capacity_s`` is kept."""
        capacity = _samples(self.policy.capacity_s)
        excess = max(0, self.end - self.start + len(samples) - capacity)
        if excess:
            self.lost_samples += excess
            self._forget(self.start + min(excess, self.end - self.start))
            skipped = max(0, len(samples) - capacity)  # one push larger than all that is ever kept
            self.start += skipped
            self.end += skipped
            samples = samples[skipped:]
        kept = self.end - self.start
        if kept + len(samples) > len(self._buffer):
            grown = np.zeros(min(capacity, 2 * (kept + len(samples))), dtype=np.float32)
            grown[:kept] = self._buffer[:kept]
            self._buffer = grown
        self._buffer[kept : kept + len(samples)] = samples
        self.end += len(samples)

    def tail(self, end: int) -> tuple[int, Samples16k]:
        """Position of the first kept sample, and a copy of the audio from there up to ``end``."""
        return self.start, self._buffer[: max(0, end - self.start)].copy()

    def drop_silence(self, until: int) -> None:
        """Forgets the silence that the tail begins with and that lasts up to ``until``: waiting costs nothing."""
        if until - self.start > _LONG_SILENCE_SAMPLES:
            self._forget(until - _LONG_SILENCE_SAMPLES // 2)

    def commit(self, cut: int, piece: Recognition) -> None:
        """Freezes everything before position ``cut`` as ``piece``."""
        if piece.text:
            self._pieces.append(piece.text)
            self._ended = piece.ended
        self._logprob += piece.logprob
        self._steps += piece.steps
        self.draft = self.draft[len(piece.tokens) :]
        self._forget(cut)

    def known(self, span: Span, end: int) -> Recognition | None:
        """The recognition at hand if only silence has come since it was made. ``span`` in positions."""
        if self._known is None:
            return None
        voiced, heard, recognition = self._known
        same = voiced == span
        settled = heard == end or min(heard, end) - voiced.stop >= _SETTLED_SAMPLES
        return recognition if same and settled else None

    def learn(self, span: Span, end: int, recognition: Recognition) -> None:
        """Remembers the tail's recognition, as an answer and as the next request's draft."""
        self._known = (span, end, recognition)
        self.draft = recognition.tokens

    def text_with(self, tail: Recognition) -> str:
        return " ".join([*self._pieces, tail.text] if tail.text else self._pieces)

    def ended_with(self, tail: Recognition) -> float | None:
        """Of the last words there are."""
        return tail.ended if tail.text else self._ended

    def confidence_with(self, tail: Recognition) -> float:
        steps = self._steps + tail.steps
        return math.exp((self._logprob + tail.logprob) / steps) if steps else 0.0

    def _forget(self, position: int) -> None:
        if position <= self.start:
            return  # lost already: the worker was a whole capacity behind
        kept = self.end - position
        self._buffer[:kept] = self._buffer[position - self.start : self.end - self.start].copy()
        self.start = position
        if self._known is not None and self._known[0].start < position:
            self._known = None
