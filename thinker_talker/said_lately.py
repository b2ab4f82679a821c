"""Our own words of the last seconds: what an echo on the line can consist of, and nothing else can."""

from __future__ import annotations

from collections.abc import Sequence

from duplex.agent import Word
from duplex.frames import SAMPLE_RATE_HZ

LATELY_S = 3.0
"""An overlap begins up to 0.6 s after the words that echo in it, and is judged within two seconds."""


class SaidLately:
    """The words of the reply that is made, and those of them that went out lately."""

    def __init__(self) -> None:
        self._words: list[Word] = []
        self._first = self._end = 0  # of those that were said lately
        self._text = ""

    def begin(self) -> None:
        """A new reply; until some of it was sent, what was said lately is the end of the one before."""
        self._words, self._first, self._end = [], 0, 0

    def add(self, words: Sequence[Word]) -> None:
        self._words.extend(words)

    def text(self, sent_s: float | None) -> str:
        """The words that were sent in the last ``LATELY_S`` of the reply, of which ``sent_s`` went out; ``None``: it is
        over, and its last words are what was said."""
        if not sent_s:
            return self._text
        sent = round(sent_s * SAMPLE_RATE_HZ)
        before = (self._first, self._end)
        while self._end < len(self._words) and self._words[self._end].start_samples < sent:
            self._end += 1
        long_ago = sent - round(LATELY_S * SAMPLE_RATE_HZ)
        while self._first < self._end and self._words[self._first].end_samples < long_ago:
            self._first += 1
        if (self._first, self._end) != before:
            self._text = " ".join(word.text for word in self._words[self._first : self._end])
        return self._text
