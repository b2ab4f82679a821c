"""The ASGI middleware in front of every door: origin, key, scope, limits; then the headers of every answer.

What a request needs follows from its path alone (``need_of``), and what is not known to be open is shut: a door that
is added without a word about it here asks for a key of scope "talk".
"""

from __future__ import annotations

from collections.abc import Collection, MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from duplex.transport.http_errors import RequestError
from duplex.transport.locks.caller import Visit, begin_visit
from duplex.transport.locks.locks import Locks
from duplex.transport.locks.origins import cors_headers, is_preflight, preflight_headers, require_welcome
from duplex.transport.locks.page_headers import ANYWHERE

CALLS = "/v1/realtime/calls"
_READS = ("GET", "HEAD")
_LONGEST_WAIT_S = 30.0  # between two messages of a client that sends too much; a hang-up is noticed after it


@dataclass(frozen=True, slots=True)
class Need:
    """``scope`` None: open to all. ``token_may``: a client secret is enough. ``opens_call``: it counts as a call.

    ``own_check``: the door behind it finds out by itself who is calling.
    """

    scope: str | None = None
    token_may: bool = False
    opens_call: bool = False
    own_check: bool = False


OPEN = Need()
OWN_CHECK = Need(own_check=True)
CALL = Need("talk", token_may=True, opens_call=True)


def need_of(kind: str, method: str, path: str, own_keys: Collection[str] = ()) -> Need:
    """What a request needs. ``kind``: "http" or "websocket". ``own_keys``: doors that know their callers themselves."""
    if any(path == door or path.startswith(f"{door}/") for door in own_keys):
        return OWN_CHECK
    if kind == "websocket":
        return CALL
    if path in ("/healthz", "/readyz") and method in _READS:
        return OPEN
    if path == "/metrics":
        return Need("metrics")
    if path == CALLS and method == "POST":
        return CALL
    if path.startswith(f"{CALLS}/"):
        return Need("talk", token_may=True)  # the app looks whose call it is
    if path.startswith(("/v1", "/api")) or method not in _READS:
        return Need("talk")
    return OPEN  # the page and its files, which have to be there before anybody can be asked for a key


class Guard:
    """ASGI middleware. ``own_keys``: paths of doors that check their callers by other means (a signature)."""

    def __init__(self, app: ASGIApp, locks: Locks, own_keys: Collection[str] = ()) -> None:
        self._app, self._locks, self._own_keys = app, locks, own_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        answer = self._with_headers(headers, send)
        try:
            method = scope.get("method", "GET")
            if scope["type"] == "http" and is_preflight(method, headers):
                allowed = preflight_headers(headers, self._locks.origins)
                await Response(status_code=HTTPStatus.NO_CONTENT, headers=allowed)(scope, receive, answer)
                return
            need = need_of(scope["type"], method, scope["path"], self._own_keys)
            visit = self._admit(scope, headers, need, method)
        except RequestError as error:
            await _refuse(scope, receive, answer, error)
            return
        if visit is not None:
            begin_visit(visit)
        if scope["type"] == "websocket":
            await self._serve_websocket(scope, receive, answer, visit)
        else:
            await self._serve_http(scope, receive, answer, visit)

    def _admit(self, scope: Scope, headers: Headers, need: Need, method: str) -> Visit | None:
        """Raises ``RequestError``. None: an open path, of which nothing is counted."""
        if need == OPEN:
            return None
        locks, peer = self._locks, (scope.get("client") or ("unknown", 0))[0]
        if scope["type"] == "websocket" or method not in _READS:
            require_welcome(headers, locks.origins)
        if need.scope is None:
            return locks.visit(locks.vouched_for(headers, peer))
        caller = locks.identify(headers, scope.get("subprotocols", ()), peer)
        locks.require(caller, need.scope, token_may=need.token_may)
        visit = locks.visit(caller)
        if need.opens_call:
            locks.enter(visit)
        return visit

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send, visit: Visit | None) -> None:
        assert visit is not None
        clock, held_until_s = self._locks.clock, 0.0

        async def slowed() -> Message:
            """Reads on once what came before is paid for; meanwhile the network holds the sender back."""
            nonlocal held_until_s
            if held_until_s > clock.now():
                await clock.sleep_until(held_until_s)
            message = await receive()
            if message["type"] == "websocket.receive":
                size = len(message.get("text") or message.get("bytes") or b"")
                wait_s = visit.meter.wait_s(size, now_s := clock.now())
                held_until_s = now_s + min(wait_s, _LONGEST_WAIT_S)
            return message

        try:
            await self._app(scope, slowed, send)
        finally:
            if visit.place is not None:
                visit.place.end()

    async def _serve_http(self, scope: Scope, receive: Receive, send: Send, visit: Visit | None) -> None:
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            # The place of a call that was answered lasts until its session ends, or does not begin in time.
            if visit is not None and visit.place is not None and status != HTTPStatus.CREATED:
                visit.place.end()

    def _with_headers(self, request: Headers, send: Send) -> Send:
        extra = {**ANYWHERE, **cors_headers(request, self._locks.origins)}

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                answer = MutableHeaders(scope=message)
                for name, value in extra.items():
                    if name == "Vary":
                        answer.add_vary_header(value)
                    else:
                        answer.setdefault(name, value)
            await send(message)

        return sending


async def _refuse(scope: Scope, receive: Receive, send: Send, error: RequestError) -> None:
    if scope["type"] == "websocket":
        await WebSocket(scope, receive, send).send_denial_response(error.response())
    else:
        await error.response()(scope, receive, send)
