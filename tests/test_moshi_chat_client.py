"""The client of the ``moshi`` package, unchanged (``stock_client.py``), against a live server of ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from serving import NoCalls, running_app, running_hub
from stock_client import Client, SoundCard, loud_s, stock_client

from duplex.agent import Agent
from duplex.config import Config, ServerConfig
from duplex.frames import silence
from duplex.hub import SessionHub
from duplex.testing import ScriptedAgent, ScriptedReply, ScriptedTiming, load_echo_agent, tone
from duplex.transport.app import create_app


@pytest.fixture
def cards() -> list[SoundCard]:
    return [SoundCard() for _ in range(3)]


@pytest.fixture
def package(cards: list[SoundCard], monkeypatch: pytest.MonkeyPatch) -> Any:
    """``moshi.client``, imported with the sound card of this test."""
    return stock_client(cards, monkeypatch)


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
