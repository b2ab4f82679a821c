"""The AudioSocket door: calls from Asterisk's ``AudioSocket()`` application and channel, a TCP connection each.

Theory of operation
-------------------
Asterisk connects and says which call this is (a UUID); sound follows, and its kind says its rate, so the session opens
with the first of it, or soon after without (a muted caller is greeted too). What we send must have that same rate, and
Asterisk passes it on at once: it buffers nothing, drops nothing, and reports nothing. So a packet leaves every 20 ms,
one ahead at most; what was heard is judged by the clock; and a barge-in drops what is here.

There are no keys in this protocol: who may connect is decided by the address. Asterisk can be told nothing but that we
hang up, so errors go to the log, naming the frame, and the call goes on where the stream can still be read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from duplex.agent import AgentSettings
from duplex.config import AudioSocketConfig, Config
from duplex.errors import AgentFullError, ConfigError, InvalidEventError, ProtocolError
from duplex.hub import Reservation, SessionHub
from duplex.requests import PressKey
from duplex.session import Session
from duplex.transport import audiosocket_wire as wire
from duplex.transport.audiosocket_line import AudioSocketLine
from duplex.transport.locks.caller import Network, is_in, networks
from duplex.transport.socket_line import STALL_LIMIT_S
from duplex.transport.telephone import TelephoneLine

log = logging.getLogger("duplex.audiosocket")

READ_BYTES = 16 * 1024
SEND_BUFFER_BYTES = 8 * 1024  # half a second of 8 kHz; the system rounds it up
FIRST_SOUND_LIMIT_S = 1.0
DEFAULT_RATE_HZ = 8_000
GOODBYE_LIMIT_S = 2.0
MAX_KEYS_WAITING = 32
_LOOPBACK = ("127.0.0.0/8", "::1/128")
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # seconds, seconds, times

OpenSession = Callable[[TelephoneLine, AgentSettings, Reservation], Session]


class AudioSocketServer:
    """Listens for Asterisk. ``open_session``: by default ``hub.open``. A far end that reads nothing for
    ``stall_limit_s`` is hung up on.

    ``start`` and ``close`` are for the hub's event loop; ``close`` ends the calls that are left.
    """

    def __init__(
        self,
        hub: SessionHub,
        config: Config,
        *,
        open_session: OpenSession | None = None,
        stall_limit_s: float = STALL_LIMIT_S,
    ) -> None:
        self.hub, self.config, self.stall_limit_s = hub, config.audiosocket, stall_limit_s
        self.open_session = open_session or hub.open
        self._allowed = _callers(self.config)
        self._server: asyncio.Server | None = None
        self._calls: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens: host and port."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    async def start(self) -> None:
        """Listens from now on. Raises ``ConfigError`` that says what to do about a taken port."""
        host, port = self.config.host, self.config.port
        if port is None:
            raise ConfigError("There is no port to listen on for AudioSocket. Set audiosocket.port, as 9019.")
        try:
            self._server = await asyncio.start_server(self._connected, host, port, limit=READ_BYTES)
        except OSError as error:
            raise ConfigError(
                f"Cannot listen for AudioSocket on {host}:{port} ({error.strerror}). "
                "Another server may be running there: stop it, or choose another audiosocket.port."
            ) from error

    async def close(self) -> None:
        """No more calls; those that go on are hung up."""
        if self._server is not None:
            self._server.close()
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        try:
            peer = writer.get_extra_info("peername")
            address = str(peer[0]) if peer else "somebody"
            if not self._may_call(address):
                log.warning("%s may not call. If that is your Asterisk, name it in audiosocket.callers.", address)
            elif len(self._calls) > self.config.max_connections:
                log.warning("refused %s: %d connections are open already.", address, self.config.max_connections)
            else:
                await _Call(self, reader, writer, address).run()
        except asyncio.CancelledError:
            pass  # the server is stopping; streams would log it
        except OSError as error:
            log.info("a connection of AudioSocket broke: %s", error)
        finally:
            self._calls.discard(task)
            writer.close()
            with contextlib.suppress(OSError, TimeoutError, asyncio.CancelledError):
                async with asyncio.timeout(GOODBYE_LIMIT_S):
                    await writer.wait_closed()
            writer.transport.abort()

    def _may_call(self, address: str) -> bool:
        return is_in(address, self._allowed)


def _callers(config: AudioSocketConfig) -> tuple[Network, ...]:
    """Who may call: this machine always."""
    try:
        return networks((*_LOOPBACK, *config.callers))
    except ValueError as error:
        raise ConfigError(
            f"Setting 'audiosocket.callers': {error}. Name addresses or networks, as 192.0.2.7."
        ) from error


class _Call:
    """One connection: first nobody, then a line and its session."""

    def __init__(
        self, server: AudioSocketServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str
    ) -> None:
        self._server, self._reader, self._writer = server, reader, writer
        self._reading = wire.FrameReader()
        self._frames: deque[wire.Frame] = deque()  # read, and not taken yet
        self._held: list[tuple[wire.Frame, wire.Message]] = []  # taken before there was a session
        self._rate_known = False
        self._complained: set[str] = set()
        self._keys: deque[str] = deque(maxlen=MAX_KEYS_WAITING)
        self._name = f"a call from {address}"
        _prepare(writer)

    async def run(self) -> None:
        try:
            line = await self._begin()
        except AgentFullError as error:
            hub = self._server.hub
            hub.metrics.sessions_refused.labels("full" if hub.ready else "warming_up").inc()
            log.warning("%s: %s", self._name, error)
            line = None
        except ProtocolError as error:
            log.warning("refused %s: %s", self._name, error)
            line = None
        if line is None:
            await self._say_goodbye()

    async def _begin(self) -> AudioSocketLine | None:
        """Holds the call, if there is one. Raises ``ProtocolError`` or ``AgentFullError``."""
        limit_s = self._server.config.call_id_limit_s
        try:
            async with asyncio.timeout(limit_s):
                first = await self._next()
        except TimeoutError:
            raise ProtocolError(f"No UUID came within {limit_s:g} s.", code="no_call_id") from None
        if first is None:
            return None
        frame, message = first
        if not isinstance(message, wire.CallId):
            raise ProtocolError(f"The first frame has to be the call's UUID, not {frame}.", code="no_call_id")
        self._name = f"AudioSocket call {message.call_id}"
        reservation = self._server.hub.reserve()
        try:
            rate_hz = await self._rate_hz()
            if rate_hz is None:
                return None
            line = AudioSocketLine(
                self._server.hub.clock,
                self._server.hub.metrics,
                rate_hz,
                name=self._name,
                facts={"call_id": str(message.call_id)},
                max_unsent=self._server.hub.config.max_unsent_events,
                stall_limit_s=self._server.stall_limit_s,
            )
            session = self._server.open_session(line, AgentSettings(), reservation)
        finally:
            reservation.release()
        log.info("%s is session %s", self._name, session.id)
        await self._hold(line, session)
        return line

    async def _rate_hz(self) -> int | None:
        """As the caller's sound has it, once there is some; None if the caller is gone before."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_SOUND_LIMIT_S):
                while (each := await self._next()) is not None and not isinstance(each[1], wire.HangUp):
                    self._held.append(each)
                    if isinstance(each[1], wire.Sound):
                        self._rate_known = True
                        return each[1].rate_hz
                return None
        return DEFAULT_RATE_HZ

    async def _hold(self, line: AudioSocketLine, session: Session) -> None:
        sending = asyncio.create_task(line.run_sender(self._send), name="audiosocket sender")
        reading = asyncio.create_task(self._read(line, session), name="audiosocket reader")
        ending = asyncio.create_task(line.wants_end.wait(), name="audiosocket end")
        tasks: list[asyncio.Task[Any]] = [sending, reading, ending]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if line.ending is not None and not line.closed and not reading.done():
                await asyncio.wait([sending], timeout=GOODBYE_LIMIT_S)
                await self._say_goodbye()
        finally:
            line.closed = True
            session.stop("the caller hung up" if line.ending is None else line.ending[1])
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception) and not isinstance(result, OSError):
                    log.error("%s failed: %s", self._name, result, exc_info=result)
            line.gone.set()
            if line.ending is not None:
                log.info("%s: %s", self._name, line.ending[1])

    # --- writing ----------------------------------------------------------------------------------

    async def _send(self, message: str | bytes) -> None:
        assert isinstance(message, bytes)
        self._writer.write(message)
        await self._writer.drain()

    async def _say_goodbye(self) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(GOODBYE_LIMIT_S):
                await self._send(wire.HANG_UP)

    # --- reading ----------------------------------------------------------------------------------

    async def _next(self) -> tuple[wire.Frame, wire.Message] | None:
        """The next frame that makes sense; None once the far end is gone."""
        while True:
            while self._frames:
                frame = self._frames.popleft()
                try:
                    return frame, wire.read(frame)
                except ProtocolError as error:
                    self._complain(error)
            data = await self._reader.read(READ_BYTES)
            if not data:
                try:
                    self._reading.end()
                except ProtocolError as error:
                    self._complain(error)
                return None
            self._frames.extend(self._reading.feed(data))

    async def _read(self, line: AudioSocketLine, session: Session) -> None:
        """Reads until the caller is gone."""
        for frame, message in self._held:
            self._take(frame, message, line)
        self._held.clear()
        while (each := await self._next()) is not None:
            frame, message = each
            if isinstance(message, wire.HangUp):
                return
            if line.ending is None:
                self._take(frame, message, line)
                while self._keys and line.started.is_set():  # those pressed before the agent was ready wait for it
                    session.request(PressKey(self._keys.popleft()))

    def _take(self, frame: wire.Frame, message: wire.Message, line: AudioSocketLine) -> None:
        match message:
            case wire.Sound(rate_hz=rate_hz, pcm=pcm):
                if rate_hz != line.rate_hz:
                    self._change_rate(frame, rate_hz, line)
                self._rate_known = True
                line.hear(pcm)
            case wire.Key(key=key):
                self._keys.append(key)
            case wire.FarError(code=code):
                what = f"code 0x{code[:16].hex()}" if code else "no code"
                self._complain(InvalidEventError(f"Asterisk reports an error in {frame}: {what}.", code="far_error"))
            case wire.CallId(call_id=call_id):
                what = f"{frame}: a UUID came a second time ({call_id}); the call goes on as the first."
                self._complain(InvalidEventError(what, code="second_call_id"))
            case wire.HangUp():
                pass

    def _change_rate(self, frame: wire.Frame, rate_hz: int, line: AudioSocketLine) -> None:
        """The rate was a guess until the first sound came. After that it should not change, but can be followed."""
        if self._rate_known:
            what = f"{frame}: the sound was at {line.rate_hz} Hz and is now at {rate_hz} Hz; ours follows."
            self._complain(InvalidEventError(what, code="rate_changed"))
        line.change_rate(rate_hz)

    def _complain(self, error: ProtocolError) -> None:
        """The same fault once a call: whoever sends nonsense sends it fifty times a second."""
        if error.code not in self._complained:
            self._complained.add(error.code)
            log.warning("%s: %s (%s)", self._name, error, error.code)


def _prepare(writer: asyncio.StreamWriter) -> None:
    """So that a far end that stops reading, or is gone without a word, shows within seconds."""
    writer.transport.set_write_buffer_limits(0)
    sock = writer.get_extra_info("socket")
    if sock is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if (option := getattr(socket, name, None)) is not None:  # not on every system
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
