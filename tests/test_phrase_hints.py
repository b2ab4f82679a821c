"""Commands to stop, said over somebody: what is nearly one is taken for it, and nothing else is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import soxr

from duplex.benchmarks.turns.material import Material
from duplex.frames import SAMPLE_RATE_HZ
from duplex.thinker_talker.lexicon import only_says_stop, says_stop
from duplex.thinker_talker.moonshine import MoonshineModel
from duplex.thinker_talker.phrase_hints import BIAS_NATS, COMMANDS, may_be_command, nearly, tokenized
from duplex.weights import ModelStore

VOCABULARY = [b"", "▁".encode(), b"S", b"t", b"o", b"p", b".", "▁Stop".encode(), b"."]


def test_a_phrase_is_written_in_the_longest_pieces_and_never_in_raw_bytes() -> None:
    assert tokenized("Stop.", VOCABULARY) == (7, 8)
    assert tokenized("Sop.", VOCABULARY) == (1, 2, 4, 5, 8)


def test_a_phrase_that_cannot_be_written_is_an_error() -> None:
    with pytest.raises(ValueError, match="Quiet"):
        tokenized("Quiet.", VOCABULARY)


@pytest.mark.parametrize(
    ("logprob", "taken"), [(-1.0, True), (-2.0 - BIAS_NATS + 0.01, True), (-2.0 - BIAS_NATS - 0.01, False)]
)
def test_only_what_is_nearly_as_likely_is_taken(logprob: float, taken: bool) -> None:
    meant = nearly(-2.0, [(1, 2)], lambda token: 0.0, lambda phrase: logprob)
    assert meant == (((1, 2), logprob) if taken else None)


def test_the_likeliest_is_taken_and_an_unlikely_beginning_is_not_looked_at() -> None:
    looked_at = []

    def logprob(phrase: tuple[int, ...]) -> float:
        looked_at.append(phrase)
        return {(1, 2): -3.0, (1, 3): -2.5}[phrase]

    first = {1: -0.5, 4: -20.0}
    assert nearly(-2.0, [(1, 2), (4, 5), (1, 3)], first.__getitem__, logprob) == ((1, 3), -2.5)
    assert looked_at == [(1, 2), (1, 3)]


@pytest.mark.parametrize(
    ("text", "may_be"), [("Clyde, please.", True), ("", True), ("Huh?", False), ("I think so too.", False)]
)
def test_encouragement_and_sentences_are_left_alone(text: str, may_be: bool) -> None:
    assert may_be_command(text) == may_be


def test_every_command_is_a_command_to_the_lexicon() -> None:
    assert all(says_stop(command) for command in COMMANDS)
    assert [command for command in COMMANDS if not only_says_stop(command)] == ["Enough."]


@pytest.fixture(scope="module")
def model(models: ModelStore) -> MoonshineModel:
    return MoonshineModel(models.path("moonshine-tiny-en"))


def heard(model: MoonshineModel, samples: np.ndarray, *, commands: bool) -> str:
    quiet = np.zeros(SAMPLE_RATE_HZ // 10, dtype=np.float32)
    sound = soxr.resample(np.concatenate([quiet, samples, quiet]), SAMPLE_RATE_HZ, 16_000).astype(np.float32)
    return model.recognize(sound, commands=commands).text


@pytest.mark.models
def test_near_ties_become_commands_and_nothing_else_does(model: MoonshineModel) -> None:
    material = Material("tuning", ())
    voices = material.voices
    orders = [
        material.say(text, 0, voice).samples for voice in voices for text in ("Quiet, please.", "Stop it.", "Enough.")
    ]
    plain, hinted = ([heard(model, order, commands=c) in COMMANDS for order in orders] for c in (False, True))
    assert sum(hinted) >= sum(plain) + 3
    assert sum(hinted) >= 12, "of 15"
    for said in ("Right.", "Sure.", "Yep.", "Why would anyone do that?", "How much does it cost?"):
        for voice in voices:
            samples = material.say(said, 0, voice).samples
            assert heard(model, samples, commands=True) == heard(model, samples, commands=False)


@pytest.mark.models
def test_a_command_s_log_probability_is_its_own(model: MoonshineModel) -> None:
    samples = Material("tuning", ()).say("Stop.", 0).samples
    sound = soxr.resample(samples, SAMPLE_RATE_HZ, 16_000).astype(np.float32)
    plain, hinted = (model.recognize(sound, commands=c) for c in (False, True))
    assert plain.text == hinted.text == "Stop."
    assert math.isclose(plain.logprob, hinted.logprob, abs_tol=0.1)  # one step and three round differently
    assert hinted.steps == plain.steps == 3
