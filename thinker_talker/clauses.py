"""Text deltas in, speakable clauses out, as early as prosody allows. Pure; no clock, no I/O.

Two machines in a row, both fed one character at a time so that how the text was cut into deltas can
never change the outcome:

* :class:`Cleaner` drops what must not be read aloud (markdown, emoji, control tokens, links'
  addresses) and folds white space;
* :class:`ClauseSplitter` decides at each gap between two words whether the words so far may go to
  the talker. It only ever cuts at white space, so ``3.14``, ``e.g.,`` and addresses stay whole.

``"".join(clauses) == clean(text)`` for every text and every chunking.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

# Symbols (category So/Sk) that are read aloud; every other one is a pictograph.
_SPOKEN_SYMBOLS = frozenset("°©®™№")
_SILENT_CATEGORIES = frozenset(("So", "Sk", "Cc", "Cf", "Cs", "Co", "Cn", "Me"))
_TIGHT = frozenset(",!?;:")  # no white space before these
_LONGEST_TOKEN = 40  # "<|" without "|>" within this many characters is just text
_LONGEST_ADDRESS = 500  # "](" without ")" within this many characters ends there

_NEVER_ENDS = frozenset(
    "mr mrs ms dr prof st sr jr vs gen col lt sgt capt rev hon mt ft fig vol pp approx dept est ave blvd".split()
)
_MAY_END = frozenset("etc e.g i.e a.m p.m inc ltd co corp no jan feb mar apr jun jul aug sep sept oct nov dec".split())
_INITIALS = re.compile(r"(?:[a-z]\.)*[a-z]$")  # "u.s", "j" (full stop already stripped, lower case)
_CLOSERS = "\"')]}»”’"

# A breath may be taken before these words.
_BREATH_BEFORE = frozenset(
    "and but or so because since while when where which who that if although though unless until "
    "with without for from in on at by as about into through during before after between than like to "
    "is are was were".split()
)
# ... and never after these.
_NO_BREATH_AFTER = frozenset(
    "a an the of to in on at by for from with and or but as is are was were be been my your his her its our "
    "their this that these those very more most not no i you he she it we they can will would could should".split()
)


class Cleaner:
    """Raw model text in, text to be read aloud out, one character at a time.

    A line end comes out as ``"\\n"``: white space to a reader, and a place to cut for the splitter.
    """

    def __init__(self) -> None:
        self._held = ""  # raw characters whose meaning hangs on what follows
        self._line_start = True
        self._last = ""  # last raw character that was kept, for underscores inside words
        self._gap = ""  # white space owed before the next visible character
        self._spoke = False
        self._spoken = ""  # last visible character that came out
        self._hidden = False  # inside <think> ... </think>

    def feed(self, char: str) -> str:
        """The cleaned text that ``char`` settles; often empty."""
        self._held += char
        return self._drain(end=False)

    def flush(self) -> str:
        return self._drain(end=True)

    def _drain(self, *, end: bool) -> str:
        out: list[str] = []
        while self._held:
            used = self._take(out, end)
            if not used:
                break
            self._held = self._held[used:]
        return "".join(out)

    def _take(self, out: list[str], end: bool) -> int:
        """Settle the start of what is held: returns how many characters that used, 0 to wait."""
        held = self._held
        c = held[0]
        if self._hidden:
            return self._leave_hidden(end)
        if c == "<":
            used = self._take_token(end)
            if used is None:
                return 0
            if used:
                return used
        if c == "]":
            used = self._take_address(end)
            if used is None:
                return 0
            return used
        if c == "_":
            if len(held) < 2 and not end:
                return 0
            inside_word = self._last.isalnum() and len(held) > 1 and held[1].isalnum()
            if not inside_word:
                return 1
        if self._line_start and c in "-+>•#":
            run = len(held) - len(held.lstrip(c))
            if run == len(held) and not end:
                return 0
            if run >= 3 or c in ">•#" or run == len(held) or held[run].isspace():
                return run
        if c in "*`#~[|\\" and not (c == "#" and not self._line_start):
            if c == "|":
                self._gap = self._gap or " "
            return 1
        self._emit(c, out)
        return 1

    def _take_token(self, end: bool) -> int | None:
        """``<|control|>`` or ``<think>`` at the start of what is held: its length, 0 if it is neither,
        None to wait."""
        held = self._held
        for tag in ("<think>", "</think>"):
            if held.startswith(tag):
                self._hidden = tag == "<think>"
                return len(tag)
            if tag.startswith(held) and not end:
                return None
        if held.startswith("<|"):
            close = held.find("|>")
            if close > 0:
                return close + 2
            if len(held) < _LONGEST_TOKEN:
                return len(held) if end else None
        return 0

    def _take_address(self, end: bool) -> int | None:
        """``](address)`` of a link. A lone bracket is dropped by itself."""
        held = self._held
        if len(held) == 1 and not end:
            return None
        if not held.startswith("]("):
            return 1
        close = held.find(")")
        if close > 0:
            return close + 1
        if len(held) < _LONGEST_ADDRESS and not end:
            return None
        return len(held)

    def _leave_hidden(self, end: bool) -> int:
        tag = "</think>"
        if self._held.startswith(tag):
            self._hidden = False
            return len(tag)
        if tag.startswith(self._held) and not end:
            return 0
        return 1

    def _emit(self, c: str, out: list[str]) -> None:
        if c.isspace():
            if c in "\n\r\v\f\x85\u2028\u2029":
                self._line_start = True
                self._gap = "\n"
            else:
                self._gap = self._gap or " "
            self._last = " "
            return
        if c not in _SPOKEN_SYMBOLS and unicodedata.category(c) in _SILENT_CATEGORIES:
            return
        if 0xFE00 <= ord(c) <= 0xFE0F:
            return
        if self._gap and self._spoke and c not in _TIGHT:
            # A line that just ends (a heading, a list item) is read with a pause, not run into the next.
            out.append("," + self._gap if self._gap == "\n" and self._spoken.isalnum() else self._gap)
        self._gap = ""
        out.append(c)
        self._spoke = True
        self._spoken = c
        self._line_start = False
        self._last = c


@dataclass(frozen=True, slots=True)
class ClauseLimits:
    """When a clause may go. The first one is let go early, since a silence is waiting for it."""

    first_words: int = 3  # the first clause may end before a breath word once it has this many words
    first_max_words: int = 6  # ... and at any tolerable gap from here on
    first_soft_chars: int = 3  # ... and at a comma from here on
    soft_chars: int = 40  # later clauses end at a comma from this length
    hard_chars: int = 12  # later sentences shorter than this wait for the next one
    long_chars: int = 110  # later clauses end before a breath word from this length
    max_chars: int = 220  # and at any gap from this one


class ClauseSplitter:
    """Incremental splitter for one reply. ``feed`` deltas, then ``flush`` once."""

    def __init__(self, limits: ClauseLimits | None = None) -> None:
        self.limits = limits or ClauseLimits()
        self._cleaner = Cleaner()
        self._done = ""  # words that are settled, each with the white space after it
        self._word = ""  # the word being spelled
        self._first = True

    def feed(self, delta: str) -> list[str]:
        """The clauses that ``delta`` completes. All but the reply's last end in white space."""
        return [clause for raw in delta for char in self._cleaner.feed(raw) for clause in self._step(char)]

    def flush(self) -> list[str]:
        """The reply is over: whatever is left. The splitter is then ready for another reply."""
        out = [clause for char in self._cleaner.flush() for clause in self._step(char)]
        rest = (self._done + self._word).replace("\n", " ")
        self.__init__(self.limits)  # type: ignore[misc]
        return [*out, rest] if rest else out

    def _step(self, char: str) -> Iterator[str]:
        if not char.isspace():
            if not self._word and self._done and self._ends_here(char):
                yield self._release()
            self._word += char
            return
        # A word is complete: the words before it may go, now that we know what follows them.
        if self._done and self._breath_before(self._word):
            yield self._release()
        self._done += self._word + (" " if char != "\n" else "\n")
        self._word = ""

    def _release(self) -> str:
        clause, self._done, self._first = self._done, "", False
        return clause.replace("\n", " ")

    def _ends_here(self, following: str) -> bool:
        """Does the punctuation before this gap end a clause? ``following`` is the next character."""
        limits, text = self.limits, self._done
        length = len(text) - 1
        if text[-1] == "\n":
            return self._first or length >= limits.hard_chars
        kind = boundary_after(text, following)
        if kind == "sentence":
            return self._first or length >= limits.hard_chars
        if kind == "clause":
            return length >= (limits.first_soft_chars if self._first else limits.soft_chars)
        return length >= limits.max_chars

    def _breath_before(self, word: str) -> bool:
        limits, text = self.limits, self._done
        count = text.count(" ") + text.count("\n")
        last = text.split()[-1].lower().strip("\"'(“‘")
        tolerable = last not in _NO_BREATH_AFTER
        breath = word.lower() in _BREATH_BEFORE
        if self._first:
            return tolerable and (count >= limits.first_max_words or (breath and count >= limits.first_words))
        return tolerable and breath and len(text) >= limits.long_chars


def boundary_after(text: str, following: str) -> str:
    """What the end of ``text`` marks: "sentence", "clause", or "" for nothing.

    ``following`` is the first character of the next word, which tells "at 5 p.m. Then" from
    "at 5 p.m. on".
    """
    words = text.split()
    if not words:
        return ""
    word = words[-1].rstrip(_CLOSERS)
    if word.endswith(("...", "…")):
        return "clause"
    if word.endswith(("!", "?", "。", "！", "？")):
        return "sentence"
    if word.endswith("."):
        stem = word[:-1].lstrip("\"'([{«“‘").lower()
        if stem in _NEVER_ENDS:
            return ""
        if stem.isdigit() and len(words) == 1:
            return ""  # "1." in a list
        if stem in _MAY_END or (_INITIALS.match(stem) and stem != "i"):
            single = len(stem) == 1
            return "sentence" if following.isupper() and not single else ""
        return "sentence"
    if word.endswith((",", ";", ":", "—", "–", "、", "，")) or word == "-":
        return "clause"
    return ""


def clean(text: str) -> str:
    """``text`` as it is read aloud: what a splitter's clauses join to."""
    cleaner = Cleaner()
    return ("".join(cleaner.feed(c) for c in text) + cleaner.flush()).replace("\n", " ")


def split(text: str, limits: ClauseLimits | None = None) -> list[str]:
    """All clauses of a whole text."""
    splitter = ClauseSplitter(limits)
    return [*splitter.feed(text), *splitter.flush()]
