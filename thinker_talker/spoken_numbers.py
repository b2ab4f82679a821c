"""Numbers in what a listener wrote down: "4711", "twenty five", "seven seven one", "12.50". English."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_UNITS = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen".split()
    )
}
_TENS = {
    word: 10 * value for value, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)
}
_DIGITS = {**{word: str(value) for word, value in _UNITS.items() if value < 10}, "oh": "0", "o": "0"}
_LARGE = ("hundred", "thousand")
_LONGEST = 40  # characters of a number; what is longer is none that somebody said
NUMBER_WORDS = frozenset((*_UNITS, *_TENS, *_LARGE))
_POINTING = re.compile(r"\b(this|that|the|which|other|another|each|every|any|some|no|right|wrong|only|last)\s+$", re.I)
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+|\S")


@dataclass(frozen=True, slots=True)
class Number:
    """``value``: an int, or a float where a fraction was said."""

    value: int | float


def numbers(text: str) -> list[Number]:
    """The numbers of ``text`` in order. Digits said one by one are one number: "seven seven one" is 771."""
    return [Number(_value(words)) for words in _groups(text)]


def digit_runs(text: str) -> list[str]:
    """Numbers as they would be dialled, in order: "4711", "55 12" as "5512", "one two" as "12". Keeps leading zeros."""
    runs: list[str] = []
    last_end = None
    for words, start, end in _spans(text):
        run = "".join(_as_digits(words))
        if last_end is not None and not text[last_end:start].strip(" -,") and runs:
            runs[-1] += run  # said in groups
        else:
            runs.append(run)
        last_end = end
    return list(dict.fromkeys(runs))


def _groups(text: str) -> list[list[str]]:
    return [words for words, _, _ in _spans(text)]


def _spans(text: str) -> list[tuple[list[str], int, int]]:
    """Words that make one number, with where they stand."""
    spans: list[tuple[list[str], int, int]] = []
    group: list[str] = []
    start = end = 0
    for match in _TOKEN.finditer(text):
        word = match.group().lower()
        if _is_number(word, group) and not (word == "," or _ends_before(group, word)):
            if not group:
                start = match.start()
            group.append(word)
            end = match.end()
            continue
        if group and (word == "-" or (word == "and" and group[-1] in _LARGE)):
            continue  # forty-two, two hundred and five
        if group:
            spans.append((group, start, end))
            group = []
        if _is_number(word, group):
            group, start, end = [word], match.start(), match.end()
    if group:
        spans.append((group, start, end))
    return [s for s in spans if not (s[0] == ["one"] and _POINTING.search(text, 0, s[1]))]  # "the other one"


def _is_number(word: str, group: Sequence[str]) -> bool:
    if word[0].isdecimal():
        return len(word) <= _LONGEST
    if word in _UNITS or word in _TENS:
        return True
    return bool(group) and (word in _LARGE or (word in ("oh", "o") and group[-1] in _DIGITS))


def _ends_before(group: Sequence[str], word: str) -> bool:
    """Whether ``word`` begins another number: after digits, or where it does not fit behind the word before."""
    if not group:
        return False
    last = group[-1]
    if word[0].isdecimal() or last[0].isdecimal():
        return not (word in _LARGE and last[0].isdecimal())
    if last in _TENS:
        return not (word in _UNITS and 0 < _UNITS[word] < 10) and word not in _LARGE
    if last in _UNITS and _UNITS[last] >= 10:
        return word not in _LARGE
    return last in _DIGITS and word not in _DIGITS and word not in _LARGE


def _value(words: Sequence[str]) -> int | float:
    if words[0][0].isdecimal():
        value: int | float = _digits_value(words[0])
        for word in words[1:]:
            value *= 100 if word == "hundred" else 1000
        return value
    if len(words) > 1 and all(word in _DIGITS for word in words):
        return int("".join(_DIGITS[word] for word in words))
    total = current = 0
    for word in words:
        if word == "hundred":
            current = max(1, current) * 100
        elif word == "thousand":
            total, current = total + max(1, current) * 1000, 0
        else:
            current += _UNITS.get(word, 0) + _TENS.get(word, 0)
    return total + current


def _digits_value(text: str) -> int | float:
    if re.fullmatch(r"\d{1,3}(,\d{3})+", text):
        return int(text.replace(",", ""))
    text = text.replace(",", ".")
    return float(text) if text.count(".") == 1 else int(text.replace(".", ""))


def _as_digits(words: Sequence[str]) -> list[str]:
    if words[0][0].isdecimal() and len(words) == 1:
        return [re.sub(r"[.,]", "", words[0])]
    if all(word in _DIGITS for word in words):
        return [_DIGITS[word] for word in words]
    return [str(_value(words))]
