"""A simulated Twilio: buffers what it is sent as the real one does, and says what was heard.

It keeps a beat of its own, as a gateway to a telephone network must: every 20 ms a packet leaves for the caller, 160
bytes from the buffer or silence. A packet that has begun leaves whole. Marks return when the sound before them has been
played, at once where nothing is buffered, and all together on ``clear``. Both ways take their time, in order.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from duplex.clock import Clock
from duplex.codecs.g711 import decode_ulaw, encode_ulaw
from duplex.frames import Samples
from duplex.transport import twilio_wire as wire
from duplex.transport.telephone import Wire
from duplex.transport.telephone_edge import Encoding

STREAM, CALL = "MZ0123456789abcdef0123456789abcdef", "CA0123456789abcdef0123456789abcdef"
PACKET_S, PACKET_BYTES = 0.02, 160
ULAW = Encoding("pcmu", 8000, 1, decode_ulaw, encode_ulaw)
TWILIO = Wire(lambda code: wire.media(STREAM, code), lambda name: wire.mark(STREAM, name), lambda: wire.clear(STREAM))
"""The door's words for this far end's stream."""
QUIET = b"\xff" * PACKET_BYTES

CONNECTED = {"event": "connected", "protocol": "Call", "version": "1.0.0"}


def start(**parameters: str) -> dict[str, Any]:
    return {
        "event": "start",
        "sequenceNumber": "1",
        "start": {
            "accountSid": "AC0123456789abcdef0123456789abcdef",
            "streamSid": STREAM,
            "callSid": CALL,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": parameters,
        },
        "streamSid": STREAM,
    }


def media(code: bytes, number: int, chunk: int = 1) -> dict[str, Any]:
    return {
        "event": "media",
        "sequenceNumber": str(number),
        "media": {
            "track": "inbound",
            "chunk": str(chunk),
            "timestamp": str(20 * (chunk - 1)),
            "payload": base64.b64encode(code).decode(),
        },
        "streamSid": STREAM,
    }


def stop(number: int) -> dict[str, Any]:
    return {
        "event": "stop",
        "sequenceNumber": str(number),
        "stop": {"accountSid": "AC0123456789abcdef0123456789abcdef", "callSid": CALL},
        "streamSid": STREAM,
    }


class TwilioFarEnd:
    """``deliver`` gets each message for the server, as text. ``trip_s``: how long the next message takes, each way.

    ``phase_s``: where its beat lies against the clock. ``speed``: of its own clock, against the clock passed in.
    """

    def __init__(
        self,
        clock: Clock,
        deliver: Callable[[str], None],
        *,
        trip_s: Callable[[], float] = lambda: 0.03,
        phase_s: float = 0.007,
        speed: float = 1.0,
    ) -> None:
        self.clock, self._deliver, self._trip_s = clock, deliver, trip_s
        self._phase_s, self._speed = phase_s, speed
        self.played: list[tuple[float, bytes]] = []  # when each packet began, and what was in it
        self.marks: list[tuple[str, str]] = []  # in order of return: name, and "played" or "cleared"
        self.received: list[dict[str, Any]] = []
        self.most_buffered_s = 0.0
        self.cleared_at_s: list[float] = []
        self._buffer: deque[bytes | str] = deque()
        self._waiting: list[str] = []  # marks behind the packet that is being played
        self._number = 1  # of messages sent
        self._chunk = 0
        self._arrives_s = self._returns_s = 0.0
        self._arriving: deque[str] = deque()
        self._returning: deque[str] = deque()

    # --- the network --------------------------------------------------------------------------------

    async def send(self, message: str | bytes) -> None:
        """What the server sends."""
        assert isinstance(message, str)
        self._arrives_s = max(self._arrives_s, self.clock.now() + self._trip_s())
        self._arriving.append(message)  # timers that are due together come in any order
        self.clock.call_at(self._arrives_s, lambda: self.arrive(json.loads(self._arriving.popleft())))

    def answer(self, message: dict[str, Any]) -> None:
        """What the far end sends, numbered."""
        self._number += 1
        text = json.dumps({**message, "sequenceNumber": str(self._number), "streamSid": STREAM})
        self._returns_s = max(self._returns_s, self.clock.now() + self._trip_s())
        self._returning.append(text)
        self.clock.call_at(self._returns_s, lambda: self._deliver(self._returning.popleft()))

    # --- the gateway --------------------------------------------------------------------------------

    def arrive(self, message: dict[str, Any]) -> None:
        self.received.append(message)
        assert message["streamSid"] == STREAM
        match message["event"]:
            case "media":
                self._buffer.append(base64.b64decode(message["media"]["payload"], validate=True))
                self.most_buffered_s = max(self.most_buffered_s, self.buffered_s)
            case "mark":
                if self._buffer:
                    self._buffer.append(message["mark"]["name"])
                elif self._waiting:
                    self._waiting.append(message["mark"]["name"])
                else:
                    self._return(message["mark"]["name"], "played")
            case "clear":
                self.cleared_at_s.append(self.clock.now())
                for name in self._waiting:  # their sound has left
                    self._return(name, "played")
                for waiting in self._buffer:
                    if isinstance(waiting, str):
                        self._return(waiting, "cleared")
                self._buffer.clear()
                self._waiting = []
            case other:
                raise AssertionError(f"Twilio knows no {other}")

    @property
    def buffered_s(self) -> float:
        return sum(len(each) for each in self._buffer if isinstance(each, bytes)) / PACKET_BYTES * PACKET_S

    def _return(self, name: str, fate: str) -> None:
        self.marks.append((name, fate))
        self.answer({"event": "mark", "mark": {"name": name}})

    def say(self, samples: Samples) -> None:
        """20 ms of the caller: float32[160] at 8 kHz."""
        self._chunk += 1
        self.answer(media(encode_ulaw(samples), 0, self._chunk))

    def press(self, key: str) -> None:
        self.answer({"event": "dtmf", "dtmf": {"track": "inbound_track", "digit": key}})

    async def run(self) -> None:
        """The beat. Ends when cancelled."""
        began_s = self.clock.now() + self._phase_s
        beat = 0
        while True:
            await self.clock.sleep_until(began_s + beat * PACKET_S / self._speed)
            beat += 1
            for name in self._waiting:
                self._return(name, "played")
            self._waiting = []
            self.played.append((self.clock.now(), self._packet()))

    def _packet(self) -> bytes:
        code = b""
        while self._buffer and (isinstance(self._buffer[0], str) or len(code) < PACKET_BYTES):
            head = self._buffer.popleft()
            if isinstance(head, str):
                self._waiting.append(head)
                continue
            code += head
        if len(code) > PACKET_BYTES:
            self._buffer.appendleft(code[PACKET_BYTES:])
        return code[:PACKET_BYTES].ljust(PACKET_BYTES, b"\xff")

    # --- what the caller heard ------------------------------------------------------------------------

    def heard(self) -> Samples:
        """float32[n] at 8 kHz, silence included."""
        return decode_ulaw(b"".join(code for _, code in self.played))

    def levels_db(self) -> list[float]:
        """RMS of each packet in dBFS; −100 for silence."""
        packets = [decode_ulaw(code) for _, code in self.played]
        return [20 * float(np.log10(max(1e-5, np.sqrt(np.mean(p**2))))) for p in packets]

    def last_heard_s(self, threshold_db: float = -45.0) -> float:
        """When the last audible packet ended."""
        audible = [at_s for (at_s, _), level in zip(self.played, self.levels_db(), strict=True) if level > threshold_db]
        return audible[-1] + PACKET_S


def voice(n: int) -> Samples:
    """20 ms of a caller's voice at 8 kHz, the n-th: float32[160]."""
    t = (np.arange(160) + 160 * n) / 8000
    return (0.2 * np.sin(2 * np.pi * 250 * t)).astype(np.float32)


async def cancelled(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
