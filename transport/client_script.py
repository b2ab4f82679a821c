"""What the user says: packets of 20 ms at absolute deadlines, and silence when there is nothing to say."""

from __future__ import annotations

import asyncio
from collections import deque

import numpy as np

from duplex.clock import Clock
from duplex.errors import TransportError
from duplex.frames import PACKET_MS, Samples

PACKET_S = PACKET_MS / 1000.0


class Script:
    """One user's side. Packet k is spoken during [k, k + 1) × 20 ms of the sound clock and leaves at its end.

    ``skew_ppm``: how much the sound clock runs fast. ``speed``: its seconds per real second.
    """

    def __init__(self, clock: Clock, *, rate_hz: int, max_packets: int, skew_ppm: float = 0.0) -> None:
        self.rate_hz = rate_hz
        self.speed = 1.0 + skew_ppm * 1e-6
        self.packet_samples = rate_hz * PACKET_MS // 1000
        self.started = asyncio.Event()
        self.origin_s = 0.0
        self.sent = 0
        self.late_s = 0.0
        self._clock = clock
        self._max = max_packets
        self._pending: deque[Samples] = deque()  # bounded by push
        self._spoken: list[tuple[int, Samples]] = []
        self._watch = asyncio.Event()
        self._over = False

    @property
    def full(self) -> bool:
        """The call is as long as it may be."""
        return self.sent >= self._max

    def start(self, at_s: float | None = None) -> None:
        """The time line begins now, or at wall time ``at_s``; later calls change nothing."""
        if not self.started.is_set():
            self.origin_s = self._clock.now() if at_s is None else at_s
            self.started.set()

    def at(self, at_s: float) -> float:
        """Seconds of the sound clock since the origin at wall time ``at_s``."""
        return (at_s - self.origin_s) * self.speed

    @property
    def due_s(self) -> float:
        """Wall time at which the next packet leaves: its last sample has been spoken."""
        return self.origin_s + (self.sent + 1) * PACKET_S / self.speed

    def push(self, samples: Samples) -> tuple[int, int]:
        """Queues float32[n]; returns the numbers of its first packet and of the one after its last."""
        size = self.packet_samples
        packets = np.pad(samples, (0, -len(samples) % size)).reshape(-1, size)
        start = self.sent + len(self._pending)
        if start + len(packets) > self._max:
            raise TransportError("There is more to play than max_call_s leaves room for.")
        self._pending.extend(packets)
        return start, start + len(packets)

    def take(self) -> Samples:
        """The packet that leaves now: float32[packet_samples]."""
        self.late_s = max(self.late_s, self._clock.now() - self.due_s)
        if self._pending:
            packet = self._pending.popleft()
            self._spoken.append((self.sent, packet))
        else:
            packet = np.zeros(self.packet_samples, dtype=np.float32)
        self.sent += 1
        self._watch.set()
        return packet

    async def wait_sent(self, count: int) -> None:
        """Returns when ``count`` packets have left or the call is over."""
        while self.sent < count and not self._over:
            self._watch.clear()
            await self._watch.wait()

    def end(self) -> None:
        """Nothing more will leave."""
        self._over = True
        self._watch.set()

    def spoken(self, n_samples: int) -> Samples:
        """What left so far: float32[n_samples] of the sound clock from the origin."""
        said = np.zeros(n_samples, dtype=np.float32)
        for number, packet in self._spoken:
            start = number * self.packet_samples
            part = packet[: max(0, n_samples - start)]
            said[start : start + len(part)] = part
        return said
