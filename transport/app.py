"""The ASGI app all doors share: WebRTC offers, the WebSockets, health, metrics and the page.

Errors leave here in OpenAI's shape, ``{"error": {type, code, message, param}}``. Only pages of our own origin
may open sessions from a browser: no CORS header is sent, and a foreign ``Origin`` is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from duplex.agent import AgentSettings
from duplex.config import Config
from duplex.errors import AgentFullError, InvalidEventError, ProtocolError, TooLargeError, TransportError
from duplex.hub import SessionHub
from duplex.transport.moshi_chat import MoshiDoor
from duplex.transport.realtime import RealtimeCodec, SessionDefaults, read_call_session
from duplex.transport.realtime_decode import parse
from duplex.transport.websocket import serve_websocket

CALLS = "/v1/realtime/calls"
MOSHI = "/api/chat"
NO_STORE = {"Cache-Control": "no-store"}


class CallDoor(Protocol):
    """What the app needs of ``duplex.transport.webrtc.WebRtcDoor``."""

    async def answer(self, offer_sdp: str, settings: AgentSettings) -> tuple[str, str]: ...

    async def hang_up(self, call_id: str) -> bool: ...

    async def close(self) -> None: ...


class RequestError(Exception):
    """An HTTP request that cannot be served: status, machine-readable code and a sentence that helps."""

    def __init__(self, status: HTTPStatus, code: str, message: str, param: str | None = None) -> None:
        self.status, self.code, self.param = status, code, param
        super().__init__(message)


def create_app(
    hub: SessionHub, config: Config, *, static_dir: Path | None = None, door: CallDoor | None = None
) -> FastAPI:
    """The app for ``hub``. It neither starts nor closes the hub; on shutdown it closes its WebRTC door.

    ``static_dir`` is served at ``/``. ``door`` defaults to a ``WebRtcDoor``. Run it under uvicorn with
    ``ws_max_size=config.server.max_event_bytes`` and ``ws_per_message_deflate=False`` (base64 sound does not
    shrink enough to be worth the CPU).
    """

    def defaults() -> SessionDefaults:
        server, info = config.server, hub.agent.info
        return SessionDefaults(
            voices=info.voices, max_text_chars=server.max_text_chars, max_event_bytes=server.max_event_bytes
        )

    if door is None:
        from duplex.transport.webrtc import WebRtcDoor

        door = WebRtcDoor(hub, config, lambda: RealtimeCodec(defaults(), audio_deltas=False))
    calls: CallDoor = door

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await calls.close()

    app = FastAPI(title="duplex", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    _add_error_handlers(app, hub)

    @app.post(CALLS, status_code=HTTPStatus.CREATED)
    async def call(request: Request) -> Response:
        _require_own_origin(request.headers)
        offer, session = await _read_offer(request, config)
        settings = read_call_session(session, defaults()) if session is not None else AgentSettings()
        call_id, answer = await calls.answer(offer, settings)
        headers = {"Location": f"{CALLS}/{call_id}", **NO_STORE}
        return Response(answer, HTTPStatus.CREATED, headers, media_type="application/sdp")

    async def hang_up(call_id: str) -> Response:
        if not await calls.hang_up(call_id):
            raise RequestError(HTTPStatus.NOT_FOUND, "call_not_found", f"There is no call {call_id!r}; it has ended.")
        return Response(status_code=HTTPStatus.NO_CONTENT)

    app.delete(CALLS + "/{call_id}", status_code=HTTPStatus.NO_CONTENT)(hang_up)
    # The official client hangs up this way.
    app.post(CALLS + "/{call_id}/hangup", status_code=HTTPStatus.NO_CONTENT)(hang_up)

    @app.websocket("/v1/realtime")
    async def realtime(websocket: WebSocket) -> None:
        try:
            _require_own_origin(websocket.headers)
            await serve_websocket(websocket, hub, lambda: RealtimeCodec(defaults(), audio_deltas=True))
        except RequestError as error:
            await websocket.send_denial_response(_error(error.status, error.code, str(error)))
        except AgentFullError as error:
            await websocket.send_denial_response(_full(hub, error))

    @app.get("/v1/realtime")
    async def realtime_over_http() -> Response:
        message = "This address speaks WebSocket. To open a WebRTC call, POST an SDP offer to " + CALLS + "."
        return _error(HTTPStatus.UPGRADE_REQUIRED, "upgrade_required", message, headers={"Upgrade": "websocket"})

    moshi = MoshiDoor(hub, config)

    @app.websocket(MOSHI)
    async def moshi_chat(websocket: WebSocket) -> None:
        try:
            _require_own_origin(websocket.headers)
            await moshi.serve(websocket)
        except RequestError as error:
            await websocket.send_denial_response(_error(error.status, error.code, str(error)))

    @app.get(MOSHI)
    async def moshi_chat_over_http() -> Response:
        message = "This address speaks the Moshi protocol over WebSocket."
        return _error(HTTPStatus.UPGRADE_REQUIRED, "upgrade_required", message, headers={"Upgrade": "websocket"})

    @app.api_route("/healthz", methods=["GET", "HEAD"])
    async def healthz() -> Response:
        return JSONResponse({"status": "ok"}, headers=NO_STORE)

    @app.api_route("/readyz", methods=["GET", "HEAD"])
    async def readyz() -> Response:
        ready = {"status": "ready" if hub.ready else "warming up", "sessions": hub.live, "places": hub.max_sessions}
        return JSONResponse(ready, HTTPStatus.OK if hub.ready else HTTPStatus.SERVICE_UNAVAILABLE, NO_STORE)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(hub.metrics.exposition(), headers={**NO_STORE, "Content-Type": CONTENT_TYPE_LATEST})

    if static_dir is not None:
        app.mount("/", _Page(directory=static_dir, html=True), name="page")
    return app


class _Page(StaticFiles):
    """Static files that browsers ask about again each time (ETags make that cheap), so a new release shows at once."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            message = "There is no WebSocket here; it is at /v1/realtime (or /api/chat)."
            refusal = _error(HTTPStatus.NOT_FOUND, "not_found", message)
            await WebSocket(scope, receive, send).send_denial_response(refusal)
            return
        await super().__call__(scope, receive, send)


# --- offers -----------------------------------------------------------------------------------------


async def _read_offer(request: Request, config: Config) -> tuple[str, Any]:
    """The SDP and, from a form, the session object (else None). Sizes are held while reading.

    Raises ``RequestError`` or ``ProtocolError``.
    """
    server = config.server
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/sdp":
        return _sdp(await _read_body(request, server.max_sdp_bytes)), None
    if kind != "multipart/form-data":
        raise RequestError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported_content_type",
            f"Content-Type {kind or '(none)'} is not taken. Send the offer as application/sdp, or as "
            "multipart/form-data with a field sdp and, if you like, a field session with JSON.",
        )
    max_session_bytes = server.max_text_chars * 4 + 16_384  # a text's longest UTF-8, and the rest of the object
    body = await _read_body(request, server.max_sdp_bytes + max_session_bytes)

    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await MultiPartParser(
            request.headers, once(), max_files=2, max_fields=2, max_part_size=len(body)
        ).parse()
    except (MultiPartException, KeyError) as error:
        message = f"The form cannot be read: {getattr(error, 'message', 'it names no boundary')}"
        raise RequestError(HTTPStatus.BAD_REQUEST, "invalid_form", message) from error
    try:
        parts = {name: await part.read() if isinstance(part, UploadFile) else part for name, part in form.items()}
    finally:
        await form.close()
    if "sdp" not in parts:
        raise RequestError(HTTPStatus.BAD_REQUEST, "missing_sdp", "The form needs a field sdp with the offer.", "sdp")
    offer = _sdp(parts["sdp"])
    if len(offer) > server.max_sdp_bytes:
        raise TooLargeError(f"The offer has more than {server.max_sdp_bytes} bytes.", param="sdp")
    return offer, parse(parts["session"], max_session_bytes) if "session" in parts else None


async def _read_body(request: Request, limit: int) -> bytes:
    message = f"The request body has more than {limit} bytes; that is no SDP offer."
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise TooLargeError(message)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TooLargeError(message)
    return bytes(body)


def _sdp(raw: bytes | str) -> str:
    try:
        text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
    except UnicodeDecodeError as error:
        raise InvalidEventError("The offer is not UTF-8 text.", param="sdp", code="invalid_sdp") from error
    if not text.lstrip().startswith("v=0"):
        raise InvalidEventError("An SDP offer begins with v=0; this does not.", param="sdp", code="invalid_sdp")
    return text


def _require_own_origin(headers: Headers) -> None:
    """Browsers name the page's origin on cross-site requests and on every WebSocket; programs name none."""
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
        raise RequestError(
            HTTPStatus.FORBIDDEN,
            "foreign_origin",
            f"Pages of {origin[:200]} may not open sessions here (Host: {headers.get('host', '')[:200]}). "
            "Behind a proxy, have it pass the Host header on.",
        )


# --- errors -----------------------------------------------------------------------------------------


def _add_error_handlers(app: FastAPI, hub: SessionHub) -> None:
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return _error(error.status, error.code, str(error), error.param)

    async def misused(request: Request, error: Exception) -> Response:
        assert isinstance(error, ProtocolError)
        too_large = isinstance(error, TooLargeError)
        status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE if too_large else HTTPStatus.BAD_REQUEST
        return _error(status, error.code, str(error), error.param)

    async def full(request: Request, error: Exception) -> Response:
        assert isinstance(error, AgentFullError)
        return _full(hub, error)

    async def stopping(request: Request, error: Exception) -> Response:
        return _error(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", str(error))

    async def plain(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        status = HTTPStatus(error.status_code)
        message = f"{request.method} {request.url.path}: {error.detail}."
        return _error(status, status.phrase.lower().replace(" ", "_"), message, headers=dict(error.headers or {}))

    async def failed(request: Request, error: Exception) -> Response:
        message = "Something failed here; the server's log says what."
        return _error(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", message)

    handlers: list[tuple[type[Exception], Callable[[Request, Exception], Awaitable[Response]]]] = [
        (RequestError, refused),
        (ProtocolError, misused),
        (AgentFullError, full),
        (TransportError, stopping),
        (HTTPException, plain),
        (Exception, failed),
    ]
    for kind, handler in handlers:
        app.add_exception_handler(kind, handler)


def _full(hub: SessionHub, error: AgentFullError) -> Response:
    hub.metrics.sessions_refused.labels("full" if hub.ready else "warming_up").inc()
    retry_after = {"Retry-After": str(math.ceil(error.retry_after_s))}
    code = "server_full" if hub.ready else "warming_up"
    return _error(HTTPStatus.SERVICE_UNAVAILABLE, code, str(error), headers=retry_after)


def _error(
    status: HTTPStatus, code: str, message: str, param: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    error = {"error": {"type": kind, "code": code, "message": message, "param": param}}
    return Response(json.dumps(error), status, {**NO_STORE, **(headers or {})}, media_type="application/json")
