"""Word lists decide a lot, so each is asked about what people really say."""

from __future__ import annotations

import pytest

from duplex.thinker_talker.lexicon import asks_back, content_words, is_backchannel, is_hanging, own_share, says_stop


@pytest.mark.parametrize(
    "text", ["Uh-huh.", "Yeah.", "Mm-hmm.", "Okay, right.", "I see.", "Oh, wow!", "Got it. Yeah.", "Uh huh"]
)
def test_encouragement(text: str) -> None:
    assert is_backchannel(text)
    assert content_words(text) == 0


@pytest.mark.parametrize("text", ["", "Yeah, but what about Spain?", "What is that?", "Right, stop there.", "London."])
def test_not_encouragement(text: str) -> None:
    assert not is_backchannel(text)


@pytest.mark.parametrize(
    "text",
    ["Stop.", "Wait, wait.", "Hold on a second.", "No, not that one.", "Excuse me?", "Please stop.", "Oh, wait."],
)
def test_orders_to_stop(text: str) -> None:
    assert says_stop(text)


@pytest.mark.parametrize("text", ["", "Where does the bus stop?", "I know.", "Okay.", "Oh no.", "Please go on."])
def test_not_orders_to_stop(text: str) -> None:
    assert not says_stop(text)


@pytest.mark.parametrize(("text", "asks"), [("What?", True), ("Bye.", True), ("What a pity.", False), ("", False)])
def test_one_word_that_wants_an_answer(text: str, asks: bool) -> None:
    assert asks_back(text) is asks


@pytest.mark.parametrize(
    "text", ["I would like a", "And then,", "My number is", "Well, um...", "I was thinking about the"]
)
def test_hanging_sentences(text: str) -> None:
    assert is_hanging(text)


@pytest.mark.parametrize("text", ["", "What is this?", "I would like a coffee.", "Where is it to?", "Thank you."])
def test_finished_sentences(text: str) -> None:
    assert not is_hanging(text)


def test_content_is_counted_without_its_encouragement() -> None:
    assert content_words("Yeah, but what about Spain?") == 4


@pytest.mark.parametrize(
    ("heard", "least", "most"),
    [
        ("Aper could.", 0.7, 1.0),  # an echo that began and ended in the middle of words
        ("a piece of paper could", 1.0, 1.0),
        ("What about Spain?", 0.0, 0.4),
        ("Oh", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_our_own_words(heard: str, least: float, most: float) -> None:
    assert least <= own_share(heard, "Nobody knew what a piece of paper could do.") <= most
