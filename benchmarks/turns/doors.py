"""The ways into an agent: a server by WebRTC, by WebSocket, as a telephone by Twilio, or an agent in this process.

    async with door_of("http://127.0.0.1:8998") as door:
        async with door.call() as call:
            await call.play(question)

Whatever the door, a call means the same (:class:`duplex.benchmarks.turns.contract.Call`), and its recording is
made by the same rules.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol, Self
from urllib.parse import urlsplit

from duplex.agent import Agent
from duplex.benchmarks.turns.contract import Call, CallOptions, Door
from duplex.benchmarks.turns.in_process import InProcessCall
from duplex.benchmarks.turns.twilio_call import TwilioCall
from duplex.clock import Clock, MonotonicClock
from duplex.config import SessionConfig
from duplex.errors import TransportError
from duplex.hub import SessionHub
from duplex.transport.client import CallClient
from duplex.transport.client_call import CallSettings
from duplex.transport.client_websocket import WebSocketCall

_DEFAULT = CallOptions()
DOORS = ("webrtc", "websocket", "twilio", "in-process")


def settings_of(options: CallOptions) -> CallSettings:
    """What a scenario asks for, as a client's settings."""
    return CallSettings(
        instructions=options.instructions,
        turn_taking=options.turn_taking,
        max_call_s=options.max_call_s,
        link=options.link,
    )


class _ServerDoor:
    """A door of somebody else's process: nothing to start and nothing to close."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...


@dataclass(frozen=True)
class WebRtcDoor(_ServerDoor):
    """``url``: the server's address, ``http://host:port`` or the full path of its calls."""

    url: str
    name = "webrtc"

    def call(self, options: CallOptions = _DEFAULT) -> AbstractAsyncContextManager[Call]:
        return CallClient.connect(self.url, settings_of(options))


@dataclass(frozen=True)
class WebSocketDoor(_ServerDoor):
    """``url``: the server's address, ``http://host:port``, ``ws://…`` or the full path of its socket."""

    url: str
    name = "websocket"

    def call(self, options: CallOptions = _DEFAULT) -> AbstractAsyncContextManager[Call]:
        return WebSocketCall.connect(self.url, settings_of(options))


@dataclass(frozen=True)
class TwilioDoor(_ServerDoor):
    """``url``: the server's address, ``http://host:port`` or the full path of its media streams."""

    url: str
    name = "twilio"

    def call(self, options: CallOptions = _DEFAULT) -> AbstractAsyncContextManager[Call]:
        return TwilioCall.connect(self.url, settings_of(options))


class InProcessDoor:
    """An agent without a network. It is started with the first call and ended by ``close`` or ``async with``.

    ``clock``: the real one unless told otherwise. On a ``VirtualClock`` the agent must not do work in threads:
    time would pass it by.
    """

    name = "in-process"

    def __init__(
        self, agent: Agent, config: SessionConfig | None = None, clock: Clock | None = None, *, max_sessions: int = 4
    ) -> None:
        self._hub = SessionHub(agent, clock or MonotonicClock(), config or SessionConfig(), max_sessions=max_sessions)
        self._starting = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends every call and the agent."""
        await self._hub.close("this side is done")

    def call(self, options: CallOptions = _DEFAULT) -> AbstractAsyncContextManager[Call]:
        return self._call(settings_of(options))

    @asynccontextmanager
    async def _call(self, settings: CallSettings) -> AsyncIterator[Call]:
        await self._start()
        async with InProcessCall.connect(self._hub, settings) as call:
            yield call

    async def _start(self) -> None:
        async with self._starting:
            if not self._hub.ready:
                await self._hub.start()


class OpenedDoor(Door, Protocol):
    """A door to be used with ``async with``, whatever there is behind it to start and to end."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...


def door_of(
    url: str | None = None,
    *,
    door: str | None = None,
    agent: Agent | None = None,
    config: SessionConfig | None = None,
    clock: Clock | None = None,
) -> OpenedDoor:
    """The door to ``url``, or to ``agent`` in this process; use it with ``async with``.

    ``door`` names one of ``DOORS``; None takes what the address says: ``ws://`` and ``wss://`` are WebSockets,
    anything else WebRTC. Raises ``TransportError`` for a door that does not lead there.
    """
    if (url is None) == (agent is None):
        raise TransportError("Say where to: the address of a server, or an agent in this process.")
    if agent is not None:
        if door not in (None, "in-process"):
            raise TransportError(f"An agent in this process has one door, in-process; there is no {door} to it.")
        return InProcessDoor(agent, config, clock)
    assert url is not None
    is_socket = urlsplit(url).scheme in {"ws", "wss"}
    match door or ("websocket" if is_socket else "webrtc"):
        case "webrtc" if not is_socket:
            return WebRtcDoor(url)
        case "websocket":
            return WebSocketDoor(url)
        case "twilio":
            return TwilioDoor(url)
        case name:
            raise TransportError(
                f"There is no door {name!r} to {url}. Doors: webrtc (http://…), websocket, twilio, in-process."
            )
