"""A line for your own program: PCM in, PCM out, events to a callback. No network.

The session ticks in real time and takes one 20 ms packet of what you queued per tick, so a whole file
can be handed over at once and is heard at the speed of speech; when nothing is queued it hears silence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from duplex.errors import TooLargeError
from duplex.events import Event
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Image, Origin, Packet, Samples, silence
from duplex.line import OutPacket, PlayoutReport


class PcmLine:
    """``on_audio`` gets float32[480] at 24 kHz every 20 ms (silence between replies); ``on_event`` every event.

    Both are called on the session's event loop and must not block. ``max_queued_s`` bounds ``hear``.
    """

    lead_packets = 1

    def __init__(
        self,
        on_audio: Callable[[Samples], None],
        on_event: Callable[[Event], None] = lambda event: None,
        *,
        max_queued_s: float = 600.0,
    ) -> None:
        self._on_audio, self._on_event = on_audio, on_event
        self._max_samples = round(max_queued_s * SAMPLE_RATE_HZ)
        self._queued = np.zeros(0, dtype=np.float32)
        self._image: Image | None = None
        self._pts = 0
        self.closed = False

    def hear(self, samples: Samples) -> None:
        """Queues float32[n] at 24 kHz for the agent to hear. Raises ``TooLargeError`` past the bound."""
        if len(self._queued) + len(samples) > self._max_samples:
            raise TooLargeError(
                f"More than {self._max_samples / SAMPLE_RATE_HZ:.0f} s would be waiting to be heard. "
                "Queue audio as it comes, or raise max_queued_s."
            )
        self._queued = np.concatenate((self._queued, samples.astype(np.float32, copy=False)))

    def see(self, image: Image) -> None:
        """Shows the agent a picture; the newest wins."""
        self._image = image

    def hang_up(self) -> None:
        """Ends the session at its next tick."""
        self.closed = True

    def receive(self) -> Sequence[Packet]:
        packet, self._queued = self._queued[:PACKET_SAMPLES], self._queued[PACKET_SAMPLES:]
        origin = Origin.WIRE if len(packet) else Origin.SILENCE
        if len(packet) < PACKET_SAMPLES:
            packet = np.concatenate((packet, silence(PACKET_SAMPLES - len(packet))))
        self._pts += PACKET_SAMPLES
        return (Packet(self._pts - PACKET_SAMPLES, packet, origin),)

    def take_image(self) -> Image | None:
        image, self._image = self._image, None
        return image

    def send(self, packet: OutPacket) -> None:
        self._on_audio(packet.samples)

    def flush(self) -> int:
        return 0

    def playout(self) -> PlayoutReport | None:
        return None

    def emit(self, event: Event) -> None:
        self._on_event(event)

    async def close(self, reason: str) -> None:
        self.closed = True
