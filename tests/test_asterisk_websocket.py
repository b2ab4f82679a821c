"""Calls through Asterisk's ``chan_websocket`` to a real server; and what goes wrong there."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from asterisk_far_end import CHANNEL_ID, PACKET_S, calling
from fastapi import FastAPI
from serving import running_app, running_hub
from telephone_sessions import Opened, quick_agent, speech, until
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from duplex import events as ev
from duplex.clock import VirtualClock
from duplex.codecs.g711 import decode_ulaw, encode_ulaw
from duplex.config import Config, ServerConfig
from duplex.frames import silence
from duplex.line import OutPacket
from duplex.metrics import Metrics
from duplex.testing import run_virtual, tone
from duplex.transport import asterisk_websocket, asterisk_websocket_wire
from duplex.transport.asterisk_websocket import add_asterisk
from duplex.transport.asterisk_websocket_line import AsteriskLine
from duplex.transport.telephone_edge import linear16


class Door(Opened):
    url = ""


@asynccontextmanager
async def server(max_sessions: int = 4) -> AsyncIterator[Door]:
    config = Config(server=ServerConfig(max_sessions=max_sessions))
    async with running_hub(quick_agent(), config) as hub:
        door = Door(hub)
        app = FastAPI()
        add_asterisk(app, hub, config, open_session=door.open)
        async with running_app(app, config) as url:
            door.url = url.replace("http", "ws", 1) + "/asterisk/media"
            yield door


@pytest.mark.parametrize("json_control", [True, False])
async def test_a_call_is_answered_interrupted_and_hung_up(json_control: bool) -> None:
    async with server() as door:
        url = door.url + "?answer=yes&caller=6001&called=100"
        async with calling(url, json_control=json_control, media_format="slin16") as caller:
            channel = caller.channel
            await door.until_started()
            facts = door.lines[0].facts
            assert (facts["caller"], facts["called"], facts["channel_id"]) == ("6001", "100", CHANNEL_ID)
            caller.say(speech(0.6, 16_000))
            await until(caller.audible)
            await until(lambda: len(channel.played) > 40)
            caller.say(speech(0.5, 16_000))
            await until(lambda: bool(door.of(ev.ReplyHeld)))
            await until(lambda: caller.silent_for(15))
            assert channel.commands.count("FLUSH_MEDIA") >= 1
            await until(lambda: bool(door.of(ev.ReplyTruncated)))
            truncated = door.of(ev.ReplyTruncated)[0]
            assert truncated.evidence == "mark"
            channel.press("4")
            channel.press("#")
            await until(lambda: len(door.of(ev.KeyPressed)) == 2)
            assert [event.key for event in door.of(ev.KeyPressed)] == ["4", "#"]
            assert channel.commands.count("ANSWER") == 1
            assert channel.dropped_bytes == 0
        await door.until_over()
        assert not channel.unknown


async def test_when_we_hang_up_the_channel_is_told() -> None:
    async with server() as door, calling(door.url) as caller:
        await door.until_started()
        door.sessions[0].stop("the bot hung up")
        await until(caller.closed.is_set)
        assert caller.channel.hung_up
        assert "ANSWER" not in caller.channel.commands  # Asterisk has done so itself, unless the address says so
        assert caller.socket.close_code == 1000


async def test_g711_is_found_among_the_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ulaw:
        decode, encode = staticmethod(decode_ulaw), staticmethod(encode_ulaw)

    asked = []

    def lookup(group: str, name: str) -> Any:
        asked.append((group, name))
        return lambda options: Ulaw()

    monkeypatch.setattr(asterisk_websocket, "lookup", lookup)
    async with server() as door, calling(door.url, media_format="ulaw") as caller:
        await door.until_started()
        caller.say(speech(0.6, 8_000))
        await until(caller.audible)
        assert caller.channel.dropped_bytes == 0
    assert asked == [("duplex.codecs", "pcmu")]


async def test_a_caller_may_ask_for_instructions_but_not_for_a_voice_that_is_not_there() -> None:
    async with server() as door, calling(door.url + "?instructions=Be+brief.&note=x"):
        await door.until_started()
        assert door.settings[0].instructions == "Be brief."
        assert door.lines[0].facts["note"] == "x"


async def test_a_full_server_refuses_before_the_call_is_answered() -> None:
    async with server(max_sessions=1) as door, calling(door.url):
        await door.until_started()
        with pytest.raises(InvalidStatus) as refused:
            async with connect(door.url, subprotocols=["media"]):  # type: ignore[list-item]
                pass
        assert refused.value.response.status_code == 503
        assert "All 1 places are taken" in json.loads(refused.value.response.body)["error"]["message"]


async def test_bytes_one_at_a_time() -> None:
    """The network may cut anywhere: a whole exchange, a byte a packet."""
    mask = b"\x01\x02\x03\x04"

    def framed(payload: bytes, opcode: int) -> bytes:
        length = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
        return bytes([0x80 | opcode]) + length + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(payload))

    async with server() as door:
        host, port = door.url.split("/")[2].split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        start = (
            "MEDIA_START connection_id:c channel:WebSocket/c channel_id:7.1 format:slin optimal_frame_size:320 ptime:20"
        )
        sound = (tone(0.1)[::3] * 32767).astype("<i2").tobytes()[:300]
        opening = (
            b"GET /asterisk/media HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"Sec-WebSocket-Protocol: media\r\n\r\n"
        )
        exchange = (
            framed(start.encode(), 1)
            + framed(sound, 2)
            + framed(b"DTMF_END digit:7 channel_id:7.1", 1)
            + framed(sound[:1], 2)  # half a sample, and then its other half
            + framed(sound[:1], 2)
        )

        async def trickle(data: bytes) -> None:
            for byte in data:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)

        await trickle(opening)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101")
        assert b"Sec-WebSocket-Protocol: media" in answer
        await trickle(exchange)
        await door.until_started()
        writer.write(framed(b"DTMF_END digit:8 channel_id:7.1", 1))
        await until(lambda: len(door.of(ev.KeyPressed)) == 2)
        assert [event.key for event in door.of(ev.KeyPressed)] == ["7", "8"]  # the first waited for the session
        writer.close()


# --- when things go wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (["nonsense"], "Nobody knows the event 'nonsense'"),
        (["MEDIA_XON"], "No MEDIA_START came within 0.2 s."),
        ([], "No MEDIA_START came within 0.2 s."),
        ([b"\0" * 320], "Sound came before MEDIA_START"),
        (["MEDIA_START format:opus optimal_frame_size:0 ptime:20"], "format is 'opus'"),
        (["MEDIA_START format:slin16 optimal_frame_size:0 ptime:20"], "In passthrough mode"),
        (["MEDIA_START optimal_frame_size:160 ptime:20"], "format should be text"),
    ],
)
async def test_a_call_that_cannot_be_held_is_closed_with_the_reason(
    messages: list[str | bytes],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(asterisk_websocket, "START_LIMIT_S", 0.2)
    async with server() as door, connect(door.url) as socket:
        for message in messages:
            await socket.send(message)
        with pytest.raises(ConnectionClosed):
            async with asyncio.timeout(5):
                await socket.recv()
        assert socket.close_code == 1003
        assert reason in caplog.text
        assert (socket.close_reason or "")[:60] in caplog.text
        assert not door.sessions
        door.hub.reserve().release()  # its place was given back


async def test_nonsense_in_a_call_is_named_once_and_the_call_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async with server() as door, calling(door.url) as caller:
        await door.until_started()
        channel = caller.channel
        for _ in range(3):
            channel.text("{")
            channel.text('{"event": "NEW_THING"}')
            channel.text('{"event": "DTMF_END", "digit": "nine"}')
            channel.text('{"event": "ERROR", "error_text": "MARK_MEDIA not supported"}')
            channel.text(channel.event("MEDIA_MARK_PROCESSED", correlation_id="99-1"))
            channel.start(format="ulaw", optimal_frame_size=160)  # the format cannot change in mid-call
        channel.say(b"\0")  # half a sample
        caller.say(speech(0.6, 16_000))
        await until(caller.audible)
        for named in (
            "is not JSON",
            "Nobody knows the event 'NEW_THING'",
            "digit should be one of",
            "Asterisk says: MARK_MEDIA not supported",
            "MEDIA_START came a second time (format 'ulaw')",
        ):
            assert caplog.text.count(named) == 1, named
        assert door.lines[0].far_end.marks_ignored == 3


async def test_sound_faster_than_real_time_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    async with server() as door, calling(door.url) as caller:
        await door.until_started()
        caller.channel.say(bytes(640 * 1000))  # 20 s at once
        await until(lambda: "faster than real time" in caplog.text)
        caller.say(speech(0.6, 16_000))
        await until(caller.audible)


async def test_a_far_end_that_stops_reading_ends_its_own_call() -> None:
    """On virtual time: Asterisk is alive, but takes nothing any more."""

    async def main() -> None:
        clock = VirtualClock()
        line = AsteriskLine(
            clock,
            Metrics(),
            asterisk_websocket_wire.MediaStart("c", "ch", "7.1", "slin24", 960, 20),
            asterisk_websocket_wire.ControlFormat.JSON,
            linear16(24000),
        )

        async def never(message: str | bytes) -> None:
            await asyncio.Event().wait()

        sender = asyncio.create_task(line.run_sender(never))
        line.greet()
        while not line.closed:
            line.receive()
            line.send(OutPacket(0, silence()))
            await clock.sleep_until(clock.now() + PACKET_S)
        assert clock.now() == pytest.approx(5.0, abs=0.1)
        assert line.ending is not None
        assert "took nothing for 5 s" in line.ending[1]
        sender.cancel()

    await asyncio.to_thread(run_virtual, main())


async def test_a_far_end_that_is_gone_ends_the_session(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with server() as door:
        async with calling(door.url) as caller:
            await door.until_started()
            caller.socket.transport.abort()  # without a word
        await door.until_over()
    assert "the caller hung up" in caplog.text
