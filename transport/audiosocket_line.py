"""The session's side of one AudioSocket call: a packet every 20 ms, one ahead at most, at the rate of the far end."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from duplex.clock import Clock
from duplex.metrics import Metrics
from duplex.transport import audiosocket_wire as wire
from duplex.transport.continuous_line import ContinuousLine
from duplex.transport.socket_line import STALL_LIMIT_S
from duplex.transport.telephone import Wire
from duplex.transport.telephone_edge import linear16

LEAD_PACKETS = 2


class AudioSocketLine(ContinuousLine):
    """``rate_hz``: of the sound both ways, one of ``audiosocket_wire.SOUND_KINDS``."""

    def __init__(
        self,
        clock: Clock,
        metrics: Metrics,
        rate_hz: int,
        *,
        name: str,
        facts: Mapping[str, str] | None = None,
        max_unsent: int = 512,
        stall_limit_s: float = STALL_LIMIT_S,
    ) -> None:
        super().__init__(
            clock,
            metrics,
            Wire(media=partial(wire.sound, rate_hz)),
            linear16(rate_hz),
            name=name,
            facts=facts,
            lead_packets=LEAD_PACKETS,
            max_unsent=max_unsent,
            stall_limit_s=stall_limit_s,
        )
        self.rate_hz = rate_hz

    def change_rate(self, rate_hz: int) -> None:
        """Both sides go on at another rate."""
        self.rate_hz = rate_hz
        self._wire = Wire(media=partial(wire.sound, rate_hz))
        self.speak_as(linear16(rate_hz))
