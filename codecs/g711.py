"""G.711: the telephone's 8-bit logarithmic companding, µ-law and A-law (ITU-T Rec. G.711, 1988).

8 kHz mono, one byte a sample. Both directions are one table look-up: 256 entries to decode, 65536 to
encode, built once from the recommendation's definition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

RATE_HZ = 8_000

Bytes = npt.NDArray[np.uint8]
Samples = npt.NDArray[np.float32]

_ULAW_BIAS = 132  # 33 in the recommendation's 14-bit units


@dataclass(frozen=True, slots=True)
class Law:
    """One of the two, as the entry points ``pcmu`` and ``pcma`` of ``duplex.codecs`` make them. It has no state."""

    name: Literal["ulaw", "alaw"]

    def decode(self, code: bytes) -> Samples:
        """Bytes to float32[n] in [-1, 1] at 8 kHz."""
        return _decode_table(self.name)[np.frombuffer(code, dtype=np.uint8)]

    def encode(self, samples: Samples) -> bytes:
        """float32[n] at 8 kHz to n bytes; values beyond ±1 are clipped."""
        return _encode(samples, self.name)


def load_pcmu(options: Mapping[str, Any]) -> Law:
    """Entry point ``pcmu``: µ-law. It has no options."""
    return Law("ulaw")


def load_pcma(options: Mapping[str, Any]) -> Law:
    """Entry point ``pcma``: A-law. It has no options."""
    return Law("alaw")


def decode_ulaw(code: bytes) -> Samples:
    """µ-law bytes to float32[n] in [-1, 1]."""
    return _decode_table("ulaw")[np.frombuffer(code, dtype=np.uint8)]


def encode_ulaw(samples: Samples) -> bytes:
    """float32[n] to µ-law bytes; values beyond ±1 are clipped."""
    return _encode(samples, "ulaw")


def decode_alaw(code: bytes) -> Samples:
    """A-law bytes to float32[n] in [-1, 1]."""
    return _decode_table("alaw")[np.frombuffer(code, dtype=np.uint8)]


def encode_alaw(samples: Samples) -> bytes:
    """float32[n] to A-law bytes; values beyond ±1 are clipped."""
    return _encode(samples, "alaw")


def _encode(samples: Samples, law: str) -> bytes:
    linear = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int32)
    return bytes(_encode_table(law)[linear + 32768])


@cache
def _decode_table(law: str) -> Samples:
    code = np.arange(256)
    if law == "ulaw":
        inverted = ~code & 0xFF
        magnitude = (((inverted & 0x0F) << 3) + _ULAW_BIAS << ((inverted & 0x70) >> 4)) - _ULAW_BIAS
        linear = np.where(inverted & 0x80, -magnitude, magnitude)
    else:
        toggled = code ^ 0x55
        segment, step = (toggled & 0x70) >> 4, (toggled & 0x0F) << 4
        magnitude = np.where(segment == 0, step + 8, (step + 0x108) << np.maximum(segment - 1, 0))
        linear = np.where(toggled & 0x80, magnitude, -magnitude)
    return (linear / 32768.0).astype(np.float32)


@cache
def _encode_table(law: str) -> Bytes:
    """The code whose decision interval holds each 16-bit value: uint8[65536], index = value + 32768."""
    linear = np.arange(-32768, 32768)
    if law == "ulaw":
        magnitude = np.minimum(np.abs(linear), 32635) + _ULAW_BIAS
        segment = np.floor(np.log2(magnitude)).astype(int) - 7
        code = ~((segment << 4) | ((magnitude >> (segment + 3)) & 0x0F) | np.where(linear < 0, 0x80, 0))
    else:
        # Negative values are one's complement, so that zero has no code of its own on that side.
        magnitude = np.where(linear < 0, -linear - 1, linear)
        segment = np.where(magnitude < 256, 0, np.floor(np.log2(np.maximum(magnitude, 1))).astype(int) - 7)
        step = (magnitude >> np.where(segment == 0, 4, segment + 3)) & 0x0F
        code = ((segment << 4) | step | np.where(linear < 0, 0, 0x80)) ^ 0x55
    return np.asarray(code & 0xFF, dtype=np.uint8)
