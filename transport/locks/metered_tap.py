"""Sound and pictures are counted as everything else is: what a caller sends too much of is dropped unread.

A stream of packets cannot be read more slowly, as a WebSocket can; but it is made for loss, so what is dropped is
concealed, or asked for again, by what comes behind.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from duplex.metrics import Metrics
from duplex.transport.locks.caller import Meter
from duplex.transport.rtp_audio import RtpTap

log = logging.getLogger("duplex.locks")


class MeteredTap:
    """Implements :class:`RtpTap` around another. Warns once; each dropped packet is counted."""

    def __init__(self, tap: RtpTap, meter: Meter, now_s: Callable[[], float], metrics: Metrics) -> None:
        self._tap, self._meter, self._now_s, self._metrics = tap, meter, now_s, metrics
        self._warned = False

    def add(self, packet: Any) -> tuple[bool, None]:
        if self._meter.has_room(len(packet.payload), self._now_s()):
            return self._tap.add(packet)
        self._metrics.queue_drops.labels("rtp").inc()
        if not self._warned:
            self._warned = True
            log.warning("a call sends more bytes than it may; what is too much is dropped")
        return False, None
