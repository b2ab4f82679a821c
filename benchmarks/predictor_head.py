"""A small learned head for the end of a turn: logistic regression on the predictor's own evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from duplex.thinker_talker.evidence import Pause
from duplex.thinker_talker.lexicon import ends_with_filler, is_counting, is_finished, is_hanging


def inputs(pause: Pause) -> dict[str, float]:
    """What the head sees of a pause, by name; all about ±1."""
    return {
        "bias": 1.0,
        "prosody": 0.0 if pause.prosody is None else _logit(pause.prosody) / 3.0,
        "finished": float(is_finished(pause.words)),
        "comma": float(pause.words.rstrip().endswith(",")),
        "hanging": float(is_hanging(pause.words)),
        "filler": float(ends_with_filler(pause.words)),
        "counting": float(is_counting(pause.words)),
        "expected": 0.0 if pause.expected is None else (_logit(pause.expected) + 1.5) / 3.0,
        "slope": 0.0 if pause.slope_st is None else max(-1.0, min(1.0, pause.slope_st / 6.0)),
        "fall": 0.0 if pause.fall_st is None else max(-1.0, min(1.0, pause.fall_st / 8.0)),
        "length": min(1.0, pause.voiced_s / 15.0),
    }


def _logit(p: float) -> float:
    p = min(max(p, 1e-3), 1.0 - 1e-3)
    return math.log(p / (1.0 - p))


@dataclass(frozen=True, slots=True)
class Head:
    weights: Mapping[str, float]

    def logit(self, values: Mapping[str, float]) -> float:
        return sum(self.weights[name] * value for name, value in values.items())


def fit(seen: Sequence[Mapping[str, float]], is_end: Sequence[bool], ridge: float = 1.0, rounds: int = 50) -> Head:
    """Logistic regression by Newton's method, ends and others weighted alike, with a ridge penalty."""
    names = list(seen[0])
    x = np.array([[values[name] for name in names] for values in seen])
    y = np.array(is_end, dtype=float)
    share = np.where(y > 0, 0.5 / max(1.0, y.sum()), 0.5 / max(1.0, (1 - y).sum())) * len(y)
    w: npt.NDArray[np.float64] = np.zeros(len(names))
    for _ in range(rounds):
        p = 1.0 / (1.0 + np.exp(-x @ w))
        slope = x.T @ (share * (p - y)) + ridge * w
        curve = (x * (share * p * (1 - p))[:, None]).T @ x + ridge * np.eye(len(names))
        w = w - np.linalg.solve(curve, slope)
    return Head(dict(zip(names, map(float, w), strict=True)))


def rank_quality(logits: Sequence[float], is_end: Sequence[bool]) -> float:
    """The area under the receiver's curve: how often an end ranks above another pause (ties count half)."""
    ends = np.array([z for z, end in zip(logits, is_end, strict=True) if end])
    others = np.array([z for z, end in zip(logits, is_end, strict=True) if not end])
    above = (ends[:, None] > others[None, :]).mean() + 0.5 * (ends[:, None] == others[None, :]).mean()
    return float(above)
