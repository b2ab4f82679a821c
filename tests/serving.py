"""A real uvicorn server inside the test's own event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from fastapi import FastAPI

from duplex.agent import Agent, AgentSettings
from duplex.clock import MonotonicClock
from duplex.config import Config
from duplex.hub import SessionHub
from duplex.testing import load_echo_agent


class NoCalls:
    """Stands in for the WebRTC door where a test is not about it."""

    async def answer(self, offer_sdp: str, settings: AgentSettings) -> tuple[str, str]:
        raise NotImplementedError

    async def move(self, call_id: str, offer_sdp: str, token: str, last_event: int) -> str | None:
        return None

    async def hang_up(self, call_id: str) -> bool:
        return False

    async def close(self) -> None: ...


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the test runner's signals stay the test runner's


@asynccontextmanager
async def running_app(app: FastAPI, config: Config | None = None) -> AsyncIterator[str]:
    """Serves ``app`` on a free port of 127.0.0.1; yields its address, "http://127.0.0.1:PORT"."""
    config = config or Config()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)  # connections wait here until the server has started
        server = _Server(
            uvicorn.Config(
                app,
                log_level="warning",
                lifespan="on",
                ws_max_size=config.server.max_event_bytes,
                ws_per_message_deflate=False,
                timeout_graceful_shutdown=2,
            )
        )
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


@asynccontextmanager
async def running_hub(agent: Agent | None = None, config: Config | None = None) -> AsyncIterator[SessionHub]:
    """A started hub on the real clock; with the echo agent unless told otherwise."""
    config = config or Config()
    hub = SessionHub(
        agent or load_echo_agent({}),
        MonotonicClock(),
        config.session,
        max_sessions=config.server.max_sessions,
        retry_after_s=config.server.retry_after_s,
    )
    await hub.start()
    try:
        yield hub
    finally:
        await hub.close()
