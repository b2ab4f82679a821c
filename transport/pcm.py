"""PCM16 little-endian mono at 24 kHz: conversion, and a live stream of packets from chunks of any size."""

from __future__ import annotations

import numpy as np

from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Origin, Packet, Samples, silence

BYTES_PER_SAMPLE = 2
PACKET_BYTES = PACKET_SAMPLES * BYTES_PER_SAMPLE


def to_pcm16(samples: Samples) -> bytes:
    """float32[n] in [-1, 1] (clipped) to 2n bytes."""
    pcm: bytes = np.clip(np.rint(samples * np.float32(32768.0)), -32768, 32767).astype("<i2").tobytes()
    return pcm


def from_pcm16(pcm: bytes | bytearray | memoryview) -> Samples:
    """2n bytes to float32[n] in [-1, 1)."""
    return np.frombuffer(pcm, dtype="<i2").astype(np.float32) / np.float32(32768.0)


class PcmBuffer:
    """Chunks of any size in, packets of 20 ms out. Holds at most ``max_samples``."""

    def __init__(self, max_samples: int) -> None:
        self._max_bytes = max_samples * BYTES_PER_SAMPLE
        self._bytes = bytearray()

    def __len__(self) -> int:
        """Samples held."""
        return len(self._bytes) // BYTES_PER_SAMPLE

    def push(self, pcm: bytes) -> int:
        """Takes whole samples; returns how many of them, the newest, did not fit."""
        room = self._max_bytes - len(self._bytes)
        self._bytes += pcm[:room]
        return max(0, len(pcm) - room) // BYTES_PER_SAMPLE

    def pop(self, max_packets: int, *, pad: bool = False) -> list[Samples]:
        """Up to ``max_packets`` of float32[480]. ``pad``: an incomplete last one is filled up with zeros."""
        if pad and (missing := -len(self._bytes) % PACKET_BYTES):
            self._bytes += bytes(missing)
        n = min(max_packets, len(self._bytes) // PACKET_BYTES)
        if n == 0:
            return []
        samples = from_pcm16(bytes(self._bytes[: n * PACKET_BYTES]))
        del self._bytes[: n * PACKET_BYTES]
        return list(samples.reshape(n, PACKET_SAMPLES))

    def clear(self) -> None:
        self._bytes.clear()


PACKET_S = PACKET_SAMPLES / SAMPLE_RATE_HZ
MAX_PACKETS_A_TICK = 16
GRACE_S = 0.06
LONGEST_STREAMED_CHUNK_S = 0.5


class LiveInput:
    """What a client pushes, as a stream that never stops once it has begun. Sans-I/O: ``now_s`` comes in.

    A client that sends ahead of real time is heard ahead of it, up to 16 packets (320 ms) a tick. One that
    stops sending is heard as silence, in real time, so that its turn can end. The difference between "stopped"
    and "sends in large chunks" is the chunk itself: the next one is due when the last has played out, and
    ``GRACE_S`` later it is missed. A chunk longer than ``LONGEST_STREAMED_CHUNK_S`` is a file, after which
    nothing is due.
    """

    def __init__(self, max_s: float = 60.0) -> None:
        self.max_s = max_s
        self._buffer = PcmBuffer(round(max_s * SAMPLE_RATE_HZ))
        self.pts = 0  # of the next packet
        self._begun = False
        self._quiet = False
        self._covered_s = 0.0  # up to when in wall time the stream has been accounted for

    def __len__(self) -> int:
        """Samples pushed and not yet heard."""
        return len(self._buffer)

    def push(self, pcm: bytes, now_s: float) -> int:
        """Takes whole samples of PCM16; returns how many, the newest, did not fit and were dropped."""
        if not pcm:
            return 0
        chunk_s = len(pcm) / BYTES_PER_SAMPLE / SAMPLE_RATE_HZ
        self._begun, self._quiet = True, False
        self._covered_s = now_s + (chunk_s if chunk_s <= LONGEST_STREAMED_CHUNK_S else 0.0)
        return self._buffer.push(pcm)

    def receive(self, now_s: float) -> list[Packet]:
        """The packets heard since the last call, contiguous in ``pts``. None until something was pushed."""
        heard = [self._packet(samples, Origin.WIRE) for samples in self._buffer.pop(MAX_PACKETS_A_TICK)]
        if heard:
            self._covered_s = max(self._covered_s, now_s)
            return heard
        if not self._begun or (not self._quiet and now_s < self._covered_s + GRACE_S):
            return []
        self._quiet = True
        heard += [self._packet(samples, Origin.WIRE) for samples in self._buffer.pop(1, pad=True)]
        due = min(MAX_PACKETS_A_TICK, int((now_s - self._covered_s) / PACKET_S + 1e-6))
        while len(heard) < due:
            heard.append(self._packet(silence(), Origin.SILENCE))
        # A machine that slept does not owe the sleep's silence.
        self._covered_s = max(self._covered_s + len(heard) * PACKET_S, now_s - PACKET_S * MAX_PACKETS_A_TICK)
        return heard

    def clear(self) -> None:
        """Forgets what was pushed and not yet heard."""
        self._buffer.clear()

    def _packet(self, samples: Samples, origin: Origin) -> Packet:
        packet = Packet(self.pts, samples, origin)
        self.pts += PACKET_SAMPLES
        return packet
