"""Verdicts on recordings built by hand, near misses among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duplex.benchmarks.turns.told import replies, reply_spoken_at, traces, turns_committed
from duplex.benchmarks.turns.verdicts import (
    clash_heard,
    edit_distance,
    memory_heard,
    monologues,
    overlap_heard,
    plain_words,
    spoken_unasked,
    stop_heard,
    without_asides,
)
from duplex.frames import SAMPLE_RATE_HZ, Samples
from duplex.recording import RecordedEvent, Recording, Span, both_audible_ms, silences, utterances

Event = tuple[float, dict[str, Any]]


def sound(total_ms: int, *spans: tuple[int, int]) -> Samples:
    """A square wave at −20 dBFS inside the spans (ms), nothing outside."""
    out = np.zeros(total_ms * SAMPLE_RATE_HZ // 1000, np.float32)
    wave = np.where(np.arange(len(out)) % 100 < 50, 0.1, -0.1)
    for start, end in spans:
        part = slice(start * SAMPLE_RATE_HZ // 1000, end * SAMPLE_RATE_HZ // 1000)
        out[part] = wave[part]
    return out


def recorded(
    total_ms: int,
    user: Sequence[tuple[int, int]],
    agent: Sequence[tuple[int, int]],
    events: Sequence[Event] = (),
) -> Recording:
    stereo = np.stack([sound(total_ms, *user), sound(total_ms, *agent)], axis=1)
    return Recording(stereo, 20.0, tuple(RecordedEvent(at_ms, event) for at_ms, event in events))


def a_reply(
    reply_id: str, created: float, audible: float | None, done: float | None, status: str = "completed"
) -> list[Event]:
    events: list[Event] = [(created, {"type": "response.created", "response": {"id": reply_id}})]
    if audible is not None:
        events.append((audible, {"type": "output_audio_buffer.started", "response_id": reply_id}))
    if done is not None:
        events.append((done, {"type": "response.done", "response": {"id": reply_id, "status": status}}))
    return events


# --- the rules they are built on ---------------------------------------------------------------------


def test_an_utterance_runs_from_a_start_to_the_next_stop() -> None:
    agent = sound(9000, (1000, 2000), (2200, 3000), (4000, 4060), (5000, 6000))
    assert utterances(agent) == [Span(1000, 3000), Span(5000, 6000)]
    assert utterances(agent, 1500, 4500) == [Span(1500, 3000)]
    assert utterances(sound(2000, (1000, 2000))) == [Span(1000, 2000)]
    assert utterances(sound(2000)) == []


def test_silences_and_speaking_at_once() -> None:
    call = recorded(4000, [(1000, 3000)], [(500, 1500), (2000, 2200)])
    assert silences(call.agent, 1000, 2500) == [Span(1500, 2000), Span(2200, 2500)]
    assert both_audible_ms(call, 0, 4000) == 700
    assert both_audible_ms(call, 1500, 2100) == 100


def test_a_part_of_a_call_has_its_own_time_line() -> None:
    call = recorded(4000, [(1000, 2000)], [], [(500, {"type": "early"}), (1500, {"type": "within"})])
    part = call.between(900, 2500)
    assert part.duration_ms == 1600
    assert utterances(part.user) == [Span(100, 1100)]
    assert [(e.at_ms, e.type) for e in part.events] == [(600, "within")]


# --- replies ---------------------------------------------------------------------------------------------


def test_replies_are_told_by_their_events() -> None:
    call = recorded(
        9000,
        [],
        [],
        [*a_reply("r1", 100, 300, 2000), *a_reply("r2", 3000, None, 3100, "cancelled"), (1, {"type": "x"})],
    )
    first, second = replies(call.events)
    assert (first.reply_id, first.audible_ms, first.done_ms, first.given_up) == ("r1", 300, 2000, False)
    assert (second.audible_ms, second.given_up) == (None, True)
    assert reply_spoken_at(call, 1000) == first
    assert reply_spoken_at(call, 200) is None
    assert reply_spoken_at(call, 2600) is None


def test_a_reply_that_is_as_long_as_it_may_be_was_not_given_up() -> None:
    def done(reason: str) -> Event:
        response = {"id": "r", "status": "incomplete", "status_details": {"type": "incomplete", "reason": reason}}
        return (900, {"type": "response.done", "response": response})

    created: Event = (100, {"type": "response.created", "response": {"id": "r"}})
    for reason, given_up in (("max_output_tokens", False), ("content_filter", True)):
        [reply] = replies(recorded(1000, [], [], [created, done(reason)]).events)
        assert reply.given_up is given_up


def test_where_sound_comes_in_events_other_words_tell_that_a_reply_is_audible() -> None:
    created: Event = (100, {"type": "response.created", "response": {"id": "r"}})
    for kind in ("response.output_audio.delta", "duplex.playout"):
        call = recorded(4000, [], [], [created, (300, {"type": kind, "response_id": "r"})])
        assert [reply.audible_ms for reply in replies(call.events)] == [300]


def test_a_reopened_turn_is_one_turn() -> None:
    committed = "input_audio_buffer.committed"
    events: list[Event] = [
        (1000, {"type": committed, "item_id": "a"}),
        (1100, {"type": "duplex.turn.reopened", "item_id": "a"}),
        (2000, {"type": committed, "item_id": "a"}),
        (3000, {"type": committed, "item_id": "b"}),
    ]
    assert turns_committed(recorded(4000, [], [], events), 0, 2500) == 1
    assert turns_committed(recorded(4000, [], [], events), 0, 4000) == 2


# --- sounds over the agent -----------------------------------------------------------------------------------


UH_HUH = Span(2000, 2400)


def test_a_backchannel_the_agent_ignores() -> None:
    heard = overlap_heard(recorded(9000, [(2000, 2400)], [(500, 6000)], a_reply("r", 0, 400, 6100)), UH_HUH, 8000)
    assert (heard.valid, heard.abandoned, heard.gap_ms) == (True, False, None)


def test_a_backchannel_the_agent_pauses_for() -> None:
    heard = overlap_heard(
        recorded(9000, [(2000, 2400)], [(500, 2150), (2700, 6000)], a_reply("r", 0, 400, 6100)), UH_HUH, 8000
    )
    assert (heard.valid, heard.abandoned, heard.gap_ms) == (True, False, 550)


def test_giving_up_is_giving_up_even_if_the_next_reply_comes_at_once() -> None:
    events = [*a_reply("r", 0, 400, 2500, "cancelled"), *a_reply("next", 2600, 2700, 5000)]
    heard = overlap_heard(recorded(9000, [(2000, 2400)], [(500, 2150), (2750, 5000)], events), UH_HUH, 8000)
    assert (heard.valid, heard.abandoned, heard.gap_ms) == (True, True, None)


def test_falling_silent_for_good_is_giving_up_whatever_the_server_says() -> None:
    call = recorded(9000, [(2000, 2400)], [(500, 2150)])
    assert overlap_heard(call, UH_HUH, 8000).abandoned
    assert overlap_heard(
        recorded(9000, [(2000, 2400)], [(500, 2150)], a_reply("r", 0, 400, None)), UH_HUH, 8000
    ).abandoned
    late = recorded(9000, [(2000, 2400)], [(500, 2150), (5450, 7000)])
    assert overlap_heard(late, UH_HUH, 8000).abandoned  # 3.05 s after the sound's end
    just = recorded(9000, [(2000, 2400)], [(500, 2150), (5350, 7000)])
    assert not overlap_heard(just, UH_HUH, 8000).abandoned


def test_a_reply_that_came_to_its_own_end_gave_nothing_up() -> None:
    ended = recorded(9000, [(2000, 2400)], [(500, 2600)], a_reply("r", 0, 400, 2600))
    heard = overlap_heard(ended, UH_HUH, 8000)
    assert (heard.valid, heard.abandoned) == (True, False)
    under_it = recorded(9000, [(2000, 2400)], [(500, 2200)], a_reply("r", 0, 400, 2200))
    assert not overlap_heard(under_it, UH_HUH, 8000).valid  # nothing was left to be kept up or given up


def test_a_sound_into_the_agents_own_pause_is_not_judged() -> None:
    assert not overlap_heard(recorded(9000, [(2000, 2400)], [(500, 1700), (2600, 6000)]), UH_HUH, 8000).valid


# --- stopping ------------------------------------------------------------------------------------------------


def test_stopping_and_staying_silent() -> None:
    heard = stop_heard(recorded(9000, [(2000, 2400)], [(500, 2180), (5000, 6000)]), 1900, 8000)
    assert heard is not None
    assert (heard.valid, heard.yielded, heard.stop_ms, heard.silent_ms) == (True, True, 180, 2820)


def test_silence_to_the_end_counts_to_the_end_and_no_stop_is_no_silence() -> None:
    quiet = stop_heard(recorded(9000, [(2000, 2400)], [(500, 2180)]), 1900, 8000)
    assert quiet is not None
    assert quiet.silent_ms == 5820
    deaf = stop_heard(recorded(9000, [(2000, 2400)], [(500, 9000)]), 1900, 8000)
    assert deaf is not None
    assert (deaf.stop_ms, deaf.yielded, deaf.silent_ms) == (None, False, 0.0)
    assert stop_heard(recorded(9000, [], [(500, 9000)]), 1900, 8000) is None


def test_going_on_with_the_same_reply_afterwards_is_no_yielding_and_ending_by_itself_is_none_either() -> None:
    resumed = recorded(9000, [(2000, 2900)], [(500, 2180), (3300, 6000)], a_reply("r", 0, 400, 6000))
    heard = stop_heard(resumed, 1900, 8000)
    assert heard is not None
    assert (heard.yielded, heard.ended) == (False, False)
    next_one = [*a_reply("r", 0, 400, 2300, "cancelled"), *a_reply("s", 3000, 3250, 6000)]
    yielded = stop_heard(recorded(9000, [(2000, 2900)], [(500, 2180), (3300, 6000)], next_one), 1900, 8000)
    assert yielded is not None
    assert (yielded.yielded, yielded.ended) == (True, False)
    ended = stop_heard(recorded(9000, [(2000, 2900)], [(500, 2180)], a_reply("r", 0, 400, 2180)), 1900, 8000)
    assert ended is not None
    assert ended.ended


def test_speech_nobody_asked_for() -> None:
    assert len(spoken_unasked(recorded(9000, [], [(500, 900), (3000, 5000)]), 1000, 8000)) == 1


def test_an_aside_takes_no_floor() -> None:
    aside = (2050.0, {"type": "duplex.aside", "purpose": "backchannel", "transcript": "mm-hm"})
    call = recorded(9000, [], [(2000, 2400), (3000, 3600)], [aside])
    assert utterances(without_asides(call).agent) == [Span(3000, 3600)]
    assert without_asides(recorded(9000, [], [(2000, 2400)])).agent.any()


# --- both at once ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("agent_end", "both_ms"), [(2300, 0), (3600, 50), (3700, 150), (4600, 1000)])
def test_one_of_two_has_to_give_way(agent_end: int, both_ms: float) -> None:
    heard = clash_heard(recorded(9000, [(2000, 4550)], [(2050, agent_end)]), 1000, 8000)
    assert heard is not None
    assert (heard.apart_ms, heard.both_ms) == (50, both_ms)
    assert heard.resolved is (both_ms <= 100)


def test_a_user_who_gives_way_resolves_it_too_and_a_later_start_is_no_clash() -> None:
    short = clash_heard(recorded(9000, [(2000, 3000)], [(1900, 6000)]), 1000, 8000)
    assert short is not None
    assert (short.apart_ms, short.resolved) == (-100, True)
    later = clash_heard(recorded(9000, [(2000, 3000)], [(3400, 6000)]), 1000, 8000)
    assert later is not None
    assert later.apart_ms is None


# --- memory ----------------------------------------------------------------------------------------------------


def words(*timed: tuple[str, int, int], reply_id: str = "r", at_ms: float = 500) -> Event:
    listed = [{"text": text, "start_ms": start, "end_ms": end} for text, start, end in timed]
    return at_ms, {"type": "duplex.words", "response_id": reply_id, "item_id": "i", "words": listed}


FIVE = words(("One", 0, 400), ("two", 400, 800), ("three,", 800, 1200), ("four", 1200, 1600), ("five.", 1600, 2000))


def cut(kept: str) -> Event:
    return 3000, {"type": "conversation.item.truncated", "item_id": "i", "duplex": {"heard_text": kept}}


@pytest.mark.parametrize(
    ("kept", "wrong"), [("One two three,", 0), ("One two", 1), ("One two three, four five.", 2), ("", 3)]
)
def test_memory_is_compared_with_what_was_audible(kept: str, wrong: int) -> None:
    call = recorded(4000, [(1900, 3000)], [(500, 1900)], [*a_reply("r", 300, 480, None), FIVE, cut(kept)])
    heard = memory_heard(call, "r", "i", 1900)  # 1400 ms of it: into "four", but not to its middle
    assert heard is not None
    assert heard.audible == ("one", "two", "three")
    assert heard.wrong_words == wrong


def test_what_a_reply_was_held_for_does_not_count_as_heard() -> None:
    held: list[Event] = [
        (1150, {"type": "duplex.reply.held", "response_id": "r"}),
        (1700, {"type": "duplex.reply.resumed", "response_id": "r"}),
    ]
    events = [*a_reply("r", 300, 480, None), FIVE, *held, cut("One two")]
    call = recorded(4000, [(1900, 3000)], [(500, 1100), (1700, 2000)], events)
    heard = memory_heard(call, "r", "i", 2000)
    assert heard is not None
    assert heard.audible == ("one", "two")
    assert heard.wrong_words == 0


def test_without_words_or_a_transcript_memory_is_not_judged() -> None:
    assert (
        memory_heard(recorded(4000, [], [(500, 1900)], [*a_reply("r", 300, 480, None), FIVE]), "r", "i", 1900) is None
    )
    assert (
        memory_heard(recorded(4000, [], [(500, 1900)], [*a_reply("r", 300, 480, None), cut("")]), "r", "i", 1900)
        is None
    )


def test_an_item_without_our_extension_is_read_from_its_content() -> None:
    item = {"id": "i", "content": [{"type": "output_audio", "transcript": "One two three"}]}
    done: Event = (3000, {"type": "conversation.item.done", "item": item})
    call = recorded(4000, [], [(500, 1900)], [*a_reply("r", 300, 480, None), FIVE, done])
    heard = memory_heard(call, "r", "i", 1900)
    assert heard is not None
    assert heard.wrong_words == 0


@given(st.lists(st.sampled_from("abc"), max_size=6), st.lists(st.sampled_from("abc"), max_size=6))
def test_edit_distance_is_a_distance(one: list[str], other: list[str]) -> None:
    distance = edit_distance(one, other)
    assert distance == edit_distance(other, one)
    assert (distance == 0) == (one == other)
    assert abs(len(one) - len(other)) <= distance <= max(len(one), len(other))


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert plain_words("Don't stop, Anna-Maria!") == ["don't", "stop", "anna", "maria"]


# --- the agent's own sound, and the server's traces -------------------------------------------------------


def test_a_reply_that_stuttered_is_longer_than_its_words() -> None:
    smooth = recorded(4000, [], [(500, 2500)], [*a_reply("r", 300, 480, 2600), FIVE])
    assert [heard.stretched_ms for heard in monologues(smooth)] == [0]
    stuttered = recorded(4000, [], [(500, 1300), (1400, 2600)], [*a_reply("r", 300, 480, 2700), FIVE])
    assert [heard.stretched_ms for heard in monologues(stuttered)] == [100]


def test_replies_that_were_held_or_cut_off_say_nothing_about_stuttering() -> None:
    held = (1000.0, {"type": "duplex.reply.held", "response_id": "r"})
    assert not list(monologues(recorded(4000, [], [(500, 2500)], [*a_reply("r", 300, 480, 2600), FIVE, held])))
    assert not list(monologues(recorded(4000, [], [(500, 2500)], [*a_reply("r", 300, 480, 2600, "cancelled"), FIVE])))


def test_traces_are_durations_by_name() -> None:
    trace = {
        "type": "duplex.trace",
        "spans": [{"name": "listener", "start_ms": 100, "end_ms": 160}],
        "first_packet_ms": 34.0,
        "end_of_turn_ms": 490.0,
        "voice_to_voice_ms": 570.0,
    }
    assert traces(recorded(1000, [], [], [(1, trace)])) == [
        {"listener": 60, "voice_to_voice": 570.0, "end_of_turn": 490.0, "first_packet": 34.0}
    ]
