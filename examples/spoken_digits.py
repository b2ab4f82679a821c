"""The digits in what somebody said: "four two seven one", "forty-two seventy-one", "double four", "4271"."""

import re
from collections.abc import Callable

UNITS = {word: n for n, word in enumerate("zero one two three four five six seven eight nine".split())}
UNITS |= {"oh": 0, "o": 0, "nought": 0}
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
TEN_TO_NINETEEN = {word: n for n, word in enumerate(TEENS.split(), start=10)}
FULL_TENS = {word: 10 * n for n, word in enumerate(TENS.split(), start=2)} | {"fourty": 40}
TIMES = {"double": 2, "triple": 3}
LARGE = {"hundred": 100, "thousand": 1000}
LISTENERS_WRITE = {"for": "four", "fore": "four", "to": "two", "too": "two", "won": "one", "ate": "eight"}
FILLERS = {"um", "uh", "er", "erm", "and"}


def digits_in(text: str) -> str:
    """The longest row of digits in ``text``, the last one of several; empty if there is none.

    Words between them end a row, except "um" and its like. Where nothing else was said, "for" and "to" are numbers
    that the listener heard as words.
    """
    words = re.findall(r"[a-z]+|\d+", text.lower().replace(",", ""))
    if all(word in LISTENERS_WRITE or word in FILLERS or _is_number(word) for word in words):
        words = [LISTENERS_WRITE.get(word, word) for word in words]
    rows, row = [""], list[str]()
    for word in words:
        if _is_number(word):
            row.append(word)
        elif word not in FILLERS:
            rows.append(_digits(row))
            row = []
    rows.append(_digits(row))
    return max(reversed(rows), key=len)


def spelled(digits: str) -> str:
    """Digits to be read aloud one by one: "four, two, seven, one"."""
    names = {str(n): word for word, n in reversed(UNITS.items())}
    return ", ".join(names[digit] for digit in digits)


def _is_number(word: str) -> bool:
    tables = (UNITS, TEN_TO_NINETEEN, FULL_TENS, TIMES, LARGE)
    return word.isdigit() or any(word in table for table in tables)


def _digits(words: list[str]) -> str:
    """Number words in a row: "forty two" is 42, "four two" is 4 and 2, "four thousand five" is 4005."""
    found = ""
    while words:
        if words[0] in TIMES and len(words) > 1 and words[1] in UNITS:
            found += TIMES[words[0]] * str(UNITS[words[1]])
            words = words[2:]
        elif words[0].isdigit():
            found, words = found + words[0], words[1:]
        elif words[0] in TIMES or words[0] in LARGE:
            words = words[1:]  # of nothing
        else:
            number, words = _number(words)
            found += str(number)
    return found


def _number(words: list[str]) -> tuple[int, list[str]]:
    """The number that ``words`` begin with, and the words after it."""
    return _with_rest(*_below_thousand(words), "thousand", _below_thousand)


def _below_thousand(words: list[str]) -> tuple[int, list[str]]:
    return _with_rest(*_below_hundred(words), "hundred", _below_hundred)


def _with_rest(
    number: int, words: list[str], name: str, smaller: Callable[[list[str]], tuple[int, list[str]]]
) -> tuple[int, list[str]]:
    """Of "four thousand two hundred and seventy one", what comes after the four."""
    if not number or words[:1] != [name]:
        return number, words
    number, words = number * LARGE[name], words[1:]
    if words and (words[0] in FULL_TENS or words[0] in TEN_TO_NINETEEN or words[0] in UNITS):
        rest, words = smaller(words)
        number += rest
    return number, words


def _below_hundred(words: list[str]) -> tuple[int, list[str]]:
    word, rest = words[0], words[1:]
    if word in FULL_TENS:
        unit = UNITS.get(rest[0], 0) if rest else 0
        return FULL_TENS[word] + unit, rest[1:] if unit else rest
    return TEN_TO_NINETEEN.get(word, UNITS.get(word, 0)), rest
