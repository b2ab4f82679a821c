"""When heard packets are due, however irregularly one comes round to fetch them."""

from __future__ import annotations

from duplex.frames import PACKET_MS

PACKET_S = PACKET_MS / 1000.0


class Metronome:
    """Turns the instants of ticks into the due times of packets, exactly 20 ms apart.

    A tick that comes late gets the packets it missed, one that comes again at once gets none, so nothing of
    a stall stays behind as delay. The beat settles on the earliest ticks of the last second.
    """

    EARLY_S = 0.003  # a tick this much before the beat sets it anew
    RESYNC_S = 0.5  # after a longer stall, what was missed is left out
    _WINDOW = 50

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._due_s: float | None = None
        self._least_late_s = PACKET_S
        self._ticks = 0

    def tick(self, now_s: float) -> list[float]:
        """The due times of the packets to take now, oldest first."""
        if self._due_s is None or now_s - self._due_s > self.RESYNC_S or -self.EARLY_S < now_s - self._due_s < 0:
            self._due_s = now_s
        self._settle(now_s - self._due_s)
        due = []
        while self._due_s <= now_s:
            due.append(self._due_s)
            self._due_s += PACKET_S
        return due

    def _settle(self, late_s: float) -> None:
        """Moves the beat later when no tick of the last second came on it."""
        assert self._due_s is not None
        if late_s < 0:
            return
        self._least_late_s = min(self._least_late_s, late_s)
        self._ticks += 1
        if self._ticks >= self._WINDOW:
            self._due_s += max(0.0, self._least_late_s - 1e-6)
            self._least_late_s, self._ticks = PACKET_S, 0
