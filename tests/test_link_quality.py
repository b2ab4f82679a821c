"""How a call's link is doing, from who measures it to the slot that is decoded with fewer codebooks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiortc.rtp import RtcpReceiverInfo, RtcpRrPacket
from native_fakes import FakeSlot, fake_agent

from duplex.agent import AgentSettings
from duplex.bitrate import LinkReport, LinkReporting
from duplex.clock import VirtualClock
from duplex.config import SessionConfig
from duplex.echo import EchoCancelledLine
from duplex.frames import Samples
from duplex.metrics import Metrics
from duplex.session import Session
from duplex.testing import LoopbackLine, run_virtual
from duplex.transport.receiver_reports import HISTORY, ROUND_TRIP, ReceiverReports
from duplex.transport.webrtc_line import WebRtcLine

BAD, GOOD = LinkReport(loss=0.25, rtt_ms=90.0), LinkReport(loss=0.0, rtt_ms=40.0)


@dataclass(slots=True)
class Reporting(LoopbackLine):
    """Has a report each time it is asked the n-th time."""

    reports: dict[int, LinkReport] = field(default_factory=dict)
    asked: int = 0

    def take_link(self) -> LinkReport | None:
        self.asked += 1
        return self.reports.get(self.asked)


class NoEcho:
    latency_samples = 0

    def process(self, heard: Samples, reference: Samples) -> Samples:
        return heard


@pytest.mark.parametrize("cancelled", [False, True], ids=["line", "line without echo"])
def test_what_a_line_reports_reaches_the_slot_once_and_in_order(cancelled: bool) -> None:
    async def main() -> FakeSlot:
        agent, serving = fake_agent()
        await agent.start()
        clock = VirtualClock(asyncio.get_running_loop())
        line: Any = Reporting(reports={3: BAD, 15: GOOD})
        if cancelled:
            line = EchoCancelledLine(line, NoEcho(), clock)
        session = Session(
            session_id="sess_1",
            line=line,
            agent=agent,
            clock=clock,
            config=SessionConfig(),
            settings=AgentSettings(),
            metrics=Metrics(),
        )
        task = asyncio.create_task(session.run())
        await asyncio.sleep(2.0)
        session.stop("done")
        await task
        return serving.slots[0]

    assert run_virtual(main()).links == [BAD, GOOD]


class Sender:
    """What of aiortc's sender the reports hold on to."""

    _ssrc = 5

    def __init__(self) -> None:
        setattr(self, HISTORY, {})
        setattr(self, ROUND_TRIP, None)

    async def _handle_rtcp_packet(self, packet: Any) -> None: ...


def receiver_report(ssrc: int, fraction_lost: int) -> RtcpRrPacket:
    info = RtcpReceiverInfo(ssrc, fraction_lost, packets_lost=9, highest_sequence=70, jitter=3, lsr=0, dlsr=0)
    return RtcpRrPacket(ssrc=1, reports=[info])


async def test_a_receiver_report_tells_of_loss_and_of_the_round_trip() -> None:
    sender = Sender()
    reports = ReceiverReports(sender, lambda: 0.0)  # type: ignore[arg-type]
    assert reports.take_link() is None
    await sender._handle_rtcp_packet(receiver_report(5, 64))
    assert reports.take_link() == LinkReport(loss=0.25)
    assert reports.take_link() is None  # it was told
    setattr(sender, ROUND_TRIP, 0.09)
    await sender._handle_rtcp_packet(receiver_report(6, 255))  # about somebody else
    assert reports.take_link() is None
    await sender._handle_rtcp_packet(receiver_report(5, 0))
    assert reports.take_link() == LinkReport(loss=0.0, rtt_ms=90.0)


def test_a_web_rtc_line_reports() -> None:
    assert issubclass(WebRtcLine, LinkReporting)
