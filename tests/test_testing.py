"""The public fakes keep their promises."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from duplex import events as ev
from duplex import requests as rq
from duplex.agent import (
    Agent,
    AgentCommand,
    AgentEvent,
    AgentInfo,
    AgentSession,
    AgentSettings,
    Fault,
    Heard,
    ReplyAudio,
    UserState,
)
from duplex.clock import Clock, VirtualClock
from duplex.config import SessionConfig
from duplex.conversation import Message, Role
from duplex.errors import AgentFaultError, ConfigError, DuplexError, InvalidEventError
from duplex.frames import SAMPLE_RATE_HZ, silence
from duplex.recording import TurnHeard, turn_heard
from duplex.testing import (
    Jitter,
    LoopbackLine,
    ScriptedAgent,
    ScriptedReply,
    ScriptedStages,
    ScriptedTiming,
    ScriptedUser,
    UnansweredError,
    VirtualCall,
    budget,
    run_virtual,
    slowed,
    tone,
)
from duplex.testing.delays import SLOWABLE
from duplex.trace import SPANS
from duplex.turn import Floor, User


def test_an_hour_of_virtual_time_takes_no_time_and_keeps_its_order() -> None:
    async def main() -> list[tuple[str, float]]:
        clock, log = VirtualClock(), []

        async def worker(name: str, every_s: float, times: int) -> None:
            for n in range(1, times + 1):
                await clock.sleep_until(n * every_s)
                log.append((name, clock.now()))

        await asyncio.gather(worker("a", 1200.0, 3), worker("b", 1800.0, 2))
        return log

    began = time.perf_counter()
    log = run_virtual(main())
    assert time.perf_counter() - began < 60
    assert log == [("a", 1200.0), ("b", 1800.0), ("a", 2400.0), ("b", 3600.0), ("a", 3600.0)]


def test_timers_fire_at_their_deadline() -> None:
    async def main() -> float:
        clock, fired = VirtualClock(), asyncio.Event()
        clock.call_at(7.5, fired.set)
        await fired.wait()
        return clock.now()

    assert run_virtual(main()) == 7.5


def test_a_loop_on_which_nothing_can_happen_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import selectors

    real = selectors.DefaultSelector.select
    monkeypatch.setattr(selectors.DefaultSelector, "select", lambda self, timeout=None: real(self, 0))

    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="stands still"):
        run_virtual(main())


def test_a_line_hears_what_was_said_and_then_silence() -> None:
    line = LoopbackLine()
    line.say(tone(0.03))
    packets = [packet for _ in range(4) for packet in line.receive()]
    assert [packet.pts for packet in packets] == [0, 480, 960, 1440]
    assert packets[0].samples.any()
    assert packets[1].samples[:240].any()
    assert not packets[1].samples[240:].any()
    assert not packets[3].samples.any()


def test_a_scripted_user_speaks_when_told() -> None:
    audio = ScriptedUser([(0.5, 0.25)]).samples(1.0)
    loud = np.flatnonzero(np.abs(audio) > 0.01) / SAMPLE_RATE_HZ
    assert loud[0] == pytest.approx(0.5, abs=0.001)
    assert loud[-1] == pytest.approx(0.75, abs=0.001)


def test_a_tone_has_the_level_it_is_asked_for() -> None:
    assert 20 * np.log10(np.sqrt(np.mean(tone(1.0, level_dbfs=-26.0) ** 2))) == pytest.approx(-26.0, abs=0.1)


# --- a staged agent, and delays ----------------------------------------------------------------------


def test_a_staged_agent_reports_the_marks_of_a_cascade_at_their_moments() -> None:
    with VirtualCall(ScriptedAgent(stages=ScriptedStages(60, 200, 70))) as call:
        turn = call.say()
    cascade = {name for name, *marks in SPANS for name in marks}
    assert cascade <= set(turn.marks)
    stages = turn.stages
    assert {s: stages[s] for s in ("endpointing", "speculation", "listener", "thinker", "talker", "reply")} == {
        "endpointing": 300,
        "speculation": 100,
        "listener": 60,
        "thinker": 200,
        "talker": 70,
        "reply": 0,
    }
    assert turn.speculative


@pytest.mark.parametrize("ms", [80.0, 33.0, 0.0])
@pytest.mark.parametrize("stage", SLOWABLE)
def test_a_delay_lands_in_its_stage_and_nowhere_else(stage: str, ms: float) -> None:
    agent = ScriptedAgent(stages=ScriptedStages())
    with VirtualCall(agent) as plain, VirtualCall(slowed(agent, **{stage: ms})) as slow:
        before, after = plain.say().stages, slow.say().stages
    changed = {name: after[name] - before[name] for name in before if name not in ("release", "lead_in")}
    packet_ms = 20.0 if stage in ("endpointing", "speculation") else 0.0  # seen frame by frame
    assert changed.pop(stage) == pytest.approx(ms, abs=packet_ms + 1e-6)
    assert set(changed.values()) == {0.0}
    assert abs(after["release"] - before["release"]) <= 20.0


def test_delays_of_several_stages_add_up_for_the_person_who_waits() -> None:
    agent = ScriptedAgent(stages=ScriptedStages())
    with VirtualCall(agent) as plain, VirtualCall(slowed(agent, listener=40, thinker=80, talker=40)) as slow:
        assert slow.say().voice_to_voice_ms - plain.say().voice_to_voice_ms == pytest.approx(160, abs=20)


def test_a_slow_listener_hides_behind_work_that_began_later_anyway() -> None:
    # The words are there 60 ms after the pause, and 20 more are gone before anyone asks for a reply.
    agent = ScriptedAgent(stages=ScriptedStages(listener_ms=0))
    with VirtualCall(slowed(slowed(agent, listener=60), reply=100)) as call:
        stages = call.say().stages
    assert stages["listener"] == 60
    assert stages["thinker"] == 200


def test_a_delay_nobody_would_notice_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no stage 'thinking'"):
        slowed(ScriptedAgent(), thinking=80)
    with pytest.raises(ConfigError, match="-5 ms"):
        slowed(ScriptedAgent(), thinker=-5)
    with (
        VirtualCall(slowed(ScriptedAgent(), thinker=80)) as call,
        pytest.raises(DuplexError, match="thinker_first_clause"),
    ):
        call.say()


def test_a_pause_noticed_later_is_no_speech_over_the_agent() -> None:
    class Hesitant(_Wrapped):
        """After half a second of speaking, takes the silence under its own voice for a pause of the user's."""

        paused = False

        def step(self, heard: Heard) -> None:
            self.paused = heard.floor is Floor.SPEAKING and heard.now_s - heard.floor_since_s > 0.5
            super().step(heard)

        def collect(self) -> Sequence[AgentEvent]:
            paused, events = self.paused, self.inner.collect()
            return [
                replace(e, user=User.PAUSED_INCOMPLETE) if paused and isinstance(e, UserState) else e for e in events
            ]

    with VirtualCall(slowed(_Wrapping(ScriptedAgent(), Hesitant), speculation=100)) as call:
        assert call.say().answered
        assert call.line.of(ev.ReplyHeld) == []


def test_jitter_is_seeded_and_never_negative() -> None:
    first = [Jitter(50, 40, seed=3)(n) for n in range(200)]
    assert first == [Jitter(50, 40, seed=3)(n) for n in range(200)]
    assert first != [Jitter(50, 40, seed=4)(n) for n in range(200)]
    assert min(first) == 0.0
    assert np.mean(first) == pytest.approx(50, abs=10)
    with VirtualCall(ScriptedAgent(stages=ScriptedStages(thinker_ms=Jitter(200, 30, seed=1)))) as call:
        assert len({call.say().stages["thinker"] for _ in range(5)}) == 5


# --- a call ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay_ms", [0.0, 150.0, 400.0, 1230.0])
def test_a_known_delay_is_measured_within_20_ms(delay_ms: float) -> None:
    timing = ScriptedTiming(pause_s=0.3, complete_s=0.3)
    with VirtualCall(ScriptedAgent([ScriptedReply(audio_after_s=delay_ms / 1000)], timing)) as call:
        turn = call.say(speech_s=1.0)
    assert turn.voice_to_voice_ms == pytest.approx(300 + delay_ms, abs=20)
    assert turn.stages["reply"] == pytest.approx(delay_ms, abs=20)


def test_a_turn_is_told_from_the_sound_and_the_words() -> None:
    with VirtualCall(ScriptedAgent(answer=lambda history, said: f"You said {said}")) as call:
        call.wait(0.3)
        turn = call.say("one two three", speech_s=0.9)
        assert turn.answered
        assert (turn.text, turn.reply_text) == ("one two three", "You said one two three")
        assert turn.user.end_ms - turn.user.start_ms == pytest.approx(900, abs=20)
        assert turn_heard(call.recording, 0.0) == TurnHeard(turn.user, turn.reply_ms, False)
        assert [str(line) for line in call.transcript] == ["user: one two three", "assistant: You said one two three"]
        assert call.heard_text == "You said one two three"
        assert "You said" in repr(turn)


def test_words_before_and_after_a_turn_was_taken_back_belong_together() -> None:
    slow = ScriptedAgent(answer=lambda history, said: said, stages=ScriptedStages(thinker_ms=3000))
    with VirtualCall(slow, answer_timeout_s=1.5) as call:
        assert not call.say("what is").answered  # it thinks; the turn is committed
        call.wait(0.5)
        assert call.say("on the menu", hear_out=False).text == "what is on the menu"
        call.wait(5.0)
        assert [line.text for line in call.transcript] == ["what is on the menu", "what is on the menu"]


def test_history_reaches_the_bots_mind() -> None:
    seen: list[int] = []

    def answer(history: Sequence[Message], said: str) -> str:
        seen.append(len(history))
        return "Yes."

    with VirtualCall(ScriptedAgent(answer=answer)) as call:
        for _ in range(3):
            call.say("and then?")
    assert seen == [0, 2, 4]


def test_an_unanswered_turn_says_so_wherever_a_figure_is_asked_for() -> None:
    silent = ScriptedAgent([ScriptedReply(audio_after_s=1e6)])
    with VirtualCall(silent, config=SessionConfig(think_limit_s=3.0), answer_timeout_s=5.0) as call:
        turn = call.say()
        assert not turn.answered
        for figure in ("first_packet_ms", "end_of_turn_ms", "voice_to_voice_ms"):
            with pytest.raises(UnansweredError, match=r"Nothing answered the turn within 5\.\d s.*No reply came"):
                getattr(turn, figure)
        with pytest.raises(UnansweredError, match="Nothing answered"):
            budget(turn, first_packet_ms=200)
        with pytest.raises(UnansweredError, match="no reply to talk over"):
            call.interrupt()
        assert repr(turn) == "<Turn not answered>"


def test_answering_before_the_user_has_finished_is_no_answer() -> None:
    eager = ScriptedAgent(timing=ScriptedTiming(pause_s=0.1, complete_s=0.1))
    halting = ScriptedUser([(0.0, 0.6), (1.0, 0.6)]).samples(1.6)
    with VirtualCall(eager) as call:
        turn = call.say(sound=halting)
    assert turn.took_over
    assert not turn.answered
    with pytest.raises(UnansweredError, match="before the user had finished"):
        _ = turn.voice_to_voice_ms


def test_an_interruption_is_yielded_to_and_only_what_was_heard_is_remembered() -> None:
    with VirtualCall(ScriptedAgent([ScriptedReply("one two three four five six", duration_s=3.0)])) as call:
        cut = call.interrupt("no wait please", after_s=1.5, question="count")
        assert cut.valid
        assert cut.yielded
        assert not cut.resumed
        assert cut.stop_ms <= 120
        assert cut.heard_text == "one two three"
        assert cut.reply_text == "one two three four five six"
        assert cut.turn.answered
        assert cut.turn.text == "no wait please"
        assert [(line.text, line.cut_off) for line in call.transcript if line.role is Role.ASSISTANT] == [
            ("one two three", True),
            ("one two three four five six", False),
        ]
        assert len(call.turns) == len(call.overlaps) == 1
        assert [sorted(set(row) & {"barge_in_stop", "voice_to_voice"}) for row in call.measures] == [
            ["voice_to_voice"],
            ["barge_in_stop"],
            ["voice_to_voice"],
        ]


def test_an_encouragement_pauses_the_reply_and_it_goes_on() -> None:
    with VirtualCall(ScriptedAgent()) as call:
        went_on = call.backchannel(after_s=1.0)
        assert went_on.valid
        assert went_on.resumed
        assert not went_on.yielded
        assert went_on.resume_gap_ms == pytest.approx(300 + 200, abs=60)  # its length, and the quiet that decides
        assert not went_on.turn.answered
        assert call.heard_text == ScriptedReply().text


def test_an_agent_that_talks_on_has_not_yielded() -> None:
    deaf = ScriptedAgent([ScriptedReply(duration_s=4.0)], ScriptedTiming(interrupt_s=1e6, backchannel_s=0.0))
    with VirtualCall(_NeverHolds(deaf)) as call:
        cut = call.interrupt(after_s=1.0, speech_s=1.0)
    assert cut.valid
    assert not cut.yielded
    assert not cut.resumed
    assert cut.measures == {}


def test_talking_over_something_that_is_over_says_so() -> None:
    with VirtualCall(ScriptedAgent([ScriptedReply(duration_s=0.8)])) as call:
        with pytest.raises(UnansweredError, match=r"over after 0\.8 s"):
            call.interrupt(after_s=1.5)
        call.say(hear_out=False)
        with pytest.raises(ConfigError, match="interrupt"):
            call.say()


def test_an_agent_without_marks_is_measured_as_one_stage() -> None:
    with VirtualCall(ScriptedAgent([ScriptedReply(audio_after_s=0.4)])) as call:
        turn = call.say()
    assert set(turn.stages) == {"endpointing", "speculation", "reply", "release", "lead_in"}
    assert turn.stages["reply"] == pytest.approx(400, abs=20)
    with pytest.raises(KeyError, match="No stage 'thinker' was measured"):
        _ = turn.stages["thinker"]


def test_quiet_before_the_first_word_is_a_stage_of_its_own() -> None:
    with VirtualCall(_Murmurs(ScriptedAgent())) as murmur, VirtualCall(ScriptedAgent()) as clear:
        quiet, loud = murmur.say(), clear.say()
    assert quiet.voice_to_voice_ms - loud.voice_to_voice_ms == pytest.approx(160, abs=20)
    assert quiet.stages["lead_in"] - loud.stages["lead_in"] == pytest.approx(100, abs=20)


async def test_a_call_works_inside_a_running_loop() -> None:
    with VirtualCall(ScriptedAgent()) as call:
        assert call.say().answered
        await asyncio.sleep(0)
        assert call.backchannel(after_s=0.8).resumed
        with pytest.raises(InvalidEventError):
            call.request(rq.CancelReply())


def test_a_call_whose_session_fails_tells_why() -> None:
    class Broken(_Wrapped):
        def collect(self) -> Sequence[AgentEvent]:
            events = [*self.inner.collect()]
            if any(isinstance(event, ReplyAudio) for event in events):
                events.append(Fault(AgentFaultError("the voice is gone"), fatal=True))
            return events

    with VirtualCall(_Wrapping(ScriptedAgent(), Broken)) as call, pytest.raises(DuplexError, match="the voice is gone"):
        call.say()


def test_ten_minutes_of_call_are_measured_alike_from_end_to_end() -> None:
    with VirtualCall(ScriptedAgent(stages=ScriptedStages())) as call:
        first = call.say().measures
        call.wait(600.0)
        last = call.say().measures
        assert call.now_ms > 600_000
    assert {name: round(last[name] - first[name]) for name in first if abs(last[name] - first[name]) > 20.0} == {}


def test_two_calls_give_identical_bytes() -> None:
    def once() -> tuple[bytes, str]:
        agent = ScriptedAgent(stages=ScriptedStages(thinker_ms=Jitter(200, 40, seed=2)))
        with VirtualCall(slowed(agent, talker=Jitter(30, 10))) as call:
            call.say()
            call.interrupt(after_s=0.8)
            return call.recording.stereo.tobytes(), repr(call.events)

    assert once() == once()


# --- budgets -----------------------------------------------------------------------------------------


def test_a_budget_that_is_kept_says_nothing_and_one_that_is_not_names_the_stage() -> None:
    with VirtualCall(ScriptedAgent(stages=ScriptedStages(thinker_ms=380))) as call:
        turn = call.say()
    budget(turn, voice_to_voice_ms=700, thinker_ms=380, talker_ms=70)
    with pytest.raises(AssertionError) as failure:
        budget(turn, thinker_ms=300, talker_ms=100, listener_ms=10)
    message = str(failure.value)
    assert "thinker took 380 ms; the budget is 300 ms (80 ms over)" in message
    assert "listener took 60 ms; the budget is 10 ms (50 ms over)" in message
    assert "talker took" not in message
    assert "######" in message


def test_a_budget_of_several_turns_is_for_their_p95() -> None:
    with VirtualCall(ScriptedAgent(stages=ScriptedStages(thinker_ms=lambda n: 500.0 if n == 3 else 200.0))) as call:
        turns = [call.say() for _ in range(6)]
    budget(turns[:3], thinker_ms=300)
    with pytest.raises(AssertionError, match="thinker took 500 ms at p95 of 6 turns"):
        budget(turns, thinker_ms=300)


def test_a_budget_for_something_that_is_no_stage_is_refused() -> None:
    with VirtualCall(ScriptedAgent()) as call:
        turn = call.say()
    with pytest.raises(ConfigError, match="knows no 'thinker_s'"):
        budget(turn, thinker_s=1)
    with pytest.raises(ConfigError, match=r"cannot judge 'thinker'.*Measured: endpointing"):
        budget(turn, thinker_ms=300)
    with pytest.raises(ConfigError, match="no turns"):
        budget([], thinker_ms=300)


# --- agents made for these tests ---------------------------------------------------------------------


class _Wrapped:
    """An agent session that passes everything on."""

    def __init__(self, inner: AgentSession) -> None:
        self.inner = inner

    def step(self, heard: Heard) -> None:
        self.inner.step(heard)

    def collect(self) -> Sequence[AgentEvent]:
        return self.inner.collect()

    def command(self, command: AgentCommand) -> None:
        self.inner.command(command)

    def close(self) -> None:
        self.inner.close()


class _Wrapping:
    def __init__(self, agent: Agent, kind: type[_Wrapped]) -> None:
        self._agent, self._kind = agent, kind

    @property
    def info(self) -> AgentInfo:
        return self._agent.info

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def open(self, settings: AgentSettings, clock: Clock, wake: Callable[[], None]) -> AgentSession:
        return self._kind(self._agent.open(settings, clock, wake))


def _NeverHolds(agent: Agent) -> Agent:
    class Session(_Wrapped):
        """Says that nobody speaks while it does."""

        floor = Floor.LISTENING

        def step(self, heard: Heard) -> None:
            self.floor = heard.floor
            super().step(heard)

        def collect(self) -> Sequence[AgentEvent]:
            deaf = self.floor is not Floor.LISTENING
            return [
                replace(e, user=User.IDLE) if deaf and isinstance(e, UserState) else e for e in self.inner.collect()
            ]

    return _Wrapping(agent, Session)


def _Murmurs(agent: Agent) -> Agent:
    class Session(_Wrapped):
        """Begins each reply with 60 ms of nothing, a click of 20 ms, and 80 ms of nothing."""

        def collect(self) -> Sequence[AgentEvent]:
            quiet = np.concatenate([silence(1440), tone(0.02), silence(1920)])
            return [
                replace(e, samples=np.concatenate([quiet, e.samples])) if isinstance(e, ReplyAudio) else e
                for e in self.inner.collect()
            ]

    return _Wrapping(agent, Session)
