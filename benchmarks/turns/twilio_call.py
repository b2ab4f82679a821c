"""A call as it comes from a telephone through Twilio Media Streams: µ-law at 8 kHz both ways, and no events.

This side plays Twilio. It sends 20 ms of the caller every 20 ms; it keeps what it is sent in a buffer and plays 20 ms
of it on the same beat; a mark comes back when the sound before it has been played, all of them on ``clear``. Since a
telephone tells nothing but sound, what scenarios ask of events cannot be asked: those that put a text into the
conversation are not run, and "settled" is what can be heard.

Message formats: twilio.com/docs/voice/media-streams/websocket-messages.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from duplex.benchmarks.turns.trials import CannotRunError
from duplex.clock import Clock, MonotonicClock
from duplex.codecs import g711
from duplex.errors import TransportError
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Samples
from duplex.rates import PacketResampler, StreamResampler
from duplex.recording import AUDIBLE_DBFS, WireStats, level_dbfs
from duplex.transport.client_address import address, is_loopback, no_answer, no_server, refusal
from duplex.transport.client_call import CallBase, CallSettings
from duplex.transport.client_script import PACKET_S

MEDIA_PATH = "/twilio/media"
STREAM, CALL = "MZ" + "0" * 32, "CA" + "0" * 32
PACKET_BYTES = 160
MAX_BUFFERED_S = 60.0
_QUIET = b"\xff"
_FORMAT = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}


class Gateway:
    """Twilio's buffer: takes the server's messages, gives 20 ms of sound at a time and the marks that are due.

    Pure: no clock and no socket. Sound is µ-law bytes. What is being played when a ``clear`` comes is played on.
    """

    def __init__(self) -> None:
        self._buffer: deque[bytes | str] = deque()
        self._played: list[str] = []  # marks behind the packet that is being played
        self._returned: list[str] = []
        self.buffered_bytes = 0

    def arrive(self, message: Mapping[str, Any]) -> None:
        """One message of the server's. Raises ``TransportError`` for more sound than anybody would keep."""
        match message:
            case {"event": "media", "media": {"payload": str(payload)}}:
                code = base64.b64decode(payload, validate=True)
                self._buffer.append(code)
                self.buffered_bytes += len(code)
                if self.buffered_bytes > MAX_BUFFERED_S / PACKET_S * PACKET_BYTES:
                    raise TransportError(f"the server sent more than {MAX_BUFFERED_S:g} s ahead of what can be heard")
            case {"event": "mark", "mark": {"name": str(name)}}:
                self._buffer.append(name)
            case {"event": "clear"}:
                self._returned += self._played + [each for each in self._buffer if isinstance(each, str)]
                self._played = []
                self._buffer.clear()
                self.buffered_bytes = 0

    def play(self) -> bytes:
        """The next 20 ms: 160 bytes, silence where there is nothing. Called on the beat."""
        self._returned += self._played
        self._played = []
        code = b""
        while self._buffer and (isinstance(self._buffer[0], str) or len(code) < PACKET_BYTES):
            head = self._buffer.popleft()
            if isinstance(head, str):
                self._played.append(head)
            else:
                code += head
                self.buffered_bytes -= len(head)
        if len(code) > PACKET_BYTES:
            self._buffer.appendleft(code[PACKET_BYTES:])
            self.buffered_bytes += len(code) - PACKET_BYTES
        return code[:PACKET_BYTES].ljust(PACKET_BYTES, _QUIET)

    def marks(self) -> list[str]:
        """Those to be returned now; each is given once."""
        returned, self._returned = self._returned, []
        return returned


class TwilioCall(CallBase):
    """One call. Made by :meth:`connect`. ``events`` stays empty."""

    def __init__(self, settings: CallSettings, clock: Clock) -> None:
        super().__init__(settings, clock, None)
        link = settings.link
        if link is not None and (link.loss or link.jitter_ms or link.reorder or link.skew_ppm or link.echo):
            raise CannotRunError("A bad line or an echo is not simulated on the telephone's door.")
        if settings.turn_taking is not None:
            raise CannotRunError("A telephone cannot ask for turn-taking options. Set them at the server.")
        self._to_line = PacketResampler(SAMPLE_RATE_HZ, g711.RATE_HZ, PACKET_SAMPLES)
        self._gateway = Gateway()
        self._heard_code: list[bytes] = []
        self._audible: int | None = None  # the last packet played that was
        self._number = 0
        self.url = ""

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, url: str, settings: CallSettings | None = None, *, clock: Clock | None = None
    ) -> AsyncIterator[TwilioCall]:
        """Calls the server at ``url`` (``http://host:port`` or the full path) and hangs up at the end.

        Raises ``TransportError`` if there is no server or it refuses, ``AgentFullError`` if it is full.
        """
        call = cls(settings or CallSettings(), clock or MonotonicClock())
        began_s = call._clock.now()
        socket = await call._open(url)
        tasks: list[asyncio.Task[None]] = []
        try:
            await call._begin(socket)
            call.connected_in_s = call._clock.now() - began_s
            call._script.start()
            tasks = [asyncio.create_task(work(socket)) for work in (call._read, call._beat)]
            yield call
        finally:
            call._end("this side hung up")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await socket.close()

    async def _open(self, url: str) -> ClientConnection:
        target = address(url, MEDIA_PATH, ("http", "https", "ws", "wss"))
        self.url = target.replace("http", "ws", 1)
        timeout_s = self._settings.connect_timeout_s
        try:
            return await connect(
                self.url, compression=None, proxy=None if is_loopback(target) else True, open_timeout=timeout_s
            )
        except InvalidStatus as error:
            answer = error.response
            retry_after = answer.headers.get("Retry-After")
            body = bytes(answer.body or b"")
            raise refusal(self.url, answer.status_code, retry_after, body, answer.reason_phrase) from error
        except TimeoutError as error:
            raise no_answer(target, timeout_s) from error
        except OSError as error:
            raise no_server(target) from error
        except InvalidHandshake as error:
            raise TransportError(f"{self.url} is no WebSocket: {error}.") from error

    async def _begin(self, socket: ClientConnection) -> None:
        parameters = {} if self._settings.instructions is None else {"instructions": self._settings.instructions}
        start = {"accountSid": "AC" + "0" * 32, "streamSid": STREAM, "callSid": CALL, "tracks": ["inbound"]}
        await socket.send(json.dumps({"event": "connected", "protocol": "Call", "version": "1.0.0"}))
        more = {"mediaFormat": _FORMAT, "customParameters": parameters}
        await socket.send(self._message("start", {**start, **more}))

    # --- what the carrier brings -------------------------------------------------------------------

    @property
    def last_audible_ms(self) -> float | None:
        return None if self._audible is None else (self._audible + 2) * PACKET_S * 1000.0

    def send(self, event: Mapping[str, Any]) -> None:
        self._check_open()
        if event.get("type") == "response.cancel":
            raise TransportError("The reply went on for long, and who telephones cannot cancel it.")
        raise CannotRunError("A telephone can say something to the agent, but cannot write to it.")

    async def outage(self, duration_s: float) -> None:
        raise NotImplementedError("A call is over with its stream, so there is nothing to reconnect to.")

    async def wait_settled(self, after_ms: float, *, answer_timeout_s: float, quiet_ms: float = 800.0) -> bool:
        """As it can be heard: the agent was audible after ``after_ms``, and then silent for ``quiet_ms``.

        Replies have pauses, so the end of one is taken for certain only after twice that.
        """
        while True:
            self._check_open()
            audible_ms = self.last_audible_ms
            answered = audible_ms is not None and audible_ms > after_ms
            if audible_ms is not None and answered and self.now_ms - audible_ms >= 2.0 * quiet_ms:
                return True
            if not answered and self.now_ms - after_ms > answer_timeout_s * 1000.0:
                return False
            await asyncio.sleep(2 * PACKET_S)

    def _heard(self, n_samples: int) -> tuple[Samples, WireStats]:
        """Packet k begins to play when the caller's packet k leaves, and is heard during the next 20 ms."""
        up = StreamResampler(g711.RATE_HZ, SAMPLE_RATE_HZ)
        code = _QUIET * PACKET_BYTES + b"".join(self._heard_code)
        sound = np.concatenate([up.push(g711.decode_ulaw(code)), up.end()])[:n_samples]
        return np.pad(sound, (0, n_samples - len(sound))), WireStats(received=len(self._heard_code))

    # --- moving bytes ------------------------------------------------------------------------------

    async def _beat(self, socket: ClientConnection) -> None:
        """Every 20 ms: a packet of the caller's leaves, and one of the agent's is played."""
        script = self._script
        try:
            while self._ended is None and not script.full:
                await self._clock.sleep_until(script.due_s)
                code = g711.encode_ulaw(self._to_line.push(script.take()))
                await socket.send(self._message("media", {"payload": base64.b64encode(code).decode("ascii")}))
                self._hear(self._gateway.play())
                for name in self._gateway.marks():
                    await socket.send(self._message("mark", {"name": name}))
        except ConnectionClosed:
            pass  # the reader says why
        script.end()

    def _hear(self, code: bytes) -> None:
        self._heard_code.append(code)
        if level_dbfs(g711.decode_ulaw(code)) >= AUDIBLE_DBFS:
            self._audible = len(self._heard_code) - 1

    async def _read(self, socket: ClientConnection) -> None:
        try:
            async for message in socket:
                self._gateway.arrive(json.loads(message))
            reason = socket.close_reason
        except ConnectionClosed as error:
            reason = str(error)
        except (ValueError, TransportError) as error:
            reason = str(error)
        self._end(f"the server closed the call{f' ({reason})' if reason else ''}")

    def _message(self, event: str, body: Mapping[str, Any]) -> str:
        self._number += 1
        message = {"event": event, "sequenceNumber": str(self._number), event: body, "streamSid": STREAM}
        if event == "media":
            message[event] = {"track": "inbound", "chunk": str(self._number), **body}
        return json.dumps(message, separators=(",", ":"))
