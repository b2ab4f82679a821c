"""Where a model begins to loop."""

from __future__ import annotations

import pytest

from duplex.thinker_talker.repetition import loops, repeated_tail


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
