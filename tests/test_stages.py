"""A trace cut into stages of which none contains another."""

from __future__ import annotations

import pytest

from duplex.recording import Span
from duplex.stages import STAGE_MARKS, own_stages, stage_spans, totals, waterfall_text
from duplex.trace import SPANS

CASCADE = {
    "last_voiced": 0.0,
    "listener_asked": 100.0,
    "listener_done": 160.0,
    "thinker_asked": 165.0,
    "thinker_first_token": 300.0,
    "thinker_first_clause": 365.0,
    "talker_asked": 365.0,
    "talker_first_audio": 435.0,
    "commit": 435.0,
    "first_packet": 440.0,
}
EXACT = CASCADE | {"turn_complete": 300.0, "reply_asked": 100.0, "reply_first_audio": 436.0}


def test_marks_are_the_traces_own() -> None:
    assert {(name, *marks) for name, marks in STAGE_MARKS.items()} <= set(SPANS)


def test_every_millisecond_of_the_reply_belongs_to_one_stage() -> None:
    own = own_stages(EXACT)
    assert own == {
        "endpointing": 300,
        "speculation": 100,
        "listener": 60,
        "thinker": 200,
        "talker": 70,
        "reply": 6,  # 5 ms from listener to thinker, 1 ms from talker to session
        "release": 4,
    }
    chain = ("speculation", "listener", "thinker", "talker", "reply", "release")
    assert sum(own[name] for name in chain) == totals(EXACT)["voice_to_voice"] == 440


def test_a_commit_that_waited_for_the_reply_says_nothing_about_endpointing() -> None:
    assert "endpointing" not in own_stages(CASCADE)
    early = CASCADE | {"commit": 700.0, "first_packet": 705.0}
    assert own_stages(early)["endpointing"] == 700
    assert own_stages(early)["release"] == 5


def test_a_reply_begun_after_the_commit_was_no_speculation() -> None:
    late = {
        "last_voiced": 0.0,
        "commit": 600.0,
        "thinker_asked": 600.0,
        "talker_first_audio": 900.0,
        "first_packet": 905.0,
    }
    assert own_stages(late) == {"endpointing": 600, "reply": 300, "release": 5}


def test_work_that_overlaps_is_counted_once() -> None:
    streaming = EXACT | {"listener_done": 265.0}  # the thinker began on a partial
    assert own_stages(streaming)["reply"] == 1


def test_nothing_is_made_of_no_marks() -> None:
    assert stage_spans({}) == own_stages({}) == totals({}) == {}
    assert "nothing was answered" in waterfall_text({})


def test_the_waterfall_puts_each_stage_where_it_lies() -> None:
    lines = {line.split()[0]: line for line in waterfall_text(EXACT, {"lead_in": 3.0}).splitlines()[1:]}
    assert "200 ms" in lines["thinker"]
    assert lines["listener"].rindex("#") < lines["thinker"].index("#") + 1 < lines["talker"].rindex("#")
    assert "3 ms" in lines["lead_in"]
    assert "440 ms" in lines["voice_to_voice"]
    assert stage_spans(EXACT)["thinker"] == Span(165, 365)


@pytest.mark.parametrize("stage", STAGE_MARKS)
def test_a_later_stage_end_moves_only_that_stage_and_the_totals(stage: str) -> None:
    _, end = STAGE_MARKS[stage]
    moved = {
        name: at + 80.0 if at >= EXACT[end] and name not in ("turn_complete",) else at for name, at in EXACT.items()
    }
    # What happens at the same instant but before it stays: the talker is asked when the thinker is done.
    before, after = own_stages(EXACT), own_stages(moved)
    assert {name for name in before if after[name] != before[name]} == {stage}
    assert totals(moved)["voice_to_voice"] == 520
