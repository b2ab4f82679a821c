"""Every threshold of turn-taking, named and validated, and three named sets of them.

How they were set: on the tuning split of the recordings (docs/stimuli.md says which those are), with
``duplex bench predictor``; the figures that are reported come from the other split.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from .turn_presets import TurnPresets

Evidence = Literal[
    "prosody", "words", "expectation", "intonation", "floor", "length", "level", "echo", "own words", "question"
]

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Quick to answer, quick to stop; now and then it takes a pause for an end. Says "mm-hm".
    "eager": {
        "silence_likely_s": 0.2,
        "silence_unknown_s": 0.4,
        "silence_unlikely_s": 0.6,
        "silence_most_s": 1.4,
        "interrupt_s": 0.6,
        "backchannels": True,
    },
    "balanced": {},
    # For dictation, for people who think aloud, for noisy rooms.
    "patient": {
        "silence_likely_s": 0.6,
        "silence_unknown_s": 1.0,
        "silence_unlikely_s": 1.6,
        "silence_most_s": 3.0,
        "interrupt_s": 1.0,
    },
}


class TurnOptions(TurnPresets):
    """When a turn begins, pauses and is over. Seconds of silence count from the last voiced sample.

    The silence that ends a turn depends on the evidence for its end, in logits z that add up: ``silence_most_s``
    at z ≤ −5, ``silence_unlikely_s`` at −2, ``silence_unknown_s`` at 0 (no evidence: a plain silence timer, which
    always works), ``silence_likely_s`` at z ≥ 2, on straight lines between.
    (A turn that is over stays open until the reply can be heard: ``session.commit_wait_s``.)
    """

    presets = PRESETS
    without: tuple[Evidence, ...] = Field((), description="evidence to do without; without all it is a silence timer")

    speech_threshold: float = Field(0.5, gt=0, lt=1, description="voice begins at this probability")
    silence_threshold: float = Field(0.35, gt=0, lt=1, description="voice ends below this one")
    silence_drop_db: float = Field(26.0, gt=0, description="or this far below the loudest window of the turn")
    onset_s: float = Field(0.064, gt=0, description="voice needed before it counts as speech")
    pause_s: float = Field(0.032, gt=0, description="silence that starts speculation")
    min_turn_s: float = Field(0.12, ge=0, description="less voice than this is a click, not a turn")
    partial_every_s: float = Field(0.4, gt=0)

    silence_likely_s: float = Field(0.25, gt=0)
    silence_unknown_s: float = Field(0.6, gt=0)
    silence_unlikely_s: float = Field(0.8, gt=0)
    silence_most_s: float = Field(2.2, gt=0)
    patience: bool = Field(True, description="who was cut off once is given up to twice these silences from then on")
    complete_threshold: float = Field(0.7, gt=0, lt=1, description="where the end-of-turn model says nothing")
    prosody_s: float = Field(0.096, gt=0, description="ask it after this pause; the listener comes first")
    expectation_s: float = Field(0.25, gt=0, description="ask the language model by then, if not earlier")
    prosody_again_s: float = Field(0.22, gt=0, description="ask it a second time after this pause, if it was unsure")

    overlap_threshold: float = Field(0.6, gt=0, lt=1, description="voice over our own begins at this probability")
    overlap_sure: float = Field(0.9, gt=0, le=1, description="and counts at once at this one, without onset_s")
    echo_onset_s: float = Field(0.128, gt=0, description="voice needed over ours where ours may come back as echo")
    echo_words_s: float = Field(0.35, gt=0, description="and until its words count, but for an order to stop")
    word_s: float = Field(0.2, ge=0, description="less voice over ours is a piece of a word, till decide_s is over")
    overlap_partial_s: float = Field(0.3, gt=0, description="voice over ours until its words are looked at")
    interrupt_s: float = Field(0.8, gt=0, description="voice over ours that interrupts whatever it says")
    interrupt_words: int = Field(2, ge=1, description="words of content over ours that interrupt")
    backchannel_s: float = Field(0.6, gt=0, description="wordless overlap up to this long was encouragement")
    decide_s: float = Field(0.16, gt=0, description="quiet after an overlap until it is judged")
    echo_decide_s: float = Field(0.3, gt=0, description="and after words where our echo may cover what comes next")
    decide_limit_s: float = Field(0.7, gt=0, description="judged by its length if its words are not there by then")
    echo_threshold: float = Field(
        0.4, gt=0, le=1, description="a window of which our own voice explains this share is echo"
    )
    faint_db: float = Field(9.0, gt=0, description="this far below the user's usual level it is someone else")

    backchannels: bool = Field(False, description='whether we say "mm-hm" in a long turn of the user')
    backchannel_every_s: float = Field(5.0, gt=0, description="voice of the user between two of them")

    @field_validator("without", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        """A text such as "prosody, words" does too: the wire's table is flat."""
        return tuple(filter(None, (part.strip() for part in given.split(",")))) if isinstance(given, str) else given
