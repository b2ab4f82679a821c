"""Ogg pages (RFC 3533): a byte stream cut into packets, and packets wrapped into pages. Nothing of Opus in here.

Every page is held against its checksum, so that damage is an error where it happens rather than noise in
somebody's ear. Memory is bounded: an unfinished page has at most 65 307 bytes, an unfinished packet at most
``max_packet_bytes``.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag

from duplex.errors import InvalidEventError

CAPTURE = b"OggS"
HEADER_BYTES = 27
MAX_PAGE_BYTES = HEADER_BYTES + 255 + 255 * 255
_HEADER = struct.Struct("<4sBBqIIIB")  # capture, version, flags, granule position, serial, sequence, CRC, segments
_CRC_AT = 22


class Flag(IntFlag):
    CONTINUED = 1  # begins with the rest of the previous page's last packet
    FIRST = 2  # of its logical stream
    LAST = 4


@dataclass(frozen=True, slots=True)
class OggPacket:
    """``first``: of its logical stream, which a new one may follow at any time (a client that began anew)."""

    data: bytes
    first: bool = False


class PageReader:
    """Bytes in chunks of any size to packets.

    After an ``InvalidEventError`` what was left of that chunk is forgotten, and reading goes on at the next page.
    """

    def __init__(self, *, max_packet_bytes: int) -> None:
        self._max_packet_bytes = max_packet_bytes
        self._bytes = bytearray()
        self._partial = bytearray()  # of a packet that goes on in the next page
        self._in_packet = False
        self._serial: int | None = None
        self._lost = False  # looking for the next page after damage

    def feed(self, chunk: bytes) -> Iterator[OggPacket]:
        """The packets that ``chunk`` completes, one at a time, so that the caller may stop in between."""
        self._bytes += chunk
        try:
            while (page := self._take_page()) is not None:
                yield from self._packets(page)
        except InvalidEventError:
            self.forget()
            raise

    def forget(self) -> None:
        """Drops what is unfinished and goes on at the next page."""
        self._bytes.clear()
        self._drop_packet()
        self._lost = True

    def _take_page(self) -> bytes | None:
        if self._lost and not self._find_capture():
            return None
        buffer = self._bytes
        if not CAPTURE.startswith(buffer[:4]) and buffer[:4] != CAPTURE:
            raise _damaged(f"a page begins with {CAPTURE!r}, not with {bytes(buffer[:4])!r}")
        if len(buffer) < HEADER_BYTES:
            return None
        if buffer[4] != 0:
            raise _damaged(f"a page of version {buffer[4]}; only 0 is known")
        body_at = HEADER_BYTES + buffer[HEADER_BYTES - 1]
        if len(buffer) < body_at:
            return None
        size = body_at + sum(buffer[HEADER_BYTES:body_at])
        if len(buffer) < size:
            return None
        page = bytes(buffer[:size])
        if crc32(page[:_CRC_AT] + bytes(4) + page[_CRC_AT + 4 :]) != _HEADER.unpack_from(page)[6]:
            raise _damaged("a page does not fit its checksum")
        del buffer[:size]
        self._lost = False
        return page

    def _find_capture(self) -> bool:
        at = self._bytes.find(CAPTURE)
        # The last three bytes may be the beginning of one.
        del self._bytes[: at if at >= 0 else max(0, len(self._bytes) - 3)]
        return at >= 0

    def _packets(self, page: bytes) -> Iterator[OggPacket]:
        _, _, flags, _, serial, _, _, n_segments = _HEADER.unpack_from(page)
        first = bool(flags & Flag.FIRST)
        if first:
            self._serial = serial
            self._drop_packet()
        elif serial != self._serial:
            raise _damaged("a page belongs to no stream that was begun. Send the stream from its first page on")
        skipping = bool(flags & Flag.CONTINUED) and not self._in_packet  # its beginning was lost with another page
        if not flags & Flag.CONTINUED:
            self._drop_packet()
        at = HEADER_BYTES + n_segments
        for segment in page[HEADER_BYTES:at]:
            if not skipping:
                self._partial += page[at : at + segment]
                self._in_packet = True
            at += segment
            if len(self._partial) > self._max_packet_bytes:
                raise _damaged(f"a packet has more than {self._max_packet_bytes} bytes")
            if segment < 255:  # the packet ends here
                if not skipping:
                    packet = OggPacket(bytes(self._partial), first)
                    self._drop_packet()
                    first = False
                    yield packet
                skipping = False

    def _drop_packet(self) -> None:
        self._partial.clear()
        self._in_packet = False


class PageWriter:
    """Packets to pages, one packet a page, so that nothing waits for a page to fill."""

    def __init__(self, serial: int) -> None:
        self._serial = serial
        self._sequence = 0

    def page(self, packet: bytes, granule: int) -> bytes:
        """``packet`` (at most 65 024 bytes) as the next page. ``granule``: end of its sound, in samples at 48 kHz."""
        lacing = bytes([255] * (len(packet) // 255) + [len(packet) % 255])
        if len(lacing) > 255:
            raise ValueError(f"a packet of {len(packet)} bytes does not fit into one page")
        flags = 0 if self._sequence else Flag.FIRST
        head = _HEADER.pack(CAPTURE, 0, flags, granule, self._serial, self._sequence, 0, len(lacing)) + lacing
        self._sequence += 1
        crc = crc32(head + packet)
        return head[:_CRC_AT] + struct.pack("<I", crc) + head[_CRC_AT + 4 :] + packet


_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def crc32(data: bytes) -> int:
    """Ogg's checksum: polynomial 0x04C11DB7, highest bit first, nothing inverted.

    zlib has the same polynomial mirrored and both ends inverted, so mirrored bytes give the mirrored result.
    """
    mirrored = zlib.crc32(data.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_MIRRORED), "big")


def _damaged(what: str) -> InvalidEventError:
    return InvalidEventError(f"The Ogg stream is damaged: {what}.", param="audio", code="invalid_audio")
