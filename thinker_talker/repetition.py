"""A small model that has lost its way repeats itself: in a circle, as it listens or thinks, or reply after reply."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence

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


def unlooped(text: str) -> str:
    """``text`` with a turn or two of the circle at its end: who is shown a loop loops again."""
    words = list(re.finditer(r"[\w']+", text))[-_WORDS:]
    again = repeated_tail([word.group().casefold() for word in words])
    return f"{text[: words[-again - 1].end()]}." if again else text


class Opening:
    """Keeps a reply back for as long as its words are those that an earlier one began with.

    A reply that goes its own way does so within its first words, of which the talker waits for three anyhow.
    """

    WORDS = 6

    def __init__(self, earlier: Iterable[str], say: Callable[[str], object]) -> None:
        """``earlier``: replies before this one, as they were given."""
        self._earlier = [words_of(text) for text in earlier]
        self._say = say
        self._kept = ""
        self._own = not self._earlier
        self.repeats = False  # and nothing of it was said

    def say(self, text: str) -> bool:
        """Takes more of it. False: it repeats an earlier reply, and no more is wanted."""
        if self._own:
            self._say(text)
            return True
        self._kept += text
        words = words_of(self._kept.rpartition(" ")[0])
        if not any(words == other[: len(words)] for other in self._earlier):
            self._go()
        self.repeats = not self._own and len(words) >= self.WORDS
        return not self.repeats

    def close(self) -> None:
        """That was all of it."""
        if self._own or self.repeats:
            return
        words = words_of(self._kept)
        self.repeats = len(words) > 2 and words in self._earlier
        if not self.repeats:
            self._go()

    def _go(self) -> None:
        self._own = True
        if self._kept:
            self._say(self._kept)
