"""The part of ``duplex doctor --url`` that calls: by WebSocket, by WebRTC, and through each STUN and TURN server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from aioice import Candidate, Connection, TransportPolicy
from aiortc import RTCIceServer
from aiortc.rtcicetransport import connection_kwargs

from duplex.cli_doctor_report import Finding
from duplex.errors import AgentFullError, DuplexError
from duplex.transport.client import CallClient, CallSettings, FarEnd
from duplex.transport.client_websocket import WebSocketCall

KEY_MISSING = "duplex keys add NAME, on the server; the key is shown once"
FULL = "try again when a call has ended"
CONNECT_S = 15.0
REPORT_S = 4.0
MEDIA_MS = 1000.0
LONG_TRIP_MS = 150.0

Servers = Sequence[Mapping[str, Any]]


async def socket_finding(home: str) -> Finding:
    """A WebSocket session, and how long an event takes there and back."""
    try:
        async with WebSocketCall.connect(home, CallSettings(connect_timeout_s=CONNECT_S)) as call:
            began_s = time.perf_counter()
            call.send({"type": "input_audio_buffer.clear"})
            await call.wait_for("input_audio_buffer.cleared", timeout_s=CONNECT_S)
            took_ms = (time.perf_counter() - began_s) * 1000.0
    except AgentFullError as error:
        return Finding("doors", "websocket", "fail", str(error), FULL)
    except (DuplexError, TimeoutError) as error:
        mend = "a proxy has to pass on Upgrade and Connection, and must not buffer"
        return Finding("doors", "websocket", "fail", str(error) or "no answer to an event", mend)
    return Finding("doors", "websocket", "ok", f"up in {call.connected_in_s * 1000:.0f} ms, an event {took_ms:.0f} ms")


async def call_findings(home: str, servers: Servers) -> AsyncIterator[Finding]:
    """A call as a browser makes it; where there is TURN, another that goes through it or not at all."""
    yield await _call(home, CallSettings(connect_timeout_s=CONNECT_S, ice_servers=servers), "webrtc")
    if any(_relays(server) for server in servers):
        settings = CallSettings(connect_timeout_s=CONNECT_S, ice_servers=servers, relay_only=True)
        yield await _call(home, settings, "webrtc by turn")


async def _call(home: str, settings: CallSettings, name: str) -> Finding:
    far: FarEnd | None = None
    try:
        async with CallClient.connect(home, settings) as call:
            await call.wait_ms(MEDIA_MS)
            async with asyncio.timeout(REPORT_S):
                while (far := await call.far_end()) is None:
                    await call.wait_ms(100.0)
            heard = call.recording().wire
    except AgentFullError as error:
        return Finding("doors", name, "fail", str(error), FULL)
    except TimeoutError:
        mend = "sound from here does not reach it; UDP passes only one way: look at the firewalls on both sides"
        return Finding("doors", name, "fail", "connected, and the server reports no sound from us", mend)
    except DuplexError as error:
        return Finding("doors", name, "fail", str(error), _no_path(settings))
    if not heard.received:
        mend = "UDP passes only one way: look at the firewalls on both sides"
        return Finding("doors", name, "fail", "connected, and no sound comes from the server", mend)
    return judged(name, call.connected_in_s, far, heard.received, heard.lost)


def judged(name: str, connected_in_s: float, far: FarEnd, received: int, lost: int) -> Finding:
    """A call that came up, as a line of the report."""
    trip = "" if far.round_trip_ms is None else f", round trip {far.round_trip_ms:.0f} ms"
    said = f"up in {connected_in_s * 1000:.0f} ms by {' to '.join(far.path)}, sound both ways{trip}"
    if far.lost or lost:
        said += f"; lost {far.lost} of {far.received + far.lost} there, {lost} of {received + lost} back"
        return Finding("doors", name, "warn", said, "a second should lose nothing: what else is on this network?")
    if far.round_trip_ms is not None and far.round_trip_ms > LONG_TRIP_MS:
        return Finding("doors", name, "warn", said, "that is heard as slowness: a server nearer to the callers")
    return Finding("doors", name, "ok", said)


def _no_path(settings: CallSettings) -> str:
    if settings.relay_only:
        return "the TURN server does not reach it: look at its denied-peer-ip, and at the server's firewall (UDP)"
    if any(_relays(server) for server in settings.ice_servers):
        return "open UDP to the server; callers whose network lets none through need TURN (below)"
    return "open UDP to the server (all ports from 32768 on, or as its system assigns them), or name a TURN server"


async def ice_findings(servers: Servers) -> AsyncIterator[Finding]:
    """Each address of each STUN and TURN server that the server names."""
    for server in servers:
        for url in server["urls"]:
            yield await _ice(url, server.get("username"), server.get("credential"))


async def _ice(url: str, username: str | None, credential: str | None) -> Finding:
    relays = not url.startswith("stun:")
    options = connection_kwargs([RTCIceServer([url], username, credential)])
    policy = TransportPolicy.RELAY if relays else TransportPolicy.ALL
    connection = Connection(ice_controlling=True, components=1, transport_policy=policy, **options)
    began_s = time.perf_counter()
    try:
        await connection.gather_candidates()
        wanted = "relay" if relays else "srflx"
        found: list[Candidate] = [c for c in connection.local_candidates if c.type == wanted]
    except (OSError, ValueError) as error:
        return Finding("network", url, "fail", str(error), "is the name right?")
    finally:
        await connection.close()
    took_ms = (time.perf_counter() - began_s) * 1000.0
    if found:
        what = "relays" if relays else f"sees us as {found[0].host}"
        return Finding("network", url, "ok", f"{what}, after {took_ms:.0f} ms")
    if relays:
        mend = "is it up, its port open, and webrtc.turn_secret its static-auth-secret? Its log says which"
        return Finding("network", url, "fail", "gives no relay", mend)
    return Finding("network", url, "fail", "does not answer", "is it up, and UDP to its port open?")


def _relays(server: Mapping[str, Any]) -> bool:
    return any(not str(url).startswith("stun:") for url in server["urls"])
