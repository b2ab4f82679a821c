"""Every door gives the same call: one conversation, one verdict, and clear words for what it cannot do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from serving import running_app, running_hub

from duplex.agent import AgentSession, AgentSettings, Heard
from duplex.benchmarks.turns.contract import Call, CallOptions, Echo, Link
from duplex.benchmarks.turns.doors import InProcessDoor, OpenedDoor, WebRtcDoor, WebSocketDoor, door_of
from duplex.clock import Clock, VirtualClock
from duplex.config import Config, ServerConfig
from duplex.errors import TransportError
from duplex.frames import Samples
from duplex.recording import (
    InterruptionHeard,
    Recording,
    TurnHeard,
    interruption_heard,
    is_audible_within,
    level_dbfs,
    starts_ms,
    stops_ms,
    turn_heard,
    voiced_extent,
    voiced_level_dbfs,
)
from duplex.testing import ScriptedAgent, ScriptedReply, ScriptedTiming, run_virtual, tone
from duplex.transport.app import create_app

# Silence of 300 ms ends a turn, the reply is ready by then; 600 ms of overlap is an interruption.
REPLIES = (ScriptedReply(duration_s=2.0),)
TIMING = ScriptedTiming(pause_s=0.1, complete_s=0.3, interrupt_s=0.6, backchannel_s=0.2)
PLAIN = CallOptions()
DOORS = ("in-process", "websocket", "webrtc")


@asynccontextmanager
async def opened(name: str) -> AsyncIterator[OpenedDoor]:
    """A door to the scripted agent; a server of its own where there has to be one."""
    agent = ScriptedAgent(REPLIES, TIMING)
    if name == "in-process":
        async with door_of(agent=agent) as door:
            yield door
        return
    config = Config(server=ServerConfig(max_sessions=2))
    async with (
        running_hub(agent, config) as hub,
        running_app(create_app(hub, config), config) as url,
        door_of(url, door=name) as door,
    ):
        yield door


async def converse(call: Call) -> list[float]:
    """A question, an "uh-huh" over the answer, another question, an interruption. Returns where each began (ms)."""
    await call.wait_ms(200)
    began: list[float] = []
    question = await call.play(tone(0.8))
    await call.wait_audible(timeout_s=10)
    await call.wait_ms(700)
    backchannel = await call.play(tone(0.3))
    assert await call.wait_settled(question.end_ms, answer_timeout_s=5, quiet_ms=500)
    second = await call.play(tone(0.8))
    await call.wait_audible(timeout_s=10)
    await call.wait_ms(700)
    interruption = await call.play(tone(1.0))
    assert await call.wait_settled(interruption.end_ms, answer_timeout_s=5, quiet_ms=500)
    began += [span.start_ms for span in (question, backchannel, second, interruption)]
    return began


def verdicts(
    recording: Recording, began: Sequence[float]
) -> tuple[TurnHeard, InterruptionHeard, TurnHeard, InterruptionHeard]:
    question, backchannel, second, interruption = began
    found = (
        turn_heard(recording, question, backchannel - 50),
        interruption_heard(recording, backchannel, second),
        turn_heard(recording, second, interruption - 50),
        interruption_heard(recording, interruption),
    )
    assert all(found)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("name", DOORS)
async def test_one_conversation_has_one_verdict_through_every_door(name: str) -> None:
    async with opened(name) as door, door.call() as call:
        assert door.name == name
        began = await converse(call)
    recording = call.recording()
    question, backchannel, second, interruption = verdicts(recording, began)
    assert recording.playout_ms == 20
    # The turn ends after 300 ms of silence. Upper limits are for virtual time: here the machine may be busy.
    for turn in (question, second):
        assert not turn.took_over
        assert turn.voice_to_voice_ms is not None
        assert turn.voice_to_voice_ms >= 300
    for overlap in (backchannel, interruption):
        assert overlap.valid
        assert overlap.stop_ms is not None
    # It came back after the "uh-huh" and went on to its end; it did not come back after the interruption.
    resumed_ms = starts_ms(recording.agent, backchannel.user.end_ms)
    assert resumed_ms is not None
    assert resumed_ms < began[2]
    assert interruption.yielded
    kinds = [recorded.type for recorded in call.events]
    assert kinds.count("duplex.reply.held") == 2
    assert kinds.count("duplex.reply.resumed") == 1
    assert kinds.count("conversation.item.truncated") == 1
    done = [e.event["response"]["status"] for e in call.events if e.type == "response.done"]
    assert done == ["completed", "cancelled", "completed"]
    assert "error" not in kinds


async def test_a_server_call_goes_on_after_three_seconds_without_a_line() -> None:
    async with opened("webrtc") as door, door.call() as call:
        first = await call.play(tone(0.5))
        await call.wait_audible(timeout_s=10)
        await call.outage(3.0)
        back_ms = call.now_ms
        assert await call.wait_settled(first.end_ms, answer_timeout_s=5, quiet_ms=300)
        second = await call.play(tone(0.5))
        await call.wait_audible(timeout_s=10)
        await call.wait_ms(300)
    agent = call.recording().agent
    assert not is_audible_within(agent, back_ms - 2500, back_ms)
    again = starts_ms(agent, second.end_ms)
    assert again is not None
    assert "error" not in [recorded.type for recorded in call.events]


# --- in process, on virtual time -------------------------------------------------------------------------


def on_virtual_time(
    use: Callable[[Call], Any], agent: ScriptedAgent | None = None, options: CallOptions = PLAIN
) -> tuple[Recording, Any]:
    """What came of one call to a scripted agent."""

    async def main() -> tuple[Recording, Any]:
        async with InProcessDoor(agent or ScriptedAgent(REPLIES, TIMING), clock=VirtualClock()) as door:
            async with door.call(options) as call:
                result = await use(call)
            return call.recording(), result

    return run_virtual(main())


def test_on_virtual_time_a_conversation_is_exact_and_always_the_same() -> None:
    recording, began = on_virtual_time(converse)
    question, backchannel, _, interruption = verdicts(recording, began)
    # 300 ms of silence, the 20 ms of the frame in which they were complete, and 20 ms of playout.
    assert question.voice_to_voice_ms == pytest.approx(320, abs=20)
    assert backchannel.stop_ms == pytest.approx(50, abs=20)
    assert interruption.stop_ms == pytest.approx(50, abs=20)
    again, _ = on_virtual_time(converse)
    np.testing.assert_array_equal(recording.stereo, again.stereo)
    assert [(round(e.at_ms, 6), e.type) for e in recording.events] == [
        (round(e.at_ms, 6), e.type) for e in again.events
    ]


def test_in_process_memory_knows_to_the_packet_what_was_heard() -> None:
    async def interrupt(call: Call) -> dict[str, Any]:
        await call.play(tone(0.5))
        await call.wait_audible(timeout_s=5)
        await call.wait_ms(900)
        await call.play(tone(1.0))
        return dict((await call.wait_for("conversation.item.truncated", timeout_s=1)).event)

    recording, truncated = on_virtual_time(interrupt)
    began_ms = starts_ms(recording.agent, 0)
    assert began_ms is not None
    stopped_ms = stops_ms(recording.agent, began_ms)
    assert stopped_ms is not None
    assert truncated["duplex"]["evidence"] == "ack"
    assert truncated["audio_end_ms"] == pytest.approx(stopped_ms - began_ms, abs=40)


def test_an_answer_that_takes_longer_is_measured_so() -> None:
    async def ask(call: Call) -> float:
        span = await call.play(tone(0.5))
        await call.wait_settled(span.end_ms, answer_timeout_s=5)
        return span.start_ms

    waits = []
    for after_s in (0.4, 0.8):
        agent = ScriptedAgent((ScriptedReply(audio_after_s=after_s),), TIMING)
        recording, start_ms = on_virtual_time(ask, agent)
        heard = turn_heard(recording, start_ms)
        assert heard is not None
        assert heard.voice_to_voice_ms is not None
        waits.append(heard.voice_to_voice_ms)
    assert waits[1] - waits[0] == pytest.approx(400, abs=20)


class Eavesdropper(ScriptedAgent):
    """Keeps what it heard."""

    def __init__(self) -> None:
        super().__init__((ScriptedReply(duration_s=2.0),), ScriptedTiming(interrupt_s=30.0))
        self.heard: list[Samples] = []

    def open(self, settings: AgentSettings, clock: Clock, wake: Callable[[], None]) -> AgentSession:
        session = super().open(settings, clock, wake)
        step = session.step

        def listen(heard: Heard) -> None:
            self.heard.append(heard.frame.samples)
            step(heard)

        session.step = listen  # type: ignore[method-assign]
        return session


@pytest.mark.parametrize("level_db", [-20.0, -30.0])
def test_the_agent_hears_its_echo_as_far_below_as_was_asked(level_db: float) -> None:
    agent = Eavesdropper()

    async def listen(call: Call) -> None:
        await call.play(tone(0.5))
        await call.wait_audible(timeout_s=5)
        await call.wait_ms(1000)

    recording, _ = on_virtual_time(listen, agent, CallOptions(link=Link(echo=Echo(level_db, 150), seed=3)))
    spoke_ms = starts_ms(recording.agent, 0)
    assert spoke_ms is not None
    heard = np.concatenate(agent.heard)
    echo = heard[round((spoke_ms + 170) * 24) : round((spoke_ms + 600) * 24)]
    assert not heard[round((spoke_ms - 100) * 24) : round((spoke_ms + 130) * 24)].any()
    # The scripted voice is a single tone, of which a room passes a little more or less.
    assert level_dbfs(echo) - voiced_level_dbfs(recording.agent) == pytest.approx(level_db, abs=2.5)
    said = voiced_extent(recording.user)
    assert said is not None
    assert said.end_ms - said.start_ms == pytest.approx(500, abs=10)


def test_events_sent_in_process_are_read_as_a_server_reads_them() -> None:
    async def ask(call: Call) -> list[dict[str, Any]]:
        call.send({"type": "response.create"})
        await call.wait_for("response.done", timeout_s=20)
        call.send({"type": "response.cancel"})
        call.send({"type": "nonsense"})
        call.send({"type": "input_audio_buffer.clear"})
        await call.wait_for("input_audio_buffer.cleared", timeout_s=1)
        return [dict(recorded.event["error"]) for recorded in call.events if recorded.type == "error"]

    recording, errors = on_virtual_time(ask)
    assert starts_ms(recording.agent, 0) is not None
    assert [error["code"] for error in errors] == ["response_cancel_not_active", "invalid_event"]


def test_in_process_there_is_no_line_to_be_bad() -> None:
    for link in (Link(loss=0.1), Link(jitter_ms=10), Link(skew_ppm=100)):
        with pytest.raises(TransportError, match="no network inside one process"):
            on_virtual_time(lambda call: call.wait_ms(1), options=CallOptions(link=link))
    with pytest.raises(NotImplementedError, match="no line that could fail"):
        on_virtual_time(lambda call: call.outage(3.0))
    with pytest.raises(TransportError, match=r"longer than max_call_s = 1 s"):
        on_virtual_time(lambda call: call.wait_ms(1500), options=CallOptions(max_call_s=1.0))


def test_one_door_serves_many_calls_and_each_starts_afresh() -> None:
    async def main() -> None:
        agent = ScriptedAgent(REPLIES, TIMING)
        door = InProcessDoor(agent, clock=VirtualClock())
        for _ in range(2):
            async with door.call() as call:
                await call.play(tone(0.5))
                await call.wait_audible(timeout_s=5)
            assert call.recording().duration_ms < 2000
        async with door.call() as one, door.call() as two:
            await asyncio.gather(one.play(tone(0.4)), two.play(tone(0.8)))
            await asyncio.gather(one.wait_audible(timeout_s=5), two.wait_audible(timeout_s=5))
        assert len(agent.sessions) == 4
        await door.close()
        assert all(session.closed for session in agent.sessions)

    run_virtual(main())


# --- which door ----------------------------------------------------------------------------------------------


async def test_the_address_says_which_door() -> None:
    assert door_of("http://127.0.0.1:9") == WebRtcDoor("http://127.0.0.1:9")
    assert door_of("127.0.0.1:9", door="websocket") == WebSocketDoor("127.0.0.1:9")
    assert door_of("ws://127.0.0.1:9") == WebSocketDoor("ws://127.0.0.1:9")
    assert isinstance(door_of(agent=ScriptedAgent()), InProcessDoor)
    assert [door_of("x:1").name, door_of("ws://x").name, door_of(agent=ScriptedAgent()).name] == list(DOORS)[::-1]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({}, "Say where to"),
        ({"url": "x:1", "agent": ScriptedAgent()}, "Say where to"),
        ({"url": "ws://x", "door": "webrtc"}, "no door 'webrtc' to ws://x"),
        ({"url": "x:1", "door": "cat-flap"}, "no door 'cat-flap' to x:1"),
        ({"agent": ScriptedAgent(), "door": "webrtc"}, "has one door"),
    ],
)
def test_a_door_that_leads_nowhere_is_refused(asked: dict[str, Any], told: str) -> None:
    with pytest.raises(TransportError, match=told):
        door_of(**asked)
