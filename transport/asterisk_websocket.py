"""The Asterisk door: calls through ``chan_websocket``, a WebSocket each, at ``/asterisk/media``.

Asterisk connects when a call's dial plan says ``Dial(WebSocket/…)``, says in which format its sound is, and sends and
plays it from then on. The address may ask for things (``v(…)`` in the dial string): ``voice``, ``instructions``,
``answer=yes``; everything in it is known to a bot as the call's facts.

Asterisk can be told of no errors. What is wrong with a message is logged, naming the field, and the call goes on
without it; what makes a call impossible closes the WebSocket with the reason, and Asterisk hangs up. A server that is
full refuses the connection, so that the dial plan can go on with something else. ``docs/telephony.md`` has the rest.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from fastapi import FastAPI
from starlette.websockets import WebSocket

from duplex.agent import AgentSettings
from duplex.config import Config
from duplex.errors import AgentFullError, DuplexError, InvalidEventError, ProtocolError
from duplex.hub import Reservation, SessionHub
from duplex.registry import lookup
from duplex.requests import PressKey
from duplex.session import Session
from duplex.transport import asterisk_websocket_wire as wire
from duplex.transport.asterisk_websocket_line import AsteriskLine
from duplex.transport.asterisk_websocket_wire import ControlFormat, MediaStart
from duplex.transport.http_errors import server_full
from duplex.transport.socket_line import UNUSABLE, close_websocket, hold_connection
from duplex.transport.telephone import Message, TelephoneLine
from duplex.transport.telephone_edge import Encoding, linear16
from duplex.transport.twilio_wire import settings_of

log = logging.getLogger("duplex.asterisk")

MEDIA = "/asterisk/media"
SUBPROTOCOL = "media"
LAWS = {"ulaw": "pcmu", "alaw": "pcma"}  # Asterisk's name to the entry point's
START_LIMIT_S = 5.0
MAX_KEYS_WAITING = 32
MAX_FACTS, MAX_FACT_CHARS = 64, 512

OpenSession = Callable[[TelephoneLine, AgentSettings, Reservation], Session]


def add_asterisk(app: FastAPI, hub: SessionHub, config: Config, *, open_session: OpenSession | None = None) -> None:
    """Adds the route to ``app``. ``open_session``: by default ``hub.open``.

    G.711 is found by the entry points ``pcmu`` and ``pcma`` of ``duplex.codecs``, at the first call that uses it.
    """
    door = AsteriskDoor(hub, config, open_session or hub.open)

    @app.websocket(MEDIA)
    async def media(websocket: WebSocket) -> None:
        try:
            await door.serve(websocket)
        except AgentFullError as error:
            await websocket.send_denial_response(server_full(hub, error))


class AsteriskDoor:
    def __init__(self, hub: SessionHub, config: Config, open_session: OpenSession) -> None:
        self.hub, self.config, self.open_session = hub, config, open_session
        self._laws: dict[str, Encoding] = {}

    async def serve(self, websocket: WebSocket) -> None:
        """Holds one call on a connection that is not accepted yet. Raises ``AgentFullError`` before accepting."""
        reservation = self.hub.reserve()
        try:
            offered: list[str] = websocket.scope.get("subprotocols", [])
            await websocket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in offered else None)
            await _Call(self, websocket, reservation).run()
        finally:
            reservation.release()

    def encoding(self, media_format: str) -> Encoding:
        """``media_format``: one of ``wire.RATES_HZ``."""
        if media_format not in LAWS:
            return linear16(wire.RATES_HZ[media_format])
        if media_format not in self._laws:
            codec = cast(Any, lookup("duplex.codecs", LAWS[media_format])({}))
            rate_hz = wire.RATES_HZ[media_format]
            self._laws[media_format] = Encoding(media_format, rate_hz, 1, codec.decode, codec.encode)
        return self._laws[media_format]


class _Call:
    """One connection: first nobody, then a line and its session."""

    def __init__(self, door: AsteriskDoor, websocket: WebSocket, reservation: Reservation) -> None:
        self._door, self._websocket, self._reservation = door, websocket, reservation
        self._complained: set[str] = set()
        self._keys: deque[str] = deque(maxlen=MAX_KEYS_WAITING)
        self._name = "an Asterisk call"

    async def run(self) -> None:
        try:
            async with asyncio.timeout(START_LIMIT_S):
                first = await self._until_start()
        except TimeoutError:
            await self._refuse(f"No MEDIA_START came within {START_LIMIT_S:g} s.")
            return
        except ProtocolError as error:
            await self._refuse(str(error))
            return
        if first is None:
            return
        start, control = first
        try:
            line = self._line(start, control)
        except DuplexError as error:  # the codec of this call is not there
            await self._refuse(str(error))
            return
        self._name = line.name
        session = self._door.open_session(line, self._settings(line.facts), self._reservation)
        log.info("%s (%s, %s) is session %s", self._name, start.channel, start.media_format, session.id)
        line.greet()
        await hold_connection(
            self._websocket, line, reader=self._read(line, session), sender=line.run_sender(self._send), log=log
        )
        session.stop("the caller hung up" if line.ending is None else line.ending[1])
        marks = line.far_end
        log.info("%s ended; marks: %d lost, %d not ours", self._name, marks.marks_lost, marks.marks_ignored)

    def _line(self, start: MediaStart, control: ControlFormat) -> AsteriskLine:
        hub, query = self._door.hub, self._websocket.query_params
        return AsteriskLine(
            hub.clock,
            hub.metrics,
            start,
            control,
            self._door.encoding(start.media_format),
            answer=query.get("answer") == "yes",
            facts=_facts(start, query),
            assumed_delay_ms=hub.config.playout.assumed_delay_ms,
            max_unsent=hub.config.max_unsent_events,
        )

    def _settings(self, facts: Mapping[str, str]) -> AgentSettings:
        hub, server = self._door.hub, self._door.config.server
        settings, wrong = settings_of(facts, hub.agent.info.voices, server.max_text_chars)
        for error in wrong:
            self._complain(error)
        return settings

    async def _refuse(self, reason: str) -> None:
        log.warning("refused %s: %s", self._name, reason)
        await close_websocket(self._websocket, UNUSABLE, reason)

    def _send(self, message: Message) -> Awaitable[None]:
        if isinstance(message, bytes):
            return self._websocket.send_bytes(message)
        return self._websocket.send_text(message)

    # --- reading ----------------------------------------------------------------------------------

    async def _until_start(self) -> tuple[MediaStart, ControlFormat] | None:
        """What the call is like; None if the far end went away. Raises ``ProtocolError`` where it cannot be held."""
        while True:
            message = await self._websocket.receive()
            if message["type"] != "websocket.receive":
                return None
            if message.get("text") is None:
                raise InvalidEventError("Sound came before MEDIA_START, which says in which format it is.")
            event, control = wire.read(message["text"])
            if isinstance(event, MediaStart):
                wire.check_media(event)
                return event, control
            self._complain(InvalidEventError(f"{type(event).__name__} came before MEDIA_START, and is not taken."))

    async def _read(self, line: AsteriskLine, session: Session) -> None:
        """Reads until the caller is gone; always, since nothing that comes makes us answer, and XON may be among it."""
        while True:
            message = await self._websocket.receive()
            if message["type"] != "websocket.receive":
                return
            if line.ending is not None:
                continue
            if (code := message.get("bytes")) is not None:
                line.hear(code)
            else:
                try:
                    self._take(wire.read(message["text"])[0], line)
                except ProtocolError as error:
                    self._complain(error)
            while self._keys and line.started.is_set():  # those pressed before the agent was ready wait for it
                session.request(PressKey(self._keys.popleft()))

    def _take(self, event: wire.Event, line: AsteriskLine) -> None:
        match event:
            case wire.MarkProcessed(correlation_id=name):
                line.returned(name)
            case wire.Status():
                line.status()
            case wire.KeyPressed(key=key):
                self._keys.append(key)
            case wire.Xoff() | wire.Xon():
                log.info("%s: %s", self._name, type(event).__name__)
                line.hold_back(isinstance(event, wire.Xoff))
            case wire.FarError(text=text):
                raise InvalidEventError(f"Asterisk says: {text[:200]}")
            case MediaStart(media_format=media_format):
                raise InvalidEventError(
                    f"MEDIA_START came a second time (format {media_format[:40]!r}); the call goes on as it began.",
                    param="format",
                )
            case _:
                log.debug("%s: %s", self._name, event)  # nothing that we asked for

    def _complain(self, error: ProtocolError) -> None:
        """The same words once a call: whoever sends nonsense sends it fifty times a second."""
        if str(error) not in self._complained and len(self._complained) < 100:
            self._complained.add(str(error))
            log.warning("%s: %s (%s)", self._name, error, error.param or error.code)


def _facts(start: MediaStart, query: Mapping[str, str]) -> dict[str, str]:
    """What the address says of the call, and what Asterisk does."""
    said = [(name, value) for name, value in query.items() if len(name) + len(value) <= MAX_FACT_CHARS]
    return {**dict(said[:MAX_FACTS]), "channel": start.channel, "channel_id": start.channel_id}
