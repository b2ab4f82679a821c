"""Our own voice as it may come back: what was played, set beside what is heard, and who may cancel it.

A packet is put on the tape when it is handed to the line, at its place on the line's own time line (``pts``,
silence included). A line that is kept ahead gets packets before their time, and may give some back; so the
tape is not "the last packets sent", but what was *due* while the heard frame was being recorded. What is left
between the two, the way to the far end and back, is for the canceller or the echo score to find.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from duplex.clock import Clock
from duplex.frames import (
    PACKET_SAMPLES,
    SAMPLE_RATE_HZ,
    Frame,
    Origin,
    Packet,
    Samples,
    ms_to_samples,
    silence,
)
from duplex.line import Line, OutPacket
from duplex.line_around import LineAround


class EchoCanceller(Protocol):
    """Takes our own voice out of what is heard. One a session; every packet of the call goes through it."""

    @property
    def latency_samples(self) -> int:
        """How much later (24 kHz samples) a sound comes out than it went in."""
        ...

    def process(self, heard: Samples, reference: Samples) -> Samples:
        """float32[n * 480] heard and, as long, played meanwhile; returns float32[n * 480]."""
        ...

    def reset(self) -> None:
        """Forgets the echo's path."""
        ...


class Tape:
    """What we played, by ``pts`` of the line's own time line. Keeps ``keep_ms`` and what is sent ahead."""

    SLIP_SAMPLES = ms_to_samples(100.0)  # the two time lines moved against each other, at once,
    RECENT_FRAMES = 25  # or by less, for this many frames on end

    def __init__(self, keep_ms: float = 2000.0) -> None:
        self._ring = silence(ms_to_samples(keep_ms) // PACKET_SAMPLES * PACKET_SAMPLES)
        self.reset()

    def reset(self) -> None:
        self._ring[:] = 0.0
        self._end = 0  # pts after the newest packet
        self._ever = 0  # and after the newest there ever was: what lies a ring before it was written over
        self._offsets: deque[int] = deque(maxlen=self.RECENT_FRAMES)  # from heard pts to the line's

    def put(self, pts: int, samples: Samples) -> None:
        """Enters float32[480] played from ``pts`` on (a multiple of 480). One put again replaces the first.

        Packets that were skipped are silence.
        """
        size = len(self._ring)
        if pts - self._end >= size:
            self._ring[:] = 0.0
        else:
            for skipped in range(self._end, pts, PACKET_SAMPLES):
                self._ring[skipped % size : skipped % size + PACKET_SAMPLES] = 0.0
        self._ring[pts % size : pts % size + PACKET_SAMPLES] = samples
        self._end = max(self._end, pts + PACKET_SAMPLES)
        self._ever = max(self._ever, self._end)

    def take_back(self, end_pts: int) -> None:
        """What was put from ``end_pts`` on will not be played after all."""
        size = len(self._ring)
        for pts in range(max(end_pts, self._end - size), self._end, PACKET_SAMPLES):
            self._ring[pts % size : pts % size + PACKET_SAMPLES] = 0.0
        self._end = min(self._end, end_pts)

    def beside(self, frame: Frame, due_pts: int) -> Samples:
        """What was played while ``frame`` was recorded: float32, as long; silence where nothing was.

        ``due_pts``: on the line's time line, the end of what is due to have been played by now. A frame that comes
        late (a tick that was late brings two) finds more to be due than there was while it was recorded, so the two
        time lines are tied by the least that was due beside a frame lately; a stall ties them anew.
        """
        offset = due_pts - frame.end_pts
        if self._offsets and abs(offset - min(self._offsets)) > self.SLIP_SAMPLES:
            self._offsets.clear()
        self._offsets.append(offset)
        start = frame.pts + min(self._offsets)
        first = max(start, self._ever - len(self._ring), 0)
        last = min(start + len(frame.samples), self._end)
        beside = silence(len(frame.samples))
        if first < last:
            beside[first - start : last - start] = self._ring.take(np.arange(first, last), mode="wrap")
        return beside


class EchoCancelledLine(LineAround):
    """A line whose far end sends our own voice back, with that taken out of it.

    Around the line and not in the session, so that a recording holds what the session heard.
    """

    def __init__(self, line: Line, canceller: EchoCanceller, clock: Clock) -> None:
        super().__init__(line)
        self._canceller, self._clock = canceller, clock
        self._tape = Tape()
        self._epoch_s: float | None = None  # when the line's first packet was due
        self._end_pts = 0

    def receive(self) -> Sequence[Packet]:
        return [self._cancelled(packet) for packet in self.inner.receive()]

    def _cancelled(self, packet: Packet) -> Packet:
        elapsed_s = 0.0 if self._epoch_s is None else self._clock.now() - self._epoch_s
        due_pts = int(elapsed_s * SAMPLE_RATE_HZ / PACKET_SAMPLES + 1e-6) * PACKET_SAMPLES
        played = self._tape.beside(Frame(packet.pts, packet.samples), due_pts)
        heard = self._canceller.process(packet.samples, played)
        return packet if packet.origin is Origin.SILENCE else replace(packet, samples=heard)

    def send(self, packet: OutPacket) -> None:
        if self._epoch_s is None:
            self._epoch_s = self._clock.now()
        self._tape.put(packet.pts, packet.samples)
        self._end_pts = packet.pts + PACKET_SAMPLES
        self.inner.send(packet)

    def flush(self) -> int:
        samples = self.inner.flush()
        self._end_pts -= samples
        self._tape.take_back(self._end_pts)
        return samples
