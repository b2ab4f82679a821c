"""The line of a call through Asterisk's ``chan_websocket``, against a simulated channel, on virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from asterisk_far_end import PACKET_S, ChanWebsocket
from hypothesis import given, settings
from hypothesis import strategies as st
from test_telephone import SILENCE, Speaker, stairs

from duplex.clock import VirtualClock
from duplex.frames import PACKET_SAMPLES
from duplex.ledger import Evidence
from duplex.line import OutPacket
from duplex.metrics import Metrics
from duplex.testing import run_virtual, tone
from duplex.transport import asterisk_websocket_wire
from duplex.transport.asterisk_websocket_line import AsteriskLine
from duplex.transport.telephone_edge import linear16

STAIRS_DB = 0.5


def runs(far_end: ChanWebsocket, lowest_db: float = -40.0) -> list[list[int]]:
    """Which packets of ``stairs`` were heard, in order, a list for each stretch without silence between.

    The sound is the resampler's filter late, under 2 ms, so a packet's level is its own; what of the last one is left
    for the next packet is not counted.
    """
    found: list[list[int]] = [[]]
    for level in far_end.levels_db():
        if level > lowest_db - 6.0:
            found[-1].append(round((level - lowest_db) / STAIRS_DB))
        elif found[-1]:
            found.append([])
    return [run for run in found if run]


class Setup:
    def __init__(self, clock: VirtualClock, line: AsteriskLine, far_end: ChanWebsocket) -> None:
        self.clock, self.line, self.far_end = clock, line, far_end
        self.speaker = Speaker(clock, line)
        self.said: list[asterisk_websocket_wire.Event] = []

    async def until(self, at_s: float) -> None:
        await self.clock.sleep_until(at_s)


@asynccontextmanager
async def connected(*, speaks: bool = True, **far_end: Any) -> AsyncIterator[Setup]:
    """A line and a channel with a network between them, on virtual time. 24 kHz, so that nothing is resampled."""
    clock = VirtualClock()

    def deliver(message: str | bytes) -> None:
        assert isinstance(message, str)
        event, _ = asterisk_websocket_wire.read(message)
        t.said.append(event)
        match event:
            case asterisk_websocket_wire.MarkProcessed(correlation_id=name):
                line.returned(name)
            case asterisk_websocket_wire.Status():
                line.status()
            case asterisk_websocket_wire.Xoff() | asterisk_websocket_wire.Xon():
                line.hold_back(isinstance(event, asterisk_websocket_wire.Xoff))

    channel = ChanWebsocket(clock, deliver, media_format="slin24", **far_end)
    start, control = asterisk_websocket_wire.read(channel.start_message())
    assert isinstance(start, asterisk_websocket_wire.MediaStart)
    line = AsteriskLine(clock, Metrics(), start, control, linear16(24000))
    t = Setup(clock, line, channel)
    works = (channel.run(), line.run_sender(channel.send), *((t.speaker.run(),) if speaks else ()))
    tasks = [asyncio.create_task(each) for each in works]
    line.greet()
    try:
        yield t
        for task in tasks:
            assert not task.done(), task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# --- what was heard ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("json_control", [True, False])
@pytest.mark.parametrize(("way_s", "phase_s"), [(0.0005, 0.0), (0.0005, 0.0131), (0.02, 0.0199), (0.1, 0.003)])
def test_a_held_reply_goes_on_with_the_next_packet(way_s: float, phase_s: float, json_control: bool) -> None:
    async def main() -> None:
        async with connected(trip_s=lambda: way_s, phase_s=phase_s, json_control=json_control) as t:
            await t.until(0.5)
            t.speaker.begin(stairs(60))
            await t.until(1.21)
            t.speaker.hold()
            held_s = t.clock.now()
            await t.until(2.0)
            # A packet that is being played is played to its end, and the channel's timer has a phase of its own.
            assert t.far_end.last_heard_s() - held_s <= way_s + 2 * PACKET_S + 1e-6
            t.speaker.playout.resume()
            await t.until(4.0)
            before, after = runs(t.far_end)
            assert 20 < len(before) < 50
            assert before + after == list(range(60))  # from the same sample: nothing is missing, and nothing is twice
            heard = t.speaker.heard()
            assert (heard.samples, heard.evidence) == (60 * PACKET_SAMPLES, Evidence.MARK)
            assert t.far_end.commands.count("FLUSH_MEDIA") == 1

    run_virtual(main())


@given(st.integers(0, 10_000), st.floats(0.0002, 0.08), st.floats(0.0, 0.02), st.floats(0.0, 0.0199))
@settings(max_examples=15, deadline=None)
def test_what_was_heard_is_what_the_ledger_says(seed: int, way_s: float, jitter_s: float, phase_s: float) -> None:
    """A reply is dropped at any time, on a network that is uneven both ways. The marks that a flush took are missed."""
    rng = random.Random(seed)

    async def main() -> None:
        async with connected(trip_s=lambda: way_s + rng.uniform(0.0, jitter_s), phase_s=phase_s) as t:
            await t.until(0.3)
            t.speaker.begin(stairs(60))
            await t.until(0.3 + rng.uniform(0.25, 1.1))
            t.speaker.out.take_back(t.speaker.reply)
            t.speaker.playout.reset()
            await t.until(t.clock.now() + 0.5)
            heard_ms = 20.0 * sum(len(run) for run in runs(t.far_end))
            said = t.speaker.heard()
            assert said.evidence is Evidence.MARK
            assert abs(said.ms - heard_ms) <= jitter_s * 1000.0 + 20.0 + 1e-6
            assert abs(said.ms - heard_ms) <= said.error_ms + jitter_s * 1000.0 + 10.0

    run_virtual(main())


def test_marks_that_a_flush_took_are_not_waited_for() -> None:
    async def main() -> None:
        async with connected() as t:
            for round_s in (0.5, 2.0, 3.5):
                await t.until(round_s)
                t.speaker.begin(stairs(60))
                await t.until(round_s + 0.71)
                t.speaker.hold()
                await t.until(round_s + 1.2)
                t.speaker.playout.reset()
            await t.until(5.0)
            sent = t.far_end.commands.count("MARK_MEDIA")
            back = sum(isinstance(event, asterisk_websocket_wire.MarkProcessed) for event in t.said)
            assert t.far_end.commands.count("FLUSH_MEDIA") == 3
            assert sent - back >= 3  # each flush took some with it
            assert t.line.far_end.marks_lost <= 3  # one may stand behind the packet that is being played
            assert t.line.far_end.marks_ignored == 0
            report = t.line.playout()
            assert report is not None
            assert report.grade == "mark"

    run_virtual(main())


# --- flow -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("speed", "minutes"), [(0.9998, 10), (1.002, 1)])
def test_ten_minutes_of_silence_and_speech_stay_as_near_as_they_began(speed: float, minutes: int) -> None:
    """A clock 200 ppm off gains or loses 120 ms in ten minutes. A packet goes out every 20 ms, and none piles up."""

    async def main() -> None:
        async with connected(speed=speed, speaks=False) as t:
            loud, spoken, empty = tone(PACKET_S, hz=400.0), 0, 0
            for n in range(minutes * 3000):
                said = n % 3000 >= 2000 and n % 3000 < 2050
                spoken += said
                t.line.send(OutPacket(n * PACKET_SAMPLES, loud if said else SILENCE, "r" if said else None))
                await t.until((n + 1) * PACKET_S)
                if n % 3000 == 2999:
                    assert t.line.far_end.remaining_s(t.clock.now()) <= 0.05
            frames = [code for _, code in t.far_end.played]
            assert len(frames) == pytest.approx(minutes * 3000 * speed, abs=2)
            assert sum(level > -45 for level in t.far_end.levels_db()) == spoken  # every packet of speech was heard
            empty = sum(not code for code in frames)
            drift = 6  # packets
            assert (empty <= drift + 2) if speed > 1 else (empty <= 2)
            assert (t.line.left_out_packets <= 2) if speed > 1 else (t.line.left_out_packets <= drift + 2)
            assert t.far_end.most_queued_frames <= 4
            assert t.far_end.dropped_bytes == 0

    run_virtual(main())


def test_after_a_stall_of_ours_pauses_get_shorter_until_we_are_on_time() -> None:
    async def main() -> None:
        async with connected() as t:
            await t.until(0.5)
            for i in range(40):  # the event loop was away for 0.8 s: the session sends what it missed all at once
                t.line.send(OutPacket(i * PACKET_SAMPLES, SILENCE))
            await t.until(1.5)
            assert t.line.left_out_packets >= 36
            assert t.line.far_end.remaining_s(t.clock.now()) <= 0.05

    run_virtual(main())


def test_xoff_holds_sound_back_and_nothing_else() -> None:
    async def main() -> None:
        async with connected() as t:
            await t.until(0.5)
            t.line.hold_back(True)
            sound = sum(len(code) for _, code in t.far_end.played)
            for i in range(20):
                t.line.send(OutPacket(i * PACKET_SAMPLES, tone(PACKET_S), "r", "i"))
                t.line.send(OutPacket(i * PACKET_SAMPLES, SILENCE))
            await t.until(1.0)
            t.line.tell(asterisk_websocket_wire.Command.GET_STATUS)
            before = len(t.far_end.commands)
            await t.until(1.1)
            assert sum(len(code) for _, code in t.far_end.played) <= sound + 3 * 960  # what it had already
            # The reply stands before the command in the queue: commands overtake no sound, but a flush removes it.
            assert t.line.flush() == 20 * PACKET_SAMPLES
            await t.until(1.2)
            assert t.far_end.commands[before:].count("GET_STATUS") == 2  # and one of the flush
            t.line.send(OutPacket(0, tone(PACKET_S), "r", "i"))
            await t.until(1.4)
            assert not any(level > -45 for level in t.far_end.levels_db())
            t.line.hold_back(False)
            await t.until(1.6)
            assert sum(level > -45 for level in t.far_end.levels_db()) == 1

    run_virtual(main())


def test_a_channel_that_stands_still_says_when_it_is_full_and_recovers() -> None:
    """Somebody pauses it: its queue fills up to the mark where it says XOFF; when it plays on, it says XON."""

    async def main() -> None:
        async with connected() as t:
            await t.until(0.5)
            pause, resume = ('{"command":"PAUSE_MEDIA"}', '{"command":"CONTINUE_MEDIA"}')
            t.far_end.arrive(pause)
            await t.until(22.0)
            assert asterisk_websocket_wire.Xoff() in t.said
            assert t.far_end.most_queued_frames in (900, 901)  # nothing came on top
            t.far_end.arrive(resume)
            await t.until(26.0)
            assert asterisk_websocket_wire.Xon() in t.said
            await t.until(42.0)  # what it held was silence, and none was put behind it
            assert t.far_end.dropped_bytes == 0
            t.speaker.begin(stairs(20))
            await t.until(43.0)
            assert runs(t.far_end) == [list(range(20))]

    run_virtual(main())


@pytest.mark.parametrize("json_control", [True, False])
def test_an_asterisk_without_marks_is_not_asked_for_ever(json_control: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with connected(marks=False, json_control=json_control) as t:
            await t.until(8.0)
            asked = len(t.far_end.unknown)
            assert 20 <= asked <= 60
            t.speaker.begin(stairs(60))
            await t.until(8.71)
            t.speaker.hold()
            await t.until(9.0)
            t.speaker.playout.resume()
            await t.until(11.0)
            assert len(t.far_end.unknown) == asked
            before, after = runs(t.far_end)
            assert before + after == list(range(60))  # the reckoning alone is right while clocks agree
            assert t.speaker.heard().evidence is Evidence.CLOCK

    run_virtual(main())
    assert "20.18" in caplog.text
