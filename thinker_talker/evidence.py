"""What speaks for which state of the user: small separate parts whose logits add up.

Theory of operation
-------------------
Two questions are asked, at different moments, and each has a table of parts.

*At a pause of the user's turn*: is the turn complete? Every part of :data:`AT_PAUSE` gives a logit, positive for
yes; their sum z says how much silence ends the turn (:func:`silence_needed_s`). No part can end a turn by
itself, and with every part switched off z is 0: a plain silence timer.

*When the user speaks over us*: are they interrupting, encouraging, or not speaking to us? Every part of
:data:`OVER_US` adds to the logits of those states; *undecided* (SPEAKING) competes with them and loses ground
as time passes. The state with the largest logit is the decision.

Everything is causal: a part sees what was known at that moment. The weights are round numbers set on the tuning
split; the log of learning them instead is in docs/decisions.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from duplex.turn import User

from .lexicon import (
    asks_back,
    content_words,
    ends_with_filler,
    is_answer,
    is_backchannel,
    is_counting,
    is_finished,
    is_hanging,
    says_stop,
    words_of,
)
from .turn_options import TurnOptions

_OWN_WORDS = 0.6
_NOT_OURS = 0.3
_ENOUGH_WORDS = 3
_LIMIT = 4.0  # no single part may outweigh all others, except a word that is meant as a command


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause of the user's turn, as known at one moment. ``None``: not known (yet).

    ``words``: the turn so far; ``settled``: they reach up to this pause. ``ended``: the
    listener's probability that a sentence ends with them. ``prosody``: the end-of-turn model's
    probability. ``expected``: the language model's that a sentence of these words is over. ``fall_st``: how far the
    pitch ended below the turn's median, semitones; ``slope_st``: how far it rose in its last syllable.
    ``voiced_s``: voice in it.
    """

    voiced_s: float
    words: str = ""
    settled: bool = False
    ended: float | None = None
    prosody: float | None = None
    fall_st: float | None = None
    slope_st: float | None = None
    expected: float | None = None


@dataclass(frozen=True, slots=True)
class Overlap:
    """Speech over our own voice, as known at one moment.

    ``voice``: still going on; ``quiet_s`` since it paused. ``echo``: share of it that our own voice explains.
    ``below_usual_db``: how far under the user's usual level it is. ``our_question``: it began in the last second
    of a reply of ours that asks something. ``own_words``: share of its letters that we are saying ourselves, on a line
    that may echo; ``line_echoes``: it does, or nobody can say yet.
    """

    voice: bool
    voiced_s: float
    quiet_s: float
    words: str = ""
    settled: bool = False
    echo: float = 0.0
    below_usual_db: float | None = None
    our_question: bool = False
    own_words: float = 0.0
    line_echoes: bool = False


# --- at a pause -------------------------------------------------------------------------------------


def _prosody(pause: Pause, options: TurnOptions) -> float:
    if pause.prosody is None:
        return 0.0
    return 0.7 * _clip(_logit(pause.prosody) - _logit(options.complete_threshold), 3.5)


def _expectation(pause: Pause, options: TurnOptions) -> float:
    if pause.expected is None or not pause.settled:
        return 0.0
    return 0.8 * max(-3.0, min(2.0, _logit(pause.expected) + 1.5))


def _words(pause: Pause, options: TurnOptions) -> float:
    if not pause.words:
        return 0.0
    if ends_with_filler(pause.words):
        return -5.0
    if is_hanging(pause.words):
        return -2.0
    if is_counting(pause.words):
        return -4.5
    if pause.ended is None:
        return 0.5 if is_finished(pause.words) else -0.5
    return 0.4 * _clip(_logit(pause.ended) - 0.5)


def _intonation(pause: Pause, options: TurnOptions) -> float:
    """A voice that comes down to its end is at its end; one that stays up or rises goes on, or asks."""
    z = 0.0 if pause.fall_st is None else _clip(0.1 * (pause.fall_st - 2.0), 1.0)
    if pause.slope_st is not None:
        rising = max(-2.5, min(1.5, -0.3 * (pause.slope_st + 1.0)))
        z += 0.5 * rising if pause.words.rstrip().endswith("?") else rising
    return z


def _floor(pause: Pause, options: TurnOptions) -> float:
    """A word or two are rarely all that somebody has to say, and who has spoken for long may have more."""
    return -0.5 if pause.voiced_s < 0.8 or pause.voiced_s > 20.0 else 0.0


AT_PAUSE: Mapping[str, Callable[[Pause, TurnOptions], float]] = {
    "prosody": _prosody,
    "words": _words,
    "expectation": _expectation,
    "intonation": _intonation,
    "floor": _floor,
}


def completeness(pause: Pause, options: TurnOptions) -> dict[str, float]:
    """The logit of each part that is switched on."""
    return {name: part(pause, options) for name, part in AT_PAUSE.items() if name not in options.without}


def silence_needed_s(z: float, options: TurnOptions) -> float:
    """The silence that ends a turn on evidence z: straight lines through the four named points."""
    o = options
    silences_s = (o.silence_most_s, o.silence_unlikely_s, o.silence_unknown_s, o.silence_likely_s)
    return float(np.interp(z, (-5.0, -2.0, 0.0, 2.0), silences_s))


# --- over our own voice ------------------------------------------------------------------------------

Logits = dict[User, float]


def _overlap_words(overlap: Overlap, options: TurnOptions) -> Logits:
    if not overlap.words:
        return {User.NOT_ADDRESSED: 3.0} if overlap.settled and not overlap.voice else {}
    piece = overlap.voiced_s < options.word_s and overlap.quiet_s < options.decide_s  # "O-kay" begins as "No."
    if says_stop(overlap.words) and not piece:
        return {User.INTERRUPTING: 9.0}
    if is_backchannel(overlap.words):
        # While they speak on it may be "yeah, but …", so undecided still wins.
        return {User.BACKCHANNEL: 1.0 if overlap.voice else 5.0, User.INTERRUPTING: -4.0}
    if piece or (overlap.line_echoes and overlap.voiced_s < options.echo_words_s and not _is_of_others(overlap)):
        return {}  # what is heard of a piece of our own voice is any word
    if asks_back(overlap.words) and not overlap.voice:
        return {User.INTERRUPTING: 9.0}
    if content_words(overlap.words) >= options.interrupt_words:
        return {User.INTERRUPTING: 5.0}
    return {}


def _is_of_others(overlap: Overlap) -> bool:
    """Enough words to tell that they are not ours, though part of the voice they were said in lay under our echo."""
    return overlap.settled and overlap.own_words < _NOT_OURS and len(words_of(overlap.words)) >= _ENOUGH_WORDS


def _overlap_length(overlap: Overlap, options: TurnOptions) -> Logits:
    """Encouragement is short; who speaks on wants the floor."""
    if overlap.voice:  # how short it is says nothing yet
        return {User.INTERRUPTING: _clip(max(0.0, 2.0 + (overlap.voiced_s - options.interrupt_s) * 40.0))}
    # A word that is no encouragement, as far as it was understood, need not be as long.
    limit_s = options.backchannel_s - (0.2 if content_words(overlap.words) else 0.0)
    return {User.INTERRUPTING: _clip((overlap.voiced_s - limit_s) * 40.0)}


def _overlap_level(overlap: Overlap, options: TurnOptions) -> Logits:
    if overlap.below_usual_db is None or overlap.below_usual_db < options.faint_db:
        return {}
    return {User.NOT_ADDRESSED: 6.0, User.INTERRUPTING: -6.0}


def _overlap_echo(overlap: Overlap, options: TurnOptions) -> Logits:
    if overlap.echo < options.echo_threshold:
        return {}
    return {User.NOT_ADDRESSED: 8.0, User.INTERRUPTING: -4.0}


def _overlap_own_words(overlap: Overlap, options: TurnOptions) -> Logits:
    """What is heard is what we say: an echo that the score let pass. On a line that has none, people repeat us too."""
    return {User.NOT_ADDRESSED: 7.0, User.INTERRUPTING: -7.0} if overlap.own_words >= _OWN_WORDS else {}


def _overlap_question(overlap: Overlap, options: TurnOptions) -> Logits:
    """ "Yes" as we finish asking is an answer, not encouragement."""
    return {User.INTERRUPTING: 14.0} if overlap.our_question and is_answer(overlap.words) else {}


OVER_US: Mapping[str, Callable[[Overlap, TurnOptions], Logits]] = {
    "words": _overlap_words,
    "length": _overlap_length,
    "level": _overlap_level,
    "echo": _overlap_echo,
    "own words": _overlap_own_words,
    "question": _overlap_question,
}


def overlap_logits(overlap: Overlap, options: TurnOptions) -> Logits:
    """Logits of SPEAKING (undecided), INTERRUPTING, BACKCHANNEL and NOT_ADDRESSED."""
    total: Logits = {
        User.SPEAKING: _undecided(overlap, options),
        User.INTERRUPTING: 0.0,
        User.BACKCHANNEL: 0.0,
        User.NOT_ADDRESSED: -1.0,
    }
    for name, part in OVER_US.items():
        if name not in options.without:
            for user, logit in part(overlap, options).items():
                total[user] += logit
    return total


def _undecided(overlap: Overlap, options: TurnOptions) -> float:
    """Waiting for more is right while more can come."""
    if overlap.voice:
        return 2.0
    covered = overlap.line_echoes and content_words(overlap.words) > 0  # it may go on under our echo
    if overlap.settled and overlap.quiet_s >= (options.echo_decide_s if covered else options.decide_s):
        return -6.0
    return -6.0 if overlap.quiet_s >= options.decide_limit_s else 3.0


def softmax(logits: Mapping[User, float]) -> dict[User, float]:
    top = max(logits.values())
    weights = {user: math.exp(logit - top) for user, logit in logits.items()}
    total = sum(weights.values())
    return {user: weight / total for user, weight in weights.items()}


def sigmoid(z: float) -> float:
    return 1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, z))))


def _logit(p: float) -> float:
    p = min(max(p, 1e-4), 1.0 - 1e-4)
    return math.log(p / (1.0 - p))


def _clip(value: float, limit: float = _LIMIT) -> float:
    return max(-limit, min(limit, value))
