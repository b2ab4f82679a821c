"""Resampling between a line's rate and the session's: as much out as in, late by what it says, right in between."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duplex.errors import ConfigError
from duplex.frames import Samples
from duplex.rates import PacketResampler

LINES = [(8_000, 24_000), (24_000, 8_000), (16_000, 24_000), (24_000, 16_000), (24_000, 48_000), (48_000, 24_000)]
LINES += [(44_100, 24_000), (24_000, 44_100), (24_000, 24_000)]


def packet_of(rate_hz: int) -> int:
    return rate_hz // 50


def sine(hz: float, rate_hz: int, seconds: float = 1.0) -> Samples:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(rate_hz * seconds)) / rate_hz)).astype(np.float32)


@pytest.mark.parametrize(("in_hz", "out_hz"), LINES)
def test_each_packet_gives_a_packet_late_by_what_is_said(in_hz: int, out_hz: int) -> None:
    resampler = PacketResampler(in_hz, out_hz, packet_of(in_hz))
    sound, expected = sine(700.0, in_hz), sine(700.0, out_hz)
    packets = [resampler.push(packet) for packet in sound.reshape(-1, packet_of(in_hz))]
    assert {len(packet) for packet in packets} == {packet_of(out_hz)}
    whole = np.concatenate([*packets, resampler.flush()])
    assert len(whole) == len(expected) + resampler.delay_samples
    assert resampler.delay_samples <= 0.0021 * out_hz, "a line's resampler must not cost a packet of delay"
    inner = slice(out_hz // 20, -out_hz // 20)  # the filter rings at both ends of the sound
    error = whole[resampler.delay_samples :][inner] - expected[inner]
    assert np.max(np.abs(error)) < 0.5 * 10 ** (-80 / 20)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 7), min_size=1, max_size=12), line=st.sampled_from(LINES))
def test_chunks_of_any_number_of_packets_give_the_same_samples(cuts: list[int], line: tuple[int, int]) -> None:
    in_hz, out_hz = line
    packet = packet_of(in_hz)
    sound = np.random.default_rng(3).uniform(-1, 1, packet * sum(cuts)).astype(np.float32)
    one, many = PacketResampler(in_hz, out_hz, packet), PacketResampler(in_hz, out_hz, packet)
    by_packet = np.concatenate([one.push(piece) for piece in sound.reshape(-1, packet)])
    pieces = np.split(sound, np.cumsum(cuts)[:-1] * packet)
    np.testing.assert_array_equal(np.concatenate([many.push(piece) for piece in pieces]), by_packet)
    np.testing.assert_array_equal(one.flush(), many.flush())


def test_what_does_not_fit_below_the_new_rate_is_taken_out() -> None:
    resampler = PacketResampler(24_000, 8_000, 480)
    heard = np.concatenate([resampler.push(packet) for packet in sine(5_000.0, 24_000).reshape(-1, 480)])
    assert np.max(np.abs(heard[500:-500])) < 0.5 * 10 ** (-80 / 20), "5 kHz would fold to 3 kHz"


def test_it_is_as_new_after_flush_and_after_reset() -> None:
    resampler = PacketResampler(8_000, 24_000, 160)
    sound = sine(300.0, 8_000, 0.1).reshape(-1, 160)
    first = [resampler.push(packet) for packet in sound]
    resampler.reset()
    np.testing.assert_array_equal([resampler.push(packet) for packet in sound], first)
    resampler.flush()
    np.testing.assert_array_equal([resampler.push(packet) for packet in sound], first)
    resampler.reset()
    assert not resampler.flush().any(), "nothing was said since"


def test_nothing_in_gives_nothing_and_owes_nothing() -> None:
    resampler = PacketResampler(8_000, 24_000, 160)
    assert len(resampler.push(np.zeros(0, np.float32))) == 0
    assert len(resampler.push(np.zeros(160, np.float32))) == 480


@pytest.mark.parametrize(
    ("rates", "says"),
    [((0, 24_000, 160), "above 0"), ((8_000, 24_000, 0), "above 0"), ((44_100, 24_000, 100), "multiple of 147")],
)
def test_rates_that_cannot_work_are_refused(rates: tuple[int, int, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        PacketResampler(*rates)


def test_part_of_a_packet_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of this resampler's 160"):
        PacketResampler(8_000, 24_000, 160).push(np.zeros(100, np.float32))
