"""Words of ours that take no floor: "mm-hm" in the user's pause, "one moment" when thinking takes long.

Sans-I/O, like :mod:`duplex.playout`: the way out asks for the next packet. An aside is never held, resumed or
remembered; it is cut short, faded, when somebody's real words are in the way.
"""

from __future__ import annotations

import numpy as np

from duplex.agent import Aside, AsideKind
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Samples
from duplex.playout import ramp

MAX_ASIDE_S = 2.0


class AsideQueue:
    """Holds one aside at a time."""

    def __init__(self) -> None:
        self._left: Samples | None = None
        self._kind: AsideKind | None = None
        self._fade = ramp(PACKET_SAMPLES)[::-1]

    @property
    def playing(self) -> AsideKind | None:
        return self._kind

    def begin(self, aside: Aside) -> bool:
        """Takes an aside to be spoken now. False if one is being spoken, or it is empty or longer than 2 s."""
        if self._kind is not None or not 0 < len(aside.samples) <= MAX_ASIDE_S * SAMPLE_RATE_HZ:
            return False
        self._left, self._kind = aside.samples, aside.kind
        return True

    def cut(self) -> None:
        """Lets 20 ms more of it out, faded."""
        if self._left is not None:
            packet = self._left[:PACKET_SAMPLES].copy()
            packet *= self._fade[: len(packet)]
            self._left = packet

    def take(self) -> Samples | None:
        """The next 20 ms, float32[480]; None when nothing is left."""
        if self._left is None:
            return None
        packet, rest = self._left[:PACKET_SAMPLES], self._left[PACKET_SAMPLES:]
        if len(rest):
            self._left = rest
        else:
            self._left = self._kind = None
        return np.pad(packet, (0, PACKET_SAMPLES - len(packet)))
