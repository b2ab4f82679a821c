"""A simulated Asterisk at the other end of an AudioSocket: says its UUID and its sound, and plays what it is sent.

It reads as ``res_audiosocket.c`` does: three bytes of header, then as many as they say; a kind that is neither sound
nor hang-up ends the call, and so does sound in another format than the channel's. It buffers nothing: what arrives is
played when it arrives, so the times of arrival say how even it sounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import uuid
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np

from duplex.clock import MonotonicClock
from duplex.frames import Samples

CALL_ID = uuid.UUID("4d2e8a9c-0b7f-4c1d-9e3a-5f6071829304")
PACKET_S = 0.02
KINDS = {8_000: 0x10, 12_000: 0x11, 16_000: 0x12, 24_000: 0x13, 48_000: 0x16}


def frame(kind: int, payload: bytes = b"") -> bytes:
    return struct.pack(">BH", kind, len(payload)) + payload


class AudioSocketFarEnd:
    """One call over a connection that is open. ``rate_hz``: of the channel."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rate_hz: int = 8_000) -> None:
        self.reader, self.writer, self.rate_hz = reader, writer, rate_hz
        self.clock = MonotonicClock()
        self.played: list[tuple[float, Samples]] = []  # when each packet came, and what was in it
        self.trouble: str | None = None  # what would have made Asterisk give up
        self.hung_up = False  # the server said so
        self.over = asyncio.Event()
        self._speech: deque[Samples] = deque()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def introduce(self) -> None:
        self.send(frame(0x01, CALL_ID.bytes))

    def press(self, key: str) -> None:
        self.send(frame(0x03, key.encode()))

    def say(self, samples: Samples) -> None:
        """float32[n] at ``rate_hz``, in real time from now on, after what was said before."""
        n = self.rate_hz // 50
        self._speech.extend(samples[i : i + n] for i in range(0, len(samples) - n + 1, n))

    async def microphone(self) -> None:
        began_s, n = self.clock.now(), 0
        while True:
            samples = self._speech.popleft() if self._speech else np.zeros(self.rate_hz // 50, dtype=np.float32)
            self.send(frame(KINDS[self.rate_hz], (samples * 32767).astype("<i2").tobytes()))
            n += 1
            await self.clock.sleep_until(began_s + n * PACKET_S)

    async def read(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while not self.hung_up and self.trouble is None:
                kind, length = struct.unpack(">BH", await self.reader.readexactly(3))
                payload = await self.reader.readexactly(length)
                if kind == 0x00:
                    self.hung_up = True
                elif kind != KINDS[self.rate_hz]:
                    self.trouble = f"kind 0x{kind:02x}"
                else:
                    samples = np.frombuffer(payload, dtype="<i2").astype(np.float32) / 32768
                    self.played.append((self.clock.now(), samples))
        self.over.set()

    # --- what the caller heard ------------------------------------------------------------------------

    def audible(self, last: int = 1, threshold_db: float = -45.0) -> bool:
        """Whether any of the last packets was."""
        return any(_level_db(samples) > threshold_db for _, samples in self.played[-last:])

    def silent_for(self, packets: int) -> bool:
        return len(self.played) > packets and not self.audible(packets)


def _level_db(samples: Samples) -> float:
    return 20 * float(np.log10(max(1e-5, np.sqrt(np.mean(samples**2)))))


@asynccontextmanager
async def connected(address: tuple[str, int], rate_hz: int = 8_000, **options: int) -> AsyncIterator[AudioSocketFarEnd]:
    """A connection on which nothing has been said. ``options``: of the stream, as ``limit``."""
    reader, writer = await asyncio.open_connection(*address, **options)
    try:
        yield AudioSocketFarEnd(reader, writer, rate_hz)
    finally:
        writer.transport.abort()


@asynccontextmanager
async def calling(address: tuple[str, int], rate_hz: int = 8_000) -> AsyncIterator[AudioSocketFarEnd]:
    """Asterisk on the line, with a caller who says nothing yet."""
    async with connected(address, rate_hz) as far_end:
        far_end.introduce()
        tasks = [asyncio.create_task(work) for work in (far_end.read(), far_end.microphone())]
        try:
            yield far_end
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
