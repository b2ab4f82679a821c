"""A simulated ``chan_websocket``: buffers, plays, marks and flushes as Asterisk's ``channels/chan_websocket.c`` does.

Sound lies in a queue of frames with the marks between them. A timer takes one frame out every 20 ms of its own clock;
marks at the head are reported then, on the way to the next frame. ``FLUSH_MEDIA`` empties the queue, and what marks
were in it are never heard of again. Above 900 frames it asks to be left alone (XOFF), at 1000 it drops messages, below
800 it asks for more (XON). A message's bytes that do not fill a frame are dropped, unless buffering was asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from duplex.clock import Clock, MonotonicClock
from duplex.codecs.g711 import decode_ulaw, encode_ulaw
from duplex.frames import Samples

PACKET_S = 0.02
XOFF_FRAMES, XON_FRAMES, MAX_FRAMES = 900, 800, 1000
CHANNEL, CHANNEL_ID, CONNECTION_ID = "WebSocket/duplex/0x7f4b28003c00", "1795369383.1", "duplex"
COMMANDS = {
    "ANSWER", "HANGUP", "START_MEDIA_BUFFERING", "STOP_MEDIA_BUFFERING", "MARK_MEDIA", "FLUSH_MEDIA", "GET_STATUS",
    "REPORT_QUEUE_DRAINED", "PAUSE_MEDIA", "CONTINUE_MEDIA",
}  # fmt: skip


class ChanWebsocket:
    """One channel. ``deliver`` gets what it sends: text, or sound as bytes.

    ``trip_s``: how long the next message takes, each way. ``phase_s`` and ``speed``: of its timer, against the clock.
    ``marks``: an Asterisk from before they were there does not know the command.
    """

    def __init__(
        self,
        clock: Clock,
        deliver: Callable[[str | bytes], None],
        *,
        json_control: bool = True,
        media_format: str = "slin16",
        trip_s: Callable[[], float] = lambda: 0.001,
        phase_s: float = 0.007,
        speed: float = 1.0,
        marks: bool = True,
    ) -> None:
        self.clock, self._deliver, self._trip_s = clock, deliver, trip_s
        self._json, self._marks, self._phase_s, self._speed = json_control, marks, phase_s, speed
        self.media_format = media_format
        self.rate_hz = {"ulaw": 8_000, "slin": 8_000, "slin16": 16_000, "slin24": 24_000}[media_format]
        self.frame_bytes = self.rate_hz // 50 * (1 if media_format == "ulaw" else 2)
        self.played: list[tuple[float, bytes]] = []  # when each 20 ms began, and what was in them
        self.commands: list[str] = []
        self.unknown: list[str] = []
        self.dropped_bytes = 0
        self.most_queued_frames = 0
        self.hung_up = False
        self._queue: deque[bytes | str] = deque()
        self._queued_frames = 0
        self._full = self._paused = self._buffering = self._report_drained = False
        self._leftover = b""
        self._arrives_s = self._returns_s = 0.0
        self._arriving: deque[str | bytes] = deque()
        self._returning: deque[str | bytes] = deque()

    # --- the network --------------------------------------------------------------------------------

    async def send(self, message: str | bytes) -> None:
        """What the server sends."""
        self._arrives_s = max(self._arrives_s, self.clock.now() + self._trip_s())
        self._arriving.append(message)  # timers that are due together come in any order
        self.clock.call_at(self._arrives_s, lambda: self.arrive(self._arriving.popleft()))

    def _send(self, message: str | bytes) -> None:
        self._returns_s = max(self._returns_s, self.clock.now() + self._trip_s())
        self._returning.append(message)
        self.clock.call_at(self._returns_s, lambda: self._deliver(self._returning.popleft()))

    # --- events -------------------------------------------------------------------------------------

    def event(self, name: str, **fields: Any) -> str:
        """As the driver writes it; the plain format has the channel's id in some events only."""
        if self._json:
            return json.dumps({"event": name, "channel_id": CHANNEL_ID, **fields}, separators=(",", ":"))
        if name in ("MEDIA_MARK_PROCESSED", "MEDIA_BUFFERING_COMPLETED"):
            return f"{name} {fields['correlation_id']}".rstrip()
        shown = {k: str(v).lower() if isinstance(v, bool) else v for k, v in fields.items()}
        if name == "DTMF_END":
            return f"{name} digit:{fields['digit']} channel_id:{CHANNEL_ID}"
        if name in ("STATUS", "ERROR"):
            shown = {"channel_id": CHANNEL_ID, **shown}
        return " ".join([name, *(f"{key}:{value}" for key, value in shown.items())])

    def start_message(self, **changes: Any) -> str:
        fields: dict[str, Any] = {
            "connection_id": CONNECTION_ID,
            "channel": CHANNEL,
            "channel_id": CHANNEL_ID,
            "format": self.media_format,
            "optimal_frame_size": self.frame_bytes,
            "ptime": 20,
        }
        if self._json:
            fields["channel_variables"] = {"DIALEDPEERNUMBER": "duplex/c(slin16)f(json)n"}
        return self.event("MEDIA_START", **(fields | changes))

    def start(self, **changes: Any) -> None:
        self._send(self.start_message(**changes))

    def press(self, key: str) -> None:
        self._send(self.event("DTMF_END", digit=key))

    def say(self, code: bytes) -> None:
        """Sound of the caller."""
        self._send(code)

    def say_samples(self, samples: Samples) -> None:
        """float32[n] at ``rate_hz``."""
        self.say(encode_ulaw(samples) if self.media_format == "ulaw" else (samples * 32767).astype("<i2").tobytes())

    def text(self, message: str) -> None:
        self._send(message)

    # --- the driver ---------------------------------------------------------------------------------

    def arrive(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            self._media(message)
            return
        assert len(message.encode()) <= 128, "the driver leaves longer commands unread"
        if self._json:
            said = json.loads(message)
            command, identifier = said["command"], said.get("correlation_id", "")
        else:
            command, _, identifier = message.strip().partition(" ")
        known = command in COMMANDS and (self._marks or command != "MARK_MEDIA")
        (self.commands if known else self.unknown).append(command)
        if known:
            self._obey(command, identifier)

    def _obey(self, command: str, identifier: str) -> None:
        match command:
            case "HANGUP":
                self.hung_up = True
            case "MARK_MEDIA":
                self._queue.append(self.event("MEDIA_MARK_PROCESSED", correlation_id=identifier))
            case "FLUSH_MEDIA":
                self._queue.clear()
                self._queued_frames, self._buffering, self._leftover = 0, False, b""
            case "START_MEDIA_BUFFERING":
                self._buffering = True
            case "STOP_MEDIA_BUFFERING":
                if self._leftover:
                    self._queue_frame(self._leftover.ljust(self.frame_bytes, b"\0"))
                self._buffering, self._leftover = False, b""
                self._queue.append(self.event("MEDIA_BUFFERING_COMPLETED", correlation_id=identifier))
            case "PAUSE_MEDIA" | "CONTINUE_MEDIA":
                self._paused = command == "PAUSE_MEDIA"
            case "REPORT_QUEUE_DRAINED":
                self._report_drained = True
            case "GET_STATUS":
                self._send(
                    self.event(
                        "STATUS",
                        queue_length=self._queued_frames,
                        xon_level=XON_FRAMES,
                        xoff_level=XOFF_FRAMES,
                        queue_full=self._full,
                        bulk_media=self._buffering,
                        media_paused=self._paused,
                    )
                )

    def _media(self, sound: bytes) -> None:
        if self._queued_frames >= MAX_FRAMES:
            self.dropped_bytes += len(sound)
            return
        if self._buffering:
            sound = self._leftover + sound
        whole = len(sound) // self.frame_bytes * self.frame_bytes
        for start in range(0, whole, self.frame_bytes):
            self._queue_frame(sound[start : start + self.frame_bytes])
        self._leftover = sound[whole:] if self._buffering else b""
        self.dropped_bytes += 0 if self._buffering else len(sound) - whole

    def _queue_frame(self, frame: bytes) -> None:
        self._queue.append(frame)
        self._queued_frames += 1
        self.most_queued_frames = max(self.most_queued_frames, self._queued_frames)
        if not self._full and self._queued_frames >= XOFF_FRAMES:
            self._full = True
            self._send(self.event("MEDIA_XOFF"))

    async def run(self) -> None:
        """The timer. Ends when cancelled."""
        began_s, beat = self.clock.now() + self._phase_s, 0
        while True:
            await self.clock.sleep_until(began_s + beat * PACKET_S / self._speed)
            beat += 1
            self.played.append((self.clock.now(), self._dequeue()))

    def _dequeue(self) -> bytes:
        """One frame, or nothing."""
        if self._paused:
            return b""
        if self._full and self._queued_frames < XON_FRAMES:
            self._full = False
            self._send(self.event("MEDIA_XON"))
        if not self._queue and self._report_drained:
            self._report_drained = False
            self._send(self.event("QUEUE_DRAINED"))
        while self._queue:
            head = self._queue.popleft()
            if isinstance(head, bytes):
                self._queued_frames -= 1
                return head
            self._send(head)
        return b""

    # --- what the caller heard ------------------------------------------------------------------------

    def packets(self) -> list[Samples]:
        """Of each 20 ms, float32 at ``rate_hz``; zeros where nothing was played."""
        quiet = np.zeros(self.rate_hz // 50, dtype=np.float32)
        decode = decode_ulaw if self.media_format == "ulaw" else linear
        return [decode(code) if code else quiet for _, code in self.played]

    def levels_db(self) -> list[float]:
        """RMS of each 20 ms in dBFS; −100 for silence."""
        return [20 * float(np.log10(max(1e-5, np.sqrt(np.mean(p**2))))) for p in self.packets()]

    def last_heard_s(self, threshold_db: float = -45.0) -> float:
        """When the last audible packet ended."""
        audible = [at_s for (at_s, _), level in zip(self.played, self.levels_db(), strict=True) if level > threshold_db]
        return audible[-1] + PACKET_S


def linear(code: bytes) -> Samples:
    return np.frombuffer(code, dtype="<i2").astype(np.float32) / 32768


# --- a channel that is connected to a real server ---------------------------------------------------------


class Caller:
    """A call in real time: the channel, its WebSocket, and somebody who speaks, listens and waits."""

    def __init__(self, socket: ClientConnection, **channel: Any) -> None:
        self.socket = socket
        self.clock = MonotonicClock()
        self._out: asyncio.Queue[str | bytes] = asyncio.Queue()
        self.channel = ChanWebsocket(self.clock, self._out.put_nowait, trip_s=lambda: 0.0, **channel)
        self.closed = asyncio.Event()
        self._speech: deque[Samples] = deque()

    def say(self, samples: Samples) -> None:
        """float32[n] at the call's rate, in real time from now on, after what was said before."""
        n = self.channel.rate_hz // 50
        self._speech.extend(samples[i : i + n] for i in range(0, len(samples) - n + 1, n))

    def audible(self, last: int = 1, threshold_db: float = -45.0) -> bool:
        """Whether any of the last packets was."""
        return any(level > threshold_db for level in self._levels(last))

    def silent_for(self, packets: int, threshold_db: float = -45.0) -> bool:
        return len(self.channel.played) > packets and not self.audible(packets, threshold_db)

    def _levels(self, last: int) -> list[float]:
        decode = decode_ulaw if self.channel.media_format == "ulaw" else linear
        codes = [code for _, code in self.channel.played[-last:] if code]
        return [20 * float(np.log10(max(1e-5, np.sqrt(np.mean(decode(code) ** 2))))) for code in codes]

    async def write(self) -> None:
        while True:
            await self.socket.send(await self._out.get())

    async def read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for message in self.socket:
                self.channel.arrive(message)
        self.closed.set()

    async def microphone(self) -> None:
        quiet, began_s, n = np.zeros(self.channel.rate_hz // 50, dtype=np.float32), self.clock.now(), 0
        while True:
            self.channel.say_samples(self._speech.popleft() if self._speech else quiet)
            n += 1
            await self.clock.sleep_until(began_s + n * PACKET_S)


@asynccontextmanager
async def calling(url: str, **channel: Any) -> AsyncIterator[Caller]:
    """Asterisk on the line, with a caller who says nothing yet."""
    async with connect(url, subprotocols=["media"]) as socket:  # type: ignore[list-item]
        caller = Caller(socket, **channel)
        caller.channel.start()
        works = (caller.write(), caller.read(), caller.channel.run(), caller.microphone())
        tasks = [asyncio.create_task(work) for work in works]
        try:
            yield caller
        finally:
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception) and not isinstance(result, ConnectionClosed):
                    raise result
