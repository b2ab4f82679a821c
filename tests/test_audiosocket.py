"""Calls over AudioSocket: the wire byte by byte, the listener with a simulated Asterisk, and everything that breaks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from audiosocket_far_end import CALL_ID, AudioSocketFarEnd, calling, connected, frame
from hypothesis import given
from hypothesis import strategies as st
from serving import running_hub
from telephone_sessions import Opened, quick_agent, speech, until

from duplex import events as ev
from duplex.clock import VirtualClock
from duplex.config import AudioSocketConfig, Config, ServerConfig
from duplex.errors import ConfigError, InvalidEventError, ProtocolError
from duplex.frames import PACKET_SAMPLES, silence
from duplex.hub import SessionHub
from duplex.line import OutPacket
from duplex.metrics import Metrics
from duplex.testing import ScriptedAgent, run_virtual, tone
from duplex.transport import audiosocket
from duplex.transport import audiosocket_wire as wire
from duplex.transport.audiosocket import AudioSocketServer
from duplex.transport.audiosocket_line import AudioSocketLine

PACKET_S = 0.02

# One exchange, written down by hand after the protocol's description and res_audiosocket.c.
CAPTURE = bytes.fromhex(
    "01 0010 4d2e8a9c0b7f4c1d9e3a5f6071829304"  # this is call 4d2e8a9c-…
    "10 0008 0000 0100 ffff ff7f"  # four samples at 8 kHz, little-endian
    "12 0004 0080 0000"  # two at 16 kHz
    "03 0001 35"  # key 5
    "10 0000"  # no sound
    "ff 0001 02"  # Asterisk could not pass a frame on
    "00 0000"  # hung up
)
MEANT: list[wire.Message] = [
    wire.CallId(uuid.UUID("4d2e8a9c-0b7f-4c1d-9e3a-5f6071829304")),
    wire.Sound(8_000, b"\0\0\1\0\xff\xff\xff\x7f"),
    wire.Sound(16_000, b"\0\x80\0\0"),
    wire.Key("5"),
    wire.Sound(8_000, b""),
    wire.FarError(b"\2"),
    wire.HangUp(),
]


# --- the wire ---------------------------------------------------------------------------------------------


def test_a_captured_exchange_byte_by_byte() -> None:
    reader, frames = wire.FrameReader(), []
    for i in range(len(CAPTURE)):
        frames += reader.feed(CAPTURE[i : i + 1])
    assert [wire.read(each) for each in frames] == MEANT
    assert [each.number for each in frames] == list(range(1, 8))
    reader.end()


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=700)), max_size=12), st.data())
def test_frames_are_the_same_however_the_network_cuts_them(sent: list[tuple[int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(wire.frame(kind, payload) for kind, payload in sent)
    reader, frames, at = wire.FrameReader(), [], 0
    while at < len(stream):
        n = data.draw(st.integers(1, 300))
        frames += reader.feed(stream[at : at + n])
        at += n
    assert [(each.kind, each.payload) for each in frames] == sent
    reader.end()


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(stream: bytes) -> None:
    reader = wire.FrameReader()
    for each in reader.feed(stream):
        with contextlib.suppress(InvalidEventError):
            assert wire.read(each)
    with contextlib.suppress(ProtocolError):
        reader.end()


@given(st.integers(1, len(CAPTURE) - 1))
def test_a_stream_that_ends_inside_a_frame(at: int) -> None:
    reader = wire.FrameReader()
    whole = sum(3 + len(each.payload) for each in reader.feed(CAPTURE[:at]))
    if whole == at:
        reader.end()
    else:
        with pytest.raises(ProtocolError, match="The connection ended inside frame"):
            reader.end()


def test_what_a_cut_frame_is_called() -> None:
    reader = wire.FrameReader()
    reader.feed(frame(0x10, bytes(320)) + frame(0x10, bytes(320))[:103])
    with pytest.raises(ProtocolError, match=r"inside frame 2 \(kind 0x10\): 100 of its 320 bytes came"):
        reader.end()
    reader = wire.FrameReader()
    reader.feed(b"\x10\x01")
    with pytest.raises(ProtocolError, match="inside frame 1: 2 of the 3 bytes of its header came"):
        reader.end()


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (frame(0x02), r"frame 1 \(kind 0x02, 0 bytes\): nobody knows this kind"),
        (frame(0x19, b"ab"), r"frame 1 \(kind 0x19, 2 bytes\): nobody knows this kind"),
        (frame(0x01, bytes(15)), r"frame 1 \(kind 0x01, 15 bytes\): the call's UUID has 16 bytes"),
        (frame(0x03, b""), r"frame 1 \(kind 0x03, 0 bytes\): a key is one of"),
        (frame(0x03, b"55"), r"frame 1 \(kind 0x03, 2 bytes\): a key is one of"),
        (frame(0x03, b"E"), "a key is one of"),
        (frame(0x03, b"\xff"), "a key is one of"),
    ],
)
def test_a_frame_that_makes_no_sense_is_named(sent: bytes, message: str) -> None:
    (each,) = wire.FrameReader().feed(sent)
    with pytest.raises(InvalidEventError, match=message):
        wire.read(each)


def test_the_longest_frame() -> None:
    reader = wire.FrameReader()
    (each,) = reader.feed(wire.frame(0x18, bytes(65535)))
    assert wire.read(each) == wire.Sound(192_000, bytes(65535))


@pytest.mark.parametrize(("rate_hz", "kind"), sorted(wire.SOUND_KINDS.items()))
def test_sound_of_every_rate(rate_hz: int, kind: int) -> None:
    assert wire.sound(rate_hz, b"\1\0") == bytes([kind, 0, 2, 1, 0])


# --- the line ---------------------------------------------------------------------------------------------


def test_ten_minutes_of_packets_20_ms_apart() -> None:
    """Fed by a session that is woken unevenly, now and then late by some packets: what leaves keeps its beat."""
    left: list[float] = []

    async def main() -> None:
        clock = VirtualClock()
        line = AudioSocketLine(clock, Metrics(), 24_000, name="test")

        async def take(message: str | bytes) -> None:
            left.append(clock.now())

        sender = asyncio.create_task(line.run_sender(take))
        loud, sent = tone(PACKET_S), 0
        for tick in range(30_000):
            due = tick + 2  # one ahead, as while a reply plays
            if tick % 300 not in (150, 151):  # it is away for 40 ms
                for n in range(sent, due):
                    line.send(OutPacket(n * PACKET_SAMPLES, loud, "r", "i"))
                sent = due
            await clock.sleep_until((tick + 1) * PACKET_S)
        await clock.sleep_until(clock.now() + 1.0)
        sender.cancel()

    run_virtual(main())
    assert len(left) == 30_001
    late_s = np.array(left) - PACKET_S * np.arange(30_001)
    # Asterisk has a packet more than it needs, so a lapse of 40 ms is a gap of 20, and no heap comes after it.
    assert np.diff(left).max() <= 3 * PACKET_S + 0.002
    assert late_s.max() - late_s.min() <= 3 * PACKET_S
    assert abs(late_s[300:600].mean() - late_s[-300:].mean()) < 0.001
    assert max(np.histogram(left, bins=np.arange(0.0, 600.0, PACKET_S) - 0.005)[0]) <= 2


def test_a_hold_takes_back_all_but_what_has_left() -> None:
    async def main() -> None:
        clock, sent = VirtualClock(), []

        async def take(message: str | bytes) -> None:
            sent.append(message)

        line = AudioSocketLine(clock, Metrics(), 8_000, name="test")
        sender = asyncio.create_task(line.run_sender(take))
        for i in range(8):
            line.send(OutPacket(i * PACKET_SAMPLES, tone(PACKET_S), "r", "i"))
        await clock.sleep_until(0.001)
        assert len(sent) == 2
        assert line.flush() == 6 * PACKET_SAMPLES
        await clock.sleep_until(1.0)
        assert len(sent) == 2
        assert line.playout() is not None
        sender.cancel()

    run_virtual(main())


# --- over a real socket -----------------------------------------------------------------------------------


class Door(Opened):
    """The listener, and the sessions it opened."""

    def __init__(self, hub: SessionHub, config: Config, **options: Any) -> None:
        super().__init__(hub)
        self.server = AudioSocketServer(hub, config, open_session=self.open, **options)


@asynccontextmanager
async def listening(*, max_sessions: int = 4, stall_limit_s: float = 5.0, **settings: Any) -> AsyncIterator[Door]:
    config = Config(
        server=ServerConfig(max_sessions=max_sessions), audiosocket=AudioSocketConfig(**{"port": 0, **settings})
    )
    async with running_hub(quick_agent(), config) as hub:
        door = Door(hub, config, stall_limit_s=stall_limit_s)
        await door.server.start()
        try:
            yield door
        finally:
            await door.server.close()


@pytest.mark.parametrize("rate_hz", [8_000, 16_000])
async def test_a_call_is_answered_interrupted_and_hung_up(rate_hz: int) -> None:
    async with listening() as door:
        async with calling(door.server.address, rate_hz) as far_end:
            await door.until_started()
            assert door.lines[0].facts == {"call_id": str(CALL_ID)}
            far_end.say(speech(0.6, rate_hz))
            await until(far_end.audible)
            await until(lambda: far_end.audible(30))
            far_end.say(speech(0.5, rate_hz))
            await until(lambda: bool(door.of(ev.ReplyHeld)))
            await until(lambda: far_end.silent_for(15))
            await until(lambda: bool(door.of(ev.ReplyTruncated)))
            assert door.of(ev.ReplyTruncated)[0].evidence == "clock"
            far_end.press("4")
            far_end.press("#")
            await until(lambda: len(door.of(ev.KeyPressed)) == 2)
            assert [event.key for event in door.of(ev.KeyPressed)] == ["4", "#"]
            assert far_end.trouble is None
            assert {len(samples) for _, samples in far_end.played} == {rate_hz // 50}
            far_end.send(frame(0x00))  # the caller hangs up
            await until(far_end.over.is_set)
            assert not far_end.hung_up  # nobody is told of their own hang-up
        await door.until_over()


async def test_when_we_hang_up_asterisk_is_told() -> None:
    async with listening() as door, calling(door.server.address) as far_end:
        await door.until_started()
        door.sessions[0].stop("the bot hung up")
        await until(far_end.over.is_set)
        assert far_end.hung_up
        assert far_end.trouble is None
        await door.until_over()


async def test_when_the_server_stops_its_calls_are_hung_up() -> None:
    async with listening() as door, calling(door.server.address) as far_end:
        await door.until_started()
        await door.hub.close()
        await door.server.close()
        await until(far_end.over.is_set)
        assert far_end.hung_up


async def test_a_caller_who_makes_no_sound_is_served_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asterisk sends nothing while the telephone does. At first 8 kHz is taken for granted, and then what comes."""
    monkeypatch.setattr(audiosocket, "FIRST_SOUND_LIMIT_S", 0.1)
    async with listening() as door, connected(door.server.address, 16_000) as far_end:
        far_end.introduce()
        await door.until_started()
        header = await far_end.reader.readexactly(3)
        assert header == b"\x10\x01\x40"  # a packet of silence
        far_end.send(frame(0x12, bytes(640)))
        async with asyncio.timeout(5):
            while header != b"\x12\x02\x80":
                await far_end.reader.readexactly(int.from_bytes(header[1:], "big"))
                header = await far_end.reader.readexactly(3)


# --- when things go wrong ---------------------------------------------------------------------------------


async def refused(far_end: AudioSocketFarEnd) -> None:
    """The server hangs up on it without a session."""
    await asyncio.wait_for(far_end.read(), 5)
    assert far_end.over.is_set()
    assert not far_end.played


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"", "No UUID came within 0.2 s"),
        (b"\x01\x00", "No UUID came within 0.2 s"),
        (frame(0x01, CALL_ID.bytes)[:10], "No UUID came within 0.2 s"),
        (frame(0x10, bytes(320)), "The first frame has to be the call's UUID, not frame 1 (kind 0x10, 320 bytes)"),
        (frame(0x03, b"5"), "not frame 1 (kind 0x03, 1 bytes)"),
        (frame(0x01, bytes(4)), "frame 1 (kind 0x01, 4 bytes): the call's UUID has 16 bytes"),
        (b"GET / HTTP/1.1\r\n\r\n", "No UUID came within 0.2 s"),  # a browser: a frame of 17749 bytes
    ],
)
async def test_who_does_not_say_which_call_it_is_goes(
    sent: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(call_id_limit_s=0.2) as door, connected(door.server.address) as far_end:
        far_end.send(sent)
        await refused(far_end)
        assert reason in caplog.text
        assert not door.sessions


async def test_nonsense_in_a_call_is_named_once_and_the_call_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async with listening() as door, calling(door.server.address) as far_end:
        await door.until_started()
        for _ in range(3):
            far_end.send(frame(0x42, b"what"))
            far_end.send(frame(0x03, b"nine"))
            far_end.send(frame(0xFF, b"\x04"))
            far_end.send(frame(0x01, uuid.uuid4().bytes))
            far_end.send(frame(0x10, b""))
        far_end.send(frame(0x10, b"\0"))  # half a sample,
        far_end.send(frame(0x10, b"\0"))  # and its other half
        far_end.say(speech(0.6, 8_000))
        await until(far_end.audible)
        for named in (
            "(kind 0x42, 4 bytes): nobody knows this kind",
            "(kind 0x03, 4 bytes): a key is one of",
            "(kind 0xff, 1 bytes): code 0x04",
            "(kind 0x01, 16 bytes): a UUID came a second time",
        ):
            assert caplog.text.count(named) == 1, named
        assert far_end.trouble is None


async def test_a_rate_that_changes_in_mid_call_is_followed(caplog: pytest.LogCaptureFixture) -> None:
    async with listening() as door, calling(door.server.address) as far_end:
        await door.until_started()
        await until(lambda: len(far_end.played) > 5)
        far_end.rate_hz = 16_000
        await until(lambda: "(kind 0x12, 640 bytes): the sound was at 8000 Hz and is now at 16000 Hz" in caplog.text)
        await until(lambda: far_end.trouble == "kind 0x10" or len(far_end.played[-1][1]) == 320)
        assert caplog.text.count("ours follows") == 1


async def test_a_frame_cut_in_the_middle_ends_the_call_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async with listening() as door, connected(door.server.address) as far_end:
        far_end.introduce()
        far_end.send(frame(0x10, bytes(320)))
        await door.until_started()
        far_end.send(frame(0x10, bytes(320))[:60])
        await far_end.writer.drain()
        far_end.writer.write_eof()
        await door.until_over()
    assert "The connection ended inside frame 3 (kind 0x10): 57 of its 320 bytes came. (cut_frame)" in caplog.text


async def test_a_far_end_that_stops_reading_ends_its_own_call(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with listening(stall_limit_s=0.4) as door:
        with socket.socket() as idle:
            # A receiver with next to no buffer, that never reads. 192 kHz fills what there is.
            idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            idle.connect(door.server.address)
            idle.sendall(frame(0x01, CALL_ID.bytes) + frame(0x18, bytes(7680)))
            async with calling(door.server.address) as other:
                await until(lambda: "took nothing for 0.4 s" in caplog.text)
                assert door.lines[0].closed
                await until(lambda: door.hub.live == 1)
                assert not other.over.is_set()  # the other call did not notice


async def test_a_far_end_that_is_gone_ends_the_session() -> None:
    async with listening() as door:
        async with calling(door.server.address) as far_end:
            await door.until_started()
            far_end.writer.transport.abort()
        await door.until_over()


async def test_a_full_server_hangs_up(caplog: pytest.LogCaptureFixture) -> None:
    async with listening(max_sessions=1) as door, calling(door.server.address):
        await door.until_started()
        async with connected(door.server.address) as second:
            second.introduce()
            await refused(second)
            assert second.hung_up
        assert "All 1 places are taken" in caplog.text


async def test_connections_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        listening(max_connections=1) as door,
        connected(door.server.address),
        connected(door.server.address) as second,
    ):
        await refused(second)
        assert "1 connections are open already" in caplog.text


async def test_who_hangs_up_at_once_leaves_nothing_behind() -> None:
    async with listening() as door:
        for sent in (b"", frame(0x01, CALL_ID.bytes), frame(0x01, CALL_ID.bytes) + frame(0x00)):
            async with connected(door.server.address) as far_end:
                far_end.send(sent)
                await far_end.writer.drain()
                far_end.writer.write_eof()
                await asyncio.wait_for(far_end.read(), 5)
        await door.until_over()
        assert not door.sessions
        assert not door.server._calls


@pytest.mark.parametrize(
    ("peer", "callers", "welcome"),
    [
        ("127.0.0.1", (), True),
        ("::1", (), True),
        ("::ffff:127.0.0.1", (), True),
        ("192.0.2.7", (), False),
        ("192.0.2.7", ("192.0.2.7",), True),
        ("192.0.2.8", ("192.0.2.7",), False),
        ("192.0.2.8", ("192.0.2.0/24",), True),
        ("::ffff:192.0.2.8", ("192.0.2.0/24",), True),
        ("2001:db8::5", ("2001:db8::/64", "192.0.2.7"), True),
        ("somebody", ("192.0.2.0/24",), False),
    ],
)
def test_who_may_call(peer: str, callers: tuple[str, ...], welcome: bool) -> None:
    config = Config(audiosocket=AudioSocketConfig(port=0, callers=callers))
    hub = SessionHub(ScriptedAgent(), VirtualClock(asyncio.new_event_loop()), config.session, max_sessions=1)
    assert AudioSocketServer(hub, config)._may_call(peer) is welcome


def test_settings_that_cannot_work_are_named() -> None:
    hub = SessionHub(ScriptedAgent(), VirtualClock(asyncio.new_event_loop()), Config().session, max_sessions=1)
    with pytest.raises(ConfigError, match=r"audiosocket\.callers.*'my-pbx'"):
        AudioSocketServer(hub, Config(audiosocket=AudioSocketConfig(port=0, callers=("my-pbx",))))

    async def main() -> None:
        with pytest.raises(ConfigError, match=r"Set audiosocket\.port"):
            await AudioSocketServer(hub, Config()).start()
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            config = Config(audiosocket=AudioSocketConfig(port=taken.getsockname()[1]))
            with pytest.raises(ConfigError, match=r"choose another audiosocket\.port"):
                await AudioSocketServer(hub, config).start()

    asyncio.run(main())


def test_silence_is_left_out_while_we_are_behind() -> None:
    async def main() -> None:
        clock, sent = VirtualClock(), []

        async def take(message: str | bytes) -> None:
            sent.append(message)

        line = AudioSocketLine(clock, Metrics(), 8_000, name="test")
        sender = asyncio.create_task(line.run_sender(take))
        for i in range(50):
            line.send(OutPacket(i * PACKET_SAMPLES, silence()))
        await clock.sleep_until(0.5)
        assert len(sent) <= 3
        assert line.left_out_packets >= 47
        sender.cancel()

    run_virtual(main())
