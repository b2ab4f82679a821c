"""Inputs changed the way a line, a careless client or an attacker changes them: flip, cut, repeat, splice, extremes."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

_NUMBERS = (
    b"0", b"-1", b"1", b"127", b"255", b"256", b"32768", b"65535", b"65536", b"2147483647", b"-2147483648",
    b"4294967296", b"9223372036854775808", b"1e308", b"1e999", b"-1e999", b"1e-999", b"NaN", b"0.1", b"9" * 400,
    b"9" * 5000, b"-0", b"00", b"0x10", "٣".encode(), b"true", b"null",
)  # fmt: skip
_INTERESTING = (0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF, 0x20, 0x0A, 0x22, 0x5C)
_ANYWHERE = (
    b"\x00", b"\xff\xff\xff\xff", b"\xf0\x9f\x98\x80", b"\xed\xa0\x80", b"\\ud800", b"\r\n", b'"', b"%00", b"../",
)  # fmt: skip
_DIGITS = re.compile(rb"-?\d+(?:\.\d+)?")


class Mutator:
    """``words``: of the format, to be put in anywhere. ``others``: gives an input to splice with."""

    def __init__(self, rng: random.Random, words: Sequence[bytes], others: Callable[[], bytes], max_bytes: int) -> None:
        self._rng, self._others, self._max_bytes = rng, others, max_bytes
        self._words = (*words, *_ANYWHERE)
        self._ways = (
            self._flip, self._set, self._cut, self._cut_tail, self._repeat, self._word, self._splice, self._number,
            self._number, self._integer, self._swap, self._nest, self._copy_line,
        )  # fmt: skip

    def __call__(self, data: bytes) -> bytes:
        """``data`` with one to eight changes, mostly few; at most ``max_bytes``."""
        for _ in range(1 + min(7, int(self._rng.expovariate(0.7)))):
            data = self._rng.choice(self._ways)(data)
        return data[: self._max_bytes]

    def _at(self, data: bytes) -> int:
        return self._rng.randrange(len(data) + 1)

    def _range(self, data: bytes) -> tuple[int, int]:
        start = self._at(data)
        length = min(len(data) - start, int(self._rng.expovariate(1 / 16)) + 1)
        return start, start + length

    def _flip(self, data: bytes) -> bytes:
        if not data:
            return data
        at = self._rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ (1 << self._rng.randrange(8))]) + data[at + 1 :]

    def _set(self, data: bytes) -> bytes:
        if not data:
            return data
        at = self._rng.randrange(len(data))
        value = self._rng.choice(_INTERESTING) if self._rng.random() < 0.5 else self._rng.randrange(256)
        return data[:at] + bytes([value]) + data[at + 1 :]

    def _cut(self, data: bytes) -> bytes:
        start, end = self._range(data)
        return data[:start] + data[end:]

    def _cut_tail(self, data: bytes) -> bytes:
        return data[: self._at(data)]

    def _repeat(self, data: bytes) -> bytes:
        start, end = self._range(data)
        piece = data[start:end]
        most = max(1, self._max_bytes // max(1, len(piece)))
        times = min(most, self._rng.choice((2, 3, 16, 300, 70_000)))
        return data[:end] + piece * times + data[end:]

    def _word(self, data: bytes) -> bytes:
        start, end = self._range(data)
        end = start if self._rng.random() < 0.5 else end
        return data[:start] + self._rng.choice(self._words) + data[end:]

    def _splice(self, data: bytes) -> bytes:
        other = self._others()
        start, end = sorted((self._at(other), self._at(other)))
        at = self._at(data)
        return data[:at] + other[start:end] + data[self._at(data) if self._rng.random() < 0.3 else at :]

    def _number(self, data: bytes) -> bytes:
        """A number in text to one at its end."""
        found = list(_DIGITS.finditer(data[:65_536]))
        if not found:
            return self._integer(data)
        match = self._rng.choice(found)
        return data[: match.start()] + self._rng.choice(_NUMBERS) + data[match.end() :]

    def _integer(self, data: bytes) -> bytes:
        """A binary number to one at its end."""
        size = self._rng.choice((1, 2, 4, 8))
        if len(data) < size:
            return data
        at = self._rng.randrange(len(data) - size + 1)
        order = self._rng.choice(("little", "big"))
        value = int.from_bytes(data[at : at + size], order)  # type: ignore[arg-type]
        top = (1 << 8 * size) - 1
        value = self._rng.choice((0, 1, top, top >> 1, (top >> 1) + 1, value + 1, value - 1, value * 2)) & top
        return data[:at] + value.to_bytes(size, order) + data[at + size :]  # type: ignore[arg-type]

    def _swap(self, data: bytes) -> bytes:
        a, b, c, d = sorted(self._at(data) for _ in range(4))
        return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]

    def _nest(self, data: bytes) -> bytes:
        """Something inside a great many brackets."""
        start, end = self._range(data)
        opening, closing = self._rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"(", b")")))
        depth = self._rng.choice((5, 17, 100, 500, 900, 960, 980, 990, 5000))
        return data[:start] + opening * depth + (data[start:end] or b"1") + closing * depth + data[end:]

    def _copy_line(self, data: bytes) -> bytes:
        lines = data.split(b"\n")
        line = self._rng.choice(lines)
        lines.insert(self._rng.randrange(len(lines) + 1), line)
        return b"\n".join(lines)
