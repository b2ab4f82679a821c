"""A WebRTC client as a library: what a browser does, from a program, with an honest recording.

    async with CallClient.connect("http://127.0.0.1:8998") as call:
        await call.play(question)                     # float32[n], 24 kHz mono
        await call.wait_for("response.done", timeout_s=20)
    recording = call.recording()

It plays sound in real time, silence between, and records both sides on one time line. It does not use
aiortc's own receive path, whose buffer adds 80 ms and, after a loss, up to 280 ms more: packets are taken
as they arrive and played out by :func:`duplex.recording.play_out`, whose delay is fixed and declared.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urljoin

import httpx
import numpy as np
from aiortc import (
    RTCConfiguration,
    RTCIceServer,
    RTCIceTransportPolicy,
    RTCPeerConnection,
    RTCRtpReceiver,
    RTCSessionDescription,
)

from duplex.clock import Clock, MonotonicClock
from duplex.errors import TransportError
from duplex.frames import Samples
from duplex.recording import Arrival, RecordedEvent, WireStats, play_out
from duplex.transport.client_address import address, is_loopback, key_header, no_answer, no_server, refusal
from duplex.transport.client_call import CallBase, CallSettings
from duplex.transport.client_echo import EchoPath, Listener
from duplex.transport.client_link import BadNetwork
from duplex.transport.client_media import WIRE_RATE_HZ, Ear, Microphone, divert, to_wire
from duplex.transport.client_script import PACKET_S
from duplex.transport.liveness import ice_of

__all__ = ["CallClient", "CallSettings", "calls_url"]

DATA_CHANNEL = "oai-events"
CALLS_PATH = "/v1/realtime/calls"


@dataclass(frozen=True, slots=True)
class FarEnd:
    """What the server's reports say of the packets we sent (RTCP receiver reports), and how the way there is.

    ``path``: kinds of the two ends, as ICE names them: host, srflx, prflx or relay.
    """

    received: int
    lost: int
    round_trip_ms: float | None
    path: tuple[str, str]


class CallClient(CallBase):
    """One call over WebRTC. Made by :meth:`connect`; :class:`duplex.transport.client_call.CallBase` has the rest."""

    def __init__(self, settings: CallSettings, clock: Clock, on_event: Callable[[RecordedEvent], None] | None) -> None:
        super().__init__(settings, clock, on_event, rate_hz=WIRE_RATE_HZ)
        link = settings.link
        self._playout_s = settings.listening_delay_ms / 1000.0
        self._network = BadNetwork(clock, link)
        servers = [RTCIceServer(list(s["urls"]), s.get("username"), s.get("credential")) for s in settings.ice_servers]
        policy = RTCIceTransportPolicy.RELAY if settings.relay_only else RTCIceTransportPolicy.ALL
        self._peer = RTCPeerConnection(RTCConfiguration(servers, policy))
        self._ready = asyncio.Event()
        overlay, on_packet = None, None
        if link is not None and link.echo is not None:
            listener = Listener(rate_hz=WIRE_RATE_HZ, playout_s=self._playout_s)
            path = EchoPath(link.echo.level_db, link.echo.delay_ms, rate_hz=WIRE_RATE_HZ, seed=link.seed)
            script = self._script

            def on_packet(arrival: Arrival) -> None:
                if script.started.is_set():
                    listener.add(arrival, script.at(arrival.at_s))

            def overlay(start: int, n_samples: int) -> Samples:
                return path.over(start, n_samples, listener.played)

        self._microphone = Microphone(self._script, clock, overlay)
        self._ear = Ear(
            clock,
            max_packets=round(settings.max_call_s / PACKET_S),
            patience_s=0.002 * link.jitter_ms if link is not None and link.reorder else 0.0,
            on_packet=on_packet,
        )
        self.url = ""

    # --- connecting and hanging up ---------------------------------------------------------------

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        url: str,
        settings: CallSettings | None = None,
        *,
        clock: Clock | None = None,
        on_event: Callable[[RecordedEvent], None] | None = None,
    ) -> AsyncIterator[CallClient]:
        """Calls the server at ``url`` (``http://host:port`` or the full path) and hangs up at the end.

        ``on_event`` is called with each event as it comes, on the event loop. Raises ``TransportError`` if
        there is no server or it refuses, ``AgentFullError`` (with ``retry_after_s``) if it is full.
        """
        call = cls(settings or CallSettings(), clock or MonotonicClock(), on_event)
        try:
            await call._connect(url)
            yield call
        finally:
            await call._hang_up()

    async def _connect(self, url: str) -> None:
        began_s = self._clock.now()
        target = calls_url(url)
        transceiver = self._peer.addTransceiver(self._microphone, direction="sendrecv")
        capabilities = RTCRtpReceiver.getCapabilities("audio")
        codecs = capabilities.codecs if capabilities is not None else []
        opus = [codec for codec in codecs if codec.mimeType.lower() == "audio/opus"]
        transceiver.setCodecPreferences(opus)
        divert(transceiver.receiver, self._ear)
        channel = self._channel = self._peer.createDataChannel(DATA_CHANNEL)
        channel.on("open", self._ready.set)
        channel.on("message", self._received)
        channel.on("close", lambda: self._end("the server closed the call"))
        self._peer.on("connectionstatechange", self._state_changed)
        await self._peer.setLocalDescription(await self._peer.createOffer())
        answer, self.url = await self._offer(target, self._peer.localDescription.sdp)
        try:
            await self._peer.setRemoteDescription(RTCSessionDescription(sdp=answer, type="answer"))
        except ValueError as error:
            raise TransportError(f"{target} answered with something that is not an SDP answer: {error}") from error
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                await self._ready.wait()
                await self._script.started.wait()
        except TimeoutError as error:
            raise TransportError(
                f"{target} answered, but no media connection came up in {self._settings.connect_timeout_s:g} s. "
                "Is UDP between here and there blocked?"
            ) from error
        if self._ended is not None:
            raise TransportError(f"The call ended while it was being set up: {self._ended}.")
        for protocol in {pair.protocol for pair in ice_of(self._peer)._nominated.values()}:
            if not self._settings.relay_only:  # a relayed path has no socket of its own to put a bad line under
                self._network.attach(protocol)
        self._network.begin()
        self.connected_in_s = self._clock.now() - began_s

    async def _offer(self, target: str, sdp: str) -> tuple[str, str]:
        """Posts the offer; returns the answer and the call's own address."""
        session = self._settings.session()
        if session:
            parts = {
                "sdp": (None, sdp, "application/sdp"),
                "session": (None, json.dumps(session), "application/json"),
            }
            request: dict[str, Any] = {"files": parts}
        else:
            request = {"content": sdp, "headers": {"Content-Type": "application/sdp"}}
        try:
            async with _http(target, self._settings.connect_timeout_s) as http:
                response = await http.post(target, **request)
        except httpx.ConnectError as error:
            raise no_server(target) from error
        except httpx.TimeoutException as error:
            raise no_answer(target, self._settings.connect_timeout_s) from error
        except httpx.HTTPError as error:
            raise TransportError(f"Calling {target} failed: {error or type(error).__name__}.") from error
        if response.status_code != httpx.codes.CREATED:
            retry_after = response.headers.get("Retry-After")
            raise refusal(target, response.status_code, retry_after, response.content, response.reason_phrase)
        return response.text, urljoin(target, response.headers.get("Location", ""))

    async def _hang_up(self) -> None:
        if self.url:
            try:
                async with _http(self.url, 3.0) as http:
                    await http.delete(self.url)
            except httpx.HTTPError:
                pass  # the server may be gone; closing the connection tells it all the same
        self._end("this side hung up")
        self._microphone.stop()
        await self._peer.close()

    def _state_changed(self) -> None:
        if self._peer.connectionState in {"failed", "closed"}:
            self._end(f"the connection {self._peer.connectionState}")

    def _end(self, reason: str) -> None:
        super()._end(reason)
        self._ready.set()

    async def far_end(self) -> FarEnd | None:
        """None before the server's first report, which comes within two seconds."""
        sender = self._peer.getSenders()[0]
        pair = next(iter(ice_of(self._peer)._nominated.values()), None)
        for stats in (await sender.getStats()).values():
            if stats.type == "remote-inbound-rtp" and pair is not None:
                trip_s = stats.roundTripTime
                path = (pair.local_candidate.type, pair.remote_candidate.type)
                return FarEnd(
                    stats.packetsReceived, stats.packetsLost, None if trip_s is None else trip_s * 1000.0, path
                )
        return None

    # --- what the carrier brings -------------------------------------------------------------------

    def send(self, event: Mapping[str, Any]) -> None:
        self._check_open()
        self._channel.send(json.dumps(event))

    @property
    def last_audible_ms(self) -> float | None:
        if self._ear.last_audible_s is None:
            return None
        return (self._ear.last_audible_s + PACKET_S + self._playout_s - self._script.origin_s) * 1000.0

    async def outage(self, duration_s: float) -> None:
        """Nothing passes, in either direction, for that long; then the same connection goes on.

        The far end must have more patience than that: ours asks after three silent seconds, and hangs up 1.5 s later.
        """
        self._check_open()
        self._network.cut = True
        try:
            await self._clock.sleep_until(self._clock.now() + duration_s)
        finally:
            self._network.cut = False
        self._check_open()

    def _heard(self, n_samples: int) -> tuple[Samples, WireStats]:
        if self._ended is not None:
            self._ear.flush()
        speed, origin_s = self._script.speed, self._script.origin_s
        arrivals = self._ear.arrivals
        if speed != 1.0:
            arrivals = [replace(arrival, at_s=origin_s + self._script.at(arrival.at_s)) for arrival in arrivals]
        return play_out(
            arrivals, rate_hz=WIRE_RATE_HZ, origin_s=origin_s, n_samples=n_samples, playout_s=self._playout_s
        )

    @property
    def _full(self) -> bool:
        return self._script.full or self._ear.full

    async def _to_wire(self, samples: Samples) -> Samples:
        return await asyncio.to_thread(to_wire, np.asarray(samples, dtype=np.float32))

    def _received(self, message: str | bytes) -> None:
        try:
            event = json.loads(message)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            event = {"type": "client.unreadable", "text": repr(message[:200])}
        self._keep_event(event)


def calls_url(url: str) -> str:
    """The address that takes offers, from a server's address with or without scheme and path."""
    return address(url, CALLS_PATH)


def _http(url: str, timeout_s: float) -> httpx.AsyncClient:
    # The system's authorities and SSL_CERT_FILE, as for the WebSocket; httpx by itself has a list of its own.
    verify = ssl.create_default_context() if url.startswith("https:") else True
    return httpx.AsyncClient(timeout=timeout_s, trust_env=not is_loopback(url), headers=key_header(), verify=verify)
