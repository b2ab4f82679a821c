"""A WebSocket whose client seems to begin with ``session.update``: how a client secret's session reaches a call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.types import Message
from starlette.websockets import WebSocket


def primed(websocket: WebSocket, session: Mapping[str, Any] | None) -> WebSocket:
    """``websocket`` itself without a ``session``; else one that reads the update first, then what the client sends.

    So the session is read by the same table, and answered by the same ``session.updated``, as any other.
    """
    if session is None:
        return websocket
    connected = False
    waiting: list[Message] = []
    text = json.dumps({"type": "session.update", "session": dict(session)})
    waiting.append({"type": "websocket.receive", "text": text})

    async def receive() -> Message:
        nonlocal connected
        if connected and waiting:
            return waiting.pop()
        message = await websocket._receive()
        connected = connected or message["type"] == "websocket.connect"
        return message

    return WebSocket(websocket.scope, receive, websocket._send)
