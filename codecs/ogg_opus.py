"""Ogg-Opus as a stream (RFC 7845): what the Moshi protocol carries in both directions, 24 kHz mono on our side.

Bytes of any chunking in, samples out, and the other way round; nothing waits, nothing is probed. Opus itself is
libopus, through PyAV. The pages around it are :mod:`.ogg_opus_pages`, because no library at hand reads them as they
must be read here: FFmpeg's demuxer pulls from a file (a thread a call) and its muxer keeps one page back, and sphn,
which the stock server uses, checks no checksum, lets an endless packet grow without bound, cuts sound into 40 ms, and
has no wheels for ARM Linux and Intel Macs.

A 20 ms packet costs about 0.2 ms to write and 0.1 ms to read on one CPU core.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import av
import numpy as np

from duplex.codecs.ogg_opus_pages import PageReader, PageWriter
from duplex.errors import ConfigError, InvalidEventError, TooLargeError, UnsupportedError
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Samples, silence
from duplex.half_band import Halver

OPUS_RATE_HZ = 48_000  # what Opus counts in, whatever it was made from (RFC 7845, 4)
MAX_PACKET_BYTES = 61_440  # RFC 7845, 6
SERIAL = 42  # any number; the stock encoder's
VENDOR = b"duplex"

_UNITS = OPUS_RATE_HZ // SAMPLE_RATE_HZ
_FROM_INT16 = np.float32(1.0 / 32768.0)


class OggOpusReader:
    """One incoming stream. ``max_feed_s``: how much sound one ``feed`` may hold, since a few bytes can mean hours."""

    def __init__(self, *, max_feed_s: float = 60.0) -> None:
        self._max_feed_s = max_feed_s
        self._pages = PageReader(max_packet_bytes=MAX_PACKET_BYTES)
        self._ready: list[Samples] = []
        self._has_head = False
        self._decoder: Any = None
        self._halve = Halver()
        self._begin_stream()

    def feed(self, data: bytes) -> Samples:
        """The sound that ``data`` completes: float32[n] at 24 kHz, n 0 while a page is unfinished.

        Raises ``InvalidEventError`` for what is no Ogg-Opus (damage, another codec), ``UnsupportedError`` for more
        than two channels, ``TooLargeError`` past ``max_feed_s``. The rest of ``data`` is then forgotten; the sound
        before the fault comes with the next call, and reading goes on at the next whole page.

        The header's pre-skip is not cut off: encoders announce up to 80 ms of it and need 7.
        """
        n_samples = 0
        for packet in self._pages.feed(data):
            try:
                if packet.first:
                    self._begin_stream()
                    self._read_head(packet.data)
                elif not self._has_head:
                    raise _not_opus("its OpusHead was damaged. Begin the stream anew")
                elif not packet.data.startswith(b"OpusTags"):
                    self._ready.append(self._decode(packet.data))
                    n_samples += len(self._ready[-1])
                    if n_samples > self._max_feed_s * SAMPLE_RATE_HZ:
                        raise TooLargeError(
                            f"One message holds more than {self._max_feed_s:g} s of sound; the rest of it was dropped. "
                            "Send sound as it is recorded.",
                            param="audio",
                        )
            except Exception:
                self._pages.forget()
                raise
        ready, self._ready = self._ready, []
        return np.concatenate(ready) if ready else silence(0)

    def _begin_stream(self) -> None:
        self._has_head = False
        self._decoder = av.CodecContext.create("libopus", "r")
        self._decoder.format, self._decoder.layout, self._decoder.sample_rate = "s16", "mono", OPUS_RATE_HZ
        self._halve.reset()

    def _read_head(self, packet: bytes) -> None:
        if len(packet) < 19 or not packet.startswith(b"OpusHead"):
            raise _not_opus(f"its first packet is {packet[:8]!r}, not an OpusHead")
        version, channels, mapping = packet[8], packet[9], packet[18]
        if version >> 4 != 0:
            raise _not_opus(f"OpusHead has version {version}")
        if mapping != 0 or channels not in (1, 2):
            raise UnsupportedError(
                f"{channels} channels with mapping family {mapping} are not taken. Send mono, or stereo to be mixed.",
                param="audio",
            )
        self._has_head = True

    def _decode(self, packet: bytes) -> Samples:
        """One Opus packet to float32[n] at 24 kHz, as long as the packet says (2.5 to 120 ms)."""
        if not packet:
            raise _not_opus("it holds an empty packet")
        try:
            frames = self._decoder.decode(av.Packet(packet))
        except av.FFmpegError as error:
            raise _not_opus("it holds a packet that does not decode") from error
        if not frames:
            raise _not_opus("it holds a packet without sound")
        sound = np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames]) * _FROM_INT16
        return np.clip(self._halve(sound), -1.0, 1.0)


class OggOpusWriter:
    """One outgoing stream: Opus packets of 20 ms, a page each, so what is said leaves with its own packet."""

    def __init__(self, *, bit_rate: int = 32_000) -> None:
        encoder = av.CodecContext.create("libopus", "w")
        encoder.format, encoder.layout, encoder.sample_rate = "flt", "mono", SAMPLE_RATE_HZ
        encoder.bit_rate = bit_rate
        encoder.time_base = Fraction(1, SAMPLE_RATE_HZ)
        encoder.options = {"application": "voip", "frame_duration": "20", "compression_level": "5"}
        self._encoder: Any = encoder
        self._pages = PageWriter(SERIAL)
        self._waiting = silence(0)
        self._n_packets = 0

    def write(self, samples: Samples) -> bytes:
        """Whole pages for float32[n] at 24 kHz; what is short of 20 ms waits. The first ones are the headers."""
        self._waiting = np.concatenate([self._waiting, np.clip(samples, -1.0, 1.0)]).astype(np.float32, copy=False)
        out = b""
        while len(self._waiting) >= PACKET_SAMPLES:
            packet, self._waiting = self._waiting[:PACKET_SAMPLES], self._waiting[PACKET_SAMPLES:]
            encoded = self._encode(packet)
            if self._n_packets == 0:
                out += self._headers()
            self._n_packets += 1
            out += self._pages.page(encoded, self._n_packets * PACKET_SAMPLES * _UNITS)
        return out

    def _encode(self, packet: Samples) -> bytes:
        frame = av.AudioFrame.from_ndarray(packet[np.newaxis, :], format="flt", layout="mono")
        frame.sample_rate, frame.time_base = SAMPLE_RATE_HZ, self._encoder.time_base
        frame.pts = self._n_packets * PACKET_SAMPLES
        return b"".join(bytes(encoded) for encoded in self._encoder.encode(frame))

    def _headers(self) -> bytes:
        """OpusHead as the encoder fills it in (pre-skip is its look-ahead), and tags without any."""
        tags = b"OpusTags" + struct.pack("<I", len(VENDOR)) + VENDOR + struct.pack("<I", 0)
        return self._pages.page(bytes(self._encoder.extradata), 0) + self._pages.page(tags, 0)


class OggOpus:
    """The codec ``ogg-opus``: a reader and a writer for each connection. ``bit_rate``: of what is written, bit/s."""

    def __init__(self, *, bit_rate: int = 32_000) -> None:
        self._bit_rate = bit_rate

    def reader(self, *, max_feed_s: float = 60.0) -> OggOpusReader:
        return OggOpusReader(max_feed_s=max_feed_s)

    def writer(self) -> OggOpusWriter:
        return OggOpusWriter(bit_rate=self._bit_rate)


def load(options: Mapping[str, Any]) -> OggOpus:
    """Entry point ``ogg-opus`` of ``duplex.codecs``. ``bit_rate``: 6 000 to 128 000. Raises ``ConfigError``."""
    unknown = set(options) - {"bit_rate"}
    bit_rate = options.get("bit_rate", 32_000)
    if unknown or isinstance(bit_rate, bool) or not isinstance(bit_rate, int) or not 6_000 <= bit_rate <= 128_000:
        raise ConfigError(f"ogg-opus takes bit_rate, 6000 to 128000 bit/s; got {dict(options)}.")
    return OggOpus(bit_rate=bit_rate)


def _not_opus(what: str) -> InvalidEventError:
    return InvalidEventError(f"This is not Ogg-Opus: {what}.", param="audio", code="invalid_audio")
