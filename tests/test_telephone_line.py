"""A telephone line by itself: taking back, the edge of rates and companding, what is told and what ends it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from twilio_far_end import TWILIO, ULAW, cancelled

from duplex import events as ev
from duplex.agent import AgentSettings
from duplex.clock import VirtualClock
from duplex.codecs.g711 import decode_alaw, decode_ulaw, encode_alaw
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ
from duplex.line import OutPacket
from duplex.metrics import Metrics
from duplex.testing import run_virtual, tone
from duplex.transport.telephone import TelephoneLine, Wire
from duplex.transport.telephone_edge import Ear, Encoding, Mouth, linear16

ALAW = Encoding("pcma", 8000, 1, decode_alaw, encode_alaw)
PACKET_S = 0.02


# --- taking back ------------------------------------------------------------------------------------------


def test_without_a_clear_only_what_waits_here_is_taken_back() -> None:
    async def main() -> None:
        clock, sent = VirtualClock(), []

        async def take(message: str | bytes) -> None:
            sent.append(message)

        line = TelephoneLine(clock, Metrics(), Wire(lambda code: code), ULAW, name="test", lead_packets=2)
        sender = asyncio.create_task(line.run_sender(take))
        for i in range(6):
            line.send(OutPacket(i * PACKET_SAMPLES, tone(PACKET_S), "r", "i"))
        await asyncio.sleep(0)
        assert len(sent) == 2
        assert line.flush() == 4 * PACKET_SAMPLES
        assert line.flush() == 0
        await clock.sleep_until(1.0)
        assert len(sent) == 2
        report = line.playout()
        assert report is not None
        assert (report.pts, report.grade) == (2 * PACKET_SAMPLES, "clock")
        await cancelled(sender)

    run_virtual(main())


def test_sound_goes_on_without_a_click_after_it_was_taken_back() -> None:
    mouth, straight = Mouth(ULAW), Mouth(ULAW)
    packets = np.split(tone(0.2, hz=700.0), 10)
    whole = [straight.speak(packet) for packet in packets]
    said = [mouth.speak(packet) for packet in packets[:6]]
    mouth.resume_after(packets[2])  # three were taken back
    said = said[:3] + [mouth.speak(packet) for packet in packets[3:]]
    a, b = decode_ulaw(b"".join(whole)), decode_ulaw(b"".join(said))
    assert np.abs(a - b).max() < 0.01


# --- the edge ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", [ULAW, ALAW, linear16(8000), linear16(16000), linear16(24000), linear16(48000)])
@pytest.mark.parametrize("cut_every", [1, 7, 160, 10_000])
def test_bytes_in_any_pieces_are_the_same_sound(encoding: Encoding, cut_every: int) -> None:
    mouth = Mouth(encoding)
    said = tone(0.3, hz=440.0)
    code = b"".join(mouth.speak(packet) for packet in np.split(said, 15))
    assert len(code) == 15 * encoding.packet_bytes
    assert encoding.duration_s(code) == pytest.approx(0.3)
    ear = Ear(encoding)
    heard = np.concatenate([ear.hear(code[i : i + cut_every]) for i in range(0, len(code), cut_every)])
    whole = Ear(encoding).hear(code)
    n = min(len(heard), len(whole))
    assert 0.3 * SAMPLE_RATE_HZ - n <= 0.004 * SAMPLE_RATE_HZ
    assert np.abs(heard[:n] - whole[:n]).max() < 1e-4
    middle = heard[2400:4800]
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.1, rel=0.03)
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(2400)))
    assert np.argmax(spectrum) * 10 == 440  # 24000 / 2400 Hz a bin


def test_half_a_sample_waits_for_its_other_half() -> None:
    ear = Ear(linear16(24000))
    assert len(ear.hear(b"\x00")) == 0
    assert ear.hear(b"\x40\x00").tolist() == [0.5]
    assert ear.hear(b"\xc0").tolist() == [-0.5]


# --- a line like any other --------------------------------------------------------------------------------


async def test_sound_far_ahead_of_real_time_is_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    clock, metrics = VirtualClock(asyncio.get_running_loop()), Metrics()
    line = TelephoneLine(clock, metrics, TWILIO, ULAW, name="CA1", max_input_s=1.0)
    for _ in range(4):
        line.hear(bytes(8000))
    assert metrics.queue_drops.labels("telephone_input")._value.get() == 3
    assert [record.message.split(":")[0] for record in caplog.records] == ["CA1"]  # told once
    assert sum(len(packet.samples) for _ in range(4) for packet in line.receive()) <= 1.0 * SAMPLE_RATE_HZ


async def test_events_are_logged_by_id_and_never_by_word(caplog: pytest.LogCaptureFixture) -> None:
    line = TelephoneLine(VirtualClock(asyncio.get_running_loop()), Metrics(), TWILIO, ULAW, name="CA1")
    at = ev.At(0, 0.0)
    with caplog.at_level("DEBUG", "duplex.telephone"):
        assert not line.started.is_set()
        line.emit(ev.SessionStarted(at, "sess_1", "scripted", AgentSettings(instructions="a secret")))
        line.emit(ev.UserTranscriptFinal(at, "item_7", "my card is 1234"))
        line.emit(ev.ErrorRaised(at, "reply_stalled", "The reply stopped coming."))
    assert line.started.is_set()
    told = caplog.text
    assert "sess_1" in told
    assert "item_7" in told
    assert "The reply stopped coming." in told
    assert "1234" not in told
    assert "secret" not in told
    assert line.take_image() is None


@pytest.mark.parametrize("after_s", [4.9, 5.1])
def test_a_far_end_that_stops_reading_is_let_go_after_five_seconds(after_s: float) -> None:
    async def main() -> None:
        clock = VirtualClock()
        line = TelephoneLine(clock, Metrics(), TWILIO, ULAW, name="test")

        async def hang(message: str | bytes) -> None:
            await asyncio.Event().wait()

        sender = asyncio.create_task(line.run_sender(hang))
        line.send(OutPacket(0, tone(PACKET_S), "r", "i"))
        await clock.sleep_until(after_s)
        line.receive()
        assert line.closed == (after_s > 5.0)
        assert line.ending == ((1008, "The far end took nothing for 5 s.") if after_s > 5.0 else None)
        await cancelled(sender)

    run_virtual(main())


async def test_a_far_end_that_lets_things_pile_up_is_let_go() -> None:
    line = TelephoneLine(VirtualClock(asyncio.get_running_loop()), Metrics(), TWILIO, ULAW, name="test", max_unsent=32)
    for i in range(16):
        line.send(OutPacket(i * PACKET_SAMPLES, tone(PACKET_S), "r", "i"))
    assert not line.has_room.is_set()  # nothing more is read from it
    for i in range(17):
        line.send(OutPacket(i * PACKET_SAMPLES, tone(PACKET_S), "r", "i"))
    assert line.closed
    assert line.ending == (1008, "The far end did not keep up: 32 messages were waiting for it.")
