"""STUN and TURN: which servers a caller is told to use, with credentials of its own, and which of them we use.

A TURN server relays for whoever knows a password, so a page must not carry one that lasts. With ``webrtc.turn_secret``
each caller gets a name that is a date and a password that follows from it (the "TURN REST API",
draft-uberti-behave-turn-rest-00, which coturn knows as ``use-auth-secret``): after the date it opens nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Callable
from typing import Any

from aiortc import RTCIceServer
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from duplex.config import Config, IceServer, WebRtcConfig
from duplex.transport.http_errors import NO_STORE

ICE_SERVERS = "/v1/realtime/calls/ice_servers"
"""Under the calls, and asked for with what opens a call: a client secret is enough."""

CALLER = "caller"


def turn_credentials(secret: str, until_unix_s: float, name: str = CALLER) -> tuple[str, str]:
    """(username, credential), good until then. HMAC-SHA1 is what the scheme prescribes, and coturn's default."""
    username = f"{int(until_unix_s)}:{name}"
    digest = hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()
    return username, base64.b64encode(digest).decode("ascii")


def told_to_callers(config: WebRtcConfig, unix_s: float) -> list[dict[str, Any]]:
    """The servers, each as ``RTCPeerConnection`` takes them."""
    return [_with_credentials(server, config, unix_s) for server in config.ice_servers]


def used_here(config: WebRtcConfig, unix_s: float) -> list[RTCIceServer]:
    """Those that we gather candidates from. Each costs every call a round trip; a dead one costs it five seconds."""
    kinds = {"nothing": (), "stun": ("stun:",), "all": ("stun:", "turn:", "turns:")}[config.server_uses]
    found = []
    for server in config.ice_servers:
        told = _with_credentials(server, config, unix_s)
        if urls := [url for url in told["urls"] if url.startswith(kinds)]:
            found.append(RTCIceServer(urls, told.get("username"), told.get("credential")))
    return found


def _with_credentials(server: IceServer, config: WebRtcConfig, unix_s: float) -> dict[str, Any]:
    told: dict[str, Any] = {"urls": list(server.urls)}
    if not server.relays:
        return told
    if server.username is not None and server.credential is not None:
        return {**told, "username": server.username, "credential": server.credential.get_secret_value()}
    assert config.turn_secret is not None  # the configuration says so
    secret = config.turn_secret.get_secret_value()
    username, credential = turn_credentials(secret, unix_s + config.turn_credentials_s)
    return {**told, "username": username, "credential": credential}


def add_ice_servers(app: FastAPI, config: Config, unix_s: Callable[[], float] = time.time) -> None:
    """``GET /v1/realtime/calls/ice_servers``, which a page asks before it makes its offer."""

    @app.get(ICE_SERVERS)
    async def ice_servers() -> JSONResponse:
        lasts = {"expires_after_s": config.webrtc.turn_credentials_s}
        return JSONResponse({"ice_servers": told_to_callers(config.webrtc, unix_s()), **lasts}, headers=NO_STORE)
