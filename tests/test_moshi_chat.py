"""The Moshi door with a real server and a bare WebSocket: what is answered, what is refused, what is left behind."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlencode

import httpx
import numpy as np
import pytest
import sphn
from serving import NoCalls, running_app, running_hub
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from duplex.agent import Agent, AgentInfo, AgentSession, AgentSettings
from duplex.clock import Clock
from duplex.config import Config, ServerConfig
from duplex.frames import SAMPLE_RATE_HZ, Samples
from duplex.hub import SessionHub
from duplex.testing import ScriptedAgent, ScriptedReply, ScriptedTiming, load_echo_agent, tone
from duplex.transport.app import create_app

FRAME = 1920  # what stock clients encode at a time
QUICK = ScriptedTiming(pause_s=0.06, complete_s=0.2, interrupt_s=0.3, backchannel_s=0.1)
FINDS = {"pause_s": 0.06, "complete_s": 0.2}


@asynccontextmanager
async def server(agent: Agent | None = None, max_sessions: int = 4) -> AsyncIterator[tuple[SessionHub, str]]:
    config = Config(server=ServerConfig(max_sessions=max_sessions))
    async with (
        running_hub(agent or load_echo_agent(FINDS), config) as hub,
        running_app(create_app(hub, config, door=NoCalls()), config) as url,
    ):
        yield hub, url.replace("http", "ws", 1) + "/api/chat"


def pages(samples: Samples) -> list[bytes]:
    """The messages a stock client makes of some sound (padded to its frames)."""
    writer = sphn.OpusStreamWriter(SAMPLE_RATE_HZ)
    padded = np.pad(samples, (0, -len(samples) % FRAME)).astype(np.float32)
    return [b"\x01" + writer.append_pcm(padded[i : i + FRAME]) for i in range(0, len(padded), FRAME)]


class Caller:
    """A bare client: sends bytes, and sorts what arrives by kind. It decodes with the stock decoder."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.kinds: list[int] = []
        self.text = ""
        self.errors: list[str] = []
        self.sound = np.zeros(0, dtype=np.float32)
        self._reader = sphn.OpusStreamReader(SAMPLE_RATE_HZ)

    async def say(self, samples: Samples) -> None:
        for message in pages(samples):
            await self.socket.send(message)

    async def say_live(self, samples: Samples) -> None:
        """Keeps the pace of a microphone; the server's own stream is the clock."""
        for message in pages(samples):
            await self.socket.send(message)
            due = len(self.sound) + FRAME
            while len(self.sound) < due:
                await self.next()

    async def next(self) -> int:
        """Takes one message; returns its kind."""
        async with asyncio.timeout(20):
            message = await self.socket.recv()
        assert isinstance(message, bytes), "the protocol has binary messages only"
        kind, payload = message[0], message[1:]
        self.kinds.append(kind)
        match kind:
            case 1:
                self.sound = np.concatenate([self.sound, self._reader.append_bytes(payload)])
            case 2:
                self.text += payload.decode()
            case 5:
                self.errors.append(payload.decode())
        return kind

    async def until(self, kind: int) -> None:
        while await self.next() != kind:
            pass

    async def until_audible(self) -> None:
        before = len(self.sound)
        while not is_audible(self.sound[before:]):
            await self.next()

    async def until_silent(self, seconds: float = 0.3) -> None:
        """Until nothing has been audible for that long."""
        while is_audible(self.sound[-round(seconds * SAMPLE_RATE_HZ) :]):
            await self.next()


def is_audible(samples: Samples) -> bool:
    return bool(len(samples)) and float(np.abs(samples).max()) > 0.05


@asynccontextmanager
async def call(url: str, **query: str) -> AsyncIterator[Caller]:
    """A client whose call was answered."""
    async with connect(f"{url}?{urlencode(query)}" if query else url) as socket:
        caller = Caller(socket)
        assert await caller.next() == 0
        yield caller


# --- conversations ----------------------------------------------------------------------------------------


async def test_the_first_messages_are_the_handshake_and_a_stream_of_silence() -> None:
    async with server() as (hub, url), connect(url) as socket:
        assert await socket.recv() == b"\x00"
        first = await socket.recv()
        assert isinstance(first, bytes)
        assert first.startswith(b"\x01OggS\x00\x02")
        assert b"OpusHead" in first
        assert b"OpusTags" in first
        for _ in range(5):  # nobody said anything, and still there is something: a quiet line is a dead one here
            message = await socket.recv()
            assert message[:5] == b"\x01OggS"
        assert hub.live == 1


async def test_a_spoken_turn_comes_back_in_sound() -> None:
    async with server() as (_, url), call(url) as caller:
        said = tone(0.8)
        await caller.say(said)
        await caller.until_audible()
        await caller.until_silent()
        assert set(caller.kinds) == {0, 1, 2}
        assert caller.text == " (echo)"
        loud = np.flatnonzero(np.abs(caller.sound) > 0.05)
        assert (loud[-1] - loud[0]) / SAMPLE_RATE_HZ == pytest.approx(0.8, abs=0.1)


async def test_words_are_told_as_they_are_spoken() -> None:
    agent = ScriptedAgent((ScriptedReply(text="one two three four", duration_s=1.2),), QUICK)
    async with server(agent) as (_, url), call(url) as caller:
        await caller.say(tone(0.5))
        heard_at = []
        while len(heard_at) < 4:
            if await caller.next() == 2:
                heard_at.append(len(caller.sound))
        assert caller.text == " one two three four"
        gaps_s = [(b - a) / SAMPLE_RATE_HZ for a, b in itertools.pairwise(heard_at)]
        assert gaps_s == pytest.approx([0.3] * 3, abs=0.021)  # in what arrived, to the packet


async def test_what_an_interruption_cuts_off_is_neither_heard_nor_shown() -> None:
    agent = ScriptedAgent((ScriptedReply(text=" ".join(str(n) for n in range(40)), duration_s=12.0),), QUICK)
    async with server(agent) as (hub, url), call(url) as caller:
        await caller.say(tone(0.5))
        await caller.until_audible()
        began = len(caller.sound)
        while len(caller.sound) < began + 1.0 * SAMPLE_RATE_HZ:
            await caller.next()
        await caller.say_live(tone(1.0))
        await caller.until_silent()
        loud = np.flatnonzero(np.abs(caller.sound) > 0.05)
        spoken_s = float(loud[-1] - loud[0]) / SAMPLE_RATE_HZ
        assert 1.0 <= spoken_s < 2.0  # of twelve
        shown = caller.text.split()
        assert shown == [str(n) for n in range(len(shown))]
        assert len(shown) == pytest.approx(spoken_s / 0.3, abs=1.1)
        [session] = hub
        [remembered] = [message.text.split() for message in session.conversation if message.role.value == "assistant"]
        assert shown[: len(remembered)] == remembered  # memory and page tell the same story,
        assert len(shown) - len(remembered) <= 2  # but for the word that was cut, and the way to the ear


async def test_ten_seconds_at_once_are_heard() -> None:
    async with server() as (_, url), call(url) as caller:
        writer = sphn.OpusStreamWriter(SAMPLE_RATE_HZ)
        said = tone(10.0)
        stream = b"".join(writer.append_pcm(said[i : i + FRAME]) for i in range(0, len(said), FRAME))
        await caller.socket.send(b"\x01" + stream)
        await caller.until_audible()
        assert caller.errors == []


async def test_the_end_of_a_turn_may_be_told() -> None:
    agent = ScriptedAgent((ScriptedReply(duration_s=0.5),), ScriptedTiming(pause_s=30.0, complete_s=60.0))
    async with server(agent) as (_, url), call(url) as caller:
        await caller.say(tone(0.5))
        await caller.socket.send(b"\x03\x01")
        await caller.until_audible()
        assert caller.errors == []


async def test_several_clients_talk_at_once() -> None:
    async def talk(url: str, seconds: float) -> float:
        async with call(url) as caller:
            await caller.say(tone(seconds))
            await caller.until_audible()
            await caller.until_silent()
            loud = np.flatnonzero(np.abs(caller.sound) > 0.05)
            return float(loud[-1] - loud[0]) / SAMPLE_RATE_HZ

    async with server() as (_, url):
        lengths_s = (0.4, 0.7, 1.0, 1.3)
        echoes_s = await asyncio.gather(*(talk(url, seconds) for seconds in lengths_s))
        assert echoes_s == pytest.approx(lengths_s, abs=0.1)  # each its own


class Choosy(ScriptedAgent):
    """Has two voices."""

    @property
    def info(self) -> AgentInfo:
        return AgentInfo("choosy", voices=("anna", "joe"))


async def test_the_address_chooses_instructions_and_voice() -> None:
    async with server(Choosy()) as (hub, url):
        async with call(url, text_prompt="Be brief.", voice_prompt="joe.pt", text_temperature="0.7", seed="-1"):
            [session] = hub
            assert (session.settings.instructions, session.settings.voice) == ("Be brief.", "joe")
        async with connect(url + "?voice_prompt=nobody") as socket:
            error = await socket.recv()
            assert isinstance(error, bytes)
            assert error[:1] == b"\x05"
            assert "anna, joe" in error[1:].decode()
            with pytest.raises(ConnectionClosed) as gone:
                await socket.recv()
            assert gone.value.rcvd is not None
            assert gone.value.rcvd.code == 1008


class ReadsFirst(ScriptedAgent):
    """Reads a prompt before it answers a call; ``read`` says that it has."""

    def __init__(self) -> None:
        super().__init__((ScriptedReply(duration_s=0.4),), QUICK)
        self.opened, self.read = asyncio.Event(), asyncio.Event()

    def open(self, settings: AgentSettings, clock: Clock, wake: Callable[[], None]) -> AgentSession:
        session = super().open(settings, clock, wake)
        session.wait_ready = self.read.wait  # type: ignore[attr-defined]
        self.opened.set()
        return session


async def test_a_call_is_answered_when_the_agent_is_ready_and_what_was_said_before_is_not_heard_late() -> None:
    agent = ReadsFirst()
    async with server(agent) as (_, url), connect(url) as socket:
        caller, [first, *rest] = Caller(socket), pages(tone(1.0))
        await socket.send(first)  # with the stream's headers, which come but once
        await agent.opened.wait()
        await socket.ping()
        agent.read.set()
        assert await caller.next() == 0
        for message in rest[-6:]:
            await socket.send(message)
        await caller.until_audible()
        assert caller.errors == []


async def test_nobody_waits_for_an_agent_that_prepares_for_a_client_who_left() -> None:
    agent = ReadsFirst()
    async with server(agent) as (hub, url):
        async with connect(url):
            await agent.opened.wait()
        await ended(hub)
        assert agent.sessions[0].closed


# --- clients that misbehave -------------------------------------------------------------------------------


async def test_kinds_that_mean_nothing_here_are_passed_over() -> None:
    async with server() as (_, url), call(url) as caller:
        for message in (
            b"",
            b"\x00",
            b"\x00\x00\x00",
            b"\x00" + bytes(8),
            b"\x02hello",
            b"\x03\x00",
            b"\x03\x02",
            b"\x03",
            b'\x04{"a": 1}',
            b"\x05oh no",
            b"\x06",
            b"\x07",
            b"\xffwhatever",
            b"\x01",
        ):
            await caller.socket.send(message)
        await caller.say(tone(0.4))
        await caller.until_audible()
        assert caller.errors == []


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("hello", "binary messages"),
        (b"\x01" + bytes(2000), "damaged"),
        (b"\x01RIFF....WAVEfmt ", "damaged"),
        (b"\x01" + bytes(1024 * 1024 + 1), "at most 1048576"),
        (b"\x00\x01\x00", "version 1"),
        (b"\x03\x01", "no speech to commit"),
    ],
)
async def test_a_bad_message_is_answered_in_words_and_the_call_goes_on(bad: str | bytes, says: str) -> None:
    async with server() as (_, url), call(url) as caller:
        for _ in range(3):
            await caller.socket.send(bad)
        await caller.until(5)
        await caller.say(tone(0.4))
        await caller.until_audible()
        [error] = caller.errors  # once
        assert says in error


async def test_half_a_page_is_no_reason_to_wait_for_the_client() -> None:
    async with server() as (hub, url), call(url) as caller:
        first, second, *_ = pages(tone(0.5))
        await caller.socket.send(first[:50])
        for _ in range(20):
            assert await caller.next() == 1
        assert hub.live == 1
        await caller.socket.send(b"\x01" + first[50:])  # and here is the rest
        await caller.socket.send(second)
        for message in pages(tone(0.5))[2:]:
            await caller.socket.send(message)
        await caller.until_audible()
        assert caller.errors == []


async def test_a_client_that_says_nothing_at_all_is_served_all_the_same() -> None:
    async with server() as (_, url), call(url) as quiet, call(url) as caller:
        await caller.say(tone(0.4))
        await caller.until_audible()
        while len(quiet.sound) < SAMPLE_RATE_HZ // 2:
            await quiet.next()
        assert not is_audible(quiet.sound)


# --- the end ----------------------------------------------------------------------------------------------


async def test_a_full_server_says_so_at_once() -> None:
    async with server(max_sessions=1) as (hub, url), call(url):
        async with connect(url) as socket:
            error = await socket.recv()
            assert isinstance(error, bytes)
            assert error[:1] == b"\x05"
            assert "All 1 places are taken" in error[1:].decode()
            with pytest.raises(ConnectionClosed) as gone:
                await socket.recv()
            assert gone.value.rcvd is not None
            assert gone.value.rcvd.code == 1013
            assert "places are taken" in gone.value.rcvd.reason
        assert hub.live == 1
        assert hub.metrics.sessions_refused.labels("full")._value.get() == 1


async def test_foreign_pages_are_refused() -> None:
    async with server() as (hub, url):
        with pytest.raises(InvalidStatus) as refused:
            await connect(url, origin="https://evil.example").__aenter__()
        assert refused.value.response.status_code == 403
        assert hub.live == 0
        async with connect(url, origin=url.replace("ws", "http", 1).split("/api")[0]) as socket:
            assert await socket.recv() == b"\x00"


async def test_the_address_says_what_it_speaks() -> None:
    async with server() as (_, url), httpx.AsyncClient() as client:
        response = await client.get(url.replace("ws", "http", 1))
    assert response.status_code == 426
    assert "Moshi protocol" in response.json()["error"]["message"]


async def test_a_server_that_stops_says_so() -> None:
    async with server() as (hub, url), call(url) as caller:
        await hub.close("The server is stopping.")
        with pytest.raises(ConnectionClosed) as gone:
            await caller.until(-1)
        assert gone.value.rcvd is not None
        assert (gone.value.rcvd.code, gone.value.rcvd.reason) == (1000, "The server is stopping.")


async def test_hang_ups_in_the_middle_of_a_reply_leave_nothing_behind() -> None:
    agent = ScriptedAgent((ScriptedReply(duration_s=20.0),), QUICK)
    async with server(agent, max_sessions=12) as (hub, url):
        async with call(url):
            pass
        await ended(hub)
        before = len(asyncio.all_tasks())

        async def hang_up(number: int) -> None:
            socket = await connect(url)
            caller = Caller(socket)
            await caller.say(tone(0.3))
            await caller.until(0)
            await caller.say(tone(0.3))
            await caller.until_audible()
            if number % 2:
                await socket.close()
            else:
                socket.transport.abort()  # a tab closed, a cable pulled

        await asyncio.gather(*(hang_up(number) for number in range(6)))
        await ended(hub)
        assert len(asyncio.all_tasks()) <= before
        assert all(session.closed for session in agent.sessions)


async def ended(hub: SessionHub) -> None:
    """Waits for every session's end, and for the connections' tasks, which sweep up right behind it."""
    async with asyncio.timeout(10):
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name().startswith("sess_")))
        own = asyncio.current_task()
        while busy := [t for t in asyncio.all_tasks() if t is not own and "run_asgi" in repr(t.get_coro())]:
            await asyncio.wait(busy)
    assert hub.live == 0
