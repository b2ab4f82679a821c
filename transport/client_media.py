"""The media ends of the call client: a microphone that keeps time and an ear that does not wait.

Both work at the wire's 48 kHz, where Opus does, and keep what passed through them for the recording.
"""

from __future__ import annotations

import asyncio
from collections import deque
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import soxr
from aiortc import MediaStreamTrack, RTCRtpReceiver

from duplex.clock import Clock
from duplex.errors import TransportError
from duplex.frames import PACKET_MS, SAMPLE_RATE_HZ, Samples
from duplex.recording import AUDIBLE_DBFS, Arrival, level_dbfs

WIRE_RATE_HZ = 48_000
WIRE_PACKET_SAMPLES = WIRE_RATE_HZ * PACKET_MS // 1000  # 960
PACKET_S = PACKET_MS / 1000.0

Int16 = npt.NDArray[np.int16]


class Microphone(MediaStreamTrack):
    """Packets at absolute deadlines: what is to be said, and silence when there is nothing.

    Packet k is spoken during [k, k + 1) × 20 ms after ``origin_s`` and leaves at its end, as from a microphone.
    """

    kind = "audio"

    def __init__(self, clock: Clock, max_packets: int) -> None:
        super().__init__()
        self._clock = clock
        self._max = max_packets
        self._pending: deque[Int16] = deque()  # bounded by push
        self._spoken: list[tuple[int, Int16]] = []
        self._watch = asyncio.Event()
        self.started = asyncio.Event()
        self.origin_s = 0.0
        self.sent = 0
        self.late_s = 0.0

    def push(self, wire: Int16) -> int:
        """Queues int16[n] at 48 kHz; returns the number of the packet it will begin with."""
        padded = np.concatenate([wire, np.zeros(-len(wire) % WIRE_PACKET_SAMPLES, np.int16)])
        packets = padded.reshape(-1, WIRE_PACKET_SAMPLES)
        start = self.sent + len(self._pending)
        if start + len(packets) > self._max:
            raise TransportError("There is more to play than max_call_s leaves room for.")
        self._pending.extend(packets)
        return start

    async def wait_sent(self, count: int) -> None:
        """Returns when ``count`` packets have left or the track has ended."""
        while self.sent < count and self.readyState == "live":
            self._watch.clear()
            await self._watch.wait()

    async def recv(self) -> av.AudioFrame:
        if not self.started.is_set():
            self.origin_s = self._clock.now()
            self.started.set()
        due_s = self.origin_s + (self.sent + 1) * PACKET_S
        await self._clock.sleep_until(due_s)
        self.late_s = max(self.late_s, self._clock.now() - due_s)
        frame = av.AudioFrame(format="s16", layout="stereo", samples=WIRE_PACKET_SAMPLES)
        frame.sample_rate = WIRE_RATE_HZ
        frame.time_base = Fraction(1, WIRE_RATE_HZ)
        frame.pts = self.sent * WIRE_PACKET_SAMPLES
        if self._pending:
            packet = self._pending.popleft()
            self._spoken.append((self.sent, packet))
        else:
            packet = np.zeros(WIRE_PACKET_SAMPLES, np.int16)
        frame.planes[0].update(np.repeat(packet, 2).tobytes())
        self.sent += 1
        self._watch.set()
        return frame

    def stop(self) -> None:
        super().stop()
        self._watch.set()

    def spoken(self, n_samples: int) -> Samples:
        """What left so far, as float32[n_samples] at 48 kHz from the origin."""
        said = np.zeros(n_samples, dtype=np.float32)
        for number, packet in self._spoken:
            start = number * WIRE_PACKET_SAMPLES
            part = packet[: max(0, n_samples - start)]
            said[start : start + len(part)] = part.astype(np.float32) / 32768.0
        return said


class Ear:
    """Stands in for aiortc's jitter buffer: takes every packet as it arrives and hands none on.

    Opus is decoded here (0.04 ms a packet) with one decoder, in order; a packet that comes after its
    successor is only counted.
    """

    def __init__(self, clock: Clock, max_packets: int) -> None:
        self._clock = clock
        self._max = max_packets
        self._decoder = av.CodecContext.create("libopus", "r")
        self._decoder.format = "s16"
        self._decoder.layout = "mono"
        self._decoder.sample_rate = WIRE_RATE_HZ
        self._sequence: int | None = None
        self._timestamp = 0
        self.arrivals: list[Arrival] = []
        self.last_audible_s: float | None = None
        self.full = False

    def add(self, packet: Any) -> tuple[bool, None]:
        """aiortc's interface: (ask for a key frame?, the frame to decode). ``packet`` is its ``RtpPacket``."""
        now_s = self._clock.now()
        if len(self.arrivals) >= self._max:
            self.full = True
            return False, None
        if self._sequence is None:
            self._sequence, self._timestamp = packet.sequence_number, packet.timestamp
        sequence = self._sequence + _signed(packet.sequence_number - self._sequence, 16)
        timestamp = self._timestamp + _signed(packet.timestamp - self._timestamp, 32)
        if self.arrivals and sequence <= self._sequence:
            self.arrivals.append(Arrival(now_s, sequence, timestamp, np.zeros(0, np.int16)))
            return False, None
        self._sequence, self._timestamp = sequence, timestamp
        try:
            frames = self._decoder.decode(av.Packet(packet.payload)) if packet.payload else []
        except av.FFmpegError:
            frames = []  # a damaged packet is heard as silence
        if frames:
            samples = np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames])
            self.arrivals.append(Arrival(now_s, sequence, timestamp, samples))
            if level_dbfs(samples.astype(np.float32) / 32768.0) >= AUDIBLE_DBFS:
                self.last_audible_s = now_s
        return False, None


def divert(receiver: RTCRtpReceiver, ear: Ear) -> None:
    """Puts ``ear`` where the receiver keeps its jitter buffer, so that its RTCP reports go on as they were."""
    name = "_RTCRtpReceiver__jitter_buffer"
    if not hasattr(receiver, name):
        raise TransportError(
            "This version of aiortc is not the one this client knows. Run: pip install 'aiortc>=1.16,<2'"
        )
    setattr(receiver, name, ear)


def _signed(difference: int, bits: int) -> int:
    """A difference of two counters that wrap at 2**bits, as the smallest step that explains it."""
    half = 1 << (bits - 1)
    return (difference + half) % (1 << bits) - half


def to_wire(samples: Samples) -> Int16:
    """float32[n] at 24 kHz → int16[2n] at 48 kHz."""
    wide = soxr.resample(np.asarray(samples, dtype=np.float32), SAMPLE_RATE_HZ, WIRE_RATE_HZ)
    scaled: Int16 = (np.clip(wide, -1.0, 1.0) * 32767.0).astype(np.int16)
    return scaled
