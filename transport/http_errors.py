"""Refusals over HTTP, in OpenAI's shape: ``{"error": {type, code, message, param}}``."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from duplex.errors import AgentFullError, LimitError, ProtocolError, TooLargeError, TransportError
from duplex.hub import SessionHub

NO_STORE = {"Cache-Control": "no-store"}


class RequestError(Exception):
    """An HTTP request that cannot be served: status, machine-readable code and a sentence that helps."""

    def __init__(
        self,
        status: HTTPStatus,
        code: str,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status, self.code, self.param = status, code, param
        self.headers = dict(headers or {})
        super().__init__(message)

    def response(self) -> Response:
        return error_response(self.status, self.code, str(self), self.param, self.headers)


def too_many(error: LimitError) -> RequestError:
    """429 with ``Retry-After``, at least a second."""
    retry_after_s = max(1, math.ceil(min(error.retry_after_s, 3600.0)))
    headers = {"Retry-After": str(retry_after_s)}
    return RequestError(HTTPStatus.TOO_MANY_REQUESTS, "rate_limit_exceeded", str(error), headers=headers)


def server_full(hub: SessionHub, error: AgentFullError) -> Response:
    hub.metrics.sessions_refused.labels("full" if hub.ready else "warming_up").inc()
    retry_after = {"Retry-After": str(math.ceil(error.retry_after_s))}
    code = "server_full" if hub.ready else "warming_up"
    return error_response(HTTPStatus.SERVICE_UNAVAILABLE, code, str(error), headers=retry_after)


def error_response(
    status: HTTPStatus, code: str, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    kind = "invalid_request_error"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        kind = "server_error"
    elif status == HTTPStatus.TOO_MANY_REQUESTS:
        kind = "rate_limit_error"
    error = {"error": {"type": kind, "code": code, "message": message, "param": param}}
    return Response(json.dumps(error), status, {**NO_STORE, **(headers or {})}, media_type="application/json")


def add_error_handlers(app: FastAPI, hub: SessionHub) -> None:
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return error.response()

    async def limited(request: Request, error: Exception) -> Response:
        assert isinstance(error, LimitError)
        return too_many(error).response()

    async def misused(request: Request, error: Exception) -> Response:
        assert isinstance(error, ProtocolError)
        too_large = isinstance(error, TooLargeError)
        status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE if too_large else HTTPStatus.BAD_REQUEST
        return error_response(status, error.code, str(error), error.param)

    async def full(request: Request, error: Exception) -> Response:
        assert isinstance(error, AgentFullError)
        return server_full(hub, error)

    async def stopping(request: Request, error: Exception) -> Response:
        return error_response(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", str(error))

    async def plain(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        status = HTTPStatus(error.status_code)
        message = f"{request.method[:40]} {request.url.path[:200]}: {error.detail}."
        code = status.phrase.lower().replace(" ", "_")
        return error_response(status, code, message, headers=dict(error.headers or {}))

    async def failed(request: Request, error: Exception) -> Response:
        message = "Something failed here; the server's log says what."
        return error_response(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", message)

    handlers: list[tuple[type[Exception], Callable[[Request, Exception], Awaitable[Response]]]] = [
        (RequestError, refused),
        (LimitError, limited),
        (ProtocolError, misused),
        (AgentFullError, full),
        (TransportError, stopping),
        (HTTPException, plain),
        (Exception, failed),
    ]
    for kind, handler in handlers:
        app.add_exception_handler(kind, handler)
