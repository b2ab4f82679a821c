"""Opus in and out, and the two places where our audio meets aiortc.

*In.* aiortc keeps a receiver's jitter buffer in one attribute and hands it each packet after its own
bookkeeping (RTCP statistics, NACK, RTX). ``divert`` puts an object of ours there. It takes the packet and
returns "no frame yet", so aiortc's decoder and its unbounded track queue stay idle while its receiver
reports stay right.

*Out.* A track may return encoded packets, which aiortc's sender puts on the wire as they are: no queue, no
executor, no resampler. The RTP timestamp is the packet's media time.

The attributes of aiortc that are not public API are named here and in :mod:`duplex.transport.receiver_reports`
alone; a test pins them, and a version without them is refused with the line that installs one that fits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Protocol

import av
import numpy as np
from aiortc import MediaStreamTrack, RTCRtpReceiver
from aiortc.mediastreams import MediaStreamError

from duplex.errors import TransportError
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Samples
from duplex.half_band import Halver
from duplex.line import OutPacket
from duplex.transport.jitter import RTP_CLOCK_HZ, JitterBuffer

_UNITS = RTP_CLOCK_HZ // SAMPLE_RATE_HZ


class OpusDecoder:
    """Payloads of one stream to 24 kHz mono. About 0.05 ms a packet; state carries over, ``reset`` forgets it."""

    def __init__(self) -> None:
        self._halve = Halver(first=0)
        self.reset()

    def reset(self) -> None:
        codec = av.CodecContext.create("libopus", "r")
        codec.format, codec.layout, codec.sample_rate = "s16", "mono", RTP_CLOCK_HZ
        self._codec = codec
        self._halve.reset()

    def __call__(self, payload: bytes) -> Samples:
        """float32[n] at 24 kHz, n as long as the packet says. Raises ``av.FFmpegError`` for a damaged one."""
        frames = self._codec.decode(av.Packet(payload))
        if not frames:
            raise ValueError("an Opus packet without sound")
        sound = np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames]) * _FROM_INT16
        return self._halve(sound)


_FROM_INT16 = np.float32(1.0 / 32768.0)


class OpusEncoder:
    """24 kHz mono to Opus packets of 20 ms, with the redundancy a receiver repairs single losses from."""

    def __init__(self, bit_rate: int = 32_000) -> None:
        codec = av.CodecContext.create("libopus", "w")
        codec.format, codec.layout, codec.sample_rate = "flt", "mono", SAMPLE_RATE_HZ
        codec.bit_rate = bit_rate
        codec.time_base = Fraction(1, SAMPLE_RATE_HZ)
        codec.options = {
            "application": "voip",
            "frame_duration": "20",
            "compression_level": "5",
            "fec": "1",
            "packet_loss": "5",
        }
        self._codec = codec
        self._pts = 0

    def __call__(self, samples: Samples) -> bytes:
        """One payload for float32[480]."""
        frame = av.AudioFrame.from_ndarray(np.clip(samples, -1.0, 1.0)[np.newaxis, :], format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE_HZ, self._pts, self._codec.time_base
        self._pts += PACKET_SAMPLES
        return b"".join(bytes(packet) for packet in self._codec.encode(frame))


class RtpTap(Protocol):
    """What ``divert`` puts in place of aiortc's jitter buffer."""

    def add(self, packet: Any) -> tuple[bool, None]:
        """Takes an ``RtpPacket``; returns (ask the sender for a key frame?, no frame for aiortc)."""
        ...


class Microphone:
    """The far end's voice on its way into the jitter buffer."""

    def __init__(self, buffer: JitterBuffer, now_s: Callable[[], float]) -> None:
        self._buffer, self._now_s = buffer, now_s

    def add(self, packet: Any) -> tuple[bool, None]:
        if packet.payload:
            self._buffer.push(packet.sequence_number, packet.timestamp, packet.payload, self._now_s())
        return False, None


JITTER_BUFFER = "_RTCRtpReceiver__jitter_buffer"


def divert(receiver: RTCRtpReceiver, tap: RtpTap) -> None:
    """Has ``tap`` get the receiver's packets. Raises ``TransportError`` if this aiortc is built otherwise."""
    if not callable(getattr(getattr(receiver, JITTER_BUFFER, None), "add", None)):
        raise TransportError(
            "This aiortc keeps its jitter buffer elsewhere, and ours cannot take its place. "
            "Run: pip install 'aiortc>=1.16,<1.17'"
        )
    setattr(receiver, JITTER_BUFFER, tap)


class Voice(MediaStreamTrack):
    """Our voice on its way out: a packet put in leaves at the sender's next turn of the loop.

    Between replies the session sends zeros. After ``QUIET_AFTER`` packets of them only every ``QUIET_EVERY``-th
    leaves, as with Opus' own discontinuous transmission: timestamps go on counting, the far end plays
    silence, and an idle call costs a third less.

    ``on_first_sent`` is called with the first packet's ``pts`` once the sender has sent it.
    Bounded by ``max_packets``; more than that means the network thread stood still, and the oldest go.
    """

    kind = "audio"
    QUIET_AFTER = 10  # packets: 200 ms
    QUIET_EVERY = 20  # packets: 400 ms

    def __init__(self, max_packets: int = 16) -> None:
        super().__init__()
        self._encode = OpusEncoder()
        self._outgoing: deque[av.Packet[Any]] = deque(maxlen=max_packets)
        self._news = asyncio.Event()
        self._asked = False
        self._zeros = 0  # packets of silence in a row
        self._first = True
        self._first_pts: int | None = None
        self.on_first_sent: Callable[[int], None] = lambda pts: None

    def put(self, packet: OutPacket) -> None:
        self._zeros = 0 if packet.samples.any() else self._zeros + 1
        if self._zeros > self.QUIET_AFTER and self._zeros % self.QUIET_EVERY:
            return
        encoded: av.Packet[Any] = av.Packet(self._encode(packet.samples))
        encoded.pts = packet.pts * _UNITS
        encoded.time_base = Fraction(1, RTP_CLOCK_HZ)
        if not self._asked:
            self._outgoing.clear()  # nobody listens yet; what they missed is not to be made up for
        self._outgoing.append(encoded)
        self._news.set()

    def take_back(self) -> int:
        """Drops what has not left; returns how many packets that were."""
        count = len(self._outgoing)
        self._outgoing.clear()
        return count

    async def recv(self) -> av.Packet[Any]:
        self._asked = True
        if self._first_pts is not None:
            self.on_first_sent(self._first_pts)
            self._first_pts, self.on_first_sent = None, lambda pts: None
        while not self._outgoing:
            self._news.clear()
            if self.readyState != "live":
                raise MediaStreamError
            await self._news.wait()
        packet = self._outgoing.popleft()
        if self._first:
            self._first_pts, self._first = (packet.pts or 0) // _UNITS, False
        return packet

    def stop(self) -> None:
        super().stop()
        self._news.set()
