"""The jitter buffer against simulated networks: exact delays, exact counts, nothing audible at the seams."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duplex.concealment import FADE_END_MS, HISTORY, Concealer, compress, expand
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Origin, Packet, Samples
from duplex.transport.jitter import JitterBuffer, JitterSettings, signed_difference

TRANSIT_S = 0.03
POP_PHASE_S = 0.0137  # pops fall between arrivals, not on them


def voice(n_samples: int) -> Samples:
    """Vowel-like: harmonics on a wandering pitch, in syllables with pauses between them."""
    t = np.arange(n_samples) / SAMPLE_RATE_HZ
    phase = 2 * np.pi * (130 * t + 1.5 * np.sin(2 * np.pi * 1.3 * t))
    sound = sum(np.sin(k * phase) / k for k in range(1, 12))
    return (0.1 * sound * np.clip(np.sin(2 * np.pi * 0.7 * t) + 0.3, 0, 1)).astype(np.float32)


VOICE = voice(60 * SAMPLE_RATE_HZ)


def encode(index: int) -> bytes:
    return struct.pack("<q", index)


def decode(payload: bytes) -> Samples:
    start = struct.unpack("<q", payload)[0] * PACKET_SAMPLES % len(VOICE)
    return VOICE[start : start + PACKET_SAMPLES]


def decode_ramp(payload: bytes) -> Samples:
    """Each sample is its own media time, so what comes out says where it came from."""
    start = struct.unpack("<q", payload)[0] * PACKET_SAMPLES
    return np.arange(start, start + PACKET_SAMPLES, dtype=np.float32)


@dataclass
class Simulation:
    """A sender of 20 ms packets, a network, and a receiver that pops every 20 ms."""

    seconds: float
    jitter_s: Callable[[int], float] = lambda index: 0.0
    lost: Callable[[int], bool] = lambda index: False
    skew_ppm: float = 0.0
    first_seq: int = 65_400  # wraps after 2.7 s
    first_timestamp: int = 2**32 - 4 * 48_000  # wraps after 4 s
    decode: Callable[[bytes], Samples] = decode
    packets: list[Packet] = field(default_factory=list)
    delays_ms: list[float] = field(default_factory=list)

    def run(self) -> JitterBuffer:
        buffer = JitterBuffer(self.decode)
        arrivals = sorted(
            (index * 0.02 * (1 - self.skew_ppm * 1e-6) + TRANSIT_S + self.jitter_s(index), index)
            for index in range(int(self.seconds * 50) + 50)
            if not self.lost(index)
        )
        due = 0
        for tick in range(int(self.seconds * 50)):
            now_s = tick * 0.02 + POP_PHASE_S
            while arrivals[due][0] <= now_s:
                arrival_s, index = arrivals[due]
                timestamp = (self.first_timestamp + index * 960) % 2**32
                buffer.push((self.first_seq + index) % 2**16, timestamp, encode(index), arrival_s)
                due += 1
            self.packets.append(buffer.pop(now_s))
            self.delays_ms.append(buffer.delay_ms)
        return buffer

    def audio(self) -> Samples:
        return np.concatenate([packet.samples for packet in self.packets])

    def delay_at(self, seconds: float) -> float:
        return self.delays_ms[int(seconds * 50)]

    def count(self, origin: Origin) -> int:
        return sum(packet.origin is origin for packet in self.packets)


# --- a clean line ------------------------------------------------------------------------------------


def test_a_clean_line_is_played_out_unaltered_within_two_packets() -> None:
    line = Simulation(20.0, decode=decode_ramp)
    stats = line.run().stats
    audio = line.audio()
    heard = audio[np.argmax(audio > 0) - 1 :]  # media time 0 is the value 0
    assert np.array_equal(heard, np.arange(len(heard), dtype=np.float32))
    assert 20.0 <= line.delay_at(1.0) < 40.0
    assert len(set(np.round(line.delays_ms[10:], 6))) == 1  # the delay never moves
    assert (stats.lost, stats.late, stats.duplicate, stats.discarded, stats.concealed) == (0, 0, 0, 0, 0)


def test_before_anything_arrives_there_is_silence_and_nothing_counts_as_lost() -> None:
    buffer = JitterBuffer(decode)
    packets = [buffer.pop(tick * 0.02) for tick in range(50)]
    assert not buffer.started
    assert all(packet.origin is Origin.SILENCE and not packet.samples.any() for packet in packets)
    assert [packet.pts for packet in packets] == [tick * PACKET_SAMPLES for tick in range(50)]
    assert buffer.stats.lost == 0


# --- losses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_lost", [1, 2, 5, 20, 150])
def test_a_loss_leaves_the_delay_exactly_as_it_was(n_lost: int) -> None:
    line = Simulation(12.0, lost=lambda index: 100 <= index < 100 + n_lost)
    buffer = line.run()
    before, after = line.delay_at(1.5), line.delay_at(2.2 + n_lost * 0.02)
    assert after == pytest.approx(before, abs=1e-6)
    assert buffer.stats.lost == n_lost
    assert buffer.stats.late == buffer.stats.discarded == 0
    assert line.count(Origin.CONCEALED) == min(n_lost, buffer.FILL_PACKETS)
    assert line.count(Origin.WIRE) >= 12 * 50 - n_lost - 5


def test_one_lost_packet_costs_20_ms_of_sound_and_nothing_after_it() -> None:
    line = Simulation(6.0, lost=lambda index: index == 100, decode=decode_ramp)
    line.run()
    audio = line.audio()
    start = int(np.argmax(audio > 0)) - 1
    expected = np.arange(len(audio) - start, dtype=np.float32)
    differs = np.flatnonzero(audio[start:] != expected)
    assert differs[0] >= 100 * PACKET_SAMPLES
    assert differs[-1] < 101 * PACKET_SAMPLES + PACKET_SAMPLES // 4  # the blend back into real sound


def test_steady_loss_never_adds_delay() -> None:
    dice = random.Random(1)
    lost = {index for index in range(3000) if dice.random() < 0.10}
    line = Simulation(60.0, lost=lost.__contains__)
    stats = line.run().stats
    assert line.delays_ms[-1] == pytest.approx(line.delay_at(0.5), abs=1e-6)
    assert stats.lost == pytest.approx(len(lost), abs=10)  # the last second is not known yet
    assert stats.late == 0


def test_a_payload_the_decoder_refuses_is_concealed() -> None:
    def fussy(payload: bytes) -> Samples:
        if payload == encode(100):
            raise ValueError("corrupt")
        return decode(payload)

    line = Simulation(4.0, decode=fussy)
    stats = line.run().stats
    assert (stats.discarded, stats.lost) == (1, 0)
    assert line.count(Origin.CONCEALED) == 1
    assert line.delays_ms[-1] == pytest.approx(line.delay_at(1.0), abs=1e-6)


# --- late, early, twice ------------------------------------------------------------------------------


def test_reordering_within_the_delay_is_put_right() -> None:
    swapped = Simulation(6.0, jitter_s=lambda index: 0.021 if index % 50 == 7 else 0.0, decode=decode_ramp)
    stats = swapped.run().stats
    assert (stats.late, stats.lost, stats.concealed) == (0, 0, 0)
    audio = swapped.audio()
    assert np.all(np.diff(audio[np.argmax(audio > 0) - 1 :]) > 0)


def test_a_packet_after_its_time_is_late_and_not_lost() -> None:
    line = Simulation(6.0, jitter_s=lambda index: 0.3 if index == 100 else 0.0)
    stats = line.run().stats
    assert (stats.late, stats.lost) == (1, 0)
    assert line.delays_ms[-1] == pytest.approx(line.delay_at(1.0), abs=1e-6)


def test_duplicates_are_dropped() -> None:
    buffer = JitterBuffer(decode)
    for index in range(200):
        for _ in range(1 + index % 3):
            buffer.push(index, index * 960, encode(index), index * 0.02)
        buffer.pop(index * 0.02 + 0.003)
    assert buffer.stats.duplicate == sum(index % 3 for index in range(200))
    assert buffer.stats.late == buffer.stats.lost == 0
    assert buffer.delay_ms == pytest.approx(23.0)


# --- the delay follows the network -------------------------------------------------------------------


def test_a_stall_is_waited_out_without_loss_and_the_time_won_back() -> None:
    stall = Simulation(8.0, jitter_s=lambda index: max(0.0, 0.1 - 0.02 * (index - 100)) if index >= 100 else 0.0)
    stats = stall.run().stats
    assert (stats.lost, stats.late, stats.discarded) == (0, 0, 0)
    assert max(stall.delays_ms) <= stall.delay_at(1.0) + 100.0
    assert stall.delay_at(3.0) <= 60.0
    assert stall.delay_at(7.5) <= 40.0
    assert stats.removed_samples > 0


def test_a_long_stall_never_delays_beyond_the_limit() -> None:
    stall = Simulation(10.0, jitter_s=lambda index: max(0.0, 0.9 - 0.02 * (index - 100)) if index >= 100 else 0.0)
    stall.run()
    assert max(stall.delays_ms) <= JitterSettings().max_delay_ms + 20.0
    assert stall.delays_ms[-1] <= 40.0


def test_fifty_ms_of_jitter_either_way_is_absorbed_and_forgotten() -> None:
    dice = random.Random(2)
    jitter = [dice.uniform(0.0, 0.1) for _ in range(1600)]
    line = Simulation(30.0, jitter_s=lambda index: jitter[index] if index < 750 else 0.0)
    stats = line.run().stats
    assert stats.lost == 0
    assert stats.late <= 750 // 50
    assert 80.0 <= float(np.median(line.delays_ms[100:750])) <= 125.0
    assert line.delay_at(22.0) <= 30.0


@pytest.mark.parametrize("skew_ppm", [200.0, -200.0])
def test_drifting_clocks_for_ten_minutes(skew_ppm: float) -> None:
    line = Simulation(600.0, skew_ppm=skew_ppm)
    stats = line.run().stats
    steady = line.delays_ms[100:]
    assert min(steady) > 0.0
    assert max(steady) <= 45.0
    assert stats.lost == stats.late == stats.discarded == 0
    assert stats.concealed <= 12  # 120 ms drifted apart; a few of them show
    assert stats.restarts == 0


def test_a_route_that_gets_slower_for_good_is_followed() -> None:
    line = Simulation(15.0, jitter_s=lambda index: 0.08 if index >= 200 else 0.0)
    stats = line.run().stats
    assert stats.late <= 1
    assert line.delays_ms[-1] <= 40.0  # measured from the new fastest arrival: no worse than at the start


# --- pauses and new timelines ------------------------------------------------------------------------


def play(buffer: JitterBuffer, sent: Iterable[tuple[float, int, int, int]], seconds: float) -> list[Packet]:
    """``sent``: (arrival_s, seq, timestamp, index) in order of arrival."""
    queue = sorted(sent)
    packets = []
    for tick in range(int(seconds * 50)):
        now_s = tick * 0.02 + 0.003
        while queue and queue[0][0] <= now_s:
            arrival_s, seq, timestamp, index = queue.pop(0)
            buffer.push(seq % 2**16, timestamp % 2**32, encode(index), arrival_s)
        packets.append(buffer.pop(now_s))
    return packets


def test_a_sender_that_pauses_is_silent_not_lost() -> None:
    buffer = JitterBuffer(decode)
    talks = [(i * 0.02, i, i * 960, i) for i in range(100)]
    again = [(i * 0.02, i - 500, i * 960, i) for i in range(600, 700)]  # 10 s later, the next sequence number
    packets = play(buffer, talks + again, 13.9)
    assert buffer.stats.lost == buffer.stats.late == buffer.stats.discarded == buffer.stats.restarts == 0
    assert buffer.delay_ms <= 30.0
    assert sum(packet.origin is Origin.CONCEALED for packet in packets) <= buffer.FILL_PACKETS
    assert sum(packet.origin is Origin.WIRE for packet in packets) >= 190


def test_after_an_opus_dtx_frame_a_pause_is_silence_at_once() -> None:
    buffer = JitterBuffer(
        lambda payload: np.zeros(PACKET_SAMPLES, np.float32) if len(payload) <= 2 else decode(payload)
    )
    origins = []
    for tick in range(60):
        if tick < 20:
            buffer.push(tick, tick * 960, encode(tick) if tick < 19 else b"\x08", tick * 0.02)
        origins.append(buffer.pop(tick * 0.02 + 0.01).origin)
    assert Origin.CONCEALED not in origins
    assert set(origins[25:]) == {Origin.SILENCE}


def test_a_timestamp_jump_starts_a_new_timeline() -> None:
    buffer = JitterBuffer(decode)
    first = [(i * 0.02, i, i * 960, i) for i in range(100)]
    jumped = [(i * 0.02, i, 3_000_000_000 + i * 960, i) for i in range(100, 200)]
    packets = play(buffer, first + jumped, 3.9)
    assert buffer.stats.restarts == 1
    assert buffer.stats.discarded == 1  # the first stranger, which could have been an accident
    assert buffer.delay_ms <= 40.0
    assert sum(packet.origin is Origin.WIRE for packet in packets) >= 190


def test_a_single_stray_timestamp_is_ignored() -> None:
    buffer = JitterBuffer(decode)
    sent = [(i * 0.02, i, i * 960 if i != 50 else 77_777_777, i) for i in range(150)]
    play(buffer, sent, 2.9)
    assert (buffer.stats.restarts, buffer.stats.discarded) == (0, 1)
    assert buffer.delay_ms == pytest.approx(23.0)


def test_ten_ms_and_sixty_ms_packets_are_regrouped() -> None:
    for duration_ms in (10, 60):
        n = SAMPLE_RATE_HZ * duration_ms // 1000

        def cut(payload: bytes, n: int = n) -> Samples:
            start = struct.unpack("<q", payload)[0] * n
            return np.arange(start, start + n, dtype=np.float32)

        buffer = JitterBuffer(cut)
        sent = [(i * duration_ms / 1000, i, i * n * 2, i) for i in range(4000 // duration_ms)]
        packets = play(buffer, sent, 3.5)
        audio = np.concatenate([packet.samples for packet in packets])
        heard = audio[np.argmax(audio > 0) - 1 :]
        assert np.array_equal(heard, np.arange(len(heard), dtype=np.float32))


# --- properties --------------------------------------------------------------------------------------

_step = st.one_of(
    st.tuples(st.just("pop"), st.integers(0, 3)),
    st.tuples(st.just("packet"), st.integers(-3, 40)),
    st.tuples(st.just("burst"), st.integers(1, 80)),
    st.tuples(st.just("wild"), st.integers(0, 2**48 - 1)),
)


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(_step, max_size=200), first_seq=st.integers(0, 65535), first_ts=st.integers(0, 2**32 - 1))
def test_whatever_arrives_the_output_goes_on_in_order(
    steps: list[tuple[str, int]], first_seq: int, first_ts: int
) -> None:
    """Every pop gives the next 20 ms, finite and bounded; memory stays within its limit."""
    buffer = JitterBuffer(decode)
    now_s, index, pops = 0.0, 0, 0
    for kind, value in steps:
        if kind == "pop":
            now_s += 0.02
            for _ in range(value):
                packet = buffer.pop(now_s)
                assert packet.pts == pops * PACKET_SAMPLES
                assert packet.samples.shape == (PACKET_SAMPLES,)
                assert np.isfinite(packet.samples).all()
                assert np.abs(packet.samples).max() <= 2 * np.abs(VOICE).max()
                pops += 1
        elif kind == "packet":
            buffer.push((first_seq + value) % 65536, (first_ts + value * 960) % 2**32, encode(abs(value)), now_s)
        elif kind == "burst":
            for _ in range(value):
                buffer.push((first_seq + index) % 65536, (first_ts + index * 960) % 2**32, encode(index), now_s)
                index += 1
        else:
            buffer.push(value % 65536, value >> 16, b"\x01", now_s)
        assert buffer.depth_ms <= 3000.0
        assert len(buffer._packets) <= buffer.settings.max_packets
        assert len(buffer._seen) <= 1024


@settings(max_examples=60, deadline=None)
@given(
    jitter_ms=st.lists(st.integers(0, 60), min_size=150, max_size=150),
    lost=st.sets(st.integers(0, 149), max_size=40),
    first_seq=st.integers(0, 65535),
)
def test_each_sound_is_played_once_and_in_order(jitter_ms: list[int], lost: set[int], first_seq: int) -> None:
    line = Simulation(
        3.0,
        jitter_s=lambda index: jitter_ms[index % 150] / 1000.0,
        lost=lost.__contains__,
        first_seq=first_seq,
        decode=lambda payload: np.full(PACKET_SAMPLES, struct.unpack("<q", payload)[0] + 1, dtype=np.float32),
    )
    buffer = line.run()
    indices = [value for value in line.audio()[:: PACKET_SAMPLES // 4] if value == int(value) and value > 0]
    real = [a for a, b in pairwise(indices) if a == b]  # blends are single values
    assert real == sorted(real)
    stats = buffer.stats
    assert stats.lost <= len(lost)
    assert stats.late + stats.lost + stats.duplicate <= stats.received + len(lost)


@given(st.integers(0, 65535), st.integers(-30000, 30000))
def test_wrapping_differences(a: int, step: int) -> None:
    assert signed_difference((a + step) % 65536, a, 16) == step


# --- how it sounds -----------------------------------------------------------------------------------


def roughness(samples: Samples) -> float:
    """The largest step between neighbouring samples."""
    return float(np.abs(np.diff(samples)).max())


def voiced(n_samples: int, at: int = 6000) -> Samples:
    return VOICE[at : at + n_samples]


@pytest.mark.parametrize("n_lost", [1, 3, 8])
@pytest.mark.parametrize("at", [60, 75, 90, 230])
def test_a_gap_makes_no_click(n_lost: int, at: int) -> None:
    clean = Simulation(6.0)
    clean.run()
    gappy = Simulation(6.0, lost=lambda index: at <= index < at + n_lost)
    gappy.run()
    assert roughness(gappy.audio()) <= 1.3 * roughness(clean.audio())


def test_one_lost_packet_of_a_vowel_is_filled_with_something_much_like_it() -> None:
    lost = 25  # in the middle of the first syllable
    line = Simulation(3.0, lost=lambda index: index == lost)
    line.run()
    clean = Simulation(3.0)
    clean.run()
    gap = next(n for n, packet in enumerate(line.packets) if packet.origin is Origin.CONCEALED)
    truth, fill = clean.packets[gap].samples, line.packets[gap].samples
    assert np.corrcoef(truth, fill)[0, 1] > 0.8
    assert 0.5 < np.linalg.norm(fill) / np.linalg.norm(truth) < 1.2


def test_a_fill_fades_to_exact_silence() -> None:
    concealer = Concealer()
    concealer.remember(voiced(2400))
    fill = concealer.extend(SAMPLE_RATE_HZ // 5)
    fade_end = int(FADE_END_MS * SAMPLE_RATE_HZ / 1000)
    assert np.abs(fill[:240]).max() > 0.05
    assert not fill[fade_end:].any()
    assert concealer.silent


def test_cutting_and_stretching_keep_the_beginning_and_make_no_click() -> None:
    sound = voiced(PACKET_SAMPLES + HISTORY)
    shorter, longer = compress(sound, HISTORY), expand(sound, HISTORY)
    assert 60 <= len(sound) - len(shorter) <= 360
    assert 60 <= len(longer) - len(sound) <= 360
    for changed in (shorter, longer):
        assert changed[0] == pytest.approx(sound[0], abs=1e-3)
        assert roughness(changed) <= 1.2 * roughness(sound)
        assert np.array_equal(changed[-100:], sound[-100:])


def test_a_pause_gives_up_as_much_as_is_asked() -> None:
    pause = np.zeros(2 * PACKET_SAMPLES, dtype=np.float32)
    assert len(compress(pause, PACKET_SAMPLES)) == PACKET_SAMPLES
    assert len(expand(pause, 300)) == 2 * PACKET_SAMPLES + 300


def test_noise_is_left_alone() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 1200).astype(np.float32)
    assert compress(noise, 720) is noise
    assert expand(noise, 720) is noise
