"""Ogg-Opus as a stream: what the stock codec writes and reads, any chunking, damage, and bounds on what it may cost."""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Iterable

import numpy as np
import pytest
import soundfile
import sphn
from hypothesis import given, settings
from hypothesis import strategies as st

from duplex.codecs.ogg_opus import MAX_PACKET_BYTES, OggOpusReader, OggOpusWriter, load
from duplex.codecs.ogg_opus_pages import HEADER_BYTES, MAX_PAGE_BYTES, PageReader, PageWriter, crc32
from duplex.errors import ConfigError, InvalidEventError, ProtocolError, TooLargeError, UnsupportedError
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Samples
from duplex.registry import lookup

STOCK_FRAME = 1920  # what the stock server and client encode at a time


def voice(seconds: float, seed: int = 1) -> Samples:
    """Band-limited noise at a speech-like level: nothing repeats, so a shift or a gap shows."""
    rng = np.random.default_rng(seed)
    n = round(seconds * SAMPLE_RATE_HZ)
    spectrum = np.fft.rfft(rng.normal(0, 1, n))
    spectrum[np.fft.rfftfreq(n, 1 / SAMPLE_RATE_HZ) > 3000] = 0
    noise = np.fft.irfft(spectrum, n)
    return (0.1 * noise / noise.std()).astype(np.float32)


def stock_pages(samples: Samples) -> list[bytes]:
    writer = sphn.OpusStreamWriter(SAMPLE_RATE_HZ)
    return [writer.append_pcm(samples[i : i + STOCK_FRAME]) for i in range(0, len(samples), STOCK_FRAME)]


def our_pages(samples: Samples) -> list[bytes]:
    writer = OggOpusWriter()
    return [writer.write(samples[i : i + PACKET_SAMPLES]) for i in range(0, len(samples), PACKET_SAMPLES)]


def heard(chunks: Iterable[bytes], reader: OggOpusReader | None = None) -> Samples:
    reader = reader or OggOpusReader()
    return np.concatenate([reader.feed(chunk) for chunk in chunks])


def best_match(reference: Samples, decoded: Samples, max_lag: int = 400) -> tuple[float, int]:
    """The highest correlation of ``decoded`` with ``reference``, and the delay at which it is (samples)."""
    n = len(reference) - max_lag
    scores = [np.corrcoef(reference[:n], decoded[lag : lag + n])[0, 1] for lag in range(max_lag)]
    return max(scores), int(np.argmax(scores))


SPOKEN = voice(1.6)
STOCK = b"".join(stock_pages(SPOKEN))


# --- the same sound --------------------------------------------------------------------------------------


def test_what_the_stock_encoder_writes_is_heard_as_the_stock_decoder_hears_it() -> None:
    pages = stock_pages(SPOKEN)
    ours = heard(pages)
    stock = sphn.OpusStreamReader(SAMPLE_RATE_HZ)
    theirs = np.concatenate([stock.append_bytes(page) for page in pages])
    assert len(ours) == len(theirs) == len(SPOKEN)
    score, lag = best_match(theirs, ours)
    assert score > 0.99
    assert lag == 11  # the half-band filter: half a millisecond


def test_the_stock_decoder_hears_what_we_write() -> None:
    stock = sphn.OpusStreamReader(SAMPLE_RATE_HZ)
    decoded = [stock.append_bytes(page) for page in our_pages(SPOKEN)]
    assert [len(samples) for samples in decoded] == [PACKET_SAMPLES] * len(decoded)  # nothing is kept back
    score, lag = best_match(SPOKEN, np.concatenate(decoded))
    assert score > 0.9
    assert lag < 0.01 * SAMPLE_RATE_HZ


def test_a_packet_that_is_written_can_be_heard_at_once() -> None:
    writer, reader = OggOpusWriter(), OggOpusReader()
    for i in range(10):
        assert len(reader.feed(writer.write(SPOKEN[i * PACKET_SAMPLES : (i + 1) * PACKET_SAMPLES]))) == PACKET_SAMPLES


def test_any_size_may_be_written() -> None:
    whole, pieces = OggOpusWriter(), OggOpusWriter()
    cuts = np.cumsum([0, 1, 479, 480, 481, 0, 7, 2000, 952])
    assert whole.write(SPOKEN[: cuts[-1]]) == b"".join(pieces.write(SPOKEN[a:b]) for a, b in itertools.pairwise(cuts))


def test_too_loud_is_clipped() -> None:
    decoded = heard(our_pages(5 * SPOKEN / np.abs(SPOKEN).max()))
    assert np.isfinite(decoded).all()
    assert 0.5 < np.abs(decoded).max() <= 1.0


# --- the same bytes ---------------------------------------------------------------------------------------


def split_pages(stream: bytes) -> list[bytes]:
    pages = []
    while stream:
        lacing = stream[HEADER_BYTES : HEADER_BYTES + stream[26]]
        size = HEADER_BYTES + len(lacing) + sum(lacing)
        pages.append(stream[:size])
        stream = stream[size:]
    return pages


@pytest.mark.parametrize("stream", [STOCK, b"".join(our_pages(SPOKEN))], ids=["stock", "ours"])
def test_both_lay_a_stream_out_alike(stream: bytes) -> None:
    head, tags, *sound = split_pages(stream)
    assert head[:6] == b"OggS\x00\x02"
    assert head[28:38] == b"OpusHead\x01\x01"  # version 1, mono
    assert struct.unpack("<I", head[40:44])[0] in (SAMPLE_RATE_HZ, 48_000)  # what it was made from; nobody minds
    assert tags[28:36] == b"OpusTags"
    per_page = 2 * len(SPOKEN) // len(sound)  # samples at 48 kHz
    for number, page in enumerate([head, tags, *sound]):
        _, version, flags, granule, serial, sequence, crc = struct.unpack_from("<4sBBqIII", page)
        assert (version, serial, sequence) == (0, 42, number)
        assert flags == (2 if number == 0 else 0)
        assert granule == max(0, number - 1) * per_page
        assert crc == crc32(page[:22] + bytes(4) + page[26:])


def test_other_software_reads_our_stream_as_a_file() -> None:
    samples, rate = soundfile.read(io.BytesIO(b"".join(our_pages(SPOKEN))))  # libogg holds pages against checksums
    assert rate in (SAMPLE_RATE_HZ, 48_000)
    assert len(samples) / rate == pytest.approx(1.6, abs=0.02)  # less the pre-skip


# --- any chunking -----------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, len(STOCK)), max_size=40))
def test_any_chunking_gives_the_same_sound(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STOCK)]
    chunks = [STOCK[a:b] for a, b in itertools.pairwise(edges)]
    np.testing.assert_array_equal(heard(chunks), heard([STOCK]))


def test_byte_by_byte() -> None:
    np.testing.assert_array_equal(heard(bytes([byte]) for byte in STOCK), heard([STOCK]))


def test_half_a_page_is_waited_for() -> None:
    reader, pages = OggOpusReader(), stock_pages(SPOKEN)
    half = len(pages[0]) // 2
    assert len(reader.feed(pages[0][:half])) == 0
    assert len(reader.feed(b"")) == 0
    assert len(reader.feed(pages[0][half:])) == STOCK_FRAME


def test_a_client_may_begin_anew() -> None:
    reader = OggOpusReader()
    first, again = heard(stock_pages(SPOKEN), reader), heard(stock_pages(SPOKEN), reader)
    np.testing.assert_array_equal(first, again)


# --- damage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"hello there, this is no sound", "begins with"),
        (b"RIFF" + bytes(40), "begins with"),
        (bytes(100_000), "begins with"),
        (STOCK[:60] + b"?" + STOCK[61:], "checksum"),
        (b"OggS\x01" + STOCK[5:], "version 1"),
        (PageWriter(7).page(b"\x01vorbis" + bytes(30), 0), "not an OpusHead"),
        (PageWriter(7).page(b"", 0), "not an OpusHead"),
        (b"".join(split_pages(STOCK)[1:]), "no stream that was begun"),
    ],
)
def test_what_is_no_ogg_opus_is_refused_in_words(data: bytes, says: str) -> None:
    with pytest.raises(InvalidEventError, match=says) as refused:
        OggOpusReader().feed(data)
    assert refused.value.code == "invalid_audio"


def head(channels: int = 1, mapping: int = 0, version: int = 1) -> bytes:
    return b"OpusHead" + struct.pack("<BBHIhB", version, channels, 312, 48_000, 0, mapping)


@pytest.mark.parametrize(
    ("packet", "error"),
    [
        (head(channels=6, mapping=1), UnsupportedError),
        (head(channels=3), UnsupportedError),
        (head(version=16), InvalidEventError),
        (head()[:15], InvalidEventError),
    ],
)
def test_streams_of_another_make_are_refused(packet: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        OggOpusReader().feed(PageWriter(1).page(packet, 0))


def test_stereo_is_mixed() -> None:
    buffer = io.BytesIO()
    stereo = np.stack([SPOKEN, -SPOKEN * 0], axis=1)
    soundfile.write(buffer, stereo, SAMPLE_RATE_HZ, format="OGG", subtype="OPUS")
    score, _ = best_match(SPOKEN[4800:], heard([buffer.getvalue()])[4800:], max_lag=800)
    assert score > 0.8


@pytest.mark.parametrize("packet", [b"", b"\xff", b"\xff\xff\xff\xff"])
def test_packets_that_do_not_decode_are_refused_and_the_next_is_heard(packet: bytes) -> None:
    pages, reader = PageWriter(1), OggOpusReader()
    reader.feed(pages.page(head(), 0))
    with pytest.raises(InvalidEventError):
        reader.feed(pages.page(packet, 960))
    sound = split_pages(STOCK)[2]
    lacing = sound[26]
    assert len(reader.feed(pages.page(sound[HEADER_BYTES + lacing :], 2880))) > 0


def test_after_damage_the_next_page_is_heard_and_the_sound_before_is_kept() -> None:
    reader, pages = OggOpusReader(), stock_pages(SPOKEN)
    broken = bytearray(pages[2])
    broken[-1] ^= 1
    with pytest.raises(InvalidEventError, match="checksum"):
        reader.feed(pages[0] + pages[1] + bytes(broken))
    # 80 ms a message is two pages; the first of the broken one was whole.
    assert len(reader.feed(b"")) == 2 * STOCK_FRAME + STOCK_FRAME // 2
    assert len(reader.feed(pages[3])) == STOCK_FRAME


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_is_never_more_than_an_error_and_the_stream_goes_on(data: st.DataObject) -> None:
    bent = bytearray(STOCK)
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(bent) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert"])):
            case "flip":
                bent[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                del bent[at : at + data.draw(st.integers(1, 300))]
            case _:
                bent[at:at] = data.draw(st.binary(min_size=1, max_size=60))
    reader, step = OggOpusReader(), data.draw(st.integers(20, 2000))
    for at in range(0, len(bent), step):
        try:
            samples = reader.feed(bytes(bent[at : at + step]))
        except ProtocolError:
            continue
        assert samples.dtype == np.float32
        assert np.abs(samples).max(initial=0) <= 1.1
    # An unfinished page may swallow what follows until its own size is full, and no more.
    fresh = stock_pages(SPOKEN)
    swallowed = 0
    while True:
        try:
            if len(reader.feed(fresh[0])) >= STOCK_FRAME:
                break
        except ProtocolError:
            pass
        swallowed += len(fresh[0])
        assert swallowed <= MAX_PAGE_BYTES + 3 * len(fresh[0])
    assert len(reader.feed(fresh[1])) == STOCK_FRAME


# --- bounds -----------------------------------------------------------------------------------------------


def continued(n_pages: int) -> Iterable[bytes]:
    """An Opus packet that never ends, in whole pages."""
    for sequence in range(1, n_pages + 1):
        body = bytes([255]) + bytes([255] * 255) + bytes(255 * 255)
        page = struct.pack("<4sBBqIII", b"OggS", 0, 1 if sequence > 1 else 0, -1, 42, sequence, 0) + body
        yield page[:22] + struct.pack("<I", crc32(page)) + page[26:]


def test_a_packet_that_never_ends_is_refused() -> None:
    reader = OggOpusReader()
    reader.feed(stock_pages(SPOKEN)[0])
    begun, *more = continued(4)
    with pytest.raises(InvalidEventError, match=str(MAX_PACKET_BYTES)):
        reader.feed(begun)
    assert len(heard(more, reader)) == 0  # the rest of what was refused
    assert len(heard([STOCK], reader)) == len(SPOKEN)


def test_an_unfinished_page_is_the_most_that_is_kept() -> None:
    reader = PageReader(max_packet_bytes=100)
    assert list(reader.feed(b"OggS\x00" + bytes(21) + b"\xff" + b"\xff" * 255)) == []
    rest = MAX_PAGE_BYTES - 27 - 255
    assert list(reader.feed(bytes(rest - 1))) == []
    with pytest.raises(InvalidEventError, match="checksum"):
        list(reader.feed(bytes(1)))


def test_a_few_bytes_that_mean_hours_are_cut_short() -> None:
    pages, reader = PageWriter(1), OggOpusReader(max_feed_s=10.0)
    reader.feed(pages.page(head(), 0))
    lost_frame = bytes([0x18 | 3, 2])  # two frames of 60 ms, both empty
    hours = b"".join(pages.page(lost_frame, 5760 * n) for n in range(1, 2000))
    with pytest.raises(TooLargeError, match="10 s"):
        reader.feed(hours)
    assert len(reader.feed(b"")) <= 10.2 * SAMPLE_RATE_HZ
    assert len(heard([STOCK], reader)) == len(SPOKEN)


# --- found by name ----------------------------------------------------------------------------------------


def test_the_codec_is_found_by_name() -> None:
    codec = lookup("duplex.codecs", "ogg-opus")({"bit_rate": 16_000})
    assert len(codec.reader(max_feed_s=5.0).feed(codec.writer().write(SPOKEN[:PACKET_SAMPLES]))) == PACKET_SAMPLES


@pytest.mark.parametrize("options", [{"bitrate": 16_000}, {"bit_rate": 5}, {"bit_rate": "fast"}, {"bit_rate": True}])
def test_options_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="bit_rate"):
        load(options)
