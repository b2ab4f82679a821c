"""Does the language model expect the turn to end here?"""

from __future__ import annotations

import math
import threading

import pytest

from duplex.thinker_talker.expectation import LlamaEndExpectation, end_probability, prompt


def test_what_ends_a_sentence_counts_and_what_goes_on_does_not() -> None:
    likeliest = [(".", math.log(0.4)), (" and", math.log(0.3)), ('."', math.log(0.1)), ("<|im_end|>", math.log(0.05))]
    assert end_probability(likeliest) == pytest.approx(0.55)
    assert end_probability([(",", math.log(0.9)), (" .5", math.log(0.05))]) == pytest.approx(0.05)
    assert end_probability([]) == 0.0


def test_the_listeners_punctuation_is_not_shown_and_a_long_turn_is_cut_from_the_front() -> None:
    assert prompt("I'd like to book a.") == prompt("I'd like to book a") == prompt("I'd like to book a, ")
    assert prompt(" ".join(f"w{n}" for n in range(500))).endswith("w498 w499")
    assert len(prompt("word " * 500)) < 400


class Broken:
    def handle_completions(self, request: object, take: object) -> None:
        raise RuntimeError("no")


def test_a_model_that_fails_gives_no_answer_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    expectation = LlamaEndExpectation(Broken(), slot=0)
    expectation.ask("Hello.", lambda p: pytest.fail("answered"))
    expectation.close()
    assert "could not be asked" in caplog.text


@pytest.mark.models
def test_the_default_model_tells_a_whole_sentence_from_half_of_one(models) -> None:  # type: ignore[no-untyped-def]
    from duplex.thinker_talker.llama import LlamaThinker

    thinker = LlamaThinker(next(models.path("smollm2-135m").glob("*.gguf")), sessions=1, context_tokens=256, threads=1)
    try:
        whole = ["What is the capital of France?", "I would like a cup of coffee.", "They went home."]
        half = ["What is the capital of", "I would like a", "They went to the"]
        found: dict[str, float] = {}
        answered = threading.Event()

        def keep(words: str, probability: float) -> None:
            found[words] = probability
            if len(found) == len(whole) + len(half):
                answered.set()

        assert thinker.expectation is not None
        for words in (*whole, *half):
            thinker.expectation.ask(words, lambda p, words=words: keep(words, p))  # type: ignore[misc]
        assert answered.wait(30)
        assert min(found[words] for words in whole) > 3 * max(found[words] for words in half)
    finally:
        thinker.close()
