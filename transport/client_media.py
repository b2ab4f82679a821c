"""The media ends of the WebRTC call: a microphone that keeps time and an ear that does not wait.

Both work at the wire's 48 kHz, where Opus does, and keep what passed through them for the recording.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
import soxr
from aiortc import MediaStreamTrack, RTCRtpReceiver

from duplex.clock import Clock
from duplex.errors import TransportError
from duplex.frames import SAMPLE_RATE_HZ, Samples
from duplex.recording import AUDIBLE_DBFS, Arrival, level_dbfs
from duplex.transport.client_script import Script

WIRE_RATE_HZ = 48_000

Overlay = Callable[[int, int], Samples]
"""(start, n) → float32[n] that is added to what leaves, from sample ``start`` of the sound clock."""


class Microphone(MediaStreamTrack):
    """The script as a track, with whatever else the microphone picks up (an echo) on top."""

    kind = "audio"

    def __init__(self, script: Script, clock: Clock, overlay: Overlay | None = None) -> None:
        super().__init__()
        self._script, self._clock, self._overlay = script, clock, overlay

    async def recv(self) -> av.AudioFrame:
        script, size = self._script, self._script.packet_samples
        script.start()
        await self._clock.sleep_until(script.due_s)
        start = script.sent * size
        packet = script.take()
        if self._overlay is not None:
            packet = packet + self._overlay(start, size)
        frame = av.AudioFrame(format="s16", layout="stereo", samples=size)
        frame.sample_rate = script.rate_hz
        frame.time_base = Fraction(1, script.rate_hz)
        frame.pts = start
        frame.planes[0].update(np.repeat((np.clip(packet, -1.0, 1.0) * 32767.0).astype(np.int16), 2).tobytes())
        return frame

    def stop(self) -> None:
        super().stop()
        self._script.end()


class _Waiting(NamedTuple):
    at_s: float
    timestamp: int
    payload: bytes


class Ear:
    """Stands in for aiortc's jitter buffer: takes every packet as it arrives and hands none on.

    Opus is decoded here (0.04 ms a packet) with one decoder, in order. A packet that came before its
    predecessor waits ``patience_s`` for it; one that comes after its successor was taken is only counted.
    ``on_packet`` gets each one in order, with its arrival.
    """

    def __init__(
        self,
        clock: Clock,
        max_packets: int,
        *,
        patience_s: float = 0.0,
        on_packet: Callable[[Arrival], None] | None = None,
    ) -> None:
        self._clock = clock
        self._max = max_packets
        self._patience_s, self._on_packet = patience_s, on_packet
        self._decoder = av.CodecContext.create("libopus", "r")
        self._decoder.format = "s16"
        self._decoder.layout = "mono"
        self._decoder.sample_rate = WIRE_RATE_HZ
        self._newest: tuple[int, int] | None = None  # sequence number and timestamp, unwrapped
        self._next = 0  # sequence number that would follow
        self._waiting: dict[int, _Waiting] = {}  # as many as arrive within ``patience_s``
        self.arrivals: list[Arrival] = []
        self.last_audible_s: float | None = None
        self.full = False

    def add(self, packet: Any) -> tuple[bool, None]:
        """aiortc's interface: (ask for a key frame?, the frame to decode). ``packet`` is its ``RtpPacket``."""
        now_s = self._clock.now()
        if len(self.arrivals) >= self._max:
            self.full = True
            return False, None
        if self._newest is None:
            self._newest, self._next = (packet.sequence_number, packet.timestamp), packet.sequence_number
        sequence = self._newest[0] + _signed(packet.sequence_number - self._newest[0], 16)
        timestamp = self._newest[1] + _signed(packet.timestamp - self._newest[1], 32)
        self._newest = max(self._newest, (sequence, timestamp))
        if sequence < self._next:
            self.arrivals.append(Arrival(now_s, sequence, timestamp, np.zeros(0, np.int16)))
            return False, None
        self._waiting[sequence] = _Waiting(now_s, timestamp, packet.payload)
        self._take(now_s - self._patience_s)
        return False, None

    def flush(self) -> None:
        """Waits for nobody any more."""
        self._take(np.inf)

    def _take(self, until_s: float) -> None:
        """Takes what is in order, and past a gap what arrived by ``until_s``."""
        while self._waiting:
            sequence = min(self._waiting)
            if sequence != self._next and self._waiting[sequence].at_s > until_s:
                return
            self._next = sequence + 1
            self._decode(sequence, self._waiting.pop(sequence))

    def _decode(self, sequence: int, packet: _Waiting) -> None:
        try:
            frames = self._decoder.decode(av.Packet(packet.payload)) if packet.payload else []
        except av.FFmpegError:
            frames = []  # a damaged packet is heard as silence
        if not frames:
            return
        samples = np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames])
        arrival = Arrival(packet.at_s, sequence, packet.timestamp, samples)
        self.arrivals.append(arrival)
        if level_dbfs(samples.astype(np.float32) / 32768.0) >= AUDIBLE_DBFS:
            self.last_audible_s = max(packet.at_s, self.last_audible_s or packet.at_s)
        if self._on_packet is not None:
            self._on_packet(arrival)


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


def to_wire(samples: Samples) -> Samples:
    """float32[n] at 24 kHz → float32[2n] at 48 kHz."""
    wide: Samples = soxr.resample(np.asarray(samples, dtype=np.float32), SAMPLE_RATE_HZ, WIRE_RATE_HZ)
    return np.clip(wide, -1.0, 1.0)
