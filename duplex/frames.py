"""Packets, frames and images: the only shapes in which media moves inside a session.

Media time is counted in samples (``pts``) at 24 kHz and never read from a clock. The wire moves
*packets* of 20 ms; an agent declares its *frame* as a whole number of packets, and the session
regroups one into the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import numpy.typing as npt

SAMPLE_RATE_HZ = 24_000
PACKET_MS = 20
PACKET_SAMPLES = SAMPLE_RATE_HZ * PACKET_MS // 1000  # 480

Samples = npt.NDArray[np.float32]
"""Mono float32 in [-1, 1], shape [n]."""


def samples_to_ms(samples: int) -> float:
    return samples * 1000.0 / SAMPLE_RATE_HZ


def ms_to_samples(ms: float) -> int:
    return round(ms * SAMPLE_RATE_HZ / 1000.0)


def silence(n_samples: int = PACKET_SAMPLES) -> Samples:
    return np.zeros(n_samples, dtype=np.float32)


class Origin(Enum):
    """How a packet of heard audio came to be."""

    WIRE = "wire"  # it arrived
    CONCEALED = "concealed"  # it was lost or late, and filled in from its neighbours
    SILENCE = "silence"  # nothing was sent: the microphone is muted or the line is quiet


@dataclass(frozen=True, slots=True)
class Packet:
    """20 ms of heard audio. ``samples``: float32[480] at 24 kHz; ``pts``: first sample's index."""

    pts: int
    samples: Samples
    origin: Origin = Origin.WIRE

    def __post_init__(self) -> None:
        if self.samples.shape != (PACKET_SAMPLES,) or self.samples.dtype != np.float32:
            raise ValueError(
                f"a packet holds float32[{PACKET_SAMPLES}], got {self.samples.dtype}{list(self.samples.shape)}"
            )


@dataclass(frozen=True, slots=True)
class Frame:
    """One agent frame of heard audio: float32[k * 480] at 24 kHz, starting at ``pts``."""

    pts: int
    samples: Samples

    @property
    def end_pts(self) -> int:
        return self.pts + len(self.samples)


@dataclass(frozen=True, slots=True)
class Image:
    """One camera frame as JPEG bytes, taken at media time ``pts``. ``width`` and ``height`` in pixels."""

    pts: int
    jpeg: bytes = field(repr=False)
    width: int
    height: int


class Framer:
    """Regroups packets into frames of ``packets_per_frame`` packets; nothing is copied twice.

    Packets must follow one another; a gap in ``pts`` is a bug of the line that sent them and raises
    ``ValueError``.
    """

    def __init__(self, packets_per_frame: int = 1) -> None:
        if packets_per_frame < 1:
            raise ValueError(f"packets_per_frame must be at least 1, got {packets_per_frame}")
        self._per_frame = packets_per_frame
        self._held: list[Packet] = []
        self._next_pts: int | None = None

    def push(self, packet: Packet) -> Frame | None:
        """Takes one packet; returns the frame it completes, if it completes one."""
        if self._next_pts is not None and packet.pts != self._next_pts:
            raise ValueError(f"packet at pts {packet.pts} does not follow pts {self._next_pts}")
        self._next_pts = packet.pts + PACKET_SAMPLES
        self._held.append(packet)
        if len(self._held) < self._per_frame:
            return None
        first = self._held[0].pts
        samples = self._held[0].samples
        if self._per_frame > 1:
            samples = np.concatenate([held.samples for held in self._held])
        self._held = []
        return Frame(first, samples)

    def reset(self) -> None:
        self._held = []
        self._next_pts = None
