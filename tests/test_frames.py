"""Packets into frames."""

from __future__ import annotations

import numpy as np
import pytest

from duplex.frames import PACKET_SAMPLES, Framer, Packet, ms_to_samples, samples_to_ms


def packet(n: int) -> Packet:
    return Packet(n * PACKET_SAMPLES, np.full(PACKET_SAMPLES, n, dtype=np.float32))


@pytest.mark.parametrize("per_frame", [1, 2, 4])
def test_frames_are_the_packets_in_order(per_frame: int) -> None:
    framer = Framer(per_frame)
    frames = [frame for n in range(12) if (frame := framer.push(packet(n))) is not None]
    assert [frame.pts for frame in frames] == list(range(0, 12 * PACKET_SAMPLES, per_frame * PACKET_SAMPLES))
    joined = np.concatenate([frame.samples for frame in frames])
    np.testing.assert_array_equal(joined, np.repeat(np.arange(12), PACKET_SAMPLES))


def test_a_gap_is_a_bug_and_says_where() -> None:
    framer = Framer()
    framer.push(packet(0))
    with pytest.raises(ValueError, match="960 does not follow pts 480"):
        framer.push(packet(2))


@pytest.mark.parametrize(
    "samples", [np.zeros(479, np.float32), np.zeros(480, np.float64), np.zeros((1, 480), np.float32)]
)
def test_a_packet_of_another_shape_is_refused(samples: np.ndarray) -> None:
    with pytest.raises(ValueError, match="480"):
        Packet(0, samples)


def test_units() -> None:
    assert ms_to_samples(20) == PACKET_SAMPLES
    assert samples_to_ms(24_000) == 1000.0
