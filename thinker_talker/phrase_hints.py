"""Phrases that are to be expected: a short utterance that is nearly one of them is taken for it.

"Stop." said over somebody is short, without context, and often a near tie for a small speech model ("Quiet, please."
and "Clyde, please." were 1.2 nats apart). Where such a phrase would matter, what the model wrote is therefore compared
with what it thinks of the phrases ("shallow contextual biasing"; Zhao et al. 2019 do so inside the beam). On the tuning
voices 29 of 30 commands then stop the agent, 26 without. "Shut up." is not among the phrases: a hummed "ah" is too
near to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .lexicon import is_backchannel

BIAS_NATS = 2.0  # between 1 and 5 the tuning voices give the same
LONGEST_S = 1.9  # of audio, with the quiet around it: a longer one is no bare command ...
_MOST_WORDS = 3  # ... and neither is one of more words

COMMANDS = (
    "Stop.",
    "Stop it.",
    "Stop, please.",
    "Please stop.",
    "Stop talking.",
    "Wait.",
    "Wait, please.",
    "Wait a second.",
    "Hold on.",
    "Hang on.",
    "Be quiet.",
    "Quiet.",
    "Quiet, please.",
    "Enough.",
    "That's enough.",
    "Pause.",
    "One moment.",
    "Just a second.",
)


def may_be_command(text: str) -> bool:
    """Whether what was written is short enough, and no encouragement: to take that for an order costs the reply."""
    return len(text.split()) <= _MOST_WORDS and not is_backchannel(text)


def tokenized(phrase: str, vocabulary: Sequence[bytes]) -> tuple[int, ...]:
    """``phrase`` in the longest pieces that ``vocabulary`` has (of equal pieces the last; the first are raw bytes).

    Raises ``ValueError`` if it cannot be written in them.
    """
    numbers = {piece: number for number, piece in enumerate(vocabulary) if piece}
    rest = ("▁" + phrase.replace(" ", "▁")).encode()
    tokens = []
    while rest:
        length = next((n for n in range(len(rest), 0, -1) if rest[:n] in numbers), 0)
        if not length:
            raise ValueError(f"the vocabulary cannot write {phrase!r}")
        tokens.append(numbers[rest[:length]])
        rest = rest[length:]
    return tuple(tokens)


def nearly(
    written_logprob: float,
    phrases: Sequence[tuple[int, ...]],
    first_logprob: Callable[[int], float],
    logprob: Callable[[tuple[int, ...]], float],
) -> tuple[tuple[int, ...], float] | None:
    """The likeliest of ``phrases`` and its log-probability, if it is within :data:`BIAS_NATS` of what was written.

    ``first_logprob`` of a first token is at hand and rules most of them out; ``logprob`` of a phrase, with its end, is
    a step of the model.
    """
    least = written_logprob - BIAS_NATS
    possible = [phrase for phrase in phrases if first_logprob(phrase[0]) >= least]
    scored = [(logprob(phrase), phrase) for phrase in possible]
    best = max(scored, default=None)
    return None if best is None or best[0] < least else (best[1], best[0])
