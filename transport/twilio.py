"""The Twilio door: calls that come as Twilio Media Streams, over a WebSocket each.

``POST /twilio/voice`` is the address to give a Twilio number: it answers with TwiML that opens the stream. The stream
comes to ``/twilio/media``: µ-law at 8 kHz both ways, marks that say what was played, ``clear`` when the caller talks
over us, keys as they are pressed. The call is over when either side closes the stream; Twilio hangs up then, as nothing
follows in the TwiML.

Twilio understands no errors. What is wrong with a message is logged, naming the field, and the call goes on without
it; what makes a call impossible closes the stream with a code and the reason.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

from fastapi import FastAPI, Request, Response
from starlette.datastructures import Headers
from starlette.websockets import WebSocket

from duplex.agent import AgentSettings
from duplex.config import Config, TwilioConfig
from duplex.errors import AgentFullError, DuplexError, InvalidEventError, ProtocolError, UnsupportedError
from duplex.hub import Reservation, SessionHub
from duplex.registry import lookup
from duplex.requests import PressKey
from duplex.session import Session
from duplex.transport import twilio_wire as wire
from duplex.transport.http_errors import NO_STORE, RequestError, server_full
from duplex.transport.locks.origins import is_own
from duplex.transport.locks.twilio_signature import twilio_signature_valid
from duplex.transport.socket_line import UNUSABLE, close_websocket, hold_connection
from duplex.transport.telephone import TelephoneLine, Wire
from duplex.transport.telephone_edge import Encoding

log = logging.getLogger("duplex.twilio")

VOICE, MEDIA = "/twilio/voice", "/twilio/media"
CODEC = "pcmu"
START_LIMIT_S = 10.0
TRY_AGAIN = 1013  # RFC 6455's registry
MAX_FORM_BYTES = 64 * 1024
MAX_KEYS_WAITING = 32
_HOST = re.compile(r"[A-Za-z0-9._-]{1,255}(:\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:\d{1,5})?")

Verify = Callable[[str, Mapping[str, str], str], bool]
"""(address as Twilio called it, the form's fields, ``X-Twilio-Signature``) to whether that is right."""

OpenSession = Callable[[TelephoneLine, AgentSettings, Reservation], Session]


def add_twilio(
    app: FastAPI,
    hub: SessionHub,
    config: Config,
    *,
    verify: Verify | None = None,
    encoding: Encoding | None = None,
    open_session: OpenSession | None = None,
) -> None:
    """Adds the routes to ``app``.

    ``verify``: who may come in; by default whoever Twilio signed for with ``twilio.auth_token``, and anybody where
    none is set. ``encoding``: µ-law; by default the entry point ``pcmu`` of ``duplex.codecs``, and ``ConfigError`` if
    that is not installed. ``open_session``: by default ``hub.open``.
    """
    verify = verify or _verifier(config.twilio)
    door = TwilioDoor(hub, config, verify, encoding or _ulaw(), open_session or hub.open)

    async def voice(request: Request) -> Response:
        return await door.answer(request)

    app.add_api_route(VOICE, voice, methods=["GET", "POST"])

    @app.websocket(MEDIA)
    async def media(websocket: WebSocket) -> None:
        try:
            await door.serve(websocket)
        except RequestError as error:
            await websocket.send_denial_response(error.response())
        except AgentFullError as error:
            await websocket.send_denial_response(server_full(hub, error))


def _ulaw() -> Encoding:
    law = cast(Any, lookup("duplex.codecs", CODEC)({}))
    return Encoding(CODEC, wire.SAMPLE_RATE_HZ, 1, law.decode, law.encode)


def _verifier(config: TwilioConfig) -> Verify | None:
    if config.auth_token is None:
        return None
    token = config.auth_token.get_secret_value()
    return lambda url, fields, signature: twilio_signature_valid(url, fields, token, signature)


class TwilioDoor:
    def __init__(
        self,
        hub: SessionHub,
        config: Config,
        verify: Verify | None,
        encoding: Encoding,
        open_session: OpenSession,
    ) -> None:
        self.hub, self.config, self.open_session = hub, config, open_session
        self.encoding, self._verify = encoding, verify

    async def answer(self, request: Request) -> Response:
        """A call comes in: TwiML that opens a stream to us, or says that we are busy.

        What the address asks for (``?voice=…``) reaches the stream as its custom parameters, and so do the two
        numbers, as ``caller`` and ``called``.
        """
        fields = await _read_form(request)
        self._check(request.headers, "http", request.url.path, request.url.query, fields)
        try:
            self.hub.reserve().release()
        except AgentFullError:
            self.hub.metrics.sessions_refused.labels("full" if self.hub.ready else "warming_up").inc()
            return _twiml(wire.twiml_busy())
        known = fields or request.query_params
        numbers = {"caller": known.get("From", ""), "called": known.get("To", "")}
        own = {name: value for name, value in request.query_params.items() if name[:1].islower()}
        parameters = {**own, **{name: value for name, value in numbers.items() if value}}
        return _twiml(wire.twiml_stream(self._address(request.headers, "ws") + MEDIA, parameters))

    async def serve(self, websocket: WebSocket) -> None:
        """Holds one call on a connection that is not accepted yet. Raises ``RequestError`` or ``AgentFullError``."""
        if not is_own(websocket.headers):
            raise RequestError(HTTPStatus.FORBIDDEN, "foreign_origin", "Pages may not open telephone streams here.")
        self._check(websocket.headers, "ws", websocket.url.path, websocket.url.query, {})
        reservation = self.hub.reserve()
        try:
            await websocket.accept()
            await _Call(self, websocket, reservation).run()
        finally:
            reservation.release()

    def _check(self, headers: Headers, scheme: str, path: str, query: str, fields: Mapping[str, str]) -> None:
        if self._verify is None:
            return
        address = self._address(headers, scheme) + path + (f"?{query}" if query else "")
        if not self._verify(address, fields, headers.get("x-twilio-signature", "")):
            raise RequestError(
                HTTPStatus.FORBIDDEN,
                "wrong_signature",
                f"X-Twilio-Signature does not fit {address[:200]}. If Twilio knows this server by another address, set "
                "twilio.public_url to that; else check twilio.auth_token.",
            )

    def _address(self, headers: Headers, scheme: str) -> str:
        """Where Twilio finds us. ``scheme``: "http" or "ws"; encrypted, unless the configured address is not."""
        if (configured := self.config.twilio.public_url) is not None:
            parts = urlsplit(configured)
            secure, host, prefix = parts.scheme in ("https", "wss"), parts.netloc, parts.path.rstrip("/")
        else:
            secure, host, prefix = True, headers.get("host", ""), ""  # Twilio opens streams over TLS only
            if not _HOST.fullmatch(host):
                raise RequestError(HTTPStatus.BAD_REQUEST, "invalid_host", "The Host header names no host.", "Host")
        return f"{scheme}{'s' if secure else ''}://{host}{prefix}"


class _Call:
    """One stream: first nobody, then a line and its session."""

    def __init__(self, door: TwilioDoor, websocket: WebSocket, reservation: Reservation) -> None:
        self._door, self._websocket, self._reservation = door, websocket, reservation
        self._sequence = wire.Sequence()
        self._complained: set[str | None] = set()
        self._keys: deque[str] = deque(maxlen=MAX_KEYS_WAITING)
        self._name = "a call"

    async def run(self) -> None:
        try:
            async with asyncio.timeout(START_LIMIT_S):
                start = await self._until_start()
        except TimeoutError:
            await self._refuse(UNUSABLE, f"No start message came within {START_LIMIT_S:g} s.")
            return
        except UnsupportedError as error:
            await self._refuse(UNUSABLE, str(error))
            return
        if start is None:
            return
        self._name = start.call_sid or start.stream_sid
        line = self._line(start)
        voices, longest = self._door.hub.agent.info.voices, self._door.config.server.max_text_chars
        settings, wrong = wire.settings_of(start.parameters, voices, longest)
        for each in wrong:
            self._complain(each)
        try:
            session = self._door.open_session(line, settings, self._reservation)
        except DuplexError as error:
            await self._refuse(TRY_AGAIN, str(error))
            return
        log.info("%s is session %s", self._name, session.id)
        line.greet()
        await hold_connection(
            self._websocket,
            line,
            reader=self._read(line, session),
            sender=line.run_sender(lambda message: self._websocket.send_text(cast(str, message))),
            log=log,
        )
        session.stop("the caller hung up" if line.ending is None else line.ending[1])
        played = line.far_end
        log.info("%s ended; marks: %d lost, %d not ours", self._name, played.marks_lost, played.marks_ignored)

    def _line(self, start: wire.Start) -> TelephoneLine:
        sid, hub = start.stream_sid, self._door.hub
        words = Wire(partial(wire.media, sid), partial(wire.mark, sid), partial(wire.clear, sid))
        return TelephoneLine(
            hub.clock,
            hub.metrics,
            words,
            self._door.encoding,
            name=self._name,
            facts={**start.parameters, "call_sid": start.call_sid, "stream_sid": sid},
            assumed_delay_ms=hub.config.playout.assumed_delay_ms,
            max_unsent=hub.config.max_unsent_events,
        )

    async def _refuse(self, code: int, reason: str) -> None:
        log.warning("refused a Twilio stream: %s", reason)
        await close_websocket(self._websocket, code, reason)

    # --- reading ----------------------------------------------------------------------------------

    async def _next(self) -> wire.Body | None:
        """The next message that makes sense; None once the far end is gone. Raises ``UnsupportedError``."""
        while True:
            message = await self._websocket.receive()
            if message["type"] != "websocket.receive":
                return None
            try:
                if message.get("text") is None:
                    raise InvalidEventError("Messages are JSON in text, not binary.", param="message")
                received = wire.read(message["text"])
                if not self._too_late(received):
                    return received.body
            except UnsupportedError:
                raise
            except ProtocolError as error:
                self._complain(error)

    def _too_late(self, received: wire.Received) -> bool:
        missing, metrics = self._sequence.missing(received.number), self._door.hub.metrics
        if missing > 0:
            metrics.packets_lost.inc(missing)
            what = f"{missing} messages are missing before sequenceNumber {received.number}."
            self._complain(InvalidEventError(what, param="sequenceNumber"))
        elif missing < 0:
            what = f"sequenceNumber {received.number} came too late, or again."
            self._complain(InvalidEventError(what, param="sequenceNumber"))
            if isinstance(received.body, wire.Media):
                metrics.packets_late.inc()
                return True
        return False

    async def _until_start(self) -> wire.Start | None:
        while (body := await self._next()) is not None:
            match body:
                case wire.Start():
                    return body
                case wire.Stop():
                    return None
                case wire.Connected() | wire.Other():
                    pass
                case _:
                    what = f"{type(body).__name__.lower()} came before start, and is not taken."
                    self._complain(InvalidEventError(what, param="event"))
        return None

    async def _read(self, line: TelephoneLine, session: Session) -> None:
        """Reads until the caller is gone."""
        while True:
            await line.has_room.wait()
            try:
                body = await self._next()
            except UnsupportedError as error:  # a second start that asks for something else
                self._complain(error)
                continue
            if body is None or isinstance(body, wire.Stop):
                return
            if line.ending is None:
                self._take(body, line, session)

    def _take(self, body: wire.Body, line: TelephoneLine, session: Session) -> None:
        match body:
            case wire.Media(code=code):
                line.hear(code)
            case wire.Mark(name=name):
                line.returned(name)
            case wire.Dtmf(key=key):
                self._keys.append(key)
            case wire.Start():
                self._complain(InvalidEventError("start came a second time, and is not taken.", param="start"))
            case wire.Other(event=event):
                log.debug("%s: passed over: %s", self._name, event)
            case _:
                pass
        while self._keys and line.started.is_set():  # those pressed before the agent was ready wait for it
            try:
                session.request(PressKey(self._keys.popleft()))
            except ProtocolError as error:
                self._complain(error)

    def _complain(self, error: ProtocolError) -> None:
        """Once a field and call: whoever sends nonsense sends it fifty times a second."""
        if error.param not in self._complained:
            self._complained.add(error.param)
            log.warning("%s: %s (%s)", self._name, error, error.param)


# --- requests ---------------------------------------------------------------------------------------------


async def _read_form(request: Request) -> dict[str, str]:
    """The fields of a POST, as Twilio sends them; none for a GET. Raises ``RequestError``."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            raise RequestError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", f"The form has more than {MAX_FORM_BYTES} bytes."
            )
    try:
        return dict(parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=200))
    except ValueError as error:
        raise RequestError(HTTPStatus.BAD_REQUEST, "invalid_form", f"The form cannot be read: {error}.") from error


def _twiml(document: str) -> Response:
    return Response(document, headers=NO_STORE, media_type="text/xml")
