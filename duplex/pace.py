"""Heard packets at the speed of speech, for an agent that lives in real time.

A native agent takes one frame per frame's duration; a client may hand over a whole recording at once. What comes
early waits here and is let through one packet a tick. While more than a little waits, packets without a voice are
left out, so that a line that was ahead once does not stay late for good: pauses get shorter, words are never touched.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from duplex.frames import PACKET_SAMPLES, Packet

_QUIET_RMS = 10 ** (-50 / 20)
_ON_TIME_PACKETS = 8  # 160 ms: what a network's jitter brings at once


class Pacer:
    """Give it what was heard, every tick; it returns what is to be heard now, with ``pts`` of its own, without gaps.

    ``max_packets`` bounds what waits; beyond that the newest are lost, and counted in ``dropped``.
    """

    def __init__(self, max_packets: int = 3000) -> None:
        self._waiting: deque[Packet] = deque()
        self._max = max_packets
        self._next_pts: int | None = None
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, heard: Iterable[Packet]) -> Packet | None:
        for packet in heard:
            if self._next_pts is None:
                self._next_pts = packet.pts
            if len(self._waiting) < self._max:
                self._waiting.append(packet)
            else:
                self.dropped += 1
        while len(self._waiting) > _ON_TIME_PACKETS and _quiet(self._waiting[0]):
            self._waiting.popleft()
        if not self._waiting or self._next_pts is None:
            return None
        packet = self._waiting.popleft()
        paced = packet if packet.pts == self._next_pts else replace(packet, pts=self._next_pts)
        self._next_pts += PACKET_SAMPLES
        return paced


def _quiet(packet: Packet) -> bool:
    return float(np.dot(packet.samples, packet.samples)) < _QUIET_RMS**2 * PACKET_SAMPLES
