"""A reply that is spoken as it is made, kept on time: what is not there when it is due is concealed, and what comes
after all is shorter by as much. Pure: samples and times in, samples out.

::

    made        [ frame 1 ][ frame 2 ]· · · late · · ·[ frame 3 ][ frame 4 ]
    played      [ frame 1 ][ frame 2 ][ gone on ][silence][me 3 ][ frame 4 ]
                                      ◄── owed ──────────►│ blended

So a stall is heard once and leaves no delay behind, and every later word is where it would have been. What is put in
stands for what is left out, sample for sample: word times and the ledger need not know. Beyond ``MOST_OWED_S`` nobody
can go on pretending: then the reply pauses, and goes on where it was.
"""

from __future__ import annotations

import numpy as np

from duplex.concealment import Concealer
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Samples, silence

PACKET_S = PACKET_SAMPLES / SAMPLE_RATE_HZ
MOST_OWED_S = 0.48
_EARLY_PACKETS = 0.25  # a tick may come this much before its time
_SLEPT_S = 0.5  # a machine that slept this long starts counting afresh


class LateSound:
    """One reply's. ``owed_samples``: put in, and not yet left out. ``concealed``: stretches that were put in."""

    def __init__(self) -> None:
        self.owed_samples = 0
        self.concealed = 0
        self._concealer = Concealer()
        self._first_sent_s: float | None = None
        self._asked_s = 0.0
        self._paused = False  # past what can be concealed, until there is sound again

    def sent(self, now_s: float) -> None:
        """A packet of the reply left for the wire; the first says when each of the others is due."""
        if self._first_sent_s is None:
            self._first_sent_s = self._asked_s = now_s

    def missing(self, now_s: float, there_samples: int) -> Samples:
        """What to put in now so that the packet that is due is whole: float32[n], n 0 if it is there.

        ``there_samples``: of the reply, played or queued. To be asked at every tick.
        """
        if self._first_sent_s is None:
            return silence(0)
        slept_s, self._asked_s = now_s - self._asked_s, now_s
        if slept_s > _SLEPT_S:
            self._first_sent_s += slept_s - PACKET_S
        due_packets = int((now_s - self._first_sent_s) / PACKET_S + _EARLY_PACKETS) + 1
        n = due_packets * PACKET_SAMPLES - there_samples
        if n <= 0:
            return silence(0)
        if self._paused or self.owed_samples + n > MOST_OWED_S * SAMPLE_RATE_HZ:
            self._paused, self.owed_samples = True, 0
            self._first_sent_s += n / SAMPLE_RATE_HZ
            return silence(0)
        self.concealed += not self._concealer.concealing
        self.owed_samples += n
        return self._concealer.extend(n)

    def take(self, samples: Samples) -> Samples:
        """float32[n] of the reply as it came, to float32[m], m ≤ n, to be played."""
        self._paused = False
        left_out = min(self.owed_samples, len(samples))
        self.owed_samples -= left_out
        rest = samples[left_out:]
        if not len(rest):
            return rest
        heard = self._concealer.rejoin(rest) if self._concealer.concealing else rest
        self._concealer.remember(heard)
        return np.ascontiguousarray(heard)
