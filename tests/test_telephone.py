"""A telephone line against a far end that buffers: what is counted as heard is what was heard."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twilio_far_end import PACKET_BYTES, TWILIO, ULAW, TwilioFarEnd, cancelled

from duplex.clock import VirtualClock
from duplex.codecs.g711 import decode_alaw, encode_alaw
from duplex.config import PlayoutConfig
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Samples, silence
from duplex.ledger import Evidence, HeardUpTo, Ledger
from duplex.line import OutPacket
from duplex.metrics import Metrics
from duplex.outgoing import Outgoing
from duplex.playout import Playout
from duplex.reply import Reply
from duplex.testing import run_virtual, tone
from duplex.trace import TurnTrace
from duplex.transport import twilio_wire as wire
from duplex.transport.telephone import LEAD_PACKETS, TelephoneLine, Wire
from duplex.transport.telephone_edge import Encoding, linear16
from duplex.transport.telephone_playout import FarEnd, Fate

ALAW = Encoding("pcma", 8000, 1, decode_alaw, encode_alaw)
PACKET_S = 0.02
SILENCE = silence()
STAIRS_DB = 0.5  # from one packet to the next


def stairs(n_packets: int, lowest_db: float = -40.0) -> Samples:
    """A tone that grows from packet to packet, so that each packet's level says which one it is."""
    packets = [tone(PACKET_S, hz=400.0, level_dbfs=lowest_db + STAIRS_DB * i) for i in range(n_packets)]
    return np.concatenate(packets)


def heard_packets(far_end: TwilioFarEnd, lowest_db: float = -40.0) -> list[int]:
    """Which packets of ``stairs`` were heard, in order.

    The resampler's filter is 2 ms late: the first packet of a stretch lacks them, and is half a decibel short; they
    follow the last one, far below it, and are left out.
    """
    found: list[int] = []
    in_sound = False
    for level in far_end.levels_db():
        if audible := level > lowest_db - 13.0:
            step = round((level - lowest_db + (0.0 if in_sound else 0.46)) / STAIRS_DB)
            if not found or step > found[-1] - 12:
                found.append(step)
        in_sound = audible
    return found


class Speaker:
    """What a session does with a line, without an agent: a reply is played, held, resumed and dropped."""

    def __init__(self, clock: VirtualClock, line: TelephoneLine) -> None:
        config = PlayoutConfig(assumed_delay_ms=100.0, fade_out_ms=0, fade_in_ms=0)
        self.clock, self.line = clock, line
        self.playout, self.ledger = Playout(fade_out_ms=0, fade_in_ms=0, max_reply_s=1000.0), Ledger()
        self.out = Outgoing(line, self.playout, self.ledger, config, Metrics())
        self.reply = Reply("r", "i", TurnTrace(speculative=False))
        self.packets = 0

    async def run(self) -> None:
        began_s = self.clock.now()
        self.out.start(began_s)
        ticks = 0
        while True:
            self.line.receive()
            for _ in self.out.fill(self.clock.now(), self.reply):
                self.packets += 1
            if (report := self.line.playout()) is not None:
                self.ledger.report(report)
            ticks += 1
            await self.clock.sleep_until(began_s + ticks * PACKET_S)

    def begin(self, samples: Samples) -> None:
        self.playout.begin()
        self.ledger.begin("r", "i")
        self.playout.append(samples)
        self.playout.complete()
        self.ledger.queue("r", len(samples), ())
        self.playout.release()

    def hold(self) -> None:
        self.playout.hold()
        self.out.take_back(self.reply)

    def heard(self) -> HeardUpTo:
        return self.ledger.heard("r", self.clock.now())


class Setup:
    def __init__(self, clock: VirtualClock, line: TelephoneLine, far_end: TwilioFarEnd, speaker: Speaker) -> None:
        self.clock, self.line, self.far_end, self.speaker = clock, line, far_end, speaker
        self.fates: list[tuple[str, Fate]] = []

    async def until(self, at_s: float) -> None:
        await self.clock.sleep_until(at_s)


@asynccontextmanager
async def connected(lead_packets: int = LEAD_PACKETS, **far_end: Any) -> AsyncIterator[Setup]:
    """A line and a far end with a network between them, on virtual time."""
    clock = VirtualClock()
    line = TelephoneLine(clock, Metrics(), TWILIO, ULAW, name="test", lead_packets=lead_packets)

    def deliver(text: str) -> None:
        body = wire.read(text).body
        if isinstance(body, wire.Mark):
            setup.fates.append((body.name, line.returned(body.name)))
        elif isinstance(body, wire.Media):
            line.hear(body.code)

    setup = Setup(clock, line, TwilioFarEnd(clock, deliver, **far_end), Speaker(clock, line))
    tasks = [
        asyncio.create_task(each)
        for each in (setup.far_end.run(), line.run_sender(setup.far_end.send), setup.speaker.run())
    ]
    line.greet()
    try:
        yield setup
        for task in tasks:
            assert not task.done(), task
    finally:
        await cancelled(*tasks)


# --- what was heard ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase_s", [0.0, 0.003, 0.0131, 0.0199])
@pytest.mark.parametrize("way_s", [0.005, 0.04, 0.15])
def test_a_held_reply_goes_on_with_the_next_packet(way_s: float, phase_s: float) -> None:
    async def main() -> None:
        async with connected(trip_s=lambda: way_s, phase_s=phase_s) as t:
            await t.until(0.5)
            t.speaker.begin(stairs(60))
            await t.until(1.21)
            t.speaker.hold()
            held_s = t.clock.now()
            await t.until(2.0)
            # The packet that is being played, one that holds the end of it, and the wait for the far end's beat.
            assert t.far_end.last_heard_s() - held_s <= way_s + 3 * PACKET_S + 1e-6
            t.speaker.playout.resume()
            await t.until(4.0)
            # From the same sample: nothing is missing, and nothing is twice.
            assert heard_packets(t.far_end) == list(range(60))
            assert 30 < max(np.diff(np.flatnonzero(np.array(t.far_end.levels_db()) > -60))) < 45  # it did pause
            heard = t.speaker.heard()
            assert (heard.samples, heard.evidence) == (60 * PACKET_SAMPLES, Evidence.MARK)

    run_virtual(main())


@given(st.integers(0, 10_000), st.floats(0.002, 0.08), st.floats(0.0, 0.03), st.floats(0.0, 0.0199))
@settings(max_examples=25, deadline=None)
def test_what_was_heard_is_what_the_ledger_says(seed: int, way_s: float, jitter_s: float, phase_s: float) -> None:
    """A reply is dropped at any time, on a network that is uneven both ways."""
    rng = random.Random(seed)

    async def main() -> None:
        async with connected(trip_s=lambda: way_s + rng.uniform(0.0, jitter_s), phase_s=phase_s) as t:
            await t.until(3.3)
            t.speaker.begin(stairs(75))
            await t.until(3.3 + rng.uniform(0.25, 1.3))
            t.speaker.out.take_back(t.speaker.reply)
            t.speaker.playout.reset()
            await t.until(t.clock.now() + 0.5)
            heard_ms = 20.0 * len(heard_packets(t.far_end))
            said = t.speaker.heard()
            assert said.evidence is Evidence.MARK
            assert abs(said.ms - heard_ms) <= 2 * jitter_s * 1000.0 + 20.0 + 1e-6
            assert abs(said.ms - heard_ms) <= said.error_ms + jitter_s * 1000.0

    run_virtual(main())


def test_while_it_plays_the_ledger_follows_the_ear() -> None:
    async def main() -> None:
        async with connected(trip_s=lambda: 0.06, phase_s=0.011) as t:
            await t.until(0.5)
            t.speaker.begin(stairs(70))
            off_ms = []
            while t.clock.now() < 1.8:
                await t.until(t.clock.now() + 0.033)
                began = [
                    at_s for (at_s, _), db in zip(t.far_end.played, t.far_end.levels_db(), strict=True) if db > -45
                ]
                ear_ms = (t.clock.now() - began[0]) * 1000.0 if began else 0.0
                off_ms.append((t.speaker.heard().ms - ear_ms, t.clock.now()))
            late = [abs(off) for off, at_s in off_ms if at_s > 0.5 + 0.3]  # once marks of it came back
            assert max(late) < 3.0
            assert all(abs(off) <= 20.0 for off, _ in off_ms)

    run_virtual(main())


def test_before_any_mark_came_back_it_goes_by_the_clock() -> None:
    far_end = FarEnd(lead_packets=10, assumed_delay_s=0.1)
    far_end.mark(0.0)
    for i in range(10):
        far_end.put((i + 1) * PACKET_SAMPLES, silence(), 0.0)
    report = far_end.report(0.15)
    assert (report.grade, report.error_ms, report.pts) == ("clock", 100.0, round(0.05 * SAMPLE_RATE_HZ))


def test_marks_that_stay_out_are_no_evidence_any_more() -> None:
    far_end = FarEnd(lead_packets=10)
    first = far_end.mark(0.0)
    assert far_end.returned(first, 0.05) is Fate.PLAYED
    assert far_end.report(0.1).grade == "mark"
    far_end.put(PACKET_SAMPLES, silence(), 0.2)
    far_end.mark(0.2)
    assert far_end.report(1.0).grade == "mark"
    assert far_end.report(1.3).grade == "clock"


# --- marks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way_s", [0.01, 0.1])
def test_marks_of_played_and_of_cleared_sound_are_told_apart(way_s: float) -> None:
    async def main() -> None:
        async with connected(trip_s=lambda: way_s) as t:
            for round_s in (0.5, 2.0, 3.5):
                await t.until(round_s)
                t.speaker.begin(stairs(60))
                await t.until(round_s + 0.71)
                t.speaker.hold()
                await t.until(round_s + 1.2)
                t.speaker.playout.reset()
            await t.until(5.0)
            returned = dict(t.fates)
            assert len(returned) == len(t.fates) > 20
            for name, fate in t.far_end.marks:
                assert returned[name].value == fate, name
            assert sum(fate is Fate.CLEARED for fate in returned.values()) >= 3
            assert t.line.far_end.marks_ignored == t.line.far_end.marks_lost == 0
            assert t.line.far_end.beyond_recall_packets == 0

    run_virtual(main())


def test_a_clear_that_was_slow_is_noticed() -> None:
    """The network stalls just when we are interrupted: the far end plays on, and the marks show it."""
    stalled = {"s": 0.01}

    async def main() -> None:
        async with connected(trip_s=lambda: stalled["s"]) as t:
            await t.until(0.5)
            t.speaker.begin(stairs(60))
            await t.until(1.21)
            stalled["s"] = 0.15
            t.speaker.hold()
            await t.until(1.22)
            stalled["s"] = 0.01
            await t.until(2.0)
            played = [fate for name, fate in t.far_end.marks if dict(t.fates).get(name) is Fate.CLEARED]
            assert "played" in played
            assert 3 <= t.line.far_end.beyond_recall_packets <= 10

    run_virtual(main())


def test_marks_that_are_not_out_are_ignored_and_counted() -> None:
    far_end = FarEnd(lead_packets=10)
    name = far_end.mark(0.0)
    assert [far_end.returned(wrong, 0.1) for wrong in ("", "0-999", "nonsense", name + "+")] == [Fate.UNKNOWN] * 4
    assert far_end.returned(name, 0.1) is Fate.PLAYED
    assert far_end.returned(name, 0.2) is Fate.UNKNOWN  # it came already
    assert far_end.marks_ignored == 5
    assert far_end.round_trip_s == pytest.approx(0.1)


def test_marks_that_never_come_back_are_counted_and_forgotten() -> None:
    far_end = FarEnd(lead_packets=10)
    names = []
    for i in range(300):
        far_end.put((i + 1) * PACKET_SAMPLES, silence(), i * PACKET_S)
        names.append(far_end.mark(i * PACKET_S))
    assert far_end.marks_lost == 300 - 256
    assert far_end.returned(names[0], 7.0) is Fate.UNKNOWN
    assert far_end.returned(names[-1], 7.0) is Fate.PLAYED
    assert far_end.marks_lost == 299


def test_epochs_are_in_the_names() -> None:
    far_end = FarEnd(lead_packets=10)
    far_end.put(480, silence(), 0.0)
    assert far_end.mark(0.0) == "0-480"
    assert far_end.cut(0.0) is not None
    assert far_end.mark(0.0) == "1-0"
    assert far_end.cut(0.1) is None  # nothing since


# --- pacing -----------------------------------------------------------------------------------------------


def test_ten_minutes_without_drift_however_fast_it_is_fed() -> None:
    """30 000 packets: the n-th leaves 20 ms · n after the first, less what is ahead, to the millisecond."""
    left: list[float] = []

    async def main() -> None:
        clock = VirtualClock()
        line = TelephoneLine(clock, Metrics(), Wire(lambda code: code), linear16(24000), name="test", max_unsent=64)

        async def take(message: str | bytes) -> None:
            left.append(clock.now())
            await asyncio.sleep(random.Random(len(left)).choice((0.0, 0.0, 0.004)))  # a network is not even

        sender = asyncio.create_task(line.run_sender(take))
        loud = tone(PACKET_S)
        for i in range(30_000):
            await line.has_room.wait()
            line.send(OutPacket(i * PACKET_SAMPLES, loud, "r", "i"))
            if not i % 8:
                await asyncio.sleep(0)
        while len(left) < 30_000:
            await clock.sleep_until(clock.now() + 1.0)
        await cancelled(sender)

    run_virtual(main())
    late_s = np.array(left[LEAD_PACKETS:]) - PACKET_S * np.arange(1, 30_000 - LEAD_PACKETS + 1)
    assert late_s.min() >= -0.0011
    assert late_s.max() <= 0.0041
    assert abs(late_s[:3000].mean() - late_s[-3000:].mean()) < 0.0005


@pytest.mark.parametrize("speed", [1.0, 1.0002, 0.9998])
def test_for_ten_minutes_a_far_end_with_a_clock_of_its_own_is_kept_full_and_never_fuller(speed: float) -> None:
    """Packets leave as the reckoning says; beside it a buffer that plays them by its own clock, 40 ms away."""
    ours, way_s = FarEnd(lead_packets=LEAD_PACKETS), 0.04
    ours.returned(ours.mark(0.0), 2 * way_s)
    packet_s = PACKET_S / speed
    theirs_end_s, now_s, n = 0.0, 1.0, 0
    marks: list[tuple[float, str]] = []
    ahead_s: list[float] = []
    dry = 0
    while n < 30_000:
        while marks and marks[0][0] <= now_s:
            assert ours.returned(marks.pop(0)[1], now_s) is Fate.PLAYED
        if ours.room_at_s(now_s) > now_s:
            now_s += 0.001
            continue
        ours.put((n + 1) * PACKET_SAMPLES, SILENCE, now_s)
        n += 1
        dry += n > LEAD_PACKETS and theirs_end_s < now_s + way_s
        theirs_end_s = max(theirs_end_s, now_s + way_s) + packet_s
        ahead_s.append(theirs_end_s - now_s - way_s)
        if ours.mark_due(now_s):
            marks.append((theirs_end_s + way_s, ours.mark(now_s)))
    assert max(ahead_s) <= LEAD_PACKETS * PACKET_S + 0.006
    assert dry == 0  # the fastest gains 120 ms in ten minutes, which is less than what is ahead
    assert ours.marks_lost == ours.marks_ignored == 0
    played = ours.report(now_s).pts / SAMPLE_RATE_HZ
    there_s = n * PACKET_S - (theirs_end_s - now_s) * speed
    assert played == pytest.approx(there_s, abs=0.01 if speed <= 1.0 else 0.13)


def test_after_a_stall_of_ours_no_more_is_ahead_than_before() -> None:
    async def main() -> None:
        async with connected() as t:
            await t.until(0.3)
            t.speaker.begin(stairs(75))
            await t.until(0.8)
            # The event loop was away: the session sends what it missed all at once.
            for i in range(20):
                t.line.send(OutPacket(i, tone(PACKET_S), "r", "i"))
            await t.until(2.8)
            assert t.far_end.most_buffered_s <= LEAD_PACKETS * PACKET_S + 1e-6

    run_virtual(main())


def test_silence_is_not_sent_unless_the_far_end_wants_it() -> None:
    async def main(continuous: bool) -> int:
        clock, sent = VirtualClock(), []

        async def take(message: str | bytes) -> None:
            sent.append(message)

        line = TelephoneLine(clock, Metrics(), Wire(lambda code: code), ULAW, name="test", continuous=continuous)
        sender = asyncio.create_task(line.run_sender(take))
        for i in range(50):
            line.send(OutPacket(i * PACKET_SAMPLES, silence(), None, None))
            await clock.sleep_until((i + 1) * PACKET_S)
        await cancelled(sender)
        assert set(sent) <= {b"\xff" * PACKET_BYTES}
        return len(sent)

    assert run_virtual(main(False)) == 0
    assert run_virtual(main(True)) == 50
