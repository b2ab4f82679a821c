"""The WebRTC door with a real aiortc client on loopback, and its parts by themselves."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from fractions import Fraction
from typing import Any, ClassVar

import av
import numpy as np
import pytest
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from duplex.agent import AgentSettings
from duplex.clock import MonotonicClock
from duplex.config import Config, ServerConfig
from duplex.errors import AgentFullError, ProtocolError, TooLargeError, TransportError
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Samples, ms_to_samples, silence
from duplex.half_band import Halver
from duplex.hub import SessionHub
from duplex.line import OutPacket
from duplex.metrics import Metrics
from duplex.testing import ScriptedAgent, ScriptedReply, load_echo_agent, tone
from duplex.transport import far_end, webrtc
from duplex.transport.data_channel import EventOutbox
from duplex.transport.liveness import answers, ice_of
from duplex.transport.locks.caller import Caller, Meter, Visit, begin_visit
from duplex.transport.metronome import Metronome
from duplex.transport.realtime import RealtimeCodec, SessionDefaults
from duplex.transport.receiver_reports import FAR_END_MS, ReceiverReports, playout_from_report
from duplex.transport.rtp_audio import Microphone, OpusDecoder, OpusEncoder, Voice, divert
from duplex.transport.webrtc import WebRtcDoor, read_offer

CONFIG = Config(server=ServerConfig(max_event_bytes=4096))
HZ = 300.0


# --- a client ----------------------------------------------------------------------------------------


class Speaker(MediaStreamTrack):
    """A microphone: what was queued, in real time, and silence."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self.queue: list[Samples] = []
        self._encode = OpusEncoder()
        self._clock = MonotonicClock()
        self._due_s: float | None = None
        self._sent = 0
        self._open = asyncio.Event()  # the microphone is on
        self._open.set()

    def mute(self) -> None:
        """Sends nothing at all until there is something to say."""
        self._open.clear()

    def say(self, samples: Samples) -> None:
        self._open.set()
        self.queue += list(samples.reshape(-1, PACKET_SAMPLES))

    async def recv(self) -> av.Packet:
        self._due_s = (self._clock.now() if self._due_s is None else self._due_s) + 0.02
        await self._clock.sleep_until(self._due_s)
        await self._open.wait()
        packet = av.Packet(self._encode(self.queue.pop(0) if self.queue else silence()))
        packet.pts, packet.time_base = self._sent * 960, Fraction(1, 48_000)
        self._sent += 1
        return packet


class Ear:
    """Everything that arrives, decoded in order of arrival."""

    def __init__(self) -> None:
        self._decode = OpusDecoder()
        self.timestamps: list[int] = []
        self.sound: list[Samples] = []
        self._news = asyncio.Event()

    def add(self, packet: Any) -> tuple[bool, None]:
        self.timestamps.append(packet.timestamp)
        self.sound.append(self._decode(packet.payload))
        self._news.set()
        return False, None

    def loud(self) -> Samples:
        return np.concatenate([silence(), *(sound for sound in self.sound if np.abs(sound).max() > 0.02)])

    async def wait_for_sound(self, seconds: float) -> Samples:
        async with asyncio.timeout(30):
            while len(self.loud()) < seconds * SAMPLE_RATE_HZ:
                self._news.clear()
                await self._news.wait()
        return self.loud()


class Client:
    """One far end. ``events`` are what came over the data channel."""

    open: ClassVar[set[Client]] = set()

    def __init__(self) -> None:
        self.open.add(self)
        self.peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.speaker, self.ear = Speaker(), Ear()
        divert(self.peer.addTransceiver(self.speaker, "sendrecv").receiver, self.ear)
        self.channel = self.peer.createDataChannel("oai-events")
        self.events: list[dict[str, Any]] = []
        self._news = asyncio.Event()
        self.channel.on("message", self._received)

    def _received(self, text: str) -> None:
        self.events.append(json.loads(text))
        self._news.set()

    async def offer(self) -> str:
        await self.peer.setLocalDescription(await self.peer.createOffer())
        sdp: str = self.peer.localDescription.sdp
        return sdp

    async def call(self, door: WebRtcDoor) -> str:
        call_id, answer = await door.answer(await self.offer(), AgentSettings())
        await self.peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        return call_id

    async def wait_event(self, kind: str) -> dict[str, Any]:
        async with asyncio.timeout(30):
            while True:
                for event in self.events:
                    if event["type"] == kind:
                        return event
                self._news.clear()
                await self._news.wait()

    async def close(self) -> None:
        self.open.discard(self)
        await self.peer.close()

    async def vanish(self) -> None:
        """Like a machine that loses power: nothing more is said, not even goodbye."""

        async def nothing(*args: Any) -> None: ...

        for transport in {t.receiver.transport.transport for t in self.peer.getTransceivers()}:
            transport._connection.sendto = nothing
            for protocol in transport._connection._protocols:
                protocol.send_stun = lambda *args: None


def new_codec() -> RealtimeCodec:
    return RealtimeCodec(SessionDefaults(voices=(), max_text_chars=1000, max_event_bytes=4096), audio_deltas=False)


@asynccontextmanager
async def open_door(max_sessions: int = 2, agent: Any = None, resume_s: float = 30.0) -> AsyncIterator[WebRtcDoor]:
    config = CONFIG.session.model_copy(update={"resume_s": resume_s})
    hub = SessionHub(agent or load_echo_agent({}), MonotonicClock(), config, max_sessions=max_sessions)
    await hub.start()
    door = WebRtcDoor(hub, CONFIG, new_codec)
    try:
        yield door
    finally:
        for client in list(Client.open):  # threads of theirs would keep the process
            await client.close()
        await door.close()
        await hub.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)


def pitch_hz(samples: Samples) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * SAMPLE_RATE_HZ / len(samples))


def everything_freed(door: WebRtcDoor) -> bool:
    return door.live == 0 and door._hub.live == 0 and door._hub._reserved == 0


# --- calls -------------------------------------------------------------------------------------------


async def test_what_is_said_comes_back_with_its_events() -> None:
    async with open_door() as door:
        client = Client()
        await client.call(door)
        created = await client.wait_event("session.created")
        assert created["session"]["id"].startswith("sess_")
        client.speaker.say(tone(1.0, HZ))
        heard = await client.ear.wait_for_sound(0.8)
        assert pitch_hz(heard[2400:16800]) == pytest.approx(HZ, abs=5)
        await client.wait_event("response.done")
        kinds = [event["type"] for event in client.events]
        assert kinds.index("input_audio_buffer.speech_started") < kinds.index("input_audio_buffer.committed")
        await client.close()
        await until(lambda: everything_freed(door))


async def test_the_sent_stream_keeps_media_time() -> None:
    async with open_door() as door:
        client = Client()
        call_id = await client.call(door)
        client.speaker.say(tone(1.0, HZ))
        await client.ear.wait_for_sound(0.8)
        await client.wait_event("response.done")
        steps = np.diff(client.ear.timestamps)
        assert not np.any(steps % 960)  # pauses leave packets out, never time
        assert np.count_nonzero(steps == 960) > 40
        line = door._calls[call_id].line
        await until(lambda: line.playout() is not None)
        report = line.playout()
        assert report is not None
        assert report.grade == "rtp"
        assert 0 < report.pts <= line.heard_pts + SAMPLE_RATE_HZ // 10  # both streams began with the connection
        assert report.pts >= line.heard_pts - 3 * SAMPLE_RATE_HZ
        await client.close()


async def test_lost_packets_are_counted_and_leave_no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = []
    original = Microphone.add

    def lossy(self: Microphone, packet: Any) -> tuple[bool, None]:
        if packet.sequence_number % 10 == 3:
            dropped.append(packet.sequence_number)
            return False, None
        return original(self, packet)

    monkeypatch.setattr(Microphone, "add", lossy)
    async with open_door() as door:
        client = Client()
        call_id = await client.call(door)
        await client.wait_event("session.created")
        client.speaker.say(tone(2.0, HZ))
        line = door._calls[call_id].line
        await until(lambda: line.media.jitter.stats.lost >= 10)
        stats = line.media.jitter.stats
        assert stats.lost <= len(dropped) <= stats.lost + 20
        assert line.media.jitter.delay_ms <= 200.0
        heard = await client.ear.wait_for_sound(1.5)
        assert pitch_hz(heard[2400:26400]) == pytest.approx(HZ, abs=5)
        metrics = door._hub.metrics.exposition().decode()
        assert f"duplex_packets_lost_total {float(stats.lost)}" in metrics
        await client.close()


async def test_a_caller_who_sends_too_much_is_not_decoded_and_stays() -> None:
    begin_visit(Visit(Caller("192.0.2.1"), Meter(4.0, 200.0, (), 0.0)))  # 128 bytes at once: two packets of a tone
    async with open_door() as door:
        client = Client()
        call_id = await client.call(door)
        await client.wait_event("session.created")
        client.speaker.say(tone(1.0, HZ))
        dropped = door._hub.metrics.queue_drops.labels("rtp")._value
        await until(lambda: dropped.get() >= 20)
        assert not door._calls[call_id].line.closed
        assert client.ear.loud().size < 0.2 * SAMPLE_RATE_HZ
        await client.close()


async def test_hanging_up_ends_the_call_once() -> None:
    async with open_door() as door:
        client = Client()
        call_id = await client.call(door)
        await client.wait_event("session.created")
        assert await door.hang_up(call_id) is True
        assert await door.hang_up(call_id) is False
        assert await door.hang_up("rtc_nobody") is False
        await until(lambda: everything_freed(door))
        await until(lambda: client.peer.connectionState == "closed")


async def test_when_the_server_ends_the_session_the_client_is_told_first() -> None:
    async with open_door() as door:
        client = Client()
        await client.call(door)
        await client.wait_event("session.created")
        for session in door._hub:
            session.stop("maintenance")
        closed = await client.wait_event("duplex.session.closed")
        assert closed["reason"] == "maintenance"
        await until(lambda: everything_freed(door))


async def test_one_call_too_many_is_refused_and_a_hang_up_makes_room() -> None:
    async with open_door(max_sessions=1) as door:
        first, second = Client(), Client()
        call_id = await first.call(door)
        await first.wait_event("session.created")
        with pytest.raises(AgentFullError):
            await second.call(door)
        await door.hang_up(call_id)  # returns when there is room
        assert everything_freed(door)
        third = Client()
        await third.call(door)
        await third.wait_event("session.created")


async def test_a_call_that_never_connects_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webrtc, "CONNECT_S", 0.2)
    async with open_door(max_sessions=1) as door:
        client = Client()
        await door.answer(await client.offer(), AgentSettings())  # and the answer is never used
        assert door.live == 1
        await until(lambda: everything_freed(door))
        await client.close()


async def test_a_far_end_that_vanishes_is_noticed() -> None:
    async with open_door(resume_s=0.5) as door:
        client = Client()
        call_id = await client.call(door)
        await client.wait_event("session.created")
        line = door._calls[call_id].line
        await client.vanish()
        await until(lambda: line.closed)
        assert "does not answer" in line.reason
        await until(lambda: everything_freed(door))


async def test_a_far_end_that_is_quiet_but_there_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    async def watched(connection: Any) -> bool:
        asked.append(await answers(connection))
        return asked[-1]

    monkeypatch.setattr(far_end, "answers", watched)
    async with open_door() as door:
        client = Client()
        call_id = await client.call(door)
        await client.wait_event("session.created")
        line = door._calls[call_id].line
        client.speaker.mute()
        await until(lambda: len(asked) >= 3)
        assert all(asked)
        assert not line.closed
        client.speaker.say(tone(1.0, HZ))
        await client.ear.wait_for_sound(0.5)


async def test_an_offer_without_addresses_is_found_by_the_client() -> None:
    """Browsers without a granted microphone hide every address behind mDNS names."""
    async with open_door() as door:
        client = Client()
        offer = await client.offer()
        lines = [line.replace("127.0.0.1", "x.local") for line in offer.splitlines()]
        hidden = []
        for line in lines:
            if line.startswith("a=candidate:"):
                fields = line.split(" ")
                fields[4] = "3b5c7a2e-1f2d-4c60-9d1e-8e2f7a6b5c4d.local"
                line = " ".join(fields)
            hidden.append(line)
        _, answer = await door.answer("\r\n".join(hidden) + "\r\n", AgentSettings())
        await client.peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        await client.wait_event("session.created")
        await client.close()


async def test_fifty_calls_leave_nothing_behind() -> None:
    async with open_door() as door:
        warm = Client()  # what is made once and kept
        await warm.call(door)
        await warm.wait_event("session.created")
        await warm.close()
        await until(lambda: everything_freed(door))
        threads, tasks = threading.active_count(), len(asyncio.all_tasks())
        for number in range(50):
            client = Client()
            call_id = await client.call(door)
            await client.wait_event("session.created")
            if number % 2:
                await door.hang_up(call_id)
            await client.close()
            await until(lambda: everything_freed(door))
        del client, warm
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        assert threading.active_count() <= threads
        gc.collect()
        alive = [thing for thing in gc.get_objects() if isinstance(thing, RTCPeerConnection)]
        assert alive == []


# --- offers ------------------------------------------------------------------------------------------

ICE = "a=ice-ufrag:abcd\r\na=ice-pwd:abcdefghijklmnopqrstuvwx\r\n"
DTLS = "a=fingerprint:sha-256 " + ":".join(["AA"] * 32) + "\r\na=setup:actpass\r\n"
HEAD = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n"


def section(kind: str = "audio", codec: str = "opus/48000/2", ice: str = ICE, dtls: str = DTLS, mid: str = "0") -> str:
    lines = f"m={kind} 9 UDP/TLS/RTP/SAVPF 111\r\nc=IN IP4 0.0.0.0\r\na=mid:{mid}\r\na=rtcp-mux\r\na=sendrecv\r\n"
    return lines + f"a=rtpmap:111 {codec}\r\n" + ice + dtls


@pytest.mark.parametrize(
    ("sdp", "expected"),
    [
        ("", "not SDP"),
        ("hello", "not SDP"),
        ("\x00\xff" * 40, "not SDP"),
        (HEAD, "0 audio sections"),
        (HEAD + section("video", "VP8/90000"), "0 audio sections"),
        (HEAD + section() + section(mid="1"), "2 audio sections"),
        (HEAD + section(codec="PCMU/8000"), "does not offer opus"),
        (HEAD + section() + section("video", "H264/90000", mid="1"), "does not offer vp8"),
        (HEAD + section(ice=""), "no ICE credentials"),
        (HEAD + section(dtls=""), "no DTLS fingerprint"),
        (HEAD + "m=audio nine UDP/TLS/RTP/SAVPF 111\r\n", "not SDP"),
        (HEAD + section().replace("a=rtcp-mux\r\n", ""), "mux"),
        ("v=0\r\nm=audio", "not SDP"),
    ],
)
async def test_an_offer_that_cannot_be_used_says_why(sdp: str, expected: str) -> None:
    async with open_door() as door:
        with pytest.raises(ProtocolError, match=expected) as caught:
            await door.answer(sdp, AgentSettings())
        assert caught.value.param == "sdp"
        assert everything_freed(door)


async def test_an_offer_that_is_too_large_names_the_limit() -> None:
    async with open_door() as door:
        with pytest.raises(TooLargeError, match="65536"):
            await door.answer(HEAD + "a=x\r\n" * 20_000, AgentSettings())


async def test_the_answer_carries_its_candidates_and_only_opus() -> None:
    async with open_door() as door:
        client = Client()
        _, answer = await door.answer(await client.offer(), AgentSettings())
        assert "a=candidate:" in answer
        assert "a=end-of-candidates" in answer
        audio = answer[answer.index("m=audio") : answer.index("m=application")]
        assert "opus" in audio
        assert "PCMU" not in audio
        await client.close()


def test_a_real_offer_passes_the_check() -> None:
    assert [media.kind for media in read_offer(HEAD + section(), 65_536).media] == ["audio"]


# --- events over the data channel --------------------------------------------------------------------


async def test_bad_events_get_an_error_and_the_session_goes_on() -> None:
    async with open_door() as door:
        client = Client()
        await client.call(door)
        await client.wait_event("session.created")
        client.channel.send("this is not JSON")
        client.channel.send(json.dumps({"type": "no.such.event", "event_id": "mine"}))
        client.channel.send(json.dumps({"type": "input_audio_buffer.append", "audio": "AAAA"}))
        client.channel.send(json.dumps({"type": "session.update", "session": {"instructions": "x" * 5000}}))
        await until(lambda: sum(event["type"] == "error" for event in client.events) == 4)
        errors = [event["error"] for event in client.events if event["type"] == "error"]
        assert errors[1]["event_id"] == "mine"
        assert "4096" in errors[3]["message"]
        good = {"type": "session.update", "session": {"type": "realtime", "instructions": "Be brief."}}
        client.channel.send(json.dumps(good))
        updated = await client.wait_event("session.updated")
        assert updated["session"]["instructions"] == "Be brief."
        await client.close()


class Slow(ScriptedAgent):
    """Its sessions read for a moment before they begin."""

    def open(self, settings: AgentSettings, clock: Any, wake: Callable[[], None]) -> Any:
        session = super().open(settings, clock, wake)

        async def wait_ready() -> None:
            await asyncio.sleep(0.3)

        session.wait_ready = wait_ready  # type: ignore[attr-defined]
        return session


async def test_events_that_come_before_the_session_begins_wait_for_it() -> None:
    async with open_door(agent=Slow()) as door:
        client = Client()

        def at_once() -> None:
            for n in range(34):  # official clients send their session.update as soon as the channel is open
                wish = {"type": "session.update", "session": {"instructions": f"Number {n}."}, "event_id": str(n)}
                client.channel.send(json.dumps(wish))

        client.channel.on("open", at_once)
        await client.call(door)
        await until(lambda: sum(event["type"] == "session.updated" for event in client.events) == 32)
        kinds = [event["type"] for event in client.events if not event["type"].startswith("duplex.")]
        assert kinds.count("error") == 2  # more than may wait
        told = [event["session"]["instructions"] for event in client.events if event["type"] == "session.updated"]
        assert told == [f"Number {n}." for n in range(32)]
        assert kinds.index("session.created") < kinds.index("session.updated")
        await client.close()


async def test_a_call_may_be_answered_in_text_alone() -> None:
    async with open_door(agent=ScriptedAgent([ScriptedReply("Written down.")])) as door:
        client = Client()
        _, answer = await door.answer(await client.offer(), AgentSettings(silent=True))
        await client.peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        created = await client.wait_event("session.created")
        assert created["session"]["output_modalities"] == ["text"]
        client.speaker.say(tone(0.6, HZ))
        done = await client.wait_event("response.done")
        assert done["response"]["output"][0]["content"] == [{"type": "output_text", "text": "Written down."}]
        assert not [event for event in client.events if event["type"].startswith("output_audio_buffer.")]
        assert not len(client.ear.loud()) > PACKET_SAMPLES
        await client.close()


class FakeChannel:
    """An ``RTCDataChannel`` that takes what one lets it take."""

    def __init__(self, state: str = "open", max_message: int = 65_536) -> None:
        self.readyState, self.bufferedAmount, self.bufferedAmountLowThreshold = state, 0, 0
        self.sent: list[dict[str, Any]] = []
        self.handlers: dict[str, Callable[[], None]] = {}
        self._max = max_message

    def on(self, name: str, handler: Callable[[], None]) -> None:
        self.handlers[name] = handler

    def send(self, text: str) -> None:
        if len(text) > self._max:
            raise ValueError("too long")
        self.sent.append(json.loads(text))


def drops(metrics: Metrics) -> float:
    return metrics.queue_drops.labels("data_channel_events")._value.get()  # type: ignore[no-any-return]


async def test_events_wait_for_the_channel_and_droppable_ones_go_first() -> None:
    metrics, overflows = Metrics(), []
    outbox = EventOutbox(4, metrics, lambda: overflows.append(1))
    outbox.put([{"type": "session.created"}, {"type": "duplex.playout", "n": 1}, {"type": "response.created"}])
    outbox.put([{"type": "duplex.playout", "n": 2}, {"type": "response.done"}, {"type": "error"}])
    assert (len(outbox), drops(metrics), overflows) == (4, 2.0, [])
    channel = FakeChannel("connecting")
    outbox.attach(channel)
    assert channel.sent == []
    channel.readyState = "open"
    channel.handlers["open"]()
    assert [event["type"] for event in channel.sent] == [
        "session.created",
        "response.created",
        "response.done",
        "error",
    ]


async def test_without_a_channel_the_oldest_go_and_nobody_is_hung_up_on() -> None:
    metrics, overflows = Metrics(), []
    outbox = EventOutbox(3, metrics, lambda: overflows.append(1))
    outbox.put({"type": "response.done", "n": n} for n in range(10))
    assert (len(outbox), drops(metrics), overflows) == (3, 7.0, [])


async def test_a_client_that_does_not_read_is_noticed_once() -> None:
    metrics, overflows = Metrics(), []
    outbox = EventOutbox(3, metrics, lambda: overflows.append(1))
    channel = FakeChannel()
    outbox.attach(channel)
    channel.bufferedAmount = 10**6
    outbox.put({"type": "response.done", "n": n} for n in range(10))
    assert channel.sent == []
    assert overflows == [1]
    channel.bufferedAmount = 0
    channel.handlers["bufferedamountlow"]()
    assert [event["n"] for event in channel.sent] == [7, 8, 9]


async def test_an_event_longer_than_the_far_end_takes_is_dropped_and_counted() -> None:
    metrics = Metrics()
    outbox = EventOutbox(8, metrics, lambda: None)
    channel = FakeChannel(max_message=100)
    outbox.attach(channel)
    outbox.put([{"type": "a", "text": "x" * 200}, {"type": "b"}])
    assert [event["type"] for event in channel.sent] == ["b"]
    assert drops(metrics) == 1.0


# --- the voice track ---------------------------------------------------------------------------------


def out(number: int, level: float = 0.1) -> OutPacket:
    return OutPacket(number * PACKET_SAMPLES, np.full(PACKET_SAMPLES, level, dtype=np.float32))


async def test_a_packet_leaves_when_it_is_put() -> None:
    voice = Voice()
    voice.put(out(0))
    voice.put(out(1))
    first = await voice.recv()  # what was put before anyone asked is stale but for the newest
    assert first.pts == 960
    asked = asyncio.ensure_future(voice.recv())
    await asyncio.sleep(0)
    voice.put(out(2))
    assert (await asked).pts == 1920
    voice.put(out(3))
    voice.put(out(4))
    assert voice.take_back() == 2
    voice.stop()


async def test_silence_thins_out_and_speech_comes_through_at_once() -> None:
    voice = Voice(max_packets=1000)
    voice._asked = True
    for number in range(200):
        voice.put(out(number, 0.0))
    voice.put(out(200))
    voice.put(out(201))
    pts = [packet.pts // 960 for packet in voice._outgoing]
    assert pts[:10] == list(range(10))
    assert set(np.diff(pts[10:-2])) == {20}
    assert pts[-2:] == [200, 201]
    assert len(pts) < 25
    voice.stop()


async def test_a_stopped_track_wakes_its_reader() -> None:
    voice = Voice()
    asked = asyncio.ensure_future(voice.recv())
    await asyncio.sleep(0)
    voice.stop()
    with pytest.raises(MediaStreamError):
        await asyncio.wait_for(asked, 1)


def test_opus_there_and_back_keeps_pitch_level_and_length() -> None:
    encode, decode = OpusEncoder(), OpusDecoder()
    sound = tone(2.0, 1000.0)
    packets = [encode(packet) for packet in sound.reshape(-1, PACKET_SAMPLES)]
    back = [decode(packet) for packet in packets]
    assert {packet.shape for packet in back} == {(PACKET_SAMPLES,)}
    assert {packet.dtype for packet in back} == {np.dtype(np.float32)}
    heard = np.concatenate(back)[12_000:]
    assert pitch_hz(heard) == pytest.approx(1000.0, abs=2)
    assert np.sqrt(np.mean(heard**2)) == pytest.approx(np.sqrt(np.mean(sound**2)), rel=0.1)
    assert 40 <= np.mean([len(packet) for packet in packets]) <= 120  # 32 kbit/s


def test_halving_the_rate_lets_no_alias_through() -> None:
    t = np.arange(96_000) / 48_000
    settled = slice(100, None)
    folded = Halver()(np.sin(2 * np.pi * 17_000 * t).astype(np.float32))[settled]
    assert np.abs(folded).max() < 0.01
    speech = Halver()(np.sin(2 * np.pi * 3_000 * t).astype(np.float32))[settled]
    assert np.sqrt(2 * np.mean(speech**2)) == pytest.approx(1.0, abs=0.01)


def test_damaged_opus_raises_and_the_decoder_goes_on() -> None:
    encode, decode = OpusEncoder(), OpusDecoder()
    good = encode(tone(0.02))
    with pytest.raises((av.FFmpegError, ValueError)):
        decode(b"\xff\xff\xff")
    assert decode(good).shape == (PACKET_SAMPLES,)


# --- aiortc's insides --------------------------------------------------------------------------------


async def test_this_aiortc_has_the_places_we_hold_on_to() -> None:
    """If this fails, aiortc changed: ``divert`` and ``ReceiverReports`` have to follow."""
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    transceiver = peer.addTransceiver(Voice(), "sendrecv")
    divert(transceiver.receiver, Ear())
    ReceiverReports(transceiver.sender, lambda: 0.0)
    assert await answers(ice_of(peer)) is False  # not connected yet
    assert asyncio.iscoroutinefunction(RTCRtpSender._handle_rtcp_packet)
    await peer.close()


def test_an_aiortc_built_otherwise_is_refused_with_what_to_run() -> None:
    class Other:
        pass

    with pytest.raises(TransportError, match="pip install"):
        divert(Other(), Ear())
    with pytest.raises(TransportError, match="pip install"):
        ReceiverReports(Other(), lambda: 0.0)


def test_a_report_says_what_was_played_by_then() -> None:
    report = playout_from_report(SAMPLE_RATE_HZ, 0.0, None, 10.0)
    assert report.pts == SAMPLE_RATE_HZ - ms_to_samples(FAR_END_MS)
    assert (report.at_s, report.grade) == (10.0, "rtp")
    far = playout_from_report(SAMPLE_RATE_HZ, 0.01, 0.2, 10.0)
    assert far.at_s == pytest.approx(9.9)
    assert far.pts == SAMPLE_RATE_HZ - ms_to_samples(FAR_END_MS + 20)
    assert far.error_ms > report.error_ms
    assert playout_from_report(10, 0.0, None, 1.0).pts == 0


# --- the metronome -----------------------------------------------------------------------------------


def test_regular_ticks_get_one_packet_each() -> None:
    beat = Metronome()
    assert [len(beat.tick(5.0 + n * 0.02 + (n % 3) * 0.004)) for n in range(500)] == [1] * 500


def test_a_stall_is_made_up_for_at_once() -> None:
    beat = Metronome()
    for n in range(10):
        beat.tick(n * 0.02)
    due = beat.tick(0.3)
    assert due == pytest.approx([0.2, 0.22, 0.24, 0.26, 0.28, 0.3])
    assert beat.tick(0.3001) == []
    assert len(beat.tick(0.32)) == 1


def test_after_a_long_sleep_nothing_is_made_up_for() -> None:
    beat = Metronome()
    beat.tick(0.0)
    assert len(beat.tick(60.0)) == 1
    assert len(beat.tick(60.02)) == 1


def test_a_first_tick_that_was_late_does_not_stay_as_delay() -> None:
    beat = Metronome()
    beat.tick(0.008)  # the others come on the full 20 ms
    late = [n * 0.02 - beat.tick(n * 0.02)[-1] for n in range(2, 300) if n != 1 and (n * 0.02 >= 0.04)][-10:]
    assert max(late) <= 0.001


def test_packets_keep_their_count_under_any_irregularity() -> None:
    dice = np.random.default_rng(3)
    beat = Metronome()
    due: list[float] = []
    for n in range(3000):
        due += beat.tick(n * 0.02 + abs(dice.normal(0, 0.006)))
    assert abs(len(due) - 3000) <= 2
    assert np.all(np.diff(due) > 0.015)
