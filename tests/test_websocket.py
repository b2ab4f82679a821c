"""The WebSocket door: the line by itself on a hand-moved clock, then whole conversations with a real server."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import NoCalls, running_app, running_hub
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from duplex import events as ev
from duplex.clock import Timer
from duplex.config import Config, ServerConfig, SessionConfig
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Origin, Packet, silence
from duplex.hub import SessionHub
from duplex.line import OutPacket
from duplex.metrics import Metrics
from duplex.testing import tone
from duplex.transport.app import create_app
from duplex.transport.pcm import PACKET_S, LiveInput, from_pcm16, to_pcm16
from duplex.transport.realtime import RealtimeCodec, SessionDefaults
from duplex.transport.websocket import WebSocketLine
from duplex.turn import Floor, User

AT = ev.At(0, 0.0)


# --- the stream a client pushes -----------------------------------------------------------------------


def assert_contiguous(packets: list[Packet]) -> None:
    assert [packet.pts for packet in packets] == [i * PACKET_SAMPLES for i in range(len(packets))]


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=12))
def test_any_chunking_gives_the_same_stream(sizes: list[int]) -> None:
    pcm = to_pcm16(tone(sum(sizes) / SAMPLE_RATE_HZ))[: 2 * sum(sizes)]
    stream, heard, start = LiveInput(), list[Packet](), 0
    for size in sizes:
        stream.push(pcm[2 * start : 2 * (start + size)], 0.0)
        start += size
        heard += stream.receive(0.0)
    while more := stream.receive(0.0):
        heard += more
    heard += stream.receive(10.0)[:1]  # what was left over, filled up
    assert_contiguous(heard)
    got = np.concatenate([packet.samples for packet in heard])
    np.testing.assert_array_equal(got[: sum(sizes)], from_pcm16(pcm))
    assert not got[sum(sizes) :].any()


def test_nothing_is_heard_before_a_client_begins() -> None:
    stream = LiveInput()
    assert [stream.receive(t) for t in (0.0, 1.0, 60.0)] == [[], [], []]


@pytest.mark.parametrize("chunk_s", [0.01, 0.02, 0.1, 0.17, 0.4])
def test_a_client_sending_in_real_time_is_heard_without_gaps(chunk_s: float) -> None:
    stream, heard, next_chunk_s = LiveInput(), list[Packet](), 0.0
    for tick in range(150):
        now_s = tick * PACKET_S
        while next_chunk_s <= now_s:
            stream.push(bytes(2 * round(chunk_s * SAMPLE_RATE_HZ)), now_s)
            next_chunk_s += chunk_s
        heard += stream.receive(now_s)
    assert_contiguous(heard)
    assert {packet.origin for packet in heard} == {Origin.WIRE}


@pytest.mark.parametrize(("chunk_s", "within_s"), [(0.02, 0.1), (0.1, 0.18), (3.0, 0.3)])
def test_silence_follows_in_real_time_when_a_client_stops(chunk_s: float, within_s: float) -> None:
    stream, heard, first_silence_s = LiveInput(), list[Packet](), 0.0
    stream.push(to_pcm16(tone(chunk_s)), 0.0)
    for tick in range(200):
        packets = stream.receive(tick * PACKET_S)
        if not first_silence_s and any(packet.origin is Origin.SILENCE for packet in packets):
            first_silence_s = tick * PACKET_S
        heard += packets
    assert 0 < first_silence_s <= within_s
    assert_contiguous(heard)
    n_silence = sum(packet.origin is Origin.SILENCE for packet in heard)
    assert n_silence * PACKET_S == pytest.approx(4.0 - min(chunk_s, within_s), abs=0.3)


def test_a_client_ahead_of_real_time_is_heard_sixteen_packets_a_tick() -> None:
    stream = LiveInput()
    stream.push(bytes(2 * SAMPLE_RATE_HZ), 0.0)  # 50 packets
    assert [len(stream.receive(0.0)) for _ in range(4)] == [16, 16, 16, 2]


def test_what_does_not_fit_is_the_newest() -> None:
    stream = LiveInput(max_s=1.0)
    pcm = to_pcm16(tone(1.5))
    assert stream.push(pcm, 0.0) == SAMPLE_RATE_HZ // 2
    heard = [packet for _ in range(4) for packet in stream.receive(0.0)]
    np.testing.assert_array_equal(np.concatenate([p.samples for p in heard]), from_pcm16(pcm[: 2 * SAMPLE_RATE_HZ]))


def test_a_machine_that_slept_does_not_owe_the_silence() -> None:
    stream = LiveInput()
    stream.push(bytes(960), 0.0)
    stream.receive(0.0)
    owed = sum(len(stream.receive(3600.0)) for _ in range(100))
    assert owed <= 40


# --- the line -------------------------------------------------------------------------------------------


class HandClock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def now(self) -> float:
        return self.now_s

    def call_at(self, deadline_s: float, callback: Any) -> Timer:
        raise NotImplementedError

    async def sleep_until(self, deadline_s: float) -> None:
        raise NotImplementedError


class FakeSocket:
    """Takes messages while ``open``; then a send hangs, as it does when the far end stops reading."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.open = asyncio.Event()
        self.open.set()

    async def send_text(self, text: str) -> None:
        await self.open.wait()
        self.sent.append(json.loads(text))


def make_line(max_unsent: int = 512) -> tuple[WebSocketLine, HandClock, Metrics]:
    clock, metrics = HandClock(), Metrics()
    codec = RealtimeCodec(SessionDefaults(), audio_deltas=True)
    return WebSocketLine(codec, clock, metrics, max_unsent_events=max_unsent, max_input_s=2.0), clock, metrics


def packet(reply_id: str | None = "resp_1") -> OutPacket:
    return OutPacket(0, tone(0.02) if reply_id else silence(), reply_id, "item_1" if reply_id else None)


def dropped(metrics: Metrics, queue: str) -> float:
    return metrics.queue_drops.labels(queue)._value.get()


async def test_flush_takes_back_what_was_not_sent_with_the_silence_behind_it() -> None:
    line, _, _ = make_line()
    line.send(packet(None))  # nothing waits before it: it counts as played
    for reply_id in ("resp_1", "resp_1", None):
        line.send(packet(reply_id))
    line.emit(ev.SessionClosed(AT, "done"))
    assert line.flush() == 3 * PACKET_SAMPLES
    assert line.flush() == 0
    socket = FakeSocket()
    line.end(1000, "done")
    await line.run_sender(socket)  # type: ignore[arg-type]
    assert [event["type"] for event in socket.sent] == ["duplex.session.closed"]


async def test_a_full_queue_loses_the_oldest_event_that_may_be_lost() -> None:
    line, _, metrics = make_line(max_unsent=16)
    for n in range(10):
        line.emit(ev.UserTranscriptPartial(AT, "item_1", str(n)))
        line.send(packet())
    assert dropped(metrics, "websocket_events") == 4
    assert line.ending is None
    socket = FakeSocket()
    line.end(1000, "done")
    await line.run_sender(socket)  # type: ignore[arg-type]
    assert [event["text"] for event in socket.sent if "text" in event] == ["4", "5", "6", "7", "8", "9"]
    assert sum(event["type"] == "response.output_audio.delta" for event in socket.sent) == 10


async def test_sound_is_never_dropped_the_connection_ends_instead() -> None:
    line, _, _ = make_line(max_unsent=16)
    for _ in range(17):
        line.send(packet())
    assert line.closed
    assert line.ending is not None
    assert line.ending[0] == 1008
    assert "did not keep up" in line.ending[1]


async def test_a_client_that_takes_nothing_for_five_seconds_is_let_go() -> None:
    line, clock, _ = make_line()
    socket = FakeSocket()
    socket.open.clear()
    sender = asyncio.create_task(line.run_sender(socket))  # type: ignore[arg-type]
    line.emit(ev.FloorChanged(AT, Floor.LISTENING, User.IDLE))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    clock.now_s = 4.9
    line.receive()
    assert not line.closed
    clock.now_s = 5.1
    line.receive()
    assert line.closed
    sender.cancel()


async def test_reading_pauses_while_answers_pile_up() -> None:
    line, _, _ = make_line(max_unsent=16)
    for _ in range(8):
        line.tell([{"type": "error"}])
    assert not line.has_room.is_set()
    line.end(1000, "")
    await line.run_sender(FakeSocket())  # type: ignore[arg-type]
    assert line.has_room.is_set()


async def test_too_much_sound_is_dropped_counted_and_told_once() -> None:
    line, _, metrics = make_line()
    for _ in range(4):
        line.hear(bytes(2 * SAMPLE_RATE_HZ))  # 4 s into 2 s
    socket = FakeSocket()
    line.end(1000, "")
    await line.run_sender(socket)  # type: ignore[arg-type]
    [told] = socket.sent
    assert told["error"]["code"] == "input_audio_buffer_full"
    assert "2 s" in told["error"]["message"]
    assert dropped(metrics, "websocket_input") == 2
    assert not line.drained.is_set()
    for _ in range(10):
        line.receive()
    assert line.drained.is_set()


# --- whole conversations with the echo agent --------------------------------------------------------------


@asynccontextmanager
async def server(config: Config | None = None) -> AsyncIterator[tuple[SessionHub, str]]:
    config = config or Config()
    async with running_hub(config=config) as hub, running_app(create_app(hub, config, door=NoCalls()), config) as url:
        yield hub, url.replace("http", "ws", 1) + "/v1/realtime?model=duplex"


async def say(socket: ClientConnection, samples: np.ndarray) -> None:
    audio = base64.b64encode(to_pcm16(samples)).decode()
    await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))


async def until(socket: ClientConnection, kind: str) -> list[dict[str, Any]]:
    """Every event up to and with the next one of this type."""
    seen: list[dict[str, Any]] = []
    async with asyncio.timeout(20):
        async for message in socket:
            seen.append(json.loads(message))
            if seen[-1]["type"] == kind:
                return seen
    raise AssertionError(f"the connection closed before {kind}: {[event['type'] for event in seen]}")


async def test_a_spoken_turn_is_answered_in_sound() -> None:
    async with server() as (hub, url), connect(url) as socket:
        [created] = await until(socket, "session.created")
        assert created["session"]["type"] == "realtime"
        said = np.random.default_rng(1).normal(0, 0.1, round(0.8 * SAMPLE_RATE_HZ)).astype(np.float32)
        await say(socket, said)  # and then nothing: the end of the turn is the server's to find
        seen = await until(socket, "response.done")
        types = [event["type"] for event in seen]
        for earlier, later in (
            ("input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped"),
            ("input_audio_buffer.speech_stopped", "input_audio_buffer.committed"),
            ("input_audio_buffer.committed", "response.created"),
            ("response.content_part.added", "response.output_audio.delta"),
            ("response.output_audio.delta", "response.output_audio.done"),
        ):
            assert types.index(earlier) < types.index(later)
        echo = b"".join(base64.b64decode(e["delta"]) for e in seen if e["type"] == "response.output_audio.delta")
        assert echo.startswith(to_pcm16(said))  # each sample came back once, in order
        assert hub.live == 1


async def test_bad_events_are_answered_and_the_session_goes_on() -> None:
    async with server() as (_, url), connect(url, max_size=None) as socket:
        await until(socket, "session.created")
        odd = base64.b64encode(b"abc").decode()
        session = {"type": "realtime", "instructions": "x" * 10_000_000}
        for message, says in (
            ("{nope", "not JSON"),
            (b"\x00\x01", "text messages"),
            (json.dumps({"type": "session.updte", "event_id": "e1"}), "session.update"),
            (json.dumps({"type": "input_audio_buffer.append", "audio": odd}), "16-bit"),
            (json.dumps({"type": "session.update", "session": session}), "at most 32000"),
            (json.dumps({"type": "response.cancel"}), "no response to cancel"),
            (json.dumps({"type": "input_audio_buffer.commit"}), "no speech"),
        ):
            await socket.send(message)
            [error] = await until(socket, "error")
            assert says in error["error"]["message"]
            assert error["error"]["type"] == "invalid_request_error"
            assert error["error"]["event_id"] == ("e1" if "updte" in str(message) else None)
        await socket.send(json.dumps({"type": "session.update", "session": {"instructions": "Be brief."}}))
        [updated] = await until(socket, "session.updated")
        assert updated["session"]["instructions"] == "Be brief."


async def test_events_that_are_answered_directly() -> None:
    async with server() as (_, url), connect(url) as socket:
        await until(socket, "session.created")
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}
        await socket.send(json.dumps({"type": "conversation.item.create", "item": item}))
        seen = await until(socket, "conversation.item.done")
        item_id = seen[-1]["item"]["id"]
        await socket.send(json.dumps({"type": "conversation.item.retrieve", "item_id": item_id}))
        assert (await until(socket, "conversation.item.retrieved"))[-1]["item"]["content"][0]["text"] == "Hello"
        await socket.send(json.dumps({"type": "conversation.item.delete", "item_id": item_id}))
        assert (await until(socket, "conversation.item.deleted"))[-1]["item_id"] == item_id
        await socket.send(json.dumps({"type": "conversation.item.delete", "item_id": item_id}))
        assert [event["type"] for event in await until(socket, "error")] == ["error"]
        await socket.send(json.dumps({"type": "input_audio_buffer.clear"}))
        await until(socket, "input_audio_buffer.cleared")


async def test_a_commit_means_all_that_was_sent_before_it() -> None:
    async with server() as (_, url), connect(url) as socket:
        await until(socket, "session.created")
        await say(socket, tone(3.0))
        await socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
        seen = await until(socket, "conversation.item.input_audio_transcription.completed")
        assert "input_audio_buffer.committed" in [event["type"] for event in seen]
        assert "error" not in [event["type"] for event in seen]


async def test_cancelling_stops_the_sound() -> None:
    async with server() as (_, url), connect(url) as socket:
        await until(socket, "session.created")
        await say(socket, tone(5.0))
        seen = await until(socket, "response.output_audio.delta")
        await socket.send(json.dumps({"type": "response.cancel"}))
        seen += await until(socket, "response.done")
        response = seen[-1]["response"]
        assert response["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
        sound = sum(event["type"] == "response.output_audio.delta" for event in seen)
        assert sound * PACKET_S < 3.0  # of five
        assert "conversation.item.truncated" in [event["type"] for event in seen]


async def test_browsers_offer_subprotocols() -> None:
    async with server() as (_, url):
        offered = ["realtime", "openai-insecure-api-key.sk-test", "openai-beta.realtime-v1"]
        async with connect(url, subprotocols=offered) as socket:
            assert socket.subprotocol == "realtime"
            await until(socket, "session.created")


async def test_a_full_server_says_when_to_come_back() -> None:
    config = Config(server=ServerConfig(max_sessions=1, retry_after_s=7.2))
    async with server(config) as (hub, url), connect(url) as socket:
        await until(socket, "session.created")
        with pytest.raises(InvalidStatus) as refused:
            await connect(url).__aenter__()
        response = refused.value.response
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "8"
        assert json.loads(response.body or b"")["error"]["code"] == "server_full"
        assert hub.metrics.sessions_refused.labels("full")._value.get() == 1


async def test_foreign_pages_are_refused_and_our_own_is_not() -> None:
    async with server() as (_, url):
        with pytest.raises(InvalidStatus) as refused:
            await connect(url, origin="https://evil.example").__aenter__()
        assert refused.value.response.status_code == 403
        async with connect(url, origin=url.replace("ws", "http", 1).split("/v1")[0]) as socket:
            await until(socket, "session.created")


async def test_hang_ups_leave_nothing_behind() -> None:
    config = Config(server=ServerConfig(max_sessions=30), session=SessionConfig(resume_s=0.5))
    async with server(config) as (hub, url):
        async with connect(url) as socket:
            await until(socket, "session.created")
        await ended(hub)
        before = len(asyncio.all_tasks())
        for turn in range(20):
            socket = await connect(url)
            await until(socket, "session.created")
            if turn % 2:
                await socket.close()
            else:
                socket.transport.abort()  # a tab closed, a cable pulled
        await ended(hub)
        assert len(asyncio.all_tasks()) <= before


async def ended(hub: SessionHub) -> None:
    """Waits for every session's end, and for the connections' tasks, which sweep up right behind it."""
    async with asyncio.timeout(10):
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name().startswith("sess_")))
        own = asyncio.current_task()
        while busy := [t for t in asyncio.all_tasks() if t is not own and "run_asgi" in repr(t.get_coro())]:
            await asyncio.wait(busy)
    assert hub.live == 0


async def test_a_server_that_stops_says_so() -> None:
    async with server() as (hub, url), connect(url) as socket:
        await until(socket, "session.created")
        await hub.close("The server is stopping.")
        [*_, closed] = await until(socket, "duplex.session.closed")
        assert closed["reason"] == "The server is stopping."
        with pytest.raises(ConnectionClosed) as gone:
            await socket.recv()
        assert gone.value.rcvd is not None
        assert (gone.value.rcvd.code, gone.value.rcvd.reason) == (1000, "The server is stopping.")
