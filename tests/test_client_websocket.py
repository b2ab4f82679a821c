"""The WebSocket client: its player to the sample, then calls to a server of a few lines and to the real one."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import running_app, running_hub
from websockets.asyncio.server import ServerConnection, serve

from duplex.benchmarks.turns.contract import Echo, Link
from duplex.config import Config, ServerConfig
from duplex.errors import AgentFullError, TransportError
from duplex.frames import SAMPLE_RATE_HZ, Samples
from duplex.recording import is_audible_within, starts_ms, stops_ms, voiced_extent, voiced_spans
from duplex.testing import ScriptedAgent, ScriptedReply, ScriptedTiming, tone
from duplex.transport.app import create_app
from duplex.transport.client_call import CallSettings
from duplex.transport.client_player import MAX_AHEAD_S, DeltaPlayer
from duplex.transport.client_websocket import WebSocketCall
from duplex.transport.pcm import from_pcm16, to_pcm16

PLAYOUT = 480


def counting(n: int, start: int = 0) -> Samples:
    """Samples that say their own number."""
    return (np.arange(start, start + n) / 2.0**20 + 0.1).astype(np.float32)


# --- the player ----------------------------------------------------------------------------------------


def test_a_stretch_begins_after_the_playout_delay_and_plays_back_to_back() -> None:
    player = DeltaPlayer(PLAYOUT)
    for k in range(10):
        assert player.add("r", counting(480, 480 * k), at=1000)  # 200 ms at once
    player.finish("r")
    player.render(3000)
    assert player.played_samples("r") == 3000 - 1480
    player.render(10_000)
    heard = player.heard(0, 10_000)
    assert not heard[:1480].any()
    np.testing.assert_array_equal(heard[1480 : 1480 + 4800], counting(4800))
    assert not heard[1480 + 4800 :].any()
    assert player.last_audible == 1480 + 4800
    assert (player.stats.received, player.stats.late) == (10, 0)


def test_a_late_piece_is_a_gap_and_a_new_reply_is_not() -> None:
    player = DeltaPlayer(PLAYOUT)
    player.add("r", counting(480), at=0)
    player.add("r", counting(480, 480), at=1200)  # the first one ended at 960
    heard = player.heard(0, 3000)
    player.render(3000)
    heard = player.heard(0, 3000)
    np.testing.assert_array_equal(heard[1680:2160], counting(480, 480))
    assert player.stats.late == 1
    assert player.stats.stalled_ms == pytest.approx((1680 - 1200) / 24)
    player.finish("r")
    player.add("s", counting(480), at=9000)
    assert player.stats.late == 1


def test_a_hold_fades_and_a_resume_goes_on_at_the_same_sample() -> None:
    player = DeltaPlayer(0)
    player.add("r", counting(4800), at=0)
    player.hold("r", at=1000)
    player.add("r", counting(480, 99_000), at=1500)  # the server's own fade
    player.resume("r", at=3000)
    player.add("r", counting(480, 4800), at=3100)
    player.render(9000)
    heard = player.heard(0, 9000)
    np.testing.assert_array_equal(heard[:1000], counting(1000))
    fade = heard[1000:1480] / counting(480, 1000)
    assert np.all(np.diff(fade) < 0)
    assert fade[0] == pytest.approx(1.0, abs=0.01)
    assert fade[-1] == pytest.approx(0.0, abs=0.01)
    assert not heard[1480:3000].any()
    np.testing.assert_allclose(heard[3000:3480], counting(480, 1000) * fade[::-1], atol=1e-4)
    np.testing.assert_array_equal(heard[3480 : 3000 + 3800 + 480], counting(3800, 1480))
    assert player.played_samples("r") == 5280


def test_a_drop_fades_and_forgets() -> None:
    player = DeltaPlayer(0)
    player.add("r", counting(4800), at=0)
    player.add("s", counting(480, 50_000), at=100)
    player.drop("r", at=1000)
    player.render(9000)
    heard = player.heard(0, 9000)
    assert heard[1000:1480].any()
    np.testing.assert_array_equal(heard[1480:1960], counting(480, 50_000))
    assert player.played_samples("r") == 1000
    assert player.latest == "s"
    assert player.playing is None


def test_a_held_reply_that_is_dropped_stays_silent() -> None:
    player = DeltaPlayer(0)
    player.add("r", counting(4800), at=0)
    player.hold("r", at=1000)
    player.drop("r", at=2000)
    player.add("s", counting(480), at=5000)
    player.render(9000)
    heard = player.heard(0, 9000)
    assert not heard[1480:5000].any()
    np.testing.assert_array_equal(heard[5000:5480], counting(480))


def test_a_server_far_ahead_is_refused() -> None:
    player = DeltaPlayer(0)
    assert player.add("r", np.zeros(round(MAX_AHEAD_S * SAMPLE_RATE_HZ), np.float32), at=0)
    assert not player.add("r", counting(480), at=100)
    player.render(2000)
    assert player.add("r", counting(480), at=2000)


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["add", "hold", "resume", "wait"]), st.integers(1, 2000)), min_size=1, max_size=40
    )
)
@settings(max_examples=100, deadline=None)
def test_whatever_happens_every_sample_plays_once_and_in_order(steps: list[tuple[str, int]]) -> None:
    player, at, sent, held = DeltaPlayer(PLAYOUT), 0, 0, False
    for step, amount in steps:
        at += amount
        match step:
            case "add" if not held:
                player.add("r", counting(amount, sent), at)
                sent += amount
            case "hold":
                player.hold("r", at)
                held = True
            case "resume":
                player.resume("r", at)
                held = False
            case _:
                player.render(at)
    player.resume("r", at)
    player.render(at + sent + 2 * PLAYOUT + 1)
    assert player.played_samples("r") == sent
    # Outside of fades the loudspeaker plays the samples in order, each of them at most once.
    heard = player.heard(0, at + sent + 2 * PLAYOUT + 1)
    numbers = np.round((heard[heard >= 0.1] - 0.1) * 2.0**20).astype(int)
    fades = 960 * sum(step in {"hold", "resume"} for step, _ in steps) + 960
    assert len(np.unique(numbers)) >= sent - fades


# --- a server of a few lines -----------------------------------------------------------------------------


@dataclass
class FakeServer:
    """One connection at a time. ``on_event`` is called with each client event that is no sound."""

    url: str = ""
    duplex: bool = True
    pieces: list[bytes] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    connection: ServerConnection | None = None
    answers: Callable[[dict[str, Any]], list[dict[str, Any]]] = lambda _event: []
    appended: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, connection: ServerConnection) -> None:
        self.connection = connection
        await self.tell("session.created")
        if self.duplex:
            await self.tell("duplex.floor", floor="listening", user="idle")
        async for text in connection:
            event = json.loads(text)
            if event["type"] == "input_audio_buffer.append":
                self.pieces.append(base64.b64decode(event["audio"]))
                self.appended.set()
                continue
            self.events.append(event)
            for answer in self.answers(event):
                await connection.send(json.dumps(answer))

    async def tell(self, kind: str, **fields: Any) -> None:
        assert self.connection is not None
        await self.connection.send(json.dumps({"type": kind, **fields}))

    async def speak(self, samples: Samples, reply_id: str = "r") -> None:
        where = {"response_id": reply_id, "item_id": f"item_{reply_id}"}
        for piece in np.split(samples, range(480, len(samples), 480)):
            await self.tell("response.output_audio.delta", **where, delta=base64.b64encode(to_pcm16(piece)).decode())

    def sound(self) -> Samples:
        return from_pcm16(b"".join(self.pieces))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    fake = FakeServer()
    async with serve(fake.run, "127.0.0.1", 0) as running:
        fake.url = f"ws://127.0.0.1:{next(iter(running.sockets)).getsockname()[1]}"
        yield fake


async def test_the_microphone_streams_all_the_time(server: FakeServer) -> None:
    async with WebSocketCall.connect(server.url) as call:
        await call.wait_ms(100)
        span = await call.play(tone(0.4))
        await call.wait_ms(100)
        while len(server.pieces) < call.now_ms // 20 - 1:
            await server.appended.wait()
            server.appended.clear()
    assert {len(piece) for piece in server.pieces} == {960}
    sound, recording = server.sound(), call.recording()
    said = voiced_extent(recording.user)
    assert said is not None
    assert said.start_ms == pytest.approx(span.start_ms, abs=10)
    assert said.end_ms == pytest.approx(span.end_ms, abs=10)
    n = min(len(sound), len(recording.user))
    np.testing.assert_allclose(sound[:n], recording.user[:n], atol=1e-4)


async def test_a_fast_sound_clock_and_an_echo_change_what_leaves_and_not_what_was_said(server: FakeServer) -> None:
    link = Link(skew_ppm=50_000, echo=Echo(-10, 60))
    async with WebSocketCall.connect(server.url, CallSettings(link=link)) as call:
        await server.speak(tone(0.6, 500))
        span = await call.play(np.zeros(SAMPLE_RATE_HZ, np.float32))
        packets = len(server.pieces)
    assert span.end_ms - span.start_ms == pytest.approx(1000 / 1.05)
    assert packets >= 45
    recording = call.recording()
    assert voiced_extent(recording.user) is None
    (played,) = voiced_spans(recording.agent, bridge_ms=50)
    assert played.end_ms - played.start_ms == pytest.approx(600 / 1.05, abs=25)
    echoed = voiced_extent(server.sound())
    assert echoed is not None
    assert echoed.end_ms - echoed.start_ms == pytest.approx(600, abs=30)
    assert echoed.start_ms / 1.05 - played.start_ms == pytest.approx(60, abs=20)


async def test_held_and_resumed_as_the_server_says_and_told_how_far(server: FakeServer) -> None:
    async with WebSocketCall.connect(server.url) as call:
        await server.speak(tone(2.0))
        await call.wait_audible(timeout_s=5)
        await call.wait_ms(300)
        await server.tell("input_audio_buffer.speech_started", item_id="u", audio_start_ms=0)
        await server.tell("duplex.reply.held", response_id="r")
        held_ms = (await call.wait_for("duplex.reply.held", timeout_s=5)).at_ms
        await call.wait_quiet(300, timeout_s=5)
        await server.tell("duplex.reply.resumed", response_id="r")
        resumed_ms = (await call.wait_for("duplex.reply.resumed", timeout_s=5)).at_ms
        await call.wait_audible(timeout_s=5)
        await call.wait_quiet(200, timeout_s=5)
    agent = call.recording().agent
    first, second = voiced_spans(agent, bridge_ms=60)
    assert first.end_ms == pytest.approx(held_ms + 20, abs=20)
    assert second.start_ms == pytest.approx(resumed_ms, abs=20)
    assert first.end_ms - first.start_ms + second.end_ms - second.start_ms == pytest.approx(2020, abs=40)
    acks = [event["played_ms"] for event in server.of("duplex.playback.ack")]
    assert acks == sorted(acks)
    assert any(ack == pytest.approx(held_ms - first.start_ms, abs=15) for ack in acks)
    assert acks[-1] == pytest.approx(2000, abs=220)
    assert not server.of("conversation.item.truncate")


@pytest.mark.parametrize("ending", ["truncated", "cancelled"])
async def test_what_is_cancelled_falls_silent(server: FakeServer, ending: str) -> None:
    async with WebSocketCall.connect(server.url) as call:
        await server.speak(tone(2.0))
        await call.wait_audible(timeout_s=5)
        if ending == "truncated":
            await server.tell("conversation.item.truncated", item_id="item_r", audio_end_ms=100, content_index=0)
            ended = await call.wait_for("conversation.item.truncated", timeout_s=5)
        else:
            await server.tell("response.done", response={"id": "r", "status": "cancelled"})
            ended = await call.wait_for("response.done", timeout_s=5)
        await call.wait_quiet(400, timeout_s=5)
    stopped_ms = stops_ms(call.recording().agent, ended.at_ms)
    assert stopped_ms is not None
    assert stopped_ms <= ended.at_ms + 30


async def test_a_server_that_leaves_stopping_to_its_clients_gets_a_client_that_stops(server: FakeServer) -> None:
    server.duplex = False
    async with WebSocketCall.connect(server.url) as call:
        await server.speak(tone(2.0))
        began_ms = await call.wait_audible(timeout_s=5)
        await call.wait_ms(300)
        await server.tell("input_audio_buffer.speech_started", item_id="u", audio_start_ms=0)
        started = await call.wait_for("input_audio_buffer.speech_started", timeout_s=5)
        await call.wait_quiet(400, timeout_s=5)
    agent = call.recording().agent
    assert stops_ms(agent, started.at_ms) == pytest.approx(started.at_ms + 20, abs=20)
    (truncate,) = server.of("conversation.item.truncate")
    assert truncate["item_id"] == "item_r"
    assert truncate["audio_end_ms"] == pytest.approx(started.at_ms - began_ms, abs=60)
    assert not server.of("duplex.playback.ack")


async def test_settings_are_asked_for_and_a_refusal_is_passed_on(server: FakeServer) -> None:
    server.answers = lambda event: [{"type": "session.updated"}] if event["type"] == "session.update" else []
    asked = CallSettings(instructions="Be brief.", turn_taking={"preset": "patient"})
    async with WebSocketCall.connect(server.url, asked):
        pass
    (update,) = server.of("session.update")
    assert update["session"] == {
        "type": "realtime",
        "instructions": "Be brief.",
        "duplex": {"turn_taking": {"preset": "patient"}},
    }
    server.answers = lambda _event: [{"type": "error", "error": {"message": "There is no voice 'nobody'."}}]
    with pytest.raises(TransportError, match="There is no voice 'nobody'"):
        async with WebSocketCall.connect(server.url, CallSettings(voice="nobody")):
            pass


async def test_what_is_no_event_is_kept_as_such(server: FakeServer) -> None:
    async with WebSocketCall.connect(server.url) as call:
        assert server.connection is not None
        for text in ("not json", "[1]", '{"type": "response.output_audio.delta", "delta": "?"}'):
            await server.connection.send(text)
            assert text in (await call.wait_for("client.unreadable", timeout_s=5)).event["text"]


async def test_the_server_hanging_up_ends_what_waits_for_it(server: FakeServer) -> None:
    async with WebSocketCall.connect(server.url) as call:
        waiting = asyncio.create_task(call.wait_for("never", timeout_s=30))
        await asyncio.sleep(0)
        assert server.connection is not None
        await server.connection.close(1000, "enough")
        with pytest.raises(TransportError, match=r"The call is over: the server closed the call \(enough\)"):
            await waiting
        with pytest.raises(TransportError, match="The call is over"):
            await call.play(tone(0.1))
    assert call.recording().duration_ms > 0


async def test_a_bad_line_is_only_what_tcp_makes_of_it(server: FakeServer) -> None:
    for link in (Link(loss=0.1), Link(jitter_ms=20, reorder=True)):
        with pytest.raises(TransportError, match="runs over TCP"):
            async with WebSocketCall.connect(server.url, CallSettings(link=link)):
                pass
    async with WebSocketCall.connect(server.url, CallSettings(link=Link(jitter_ms=40))) as call:
        await server.speak(tone(1.0))
        await call.wait_audible(timeout_s=5)
        await call.wait_quiet(200, timeout_s=5)
        with pytest.raises(NotImplementedError, match="Call by WebRTC"):
            await call.outage(1.0)
    recording = call.recording()
    assert recording.playout_ms == 100
    assert len(voiced_spans(recording.agent, bridge_ms=25)) == 1


async def test_no_server_says_how_to_start_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    with pytest.raises(TransportError, match=rf"no server at http://127.0.0.1:{port}\. Start one with: duplex serve"):
        async with WebSocketCall.connect(f"127.0.0.1:{port}"):
            pass


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"]
)
async def test_what_is_no_such_server_is_told_as_such(answer: bytes) -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(respond, "127.0.0.1", 0) as running:
        port = running.sockets[0].getsockname()[1]
        with pytest.raises(TransportError, match=r"is no WebSocket|refused the call: 404"):
            async with WebSocketCall.connect(f"127.0.0.1:{port}"):
                pass


# --- the real one ----------------------------------------------------------------------------------------


@asynccontextmanager
async def real(agent: ScriptedAgent | None = None, max_sessions: int = 2) -> AsyncIterator[str]:
    config = Config(server=ServerConfig(max_sessions=max_sessions))
    async with running_hub(agent, config) as hub, running_app(create_app(hub, config), config) as url:
        yield url


async def test_a_full_server_says_when_to_come_back() -> None:
    async with real(max_sessions=1) as url, WebSocketCall.connect(url):
        with pytest.raises(AgentFullError, match=r"places are taken.*5 s"):
            async with WebSocketCall.connect(url):
                pass


async def test_over_a_backchannel_a_reply_goes_on_without_losing_a_sample() -> None:
    agent = ScriptedAgent((ScriptedReply(duration_s=3.0),), ScriptedTiming(interrupt_s=1.0))
    async with real(agent) as url, WebSocketCall.connect(url) as call:
        said = await call.play(tone(0.5))
        await call.wait_audible(timeout_s=10)
        await call.wait_ms(500)
        over = await call.play(tone(0.3))
        assert await call.wait_settled(said.start_ms, answer_timeout_s=10, quiet_ms=400)
        done = await call.wait_for("response.done", timeout_s=1)
    assert done.event["response"]["status"] == "completed"
    kinds = [recorded.type for recorded in call.events]
    assert kinds.index("duplex.reply.held") < kinds.index("duplex.reply.resumed") < kinds.index("response.done")
    assert "error" not in kinds
    agent_side = call.recording().agent
    spoken = voiced_spans(agent_side, bridge_ms=60)
    assert len(spoken) == 2
    # 3 s of tone, plus the fade, which the listener heard twice.
    assert sum(span.end_ms - span.start_ms for span in spoken) == pytest.approx(3020, abs=50)
    assert not is_audible_within(agent_side, over.start_ms + 250, over.start_ms + 400)
    assert starts_ms(agent_side, over.end_ms) == spoken[1].start_ms


async def test_memory_keeps_what_the_client_played() -> None:
    text = " ".join(f"word{k}" for k in range(30))
    agent = ScriptedAgent((ScriptedReply(text, duration_s=6.0),), ScriptedTiming(interrupt_s=0.3))
    async with real(agent) as url, WebSocketCall.connect(url) as call:
        await call.play(tone(0.5))
        began_ms = await call.wait_audible(timeout_s=10)
        await call.wait_ms(1500)
        await call.play(tone(0.8))
        truncated = await call.wait_for("conversation.item.truncated", timeout_s=5)
        stopped_ms = stops_ms(call.recording().agent, began_ms + 200)
    assert stopped_ms is not None
    assert truncated.event["duplex"]["evidence"] == "ack"
    # The server was told; how long ago, it makes up for by up to the 200 ms that were on their way.
    assert truncated.event["audio_end_ms"] == pytest.approx(stopped_ms - began_ms, abs=250)
    assert "error" not in [recorded.type for recorded in call.events]
