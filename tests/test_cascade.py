"""The cascade's logic with engines that answer when the test says so: no models, no threads, no waiting."""

from __future__ import annotations

from typing import Any

import pytest
from cascade_bench import Bench, question

from duplex.agent import (
    AgentSettings,
    Aside,
    AsideKind,
    BeginReply,
    CommitTurn,
    Configure,
    DropReply,
    Fault,
    FillSilence,
    FinalTranscript,
    ForgetTurn,
    PartialTranscript,
    ReopenTurn,
    ReplyAudio,
    ReplyEnd,
    ReplyText,
    UserState,
)
from duplex.conversation import Message, Role
from duplex.errors import AgentFaultError, ConfigError, ThinkerUnavailableError
from duplex.frames import Image
from duplex.thinker_talker import cascade as c
from duplex.thinker_talker.cascade_options import CascadeOptions
from duplex.thinker_talker.listener import Transcript
from duplex.thinker_talker.thinker import Usage
from duplex.turn import Floor, User


def test_a_reply_waits_for_the_words_and_streams_clause_by_clause() -> None:
    bench = Bench()
    bench.hear(1.0, voice=True).hear(0.14, voice=False)
    assert bench.user is User.PAUSED_INCOMPLETE
    bench.command(
        BeginReply(
            "r1",
            (
                Message("i1", Role.USER, "Before"),
                Message("i2", Role.ASSISTANT, "Half of it is", cut_off=True),
                Message("i3", Role.ASSISTANT, "I am", cut_off=True),
            ),
        )
    )
    assert not bench.thinker.thoughts
    bench.stream.answer("What is it?")
    bench.collect()
    [(request, thought)] = bench.thinker.thoughts
    assert [(m.role, m.text) for m in request.messages[1:]] == [
        ("user", "Before"),
        ("assistant", "Half of it is —"),
        ("user", "What is it?"),
    ]
    thought.text("It is a box. It ")
    [utterance] = bench.talker.utterances
    assert utterance.clauses == ["It is a box. "]
    thought.text("is blue.")
    thought.done("stop", Usage())
    assert utterance.ended
    utterance.speak()
    bench.collect()
    assert "".join(e.delta for e in bench.of(ReplyText)) == "It is a box. It is blue."
    assert [e.reply_id for e in bench.of(ReplyAudio)] == ["r1"]
    assert [e.error for e in bench.of(ReplyEnd)] == [None]


def test_the_settled_words_are_the_committed_turns_words() -> None:
    bench = Bench()
    question(bench, "Hello there.")
    [final] = [e for e in bench.command(CommitTurn("t1")) if isinstance(e, FinalTranscript)]
    assert final == FinalTranscript("t1", "Hello there.")


def test_a_commit_before_the_words_are_there_gets_them_later() -> None:
    bench = Bench()
    bench.hear(1.0, voice=True)
    bench.command(BeginReply("r1", ()))
    bench.command(CommitTurn("t1"))  # a client commits in mid-speech
    assert bench.stream.asked[-1][0] == "final"
    bench.stream.answer("Just do it.")
    bench.collect()
    assert bench.of(FinalTranscript) == [FinalTranscript("t1", "Just do it.")]
    [(request, _)] = bench.thinker.thoughts
    assert request.messages[-1].text == "Just do it."


def test_words_that_never_come_fall_back_to_what_was_understood() -> None:
    bench = Bench()
    bench.hear(0.7, voice=True)
    bench.stream.answer("Tell me")
    bench.collect()
    bench.hear(0.4, voice=True)
    bench.command(CommitTurn("t1"))
    bench.hear(0.5, voice=False).hear(0.5, voice=True)
    assert bench.of(FinalTranscript) == [FinalTranscript("t1", "Tell me")]


def test_a_reopened_turn_keeps_its_beginning() -> None:
    bench = Bench()
    question(bench, "I would like")
    bench.command(CommitTurn("t1"))
    bench.floor = Floor.THINKING
    bench.hear(0.2, voice=True)
    bench.command(ReopenTurn("t1"))
    bench.floor = Floor.LISTENING
    bench.hear(0.5, voice=True).hear(0.14, voice=False)
    bench.stream.answer("a coffee.")
    bench.collect()
    assert bench.of(PartialTranscript)[-1].text == "I would like a coffee."
    assert bench.command(CommitTurn("t1"))[-1] == FinalTranscript("t1", "I would like a coffee.")
    question(bench, "Thanks.")
    assert bench.of(PartialTranscript)[-1].text == "Thanks."


def test_words_asked_for_at_an_earlier_pause_are_not_this_pauses_words() -> None:
    bench = Bench()
    bench.hear(0.6, voice=True).hear(0.14, voice=False)
    first = bench.stream.asked.pop()
    bench.hear(0.6, voice=True).hear(0.14, voice=False)
    bench.command(BeginReply("r1", ()))
    second = bench.stream.asked.pop()
    bench.stream.asked.append(first)
    bench.stream.answer("What")
    bench.collect()
    assert not bench.thinker.thoughts
    bench.stream.asked.append(second)
    bench.stream.answer("What colour is the sky?")
    bench.collect()
    [(request, _)] = bench.thinker.thoughts
    assert request.messages[-1].text == "What colour is the sky?"


def test_dropping_a_reply_cancels_all_work_behind_it() -> None:
    bench = Bench()
    question(bench)
    bench.command(BeginReply("r1", ()))
    [(_, thought)] = bench.thinker.thoughts
    bench.command(DropReply("r1"))
    assert thought.cancelled
    assert bench.talker.utterances[0].cancelled
    assert not thought.text("late")
    bench.hear(0.1, voice=False)
    assert not bench.of(ReplyText)


def test_a_reply_dropped_while_it_waits_for_words_never_starts() -> None:
    bench = Bench()
    bench.hear(1.0, voice=True).hear(0.14, voice=False)
    bench.command(BeginReply("r1", ()))
    bench.command(DropReply("r1"))
    bench.stream.answer("What is it?")
    bench.collect()
    assert not bench.thinker.thoughts


@pytest.mark.parametrize("how", ["no words", "forgotten"])
def test_nothing_said_ends_the_reply_without_a_sound(how: str) -> None:
    bench = Bench()
    bench.hear(1.0, voice=True).hear(0.14, voice=False)
    bench.command(BeginReply("r1", ()))
    if how == "no words":
        bench.stream.answer("")
    else:
        bench.command(ForgetTurn())
    bench.hear(0.1, voice=False)
    assert [e.reply_id for e in bench.of(ReplyEnd)] == ["r1"]
    assert not bench.thinker.thoughts


def test_a_failing_thinker_ends_the_reply_with_its_reason_after_what_was_said() -> None:
    bench = Bench()
    question(bench)
    bench.command(BeginReply("r1", ()))
    [(_, thought)] = bench.thinker.thoughts
    thought.text("Well, it is so. And ")
    thought.fail(ThinkerUnavailableError("the endpoint hung up"))
    bench.talker.utterances[0].speak()
    bench.collect()
    [end] = bench.of(ReplyEnd)
    assert isinstance(end.error, ThinkerUnavailableError)
    assert bench.of(ReplyAudio)


def test_a_failing_listener_is_told_and_the_turn_goes_on() -> None:
    bench = Bench()
    bench.hear(1.0, voice=True).hear(0.14, voice=False)
    bench.stream.answer("", error=AgentFaultError("the listener broke"))
    bench.hear(1.0, voice=False)
    assert bench.user is User.IDLE
    question(bench, "Once more.")
    assert bench.user is User.PAUSED_INCOMPLETE


def test_the_end_of_turn_model_hears_the_turn_and_a_late_answer_is_ignored() -> None:
    bench = Bench()
    bench.hear(1.0, voice=True).hear(0.14, voice=False)
    samples, answer = bench.prosody_asked[0]
    assert 1.0 * 16_000 <= samples <= 1.6 * 16_000
    bench.hear(0.3, voice=True)
    answer(0.99)
    bench.hear(0.14, voice=False)
    assert bench.user is User.PAUSED_INCOMPLETE


def test_a_session_may_choose_its_instructions_and_pictures_reach_a_thinker_that_sees() -> None:
    bench = Bench()
    bench.thinker.takes_images = True
    bench.command(Configure(AgentSettings(instructions="Speak like a pirate.")))
    bench.hear(0.02, voice=False, image=Image(0, b"old", 4, 3)).hear(0.02, voice=False, image=Image(480, b"new", 4, 3))
    question(bench, "What do you see?")
    bench.command(BeginReply("r1", ()))
    [(request, _)] = bench.thinker.thoughts
    assert request.messages[0].text == "Speak like a pirate."
    assert [image.jpeg for image in request.messages[-1].images] == [b"new"]


@pytest.mark.parametrize(("voice", "amy_speaks"), [("amy", True), ("joe", False), (None, False)])
def test_a_session_may_choose_its_voice(voice: str | None, amy_speaks: bool) -> None:
    bench = Bench()
    bench.command(Configure(AgentSettings(voice=voice)))
    question(bench)
    bench.command(BeginReply("r1", ()))
    assert len(bench.other_talker.utterances) == amy_speaks
    assert len(bench.talker.utterances) == (not amy_speaks)


def test_closing_gives_everything_back_once() -> None:
    bench = Bench()
    question(bench)
    bench.command(BeginReply("r1", ()))
    bench.session.close()
    bench.session.close()
    assert bench.closed == 1
    assert bench.thinker.thoughts[0][1].cancelled
    woken = bench.woken
    bench.stream.on_result(Transcript(99, "final", "late", 0, 0.0))
    assert bench.woken == woken


def test_unknown_options_are_named() -> None:
    with pytest.raises(ConfigError, match=r"agent\.options\.turn\.pauze_s"):
        c.load({"turn": {"pauze_s": 1}})


# --- turn-taking, as a session may set it ---------------------------------------------------------------


def test_every_state_comes_with_a_distribution() -> None:
    bench = Bench().hear(0.5, voice=True).hear(0.3, voice=False)
    states = bench.of(UserState)
    assert {User.SPEAKING, User.PAUSED_INCOMPLETE} <= {state.user for state in states}
    for state in states:
        assert set(state.probabilities) == set(User)
        assert sum(state.probabilities.values()) == pytest.approx(1.0)
        assert state.probabilities[state.user] == max(state.probabilities.values())


def silence_until_complete(bench: Bench) -> float:
    bench.hear(0.64, voice=True).hear(0.2, voice=False)
    quiet_s = 0.2
    bench.prosody_asked[-1][1](0.95)
    bench.stream.answer("What time is it?")
    bench.collect()
    while bench.events[-1] and bench.of(UserState)[-1].user is not User.TURN_COMPLETE and quiet_s < 5.0:
        bench.hear(0.02, voice=False)
        quiet_s += 0.02
    return quiet_s


def test_a_session_takes_turns_as_it_was_configured() -> None:
    plain = silence_until_complete(Bench())
    patient = Bench()
    patient.command(Configure(AgentSettings(turn_taking={"preset": "patient"})))
    assert silence_until_complete(patient) > plain + 0.2
    with pytest.raises(ConfigError, match="preset"):
        patient.session.command(Configure(AgentSettings(turn_taking={"preset": "hasty"})))
    patient.command(CommitTurn("item_1"))
    assert silence_until_complete(patient) > plain + 0.2, "what was refused changed nothing"


def test_yes_as_we_finish_asking_is_an_answer() -> None:
    def overlapped(reply: str) -> list[User]:
        bench = Bench()
        bench.command(BeginReply("resp_1", (), to_open_turn=False))
        bench.thinker.thoughts[-1][1].text(reply)
        bench.thinker.thoughts[-1][1].done("stop", Usage())
        bench.collect()
        bench.floor, bench.reply_left_s = Floor.SPEAKING, 0.3
        bench.hear(0.3, voice=True).hear(0.12, voice=False)
        bench.stream.answer("Yes.")
        bench.collect()
        return [state.user for state in bench.of(UserState)]

    assert User.INTERRUPTING in overlapped("Shall I go on?")
    assert User.INTERRUPTING not in overlapped("I shall go on.")
    assert User.BACKCHANNEL in overlapped("I shall go on.")


def test_the_thinker_is_told_what_a_reply_that_was_cut_off_would_have_said() -> None:
    cut = Message("item_2", Role.ASSISTANT, "Once upon a time", cut_off=True, unheard="there was a lighthouse.")
    history = (Message("item_1", Role.USER, "Tell me a story."), cut)
    for options, told in ((CascadeOptions(), True), (CascadeOptions(tell_unheard=False), False)):
        bench = Bench(options)
        bench.command(BeginReply("resp_1", history, to_open_turn=False))
        [(request, _)] = bench.thinker.thoughts
        assert [m.text for m in request.messages if m.role == "assistant"] == ["Once upon a time —"]
        assert any("there was a lighthouse." in m.text for m in request.messages) is told


# --- asides, and a listener that says nothing --------------------------------------------------------------


def test_a_long_turn_is_encouraged_in_its_pauses_if_the_session_wants_that() -> None:
    def hummed(turn_taking: dict[str, Any]) -> list[Aside]:
        bench = Bench()
        bench.command(Configure(AgentSettings(turn_taking=turn_taking)))
        bench.hear(6.0, voice=True).hear(0.12, voice=False)
        bench.stream.answer("I went to the market and then the")
        bench.prosody_asked[-1][1](0.02)
        bench.hear(0.2, voice=False)
        for utterance in bench.talker.utterances:
            utterance.speak()
        bench.collect()
        return bench.of(Aside)

    [aside] = hummed({"backchannels": True})
    assert aside.kind is AsideKind.BACKCHANNEL
    assert len(aside.samples)
    assert hummed({"backchannels": False}) == []


def test_dead_air_is_filled_once_asked() -> None:
    bench = Bench()
    bench.command(FillSilence("resp_1"))
    [utterance] = bench.talker.utterances
    utterance.speak()
    [aside] = [event for event in bench.collect() if isinstance(event, Aside)]
    assert (aside.kind, aside.text) == (AsideKind.DEAD_AIR, CascadeOptions().dead_air)
    silent = Bench(CascadeOptions(dead_air=""))
    silent.command(FillSilence("resp_1"))
    assert not silent.talker.utterances


def test_a_listener_that_never_answers_does_not_keep_the_floor() -> None:
    bench = Bench().hear(0.64, voice=True).hear(0.6, voice=False)
    bench.command(BeginReply("resp_1", ()))
    bench.command(CommitTurn("item_1"))
    bench.hear(1.4, voice=False)
    assert not bench.of(FinalTranscript)
    bench.hear(0.2, voice=False)
    assert [final.text for final in bench.of(FinalTranscript)] == [""]
    assert [end.reply_id for end in bench.of(ReplyEnd)] == ["resp_1"]
    assert "listener" in str(bench.of(Fault)[0].error)
    bench.hear(0.64, voice=True).hear(0.2, voice=False)
    bench.stream.answer("Hello?")
    bench.collect()
    bench.command(CommitTurn("item_2"))
    bench.collect()
    assert bench.of(FinalTranscript)[-1].text == "Hello?"


def test_words_that_are_given_are_said_without_thinking() -> None:
    bench = Bench()
    bench.command(BeginReply("resp_1", (), to_open_turn=False, say="Welcome. This call is recorded."))
    assert not bench.thinker.thoughts
    [utterance] = bench.talker.utterances
    assert "".join(utterance.clauses) == "Welcome. This call is recorded."
    assert utterance.ended
    assert "".join(text.delta for text in bench.of(ReplyText)) == "Welcome. This call is recorded."
    utterance.speak()
    bench.collect()
    assert [end.reply_id for end in bench.of(ReplyEnd)] == ["resp_1"]


def test_words_heard_better_begin_the_reply_anew_while_nothing_of_it_was_said() -> None:
    bench = Bench()
    bench.hear(1.0, voice=True).hear(0.06, voice=False)
    bench.command(BeginReply("r1", ()))
    bench.stream.answer("The capital of friend")
    bench.collect()
    assert bench.session._predictor._stretch is not None
    bench.session._predictor._stretch.sound_pts = bench.pts
    bench.hear(0.1, voice=False)
    bench.stream.answer("The capital of France?")
    bench.collect()
    asked = [request.messages[-1].text for request, _ in bench.thinker.thoughts]
    assert asked == ["The capital of friend", "The capital of France?"]
    first, second = (thought for _, thought in bench.thinker.thoughts)
    assert first.cancelled
    assert bench.talker.utterances[0].cancelled
    second.text("Paris. ")
    second.done("stop", Usage())
    bench.talker.utterances[1].speak()
    bench.collect()
    assert "".join(e.delta for e in bench.of(ReplyText)) == "Paris."
    assert len(bench.of(ReplyEnd)) == 1


def test_a_reply_that_was_begun_to_be_said_goes_on() -> None:
    bench = Bench()
    bench.hear(1.0, voice=True).hear(0.06, voice=False)
    bench.command(BeginReply("r1", ()))
    bench.stream.answer("The capital of friend")
    bench.collect()
    bench.thinker.thoughts[0][1].text("Your friend lives in town. ")
    assert bench.session._predictor._stretch is not None
    bench.session._predictor._stretch.sound_pts = bench.pts
    bench.hear(0.1, voice=False)
    bench.stream.answer("The capital of France?")
    bench.collect()
    assert len(bench.thinker.thoughts) == 1
    assert not bench.talker.utterances[0].cancelled
