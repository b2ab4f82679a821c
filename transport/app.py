"""The ASGI app all doors share: WebRTC offers, the WebSockets, health, metrics and the page.

Who may come in is decided in front of it (:mod:`duplex.transport.locks.guard`); what an offer may hold is read in
:mod:`duplex.transport.offers`; how a refusal looks is said in :mod:`duplex.transport.http_errors`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from duplex.agent import AgentSettings
from duplex.config import Config
from duplex.errors import AgentFullError, ConfigError
from duplex.hub import SessionHub
from duplex.transport.event_codec import EventCodec
from duplex.transport.http_errors import NO_STORE, RequestError, add_error_handlers, error_response, server_full
from duplex.transport.ice_servers import add_ice_servers
from duplex.transport.locks.caller import Caller, current_visit
from duplex.transport.locks.client_secrets import merged
from duplex.transport.locks.client_secrets_route import add_client_secrets
from duplex.transport.locks.guard import CALLS, Guard
from duplex.transport.locks.locks import Locks
from duplex.transport.locks.metered_codec import MeteredCodec
from duplex.transport.locks.page_headers import PAGE
from duplex.transport.locks.primed import primed
from duplex.transport.moshi_chat import MoshiDoor
from duplex.transport.offers import read_offer_request
from duplex.transport.realtime import RealtimeCodec, SessionDefaults, read_call_session
from duplex.transport.resume import Resumption, new_token, read_move
from duplex.transport.websocket import serve_websocket

MOSHI = "/api/chat"


class CallDoor(Protocol):
    """What the app needs of ``duplex.transport.webrtc.WebRtcDoor``."""

    async def answer(self, offer_sdp: str, settings: AgentSettings) -> tuple[str, str]: ...

    async def move(self, call_id: str, offer_sdp: str, token: str, last_event: int) -> str | None: ...

    async def hang_up(self, call_id: str) -> bool: ...

    async def close(self) -> None: ...


def create_app(
    hub: SessionHub,
    config: Config,
    *,
    static_dir: Path | None = None,
    door: CallDoor | None = None,
    locks: Locks | None = None,
) -> FastAPI:
    """The app for ``hub``. It neither starts nor closes the hub; on shutdown it closes its WebRTC door.

    ``static_dir`` is served at ``/``. ``door`` defaults to a ``WebRtcDoor``, ``locks`` to what ``config`` says. Run it
    under uvicorn with ``ws_max_size=config.server.max_event_bytes``, ``ws_per_message_deflate=False`` (base64 sound
    does not shrink enough to be worth the CPU) and ``proxy_headers=False`` (the locks know which proxies to believe).
    """
    locks = locks or Locks(config, hub.clock, hub.metrics)

    def defaults() -> SessionDefaults:
        server, info = config.server, hub.agent.info
        return SessionDefaults(
            voices=info.voices,
            max_text_chars=server.max_text_chars,
            max_event_bytes=server.max_event_bytes,
            native=info.native,
            takes_images=info.takes_images,
        )

    def token() -> str | None:
        return new_token() if config.session.resume_s > 0 else None

    def call_codec() -> EventCodec:
        codec, visit = RealtimeCodec(defaults(), audio_deltas=False, resume_token=token()), current_visit()
        return codec if visit is None else MeteredCodec(codec, visit, hub.clock.now)

    def socket_codec() -> RealtimeCodec:
        return RealtimeCodec(defaults(), audio_deltas=True, resume_token=token())

    if door is None:
        from duplex.transport.webrtc import WebRtcDoor

        door = WebRtcDoor(hub, config, call_codec)
    calls: CallDoor = door
    resumption = Resumption(hub)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await calls.close()

    app = FastAPI(title="duplex", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    add_error_handlers(app, hub)
    app.add_middleware(Guard, locks=locks, own_keys=_signed_doors(config, locks))

    @app.post(CALLS, status_code=HTTPStatus.CREATED)
    async def call(request: Request) -> Response:
        caller = _caller()
        offer, asked = await read_offer_request(request, config.server)
        session = merged(caller.session, asked)
        settings = read_call_session(session, defaults()) if session is not None else AgentSettings()
        call_id, answer = await calls.answer(offer, settings)
        locks.opened(call_id, caller)
        headers = {"Location": f"{CALLS}/{call_id}", **NO_STORE}
        return Response(answer, HTTPStatus.CREATED, headers, media_type="application/sdp")

    @app.patch(CALLS + "/{call_id}")
    async def move(call_id: str, request: Request) -> Response:
        offer, asked = await read_offer_request(request, config.server)
        token, last_event = read_move(asked)
        answer = await calls.move(call_id, offer, token, last_event) if locks.may_end(call_id, _caller()) else None
        if answer is None:
            raise _no_call(call_id)
        return Response(answer, HTTPStatus.OK, NO_STORE, media_type="application/sdp")

    async def hang_up(call_id: str) -> Response:
        if not locks.may_end(call_id, _caller()) or not await calls.hang_up(call_id):
            raise _no_call(call_id)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    app.delete(CALLS + "/{call_id}", status_code=HTTPStatus.NO_CONTENT)(hang_up)
    # The official client hangs up this way.
    app.post(CALLS + "/{call_id}/hangup", status_code=HTTPStatus.NO_CONTENT)(hang_up)

    @app.websocket("/v1/realtime")
    async def realtime(websocket: WebSocket) -> None:
        try:
            secret_session = None if "resume" in websocket.query_params else _caller().session
            await serve_websocket(primed(websocket, secret_session), hub, socket_codec, resumption)
        except AgentFullError as error:
            await websocket.send_denial_response(server_full(hub, error))

    @app.get("/v1/realtime")
    async def realtime_over_http() -> Response:
        return _websocket_only("This address speaks WebSocket. To open a WebRTC call, POST an SDP offer to " + CALLS)

    add_ice_servers(app, config)
    add_client_secrets(app, locks, config.server, hub.agent.info.name, socket_codec)
    moshi = MoshiDoor(hub, config)
    app.websocket(MOSHI)(moshi.serve)
    if "twilio" in config.server.doors:
        from duplex.transport.twilio import add_twilio

        add_twilio(app, hub, config)
    if "asterisk" in config.server.doors:
        from duplex.transport.asterisk_websocket import add_asterisk

        add_asterisk(app, hub, config)

    @app.get(MOSHI)
    async def moshi_chat_over_http() -> Response:
        return _websocket_only("This address speaks the Moshi protocol over WebSocket")

    @app.api_route("/healthz", methods=["GET", "HEAD"])
    async def healthz() -> Response:
        return JSONResponse({"status": "ok"}, headers=NO_STORE)

    @app.api_route("/readyz", methods=["GET", "HEAD"])
    async def readyz() -> Response:
        status = "ready" if hub.ready else "draining" if hub.draining else "warming up"
        ready = {"status": status, "sessions": hub.live, "places": hub.max_sessions}
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
        response.headers.update({**PAGE, "Cache-Control": "no-cache"})
        return response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            message = "There is no WebSocket here; it is at /v1/realtime (or /api/chat)."
            refusal = error_response(HTTPStatus.NOT_FOUND, "not_found", message)
            await WebSocket(scope, receive, send).send_denial_response(refusal)
            return
        await super().__call__(scope, receive, send)


def _signed_doors(config: Config, locks: Locks) -> tuple[str, ...]:
    """The doors that need no key because they check a signature. Raises ``ConfigError`` for one that cannot."""
    if "twilio" not in config.server.doors or locks.keys is None:
        return ()
    if config.twilio.auth_token is None:
        raise ConfigError(
            "This server asks for keys, which Twilio cannot send. Set twilio.auth_token to the account's, so that "
            "Twilio's signature is checked instead; the environment's name for it is DUPLEX_TWILIO__AUTH_TOKEN."
        )
    return ("/twilio",)


def _no_call(call_id: str) -> RequestError:
    return RequestError(HTTPStatus.NOT_FOUND, "call_not_found", f"There is no call {call_id!r}; it has ended.")


def _caller() -> Caller:
    visit = current_visit()
    return visit.caller if visit is not None else Caller("unknown")


def _websocket_only(message: str) -> Response:
    headers = {"Upgrade": "websocket"}
    return error_response(HTTPStatus.UPGRADE_REQUIRED, "upgrade_required", f"{message}.", headers=headers)
