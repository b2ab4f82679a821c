"""The edge between a telephone's bytes and the session's sound: any rate and companding to 24 kHz and back.

The companding is passed in (:class:`Encoding`), since codecs are another room. Both directions keep the state of their
resampler, so sound that comes in pieces sounds as if it had come whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from duplex.frames import PACKET_MS, PACKET_SAMPLES, SAMPLE_RATE_HZ, Samples
from duplex.rates import PacketResampler, StreamResampler
from duplex.transport.pcm import from_pcm16, to_pcm16


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a wire spells sound. ``decode``: bytes (whole samples) to float32[n] in [-1, 1]; ``encode``: back, clipping.

    ``rate_hz``: 20 ms must be a whole number of samples.
    """

    name: str
    rate_hz: int
    bytes_per_sample: int
    decode: Callable[[bytes], Samples]
    encode: Callable[[Samples], bytes]

    @property
    def packet_bytes(self) -> int:
        """Of 20 ms."""
        return self.rate_hz * PACKET_MS // 1000 * self.bytes_per_sample

    def duration_s(self, code: bytes) -> float:
        return len(code) / self.bytes_per_sample / self.rate_hz


def linear16(rate_hz: int) -> Encoding:
    """Signed 16 bit little-endian, as Asterisk's ``slin`` family."""
    return Encoding(f"slin{rate_hz // 1000}", rate_hz, 2, from_pcm16, to_pcm16)


class Ear:
    """Bytes as they come, of any length, to sound at 24 kHz; half a sample waits for its other half."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._half = b""
        self._resampler = (
            None if encoding.rate_hz == SAMPLE_RATE_HZ else StreamResampler(encoding.rate_hz, SAMPLE_RATE_HZ)
        )

    def hear(self, code: bytes) -> Samples:
        """float32[m] at 24 kHz: what these bytes complete, but for the 2 ms the resampler owes at 8 kHz."""
        if self._half:
            code, self._half = self._half + code, b""
        if odd := len(code) % self._encoding.bytes_per_sample:
            code, self._half = code[:-odd], code[-odd:]
        samples = self._encoding.decode(code)
        return samples if self._resampler is None else self._resampler.push(samples)


class Mouth:
    """Packets of 20 ms to their bytes; each :attr:`delay_s` late, which is what the resampler's filter takes."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._resampler = PacketResampler(SAMPLE_RATE_HZ, encoding.rate_hz, PACKET_SAMPLES)
        self._quiet = True

    @property
    def delay_s(self) -> float:
        return self._resampler.delay_samples / self._encoding.rate_hz

    @property
    def quiet(self) -> bool:
        """Nothing of the last packet can be heard: neither it nor what the filter still owed."""
        return self._quiet

    def speak(self, samples: Samples) -> bytes:
        """float32[480] at 24 kHz to ``packet_bytes`` bytes."""
        out = self._resampler.push(samples)
        self._quiet = not np.any(np.abs(out) > 1e-4)
        return self._encoding.encode(out)

    def resume_after(self, samples: Samples) -> None:
        """What was spoken after ``samples`` (float32[480]) was taken back: goes on from there as if it never was."""
        self._resampler.reset()
        self._resampler.push(samples)
