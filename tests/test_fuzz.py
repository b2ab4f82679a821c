"""Everything that reads what others wrote holds to its promises: documented errors, short ones, within bounds.

A few thousand changed and structured inputs, the same at every run, and every input that ever found something. The long
run is ``make fuzz``; ``docs/fuzzing.md`` says more.
"""

from __future__ import annotations

import logging
import random
import struct
import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest
from fuzz.corpus import folders, kept
from fuzz.mutate import Mutator
from fuzz.run import fuzz
from fuzz.target import Finding, Target, attempt
from fuzz.targets import TARGETS
from fuzz.targets_calls import NEGOTIATION_TARGET, offers
from fuzz.targets_media import PICTURE_TARGET, many_scans, mend_ogg, mend_png

from duplex.errors import InvalidEventError
from duplex.transport.camera import MAX_FRAME_BYTES, MAX_PIXELS, KeyFrames, is_decodable, picture_size

SLOW = {"channel": 30, "recording": 30, "negotiation": 40, "rtp-sound": 40, "camera": 60, "picture": 120}
INPUTS = 150


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What is logged and warned of is right, and would fill pages. What targets hush is put back for other tests."""
    loggers = [logging.getLogger(name) for name in ("duplex", "aioice")]
    levels = [logger.level for logger in loggers]
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def the_findings(name: str, inputs: int) -> list[str]:
    result = fuzz(TARGETS[name], seconds=60.0, seed_number=1, most=inputs)
    assert result.executions >= inputs
    return [str(finding) for finding in result.findings.values()]


@pytest.mark.parametrize("name", TARGETS)
def test_changed_inputs_are_read_or_refused_as_documented(name: str) -> None:
    assert the_findings(name, SLOW.get(name, INPUTS)) == []


@pytest.mark.parametrize(("name", "file"), [(name, file) for name in folders() for file in kept(name)])
def test_what_was_once_found_stays_mended(name: str, file: str) -> None:
    attempt(TARGETS[name], kept(name)[file])


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_get_past_the_parser(name: str) -> None:
    """Or else nothing behind it is ever tried."""
    target = TARGETS[name]
    accepted = 0
    for data in target.seeds():
        try:
            target.run(data)
            accepted += 1
        except target.refuses:
            pass
    assert accepted >= min(2, len(target.seeds()))


# --- the harness itself --------------------------------------------------------------------------------------


def planted(data: bytes) -> str:
    match data:
        case b"surprise":
            raise KeyError(data)
        case b"memory":
            return str(len(bytearray(96 * 1024 * 1024)))
        case b"time":
            return str(sum(n for n in range(8_000_000)))
        case b"refused":
            raise InvalidEventError("This is not how it is done.")
    return "fine"


PLANTED = Target("planted", planted, (InvalidEventError,), lambda: [b"fine"], cpu_s=0.05, peak_mb=32.0)


@pytest.mark.parametrize("data", [b"surprise", b"memory", b"time"])
def test_a_broken_promise_is_found(data: bytes) -> None:
    with pytest.raises(Finding):
        attempt(PLANTED, data)


def test_what_is_documented_is_no_finding() -> None:
    assert attempt(PLANTED, b"refused").startswith("InvalidEventError")
    assert attempt(PLANTED, b"other") == "fine"


def test_an_error_that_is_too_long_or_no_text_is_found() -> None:
    class WordyError(Exception):
        pass

    def wordy(data: bytes) -> str:
        raise WordyError(data.decode("utf-8", "surrogateescape"))

    target = replace(PLANTED, run=wordy, refuses=(WordyError,))
    attempt(target, b"short")
    for data in (b"x" * 5000, b"\xff"):
        with pytest.raises(Finding):
            attempt(target, data)


def test_fuzzing_finds_what_one_byte_away_from_a_seed_is_wrong() -> None:
    def fragile(data: bytes) -> str:
        if data[:2] == b"ok" and len(data) > 2 and data[2] & 0x80:
            raise ZeroDivisionError
        return data[:1].hex()

    target = Target("fragile", fragile, (), lambda: [b"ok, this is fine"])
    found = fuzz(target, seconds=60.0, seed_number=3, most=3000).findings
    assert list(found) == [next(iter(found))]
    assert next(iter(found)).startswith("ZeroDivisionError")


def test_changes_are_bounded_and_the_same_for_a_seed() -> None:
    seeds = [b'{"a": [1, 2]}', b"\x00\x01\x02", b""]

    def changed(seed: int) -> list[bytes]:
        rng = random.Random(seed)
        mutate = Mutator(rng, (b"word",), lambda: rng.choice(seeds), 1000)
        return [mutate(rng.choice(seeds)) for _ in range(500)]

    assert changed(1) == changed(1) != changed(2)
    assert max(map(len, changed(1))) <= 1000
    assert len(set(changed(1))) > 250


def test_mended_checksums_are_those_of_the_seeds() -> None:
    for seed in TARGETS["ogg-opus"].seeds()[:2]:
        assert mend_ogg(seed) == seed
    for seed in PICTURE_TARGET.seeds():
        assert mend_png(seed) == seed


# --- what the limits are -------------------------------------------------------------------------------------


def vp8(width: int, height: int, *, scale: int = 0) -> bytes:
    return b"\x10\x02\x00\x9d\x01\x2a" + struct.pack("<HH", width | scale << 14, height | scale << 14) + bytes(28)


def test_a_key_frame_says_its_size_and_is_believed_before_it_is_decoded() -> None:
    assert picture_size(vp8(640, 480, scale=3)) == (640, 480)
    assert picture_size(b"\x11" + vp8(640, 480)[1:]) is None  # not a key frame
    assert picture_size(vp8(640, 480)[:9]) is None
    assert is_decodable(vp8(3840, 2160))
    assert not is_decodable(vp8(3841, 2160))
    assert not is_decodable(vp8(4000, MAX_PIXELS // 4000 + 1))
    assert not is_decodable(vp8(16383, 16383))
    assert not is_decodable(vp8(0, 480))


def test_a_key_frame_that_is_too_large_is_not_even_put_together() -> None:
    for size, whole in (((640, 480), True), ((16383, 16383), False)):
        frames, frame = KeyFrames(), vp8(*size)
        assert frames.push(1, 9000, False, b"\x10" + frame[:20]) is None
        assert (frames.push(2, 9000, True, b"\x00" + frame[20:]) is not None) is whole


def test_a_frame_of_fragments_is_bounded_in_bytes() -> None:
    frames = KeyFrames()
    frames.push(0, 9000, False, b"\x10" + vp8(640, 480))
    for seq in range(1, 40):
        frames.push(seq, 9000, False, b"\x00" + bytes(60_000))
        held = sum(len(part) for frame in frames._frames.values() for part in frame.parts.values())
        assert held <= MAX_FRAME_BYTES
    assert held == 0


def test_a_jpeg_of_many_scans_is_refused_and_one_of_a_few_is_not() -> None:
    assert attempt(PICTURE_TARGET, many_scans(640, 480, 50)).startswith("jpeg")
    assert attempt(PICTURE_TARGET, many_scans(4000, 4000, 3000)).startswith("TooLargeError")


def test_an_offer_without_an_rtcp_line_is_answered() -> None:
    """As Pion writes them."""
    offer = b"\r\n".join(line for line in offers()[1].split(b"\r\n") if not line.startswith(b"a=rtcp:"))
    assert attempt(NEGOTIATION_TARGET, offer) == "answered with 3"


def test_an_offer_refused_half_way_leaves_nothing_behind_and_says_why() -> None:
    """aiortc's own clean-up fails over a section that never got a transport."""
    offer = offers()[1].replace(b"c=IN IP4 0.0.0.0", b"c=IN IP4 0.0.\xd9\xa3", 1)
    assert attempt(NEGOTIATION_TARGET, offer).startswith("InvalidEventError invalid_sdp")
