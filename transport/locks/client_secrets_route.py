"""``POST /v1/realtime/client_secrets``: a client secret for a browser, in OpenAI's shape."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from duplex.agent import AgentSettings
from duplex.config import ServerConfig
from duplex.events import At, SessionStarted, SessionUpdated
from duplex.requests import UpdateSettings
from duplex.transport.event_codec import EventCodec
from duplex.transport.http_errors import NO_STORE
from duplex.transport.locks.caller import current_visit
from duplex.transport.locks.client_secrets import read_request
from duplex.transport.locks.locks import Locks
from duplex.transport.offers import max_session_bytes, read_body
from duplex.transport.realtime_decode import parse

PATH = "/v1/realtime/client_secrets"
_NOWHEN = At(0, 0.0)


def add_client_secrets(
    app: FastAPI, locks: Locks, server: ServerConfig, agent: str, make_codec: Callable[[], EventCodec]
) -> None:
    """Adds the route. ``make_codec``: what a WebSocket's session would speak; it says which sessions can be had."""

    @app.post(PATH)
    async def client_secrets(request: Request) -> Response:
        visit = current_visit()
        limit = max_session_bytes(server)
        body = await read_body(request, limit, "no session configuration")
        asked, lifetime_s = read_request(parse(body, limit) if body.strip() else {})
        session = session_shown(asked, agent, make_codec())
        if visit is not None:
            locks.count_request(visit.caller)
        value, secret = locks.secrets.make(asked, lifetime_s, None if visit is None else visit.caller.key)
        answer = {"value": value, "expires_at": secret.expires_s, "session": session}
        return JSONResponse(answer, headers=NO_STORE)


def session_shown(asked: Mapping[str, Any] | None, agent: str, codec: EventCodec) -> dict[str, Any]:
    """The session that ``asked`` configures, as ``session.updated`` would show it.

    Raises ``ProtocolError``'s kinds: what a call could not be opened with is refused now and not then.
    """
    session_id = f"sess_{uuid.uuid4().hex[:24]}"
    shown = codec.encode(SessionStarted(_NOWHEN, session_id, agent, AgentSettings()))
    if asked is not None:
        request = codec.decode(json.dumps({"type": "session.update", "session": asked}))
        settings = request.settings if isinstance(request, UpdateSettings) else AgentSettings()
        shown = codec.encode(SessionUpdated(_NOWHEN, settings))
    session: dict[str, Any] = shown[0]["session"]
    return session
