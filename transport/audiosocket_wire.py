"""The AudioSocket wire: ``[kind u8][length u16, big-endian][payload]`` over TCP. Sans-I/O.

From Asterisk come the call's UUID (first), sound, keys and errors; to Asterisk go sound and the hang-up. There is no
flush, no mark and no answer to anything. The kinds are those of Asterisk's ``res_audiosocket.h``; sound is signed
16-bit little-endian mono, its rate in the kind.

A stream can be read on past a frame of a kind nobody knows, or with a payload that makes no sense, because its length
is known all the same. :class:`FrameReader` numbers frames from 1, so that a complaint can say which it was.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from enum import IntEnum

from duplex.errors import InvalidEventError, ProtocolError

HEADER_BYTES = 3
MAX_PAYLOAD_BYTES = 0xFFFF
KEYS = frozenset("0123456789*#ABCD")


class Kind(IntEnum):
    HANG_UP = 0x00
    CALL_ID = 0x01
    KEY = 0x03
    SOUND_8K = 0x10
    SOUND_12K = 0x11
    SOUND_16K = 0x12
    SOUND_24K = 0x13
    SOUND_32K = 0x14
    SOUND_44K = 0x15
    SOUND_48K = 0x16
    SOUND_96K = 0x17
    SOUND_192K = 0x18
    ERROR = 0xFF


RATES_HZ = {
    Kind.SOUND_8K: 8_000,
    Kind.SOUND_12K: 12_000,
    Kind.SOUND_16K: 16_000,
    Kind.SOUND_24K: 24_000,
    Kind.SOUND_32K: 32_000,
    Kind.SOUND_44K: 44_100,
    Kind.SOUND_48K: 48_000,
    Kind.SOUND_96K: 96_000,
    Kind.SOUND_192K: 192_000,
}
SOUND_KINDS = {rate_hz: kind for kind, rate_hz in RATES_HZ.items()}


@dataclass(frozen=True, slots=True)
class Frame:
    """``number``: its place in the stream, from 1. ``kind`` may be one that nobody knows."""

    number: int
    kind: int
    payload: bytes

    def __str__(self) -> str:
        return f"frame {self.number} (kind 0x{self.kind:02x}, {len(self.payload)} bytes)"


@dataclass(frozen=True, slots=True)
class CallId:
    call_id: uuid.UUID


@dataclass(frozen=True, slots=True)
class Sound:
    """``pcm``: whole samples or not; half a sample is completed by the next frame."""

    rate_hz: int
    pcm: bytes


@dataclass(frozen=True, slots=True)
class Key:
    key: str


@dataclass(frozen=True, slots=True)
class HangUp:
    pass


@dataclass(frozen=True, slots=True)
class FarError:
    """Asterisk failed at something. ``code`` is its payload, often empty; what it means is the application's."""

    code: bytes


Message = CallId | Sound | Key | HangUp | FarError


class FrameReader:
    """Bytes as they come to whole frames. Holds at most one frame that is not complete."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._read = 0

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that ``data`` completes."""
        self._bytes += data
        frames, start = [], 0
        while (payload_at := start + HEADER_BYTES) <= len(self._bytes):
            end = payload_at + int.from_bytes(self._bytes[start + 1 : payload_at], "big")
            if end > len(self._bytes):
                break
            self._read += 1
            frames.append(Frame(self._read, self._bytes[start], bytes(self._bytes[payload_at:end])))
            start = end
        del self._bytes[:start]
        return frames

    def end(self) -> None:
        """The stream ended. Raises ``ProtocolError`` if it did so inside a frame."""
        have = len(self._bytes)
        if not have:
            return
        what = f"The connection ended inside frame {self._read + 1}"
        if have < HEADER_BYTES:
            raise ProtocolError(f"{what}: {have} of the {HEADER_BYTES} bytes of its header came.", code="cut_frame")
        length = int.from_bytes(self._bytes[1:HEADER_BYTES], "big")
        raise ProtocolError(
            f"{what} (kind 0x{self._bytes[0]:02x}): {have - HEADER_BYTES} of its {length} bytes came.", code="cut_frame"
        )


def read(frame: Frame) -> Message:
    """What a frame says. Raises ``InvalidEventError`` that names the frame; the stream can be read on."""
    try:
        kind = Kind(frame.kind)
    except ValueError:
        raise InvalidEventError(
            f"{frame}: nobody knows this kind. Known are 0x00, 0x01, 0x03, 0x10 to 0x18 and 0xff.",
            code="unknown_kind",
        ) from None
    if kind in RATES_HZ:
        return Sound(RATES_HZ[kind], frame.payload)
    if kind is Kind.HANG_UP:
        return HangUp()
    if kind is Kind.ERROR:
        return FarError(frame.payload)
    if kind is Kind.CALL_ID:
        if len(frame.payload) != 16:
            raise InvalidEventError(f"{frame}: the call's UUID has 16 bytes.", code="invalid_call_id")
        return CallId(uuid.UUID(bytes=frame.payload))
    key = frame.payload.decode("latin-1").upper()
    if key not in KEYS:
        raise InvalidEventError(f"{frame}: a key is one of 0 to 9, *, #, A to D, in one byte.", code="invalid_key")
    return Key(key)


def frame(kind: int, payload: bytes = b"") -> bytes:
    """One frame as it goes over the wire. At most ``MAX_PAYLOAD_BYTES`` fit."""
    return bytes([kind]) + len(payload).to_bytes(2, "big") + payload


def sound(rate_hz: int, pcm: bytes) -> bytes:
    """``rate_hz``: one of ``SOUND_KINDS``."""
    return frame(SOUND_KINDS[rate_hz], pcm)


HANG_UP = frame(Kind.HANG_UP)
