"""A small model that has lost its way loops, whether it listens or thinks. Where does it begin to?"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from .lexicon import words_of

_LONGEST_CYCLE = 10
_WORDS = 4 * _LONGEST_CYCLE


def repeated_tail(items: Sequence[Hashable]) -> int:
    """How many tokens (or words) at the end only repeat the ones before.

    People do repeat themselves ("no, no, no, no"), so a short cycle must come six times and a longer one
    four; all but the first are then counted.
    """
    for cycle in range(1, _LONGEST_CYCLE + 1):
        times = 6 if cycle <= 2 else 4
        if len(items) >= cycle * times:
            end = items[-cycle:]
            if all(items[-cycle * k : len(items) - cycle * (k - 1)] == end for k in range(2, times + 1)):
                return cycle * (times - 1)
    return 0


def loops(text: str) -> bool:
    """Whether the whole words at the end of ``text`` go round in a circle; its last one may still be growing."""
    return bool(repeated_tail(words_of(text[-12 * _WORDS :].rpartition(" ")[0])[-_WORDS:]))
