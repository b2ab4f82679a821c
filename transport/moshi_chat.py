"""The Moshi door: ``GET /api/chat``, the WebSocket protocol of the stock Moshi server, for any agent.

One connection is one session, as through every other door, and there may be as many as the hub has places. A client
that cannot be served hears why at once: an error message (kind 5), then the close frame. It is accepted first, because
a browser shows nothing of an answer that refuses a WebSocket.

``docs/moshi-protocol.md`` says what is sent, what is read and what the address may ask for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Protocol, cast

from starlette.websockets import WebSocket, WebSocketDisconnect

from duplex.config import Config
from duplex.errors import AgentFullError, DuplexError, InvalidEventError, ProtocolError, TooLargeError
from duplex.frames import Samples
from duplex.hub import SessionHub
from duplex.registry import lookup
from duplex.requests import CommitInput
from duplex.session import Session
from duplex.transport import moshi_chat_wire as wire
from duplex.transport.moshi_chat_line import MAX_MESSAGE_S, MoshiLine, SoundWriter
from duplex.transport.moshi_chat_wire import Control, Kind
from duplex.transport.socket_line import close_websocket, hold_connection

log = logging.getLogger("duplex.moshi_chat")

CODEC = "ogg-opus"
REFUSED, BROKEN, FULL = 1008, 1011, 1013  # RFC 6455, 7.4.1 and its registry: policy, internal error, try again later
BIG_MESSAGE_BYTES = 1024  # some 300 ms: decoded off the event loop. Stock clients send 40 or 80 ms at a time
MAX_MESSAGE_BYTES = 1024 * 1024


class SoundReader(Protocol):
    def feed(self, data: bytes) -> Samples:
        """The sound that the next bytes of the incoming stream complete; raises ``ProtocolError`` for damage."""
        ...


class SoundCodec(Protocol):
    """What the entry point ``ogg-opus`` of ``duplex.codecs`` makes."""

    def reader(self, *, max_feed_s: float) -> SoundReader: ...

    def writer(self) -> SoundWriter: ...


class MoshiDoor:
    """Serves connections for ``hub``. The codec is looked up once, at the first of them."""

    def __init__(self, hub: SessionHub, config: Config) -> None:
        self._hub, self._config = hub, config
        self._codec: SoundCodec | None = None

    async def serve(self, websocket: WebSocket) -> None:
        """Holds one conversation on a connection that is not accepted yet."""
        hub = self._hub
        await websocket.accept()
        try:
            settings = wire.read_query(
                websocket.query_params, hub.agent.info.voices, self._config.server.max_text_chars
            )
            codec = self._sound_codec()
            reservation = hub.reserve()
        except AgentFullError as error:
            hub.metrics.sessions_refused.labels("full" if hub.ready else "warming_up").inc()
            await _refuse(websocket, FULL, str(error))
            return
        except ProtocolError as error:
            await _refuse(websocket, REFUSED, str(error))
            return
        except DuplexError as error:
            log.error("the Moshi door is shut: %s", error)
            await _refuse(websocket, BROKEN, str(error))
            return
        try:
            native = hub.agent.info.native
            line = MoshiLine(
                hub.clock, hub.metrics, codec.writer(), native=native, max_unsent=hub.config.max_unsent_events
            )
            session = hub.open(line, settings, reservation)
            sounds = codec.reader(max_feed_s=MAX_MESSAGE_S)
            reader = _Reader(websocket, line, session, sounds, native=native)
            try:
                await hold_connection(websocket, line, reader=reader.run(), sender=line.run_sender(websocket), log=log)
            finally:
                session.stop("the line closed")  # it may be preparing still, and not look at its line
        finally:
            reservation.release()

    def _sound_codec(self) -> SoundCodec:
        if self._codec is None:
            self._codec = cast(SoundCodec, lookup("duplex.codecs", CODEC)({}))
        return self._codec


class _Reader:
    """What arrives on one connection."""

    def __init__(
        self, websocket: WebSocket, line: MoshiLine, session: Session, reader: SoundReader, *, native: bool
    ) -> None:
        self._websocket, self._line, self._session = websocket, line, session
        self._reader, self._native = reader, native

    async def run(self) -> None:
        """Reads until the far end is gone. From the first moment: a stream's headers come but once."""
        while True:
            await self._line.has_room.wait()
            await self._line.can_hear.wait()
            message = await self._websocket.receive()
            if message["type"] != "websocket.receive":
                return
            if self._line.ending is not None:
                continue
            try:
                await self._handle(message.get("bytes"))
            except DuplexError as error:
                self._line.complain(error)

    async def _handle(self, message: bytes | None) -> None:
        if message is None:
            raise InvalidEventError("Send binary messages: one byte for the kind, then the payload.")
        if len(message) > MAX_MESSAGE_BYTES:
            raise TooLargeError(f"A message has {len(message)} bytes; at most {MAX_MESSAGE_BYTES} are taken.")
        kind, payload = wire.read(message)
        match kind:
            case Kind.AUDIO if len(payload) > BIG_MESSAGE_BYTES:
                self._line.hear(await asyncio.to_thread(self._reader.feed, payload))
            case Kind.AUDIO:
                self._line.hear(self._reader.feed(payload))
            case Kind.HANDSHAKE:
                wire.check_handshake(payload)
            case Kind.CONTROL if payload == bytes([Control.END_TURN]) and not self._native:
                await self._line.drained.wait()  # "this was my turn" means all that was sent before it
                self._session.request(CommitInput())
            case _:
                pass  # nothing a full-duplex server acts on, or a kind of another day


async def _refuse(websocket: WebSocket, code: int, message: str) -> None:
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # it may be gone already
        await websocket.send_bytes(wire.error(message))
    await close_websocket(websocket, code, message)
