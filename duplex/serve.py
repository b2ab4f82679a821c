"""The composition root of the server: configuration in, a running server out.

Together with the ``cli`` modules this is the only place in ``duplex`` that imports the leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import uvicorn
from rich.console import Console

from duplex.clock import MonotonicClock
from duplex.config import Config, SessionConfig
from duplex.echo import EchoCanceller
from duplex.errors import ConfigError, DuplexError
from duplex.hub import SessionHub
from duplex.metrics import Metrics
from duplex.records.model_facts import model_facts
from duplex.records.recorder import Recorder
from duplex.registry import create_agent
from duplex.session import Session
from duplex.transport.app import create_app
from duplex.transport.echo_canceller import WebRtcEchoCanceller
from duplex.web_demo import static_dir

log = logging.getLogger("duplex.serve")


@dataclass(frozen=True, slots=True)
class Running:
    """A server that is up. ``url``: where the page is."""

    url: str
    hub: SessionHub


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, or a ``ConfigError`` that says what to do about a taken port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(128)  # callers wait here until the server takes them
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"Cannot listen on {host}:{port} ({error.strerror}). "
            f"Another server may be running there: stop it, or choose a port with --port."
        ) from error
    return sock


@contextlib.asynccontextmanager
async def running(config: Config) -> AsyncIterator[Running]:
    """Starts a server on the running loop and stops it, sessions and all, on the way out.

    The socket listens before the models are loaded, so ``/readyz`` can say that they are not ready yet.
    """
    sock = bind(config.server.host, config.server.port)
    metrics = Metrics()
    recorder: Recorder | None = None
    try:
        agent = create_agent(config.agent.name, config.agent.options)
        make_canceller = _canceller(config.session)
        if config.record.dir is not None:
            recorder = await asyncio.to_thread(_recorder, config, metrics)
    except BaseException:
        sock.close()
        raise
    hub = SessionHub(
        agent,
        MonotonicClock(),
        config.session,
        max_sessions=config.server.max_sessions,
        metrics=metrics,
        retry_after_s=config.server.retry_after_s,
        make_session=Session if recorder is None else recorder.session,
        make_canceller=make_canceller,
    )
    app = create_app(hub, config, static_dir=static_dir())
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            ws="websockets-sansio",
            ws_max_size=config.server.max_event_bytes,
            ws_per_message_deflate=False,  # base64 sound does not compress, and costs CPU trying
            timeout_graceful_shutdown=3,
            lifespan="on",
        )
    )
    serving = asyncio.create_task(server._serve([sock]), name="uvicorn")
    host, port = sock.getsockname()[:2]
    shown = "localhost" if host in ("127.0.0.1", "0.0.0.0", "::1", "::") else host
    try:
        await hub.start()
        yield Running(f"http://{shown}:{port}", hub)
    finally:
        await hub.close()
        server.should_exit = True
        await serving
        sock.close()
        if recorder is not None:
            await asyncio.to_thread(recorder.close)


def _canceller(config: SessionConfig) -> Callable[[], EchoCanceller] | None:
    """What makes a session's echo canceller. Raises ``MissingDependencyError`` now rather than at the first call."""
    if config.echo_canceller == "off":
        return None
    WebRtcEchoCanceller()
    return WebRtcEchoCanceller


def _recorder(config: Config, metrics: Metrics) -> Recorder:
    models = model_facts(config.agent.options)
    return Recorder(config.record, metrics, configuration=config.model_dump(mode="json"), models=models)


async def serve(config: Config, console: Console) -> None:
    """Runs a server until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows: KeyboardInterrupt ends the loop instead
            loop.add_signal_handler(number, stop.set)
    began_s = time.perf_counter()
    console.print(f"[dim]Loading {config.agent.name} …[/dim]")
    async with running(config) as server:
        console.print(
            f"[bold green]Ready[/bold green] in {time.perf_counter() - began_s:.1f} s. "
            f"Open [bold]{server.url}[/bold] and press Talk."
        )
        if config.record.dir is not None:
            less = {
                "none": "",
                "audio": ", without sound",
                "text": ", without words",
                "all": ", without sound and words",
            }
            where = f"{config.record.dir}{less[config.record.redact]}"
            console.print(f"[yellow]Every session is recorded to {where}. Tell those who call.[/yellow]")
        if config.server.host not in ("127.0.0.1", "localhost", "::1"):
            console.print(
                "[yellow]This server listens beyond this machine and asks nobody for a key. Browsers only give a "
                "microphone to https pages or to localhost.[/yellow]"
            )
        await stop.wait()
        console.print("[dim]Stopping: calls are told and ended …[/dim]")


def run(config: Config) -> int:
    """Blocks until the server ends; returns the exit status."""
    console = Console(stderr=False, soft_wrap=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s  %(message)s")
    for noisy in ("aioice", "aiortc", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Workers hand results over in the middle of other threads' Python; 5 ms of waiting would be a quarter packet.
    sys.setswitchinterval(0.001)
    try:
        asyncio.run(serve(config, console))
    except DuplexError as error:
        console.print(f"[red]{error}[/red]")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
