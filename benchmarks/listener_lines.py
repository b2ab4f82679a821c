"""What the listener writes down of the same recordings on different lines, as a session hears them.

Each recording goes through a line, then through what every call goes through: the ear's resampler, voice activity,
the turn predictor's rule for when voice begins and ends, and the listener on what lies between. So a voice that the
line makes too faint to be noticed is counted as words that were missed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from duplex.benchmarks.narrowband import Line
from duplex.benchmarks.stimuli import Stimulus
from duplex.benchmarks.turns.material import Material
from duplex.benchmarks.turns.results import Interval
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Samples
from duplex.rates import StreamResampler
from duplex.thinker_talker.ear import WINDOW_PTS
from duplex.thinker_talker.gain import VoiceGain
from duplex.thinker_talker.moonshine import MoonshineModel
from duplex.thinker_talker.predictor import HeardWindow, OurSide, TurnPredictor
from duplex.thinker_talker.silero import SILERO_RATE_HZ, WINDOW_SAMPLES, SileroModel
from duplex.thinker_talker.turn_options import TurnOptions
from duplex.turn import Floor, User

_BEFORE_S, _AFTER_S = 0.5, 1.5
_LEAD_WINDOWS = 12  # what is recognised begins that much before the voice, as on a call
_TAIL_S = 0.1
_LISTENING = OurSide(Floor.LISTENING)
_USES = ("turn", "paused", "hesitation", "backchannel", "digits")
_FILLED = {"um", "uh", "ah", "hmm", "mm"}
_SPELLINGS = ((r"\bok\b", "okay"), (r"\bgonna\b", "going to"), (r"\bmr\.", "mister"), ("realis", "realiz"), ("’", "'"))
_NUMBERS = {
    str(number): word
    for number, word in enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())
}
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Understood:
    """One recording on one line. ``errors``: words wrong, missing or made up, of ``words``.

    ``noticed``: whether there was a voice at all. ``onset_ms``, ``offset_ms``: how long after its first (last) voiced
    sample the voice began (ended) for the predictor; below 0 it was before.
    """

    name: str
    said: str
    heard: str
    words: int
    errors: int
    noticed: bool
    onset_ms: float | None = None
    offset_ms: float | None = None


@dataclass(frozen=True, slots=True)
class WordErrors:
    """``rate``: errors in all words. The interval is the recordings' bootstrap, 95 %."""

    errors: int
    words: int
    recordings: int
    unnoticed: int
    interval: Interval

    @property
    def rate(self) -> float:
        return self.errors / max(1, self.words)


def spoken_by_people(material: Material) -> list[Stimulus]:
    """Every human recording of the split whose words are known, each once; monologues are made of the same files."""
    return [said for said in material.recordings if said.use in _USES and said.text]


def spoken_by_machine(material: Material) -> list[Stimulus]:
    """What else the suite says, each text once: interruptions, stops, questions and numbers, by eSpeak NG."""
    makers = (material.interruption, material.stop, material.follow_up, material.digits)
    found = {said.text: said for make in makers for k in range(40) if not (said := make(k)).human}
    return list(found.values())


class SessionEars:
    """Silero and Moonshine as a session uses them, one recording at a time."""

    def __init__(self, voice: SileroModel, listener: MoonshineModel) -> None:
        self._voice, self._listener = voice, listener

    def hear(self, said: Stimulus, line: Line, gain: VoiceGain | None = None) -> Understood:
        """``said`` at the end of ``line``. ``gain``: of the call that it is said on; it learns from it."""
        wanted = words(said.text)
        heard_16k, predictor, began = self._listen(line.through(said.samples), gain)
        ended = predictor.last_voiced_pts
        if began is None or ended is None:
            return Understood(said.name, said.text, "", len(wanted), len(wanted), False)
        first = max(0, began * SILERO_RATE_HZ // SAMPLE_RATE_HZ - _LEAD_WINDOWS * WINDOW_SAMPLES)
        last = ended * SILERO_RATE_HZ // SAMPLE_RATE_HZ + round(_TAIL_S * SILERO_RATE_HZ)
        text = self._listener.text(self._listener.recognize(heard_16k[first:last]).tokens)
        return Understood(
            said.name,
            said.text,
            text,
            len(wanted),
            word_errors(words(text), wanted),
            True,
            _ms(began) - said.voiced.start_ms,
            _ms(ended) - said.voiced.end_ms,
        )

    def _listen(self, samples: Samples, gain: VoiceGain | None) -> tuple[Samples, TurnPredictor, int | None]:
        """What the ear made of it at 16 kHz, the predictor after it, and when its voice began (samples at 24 kHz)."""
        before, after = (np.zeros(round(s * SAMPLE_RATE_HZ), np.float32) for s in (_BEFORE_S, _AFTER_S))
        sound = np.concatenate([before, samples, after])
        sound = sound[: len(sound) - len(sound) % PACKET_SAMPLES]
        resampler, stream = StreamResampler(SAMPLE_RATE_HZ, SILERO_RATE_HZ), self._voice.open()
        packets = [sound[start : start + PACKET_SAMPLES] for start in range(0, len(sound), PACKET_SAMPLES)]
        heard = np.concatenate([resampler.push(packet) for packet in packets])
        predictor, began = TurnPredictor(TurnOptions()), None
        for index in range(len(heard) // WINDOW_SAMPLES):
            window = heard[index * WINDOW_SAMPLES : (index + 1) * WINDOW_SAMPLES]
            [probability] = stream.push(window if gain is None else gain.apply(window))
            level = 10.0 * float(np.log10(np.dot(window, window) / WINDOW_SAMPLES + 1e-12))
            if gain is not None:
                gain.learn(level, probability)
            predictor.window(HeardWindow((index + 1) * WINDOW_PTS, WINDOW_PTS, probability, level), _LISTENING)
            if began is None and predictor.edges:
                began = predictor.edges[0][1]
            predictor.edges.clear()
            predictor.asks.clear()
            assert predictor.user is not User.INTERRUPTING  # nobody spoke but the user
        return heard, predictor, began


def words(text: str) -> list[str]:
    """As they are compared: lower case, digits as words, without punctuation and filled pauses.

    Numbers beyond twelve are spelled digit by digit, as they are in what is read out: "472" is "four seven two".
    """
    text = text.lower()
    for pattern, spelling in _SPELLINGS:
        text = re.sub(pattern, spelling, text)
    found = re.findall(r"[a-z']+|\d+", text)
    spelled = [each for word in found for each in ([word] if word in _NUMBERS or not word.isdigit() else word)]
    return [_NUMBERS.get(word, word) for word in spelled if word.strip("'") and word not in _FILLED]


def word_errors(heard: Sequence[str], said: Sequence[str]) -> int:
    """Levenshtein's distance in words."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]


def summed(understood: Sequence[Understood], seed: int = 0) -> WordErrors:
    """All of them together. Raises ``ValueError`` for none."""
    if not understood:
        raise ValueError("word errors of nothing")
    errors = np.array([one.errors for one in understood])
    counts = np.array([one.words for one in understood])
    drawn = _drawn(len(errors), seed)
    rates = errors[drawn].sum(axis=1) / np.maximum(1, counts[drawn].sum(axis=1))
    unnoticed = sum(not one.noticed for one in understood)
    return WordErrors(int(errors.sum()), int(counts.sum()), len(errors), unnoticed, _interval(rates))


def difference(these: Sequence[Understood], those: Sequence[Understood], seed: int = 0) -> Interval:
    """Where the difference of two word error rates (these less those) of the same recordings may lie, 95 %."""
    assert [one.name for one in these] == [one.name for one in those]
    more = np.array([one.errors - other.errors for one, other in zip(these, those, strict=True)])
    counts = np.array([one.words for one in these])
    drawn = _drawn(len(more), seed)
    return _interval(more[drawn].sum(axis=1) / np.maximum(1, counts[drawn].sum(axis=1)))


def _drawn(n: int, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.random.default_rng([seed, n]).integers(0, n, size=(_RESAMPLES, n))


def _interval(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Interval:
    return Interval(float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5)))


def _ms(pts: int) -> float:
    return pts * 1000.0 / SAMPLE_RATE_HZ - _BEFORE_S * 1000.0
