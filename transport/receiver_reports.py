"""What the far end's RTCP receiver reports say about how much of our voice it has played.

A report names the highest sequence number received. aiortc keeps the last packets it sent by sequence
number, so that gives an RTP timestamp, and the timestamp is media time plus an offset we learn from the
first packet. What was received half a round trip ago is played once the receiver's own jitter buffer and
sound card are through with it; nobody reports those, so they are assumed and stated as the error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiortc import RTCRtpSender
from aiortc.rtp import RTP_HISTORY_SIZE, RtcpRrPacket, RtcpSrPacket

from duplex.bitrate import LinkReport
from duplex.errors import TransportError
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, ms_to_samples
from duplex.line import PlayoutReport
from duplex.transport.jitter import RTP_CLOCK_HZ, signed_difference

HISTORY = "_RTCRtpSender__rtp_history"
ROUND_TRIP = "_RTCRtpSender__rtt"
_UNITS = RTP_CLOCK_HZ // SAMPLE_RATE_HZ

FAR_END_MS = 60.0  # a browser's jitter buffer on a quiet network, and its sound card


def playout_from_report(received_pts: int, jitter_s: float, round_trip_s: float | None, now_s: float) -> PlayoutReport:
    """The evidence in "everything before ``received_pts`` was received", taken in at ``now_s``."""
    buffered_ms = FAR_END_MS + 2000.0 * jitter_s
    back_s = (round_trip_s or 0.0) / 2
    return PlayoutReport(
        pts=max(0, received_pts - ms_to_samples(buffered_ms)),
        at_s=now_s - back_s,
        error_ms=FAR_END_MS / 2 + 2000.0 * jitter_s + 1000.0 * back_s,
        grade="rtp",
    )


class ReceiverReports:
    """Listens to the reports that reach a sender. ``latest`` is the newest evidence.

    Call ``first_sent`` when the sender comes for its second packet: then the first is in its history.
    """

    def __init__(self, sender: RTCRtpSender, now_s: Callable[[], float]) -> None:
        for name in (HISTORY, ROUND_TRIP):
            if not hasattr(sender, name):
                raise TransportError(
                    f"This aiortc's sender has no {name.rpartition('__')[2]}. Run: pip install 'aiortc>=1.16,<1.17'"
                )
        self._sender, self._now_s = sender, now_s
        self._zero: int | None = None  # the RTP timestamp of pts 0
        self.latest: PlayoutReport | None = None
        self._link: LinkReport | None = None
        pass_on = sender._handle_rtcp_packet

        async def handle(packet: Any) -> None:
            await pass_on(packet)
            if isinstance(packet, RtcpRrPacket | RtcpSrPacket):
                for report in packet.reports:
                    if report.ssrc == sender._ssrc:
                        self._take(report)

        setattr(sender, "_handle_rtcp_packet", handle)  # noqa: B010 - a method of one instance

    def first_sent(self, pts: int) -> None:
        """The sender's only packet so far was the one at ``pts``."""
        history: dict[int, Any] = getattr(self._sender, HISTORY)
        if self._zero is None and history:
            packet = next(iter(history.values()))
            self._zero = (packet.timestamp - pts * _UNITS) & 0xFFFFFFFF

    def take_link(self) -> LinkReport | None:
        """The newest report about the link, once."""
        link, self._link = self._link, None
        return link

    def _take(self, report: Any) -> None:
        round_trip_s: float | None = getattr(self._sender, ROUND_TRIP)
        # RFC 3550, 6.4.1: a share of 256, since the report before.
        self._link = LinkReport(report.fraction_lost / 256, None if round_trip_s is None else 1000.0 * round_trip_s)
        history: dict[int, Any] = getattr(self._sender, HISTORY)
        packet = history.get(report.highest_sequence % RTP_HISTORY_SIZE)
        if self._zero is None or packet is None or packet.sequence_number != report.highest_sequence & 0xFFFF:
            return
        sent = signed_difference(packet.timestamp, self._zero, 32) // _UNITS
        jitter_s = report.jitter / RTP_CLOCK_HZ
        self.latest = playout_from_report(sent + PACKET_SAMPLES, jitter_s, round_trip_s, self._now_s())
