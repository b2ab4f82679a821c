"""The client of the ``moshi`` package, unchanged, against a live server of ours.

Replaced is the sound card alone: ``sounddevice``, which the package imports and which needs PortAudio, is a
module of ours. It calls back from a thread of its own every 80 ms, as PortAudio does, with a microphone that plays
what the test says, and a speaker that keeps what it is given. Connecting, the WebSocket (aiohttp), Ogg-Opus (sphn),
the client's queues and its printer are the package's.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import io
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pytest
from serving import NoCalls, running_app, running_hub

from duplex.agent import Agent
from duplex.config import Config, ServerConfig
from duplex.frames import SAMPLE_RATE_HZ, Samples, silence
from duplex.hub import SessionHub
from duplex.testing import ScriptedAgent, ScriptedReply, ScriptedTiming, load_echo_agent, tone
from duplex.transport.app import create_app

Block = npt.NDArray[np.float32]


class SoundCard:
    """The two streams of one client. ``say`` queues speech for the microphone; ``played`` is what the speaker got."""

    def __init__(self) -> None:
        self.played: list[Samples] = []
        self.stopped = False
        self._voice = silence(0)
        self._lock = threading.Lock()

    def say(self, samples: Samples) -> None:
        with self._lock:
            self._voice = np.concatenate([self._voice, samples])

    def record(self, block: Block) -> None:
        with self._lock:
            said, self._voice = self._voice[: len(block)], self._voice[len(block) :]
        block[: len(said), 0] = said

    def play(self, block: Block) -> None:
        self.played.append(block[:, 0].copy())

    @property
    def heard(self) -> Samples:
        return np.concatenate([silence(0), *self.played])


class _Stream:
    """``sounddevice.InputStream`` and ``OutputStream``, as far as the client uses them."""

    exchange: Callable[[SoundCard, Block], None]
    cards: Iterator[SoundCard]
    calls_first: bool

    def __init__(self, *, samplerate: float, channels: int, blocksize: int, callback: Callable[..., None]) -> None:
        assert (samplerate, channels, blocksize) == (SAMPLE_RATE_HZ, 1, 1920)
        self._blocksize, self._callback = blocksize, callback
        self.card = next(type(self).cards)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.card.stopped = True

    def _run(self) -> None:
        period_s = self._blocksize / SAMPLE_RATE_HZ
        due_s = time.monotonic()
        while not self._ended.wait(max(0.0, due_s - time.monotonic())):
            block = np.zeros((self._blocksize, 1), dtype=np.float32)
            if self.calls_first:
                self._callback(block, self._blocksize, None, None)
            type(self).exchange(self.card, block)
            if not self.calls_first:
                self._callback(block, self._blocksize, None, None)
            due_s += period_s


def sound_card_module(cards: list[SoundCard]) -> ModuleType:
    """A ``sounddevice`` whose streams are those of ``cards``, one client after the other."""
    module: Any = ModuleType("sounddevice")
    inputs, outputs = iter(cards), iter(cards)
    module.InputStream = type(
        "InputStream", (_Stream,), {"exchange": SoundCard.record, "calls_first": False, "cards": inputs}
    )
    module.OutputStream = type(
        "OutputStream", (_Stream,), {"exchange": SoundCard.play, "calls_first": True, "cards": outputs}
    )
    return module  # type: ignore[no-any-return]


class Client:
    """One run of ``python -m moshi.client``, printing into memory."""

    def __init__(self, package: Any, url: str, card: SoundCard) -> None:
        self.card = card
        self.printed, self.logged = io.StringIO(), io.StringIO()
        printer = package.RawPrinter(self.printed, self.logged)
        address = urlsplit(url)
        args = argparse.Namespace(host=address.hostname, port=address.port, https=False, url=None)
        self.task = asyncio.create_task(package.run(printer, args))

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not done():
                assert not self.task.done(), self.logged.getvalue()
                await asyncio.sleep(0.02)  # the card's threads have the pace of sound

    async def until_answered(self, text: str) -> None:
        """Until the client has printed that text and played the sound that goes with it to its end."""
        await self.until(lambda: self.printed.getvalue().endswith(text) and loud_s(self.card.heard) > 0)
        await self.until(lambda: not np.abs(self.card.heard[-SAMPLE_RATE_HZ // 3 :]).max() > 0.05)

    async def hang_up(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        assert self.card.stopped


def loud_s(samples: Samples) -> float:
    """From the first to the last loud sample."""
    loud = np.flatnonzero(np.abs(samples) > 0.05)
    return float(loud[-1] - loud[0]) / SAMPLE_RATE_HZ if len(loud) else 0.0


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> list[SoundCard]:
    made = [SoundCard() for _ in range(3)]
    monkeypatch.setitem(sys.modules, "sounddevice", sound_card_module(made))
    return made


@pytest.fixture
def package(cards: list[SoundCard], monkeypatch: pytest.MonkeyPatch) -> Any:
    """``moshi.client``, imported with the sound card of this test."""
    monkeypatch.setenv("NO_TORCH_COMPILE", "1")
    monkeypatch.delitem(sys.modules, "moshi.client", raising=False)
    return importlib.import_module("moshi.client")


@asynccontextmanager
async def server(agent: Agent, max_sessions: int = 4) -> AsyncIterator[tuple[SessionHub, str]]:
    config = Config(server=ServerConfig(max_sessions=max_sessions))
    async with (
        running_hub(agent, config) as hub,
        running_app(create_app(hub, config, door=NoCalls()), config) as url,
    ):
        yield hub, url


async def test_the_stock_client_hears_its_echo_and_prints_the_words(package: Any, cards: list[SoundCard]) -> None:
    async with server(load_echo_agent({})) as (hub, url):
        client = Client(package, url, cards[0])
        client.card.say(np.concatenate([silence(4800), tone(0.8)]))
        await client.until_answered(" (echo)")
        assert loud_s(client.card.heard) == pytest.approx(0.8, abs=0.1)
        log = client.logged.getvalue()
        assert "connected!" in log
        assert "unknown message kind 0" in log  # what it says of the stock server's handshake, too
        assert log.count("unknown message kind") == 1  # and of nothing else we send
        await client.hang_up()
        await client_gone(hub)


async def test_three_stock_clients_at_once_each_have_a_call_of_their_own(package: Any, cards: list[SoundCard]) -> None:
    agent = ScriptedAgent((ScriptedReply("You are heard.", duration_s=0.6),), ScriptedTiming())
    async with server(agent) as (hub, url):
        clients = [Client(package, url, card) for card in cards]
        for number, client in enumerate(clients):
            client.card.say(np.concatenate([silence(2400 * number), tone(0.5)]))
        for client in clients:
            await client.until_answered(" You are heard.")
            assert loud_s(client.card.heard) == pytest.approx(0.6, abs=0.2)  # it may lag once at first, by a block
        assert hub.live == 3
        await clients[0].hang_up()  # in any order; the others go on
        clients[2].card.say(tone(0.5))
        await clients[2].until_answered(" You are heard. You are heard.")
        for client in clients[1:]:
            await client.hang_up()
        await client_gone(hub)


async def test_the_stock_client_is_told_at_once_that_there_is_no_place(package: Any, cards: list[SoundCard]) -> None:
    async with server(load_echo_agent({}), max_sessions=1) as (hub, url):
        first = Client(package, url, cards[0])
        await first.until(lambda: "connected!" in first.logged.getvalue() and hub.live == 1)
        second = Client(package, url, cards[1])
        async with asyncio.timeout(10):
            await second.task  # it ends by itself; the stock server would leave it waiting for a lock
        assert "unknown message kind 5" in second.logged.getvalue()
        await first.hang_up()


async def client_gone(hub: SessionHub) -> None:
    async with asyncio.timeout(10):
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name().startswith("sess_")))
    assert hub.live == 0
