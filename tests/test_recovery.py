"""When things go wrong, on virtual time: the floor goes back to the user, and the next turn works."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from duplex import events as ev
from duplex import requests as rq
from duplex.agent import (
    AgentCommand,
    AgentEvent,
    AgentSession,
    AgentSettings,
    Aside,
    AsideKind,
    Configure,
    DropReply,
    FillSilence,
    ReplyAudio,
    ReplyEnd,
    UserState,
)
from duplex.clock import Clock, VirtualClock
from duplex.config import SessionConfig
from duplex.conversation import Role
from duplex.errors import ConfigError, InvalidEventError
from duplex.frames import SAMPLE_RATE_HZ
from duplex.metrics import Metrics
from duplex.session import Session
from duplex.testing import LoopbackLine, ScriptedAgent, ScriptedReply, ScriptedUser, run_virtual, tone
from duplex.turn import Floor, User

Change = Callable[[AgentEvent], Sequence[AgentEvent]]


@dataclass
class Tampering:
    """An agent session whose events are changed on the way out, and whose commands are looked at."""

    inner: AgentSession
    change: Change
    on_command: Callable[[AgentCommand, list[AgentEvent]], None]
    extra: list[AgentEvent] = field(default_factory=list)

    def step(self, heard: object) -> None:
        self.inner.step(heard)  # type: ignore[arg-type]

    def collect(self) -> Sequence[AgentEvent]:
        extra, self.extra = self.extra, []
        return [changed for event in self.inner.collect() for changed in self.change(event)] + extra

    def command(self, command: AgentCommand) -> None:
        self.on_command(command, self.extra)
        self.inner.command(command)

    def close(self) -> None:
        self.inner.close()


class TamperedAgent(ScriptedAgent):
    change: Change = staticmethod(lambda event: [event])
    on_command: Callable[[AgentCommand, list[AgentEvent]], None] = staticmethod(lambda command, out: None)

    def open(self, settings: AgentSettings, clock: Clock, wake: Callable[[], None]) -> AgentSession:
        return Tampering(super().open(settings, clock, wake), self.change, self.on_command)


@dataclass
class Conversation:
    """What became of a session: its line, and itself."""

    line: LoopbackLine
    session: Session
    errors: list[InvalidEventError]

    def audible(self, start_s: float, end_s: float) -> bool:
        sound = self.line.audio()[round(start_s * SAMPLE_RATE_HZ) : round(end_s * SAMPLE_RATE_HZ)]
        return bool(np.sqrt(np.mean(sound**2)) > 0.01)

    def floor_at(self, at_s: float) -> Floor:
        return [e.floor for e in self.line.of(ev.FloorChanged) if e.at.at_s <= at_s][-1]

    def codes(self) -> list[str]:
        return [e.code for e in self.line.of(ev.ErrorRaised)]


def converse(
    agent: ScriptedAgent,
    speech: Sequence[tuple[float, float]],
    total_s: float,
    config: SessionConfig | None = None,
    actions: Sequence[tuple[float, rq.Request]] = (),
    clock: Callable[[], VirtualClock] = VirtualClock,
) -> Conversation:
    line = LoopbackLine()
    line.say(ScriptedUser(speech).samples(total_s))
    errors: list[InvalidEventError] = []

    async def main() -> Session:
        ticking = clock()
        session = Session(
            session_id="sess_test",
            line=line,
            agent=agent,
            clock=ticking,
            config=config or SessionConfig(),
            settings=AgentSettings(),
            metrics=Metrics(),
        )
        task = asyncio.create_task(session.run())
        for at_s, request in actions:
            await ticking.sleep_until(at_s)
            try:
                session.request(request)
            except InvalidEventError as error:
                errors.append(error)
        await ticking.sleep_until(total_s)
        session.stop("done")
        await task
        return session

    session = run_virtual(main())
    return Conversation(line, session, errors)


# --- a model that stalls ------------------------------------------------------------------------------


class Stalling(TamperedAgent):
    """Its first reply stops after 0.6 s of sound and never ends."""

    stalled = False

    def __init__(self) -> None:
        super().__init__()
        self.change = self._stall

    def _stall(self, event: AgentEvent) -> Sequence[AgentEvent]:
        first = not self.stalled
        if isinstance(event, ReplyAudio) and first:
            return [replace(event, samples=event.samples[: round(0.6 * SAMPLE_RATE_HZ)], words=event.words[:2])]
        if isinstance(event, ReplyEnd) and first:
            self.stalled = True
            return []
        return [event]


def test_a_model_that_stalls_in_mid_reply_loses_the_floor_within_two_seconds() -> None:
    call = converse(Stalling(), [(0.5, 1.0), (6.0, 1.0)], 10.0)
    assert call.codes() == ["reply_stalled"]
    silent_from_s = 1.8 + 0.6
    assert call.floor_at(silent_from_s + 1.9) is Floor.SPEAKING
    assert call.floor_at(silent_from_s + 2.2) is Floor.LISTENING
    assert call.audible(7.4, 8.5), "the next turn is answered"
    kept = [m for m in call.session.conversation if m.role is Role.ASSISTANT]
    assert kept[0].cut_off
    assert len(kept[0].text.split()) == 2
    assert not kept[1].cut_off


# --- the last words of a reply --------------------------------------------------------------------------


def ends_at_s() -> float:
    """When the scripted reply's last packet is sent, for a user who stops at 1.5 s."""
    call = converse(ScriptedAgent(), [(0.5, 1.0)], 5.0)
    [finished] = call.line.of(ev.ReplyFinished)
    return finished.at.at_s - 0.1  # heard 100 ms after it was sent, as assumed without evidence


def test_a_reply_is_over_when_it_was_heard_not_when_it_was_sent() -> None:
    call = converse(ScriptedAgent(), [(0.5, 1.0)], 5.0)
    sent_s = max(p.pts for p in call.line.played if p.reply_id) / SAMPLE_RATE_HZ + 0.02
    [finished] = call.line.of(ev.ReplyFinished)
    assert finished.at.at_s == pytest.approx(sent_s + 0.1, abs=0.03)


def test_who_speaks_while_the_last_packet_is_on_its_way_still_cuts_the_reply_off() -> None:
    cut_s = round(ends_at_s() / 0.02) * 0.02
    call = converse(ScriptedAgent(), [(0.5, 1.0), (cut_s, 1.5)], 9.0)
    [truncated] = call.line.of(ev.ReplyTruncated)
    assert truncated.error_ms > 0
    [first] = [m for m in call.session.conversation if m.role is Role.ASSISTANT][:1]
    assert first.cut_off
    assert f"{first.text} {first.unheard}".strip() == "All right, here is my answer."


def test_what_was_not_said_is_remembered_as_that() -> None:
    agent = ScriptedAgent([ScriptedReply(text="one two three four five six seven eight", duration_s=4.0)])
    call = converse(agent, [(0.5, 1.0), (3.8, 1.5)], 9.0)
    [cut] = [m for m in call.session.conversation if m.cut_off]
    assert cut.text.split() + cut.unheard.split() == "one two three four five six seven eight".split()
    assert 3 <= len(cut.text.split()) <= 5
    [dropped] = [c for c in agent.sessions[0].commands if isinstance(c, DropReply) and c.heard_text]
    assert (dropped.heard_text, dropped.unheard_text) == (cut.text, cut.unheard)


# --- asides -----------------------------------------------------------------------------------------------


class Humming(TamperedAgent):
    """Says "mm-hm" for 0.4 s whenever the user has spoken for a second."""

    def __init__(self) -> None:
        super().__init__([ScriptedReply(audio_after_s=0.05)])
        self.change = self._hum
        self.windows = 0

    def _hum(self, event: AgentEvent) -> Sequence[AgentEvent]:
        if isinstance(event, UserState) and event.user is User.SPEAKING:
            self.windows += 1
            if self.windows % 50 == 0:
                return [event, Aside(AsideKind.BACKCHANNEL, "Mm-hm.", tone(0.4, 330.0))]
        return [event]


def test_an_aside_is_heard_and_takes_no_floor() -> None:
    call = converse(Humming(), [(0.5, 1.5)], 6.0)
    [aside] = call.line.of(ev.AsideStarted)
    assert aside.text == "Mm-hm."
    assert call.audible(1.55, 1.85)
    assert call.floor_at(1.8) is Floor.LISTENING
    assert "Mm-hm" not in " ".join(m.text for m in call.session.conversation)
    assert [p.aside for p in call.line.played if 1.55 < p.pts / SAMPLE_RATE_HZ < 1.8] == [True] * 12


def test_a_reply_does_not_wait_for_an_aside() -> None:
    plain = converse(ScriptedAgent([ScriptedReply(audio_after_s=0.05)]), [(0.5, 1.02)], 6.0)
    hummed = converse(Humming(), [(0.5, 1.02)], 6.0)
    [first], [second] = plain.line.of(ev.ReplyAudioStarted), hummed.line.of(ev.ReplyAudioStarted)
    assert len(hummed.line.of(ev.AsideStarted)) == 1
    assert second.at.at_s == first.at.at_s
    assert not any(p.aside for p in hummed.line.played if p.pts / SAMPLE_RATE_HZ > second.at.at_s + 0.02)


class Slow(TamperedAgent):
    """Thinks for 5 s, and says so when it is asked to."""

    def __init__(self) -> None:
        super().__init__([ScriptedReply(audio_after_s=5.0)])
        self.asked = 0
        self.on_command = self._command

    def _command(self, command: AgentCommand, out: list[AgentEvent]) -> None:
        if isinstance(command, FillSilence):
            self.asked += 1
            out.append(Aside(AsideKind.DEAD_AIR, "One moment.", tone(0.6, 330.0)))


def test_long_thinking_is_admitted_once() -> None:
    agent = Slow()
    call = converse(agent, [(0.5, 1.0)], 10.0, SessionConfig(dead_air_s=1.0))
    assert agent.asked == 1
    [aside] = call.line.of(ev.AsideStarted)
    assert call.floor_at(aside.at.at_s) is Floor.THINKING
    assert [f.status for f in call.line.of(ev.ReplyFinished)] == ["completed"]


def test_dead_air_can_be_switched_off_and_the_user_may_take_over() -> None:
    silent = Slow()
    converse(silent, [(0.5, 1.0)], 8.0, SessionConfig(dead_air_s=0.0))
    assert silent.asked == 0
    call = converse(Slow(), [(0.5, 1.0), (3.9, 1.0)], 14.0, SessionConfig(dead_air_s=1.5))
    aside = call.line.of(ev.AsideStarted)[0]
    assert 3.5 < aside.at.at_s < 3.9
    assert not call.audible(4.1, 4.8), "what we say to fill the silence stops when somebody speaks"
    assert len(call.line.of(ev.UserTurnReopened)) == 1


# --- clients and clocks -----------------------------------------------------------------------------------


def test_an_acknowledgement_of_sound_never_sent_is_refused_and_changes_nothing() -> None:
    known = converse(ScriptedAgent(), [(0.5, 1.0)], 5.0)
    [started] = known.line.of(ev.ReplyStarted)
    lies = [
        (2.5, rq.AcknowledgePlayout(started.reply_id, 60_000.0)),
        (2.6, rq.AcknowledgePlayout("resp_nobody", 100.0)),
    ]
    call = converse(ScriptedAgent(), [(0.5, 1.0)], 5.0, actions=lies)
    assert [error.param for error in call.errors] == ["played_ms", "response_id"]
    assert [m.text for m in call.session.conversation] == [m.text for m in known.session.conversation]
    assert "ms" in str(call.errors[0])


class Jumpy(VirtualClock):
    """Leaps ahead by an hour, once, as a laptop does that was closed."""

    leap_at_s = 2.5
    leapt_s = 0.0

    def now(self) -> float:
        now = super().now() + self.leapt_s
        if not self.leapt_s and now > self.leap_at_s:
            self.leapt_s = 3600.0
            now += self.leapt_s
        return now


def test_after_the_clock_jumped_the_next_turn_works() -> None:
    call = converse(ScriptedAgent(), [(0.5, 1.0), (6.0, 1.0)], 10.0, clock=Jumpy)
    finished = call.line.of(ev.ReplyFinished)
    assert len(finished) == 2
    assert finished[-1].status == "completed"
    assert call.line.of(ev.FloorChanged)[-1].floor is Floor.LISTENING


class Choosy(TamperedAgent):
    def __init__(self) -> None:
        super().__init__()
        self.on_command = self._command

    def _command(self, command: AgentCommand, out: list[AgentEvent]) -> None:
        if isinstance(command, Configure) and command.settings.turn_taking == {"preset": "hasty"}:
            raise ConfigError("There is no preset 'hasty'.")


def test_settings_that_cannot_be_honoured_change_nothing() -> None:
    wish = rq.UpdateSettings(AgentSettings(instructions="Shout.", turn_taking={"preset": "hasty"}))
    call = converse(Choosy(), [], 1.0, actions=[(0.5, wish)])
    assert "hasty" in str(call.errors[0])
    assert call.session.settings == AgentSettings()
    call = converse(Choosy(), [], 1.0, actions=[(0.5, rq.UpdateSettings(AgentSettings(turn_taking={"a": 1})))])
    assert not call.errors
    assert call.session.settings.turn_taking == {"a": 1}
