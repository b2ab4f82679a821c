"""A far end that is out of reach for a while, on virtual time: what waits, and from where it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from duplex import events as ev
from duplex import requests as rq
from duplex.agent import AgentSettings, BeginReply, ReopenTurn
from duplex.clock import VirtualClock
from duplex.config import SessionConfig
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Samples
from duplex.line import OutPacket
from duplex.metrics import Metrics
from duplex.playout import Playout
from duplex.session import Session
from duplex.testing import LoopbackLine, ScriptedAgent, ScriptedReply, ScriptedTiming, ScriptedUser, run_virtual

SILENT_S = 0.5  # how long a door takes to be sure


class Call:
    """A session whose line dies at ``dies_s`` for ``for_s``; what is sent meanwhile is heard by nobody."""

    def __init__(
        self,
        user: ScriptedUser,
        total_s: float,
        *,
        dies_s: float,
        for_s: float,
        agent: ScriptedAgent | None = None,
        config: SessionConfig | None = None,
        at: tuple[tuple[float, Callable[[Session], None]], ...] = (),
    ) -> None:
        self.agent = agent or ScriptedAgent([ScriptedReply(duration_s=4.0)])
        self.line = LoopbackLine()
        self.dies_s, self.back_s = dies_s, dies_s + for_s
        sound = user.samples(total_s)
        sound[round(dies_s * SAMPLE_RATE_HZ) : round(self.back_s * SAMPLE_RATE_HZ)] = 0.0
        self.line.say(sound)

        def steps() -> list[tuple[float, Callable[[Session], None]]]:
            lost = (dies_s + SILENT_S, lambda session: session.request(rq.LoseLine(SILENT_S)))
            back = (self.back_s, lambda session: session.request(rq.RegainLine()))
            return sorted([lost, back, *at], key=lambda step: step[0])

        async def main() -> None:
            clock = VirtualClock()
            self.session = Session(
                session_id="sess_test",
                line=self.line,
                agent=self.agent,
                clock=clock,
                config=config or SessionConfig(),
                settings=AgentSettings(),
                metrics=Metrics(),
            )
            task = asyncio.create_task(self.session.run())
            for at_s, step in steps():
                await clock.sleep_until(at_s + 0.001)
                step(self.session)
            await clock.sleep_until(total_s)
            self.session.stop("done")
            await task

        run_virtual(main())

    def packets(self, from_s: float, to_s: float) -> list[OutPacket]:
        return [p for p in self.line.played if from_s <= p.pts / SAMPLE_RATE_HZ < to_s]

    def voiced_s(self, from_s: float, to_s: float) -> float:
        """Seconds of voice that left between two moments."""
        return sum(0.02 for p in self.packets(from_s, to_s) if np.sqrt(np.mean(p.samples**2)) > 0.01)


def test_a_reply_waits_while_the_line_is_dead_and_all_of_it_is_heard() -> None:
    call = Call(ScriptedUser([(0.5, 1.0)]), 12.0, dies_s=3.0, for_s=3.0)
    begun_s = next(p.pts for p in call.line.played if p.samples.any()) / SAMPLE_RATE_HZ
    heard_before = call.voiced_s(begun_s, 3.0)
    assert call.voiced_s(3.0 + SILENT_S + 0.04, 6.0) == 0.0  # said to nobody
    (lost,), (back,) = call.line.of(ev.LineLost), call.line.of(ev.LineBack)
    assert lost.silent_s == SILENT_S
    assert lost.reply_id == back.reply_id is not None
    assert back.lost_s == pytest.approx(3.0, abs=0.03)
    assert lost.heard_ms == back.resumed_ms == pytest.approx(1000 * heard_before - 100.0, abs=25.0)
    # What is said twice: what left within the assumed 100 ms before the line died.
    assert heard_before + call.voiced_s(6.0, 12.0) == pytest.approx(4.0 + 0.1, abs=0.06)
    assert call.voiced_s(6.0, 6.2) == pytest.approx(0.2, abs=0.041)  # at once
    (done,) = call.line.of(ev.ReplyFinished)
    assert done.status == "completed"
    assert done.audio_ms == pytest.approx(4000.0, abs=1.0)
    assert not call.line.of(ev.ErrorRaised)


def test_the_first_sound_after_it_is_faded_in() -> None:
    call = Call(ScriptedUser([(0.5, 1.0)]), 8.0, dies_s=3.0, for_s=2.0)
    first = next(p for p in call.packets(5.0, 6.0) if p.samples.any())
    assert abs(float(first.samples[0])) < 0.01 < float(np.abs(first.samples[-100:]).max())


def test_a_turn_is_not_over_because_the_network_was_silent() -> None:
    speaking = ScriptedUser([(0.5, 8.5)])  # from before the outage until after it
    call = Call(speaking, 12.0, dies_s=3.0, for_s=3.0)
    committed = call.line.of(ev.UserTurnCommitted)
    assert committed[-1].at.at_s > 9.0
    assert len({event.item_id for event in committed}) == 1
    assert call.voiced_s(3.04 + SILENT_S, 9.0) == 0.0


def test_a_turn_that_ended_as_the_line_fell_silent_is_open_again() -> None:
    """The scripted ear ends a turn after 0.3 s of quiet; the door is sure after 0.5 s."""
    agent = ScriptedAgent([ScriptedReply(audio_after_s=1.0, duration_s=1.0)])
    call = Call(
        ScriptedUser([(0.5, 8.5)]), 13.0, dies_s=3.0, for_s=3.0, agent=agent, config=SessionConfig(commit_wait_s=0.0)
    )
    assert any(isinstance(command, ReopenTurn) for command in agent.sessions[0].commands)
    assert [e.at.at_s > 9.0 for e in call.line.of(ev.UserTurnCommitted)] == [False, True]
    assert len({e.item_id for e in call.line.of(ev.UserTurnCommitted)}) == 1  # one turn all the while
    assert call.voiced_s(0.0, 9.0) == 0.0
    assert call.voiced_s(9.0, 13.0) > 0.9


def test_who_spoke_before_and_is_silent_after_is_answered_a_moment_later() -> None:
    call = Call(ScriptedUser([(0.5, 2.6)]), 12.0, dies_s=3.0, for_s=3.0)
    assert 6.5 < call.line.of(ev.UserTurnCommitted)[-1].at.at_s < 7.2
    assert call.voiced_s(6.0, 12.0) == pytest.approx(4.0, abs=0.06)  # from its beginning


def test_media_time_stands_still() -> None:
    call = Call(ScriptedUser([(0.5, 1.0), (7.0, 1.0)]), 10.0, dies_s=4.0, for_s=2.0)
    second = call.line.of(ev.UserSpeechStarted)[1]
    assert second.audio_pts / SAMPLE_RATE_HZ == pytest.approx(7.0 - 1.5, abs=0.05)


def test_a_reply_that_becomes_ready_meanwhile_begins_after_it() -> None:
    agent = ScriptedAgent([ScriptedReply(audio_after_s=2.0, duration_s=1.0)])
    call = Call(ScriptedUser([(0.5, 1.0)]), 9.0, dies_s=2.5, for_s=3.0, agent=agent)
    assert call.voiced_s(2.5, 5.5) == 0.0
    assert call.voiced_s(5.5, 9.0) == pytest.approx(1.0, abs=0.06)
    (done,) = call.line.of(ev.ReplyFinished)
    assert done.status == "completed"


def test_a_reply_whose_end_nobody_heard_is_not_over() -> None:
    """All of it was sent when the line was found dead; its end has to be said again."""
    agent = ScriptedAgent([ScriptedReply(duration_s=1.28)])
    call = Call(ScriptedUser([(0.5, 1.0)]), 9.0, dies_s=2.6, for_s=3.0, agent=agent)
    begun_s = next(p.pts for p in call.line.played if p.samples.any()) / SAMPLE_RATE_HZ
    assert begun_s + 1.28 < 3.1  # so its end left before the line was found dead
    assert call.voiced_s(5.6, 9.0) == pytest.approx(1.28 - (2.6 - begun_s) + 0.1, abs=0.06)
    (done,) = call.line.of(ev.ReplyFinished)
    assert done.status == "completed"
    assert done.at.at_s > 5.6


def test_a_long_outage_counts_for_no_limit() -> None:
    config = SessionConfig(think_limit_s=3.0, stall_limit_s=1.0, hold_limit_s=1.0)
    call = Call(ScriptedUser([(0.5, 1.0)]), 30.0, dies_s=3.0, for_s=20.0, config=config)
    assert not call.line.of(ev.ErrorRaised)
    (done,) = call.line.of(ev.ReplyFinished)
    assert done.status == "completed"


def test_a_reply_held_under_speech_is_still_undecided_after_it() -> None:
    """The user began to speak over us, and the line went dead in the middle of it."""
    agent = ScriptedAgent([ScriptedReply(duration_s=4.0)], ScriptedTiming(backchannel_s=1.0))
    call = Call(ScriptedUser([(0.5, 1.0), (3.0, 0.5)]), 14.0, dies_s=3.2, for_s=3.0, agent=agent)
    (held,) = call.line.of(ev.ReplyHeld)
    (resumed,) = call.line.of(ev.ReplyResumed)
    assert held.at.at_s < 3.2
    assert resumed.at.at_s > 6.2
    (done,) = call.line.of(ev.ReplyFinished)
    assert done.status == "completed"
    assert done.audio_ms == pytest.approx(4000.0, abs=1.0)


def test_what_a_client_says_it_played_counts_more_than_the_clock() -> None:
    def acknowledge(session: Session) -> None:
        reply_id = session._floor.reply.reply_id  # type: ignore[union-attr]
        session.request(rq.AcknowledgePlayout(reply_id, 700.0))

    call = Call(ScriptedUser([(0.5, 1.0)]), 12.0, dies_s=3.0, for_s=3.0, at=((5.9, acknowledge),))
    (back,) = call.line.of(ev.LineBack)
    assert back.resumed_ms == pytest.approx(700.0, abs=0.1)
    assert call.voiced_s(6.0, 12.0) == pytest.approx(3.3, abs=0.06)


def test_a_reply_cancelled_meanwhile_is_remembered_as_heard_before() -> None:
    call = Call(
        ScriptedUser([(0.5, 1.0)]),
        9.0,
        dies_s=3.0,
        for_s=3.0,
        at=((5.0, lambda session: session.request(rq.CancelReply())),),
    )
    (cut,) = call.line.of(ev.ReplyTruncated)
    assert cut.heard_ms == pytest.approx(call.line.of(ev.LineLost)[0].heard_ms)
    assert call.voiced_s(6.0, 9.0) == 0.0  # nothing stale


def test_to_lose_a_lost_line_or_regain_one_that_is_there_is_nothing() -> None:
    def twice(session: Session) -> None:
        session.request(rq.LoseLine(1.0))

    call = Call(
        ScriptedUser([(0.5, 1.0)]),
        12.0,
        dies_s=3.0,
        for_s=3.0,
        at=((4.5, twice), (7.0, lambda session: session.request(rq.RegainLine()))),
    )
    assert len(call.line.of(ev.LineLost)) == len(call.line.of(ev.LineBack)) == 1


def test_one_reply_is_asked_for() -> None:
    agent = ScriptedAgent([ScriptedReply(duration_s=4.0)])
    Call(ScriptedUser([(0.5, 1.0)]), 12.0, dies_s=3.0, for_s=3.0, agent=agent)
    assert sum(isinstance(command, BeginReply) for command in agent.sessions[0].commands) == 1


# --- going back ----------------------------------------------------------------------------------------


def played(playout: Playout, n_packets: int) -> Samples:
    return np.concatenate([playout.take().samples for _ in range(n_packets)])


@pytest.mark.parametrize("back_to", [0, 480, 700, 4321, 9600])
def test_the_playout_goes_back_to_any_sample(back_to: int) -> None:
    playout = Playout(fade_in_ms=0)
    sound = np.random.default_rng(1).uniform(-0.5, 0.5, 24_000).astype(np.float32)
    playout.begin()
    for start in range(0, len(sound), 1000):
        playout.append(sound[start : start + 1000])
    playout.complete()
    playout.release()
    played(playout, 20)
    assert playout.rewind_to(back_to) == 9600 - back_to
    assert playout.position_samples == back_to
    assert playout.queued_samples == len(sound) - back_to
    n_packets = -(-(len(sound) - back_to) // PACKET_SAMPLES)
    np.testing.assert_array_equal(played(playout, n_packets)[: len(sound) - back_to], sound[back_to:])
    assert playout.drained


def test_it_goes_back_no_further_than_is_kept_and_never_forward() -> None:
    playout = Playout(max_rewind_s=0.1)
    playout.begin()
    playout.append(np.ones(24_000, dtype=np.float32))
    playout.release()
    played(playout, 20)
    assert playout.rewind_to(20_000) == 0
    assert playout.rewind_to(0) == 5 * PACKET_SAMPLES
    assert playout.position_samples == 15 * PACKET_SAMPLES
