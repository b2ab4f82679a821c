"""The call client against a server of a few lines: what it plays, what it records, how it complains."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
import uvicorn
from aiortc import MediaStreamTrack, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from duplex.benchmarks.turns.contract import Echo, Link
from duplex.errors import AgentFullError, TransportError
from duplex.frames import SAMPLE_RATE_HZ, Samples
from duplex.recording import is_audible_within, starts_ms, voiced_extent, voiced_spans
from duplex.transport.client import CallClient, CallSettings, calls_url
from duplex.transport.client_media import WIRE_RATE_HZ, Ear, Microphone
from duplex.transport.client_script import Script


def tone(ms: int, hz: float = 440.0) -> Samples:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(ms * SAMPLE_RATE_HZ // 1000) / SAMPLE_RATE_HZ)).astype(np.float32)


class Voice(MediaStreamTrack):
    """Speaks a tone when told to; between tones it sends nothing, and its timestamps go on."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self.told = asyncio.Event()
        self.packets_left = 0
        self._begin_s: float | None = None
        self._sent = 0

    async def recv(self) -> av.AudioFrame:
        loop = asyncio.get_running_loop()
        if self._begin_s is None:
            self._begin_s = loop.time()
        if not self.packets_left:
            await self.told.wait()
            self.told.clear()
            self._sent = round((loop.time() - self._begin_s) / 0.02)
        await asyncio.sleep(max(0.0, self._begin_s + self._sent * 0.02 - loop.time()))
        self.packets_left -= 1
        wave = 9000 * np.sin(2 * np.pi * 500 * (self._sent * 960 + np.arange(960)) / 48_000)
        frame = av.AudioFrame(format="s16", layout="mono", samples=960)
        frame.planes[0].update(wave.astype(np.int16).tobytes())
        frame.sample_rate, frame.pts, frame.time_base = 48_000, self._sent * 960, Fraction(1, 48_000)
        self._sent += 1
        return frame


@dataclass
class FakeServer:
    """Answers one offer. ``on_audible``: called once for each stretch of sound that it hears."""

    url: str = ""
    refusal: Response | None = None
    voice: Voice | None = None
    channel: Any = None
    peer: RTCPeerConnection | None = None
    hung_up: list[str] = field(default_factory=list)
    content_types: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    on_audible: Callable[[FakeServer], None] = lambda _server: None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def offer(self, request: Request) -> Response:
        body = await request.body()
        self.content_types.append(request.headers["content-type"].partition(";")[0])
        self.bodies.append(body)
        if self.refusal is not None:
            return self.refusal
        sdp = body.decode()
        if self.content_types[-1].startswith("multipart/"):
            sdp = str((await request.form())["sdp"])
        self.peer = peer = RTCPeerConnection()
        self.voice = Voice()
        peer.addTrack(self.voice)

        @peer.on("track")
        def hear(track: MediaStreamTrack) -> None:
            self.tasks.append(asyncio.create_task(self._listen(track)))

        @peer.on("datachannel")
        def greet(channel: Any) -> None:
            self.channel = channel
            channel.on("message", lambda text: self.messages.append(json.loads(text)))
            self.emit("session.created")

        await peer.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
        await peer.setLocalDescription(await peer.createAnswer())
        headers = {"Location": "/v1/realtime/calls/one"}
        return Response(peer.localDescription.sdp, 201, headers, media_type="application/sdp")

    async def hang_up(self, request: Request) -> Response:
        self.hung_up.append(request.path_params["name"])
        return Response(status_code=204)

    def emit(self, kind: str, **fields: Any) -> None:
        self.channel.send(json.dumps({"type": kind, **fields}))

    def speak(self, ms: int) -> None:
        assert self.voice is not None
        self.voice.packets_left = ms // 20
        self.voice.told.set()

    async def _listen(self, track: MediaStreamTrack) -> None:
        quiet = 100
        with contextlib.suppress(MediaStreamError):
            while True:
                loud = bool(np.max(np.abs((await track.recv()).to_ndarray())) > 1000)
                if loud and quiet >= 10:
                    self.on_audible(self)
                quiet = 0 if loud else quiet + 1


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    fake = FakeServer()
    routes = [
        Route("/v1/realtime/calls", fake.offer, methods=["POST"]),
        Route("/v1/realtime/calls/{name}", fake.hang_up, methods=["DELETE"]),
    ]
    sock = socket.create_server(("127.0.0.1", 0))
    fake.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    web = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="error", lifespan="off"))
    serving = asyncio.create_task(web.serve([sock]))
    yield fake
    if fake.peer is not None:
        await fake.peer.close()
    for task in fake.tasks:
        task.cancel()
    web.should_exit = True
    await serving


# --- a conversation ------------------------------------------------------------------------------------


async def test_both_sides_of_a_call_lie_where_they_were_spoken(server: FakeServer) -> None:
    server.on_audible = lambda fake: fake.speak(600)
    async with CallClient.connect(server.url) as call:
        await call.wait_ms(200)
        span = await call.play(tone(500))
        heard_ms = await call.wait_audible(timeout_s=10)
        await call.wait_quiet(300, timeout_s=10)
    recording = call.recording()
    said = voiced_extent(recording.user)
    assert said is not None
    assert (said.start_ms, said.end_ms) == (pytest.approx(span.start_ms, abs=10), pytest.approx(span.end_ms, abs=10))
    assert np.corrcoef(recording.user[(a := int(said.start_ms * 24)) : a + 9600], tone(500)[:9600])[0, 1] > 0.99
    spoken = voiced_spans(recording.agent)  # in one piece, unless this machine was too busy to send it so
    assert sum(part.end_ms - part.start_ms for part in spoken) == pytest.approx(600, abs=40)
    # The server answered the tone's first packet, which cannot be heard before it was sent and played out.
    assert spoken[0].start_ms >= span.start_ms + 20 + recording.playout_ms
    assert heard_ms >= spoken[0].start_ms
    assert recording.wire.lost == 0
    assert server.hung_up == ["one"]
    assert server.content_types == ["application/sdp"]


async def test_a_sender_that_pauses_is_heard_after_the_pause_without_added_delay(server: FakeServer) -> None:
    server.on_audible = lambda fake: fake.speak(300)
    async with CallClient.connect(server.url) as call:
        await call.play(tone(200))
        await call.wait_audible(timeout_s=10)
        await call.wait_quiet(600, timeout_s=10)
        second = await call.play(tone(200))
        await call.wait_audible(timeout_s=10)
        await call.wait_quiet(300, timeout_s=10)
    agent = call.recording().agent
    assert len(voiced_spans(agent, bridge_ms=500)) == 2
    answered = starts_ms(agent, second.start_ms)
    assert answered is not None
    assert not is_audible_within(agent, second.start_ms - 100, second.start_ms)


async def test_instructions_and_voice_travel_with_the_offer(server: FakeServer) -> None:
    async with CallClient.connect(server.url, CallSettings(instructions="Be brief.", voice="joe")):
        pass
    assert server.content_types == ["multipart/form-data"]
    assert (
        b'{"type": "realtime", "instructions": "Be brief.", "audio": {"output": {"voice": "joe"}}}' in server.bodies[0]
    )


# --- events ----------------------------------------------------------------------------------------------


async def test_events_are_kept_with_their_time_and_found_since_the_last_play(server: FakeServer) -> None:
    seen: list[str] = []
    server.on_audible = lambda fake: (fake.emit("a", n=1), fake.emit("a", n=2), fake.emit("b"))  # type: ignore[assignment,return-value]
    async with CallClient.connect(server.url, on_event=lambda recorded: seen.append(recorded.type)) as call:
        created = await call.wait_for("session.created", timeout_s=10)
        await call.play(tone(100))
        assert (await call.wait_for("a", timeout_s=10)).event["n"] == 1
        assert (await call.wait_for("a", timeout_s=10)).event["n"] == 2
        await call.wait_for("b", timeout_s=10)  # received before the second "a" was asked for
        with pytest.raises(TimeoutError):
            await call.wait_for("a", timeout_s=0.05)
        with pytest.raises(TimeoutError):
            await call.wait_for("session.created", timeout_s=0.05)
        assert 0 <= created.at_ms <= call.now_ms
    assert seen == ["session.created", "a", "a", "b"]
    assert [recorded.type for recorded in call.recording().events] == seen


async def test_what_is_sent_arrives_and_what_is_no_event_is_kept_as_such(server: FakeServer) -> None:
    async with CallClient.connect(server.url) as call:
        call.send({"type": "response.create"})
        await call.wait_for("session.created", timeout_s=10)
        server.channel.send("not json")
        assert "not json" in (await call.wait_for("client.unreadable", timeout_s=10)).event["text"]
    assert server.messages == [{"type": "response.create"}]


async def test_a_call_is_settled_when_its_reply_is_done(server: FakeServer) -> None:
    def answer(fake: FakeServer) -> None:
        fake.emit("response.created", response={"id": "r"})
        fake.speak(400)
        asyncio.get_running_loop().call_later(0.4, lambda: fake.emit("response.done", response={"id": "r"}))

    server.on_audible = answer
    async with CallClient.connect(server.url) as call:
        assert not await call.wait_settled(call.now_ms, answer_timeout_s=0.1)
        said = await call.play(tone(200))
        assert await call.wait_settled(said.start_ms, answer_timeout_s=10, quiet_ms=200)
        assert [e.type for e in call.events if e.type.startswith("response")] == ["response.created", "response.done"]
        assert call.last_audible_ms is not None
        assert call.now_ms >= call.last_audible_ms + 200


async def test_the_server_hanging_up_ends_what_waits_for_it(server: FakeServer) -> None:
    async with CallClient.connect(server.url) as call:
        await call.wait_for("session.created", timeout_s=10)
        waiting = asyncio.create_task(call.wait_for("never", timeout_s=30))
        await asyncio.sleep(0)
        assert server.peer is not None
        await server.peer.close()
        with pytest.raises(TransportError, match="The call is over"):
            await waiting
        with pytest.raises(TransportError, match="The call is over"):
            await call.play(tone(100))
        assert call.ended is not None
    assert call.recording().duration_ms > 0


# --- complaints --------------------------------------------------------------------------------------------


async def test_no_server_says_how_to_start_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    with pytest.raises(TransportError, match=rf"no server at http://127.0.0.1:{port}\. Start one with: duplex serve"):
        async with CallClient.connect(f"127.0.0.1:{port}"):
            pass


async def test_a_full_server_says_when_to_come_back(server: FakeServer) -> None:
    body = {"error": {"type": "server_error", "message": "All 4 places are taken."}}
    server.refusal = JSONResponse(body, 503, {"Retry-After": "7"})
    with pytest.raises(AgentFullError, match=r"All 4 places are taken.*7 s") as caught:
        async with CallClient.connect(server.url):
            pass
    assert caught.value.retry_after_s == 7


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (JSONResponse({"detail": "too large"}, 413), "413, too large"),
        (Response("plain words", 400), "400, plain words"),
        (Response("v=1 nonsense", 201), "not an SDP answer"),
    ],
)
async def test_refusals_are_passed_on(server: FakeServer, refusal: Response, told: str) -> None:
    server.refusal = refusal
    with pytest.raises(TransportError, match=told):
        async with CallClient.connect(server.url):
            pass


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("127.0.0.1:9000", "http://127.0.0.1:9000/v1/realtime/calls"),
        ("https://example.org/", "https://example.org/v1/realtime/calls"),
        ("http://example.org/proxy/calls", "http://example.org/proxy/calls"),
    ],
)
def test_an_address_may_be_short(given: str, meant: str) -> None:
    assert calls_url(given) == meant


@pytest.mark.parametrize("given", ["ftp://example.org", "http://", "ws://example.org"])
def test_an_address_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(TransportError, match="not the address of a server"):
        calls_url(given)


# --- the media ends ------------------------------------------------------------------------------------------


class Stopwatch:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.at_s = 100.0

    def now(self) -> float:
        return self.at_s

    def call_at(self, deadline_s: float, callback: Callable[[], None]) -> Any:
        raise NotImplementedError

    async def sleep_until(self, deadline_s: float) -> None:
        self.at_s = max(self.at_s, deadline_s)


@dataclass
class Rtp:
    sequence_number: int
    timestamp: int
    payload: bytes


def encoded(loud: bool = True) -> bytes:
    codec = av.CodecContext.create("libopus", "w")
    codec.format, codec.layout, codec.sample_rate = "s16", "mono", 48_000
    codec.options = {"frame_duration": "20"}
    packets: list[bytes] = []
    for k in range(4):
        wave = 9000.0 * loud * np.sin(2 * np.pi * 500 * (k * 960 + np.arange(960)) / 48_000)
        frame = av.AudioFrame.from_ndarray(wave.astype(np.int16).reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 48_000, k * 960
        packets += [bytes(packet) for packet in codec.encode(frame)]
    return packets[-1]


def test_the_ear_follows_counters_that_wrap() -> None:
    clock, payload = Stopwatch(), encoded()
    ear = Ear(clock, max_packets=100)
    for k in range(4):
        ear.add(Rtp((65_534 + k) % 65_536, (2**32 - 1920 + 960 * k) % 2**32, payload))
        clock.at_s += 0.02
    assert [arrival.sequence for arrival in ear.arrivals] == [65_534, 65_535, 65_536, 65_537]
    assert [arrival.timestamp - 2**32 for arrival in ear.arrivals] == [-1920, -960, 0, 960]
    assert [round(arrival.at_s - 100, 2) for arrival in ear.arrivals] == [0.0, 0.02, 0.04, 0.06]
    assert all(len(arrival.samples) == 960 for arrival in ear.arrivals)


def test_the_ear_survives_damage_and_keeps_to_its_bound() -> None:
    ear = Ear(Stopwatch(), max_packets=3)
    ear.add(Rtp(1, 0, b"\xff\xff\xff\xff"))
    ear.add(Rtp(2, 960, b""))
    assert ear.last_audible_s is None
    for k in range(3, 9):
        ear.add(Rtp(k, k * 960, encoded()))
    assert len(ear.arrivals) == 3
    assert ear.full
    assert ear.last_audible_s == 100.0


def test_the_ear_waits_for_what_was_overtaken_and_no_longer_than_it_should() -> None:
    clock, payload = Stopwatch(), encoded()
    taken: list[int] = []
    ear = Ear(clock, max_packets=100, patience_s=0.05, on_packet=lambda arrival: taken.append(arrival.sequence))
    for number, at_ms in [(0, 0), (2, 10), (3, 20), (1, 30), (5, 40), (6, 80), (7, 95), (4, 100), (9, 110)]:
        clock.at_s = 100.0 + at_ms / 1000.0
        ear.add(Rtp(number, number * 960, payload))
    assert taken == [0, 1, 2, 3, 5, 6, 7]  # 4 came after 5 had been waited with for 50 ms
    ear.flush()
    assert taken[-1] == 9
    assert [round((a.at_s - 100) * 1000) for a in ear.arrivals if len(a.samples)] == [0, 30, 10, 20, 40, 80, 95, 110]
    assert [a.sequence for a in ear.arrivals if not len(a.samples)] == [4]


async def test_the_microphone_keeps_time_and_fills_with_silence() -> None:
    clock = Stopwatch()
    script = Script(clock, rate_hz=WIRE_RATE_HZ, max_packets=10)
    microphone = Microphone(script, clock)
    await microphone.recv()
    assert script.push(np.full(1000, 0.1, np.float32)) == (1, 3)
    frames = [await microphone.recv() for _ in range(3)]
    assert [frame.pts for frame in frames] == [960, 1920, 2880]
    assert clock.at_s == pytest.approx(100.08)
    assert [int(np.count_nonzero(frame.to_ndarray())) for frame in frames] == [1920, 80, 0]
    spoken = script.spoken(4 * 960)
    assert np.flatnonzero(spoken).tolist() == list(range(960, 1960))
    assert script.late_s == pytest.approx(0)


async def test_the_microphone_picks_up_more_than_what_was_said() -> None:
    clock = Stopwatch()
    script = Script(clock, rate_hz=WIRE_RATE_HZ, max_packets=10)
    asked: list[int] = []

    def hum(start: int, n_samples: int) -> Samples:
        asked.append(start)
        return np.full(n_samples, 0.25, np.float32)

    microphone = Microphone(script, clock, hum)
    frames = [await microphone.recv() for _ in range(2)]
    assert asked == [0, 960]
    assert all(np.all(frame.to_ndarray() == 8191) for frame in frames)
    assert not script.spoken(1920).any()


async def test_the_microphone_refuses_more_than_the_call_may_last() -> None:
    script = Script(Stopwatch(), rate_hz=WIRE_RATE_HZ, max_packets=10)
    with pytest.raises(TransportError, match="max_call_s"):
        script.push(np.zeros(11 * 960, np.float32))


# --- a bad line ------------------------------------------------------------------------------------------------


async def test_after_an_outage_the_same_call_goes_on(server: FakeServer) -> None:
    loud = asyncio.Event()
    server.on_audible = lambda _fake: loud.set()
    async with CallClient.connect(server.url) as call:
        await call.play(tone(200))
        await loud.wait()
        loud.clear()
        await call.wait_ms(500)  # the server tells one stretch of sound from the next by the quiet between them
        began_ms = call.now_ms
        out = asyncio.create_task(call.outage(1.0))
        await asyncio.sleep(0)
        server.speak(600)
        await call.play(tone(400))
        await out
        ended_ms = call.now_ms
        assert not loud.is_set()
        server.on_audible = lambda fake: fake.speak(400)
        await call.play(tone(200))
        await call.wait_audible(timeout_s=10)
        await call.wait_quiet(300, timeout_s=10)
        server.emit("back")
        await call.wait_for("back", timeout_s=10)
        assert call.ended is None
    agent = call.recording().agent
    assert not is_audible_within(agent, began_ms, ended_ms)
    assert starts_ms(agent, ended_ms) is not None


async def test_a_lossy_line_loses_what_it_says_in_both_directions(server: FakeServer) -> None:
    link = Link(loss=0.3, burst_ms=60, seed=2)
    async with CallClient.connect(server.url, CallSettings(link=link)) as call:
        server.speak(4000)
        await call.wait_audible(timeout_s=10)
        await call.wait_quiet(500, timeout_s=10)
        assert server.peer is not None
        (receiver,) = server.peer.getReceivers()
        inbound = next(s for s in (await receiver.getStats()).values() if s.type == "inbound-rtp")
    wire = call.recording().wire
    assert wire.lost / (wire.lost + wire.received) == pytest.approx(0.3, abs=0.15)
    assert inbound.packetsLost / (inbound.packetsLost + inbound.packetsReceived) == pytest.approx(0.3, abs=0.15)


async def test_on_a_jittery_line_a_patient_listener_hears_everything(server: FakeServer) -> None:
    link = Link(jitter_ms=40, reorder=True, skew_ppm=300, seed=4)
    server.on_audible = lambda fake: fake.speak(1000)
    async with CallClient.connect(server.url, CallSettings(link=link)) as call:
        await call.play(tone(200))
        await call.wait_audible(timeout_s=10)
        await call.wait_quiet(500, timeout_s=10)
    recording = call.recording()
    assert recording.playout_ms == 100
    assert (recording.wire.lost, recording.wire.out_of_order) == (0, 0)
    heard_ms = sum(span.end_ms - span.start_ms for span in voiced_spans(recording.agent))
    assert heard_ms == pytest.approx(1000, abs=60)
    arrivals = [arrival.at_s for arrival in call._ear.arrivals]
    assert arrivals != sorted(arrivals)  # some were overtaken


async def test_the_agent_hears_itself_where_there_is_an_echo(server: FakeServer) -> None:
    heard: list[float] = []
    async with CallClient.connect(server.url, CallSettings(link=Link(echo=Echo(-6, 200)))) as call:
        server.on_audible = lambda _fake: heard.append(call.now_ms)
        server.speak(600)
        spoke_ms = await call.wait_audible(timeout_s=10)
        await call.wait_quiet(500, timeout_s=10)
    assert len(heard) == 1
    assert heard[0] >= spoke_ms - 20 + 200
    recording = call.recording()
    assert voiced_extent(recording.user) is None
