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
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import numpy as np
import soxr
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpReceiver, RTCSessionDescription

from duplex.clock import Clock, MonotonicClock
from duplex.errors import AgentFullError, TransportError
from duplex.frames import PACKET_MS, SAMPLE_RATE_HZ, Samples
from duplex.recording import RecordedEvent, Recording, Span, WireStats, play_out
from duplex.transport.client_media import (
    PACKET_S,
    WIRE_PACKET_SAMPLES,
    WIRE_RATE_HZ,
    Ear,
    Microphone,
    divert,
    to_wire,
)

DATA_CHANNEL = "oai-events"
CALLS_PATH = "/v1/realtime/calls"
MAX_EVENTS = 50_000


@dataclass(frozen=True, slots=True)
class CallSettings:
    """What a call asks for. ``instructions`` and ``voice``: None leaves them to the server.

    ``playout_ms``: the listener's delay, part of every latency measured on the recording.
    ``max_call_s`` bounds the recording; a call past it is an error, not a memory leak.
    """

    instructions: str | None = None
    voice: str | None = None
    playout_ms: float = 20.0
    max_call_s: float = 900.0
    connect_timeout_s: float = 15.0

    def session(self) -> dict[str, Any]:
        """The ``session`` object of the wire, empty when nothing is asked for."""
        session: dict[str, Any] = {}
        if self.instructions is not None:
            session["instructions"] = self.instructions
        if self.voice is not None:
            session["audio"] = {"output": {"voice": self.voice}}
        return {"type": "realtime", **session} if session else {}


class CallClient:
    """One call. Made by :meth:`connect`; times are milliseconds of the recording's time line."""

    def __init__(self, settings: CallSettings, clock: Clock, on_event: Callable[[RecordedEvent], None] | None) -> None:
        self._settings = settings
        self._clock = clock
        self._on_event = on_event
        self._peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._microphone = Microphone(clock, max_packets=round(settings.max_call_s / PACKET_S))
        self._ear = Ear(clock, max_packets=round(settings.max_call_s / PACKET_S))
        self._events: list[RecordedEvent] = []
        self._events_dropped = 0
        self._turn_began = 0  # index of the first event after the last play()
        self._next_of: dict[str, int] = {}
        self._news = asyncio.Event()
        self._ready = asyncio.Event()
        self._ended: str | None = None
        self._ended_ms: float | None = None
        self.url = ""
        self.connected_in_s = 0.0

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
                await self._microphone.started.wait()
        except TimeoutError as error:
            raise TransportError(
                f"{target} answered, but no media connection came up in {self._settings.connect_timeout_s:g} s. "
                "Is UDP between here and there blocked?"
            ) from error
        if self._ended is not None:
            raise TransportError(f"The call ended while it was being set up: {self._ended}.")
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
            raise TransportError(f"There is no server at {_base(target)}. Start one with: duplex serve") from error
        except httpx.TimeoutException as error:
            raise TransportError(
                f"{_base(target)} took the connection but did not answer within {self._settings.connect_timeout_s:g} s."
            ) from error
        except httpx.HTTPError as error:
            raise TransportError(f"Calling {target} failed: {error or type(error).__name__}.") from error
        if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            retry_after_s = _seconds(response.headers.get("Retry-After"))
            raise AgentFullError(
                f"The server is full or not ready yet ({_detail(response)}). Try again in {retry_after_s:g} s.",
                retry_after_s,
            )
        if response.status_code != httpx.codes.CREATED:
            raise TransportError(f"{target} refused the call: {response.status_code}, {_detail(response)}.")
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
        if self._ended is None:
            self._ended, self._ended_ms = reason, self.now_ms if self._microphone.started.is_set() else 0.0
        self._ready.set()
        self._news.set()

    # --- the conversation ------------------------------------------------------------------------

    @property
    def now_ms(self) -> float:
        """This moment on the recording's time line."""
        return (self._clock.now() - self._microphone.origin_s) * 1000.0

    @property
    def events(self) -> list[RecordedEvent]:
        return self._events

    @property
    def ended(self) -> str | None:
        """Why the call is over; None while it goes on."""
        return self._ended

    async def play(self, samples: Samples) -> Span:
        """Speaks float32[n] at 24 kHz, in real time; returns when the last packet left, with where it lies.

        ``wait_for`` then looks at events from when this began. Two at once follow one another.
        """
        self._check_open()
        wire = await asyncio.to_thread(to_wire, samples)
        self._turn_began = len(self._events)
        self._next_of.clear()
        start = self._microphone.push(wire)
        end = start + -(-len(wire) // WIRE_PACKET_SAMPLES)
        while self._microphone.sent < end:
            self._check_open()
            await self._microphone.wait_sent(end)
        return Span(start * float(PACKET_MS), start * PACKET_MS + len(samples) * 1000.0 / SAMPLE_RATE_HZ)

    def send(self, event: Mapping[str, Any]) -> None:
        """Sends one client event, such as ``{"type": "response.create"}``."""
        self._check_open()
        self._channel.send(json.dumps(event))

    async def wait_for(
        self,
        kind: str,
        *,
        timeout_s: float,
        where: Callable[[Mapping[str, Any]], bool] = lambda _event: True,
    ) -> RecordedEvent:
        """The next event of type ``kind`` for which ``where`` holds, received since the last ``play`` began.

        Each event is returned once. Raises ``TimeoutError`` when none came, ``TransportError`` when the call ended.
        """
        async with asyncio.timeout(timeout_s):
            index = max(self._turn_began, self._next_of.get(kind, 0))
            while True:
                while index < len(self._events):
                    found = self._events[index]
                    index += 1
                    if found.type == kind and where(found.event):
                        self._next_of[kind] = index
                        return found
                await self._wait_news()

    async def wait_audible(self, *, timeout_s: float) -> float:
        """Waits until the agent is audible; returns since when (ms)."""
        asked_ms = self.now_ms
        async with asyncio.timeout(timeout_s):
            while self.last_audible_ms is None or self.last_audible_ms < asked_ms:
                self._check_open()
                await asyncio.sleep(PACKET_S)
        return self.last_audible_ms

    async def wait_quiet(self, quiet_ms: float, *, timeout_s: float) -> None:
        """Waits until the agent has not been audible for ``quiet_ms``."""
        async with asyncio.timeout(timeout_s):
            while self.last_audible_ms is not None and (left := self.last_audible_ms + quiet_ms - self.now_ms) > 0:
                self._check_open()
                await asyncio.sleep(left / 1000.0)

    async def wait_settled(self, after_ms: float, *, answer_timeout_s: float, quiet_ms: float = 800.0) -> bool:
        """Waits until what was said until ``after_ms`` is answered and nobody speaks any more.

        That is: a reply was begun after that moment (or was still open then), every reply is done, and the agent
        has been silent for ``quiet_ms``. Returns False if no such reply began within ``answer_timeout_s`` of it.
        """
        while True:
            self._check_open()
            open_replies, last_ms = self._replies()
            answered = open_replies > 0 or last_ms >= after_ms
            quiet = self.last_audible_ms is None or self.now_ms - self.last_audible_ms >= quiet_ms
            if answered and not open_replies and quiet and self.now_ms - last_ms >= quiet_ms:
                return True
            if not answered and self.now_ms - after_ms > answer_timeout_s * 1000.0:
                return False
            await asyncio.sleep(2 * PACKET_S)

    def _replies(self) -> tuple[int, float]:
        """How many replies are open, and when the newest event of any of them came."""
        open_ids: set[str] = set()
        last_ms = -1.0
        for recorded in self._events:
            if recorded.type in {"response.created", "response.done"}:
                reply_id = str(recorded.event["response"]["id"])
                if recorded.type == "response.created":
                    open_ids.add(reply_id)
                else:
                    open_ids.discard(reply_id)
                last_ms = recorded.at_ms
        return len(open_ids), last_ms

    async def wait_ms(self, duration_ms: float) -> None:
        """Lets the call go on in silence."""
        await self._clock.sleep_until(self._clock.now() + duration_ms / 1000.0)
        self._check_open()

    @property
    def last_audible_ms(self) -> float | None:
        """When the last audible packet of the agent ends for the listener; None before the first."""
        if self._ear.last_audible_s is None:
            return None
        heard_s = self._ear.last_audible_s + PACKET_S - self._microphone.origin_s
        return heard_s * 1000.0 + self._settings.playout_ms

    # --- the recording ---------------------------------------------------------------------------

    def recording(self) -> Recording:
        """Everything so far; also after the call. About 0.2 s of work per minute of call."""
        duration_ms = self.now_ms if self._ended_ms is None else self._ended_ms
        wire_samples = max(1, round(duration_ms * WIRE_RATE_HZ / 1000.0))
        heard, stats = play_out(
            self._ear.arrivals,
            rate_hz=WIRE_RATE_HZ,
            origin_s=self._microphone.origin_s,
            n_samples=wire_samples,
            playout_s=self._settings.playout_ms / 1000.0,
        )
        said = self._microphone.spoken(wire_samples)
        stereo = soxr.resample(np.stack([said, heard], axis=1), WIRE_RATE_HZ, SAMPLE_RATE_HZ).astype(np.float32)
        late_ms = self._microphone.late_s * 1000.0
        stats = WireStats(stats.received, stats.lost, stats.late, stats.out_of_order, stats.stalled_ms, late_ms)
        return Recording(stereo, self._settings.playout_ms, tuple(self._events), stats, self._events_dropped)

    # --- inside ----------------------------------------------------------------------------------

    def _received(self, message: str | bytes) -> None:
        try:
            event = json.loads(message)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            event = {"type": "client.unreadable", "text": repr(message[:200])}
        if len(self._events) >= MAX_EVENTS:
            self._events_dropped += 1
            return
        recorded = RecordedEvent(self.now_ms if self._microphone.started.is_set() else 0.0, event)
        self._events.append(recorded)
        self._news.set()
        if self._on_event is not None:
            self._on_event(recorded)

    async def _wait_news(self) -> None:
        self._check_open()
        self._news.clear()
        await self._news.wait()

    def _check_open(self) -> None:
        if self._ended is not None:
            raise TransportError(f"The call is over: {self._ended}.")
        if self._ear.full:
            raise TransportError(f"The call is longer than max_call_s = {self._settings.max_call_s:g} s.")


def calls_url(url: str) -> str:
    """The address that takes offers, from a server's address with or without scheme and path."""
    if "://" not in url:
        url = f"http://{url}"
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise TransportError(f"{url!r} is not the address of a server. It looks like http://127.0.0.1:8998")
    if parts.path in {"", "/"}:
        parts = parts._replace(path=CALLS_PATH)
    return parts.geturl()


def _base(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _http(url: str, timeout_s: float) -> httpx.AsyncClient:
    loopback = urlsplit(url).hostname in {"127.0.0.1", "localhost", "::1"}
    return httpx.AsyncClient(timeout=timeout_s, trust_env=not loopback)  # no proxy leads to this machine


def _detail(response: httpx.Response) -> str:
    """What a refusal says for itself, whichever way it says it."""
    try:
        body = response.json()
        error = body.get("error", body)
        text = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        text = response.text
    return " ".join(str(text or response.reason_phrase).split())[:300].rstrip(".")


def _seconds(text: str | None, default_s: float = 5.0) -> float:
    try:
        return max(0.0, float(text)) if text is not None else default_s
    except ValueError:
        return default_s
