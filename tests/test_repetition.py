"""Where a model begins to loop."""

from __future__ import annotations

import pytest

from duplex.thinker_talker.repetition import Opening, loops, repeated_tail, unlooped


@pytest.mark.parametrize(
    ("tokens", "looped"),
    [
        ([1, 2, 3, 4], 0),
        ([5, 6] * 4, 0),  # "no, no, no, no"
        ([9, *[5] * 6], 5),
        ([9, *[5, 6] * 6], 10),
        ([9, *[1, 2, 3, 4] * 4], 12),
        ([9, *[1, 2, 3, 4] * 3], 0),
        ([*[1, 2, 3, 4] * 4, 9], 0),  # found its way out
    ],
)
def test_a_loop_is_counted_but_not_a_repetition(tokens: list[int], looped: int) -> None:
    assert repeated_tail(tokens) == looped


@pytest.mark.parametrize(
    ("text", "looped"),
    [
        ("The weather is sunny, sunny, sunny, sunny, sunny, sunny, sun", True),
        ("The weather is sunny, sunny, sunny, sunny, sunny, sunny", False),  # the last word may be another one yet
        ("It's a mop. " * 4 + "It", True),
        ("No, no, no, no! I said no. ", False),
        ("The cat loves to eat, the cat loves to sleep, the cat loves to chase, the cat loves to run, ", False),
        ("", False),
    ],
)
def test_a_reply_that_goes_round_in_a_circle_loops(text: str, looped: bool) -> None:
    assert loops(text) is looped


def opened(earlier: list[str], reply: str) -> tuple[str, bool, int]:
    """What was said of a reply that comes letter by letter, whether it repeats, and after how many letters it spoke."""
    said: list[str] = []
    opening, spoke_at = Opening(earlier, said.append), 0
    for n, letter in enumerate(reply):
        goes_on = opening.say(letter)
        spoke_at = spoke_at or (n + 1 if said else 0)
        if not goes_on:
            break
    opening.close()
    return "".join(said), opening.repeats, spoke_at


GLAD = "I'm glad you're here! How about next time?"


def test_a_reply_that_goes_its_own_way_is_said_whole_and_soon() -> None:
    assert opened([], "I'm glad.") == ("I'm glad.", False, 1)
    own = "I'm happy to hear that."
    assert opened([GLAD], own) == (own, False, len("I'm happy "))
    assert opened([GLAD], "I'm glad.") == ("I'm glad.", False, 0), "it ended before it could repeat anything"


def test_a_reply_that_begins_like_an_earlier_one_is_not_said() -> None:
    assert opened([GLAD, "Yes."], GLAD) == ("", True, 0)
    assert opened(["Paris is the one."], "Paris is the one.") == ("", True, 0)
    assert opened(["Yes, I do."], "Yes, I do.") == ("", True, 0)
    assert opened(["Thank you."], "Thank you.") == ("Thank you.", False, 0), "too short to be imitation"


def test_one_of_several_earlier_replies_is_enough() -> None:
    opening = Opening([GLAD, "Rome is a city."], [].append)
    assert not all(opening.say(letter) for letter in GLAD)


def test_of_a_loop_only_its_beginning_is_shown() -> None:
    mop = "Mfa is like a mop, it's like a mop, it's like a mop, it's like a mop, it's like a mop, it's like"
    assert unlooped(mop) == "Mfa is like a mop, it's like a mop, it's like."
    assert unlooped("No, no, no, no! I said no.") == "No, no, no, no! I said no."
    assert unlooped("") == ""
