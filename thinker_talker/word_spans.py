"""Which phonemes belong to which written word. Pure.

A phonemizer reads a clause as a whole: it joins small words ("of the" is one group), spells numbers
out ("25" is two groups) and weakens vowels in context. So counting groups is not enough. Each word is
also phonemized by itself, and the two phoneme strings are aligned symbol by symbol: a word's span is
from its first to its last symbol in the clause's reading, even inside a joined group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

_SILENT = frozenset(" .,;:!?¡¿—…\"'«»“”()-")  # groups' borders and pauses: part of no word
_MARKS = frozenset("ˈˌːʲ̩ˑ")  # stress, length and glides differ in context: no evidence of a word
_TRUSTED = 0.5  # share of a word's symbols that must be found for its span to count as exact


@dataclass(frozen=True, slots=True)
class Span:
    """Phonemes [start, stop) of the clause that say a word; start == stop for a word without sound."""

    start: int
    stop: int
    estimated: bool


def word_spans(words: Sequence[str], phonemes: Sequence[str], pronounce: Callable[[str], Sequence[str]]) -> list[Span]:
    """One span for each word, in order, not overlapping. ``pronounce`` gives a word's phonemes by itself."""
    groups = _groups(phonemes)
    if len(groups) == len(words) and all(word.strip(".,;:!?\"'()").isalpha() for word in words):
        return [Span(a, b, False) for a, b in groups]
    sounds = [(i, p) for i, p in enumerate(phonemes) if p not in _SILENT and p not in _MARKS]
    owners: list[int] = []  # of each expected symbol: the word it comes from
    expected: list[str] = []
    for number, word in enumerate(words):
        for p in pronounce(word):
            if p not in _SILENT and p not in _MARKS:
                owners.append(number)
                expected.append(p)
    claimed: list[int | None] = [None] * len(sounds)
    found = [0] * len(words)
    matcher = SequenceMatcher(None, expected, [p for _, p in sounds], autojunk=False)
    for tag, a0, a1, b0, b1 in matcher.get_opcodes():
        if a0 == a1:
            continue
        for b in range(b0, b1):
            a = a0 + (b - b0) * (a1 - a0) // (b1 - b0)
            claimed[b] = owners[a]
            found[owners[a]] += tag == "equal"
    _fill(claimed)
    spans: list[Span] = []
    cursor = 0
    for number in range(len(words)):
        mine = [sounds[b][0] for b, owner in enumerate(claimed) if owner == number]
        size = owners.count(number)
        if mine:
            start, stop = _with_marks(phonemes, max(mine[0], cursor), mine[-1] + 1)
            spans.append(Span(max(start, cursor), stop, found[number] < _TRUSTED * size))
            cursor = stop
        else:
            spans.append(Span(cursor, cursor, size > 0))
    return spans


def _groups(phonemes: Sequence[str]) -> list[tuple[int, int]]:
    """Maximal runs without a space, as [start, stop) of their sounding part; silent groups left out."""
    out: list[tuple[int, int]] = []
    start = 0
    for i in range(len(phonemes) + 1):
        if i == len(phonemes) or phonemes[i] == " ":
            sounding = [k for k in range(start, i) if phonemes[k] not in _SILENT]
            if sounding:
                out.append((sounding[0], sounding[-1] + 1))
            start = i + 1
    return out


def _fill(claimed: list[int | None]) -> None:
    """Symbols nothing was matched to go with the symbol before them (the first ones: with the one after)."""
    last: int | None = None
    for i, owner in enumerate(claimed):
        if owner is None:
            claimed[i] = last
        else:
            last = owner
    following: int | None = None
    for i in range(len(claimed) - 1, -1, -1):
        if claimed[i] is None:
            claimed[i] = following
        else:
            following = claimed[i]


def _with_marks(phonemes: Sequence[str], start: int, stop: int) -> tuple[int, int]:
    while start > 0 and phonemes[start - 1] in "ˈˌ":
        start -= 1
    while stop < len(phonemes) and phonemes[stop] in _MARKS and phonemes[stop] not in "ˈˌ":
        stop += 1
    return start, stop
