"""Our own words of the last seconds."""

from __future__ import annotations

from duplex.agent import Word
from duplex.frames import SAMPLE_RATE_HZ
from duplex.thinker_talker.said_lately import SaidLately


def words(text: str, each_s: float = 0.5) -> list[Word]:
    n = round(each_s * SAMPLE_RATE_HZ)
    return [Word(word, k * n, (k + 1) * n) for k, word in enumerate(text.split())]


def test_only_what_went_out_in_the_last_seconds() -> None:
    said = SaidLately()
    said.add(words("one two three four five six seven eight nine ten"))
    assert said.text(0.4) == "one"
    assert said.text(0.6) == "one two"
    assert said.text(4.25) == "three four five six seven eight nine"
    assert said.text(5.0) == "four five six seven eight nine ten"


def test_the_end_of_a_reply_stays_until_something_of_the_next_went_out() -> None:
    said = SaidLately()
    said.add(words("good night"))
    assert said.text(1.0) == "good night"
    assert said.text(None) == "good night"
    said.begin()
    said.add(words("good morning"))
    assert said.text(0.0) == "good night"
    assert said.text(0.1) == "good"
