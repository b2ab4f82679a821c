"""A native agent behind a session, on virtual time: its replies, who stops it, and what is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_fakes import EPAD, FRAME, FRAME_S, PAD, VOICE, FakeModel, FakeTokens, fake_agent
from recorded import Call

from duplex import events as ev
from duplex import requests as rq
from duplex.agent import AgentSettings, Inject, ReplyBegan
from duplex.clock import VirtualClock
from duplex.config import SessionConfig
from duplex.conversation import Role
from duplex.errors import AgentFullError, ConfigError, InvalidEventError, TooLargeError
from duplex.frames import SAMPLE_RATE_HZ, Packet, silence
from duplex.metrics import Metrics
from duplex.records.replay import Replayed, replay
from duplex.session import Session
from duplex.testing import LoopbackLine, ScriptedAgent, ScriptedUser, VirtualCall, run_virtual, tone
from duplex.thinker_talker.native.say import Silence, say_plan
from duplex.thinker_talker.native.spoken_text import SpokenText
from duplex.turn import Floor

ANSWER = "One two three four five six seven eight"
STUBBORN = FakeModel(answers=("Alpha bravo charlie delta echo foxtrot golf hotel india",), yields_frames=None)


def of(call: VirtualCall, kind: type[Any]) -> list[Any]:
    return [event for event in call.events if isinstance(event, kind)]


def silent_frames(slot: Any) -> list[int]:
    return [k for k, (_, silent) in enumerate(slot.seen) if silent]


# --- replies --------------------------------------------------------------------------------------


def test_a_reply_of_its_own_is_a_reply_like_any_other() -> None:
    agent, _ = fake_agent()
    with VirtualCall(agent) as call:
        turn = call.say(speech_s=1.0)
        [started], [finished], [trace] = (of(call, kind) for kind in (ev.ReplyStarted, ev.ReplyFinished, ev.TurnTraced))
        [committed] = of(call, ev.UserTurnCommitted)
        assert started.previous_item_id == committed.item_id
        assert (finished.reply_id, finished.status, finished.text) == (started.reply_id, "completed", ANSWER)
        assert "".join(event.delta for event in of(call, ev.ReplyTextAdded)) == ANSWER
        words = [word.text for event in of(call, ev.ReplyWords) for word in event.words]
        assert words == ANSWER.split()
        assert call.heard_text == ANSWER
        # Up to a frame that was begun, three of quiet, one for the token before the word and one until it sounds,
        # 30 ms of computing and 40 of pre-roll.
        assert 0 <= trace.voice_to_voice_ms - (3 * 80 + 80 + 80 + 30 + 40) <= 80
        assert turn.answered
        assert call.session.machine.floor is Floor.LISTENING
        assert not call.errors


def test_the_ledger_knows_when_its_words_were_heard() -> None:
    agent, _ = fake_agent()
    with VirtualCall(agent) as call:
        call.say(speech_s=1.0, hear_out=False)
        [started] = of(call, ev.ReplyStarted)
        began_ms = call.line.began_ms(started.reply_id)
        call.wait(1.2)
        heard = call.session.ledger.heard_text(started.reply_id, call.session._clock.now())
        # A word every 320 ms, its middle 140 to 200 ms in; the ear is 100 ms behind the wire.
        expected = int((call.now_ms - began_ms - 100 - 170) // 320) + 1
        assert len(heard.split()) == pytest.approx(expected, abs=1)
        assert ANSWER.startswith(heard)
        call.wait(10)


def test_a_reply_is_whole_from_before_its_first_sound_and_never_runs_dry() -> None:
    late = tuple(np.random.default_rng(3).uniform(0.005, 0.04, 97).tolist())
    agent, _ = fake_agent(FakeModel(compute_s=late))
    with VirtualCall(agent) as call:
        call.say(speech_s=1.0)
        assert call.session._metrics.underruns._value.get() == 0
        [finished] = of(call, ev.ReplyFinished)
        sound = np.concatenate([p.samples for p in call.line.played if p.reply_id == finished.reply_id])
    loud = np.flatnonzero(np.abs(sound) > 1e-6)
    frames = round((loud[-1] - loud[0]) / FRAME)
    assert frames == 8 * 4 + 1  # eight words of four frames; the last has a second piece
    assert np.array_equal(sound[loud[0] : loud[-1] + 1], np.trim_zeros(np.tile(VOICE, frames)))
    assert loud[0] >= 960  # its pre-roll is before


def test_a_line_that_is_kept_ahead_takes_sound_as_it_comes_and_nothing_stalls() -> None:
    agent, _ = fake_agent(FakeModel(answers=(" ".join(["word"] * 20),)))
    call = _one_call(agent, [(0.5, 1.0)], 10.0, lead_packets=16)
    [finished] = call.of(ev.ReplyFinished)
    assert finished.status == "completed"
    assert not call.of(ev.ErrorRaised)


def test_a_model_that_stops_in_the_middle_gives_the_floor_back() -> None:
    agent, _ = fake_agent(FakeModel(compute_s=(*[0.03] * 40, *[1e6] * 60)))
    call = _one_call(agent, [(0.5, 1.0)], 7.0)
    [finished] = call.of(ev.ReplyFinished)
    assert finished.status == "cancelled"
    assert "stopped coming" in call.of(ev.ErrorRaised)[0].message


def test_two_replies_in_a_row_have_names_of_their_own_and_one_turn_between() -> None:
    agent, _ = fake_agent(FakeModel(answers=("First answer", "Second answer")))
    with VirtualCall(agent) as call:
        call.say(speech_s=1.0)
        call.say(speech_s=1.0)
        first, second = of(call, ev.ReplyFinished)
        assert (first.text, second.text) == ("First answer", "Second answer")
        assert first.reply_id != second.reply_id
        assert len(of(call, ev.UserTurnCommitted)) == 2
        assert [line.text for line in call.transcript] == ["First answer", "Second answer"]


def test_only_a_native_agent_may_take_the_floor() -> None:
    agent = ScriptedAgent()
    with VirtualCall(agent) as call:
        agent.sessions[0]._out.append(ReplyBegan("own_1"))
        call.wait(0.1)
        assert not of(call, ev.ReplyStarted)
        assert "no native agent" in call.errors[0]


# --- who stops it ---------------------------------------------------------------------------------


def test_a_model_that_yields_by_itself_is_left_alone() -> None:
    agent, serving = fake_agent()
    with VirtualCall(agent) as call:
        overlap = call.interrupt(speech_s=1.5, after_s=1.0)
        first = of(call, ev.ReplyFinished)[0]
        assert first.status == "completed"
        assert not of(call, ev.ReplyTruncated)
        assert call.transcript[0].text == first.text
        assert ANSWER.startswith(first.text)
        assert first.text != ANSWER
        assert not silent_frames(serving.slots[0])
        assert overlap.turn.answered  # it answers the interruption
        assert call.session._metrics.barge_in_stop_s._sum.get() == pytest.approx(0.35, abs=0.15)


def test_a_model_that_does_not_yield_is_silenced_within_the_limit() -> None:
    agent, serving = fake_agent(STUBBORN)
    with VirtualCall(agent) as call:
        overlap = call.interrupt(speech_s=3.0, after_s=0.6)
        stopped_ms = max(call.line.audible_of(of(call, ev.ReplyFinished)[0].reply_id)) * 20.0 + 20.0
        assert stopped_ms - overlap.user.start_ms == pytest.approx(1200, abs=170)
        [cut] = of(call, ev.ReplyTruncated)
        first = of(call, ev.ReplyFinished)[0]
        assert (first.status, first.reply_id) == ("cancelled", cut.reply_id)
        assert STUBBORN.answers[0].startswith(cut.heard_text)
        assert 2 <= len(cut.heard_text.split()) < 9
        assert call.transcript[0].text == cut.heard_text
        assert call.transcript[0].cut_off
        # Kept silent until the user has finished, and no longer: it answers.
        frames = silent_frames(serving.slots[0])
        assert frames == list(range(frames[0], frames[-1] + 1))
        ends_s = frames[-1] * FRAME_S
        assert ends_s == pytest.approx((overlap.user.end_ms + 240) / 1000.0, abs=0.2)
        assert overlap.turn.answered
        assert call.session._metrics.barge_in_stop_s._sum.get() == pytest.approx(1.2, abs=0.2)


def test_a_cut_fades_and_does_not_click() -> None:
    agent, _ = fake_agent(STUBBORN)
    with VirtualCall(agent) as call:
        call.interrupt(speech_s=3.0, after_s=0.6)
        audio = call.line.audio()
        reply_id = of(call, ev.ReplyTruncated)[0].reply_id
    last = max(k for k, packet in enumerate(call.line.played) if packet.reply_id == reply_id)
    around = audio[(last - 2) * 480 : (last + 4) * 480]
    # Audible until it stops; a 225 Hz tone at -20 dBFS never moves faster than this from one sample to the next.
    assert np.abs(around[:480]).max() > 0.1
    assert np.abs(around[-480:]).max() == 0.0
    assert np.abs(np.diff(around)).max() <= 0.1 * np.sqrt(2) * 2 * np.pi * 225 / SAMPLE_RATE_HZ * 1.2


def test_with_no_limit_a_stubborn_model_speaks_on() -> None:
    agent, serving = fake_agent(STUBBORN)
    with VirtualCall(agent, config=SessionConfig(yield_limit_s=0)) as call:
        call.interrupt(speech_s=1.5, after_s=0.6)
        assert of(call, ev.ReplyFinished)[0].status == "completed"
        assert not silent_frames(serving.slots[0])


def test_encouragement_neither_stops_it_nor_becomes_a_turn() -> None:
    agent, serving = fake_agent(STUBBORN)
    with VirtualCall(agent) as call:
        overlap = call.backchannel(speech_s=0.3, after_s=0.6)
        assert of(call, ev.ReplyFinished)[0].status == "completed"
        assert len(of(call, ev.UserTurnCommitted)) == 1  # the question's
        assert not silent_frames(serving.slots[0])
        assert not overlap.turn.answered


def test_a_client_that_cancels_is_obeyed_at_once() -> None:
    agent, serving = fake_agent(STUBBORN)
    with VirtualCall(agent) as call:
        call.say(speech_s=1.0, hear_out=False)
        call.wait(0.8)
        call.request(rq.CancelReply())
        since_ms = call.now_ms
        call.wait(4.0)
        assert call.line.last_audible_ms <= since_ms + 40
        [cut] = of(call, ev.ReplyTruncated)
        assert call.heard_text == cut.heard_text
        assert len(silent_frames(serving.slots[0])) * FRAME_S == pytest.approx(0.8, abs=0.09)
        with pytest.raises(InvalidEventError, match="no response to cancel"):
            call.request(rq.CancelReply())


def test_forced_silence_is_bounded_both_ways() -> None:
    kept = Silence(min_s=0.8, after_user_s=0.32, max_s=2.0)
    kept.begin()
    passed = 0.0
    while kept.holds:
        kept.pass_frame(FRAME_S, 0.0)  # the user never stops, or a noise is taken for them
        passed += FRAME_S
    assert passed == pytest.approx(2.0, abs=0.01)
    kept.begin()
    for _ in range(9):
        kept.pass_frame(FRAME_S, 10.0)
        assert kept.holds
    kept.pass_frame(FRAME_S, 10.0)
    assert not kept.holds


# --- words in its mouth, text before its eyes -----------------------------------------------------


def test_a_client_gives_a_reply_its_words() -> None:
    agent, serving = fake_agent()
    words = "Please hold the line"
    with VirtualCall(agent) as call:
        call.request(rq.CreateReply(say=words))
        call.wait(0.05)
        [started] = of(call, ev.ReplyStarted)
        with pytest.raises(InvalidEventError, match="in progress"):
            call.request(rq.CreateReply(say="Something else"))
        call.wait(6.0)
        [finished] = of(call, ev.ReplyFinished)
        assert (finished.reply_id, finished.status, finished.text) == (started.reply_id, "completed", words)
        assert call.heard_text == words
        assert call.line.audible_of(started.reply_id)
        forced = [token for token, _ in serving.slots[0].seen if token is not None]
        plan = say_plan(words, FakeTokens(), FRAME_S)
        assert forced[: len(plan)] == plan
        assert set(forced[len(plan) :]) == {PAD}
        assert not call.errors
        call.say(speech_s=1.0)
        assert call.heard_text == f"{words} {ANSWER}"  # and then it is free again


def test_words_are_paced_like_speech_and_written_as_the_model_writes_them() -> None:
    tokens = FakeTokens()
    plan = say_plan("A wonderful day", tokens, FRAME_S)
    [a], wonderful, [day] = tokens.encode("A"), tokens.encode("wonderful"), tokens.encode("day")
    assert plan[:2] == [EPAD, a]
    start = plan.index(wonderful[0])
    assert plan[start - 1 : start + 3] == [EPAD, *wonderful]
    assert plan[plan.index(day) - 1] == EPAD
    assert set(plan) - {a, *wonderful, day} == {PAD, EPAD}
    assert len(plan) * FRAME_S == pytest.approx(3 * 0.1 + 0.06 * 13, abs=0.08)
    assert say_plan("", tokens, FRAME_S) == []


def test_a_given_reply_can_be_interrupted_and_what_was_heard_of_it_is_kept() -> None:
    agent, serving = fake_agent(FakeModel(yields_frames=None))
    with VirtualCall(agent) as call:
        call.request(rq.CreateReply(say="one two three four five six seven eight nine ten eleven twelve"))
        call.wait(1.2)
        call.line.say(tone(2.5))
        call.wait(3.0)
        [cut] = of(call, ev.ReplyTruncated)
        assert "one two" in cut.heard_text
        assert "eleven" not in cut.heard_text
        tokens = [token for token, silent in serving.slots[0].seen if not silent]
        assert FakeTokens().encode("twelve")[0] not in tokens


def test_a_reply_without_words_is_what_the_model_says_next_or_nothing() -> None:
    agent, _ = fake_agent()
    with VirtualCall(agent) as call:
        call.request(rq.CreateReply())
        call.say(speech_s=1.0)
        [started] = of(call, ev.ReplyStarted)
        [finished] = of(call, ev.ReplyFinished)
        assert (finished.reply_id, finished.status) == (started.reply_id, "completed")
        call.request(rq.CreateReply())
        call.wait(10)
        assert of(call, ev.ReplyFinished)[-1].status == "failed"
        assert "give response.create the words" in call.errors[-1]
        assert call.session.machine.floor is Floor.LISTENING


def test_instructions_and_a_voice_are_read_before_the_call_is_answered() -> None:
    agent, serving = fake_agent(FakeModel(prompt_s=1.0), voice="bo")

    async def main() -> LoopbackLine:
        await agent.start()
        line = LoopbackLine()
        line.say(tone(0.5))  # waits until somebody hears it
        session = _session(agent, line, AgentSettings(instructions="Be brief."))
        task = asyncio.create_task(session.run())
        await asyncio.sleep(0.9)
        assert not line.events
        with pytest.raises(InvalidEventError, match="not begun"):
            session.request(rq.CreateReply())
        await asyncio.sleep(2.0)
        session.stop("done")
        await task
        return line

    line = run_virtual(main())
    assert serving.slots[0].settings.prompt == "Be brief."
    assert serving.slots[0].settings.voice == "bo"
    assert serving.slots[0].settings.seed == 7
    assert isinstance(line.events[0], ev.SessionStarted)
    assert line.events[0].at.at_s == pytest.approx(1.0, abs=0.01)
    assert line.of(ev.UserSpeechStarted)[0].at.at_s > 1.0


def test_a_caller_who_hangs_up_during_the_prompt_leaves_the_slot() -> None:
    agent, serving = fake_agent(FakeModel(prompt_s=60.0))

    async def main() -> None:
        await agent.start()
        session = _session(agent, LoopbackLine(), AgentSettings())
        task = asyncio.create_task(session.run())
        await asyncio.sleep(0.5)
        session.stop("hung up")
        await asyncio.wait_for(task, 1.0)

    run_virtual(main())
    assert serving.slots[0].closed
    assert serving.live == 0


def test_text_is_put_before_the_model_when_it_is_quiet_and_kept_from_being_said() -> None:
    agent, serving = fake_agent()
    expected = FakeTokens().encode("<system> The user now sees a cat. <system>")
    with VirtualCall(agent) as call:
        call.say(speech_s=1.0, hear_out=False)
        call.request(rq.AddMessage(Role.SYSTEM, "The user now sees a cat."))
        call.wait(8.0)
        [finished] = of(call, ev.ReplyFinished)
        assert finished.text == ANSWER  # not broken off, and the text is not in it
        forced = [(k, token) for k, (token, silent) in enumerate(serving.slots[0].seen) if token is not None and silent]
        assert [token for _, token in forced] == expected
        assert forced[0][0] * FRAME_S > of(call, ev.ReplyStarted)[0].at.at_s + len(ANSWER.split()) * 0.32
        assert [line.role for line in call.transcript] == [Role.ASSISTANT, Role.SYSTEM]
        call.request(rq.AddMessage(Role.USER, "I typed this"))
        call.wait(2.0)
        typed = FakeTokens().encode("<system> The user wrote: I typed this <system>")
        read = [token for token, silent in serving.slots[0].seen if token is not None and silent]
        assert read == expected + typed


@pytest.mark.parametrize("words", ["I typed this", "Greet them."])
def test_what_a_reply_is_asked_for_with_is_read_before_it(words: str) -> None:
    agent, serving = fake_agent(speak_within_s=1.0)
    with VirtualCall(agent) as call:
        if words == "I typed this":
            call.request(rq.AddMessage(Role.USER, words))
            call.request(rq.CreateReply())
            told = "The user wrote: I typed this"
        else:
            call.request(rq.CreateReply(instructions=words))
            told = words
        call.wait(0.2)
        assert not of(call, ev.ReplyFinished)
        call.wait(3.0)
        read = [(k, token) for k, (token, silent) in enumerate(serving.slots[0].seen) if token is not None and silent]
        assert [token for _, token in read] == FakeTokens().encode(f"<system> {told} <system>")
        # What it is given to begin in counts from then on. (This model begins when it is spoken to, and gives up.)
        [finished] = of(call, ev.ReplyFinished)
        assert finished.status == "failed"
        assert finished.at.at_s >= read[-1][0] * FRAME_S + 1.0


def test_more_text_than_it_can_read_in_time_is_refused_and_the_call_goes_on() -> None:
    agent, _ = fake_agent(max_inject_tokens=10)
    with VirtualCall(agent) as call:
        with pytest.raises(TooLargeError, match="one token a frame"):
            call.request(rq.AddMessage(Role.SYSTEM, "word " * 20))
        assert not call.transcript
        assert call.say(speech_s=1.0).answered


def test_settings_that_were_read_before_the_call_can_change_until_somebody_speaks() -> None:
    agent, serving = fake_agent()
    with VirtualCall(agent) as call:
        call.request(rq.UpdateSettings(AgentSettings(instructions="Speak of cats.")))
        assert [slot.closed for slot in serving.slots] == [True, False]
        assert serving.slots[1].settings.prompt == "Speak of cats."
        assert call.say(speech_s=1.0).answered
        with pytest.raises(InvalidEventError, match="before the call"):
            call.request(rq.UpdateSettings(AgentSettings(voice="ada")))
        call.request(rq.UpdateSettings(AgentSettings(instructions="Speak of dogs.", turn_taking={"turn_end_s": 0.4})))
        call.wait(1.0)
        read = [token for token, silent in serving.slots[1].seen if token is not None and silent]
        assert read == FakeTokens().encode("<system> Speak of dogs. <system>")
        with pytest.raises(InvalidEventError, match="turn_taking"):
            call.request(rq.UpdateSettings(AgentSettings(turn_taking={"no_such": 1})))


# --- many, and what goes wrong --------------------------------------------------------------------


def _session(agent: Any, line: LoopbackLine, settings: AgentSettings, name: str = "sess_test") -> Session:
    return Session(
        session_id=name,
        line=line,
        agent=agent,
        clock=VirtualClock(),
        config=SessionConfig(),
        settings=settings,
        metrics=Metrics(),
    )


def _calls(agent: Any, speech: list[list[tuple[float, float]] | None], total_s: float) -> list[list[ev.Event]]:
    """What each of several calls at once is told; the k-th hears ``speech[k]`` and joins half a second later."""

    async def one(k: int) -> list[ev.Event]:
        if speech[k] is None:
            return []
        await asyncio.sleep(0.5 * k)
        line = LoopbackLine()
        heard = silence(round(total_s * SAMPLE_RATE_HZ))
        for start_s, duration_s in speech[k]:
            start = round(start_s * SAMPLE_RATE_HZ)
            heard[start : start + round(duration_s * SAMPLE_RATE_HZ)] = tone(duration_s)
        line.say(heard)
        session = _session(agent, line, AgentSettings(), f"sess_{k}")
        task = asyncio.create_task(session.run())
        await asyncio.sleep(total_s - 0.7 * k)
        session.stop("done")
        await task
        return line.events

    async def main() -> list[list[ev.Event]]:
        await agent.start()
        return list(await asyncio.gather(*(one(k) for k in range(len(speech)))))

    return run_virtual(main())


def test_four_calls_at_once_are_four_calls() -> None:
    speech = [[(0.5, 1.0)], [(0.7, 0.8), (3.0, 1.6)], [(0.4, 0.5)], [(1.0, 2.0)]]
    together = _calls(fake_agent()[0], speech, 10.5)
    for k in range(4):
        alone = _calls(fake_agent()[0], [*[None] * k, speech[k]], 10.5)[k]
        assert [*map(_without_time, decided(together[k]))] == [*map(_without_time, decided(alone))]
        finished = [event for event in together[k] if isinstance(event, ev.ReplyFinished)]
        assert finished[0].text == ANSWER or k == 1


def _one_call(agent: Any, speech: list[tuple[float, float]], total_s: float, lead_packets: int = 1) -> LoopbackLine:
    async def main() -> LoopbackLine:
        await agent.start()
        line = LoopbackLine(lead_packets=lead_packets)
        line.say(ScriptedUser(speech).samples(total_s))
        session = _session(agent, line, AgentSettings())
        task = asyncio.create_task(session.run())
        await asyncio.sleep(total_s)
        session.stop("done")
        await task
        return line

    return run_virtual(main())


def decided(events: list[ev.Event]) -> list[ev.Event]:
    return [event for event in events if not isinstance(event, ev.PlayoutProgress)]


def _without_time(event: ev.Event) -> Any:
    return (type(event).__name__, event.at.pts, [v for v in _fields(event) if not isinstance(v, float | tuple)])


def _fields(event: ev.Event) -> list[Any]:
    return [getattr(event, name) for name in event.__dataclass_fields__ if name != "at"]


def test_a_full_device_says_so_at_once() -> None:
    agent, serving = fake_agent(FakeModel(full_after=1))

    async def main() -> None:
        await agent.start()
        first = agent.open(AgentSettings(), VirtualClock(), lambda: None)
        with pytest.raises(AgentFullError, match="Every slot"):
            agent.open(AgentSettings(), VirtualClock(), lambda: None)
        first.close()
        first.close()
        agent.open(AgentSettings(), VirtualClock(), lambda: None).close()
        with pytest.raises(ConfigError, match=r"no voice 'zoe'\. Known here: ada, bo"):
            agent.open(AgentSettings(voice="zoe"), VirtualClock(), lambda: None)

    run_virtual(main())
    assert serving.live == 0
    few, _ = fake_agent(max_sessions=1)

    async def again() -> None:
        with pytest.raises(AgentFullError, match="still loading"):
            few.open(AgentSettings(), VirtualClock(), lambda: None)
        await few.start()
        few.open(AgentSettings(), VirtualClock(), lambda: None)
        with pytest.raises(AgentFullError, match="All 1 places"):
            few.open(AgentSettings(), VirtualClock(), lambda: None)

    run_virtual(again())


def test_a_slot_that_fails_in_a_reply_ends_that_reply_and_nothing_else() -> None:
    agent, _ = fake_agent(FakeModel(fails_at=frozenset({30})))
    with VirtualCall(agent) as call:
        call.say(speech_s=1.0)
        [failed] = of(call, ev.ReplyFinished)
        assert failed.status == "failed"
        assert "begins anew" in call.errors[0]
        assert ANSWER.startswith(failed.text)
        assert call.say(speech_s=1.0).answered
        assert of(call, ev.ReplyFinished)[-1].text == ANSWER


def test_a_slot_that_fails_in_silence_is_told_and_one_that_always_fails_ends_the_call() -> None:
    agent, _ = fake_agent(FakeModel(fails_at=frozenset({5})))
    with VirtualCall(agent) as call:
        call.wait(2.0)
        assert len(call.errors) == 1
        assert call.say(speech_s=1.0).answered
    broken, serving = fake_agent(FakeModel(fails_at=frozenset(range(5, 100))))

    async def main() -> LoopbackLine:
        line = LoopbackLine()
        await broken.start()
        await _session(broken, line, AgentSettings()).run()
        return line

    line = run_virtual(main())
    assert "3 times in a row" in str(line.closed_because)
    assert serving.live == 0


@pytest.mark.parametrize("bursts", [(1,), (3,), (250,), (2, 0, 0, 7, 0, 0, 0)], ids=str)
def test_however_the_packets_come_whole_frames_reach_the_model_in_real_time(bursts: tuple[int, ...]) -> None:
    """Half a frame waits for its other half; five seconds at once are heard as five seconds; a gap is no frame."""
    agent, serving = fake_agent(FakeModel(answers=("Yes",)))

    class Bursty(LoopbackLine):
        k = 0

        def receive(self) -> list[Packet]:
            n = bursts[self.k % len(bursts)] if len(bursts) > 1 or self.k == 0 else 1
            self.k += 1
            return [packet for _ in range(n) for packet in LoopbackLine.receive(self)]

    async def main() -> LoopbackLine:
        await agent.start()
        line = Bursty()
        line.say(np.concatenate([silence(24_000), tone(1.0), silence(24_000)]))
        session = _session(agent, line, AgentSettings())
        task = asyncio.create_task(session.run())
        await asyncio.sleep(6.0)
        session.stop("done")
        await task
        return line

    line = run_virtual(main())
    [slot] = serving.slots
    assert len(slot.seen) <= 6.0 / FRAME_S + 1
    assert [event.text for event in line.of(ev.ReplyFinished)] == ["Yes"]
    [started] = line.of(ev.UserSpeechStarted)
    [stopped] = line.of(ev.UserSpeechStopped)
    assert stopped.audio_pts - started.audio_pts == 24_000


def test_a_device_that_falls_behind_is_told_of_once_and_does_not_grow_a_queue() -> None:
    agent, serving = fake_agent(FakeModel(compute_s=1e6), max_behind_frames=5)
    with VirtualCall(agent) as call:
        call.wait(5.0)
        assert len(serving.slots[0].seen) == 5
        assert len(call.errors) == 1
        assert "fell behind" in call.errors[0]


# --- replay ---------------------------------------------------------------------------------------


SPEECH = ((0.5, 1.0), (2.6, 0.3), (4.4, 1.0), (6.4, 2.4))
REQUESTS = ((0.3, rq.AddMessage(Role.SYSTEM, "Be brief")), (10.5, rq.CreateReply(say="One more thing")))


def test_a_recorded_call_replays_with_the_same_decisions_and_two_replays_to_the_byte(tmp_path: Path) -> None:
    live, _ = fake_agent(STUBBORN)
    asyncio.run(live.start())
    archive = Call(agent=live, speech=SPEECH, total_s=14.0, actions=REQUESTS).record(tmp_path)

    def once(anew: bool) -> Replayed:
        if not anew:
            return replay(archive)
        fresh, _ = fake_agent(FakeModel(answers=STUBBORN.answers, yields_frames=None, compute_s=None))
        return replay(archive, agent=fresh)

    for anew in (False, True):
        first, second = once(anew), once(anew)
        for replayed in (first, second):
            assert replayed.same, replayed.comparison.differences[:3]
            assert replayed.comparison.exact
            assert replayed.sound_same
        assert first.events == second.events
        sounds = [r.voice.samples(r.voice.end_samples).tobytes() for r in (first, second)]
        assert sounds[0] == sounds[1]
    counts = first.outcomes[1].counts
    assert counts["yields"] == 1
    assert counts["replies completed"] >= 2


# --- its text -------------------------------------------------------------------------------------


def test_pieces_become_words_with_the_places_where_they_sound() -> None:
    tokens = FakeTokens()
    text = SpokenText(tokens, FRAME, lead_frames=1)
    text.begin(960)
    told: list[Any] = []
    deltas = ""
    for token in [EPAD, *tokens.encode("Hello"), PAD, PAD, EPAD, *tokens.encode("world"), *tokens.encode("again")]:
        delta, words = text.push(token)
        deltas += delta
        told += words
    told += text.end()
    assert deltas == "Hello world again"
    assert [word.text for word in told] == ["Hello", "world", "again"]
    frame_of = [1, 6, 8]
    assert [word.start_samples for word in told] == [960 + FRAME * (k + 1) for k in frame_of]
    assert told[1].end_samples == told[2].start_samples  # the next one began
    assert all(word.estimated for word in told)
    assert text.end() == ()


def test_a_command_that_is_not_for_it_changes_nothing() -> None:
    agent, serving = fake_agent()

    async def main() -> None:
        await agent.start()
        wakes: list[Callable[[], None]] = []
        mind = agent.open(AgentSettings(), VirtualClock(), lambda: wakes.append(lambda: None))
        mind.command(Inject(" ", Role.ASSISTANT))
        assert list(mind.collect()) == []
        mind.close()

    run_virtual(main())
    assert serving.live == 0
