"""The session on virtual time, with a scripted agent: what it says, when, and what it remembers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from session_run import SessionRun

from duplex import events as ev
from duplex import requests as rq
from duplex.agent import AgentSession, BeginReply, CommitTurn, DropReply, Heard, ReopenTurn
from duplex.conversation import Role
from duplex.frames import SAMPLE_RATE_HZ
from duplex.testing import ScriptedAgent, ScriptedReply, ScriptedTiming, ScriptedUser
from duplex.turn import Floor


class Call(SessionRun):
    """What of it can be heard."""

    def audible_s(self) -> list[tuple[float, float]]:
        """Stretches of agent voice, in seconds, at packet resolution, bridging gaps under 60 ms."""
        loud = [(p.pts / SAMPLE_RATE_HZ, bool(np.sqrt(np.mean(p.samples**2)) > 0.01)) for p in self.line.played]
        stretches: list[tuple[float, float]] = []
        for start, is_loud in loud:
            if not is_loud:
                continue
            if stretches and start - stretches[-1][1] < 0.06:
                stretches[-1] = (stretches[-1][0], start + 0.02)
            else:
                stretches.append((start, start + 0.02))
        return stretches


def test_a_question_is_answered_with_a_held_back_speculation_released_on_commit() -> None:
    call = Call(ScriptedAgent(), ScriptedUser([(0.5, 1.0)]), 5.0).run()
    [(start, end)] = call.audible_s()
    assert start == pytest.approx(1.8, abs=0.05)  # 0.3 s after the last voiced sample: nothing is left to wait for
    assert end - start == pytest.approx(2.0, abs=0.03)
    [trace] = call.line.of(ev.TurnTraced)
    assert trace.speculative
    assert trace.end_of_turn_ms == pytest.approx(300, abs=25)
    assert trace.first_packet_ms <= 20
    assert [f.status for f in call.line.of(ev.ReplyFinished)] == ["completed"]
    assert [(m.role, m.text) for m in call.session.conversation] == [
        (Role.USER, "(speech)"),
        (Role.ASSISTANT, "All right, here is my answer."),
    ]


def test_the_agent_is_told_with_each_frame_how_far_its_reply_went() -> None:
    told: list[Heard] = []
    agent = ScriptedAgent()
    opened = agent.open

    def open_session(*given: Any) -> AgentSession:
        session = opened(*given)
        stepped = session.step
        session.step = lambda heard: (told.append(heard), stepped(heard))[-1]  # type: ignore[method-assign]
        return session

    agent.open = open_session  # type: ignore[method-assign]
    Call(agent, ScriptedUser([(0.5, 1.0)]), 5.0).run()
    sent = [heard.reply_sent_s for heard in told if heard.floor is Floor.SPEAKING]
    assert None not in sent
    assert sent[1] == pytest.approx(0.04, abs=0.021)
    assert sent[50] - sent[0] == pytest.approx(1.0, abs=0.001)  # type: ignore[operator]
    assert max(s for s in sent if s) == pytest.approx(2.0, abs=0.03)
    assert told[-1].reply_sent_s is None, "there is none any more"


def test_a_slow_reply_leaves_as_soon_as_it_is_there() -> None:
    call = Call(ScriptedAgent([ScriptedReply(audio_after_s=0.7)]), ScriptedUser([(0.5, 1.0)]), 5.0).run()
    [trace] = call.line.of(ev.TurnTraced)
    assert trace.voice_to_voice_ms == pytest.approx(800, abs=30)  # asked at the pause (.1 s), ready .7 s later
    assert trace.first_packet_ms <= 20  # the turn stayed open until there was something to say
    assert trace.end_of_turn_ms == pytest.approx(800, abs=30)


def test_a_finished_turn_stays_open_for_its_reply_only_so_long() -> None:
    call = Call(ScriptedAgent([ScriptedReply(audio_after_s=1.2)]), ScriptedUser([(0.5, 1.0)]), 5.0).run()
    [trace] = call.line.of(ev.TurnTraced)
    assert trace.end_of_turn_ms == pytest.approx(800, abs=30)  # complete at .3 s, and .5 s of waiting
    assert trace.voice_to_voice_ms == pytest.approx(1300, abs=30)


def test_going_on_while_a_finished_turn_waits_for_its_reply_is_no_interruption() -> None:
    agent = ScriptedAgent([ScriptedReply(audio_after_s=0.6)])
    call = Call(agent, ScriptedUser([(0.5, 0.5), (1.45, 0.5)]), 6.0).run()
    assert len(call.line.of(ev.UserTurnCommitted)) == 1
    assert len(call.line.of(ev.ReplyStarted)) == 1
    assert len(call.audible_s()) == 1


def test_going_on_after_a_pause_drops_the_speculation_without_a_trace() -> None:
    call = Call(ScriptedAgent(), ScriptedUser([(0.5, 0.5), (1.2, 0.8)]), 6.0).run()
    [session] = call.agent.sessions
    begun = [c for c in session.commands if isinstance(c, BeginReply)]
    dropped = [c for c in session.commands if isinstance(c, DropReply)]
    assert len(begun) == 2
    assert [d.reply_id for d in dropped] == [begun[0].reply_id]
    assert [r.reply_id for r in call.line.of(ev.ReplyStarted)] == [begun[1].reply_id]
    assert len(call.audible_s()) == 1


def test_speaking_again_while_thinking_reopens_the_turn() -> None:
    agent = ScriptedAgent([ScriptedReply(audio_after_s=1.0)])
    call = Call(agent, ScriptedUser([(0.5, 0.5), (1.9, 0.5)]), 6.0).run()
    [session] = agent.sessions
    assert sum(isinstance(c, ReopenTurn) for c in session.commands) == 1
    commits = [c for c in session.commands if isinstance(c, CommitTurn)]
    assert len(commits) == 2
    assert commits[0].turn_id == commits[1].turn_id
    assert [m.role for m in call.session.conversation] == [Role.USER, Role.ASSISTANT]


def test_a_backchannel_pauses_and_resumes_from_the_same_sample() -> None:
    call = Call(ScriptedAgent(), ScriptedUser([(0.5, 1.0), (2.5, 0.2)]), 7.0).run()
    (a, b), (c, d) = call.audible_s()
    assert b == pytest.approx(2.5, abs=0.08)
    assert (b - a) + (d - c) == pytest.approx(2.0 + 0.02, abs=0.045)  # nothing lost; at most the fade again
    assert [f.status for f in call.line.of(ev.ReplyFinished)] == ["completed"]
    assert len(call.line.of(ev.ReplyHeld)) == len(call.line.of(ev.ReplyResumed)) == 1
    played = np.concatenate([p.samples for p in call.line.played if p.reply_id])
    assert np.max(np.abs(np.diff(played))) < 0.15 * np.max(np.abs(played)) * 2  # no click at either seam


@pytest.mark.parametrize(("lead_packets", "heard_text"), [(1, "All right, here"), (10, "All right, here is")])
def test_an_interruption_yields_and_memory_keeps_only_what_was_heard(lead_packets: int, heard_text: str) -> None:
    call = Call(ScriptedAgent(), ScriptedUser([(0.5, 1.0), (2.8, 1.5)]), 8.0, lead_packets).run()
    first = call.audible_s()[0]
    assert first[1] <= 2.8 + 0.1 + 0.02 * lead_packets  # this line plays ahead what it was given
    [cut] = call.line.of(ev.ReplyTruncated)
    assert cut.heard_text == heard_text
    statuses = [f.status for f in call.line.of(ev.ReplyFinished)]
    assert statuses == ["cancelled", "completed"]
    roles = [(m.role, m.cut_off) for m in call.session.conversation]
    assert roles == [(Role.USER, False), (Role.ASSISTANT, True), (Role.USER, False), (Role.ASSISTANT, False)]


def test_a_client_can_cancel_and_ask_for_a_reply() -> None:
    call = Call(ScriptedAgent(), ScriptedUser([]), 6.0)
    call.at(0.5, rq.AddMessage(Role.USER, "Hello there")).at(0.6, rq.CreateReply())
    call.at(1.5, rq.CancelReply()).at(2.0, rq.CancelReply()).run()
    [(start, end)] = call.audible_s()
    assert start == pytest.approx(0.7, abs=0.05)
    assert end == pytest.approx(1.5, abs=0.05)
    [error] = call.refused
    assert "no response to cancel" in str(error)


def test_acknowledging_audio_that_was_never_sent_is_refused() -> None:
    call = Call(ScriptedAgent(), ScriptedUser([(0.5, 1.0)]), 4.0)
    call.at(2.0, rq.AcknowledgePlayout("resp_test_2", 60_000)).run()
    [error] = call.refused
    assert "60000" in str(error)


def test_a_reply_that_never_comes_gives_the_floor_back() -> None:
    agent = ScriptedAgent([ScriptedReply(audio_after_s=1e9)])
    call = Call(agent, ScriptedUser([(0.5, 1.0)]), 20.0).run()
    [error] = call.line.of(ev.ErrorRaised)
    assert error.code == "reply_timeout"
    assert call.session.machine.floor is Floor.LISTENING


def test_two_runs_give_identical_bytes_and_events() -> None:
    def once() -> tuple[bytes, list[ev.Event]]:
        call = Call(ScriptedAgent(), ScriptedUser([(0.5, 1.0), (2.5, 0.2), (3.4, 1.0)]), 9.0).run()
        return call.line.audio().tobytes(), call.line.events

    assert once() == once()


def test_the_scripted_timing_is_what_decides() -> None:
    patient = ScriptedAgent(timing=ScriptedTiming(complete_s=1.0))
    call = Call(patient, ScriptedUser([(0.5, 1.0)]), 6.0).run()
    assert call.audible_s()[0][0] == pytest.approx(2.5, abs=0.05)


def test_a_microphone_muted_for_ten_minutes_is_no_turn_and_the_next_one_works() -> None:
    call = Call(ScriptedAgent(), ScriptedUser([(600.5, 1.0)]), 605.0).run()
    assert not [
        e for e in call.line.events if e.at.at_s < 600.0 and not isinstance(e, ev.SessionStarted | ev.FloorChanged)
    ]
    [(start, _)] = call.audible_s()
    assert start == pytest.approx(601.8, abs=0.05)
    assert [f.status for f in call.line.of(ev.ReplyFinished)] == ["completed"]


def test_words_that_a_client_gives_are_said_and_remembered() -> None:
    call = Call(ScriptedAgent(), ScriptedUser([]), 4.0).at(0.5, rq.CreateReply(say="Good morning to you.")).run()
    [started] = call.line.of(ev.ReplyStarted)
    assert [m.text for m in call.session.conversation] == ["Good morning to you."]
    [begun] = [c for c in call.agent.sessions[0].commands if isinstance(c, BeginReply)]
    assert (begun.reply_id, begun.say) == (started.reply_id, "Good morning to you.")
