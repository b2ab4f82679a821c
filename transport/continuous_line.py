"""A telephone line that is sent a packet every 20 ms, silence included: what Asterisk's two doors share.

What is sent too fast for the far end's clock, or piled up while it did not read, would stay as delay for good on a line
that never stops. So while more than a little is with the far end, or waits for it, silence between replies is left
out: pauses get shorter, words are never touched. A far end that is too fast for us just has a gap now and then.
"""

from __future__ import annotations

from typing import Any

from duplex.clock import Clock
from duplex.line import OutPacket
from duplex.metrics import Metrics
from duplex.transport.telephone import TelephoneLine, Wire
from duplex.transport.telephone_edge import Ear, Encoding, Mouth

BEHIND_S = 0.03


class ContinuousLine(TelephoneLine):
    """``behind_s``: how much sound there may be before silence is left out."""

    def __init__(
        self,
        clock: Clock,
        metrics: Metrics,
        wire: Wire,
        encoding: Encoding,
        *,
        behind_s: float = BEHIND_S,
        **rest: Any,
    ) -> None:
        super().__init__(clock, metrics, wire, encoding, continuous=True, **rest)
        self.left_out_packets = 0
        self._behind_s = behind_s

    def send(self, packet: OutPacket) -> None:
        if packet.reply_id is None and not packet.aside and self._is_behind():
            self.left_out_packets += 1
            self._metrics.queue_drops.labels("telephone_silence").inc()
            return
        super().send(packet)

    def _is_behind(self) -> bool:
        waits = any(isinstance(each, OutPacket) for each in self._queue)
        return waits or self.far_end.remaining_s(self._clock.now()) > self._behind_s

    def speak_as(self, encoding: Encoding) -> None:
        """From now on both sides use this encoding. ``encoding`` has as many bytes a sample as the one before."""
        self._ear, self._mouth = Ear(encoding), Mouth(encoding)
