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
from typing import IO, cast

import uvicorn
from rich.console import Console

from duplex.allocator import steady_heap
from duplex.bots import Bots
from duplex.clock import MonotonicClock
from duplex.config import Config, SessionConfig
from duplex.drain import Farewell, drain
from duplex.echo import EchoCanceller
from duplex.errors import ConfigError, DuplexError
from duplex.exposure import is_loopback, key_file_of
from duplex.garbage import AfterCalls, set_aside, take_back
from duplex.hub import SessionHub
from duplex.log_events import log_event
from duplex.logs import AsLog, logging_as
from duplex.loop_lag import watch_loop_lag
from duplex.metrics import Metrics
from duplex.records.model_facts import model_facts
from duplex.records.recorder import Recorder
from duplex.registry import create_agent
from duplex.session import Session
from duplex.telemetry_line import Observer, observed
from duplex.telemetry_otel import TurnExporter
from duplex.transport.app import create_app
from duplex.transport.audiosocket import AudioSocketServer
from duplex.transport.echo_canceller import WebRtcEchoCanceller
from duplex.transport.locks.locks import Locks
from duplex.transport.locks.log_filter import RefusalsAreNoFaults, without_secrets
from duplex.transport.locks.tls import TlsFiles
from duplex.web_demo import static_dir

log = logging.getLogger("duplex.serve")

MOST_SLOTS = 64  # of a native engine
SPARE_CONNECTIONS = 256
"""Beyond a connection for each session: those who load the page, scrape, are refused, or are slow to ask."""
RENEW_EVERY_S = 30.0
"""How long a renewed certificate may wait."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that is up. ``url``: where the page is. ``audiosocket``: host and port, if it listens for that."""

    url: str
    hub: SessionHub
    audiosocket: tuple[str, int] | None = None


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
    metrics, clock = Metrics(), MonotonicClock()
    locks = Locks(config, clock, metrics)
    tls = _tls(config)
    sock = bind(config.server.host, config.server.port)
    recorder: Recorder | None = None
    traces: TurnExporter | None = None
    try:
        agent = create_agent(config.agent.name, config.agent.options)
        make_canceller = _canceller(config.session)
        if config.record.dir is not None:
            recorder = await asyncio.to_thread(_recorder, config, metrics)
        if config.telemetry.otlp_endpoint is not None:
            traces = await asyncio.to_thread(TurnExporter, config.telemetry)
        observers: list[Observer] = [log_event, AfterCalls(), *([] if traces is None else [traces.observer])]
        made = observed(locks.sessions(Session if recorder is None else recorder.session), *observers)
        hub = SessionHub(
            agent,
            clock,
            config.session,
            max_sessions=config.server.max_sessions,
            metrics=metrics,
            retry_after_s=config.server.retry_after_s,
            make_session=Bots(config.bot, metrics, make_session=made).session,
            make_canceller=make_canceller,
        )
        if hub.max_sessions is not None:
            metrics.session_places.set(hub.max_sessions)
        app = create_app(hub, config, static_dir=static_dir(), locks=locks)
    except BaseException:
        sock.close()
        if recorder is not None:
            await asyncio.to_thread(recorder.close)
        if traces is not None:
            await traces.close()
        raise
    settings = uvicorn.Config(
        app,
        log_config=None,  # its lines go where all others go
        log_level="warning",
        access_log=False,
        http="h11",  # refuses addresses that are no text; httptools, where it is installed, does not
        ws="websockets-sansio",
        ws_max_size=config.server.max_event_bytes,
        ws_per_message_deflate=False,  # base64 sound does not compress, and costs CPU trying
        proxy_headers=False,  # it believes whoever is on this machine; the locks believe those they are told to
        server_header=False,
        limit_concurrency=(hub.max_sessions or MOST_SLOTS) + SPARE_CONNECTIONS,
        timeout_graceful_shutdown=3,
        lifespan="on",
    )
    settings.load()
    settings.ssl = None if tls is None else tls.context
    server = uvicorn.Server(settings)
    serving = asyncio.create_task(server._serve([sock]), name="uvicorn")
    renewing = None if tls is None else asyncio.create_task(_renew(tls), name="certificates")
    watching = asyncio.create_task(watch_loop_lag(clock, metrics.loop_lag_s.observe), name="loop lag")
    host, port = sock.getsockname()[:2]
    shown = "localhost" if host in ("127.0.0.1", "0.0.0.0", "::1", "::") else host
    audiosocket = AudioSocketServer(hub, config) if config.audiosocket.port is not None else None
    try:
        await hub.start()
        set_aside()
        if audiosocket is not None:
            await audiosocket.start()
        url = f"{'http' if tls is None else 'https'}://{shown}:{port}"
        yield Running(url, hub, None if audiosocket is None else audiosocket.address)
    finally:
        take_back()
        watching.cancel()
        if renewing is not None:
            renewing.cancel()
        if audiosocket is not None:
            await audiosocket.close()
        await hub.close()
        server.should_exit = True
        await serving
        sock.close()
        if recorder is not None:
            await asyncio.to_thread(recorder.close)
        if traces is not None:
            await traces.close()


def _canceller(config: SessionConfig) -> Callable[[], EchoCanceller] | None:
    """What makes a session's echo canceller. Raises ``MissingDependencyError`` now rather than at the first call."""
    if config.echo_canceller == "off":
        return None
    WebRtcEchoCanceller()
    return WebRtcEchoCanceller


def _tls(config: Config) -> TlsFiles | None:
    security = config.security
    if security.tls_certificate is not None:
        return TlsFiles(security.tls_certificate, security.tls_key)
    if security.tls_key is not None:
        raise ConfigError("security.tls_key is set and security.tls_certificate is not. TLS needs both.")
    return None


async def _renew(tls: TlsFiles) -> None:
    while True:
        await asyncio.sleep(RENEW_EVERY_S)
        await asyncio.to_thread(tls.refresh)


def _recorder(config: Config, metrics: Metrics) -> Recorder:
    models = model_facts(config.agent.options)
    return Recorder(config.record, metrics, configuration=config.model_dump(mode="json"), models=models)


def exposed(config: Config) -> list[str]:
    """What somebody should know who lets ``config`` out of this machine."""
    if is_loopback(config.server.host):
        return []
    said = []
    if key_file_of(config) is None:
        said.append("This server listens beyond this machine and asks nobody for a key.")
    if config.security.tls_certificate is None:
        said.append(
            "It speaks plain http: keys and sound can be read on the way, and browsers give a microphone only to https "
            "pages or to localhost. Set --tls-certificate and --tls-key, or put it behind a proxy that speaks https."
        )
    return said


async def serve(config: Config, console: Console) -> None:
    """Runs a server until SIGINT or SIGTERM. Calls may end by themselves then; a second signal ends them at once."""
    farewell = Farewell()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows: KeyboardInterrupt ends the loop instead
            loop.add_signal_handler(number, farewell.ask)
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
        for warning in exposed(config):
            console.print(f"[yellow]{warning}[/yellow]")
        await farewell.asked.wait()
        if server.hub.live and config.server.drain_s > 0:
            console.print(
                f"[dim]Stopping when {server.hub.live} calls have ended, in {config.server.drain_s:g} s at the latest; "
                "a second signal stops at once.[/dim]"
            )
        await drain(server.hub, config.server.drain_s, farewell.at_once)
        console.print("[dim]Stopping: calls are told and ended …[/dim]")


def run(config: Config) -> int:
    """Blocks until the server ends; returns the exit status."""
    logging.getLogger("uvicorn.error").addFilter(RefusalsAreNoFaults())
    for noisy in ("aioice", "aiortc", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    steady_heap()
    # Workers hand results over in the middle of other threads' Python; 5 ms of waiting would be a quarter packet.
    sys.setswitchinterval(0.001)
    with logging_as(config.log, clean=without_secrets):
        if config.log.format == "json":  # a machine reads: what people are told is lines of the log, too
            console = Console(file=cast(IO[str], AsLog(log)), soft_wrap=True)
        else:
            console = Console(stderr=False, soft_wrap=True)
        try:
            asyncio.run(serve(config, console))
        except DuplexError as error:
            if config.log.format == "json":
                log.error("%s", error)
            else:
                console.print(f"[red]{error}[/red]")
            return 1
        except KeyboardInterrupt:
            return 130
    return 0
