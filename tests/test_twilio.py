"""The Twilio door: the call that is answered, the stream, and what goes wrong on it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from xml.etree import ElementTree

import httpx
import numpy as np
import pytest
import twilio_far_end as twilio
from fastapi import FastAPI
from serving import running_app, running_hub
from twilio_far_end import CONNECTED, ULAW, TwilioFarEnd, cancelled, voice
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from duplex.agent import AgentInfo, AgentSettings
from duplex.clock import MonotonicClock
from duplex.codecs.g711 import decode_ulaw
from duplex.config import Config, ServerConfig, TwilioConfig
from duplex.hub import SessionHub
from duplex.testing import ScriptedAgent, ScriptedReply, ScriptedTiming
from duplex.transport.http_errors import add_error_handlers
from duplex.transport.locks.twilio_signature import twilio_signature
from duplex.transport.twilio import MAX_FORM_BYTES, add_twilio

QUICK = ScriptedTiming(pause_s=0.06, complete_s=0.2, interrupt_s=0.3, backchannel_s=0.1)
TOKEN = "12345"
PACKET_S = 0.02


def agent(duration_s: float = 2.0) -> ScriptedAgent:
    return ScriptedAgent((ScriptedReply(audio_after_s=0.02, duration_s=duration_s),), QUICK)


@asynccontextmanager
async def server(
    of: ScriptedAgent | None = None, *, max_sessions: int = 4, **settings: Any
) -> AsyncIterator[tuple[SessionHub, str]]:
    """A real one, with the door and nothing else; its HTTP address."""
    config = Config(server=ServerConfig(max_sessions=max_sessions), twilio=TwilioConfig(**settings))
    async with running_hub(of or agent(), config) as hub:
        app = FastAPI()
        add_error_handlers(app, hub)
        add_twilio(app, hub, config, encoding=ULAW)
        async with running_app(app, config) as url:
            yield hub, url


def ws(url: str) -> str:
    return url.replace("http", "ws", 1) + "/twilio/media"


async def until(condition: Callable[[], object], limit_s: float = 20.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def until_closed(socket: ClientConnection) -> None:
    with suppress(ConnectionClosed):
        while True:
            await socket.recv()


# --- the call is answered ---------------------------------------------------------------------------------


def stream_of(document: str) -> tuple[str, dict[str, str]]:
    """What the TwiML asks for: the stream's address and its parameters."""
    root = ElementTree.fromstring(document)
    assert [root.tag, *(child.tag for child in root)] == ["Response", "Connect"]
    (stream,) = root[0]
    return stream.attrib["url"], {p.attrib["name"]: p.attrib["value"] for p in stream}


FORM = {"CallSid": "CA1", "From": "+15550100", "To": "+15550199", "Direction": "inbound"}


async def test_one_address_is_all_that_twilio_needs() -> None:
    async with server() as (_, url), httpx.AsyncClient() as http:
        posted = await http.post(url + "/twilio/voice", data=FORM, headers={"Host": "voice.example"})
        assert posted.status_code == 200
        assert posted.headers["content-type"].startswith("text/xml")
        numbers = {"caller": "+15550100", "called": "+15550199"}
        assert stream_of(posted.text) == ("wss://voice.example/twilio/media", numbers)
        asked = await http.get(url + "/twilio/voice", params={"voice": 'an"na', "From": "+1", "Host": "x"})
        assert stream_of(asked.text)[1] == {"voice": 'an"na', "caller": "+1"}


@pytest.mark.parametrize(
    ("public_url", "media"),
    [
        ("https://a.example", "wss://a.example/twilio/media"),
        ("https://a.example:8443/duplex/", "wss://a.example:8443/duplex/twilio/media"),
        ("http://localhost:8998", "ws://localhost:8998/twilio/media"),
    ],
)
async def test_behind_a_proxy_the_configured_address_counts(public_url: str, media: str) -> None:
    async with server(public_url=public_url) as (_, url), httpx.AsyncClient() as http:
        assert stream_of((await http.post(url + "/twilio/voice")).text) == (media, {})


@pytest.mark.parametrize("host", ["", "a b", 'x"><Say>', "a.example/path", "a.example:99999999"])
async def test_a_host_that_is_none_does_not_get_into_twiml(host: str) -> None:
    async with server() as (_, url), httpx.AsyncClient() as http:
        answer = await http.post(url + "/twilio/voice", headers={"Host": host})
        assert answer.status_code == 400


async def test_a_full_server_is_engaged() -> None:
    async with server(max_sessions=1) as (hub, url), httpx.AsyncClient() as http:
        place = hub.reserve()
        answer = await http.post(url + "/twilio/voice", data=FORM)
        assert answer.status_code == 200
        (reject,) = ElementTree.fromstring(answer.text)
        assert (reject.tag, reject.attrib) == ("Reject", {"reason": "busy"})
        with pytest.raises(InvalidStatus) as refused:
            await connect(ws(url))
        assert refused.value.response.status_code == 503
        place.release()
        assert "Stream" in (await http.post(url + "/twilio/voice", data=FORM)).text
        assert hub.metrics.sessions_refused.labels("full")._value.get() == 2


@pytest.mark.parametrize("body", [b"a=" + b"x" * MAX_FORM_BYTES, b"\xff\xfe", b"a&" * 300])
async def test_a_form_that_cannot_be_read_is_refused(body: bytes) -> None:
    async with server() as (_, url), httpx.AsyncClient() as http:
        answer = await http.post(url + "/twilio/voice", content=body)
        assert answer.status_code == (413 if len(body) > MAX_FORM_BYTES else 400)
        assert answer.json()["error"]["message"]


async def test_only_what_twilio_signed_comes_in() -> None:
    async with (
        server(auth_token=TOKEN, public_url="https://a.example") as (hub, url),
        httpx.AsyncClient() as http,
    ):
        address = "https://a.example/twilio/voice?voice=anna"
        for signature, status in ((twilio_signature(address, FORM, TOKEN), 200), ("wrong", 403), ("", 403)):
            headers = {"X-Twilio-Signature": signature}
            answer = await http.post(url + "/twilio/voice?voice=anna", data=FORM, headers=headers)
            assert answer.status_code == status
        assert "twilio.public_url" in answer.json()["error"]["message"]
        assert TOKEN not in answer.text
        with pytest.raises(InvalidStatus) as refused:
            await connect(ws(url))
        assert refused.value.response.status_code == 403
        signed = twilio_signature("wss://a.example/twilio/media", {}, TOKEN)
        async with connect(ws(url), additional_headers={"X-Twilio-Signature": signed}) as socket:
            await socket.send(json.dumps(twilio.start()))
            await until(lambda: hub.live)


async def test_pages_do_not_open_streams() -> None:
    async with server() as (_, url):
        with pytest.raises(InvalidStatus) as refused:
            await connect(ws(url), origin="https://evil.example")
        assert refused.value.response.status_code == 403


# --- a whole call, in real time ---------------------------------------------------------------------------


class Caller:
    """A far end on a real connection: its beat is the caller's microphone, too."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.far_end = TwilioFarEnd(MonotonicClock(), self._deliver, trip_s=lambda: 0.0)
        self.speaks = False
        self.pieces = False  # every message in fragments of one byte
        self._outbox: asyncio.Queue[str] = asyncio.Queue()
        self._tasks = [asyncio.create_task(each) for each in (self._read(), self._write(), self.far_end.run())]
        self._tasks.append(asyncio.create_task(self._talk()))

    def _deliver(self, text: str) -> None:
        self._outbox.put_nowait(text)

    async def _read(self) -> None:
        async for message in self.socket:
            assert isinstance(message, str)
            self.far_end.arrive(json.loads(message))

    async def _write(self) -> None:
        while True:
            text = await self._outbox.get()
            await self.socket.send(list(text) if self.pieces else text)

    async def _talk(self) -> None:
        clock, began_s, n = self.far_end.clock, self.far_end.clock.now(), 0
        while True:
            self.far_end.say(voice(n) if self.speaks else np.zeros(160, dtype=np.float32))
            n += 1
            await clock.sleep_until(began_s + n * PACKET_S)

    async def say(self, seconds: float) -> None:
        self.speaks = True
        await asyncio.sleep(seconds)
        self.speaks = False

    async def until_audible(self) -> None:
        seen = len(self.far_end.played)
        await until(lambda: any(code != twilio.QUIET for _, code in self.far_end.played[seen:]))

    async def end(self) -> None:
        await cancelled(*self._tasks)


@asynccontextmanager
async def calling(url: str, **parameters: str) -> AsyncIterator[Caller]:
    async with connect(ws(url)) as socket:
        await socket.send(json.dumps(CONNECTED))
        await socket.send(json.dumps(twilio.start(**parameters)))
        caller = Caller(socket)
        try:
            yield caller
        finally:
            await caller.end()


@pytest.mark.parametrize("pieces", [False, True])
async def test_a_caller_hears_the_answer_and_interrupts_it(pieces: bool) -> None:
    async with server(agent(duration_s=6.0)) as (hub, url), calling(url) as caller:
        caller.pieces = pieces
        far_end = caller.far_end
        await until(lambda: hub.live)
        (session,) = hub
        await caller.say(0.4)
        await caller.until_audible()
        await asyncio.sleep(0.6)
        assert not far_end.cleared_at_s
        talking = asyncio.create_task(caller.say(0.6))
        await until(lambda: far_end.cleared_at_s)
        await talking
        # The far end fell silent: what was being played, and the fade.
        after = [code for at_s, code in far_end.played if at_s > far_end.cleared_at_s[0]]
        assert sum(code != twilio.QUIET for code in after) <= 3
        await until(lambda: any(getattr(m, "cut_off", False) for m in session.conversation))
        heard = decode_ulaw(b"".join(code for _, code in far_end.played))
        heard_s = np.count_nonzero(np.abs(heard).reshape(-1, 160).max(axis=1) > 0.02) * PACKET_S
        message = next(m for m in session.conversation if getattr(m, "cut_off", False))
        words = len(str(getattr(message, "text", "")).split())
        assert abs(words - 6 * heard_s / 6.0) <= 1  # six words in six seconds
        # and what was not heard yet: the next turn is answered
        await asyncio.sleep(0.3)
        await caller.until_audible()
        await caller.socket.send(json.dumps(twilio.stop(9_999_999)))
        await until(lambda: not hub.live)


async def test_keys_reach_the_session(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "duplex.telephone")
    async with server() as (_, url), calling(url) as caller:
        for key in "12#":
            caller.far_end.press(key)
        await until(lambda: caplog.text.count("KeyPressed") == 3)


async def test_a_stream_chooses_its_instructions_and_voice(caplog: pytest.LogCaptureFixture) -> None:
    class WithVoices(ScriptedAgent):
        @property
        def info(self) -> AgentInfo:
            return AgentInfo("scripted", voices=("anna", "joe"))

    async with server(WithVoices((), QUICK)) as (hub, url):
        async with calling(url, instructions="Be brief.", voice="joe", order="17"):
            await until(lambda: hub.live)
            assert next(iter(hub)).settings == AgentSettings(instructions="Be brief.", voice="joe")
            assert next(iter(hub))._line.facts["order"] == "17"  # type: ignore[attr-defined]
        await until(lambda: not hub.live)
        async with calling(url, voice="nobody"):
            await until(lambda: hub.live)
            assert next(iter(hub)).settings == AgentSettings()
            assert "start.customParameters.voice" in caplog.text


# --- hanging up -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stop", "close", "abort"])
async def test_the_caller_hangs_up(how: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with server() as (hub, url), connect(ws(url)) as socket:
        await socket.send(json.dumps(twilio.start()))
        await until(lambda: hub.live)
        if how == "stop":
            await socket.send(json.dumps(twilio.stop(2)))
            await until_closed(socket)
            assert socket.close_code == 1000
        elif how == "close":
            await socket.close()
        else:
            socket.transport.abort()
        await until(lambda: not hub.live)
        assert "the caller hung up" in caplog.text or "the line closed" in caplog.text
        assert "Traceback" not in caplog.text


async def test_we_hang_up() -> None:
    async with server() as (hub, url), connect(ws(url)) as socket:
        await socket.send(json.dumps(twilio.start()))
        await until(lambda: hub.live)
        next(iter(hub)).stop("the bot has nothing more to say")
        await until_closed(socket)
        assert (socket.close_code, socket.close_reason) == (1000, "the bot has nothing more to say")
        await until(lambda: not hub.live)


async def test_a_server_that_stops_ends_its_calls() -> None:
    async with server() as (hub, url), connect(ws(url)) as socket:
        await socket.send(json.dumps(twilio.start()))
        await until(lambda: hub.live)
        await hub.close()
        await until_closed(socket)
        assert socket.close_code == 1000


async def test_hang_ups_leave_nothing() -> None:
    async with server(max_sessions=2) as (hub, url):
        before = 0
        for call in range(30):
            async with connect(ws(url)) as socket:
                await socket.send(json.dumps(twilio.start()))
                await until(lambda: hub.live)
            await until(lambda: not hub.live)
            if call == 0:
                await asyncio.sleep(0.1)
                before = len(asyncio.all_tasks())
        await until(lambda: len(asyncio.all_tasks()) <= before)
        hub.reserve().release()
