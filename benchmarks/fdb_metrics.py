"""Full-Duplex-Bench's offline metrics, from words, voiced stretches and annotated times. Pure.

Re-implemented from the rules in its evaluation code (github.com/DanielLin94144/Full-Duplex-Bench, folder
``v1_v1.5/evaluation``); each function names the file that has the rule. Times are seconds of the sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

TURN_S = 1.0
TURN_WORDS = 3
BACKCHANNEL_S, BACKCHANNEL_WORDS = 1.0, 2
FLOOR_S = 3.0
"""One voiced stretch longer than this has the floor, whatever it says."""
WINDOW_S, EPSILON = 0.2, 1e-10
USER_GAP_S, AGENT_GAP_S = 0.6, 0.5

Stretch = tuple[float, float]
"""(start, end) in seconds."""


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """One word of a transcript. Some recognisers leave the end of the last word open: ``end_s`` is None."""

    text: str
    start_s: float
    end_s: float | None


# --- taking the turn -------------------------------------------------------------------------------------


def took_turn(words: Sequence[SpokenWord]) -> bool:
    """TOR of one sample: False for silence, or for at most three words in less than a second; else True.

    The time runs from the first word's start to the last one's end, pauses included. Rule: ``eval_pause_handling.py``,
    ``eval_smooth_turn_taking.py``, ``eval_user_interruption.py``.
    """
    if not words:
        return False
    last = words[-1]
    spoken_s = (last.start_s if last.end_s is None else last.end_s) - words[0].start_s
    return spoken_s >= TURN_S or len(words) > TURN_WORDS


def latency_s(words: Sequence[SpokenWord], since_s: float) -> float | None:
    """First word's start after ``since_s``; a start before it counts as 0; None unless the turn was taken."""
    return max(0.0, words[0].start_s - since_s) if took_turn(words) else None


# --- backchannels ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Backchannels:
    """``took_turn``: as the original has it, the last stretch decides unless one lasts over 3 s; ``ever_took_turn``:
    any stretch was more than a backchannel. ``stretches``: all that are counted, in order."""

    took_turn: bool
    ever_took_turn: bool
    stretches: tuple[Stretch, ...]


def backchannels(voiced: Sequence[Stretch], words: Sequence[SpokenWord]) -> Backchannels:
    """What an agent said over a user's story. Rule: ``eval_backchannel.py``.

    A stretch over 3 s takes the turn and ends the count. A shorter one is counted, and takes the turn unless it is
    under 1 s with at most two words.
    """
    verdict = ever = False
    counted: list[Stretch] = []
    for start, end in voiced:
        if end - start > FLOOR_S:
            return Backchannels(True, True, tuple(counted))
        said = sum(_within(word, start, end) for word in words)
        verdict = end - start >= BACKCHANNEL_S or said > BACKCHANNEL_WORDS
        ever = ever or verdict
        counted.append((start, end))
    return Backchannels(verdict, ever, tuple(counted))


def _within(word: SpokenWord, start: float, end: float) -> bool:
    if word.end_s is None:
        return False
    return (word.start_s <= end and word.end_s > start) or start <= word.start_s <= word.end_s <= end


def divergence(stretches: Sequence[Stretch], duration_s: float, reference: Sequence[float]) -> float:
    """How far backchannels lie from where people put them: 0 the same places, 1 none at all (or, nearly, elsewhere).

    Jensen-Shannon distance (the square root of the divergence, natural logarithm, so at most 0.833) between the
    share of stretches in each window of 0.2 s and ``reference``, stretched to as many windows. Rule:
    ``eval_backchannel.py``, where no backchannel at all is set to 1.
    """
    if not stretches:
        return 1.0
    counts = np.zeros(int(duration_s / WINDOW_S) + 1)
    for start, end in stretches:
        counts[int(start / WINDOW_S) : int(end / WINDOW_S) + 1] += 1
    said = (counts + EPSILON) / np.sum(counts + EPSILON)
    people = np.interp(np.linspace(0, 1, len(said)), np.linspace(0, 1, len(reference)), reference)
    return jensen_shannon_distance(said, people)


def jensen_shannon_distance(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
    """Square root of the Jensen-Shannon divergence in nats; ``p`` and ``q`` (float64[n]) are brought to sum 1."""
    p, q = p / np.sum(p), q / np.sum(q)
    middle = (p + q) / 2
    left, right = (float(np.sum(each[each > 0] * np.log(each[each > 0] / middle[each > 0]))) for each in (p, q))
    return math.sqrt(max(0.0, (left + right) / 2))


# --- overlaps (v1.5) ----------------------------------------------------------------------------------------


def merged(stretches: Sequence[Stretch], gap_s: float) -> list[Stretch]:
    """Stretches in order, those at most ``gap_s`` apart made one. Rule: ``get_timing.py``."""
    found: list[Stretch] = []
    for start, end in sorted(stretches):
        if found and start - found[-1][1] <= gap_s:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def stop_intervals(user: Sequence[Stretch], agent: Sequence[Stretch]) -> list[Stretch]:
    """Where both spoke at once: from when the second began until the first fell silent, in order of their ends.

    Of two that end in the same millisecond the shorter counts. Rule: ``get_timing.py``, ``latency_stop_list``.
    """
    best: dict[int, Stretch] = {}
    for theirs in user:
        for ours in agent:
            start, end = max(theirs[0], ours[0]), min(theirs[1], ours[1])
            key = round(end * 1000)
            if end > start and (key not in best or end - start < best[key][1] - best[key][0]):
                best[key] = (start, end)
    return [(round(start, 3), round(end, 3)) for start, end in sorted(best.values(), key=lambda each: each[1])]


def response_intervals(user: Sequence[Stretch], agent: Sequence[Stretch]) -> list[Stretch]:
    """From where the user fell silent to the agent's next beginning; of several with the same beginning the shortest.

    Rule: ``get_timing.py``, ``latency_resp_list``.
    """
    best: dict[int, Stretch] = {}
    for _, end in user:
        start = next((start for start, _ in agent if start > end), None)
        if start is not None:
            key = round(start * 1000)
            if key not in best or round(end, 3) > best[key][0]:
                best[key] = (round(end, 3), round(start, 3))
    return sorted(best.values(), key=lambda each: each[1])


def at_event(intervals: Sequence[Stretch], event: Stretch) -> float | None:
    """Length of the first stop interval that touches the annotated overlap; None if none does. Our own rule."""
    return next((end - start for start, end in intervals if start < event[1] and end > event[0]), None)


def after_event(intervals: Sequence[Stretch], event: Stretch, slack_s: float = 0.5) -> float | None:
    """Length of the first response interval that begins at or after the annotated overlap's end. Our own rule.

    ``slack_s``: annotations end with the file that was mixed in, the voice in it a little earlier.
    """
    return next((end - start for start, end in intervals if start >= event[1] - slack_s), None)
