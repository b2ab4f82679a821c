"""Laying a session's packets out on one time line, for listening and for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Packet, Samples, ms_to_samples
from duplex.line import OutPacket
from duplex.records.journal import Pcm, from_pcm, to_pcm

_GAP_SAMPLES = ms_to_samples(60)  # a stream that far behind wall time has paused, not jittered


@dataclass(slots=True)
class Track:
    """Packets by their media time, moved on where the stream paused. Times are seconds of the session."""

    _packets: dict[int, Pcm] = field(default_factory=dict)
    _anchor: int | None = None

    def put_heard(self, packets: Sequence[Packet], at_s: float) -> None:
        """Heard at ``at_s``, so their last sample was spoken by then."""
        first = round(at_s * SAMPLE_RATE_HZ) - len(packets) * PACKET_SAMPLES
        for k, packet in enumerate(packets):
            self._put(packet.pts, to_pcm(packet.samples), first + k * PACKET_SAMPLES)

    def put_sent(self, packets: Sequence[OutPacket], at_s: float) -> list[Pcm]:
        """Handed to the line at ``at_s``. One at the place of an earlier one replaces it: that was taken back.

        Returns the packets' samples as they are kept, int16[480] each.
        """
        kept = [to_pcm(packet.samples) for packet in packets]
        first = round(at_s * SAMPLE_RATE_HZ) - (len(packets) - 1) * PACKET_SAMPLES  # those before the last were late
        for k, (packet, pcm) in enumerate(zip(packets, kept, strict=True)):
            self._put(packet.pts, pcm, first + k * PACKET_SAMPLES)
        return kept

    def _put(self, pts: int, samples: Pcm, by_clock: int) -> None:
        if self._anchor is None or self._anchor + pts < by_clock - _GAP_SAMPLES:
            self._anchor = by_clock - pts
        self._packets[self._anchor + pts] = samples

    @property
    def end_samples(self) -> int:
        return max((start + len(samples) for start, samples in self._packets.items()), default=0)

    def samples(self, n_samples: int) -> Samples:
        """float32[n_samples] at 24 kHz from the session's start; silence where there was nothing."""
        out = np.zeros(n_samples, dtype=np.float32)
        for start, samples in self._packets.items():
            skip = max(0, -start)
            kept = samples[skip : max(skip, n_samples - start)]
            out[start + skip : start + skip + len(kept)] = from_pcm(kept)
        return out
