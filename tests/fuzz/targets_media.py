"""Sound and pictures: Ogg-Opus, Opus over RTP, VP8 from cameras, JPEG and PNG in items, sound files."""

from __future__ import annotations

import base64
import functools
import io
import json
import struct
import tempfile
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image as Pixels
from PIL import PngImagePlugin

from duplex.benchmarks.stimuli import read_audio
from duplex.codecs.ogg_opus import OggOpusReader, OggOpusWriter
from duplex.codecs.ogg_opus_pages import CAPTURE, HEADER_BYTES, MAX_PAGE_BYTES, crc32
from duplex.config import CameraConfig
from duplex.errors import DuplexError, ProtocolError
from duplex.requests import AddMessage
from duplex.transport.camera import MAX_FRAME_BYTES, MAX_PIXELS, KeyFrames, PictureDecoder, is_decodable
from duplex.transport.jitter import JitterBuffer
from duplex.transport.realtime import RealtimeCodec, SessionDefaults
from duplex.transport.rtp_audio import OpusDecoder, OpusEncoder

from .target import Target

_RATE_HZ = 24_000


def _voice(n_samples: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    return (0.3 * np.sin(np.arange(n_samples) * 0.06) + 0.05 * rng.standard_normal(n_samples)).astype(np.float32)


# --- Ogg-Opus ------------------------------------------------------------------------------------------------


@functools.cache
def _ogg() -> bytes:
    return OggOpusWriter().write(_voice(12 * 480))


def _ogg_seeds() -> list[bytes]:
    whole = _ogg()
    stereo = io.BytesIO()
    soundfile.write(stereo, np.stack([_voice(4800)] * 2, axis=1), 48_000, format="OGG", subtype="OPUS")
    return [b"\x00" + whole, b"\x05" + whole, b"\x03" + stereo.getvalue(), b"\x02" + whole[:200] + whole]


def mend_ogg(data: bytes) -> bytes:
    """Every page with the checksum that fits it."""
    out, at = bytearray(data), data.find(CAPTURE)
    while 0 <= at <= len(out) - HEADER_BYTES:
        body = at + HEADER_BYTES + out[at + 26]
        end = min(len(out), body + sum(out[at + HEADER_BYTES : body]))
        out[at + 22 : at + 26] = bytes(4)
        out[at + 22 : at + 26] = crc32(bytes(out[at:end])).to_bytes(4, "little")
        at = out.find(CAPTURE, max(end, at + 4))
    return bytes(out)


def _run_ogg(data: bytes) -> str:
    """The first byte says in how many pieces it comes. After an error reading goes on, as the door does."""
    reader, outcomes, n_samples = OggOpusReader(max_feed_s=10.0), set(), 0
    size = max(1, len(data) // (1 + (data[0] if data else 0) % 64))
    for start in range(1, len(data), size):
        try:
            sound = reader.feed(data[start : start + size])
        except ProtocolError as error:
            outcomes.add(str(error)[:60])
            continue
        assert sound.dtype == np.float32
        assert np.isfinite(sound).all()
        assert np.abs(sound).max(initial=0.0) <= 1.0
        n_samples += len(sound)
        assert len(reader._pages._bytes) <= MAX_PAGE_BYTES
        assert len(reader._pages._partial) <= 61_440 + 255
    return f"{n_samples} {sorted(outcomes)}"


OGG_TARGET = Target(
    "ogg-opus",
    _run_ogg,
    (),
    _ogg_seeds,
    (CAPTURE, b"OpusHead\x01\x01", b"OpusTags", b"OggS\x00\x02", b"\xff" * 255, b"OggS\x00\x01"),
    mend=mend_ogg,
    cpu_s=2.0,
)


# --- RTP -----------------------------------------------------------------------------------------------------


def _packets(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """Records of a byte of flags, 16 bits of sequence number, 32 of timestamp, 16 of length, and a payload."""
    found, at = [], 0
    while at + 9 <= len(data) and len(found) < 2000:
        flags, seq, timestamp, length = struct.unpack_from(">BHIH", data, at)
        found.append((flags, seq, timestamp, data[at + 9 : at + 9 + length]))
        at += 9 + length
    return found


def _record(flags: int, seq: int, timestamp: int, payload: bytes) -> bytes:
    return struct.pack(">BHIH", flags, seq, timestamp, len(payload)) + payload


def _run_rtp(data: bytes) -> str:
    """Packets as they come, up to 100 ms apart; after each the buffer is played as long as that takes."""
    buffer, now_s, popped = JitterBuffer(OpusDecoder()), 0.0, 0
    for flags, seq, timestamp, payload in _packets(data)[:300]:
        now_s += (flags % 101) / 1000
        buffer.push(seq, timestamp, payload, now_s)
        while popped * 0.02 < now_s:
            packet = buffer.pop(popped * 0.02)
            popped += 1
            assert packet.samples.shape == (480,)
            assert np.isfinite(packet.samples).all()
        assert len(buffer._packets) <= buffer.settings.max_packets
        assert len(buffer._missing) <= 2048
        assert len(buffer._pcm) < 10 * _RATE_HZ
    stats = buffer.stats
    return f"{stats.received.bit_length()} {stats.lost.bit_length()} {stats.late} {stats.restarts} {stats.discarded}"


def _rtp_seeds() -> list[bytes]:
    encode, voice = OpusEncoder(), _voice(30 * 480)
    payloads = [encode(voice[k * 480 : (k + 1) * 480]) for k in range(30)]
    straight = [_record(20, 65_520 + k & 0xFFFF, (2**32 - 5000 + k * 960) % 2**32, p) for k, p in enumerate(payloads)]
    return [b"".join(straight), b"".join(straight[::2] + straight[1::2])]


RTP_TARGET = Target("rtp-sound", _run_rtp, (), _rtp_seeds, (b"\x14\x00\x00\x00\x00",), cpu_s=2.0, max_bytes=16_000)


@functools.cache
def _key_frame(width: int, height: int) -> bytes:
    encoder = av.CodecContext.create("libvpx", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.bit_rate = width, height, "yuv420p", 300_000
    encoder.time_base = Fraction(1, 30)
    encoder.options = {"deadline": "realtime", "cpu-used": "8"}
    pixels = np.random.default_rng(2).integers(0, 60, (height, width, 3), dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


@functools.cache
def _decoder() -> PictureDecoder:
    return PictureDecoder(CameraConfig())


def _run_camera(data: bytes) -> str:
    picture = _decoder()(data)
    if picture is None:
        return "none"
    jpeg, width, height = picture
    assert is_decodable(data)
    assert 0 < width <= 640
    assert width * height <= MAX_PIXELS
    return f"{width.bit_length()} {height.bit_length()} {jpeg[:2]!r}"


CAMERA_TARGET = Target(
    "camera",
    _run_camera,
    (),
    lambda: [_key_frame(64, 48), _key_frame(176, 144)],
    (b"\x9d\x01\x2a", b"\x9d\x01\x2a\xff\x3f\xff\x3f", b"\x00\x0f\x70\x08"),
    cpu_s=1.5,
    peak_mb=64.0,
)


def _run_video(data: bytes) -> str:
    frames, whole = KeyFrames(), 0
    for flags, seq, timestamp, payload in _packets(data):
        found = frames.push(seq, timestamp, bool(flags & 1), payload)
        if found is not None:
            assert is_decodable(found)
            assert len(found) <= MAX_FRAME_BYTES
            whole += 1
        assert len(frames._frames) <= 2
    return f"{whole}"


def _video_seeds() -> list[bytes]:
    frame = _key_frame(64, 48)
    pieces = [frame[at : at + 400] for at in range(0, len(frame), 400)]
    head = [b"\x10" if k == 0 else b"\x00" for k in range(len(pieces))]
    long_head = [b"\x90\xf0\x81\x01\x02\x03" if k == 0 else b"\x80\x80\x01" for k in range(len(pieces))]
    seeds = []
    for heads in (head, long_head):
        last = len(pieces) - 1
        records = [_record(k == last, 65_534 + k & 0xFFFF, 9000, heads[k] + piece) for k, piece in enumerate(pieces)]
        seeds += [b"".join(records), b"".join(records[::-1])]
    return seeds


VIDEO_TARGET = Target("rtp-video", _run_video, (), _video_seeds, (b"\x9d\x01\x2a", b"\x10", b"\x90\x80"), cpu_s=0.5)


# --- pictures in items ---------------------------------------------------------------------------------------


def _pictures() -> list[bytes]:
    rng = np.random.default_rng(3)
    rgb = Pixels.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    exif = Pixels.Exif()
    exif[0x0112], exif[0x011A], exif[0x8769] = 6, 72.0, {0x9286: b"comment"}
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "words " * 20, zip=True)
    text.add_itxt("More", "words", zip=True)
    made = []
    for mode, kind, options in (
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True, "exif": exif, "dpi": (72, 72), "comment": b"hello"}),
        ("L", "JPEG", {"icc_profile": bytes(200)}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {"pnginfo": text, "icc_profile": bytes(200)}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {"transparency": 0}),
        ("I;16", "PNG", {}),
        ("1", "PNG", {}),
        ("LA", "PNG", {"exif": exif}),
    ):
        out = io.BytesIO()
        (rgb.convert("L").convert(mode) if mode == "I;16" else rgb.convert(mode)).save(out, kind, **options)
        made.append(out.getvalue())
    out = io.BytesIO()
    rgb.save(out, "PNG", save_all=True, append_images=[rgb.rotate(90)])
    return [*made, out.getvalue(), many_scans(64, 48, 5), many_scans(4000, 4000, 3000)]


def many_scans(width: int, height: int, n: int) -> bytes:
    """A grey progressive JPEG of ``n`` scans in which nothing happens: 32 bytes each, and a pass over the picture."""
    blocks = (width + 7) // 8 * ((height + 7) // 8)
    bits = ("0" + "1" * 14) * -(-blocks // 32_767)  # the longest run of blocks without anything, as often as needed
    bits += "1" * (-len(bits) % 8)
    nothing = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")
    table = b"\xff\xc4\x00\x14%c\x01" + bytes(15) + b"%c"
    return b"".join([
        b"\xff\xd8\xff\xdb\x00\x43\x00", b"\x01" * 64,
        b"\xff\xc2\x00\x0b\x08", struct.pack(">HH", height, width), b"\x01\x01\x11\x00",
        table % (0x00, 0x00), table % (0x10, 0xE0),
        b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00", bytes((blocks + 7) // 8),
        (b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00" + nothing) * n,
        b"\xff\xd9",
    ])  # fmt: skip


def mend_png(data: bytes) -> bytes:
    """Every chunk with the checksum that fits it."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        end = at + 8 + int.from_bytes(out[at : at + 4], "big")
        if end + 4 > len(out):
            break
        out[end : end + 4] = zlib.crc32(out[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(out)


_CODEC = RealtimeCodec(SessionDefaults(max_event_bytes=1024 * 1024), audio_deltas=True)


def _run_picture(data: bytes) -> str:
    kind = "png" if data[:4] == b"\x89PNG" else "jpeg"
    part = {"type": "input_image", "image_url": f"data:image/{kind};base64,{base64.b64encode(data).decode()}"}
    item = {"type": "message", "role": "user", "content": [part]}
    request = _CODEC.decode(json.dumps({"type": "conversation.item.create", "item": item}))
    assert isinstance(request, AddMessage)
    image = request.images[0]
    assert image.jpeg[:2] == b"\xff\xd8"
    assert 0 < image.width * image.height <= 16_000_000
    return f"{kind} {image.width.bit_length()} {image.height.bit_length()}"


PICTURE_TARGET = Target(
    "picture",
    _run_picture,
    (ProtocolError,),
    _pictures,
    (b"IHDR", b"IDAT", b"iCCP", b"zTXt", b"acTL", b"fcTL", b"fdAT", b"tRNS", b"PLTE", b"eXIf", b"pHYs", b"\xff\xd8",
     b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00", b"\xff\xc2", b"\xff\xc4", b"\xff\xdd\x00\x04\xff\xff", b"\xff\xe1",
     b"Exif\0\0", b"\xff\xe2\x00\x10MPF\0", b"\xff\xee\x00\x0eAdobe", b"\x00\x00\x0f\xa0\x00\x00\x0f\xa0"),
    mend=mend_png,
    cpu_s=3.0,
    peak_mb=280.0,
    max_bytes=512 * 1024,
)  # fmt: skip


# --- sound files ---------------------------------------------------------------------------------------------


def _sound_files() -> list[bytes]:
    voice = _voice(4800)
    made = []
    for kind, subtype, rate_hz in (
        ("WAV", "PCM_16", 16_000), ("WAV", "FLOAT", 24_000), ("WAV", "ULAW", 8_000), ("WAV", "IMA_ADPCM", 8_000),
        ("FLAC", "PCM_16", 24_000), ("OGG", "VORBIS", 24_000), ("OGG", "OPUS", 24_000), ("AIFF", "PCM_16", 44_100),
        ("CAF", "ALAC_16", 24_000), ("W64", "PCM_24", 24_000), ("AU", "PCM_16", 24_000),
    ):  # fmt: skip
        out = io.BytesIO()
        soundfile.write(out, voice, rate_hz, format=kind, subtype=subtype)
        made.append(out.getvalue())
    return made


@functools.cache
def _sound_path() -> Path:
    folder = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    return Path(tempfile.mkdtemp(prefix="duplex-fuzz-", dir=folder)) / "sound.wav"


def _run_sound_file(data: bytes) -> str:
    path = _sound_path()
    path.write_bytes(data)
    sound = read_audio(path)
    assert sound.ndim == 1
    assert sound.dtype == np.float32
    assert np.isfinite(sound).all(), "sound that is no number"
    return f"{len(sound).bit_length()}"


SOUND_FILE_TARGET = Target(
    "sound-file",
    _run_sound_file,
    (DuplexError,),
    _sound_files,
    (b"RIFF", b"WAVE", b"fmt ", b"data", b"fact", b"fLaC", b"OggS", b"\xff\xff\xff\x7f", b"\x01\x00\x00\x00", b"FORM"),
    mend=mend_ogg,
    cpu_s=3.0,
    peak_mb=256.0,
)

TARGETS = (
    OGG_TARGET,
    RTP_TARGET,
    CAMERA_TARGET,
    VIDEO_TARGET,
    PICTURE_TARGET,
    SOUND_FILE_TARGET,
)
