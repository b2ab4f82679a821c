"""G.711 against the recommendation's own values."""

from __future__ import annotations

import numpy as np
import pytest

from duplex.codecs import g711

PAIRS = {"ulaw": (g711.encode_ulaw, g711.decode_ulaw), "alaw": (g711.encode_alaw, g711.decode_alaw)}


@pytest.mark.parametrize("law", PAIRS)
def test_every_code_survives_a_round_trip(law: str) -> None:
    encode, decode = PAIRS[law]
    codes = bytes(range(256))
    again = encode(decode(codes))
    same = [a == b for a, b in zip(codes, again, strict=True)]
    # µ-law has two zeros; both mean silence.
    assert [i for i, ok in enumerate(same) if not ok] == ([0x7F] if law == "ulaw" else [])


@pytest.mark.parametrize(
    ("law", "linear", "code"),
    [
        ("ulaw", 0, 0xFF),
        ("ulaw", 32767, 0x80),
        ("ulaw", -32768, 0x00),
        ("ulaw", 1000, 0xCE),
        ("alaw", 0, 0xD5),
        ("alaw", 32767, 0xAA),
        ("alaw", -32768, 0x2A),
        ("alaw", 1000, 0xFA),
        ("alaw", -1, 0x55),
    ],
)
def test_known_values(law: str, linear: int, code: int) -> None:
    assert PAIRS[law][0](np.array([linear / 32768.0], dtype=np.float32)) == bytes([code])


@pytest.mark.parametrize("law", PAIRS)
def test_speech_level_signals_keep_about_38_db(law: str) -> None:
    encode, decode = PAIRS[law]
    noise = np.random.default_rng(1).normal(0, 0.1, 8000).astype(np.float32)
    error = decode(encode(noise)) - noise
    assert 36 < 10 * np.log10(np.mean(noise**2) / np.mean(error**2)) < 40


@pytest.mark.parametrize("law", PAIRS)
def test_too_loud_is_clipped_not_wrapped(law: str) -> None:
    encode, decode = PAIRS[law]
    out = decode(encode(np.array([5.0, -5.0], dtype=np.float32)))
    assert out[0] > 0.95
    assert out[1] < -0.95
