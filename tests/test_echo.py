"""What was played, beside what is heard: the tape's time line against the line's and the microphone's."""

from __future__ import annotations

import sys
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duplex import serve
from duplex.agent import AgentSettings
from duplex.clock import MonotonicClock
from duplex.config import SessionConfig
from duplex.echo import EchoCancelledLine, Tape
from duplex.errors import DuplexError
from duplex.frames import PACKET_SAMPLES, Frame, Origin, Packet, Samples, ms_to_samples
from duplex.hub import SessionHub
from duplex.line import OutPacket
from duplex.testing import LoopbackLine, ScriptedAgent

P = PACKET_SAMPLES


def packet(number: int) -> Samples:
    """Each sample says where it is."""
    return np.arange(number * P, (number + 1) * P, dtype=np.float32) + 1.0


def frame(pts: int, packets: int = 1) -> Frame:
    return Frame(pts, np.zeros(packets * P, dtype=np.float32))


def tape_of(packets: int) -> Tape:
    tape = Tape()
    for number in range(packets):
        tape.put(number * P, packet(number))
    return tape


@pytest.mark.parametrize("ahead", [0, 1, 9])
def test_what_is_due_stands_beside_what_is_heard_however_far_ahead_the_line_is_kept(ahead: int) -> None:
    tape = Tape()
    for tick in range(30):
        tape.put((tick + ahead) * P, packet(tick + ahead))
        beside = tape.beside(frame(tick * P), (tick + 1) * P)
        assert beside[0] == (tick * P + 1 if tick >= ahead else 0)


def test_frames_longer_than_a_packet() -> None:
    tape = tape_of(8)
    assert tape.beside(frame(0, 4), 4 * P).tolist() == np.concatenate([packet(n) for n in range(4)]).tolist()
    assert tape.beside(frame(4 * P, 4), 8 * P)[-1] == 8 * P


def test_a_microphone_that_starts_late_is_tied_where_it_starts() -> None:
    tape = tape_of(50)
    assert tape.beside(frame(0), 21 * P).tolist() == packet(20).tolist()
    assert tape.beside(frame(P), 22 * P).tolist() == packet(21).tolist()


def test_a_late_tick_with_two_frames_repeats_nothing_and_an_early_frame_is_set_beside_what_there_is() -> None:
    tape = tape_of(50)
    seen = [tape.beside(frame(n * P), due * P)[0] for n, due in enumerate([1, 2, 4, 4, 5, 5, 7, 7])]
    assert seen == [packet(n)[0] for n in (0, 1, 2, 3, 4, 4, 5, 6)]


def test_a_stall_ties_the_time_lines_anew() -> None:
    tape = tape_of(100)
    tape.beside(frame(0), P)
    assert tape.beside(frame(P), 30 * P).tolist() == packet(29).tolist()


def test_a_shift_of_one_packet_is_followed_once_it_has_lasted() -> None:
    tape = tape_of(98)
    firsts = [tape.beside(frame(n * P), (n + 1 + (n > 10)) * P)[0] for n in range(80)]
    assert firsts[12] == packet(12)[0]
    assert firsts[11 + Tape.RECENT_FRAMES] == packet(12 + Tape.RECENT_FRAMES)[0]


def test_what_is_taken_back_was_not_played_and_may_be_played_otherwise() -> None:
    tape = tape_of(10)
    tape.take_back(6 * P)
    assert not tape.beside(frame(0, 4), 10 * P).any()
    tape = tape_of(10)
    tape.take_back(6 * P)
    tape.put(6 * P, -packet(6))
    assert tape.beside(frame(0, 2), 7 * P).tolist() == [*packet(5), *-packet(6)]


def test_packets_that_were_skipped_are_silence_also_after_the_tape_went_round() -> None:
    tape = Tape(keep_ms=200.0)
    for number in range(10):
        tape.put(number * P, packet(number))
    tape.put(13 * P, packet(13))
    beside = tape.beside(frame(0, 6), 14 * P)
    assert beside.tolist() == [*packet(8), *packet(9), *np.zeros(3 * P), *packet(13)]
    tape.put(100 * P, packet(100))
    assert np.count_nonzero(tape.beside(frame(6 * P, 10), 101 * P)) == P


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=60))
def test_it_equals_a_list_of_everything_that_was_played(steps: list[tuple[bool, int]]) -> None:
    """Any order of sending (a few packets, perhaps after a gap) and taking back; what was written over is silence."""
    tape, played = Tape(keep_ms=400.0), dict[int, Samples]()
    end = ever = 0
    for back, count in steps:
        if back:
            end = max(0, end - count)
            tape.take_back(end * P)
            played = {n: sound for n, sound in played.items() if n < end}
        else:
            end += count % 3
            for _ in range(count // 3 + 1):
                played[end] = packet(end)
                tape.put(end * P, packet(end))
                end += 1
            ever = max(ever, end)
    kept, none = 5, np.zeros(P, dtype=np.float32)
    expected = np.concatenate([played.get(n, none) if n >= ever - 20 else none for n in range(end - kept, end)])
    assert tape.beside(frame(0, kept), end * P).tolist() == expected.tolist()


def test_reset_forgets_the_sound_and_the_tie() -> None:
    tape = tape_of(20)
    tape.beside(frame(0), 10 * P)
    tape.reset()
    assert not tape.beside(frame(0), P).any()
    tape.put(0, packet(0))
    assert tape.beside(frame(7 * P), P).tolist() == packet(0).tolist()
    assert ms_to_samples(100.0) == Tape.SLIP_SAMPLES


# --- a line whose echo is cancelled --------------------------------------------------------------------


class Subtract:
    """A canceller for an echo that comes back whole and at once."""

    latency_samples = 0

    def process(self, heard: Samples, reference: Samples) -> Samples:
        return heard - reference

    def reset(self) -> None: ...


class Ticking:
    now_s = 0.0

    def now(self) -> float:
        return self.now_s


class EchoingLine(LoopbackLine):
    """What is sent now is heard with the next packet, and the person says a constant on top."""

    def receive(self) -> list[Packet]:
        played = self.played[-1].samples if self.played else np.zeros(P, dtype=np.float32)
        return [Packet(packet.pts, played + np.float32(0.25), Origin.WIRE) for packet in super().receive()]


def test_our_voice_is_taken_out_of_what_the_line_hears() -> None:
    clock, inner = Ticking(), EchoingLine()
    line = EchoCancelledLine(inner, Subtract(), cast(Any, clock))
    for number in range(20):
        line.send(OutPacket(number * P, np.full(P, 0.01 * number, dtype=np.float32)))
        clock.now_s = (number + 1) * 0.02
        [heard] = line.receive()
        assert heard.samples == pytest.approx(np.full(P, 0.25), abs=1e-6), number
    assert len(inner.played) == 20
    assert line.flush() == 0


def test_silence_of_a_muted_microphone_stays_silence() -> None:
    line = EchoCancelledLine(LoopbackLine(), Subtract(), cast(Any, Ticking()))
    line.send(OutPacket(0, np.ones(P, dtype=np.float32)))
    [heard] = line.receive()
    assert heard.origin is Origin.SILENCE
    assert not heard.samples.any()


async def test_a_hub_cancels_echo_for_every_session_if_it_is_told_to() -> None:
    made: list[Subtract] = []

    def make() -> Subtract:
        made.append(Subtract())
        return made[-1]

    hub = SessionHub(ScriptedAgent(), MonotonicClock(), SessionConfig(), max_sessions=2, make_canceller=make)
    async with hub:
        for _ in range(2):
            hub.open(LoopbackLine(), AgentSettings())
    assert len(made) == 2


def test_a_canceller_that_is_not_installed_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "livekit", None)
    with pytest.raises(DuplexError, match=r"duplex-runtime\[echo\]|echo canceller"):
        serve._canceller(SessionConfig(echo_canceller="webrtc"))
    assert serve._canceller(SessionConfig()) is None
