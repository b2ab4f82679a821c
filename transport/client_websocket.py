"""A WebSocket client as a library: Realtime events both ways, with the same honest recording.

    async with WebSocketCall.connect("http://127.0.0.1:8998") as call:
        await call.play(question)                     # float32[n], 24 kHz mono
        await call.wait_for("response.done", timeout_s=20)

The microphone streams all the time, in pieces of 20 ms. What comes back plays as
:class:`duplex.transport.client_player.DeltaPlayer` does it, and the server is told how far it got
(``duplex.playback.ack``). A reply is stopped

 - by ``duplex.reply.held``: it pauses, and goes on at the same sample on ``duplex.reply.resumed``;
 - by ``conversation.item.truncated`` or a cancelled ``response.done``: what has not been heard is dropped;
 - by ``input_audio_buffer.speech_started``, if the server knows no ``duplex.*`` events and so leaves stopping
   to its clients: what has not been heard is dropped, and ``conversation.item.truncate`` says where.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from duplex.clock import Clock, MonotonicClock
from duplex.errors import TransportError
from duplex.frames import SAMPLE_RATE_HZ, Samples
from duplex.recording import RecordedEvent, WireStats
from duplex.transport.client_address import address, is_loopback, key_header, no_answer, no_server, refusal
from duplex.transport.client_call import CallBase, CallSettings
from duplex.transport.client_echo import EchoPath
from duplex.transport.client_link import BadNetwork
from duplex.transport.client_player import MAX_AHEAD_S, DeltaPlayer
from duplex.transport.pcm import from_pcm16, to_pcm16

SOCKET_PATH = "/v1/realtime"
ACK_EVERY_S = 0.2
_MAX_UNSENT = 500  # 10 s of microphone
_MAX_MESSAGE_BYTES = 16 * 1024 * 1024


class WebSocketCall(CallBase):
    """One call. Made by :meth:`connect`. Sound is not kept among ``events``."""

    def __init__(self, settings: CallSettings, clock: Clock, on_event: Callable[[RecordedEvent], None] | None) -> None:
        super().__init__(settings, clock, on_event)
        link = settings.link
        if link is not None and (link.loss or link.reorder):
            raise TransportError(
                "A WebSocket runs over TCP, which repairs loss and keeps the order: what is left of a bad line is "
                "delay. Simulate jitter_ms, or call by WebRTC."
            )
        self._network = BadNetwork(clock, link)
        self._echo: EchoPath | None = None
        if link is not None and link.echo is not None:
            self._echo = EchoPath(link.echo.level_db, link.echo.delay_ms, rate_hz=SAMPLE_RATE_HZ, seed=link.seed)
        self._player = DeltaPlayer(round(settings.listening_delay_ms * SAMPLE_RATE_HZ / 1000.0))
        self._unsent: asyncio.Queue[str] = asyncio.Queue(_MAX_UNSENT)
        self._items: dict[str, str] = {}  # reply → its item
        self._acked: tuple[str, int] = ("", 0)
        self._next_ack_s = 0.0
        self._server_holds = False  # it speaks duplex.* and says when to pause
        self._resume: tuple[str, str] | None = None  # the session, and the secret to go on with it
        self._last_event_id: str | None = None
        self._socket: ClientConnection | None = None
        self._moving: list[asyncio.Task[None]] = []  # bytes of the connection at hand
        self.url = ""

    # --- connecting and hanging up -----------------------------------------------------------------

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        url: str,
        settings: CallSettings | None = None,
        *,
        clock: Clock | None = None,
        on_event: Callable[[RecordedEvent], None] | None = None,
    ) -> AsyncIterator[WebSocketCall]:
        """Calls the server at ``url`` (``http://host:port``, ``ws://…`` or the full path) and hangs up at the end.

        Raises ``TransportError`` if there is no server or it refuses, ``AgentFullError`` if it is full.
        """
        call = cls(settings or CallSettings(), clock or MonotonicClock(), on_event)
        began_s = call._clock.now()
        call._begin(await call._open(url))
        streaming: list[asyncio.Task[None]] = []
        try:
            await call._agree()
            call._network.begin()
            call.connected_in_s = call._clock.now() - began_s
            call._script.start()
            streaming.append(asyncio.create_task(call._stream()))
            yield call
        finally:
            call._end("this side hung up")
            for task in streaming:
                task.cancel()
            await asyncio.gather(*streaming, return_exceptions=True)
            await call._leave()

    def _begin(self, socket: ClientConnection) -> None:
        """Uses that connection from now on."""
        self._socket = socket
        self._moving = [asyncio.create_task(work(socket)) for work in (self._read, self._write)]

    async def _leave(self, *, rudely: bool = False) -> None:
        """Is done with the connection at hand. ``rudely``: as a network does that fails."""
        for task in self._moving:
            task.cancel()
        await asyncio.gather(*self._moving, return_exceptions=True)
        if self._socket is not None:
            if rudely:
                self._socket.transport.abort()
            else:
                await self._socket.close()
        self._moving, self._socket = [], None

    async def _open(self, url: str) -> ClientConnection:
        target = address(url, SOCKET_PATH, ("http", "https", "ws", "wss"))
        self.url = self.url or target.replace("http", "ws", 1)
        timeout_s = self._settings.connect_timeout_s
        try:
            return await connect(
                target.replace("http", "ws", 1),
                additional_headers=key_header(),
                compression=None,
                proxy=None if is_loopback(target) else True,
                open_timeout=timeout_s,
                max_size=_MAX_MESSAGE_BYTES,
            )
        except InvalidStatus as error:
            answer = error.response
            raise refusal(
                self.url,
                answer.status_code,
                answer.headers.get("Retry-After"),
                bytes(answer.body or b""),
                answer.reason_phrase,
            ) from error
        except TimeoutError as error:
            raise no_answer(target, timeout_s) from error
        except OSError as error:
            raise no_server(target) from error
        except InvalidHandshake as error:
            raise TransportError(f"{self.url} is no WebSocket: {error}.") from error

    async def _agree(self) -> None:
        """Waits for the session and asks for what the settings say."""
        timeout_s = self._settings.connect_timeout_s
        try:
            await self.wait_for("session.created", timeout_s=timeout_s)
            session = self._settings.session()
            if not session:
                return
            self.send({"type": "session.update", "session": session})
            updated = asyncio.ensure_future(self.wait_for("session.updated", timeout_s=timeout_s))
            refused = asyncio.ensure_future(self.wait_for("error", timeout_s=timeout_s))
            try:
                done, _ = await asyncio.wait([updated, refused], return_when=asyncio.FIRST_COMPLETED)
            finally:
                updated.cancel()
                refused.cancel()
            if refused in done and not refused.exception():
                error = refused.result().event.get("error") or {}
                raise TransportError(f"{self.url} refused the session: {error.get('message', 'it does not say why')}")
            await updated
        except TimeoutError as error:
            raise no_answer(self.url, timeout_s) from error

    # --- what the carrier brings -------------------------------------------------------------------

    @property
    def last_audible_ms(self) -> float | None:
        self._player.render(self._sample())
        if self._player.last_audible is None:
            return None
        return self._player.last_audible * 1000.0 / (SAMPLE_RATE_HZ * self._script.speed)

    def send(self, event: Mapping[str, Any]) -> None:
        self._check_open()
        text = json.dumps(event, separators=(",", ":"))
        self._network.carry(0, lambda: self._queue(text))

    async def outage(self, duration_s: float) -> None:
        """The connection breaks without a goodbye. That much later another goes on with the session.

        Raises ``NotImplementedError`` where the server gave no secret for that, ``TransportError`` if it refuses.
        """
        self._check_open()
        if self._resume is None:
            raise NotImplementedError("This server ends a session with its WebSocket. Call by WebRTC.")
        await self._leave(rudely=True)
        self._player.render(self._sample())
        await self._clock.sleep_until(self._clock.now() + duration_s)
        await self.resume()

    async def resume(self) -> None:
        """Goes on with the session over a new connection; the one before may still look well to the server.

        Raises ``TransportError`` if the server refuses.
        """
        assert self._resume is not None
        await self._leave(rudely=True)
        session_id, token = self._resume
        asked: dict[str, Any] = {
            "type": "duplex.session.resume",
            "session_id": session_id,
            "resume_token": token,
            "last_event_id": self._last_event_id,
        }
        if (latest := self._player.latest) is not None:
            self._player.forget_waiting(latest, self._sample())
            played_ms = self._player.played_samples(latest) * 1000.0 / SAMPLE_RATE_HZ
            asked["playback"] = {"response_id": latest, "played_ms": round(played_ms, 1)}
        waiting = [self._unsent.get_nowait() for _ in range(self._unsent.qsize())]
        for text in waiting:
            if "input_audio_buffer.append" not in text:  # what was said is too late; what was asked is not
                self._unsent.put_nowait(text)
        socket = await self._open(f"{self.url}{'&' if '?' in self.url else '?'}resume")
        await socket.send(json.dumps(asked))
        seen = len(self._events)
        self._begin(socket)
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                while not any(e.type == "duplex.session.resumed" for e in self._events[seen:]):
                    self._check_open()
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as error:
            raise no_answer(self.url, self._settings.connect_timeout_s) from error

    def _heard(self, n_samples: int) -> tuple[Samples, WireStats]:
        self._player.render(n_samples if self._ended is not None else self._sample())
        return self._player.heard(0, n_samples), self._player.stats

    # --- moving bytes ------------------------------------------------------------------------------

    async def _stream(self) -> None:
        """The microphone: a piece every 20 ms, whatever it holds."""
        script = self._script
        while self._ended is None and not script.full:
            await self._clock.sleep_until(script.due_s)
            self._player.render(self._sample())
            start = script.sent * script.packet_samples
            packet = script.take()
            if self._echo is not None:
                packet = packet + self._echo.over(start, script.packet_samples, self._player.heard)
            audio = base64.b64encode(to_pcm16(np.clip(packet, -1.0, 1.0))).decode("ascii")
            if self._ended is None and self._socket is not None:
                self.send({"type": "input_audio_buffer.append", "audio": audio})
            if (
                self._server_holds
                and self._socket is not None
                and (latest := self._player.latest)
                and self._clock.now() >= self._next_ack_s
            ):
                self._acknowledge(latest)
        script.end()

    def _queue(self, text: str) -> None:
        try:
            self._unsent.put_nowait(text)
        except asyncio.QueueFull:
            self._end("the server does not take what is sent to it")

    async def _write(self, socket: ClientConnection) -> None:
        try:
            while True:
                await socket.send(await self._unsent.get())
        except ConnectionClosed:
            pass  # the reader says why

    async def _read(self, socket: ClientConnection) -> None:
        try:
            async for message in socket:
                self._network.carry(1, lambda message=message: self._received(message))  # type: ignore[misc]
            reason = socket.close_reason
        except ConnectionClosed as error:
            reason = str(error)
        self._end(f"the server closed the call{f' ({reason})' if reason else ''}")

    # --- events ------------------------------------------------------------------------------------

    def _received(self, message: str | bytes) -> None:
        if self._ended is not None:
            return
        try:
            event = json.loads(message)
            if not isinstance(event, dict):
                raise ValueError("not an object")
            if event.get("type") == "response.output_audio.delta":
                self._play(str(event["response_id"]), str(event["item_id"]), event["delta"])
                return
        except (ValueError, KeyError, TypeError):
            event = {"type": "client.unreadable", "text": repr(message[:200])}
        if isinstance(event_id := event.get("event_id"), str):
            self._last_event_id = event_id
        if event.get("type") == "session.created":
            session = event.get("session") or {}
            token = (session.get("duplex") or {}).get("resume_token")
            self._resume = None if token is None else (str(session.get("id")), str(token))
        self._follow(event)
        self._keep_event(event)

    def _play(self, reply_id: str, item_id: str, delta: str) -> None:
        self._items[reply_id] = item_id
        while len(self._items) > 64:
            del self._items[next(iter(self._items))]
        if not self._player.add(reply_id, from_pcm16(base64.b64decode(delta, validate=True)), self._sample()):
            self._end(f"the server sent more than {MAX_AHEAD_S:g} s ahead of what can be heard")

    def _follow(self, event: Mapping[str, Any]) -> None:
        """Does what a client is to do about an event."""
        at = self._sample()
        match event:
            case {"type": "duplex.reply.held", "response_id": reply_id}:
                self._player.hold(str(reply_id), at)
                self._acknowledge(str(reply_id))
            case {"type": "duplex.reply.resumed", "response_id": reply_id}:
                self._player.resume(str(reply_id), at)
            case {"type": "conversation.item.truncated", "item_id": item_id}:
                for reply_id in [known for known, item in self._items.items() if item == item_id]:
                    self._player.drop(reply_id, at)
            case {"type": "response.done", "response": {"id": reply_id, "status": "cancelled"}}:
                self._player.drop(str(reply_id), at)
            case {"type": "response.done", "response": {"id": reply_id}}:
                self._player.finish(str(reply_id))
            case {"type": "input_audio_buffer.speech_started"} if not self._server_holds:
                if (playing := self._player.playing) is not None:
                    self._player.drop(playing, at)
                    played_ms = self._player.played_samples(playing) * 1000 // SAMPLE_RATE_HZ
                    self.send(
                        {
                            "type": "conversation.item.truncate",
                            "item_id": self._items[playing],
                            "content_index": 0,
                            "audio_end_ms": played_ms,
                        }
                    )
            case {"type": str(kind)} if kind.startswith("duplex."):
                self._server_holds = True

    def _acknowledge(self, reply_id: str) -> None:
        """Tells how much of a reply has left the loudspeaker, if that is news."""
        played = (reply_id, self._player.played_samples(reply_id))
        if played == self._acked or not played[1]:
            return
        self._acked, self._next_ack_s = played, self._clock.now() + ACK_EVERY_S
        played_ms = round(played[1] * 1000.0 / SAMPLE_RATE_HZ, 1)
        self.send({"type": "duplex.playback.ack", "response_id": reply_id, "played_ms": played_ms})

    def _sample(self) -> int:
        """Now, in samples of the sound clock; 0 before it begins."""
        if not self._script.started.is_set():
            return 0
        return round(self._script.at(self._clock.now()) * SAMPLE_RATE_HZ)
