"""The camera: a picture now and then out of a video stream, at the price of a picture now and then.

A vision agent wants a sharp picture twice a second, not 30 blurred ones. So nothing is decoded in between:
we ask the sender for a key frame (RTCP PLI) whenever a picture is due, put together key frames only, and
decode each by itself on a worker thread. Delta frames are thrown away unparsed, so a picture costs the same
whatever the frame rate, and a lost packet spoils at most one picture.

Bounds: two frames in pieces, one frame waiting to be decoded (the newest wins), one decoded picture. A key frame
says its size in its first ten bytes, and one that is too large is dropped on the strength of that: 38 bytes that
declare 16383 x 16383 pixels would take a decoder 880 MB and a second of the worker that all calls share. VP8 is the
only codec that is answered with (``transport/webrtc.py``), so no other can come.
"""

from __future__ import annotations

import asyncio
import io
import math
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import av
from aiortc.codecs.vpx import VpxPayloadDescriptor
from PIL import Image as Pixels

from duplex.config import CameraConfig
from duplex.frames import Image
from duplex.metrics import Metrics
from duplex.transport.jitter import signed_difference

MAX_FRAME_PACKETS = 600  # 780 kB; a key frame of 1920 x 1080 has about 150
MAX_FRAME_BYTES = MAX_FRAME_PACKETS * 1300  # a datagram in fragments may have 64 kB
MAX_PIXELS = 3840 * 2160
"""Of a camera's picture, in any shape. The largest takes a decoder 30 MB and 0.15 s; most cameras send a quarter."""
_MAX_FRAMES = 2
_VP8_START = b"\x9d\x01\x2a"


@dataclass(slots=True)
class _Frame:
    parts: dict[int, bytes] = field(default_factory=dict)  # by sequence number
    first: int | None = None
    last: int | None = None
    n_bytes: int = 0
    wanted: bool = True


def picture_size(frame: bytes) -> tuple[int, int] | None:
    """(width, height) in pixels that the beginning of a VP8 key frame declares (RFC 6386, 9.1); None if it is none."""
    if len(frame) < 10 or frame[0] & 1 or frame[3:6] != _VP8_START:
        return None
    # The two bits above each are how it would like to be scaled, which nobody heeds.
    return int.from_bytes(frame[6:8], "little") & 0x3FFF, int.from_bytes(frame[8:10], "little") & 0x3FFF


def is_decodable(frame: bytes) -> bool:
    """Whether it begins as a key frame of a size that is taken."""
    size = picture_size(frame)
    return size is not None and 0 < size[0] * size[1] <= MAX_PIXELS


class KeyFrames:
    """Puts VP8 key frames together from RTP packets in any order (RFC 7741). Pure; at most two at a time."""

    def __init__(self) -> None:
        self._frames: OrderedDict[int, _Frame] = OrderedDict()  # by timestamp

    def push(self, seq: int, timestamp: int, marker: bool, payload: bytes) -> bytes | None:
        """Takes one packet; returns the key frame it completes. Damaged payloads are ignored."""
        try:
            descriptor, data = VpxPayloadDescriptor.parse(payload)
        except ValueError:
            return None
        if not data:
            return None
        frame = self._frame(timestamp)
        if frame is None or not frame.wanted:
            return None
        frame.n_bytes += len(data) - len(frame.parts.get(seq, b""))
        frame.parts[seq] = data
        if descriptor.partition_start and descriptor.partition_id == 0:
            frame.first = seq
            if not is_decodable(data):  # most are predicted from earlier frames, and none of ours
                frame.wanted = False
        if marker:
            frame.last = seq
        if len(frame.parts) > MAX_FRAME_PACKETS or frame.n_bytes > MAX_FRAME_BYTES:
            frame.wanted = False
        if not frame.wanted:
            frame.parts.clear()
            return None
        return self._complete(timestamp, frame)

    def _frame(self, timestamp: int) -> _Frame | None:
        frame = self._frames.get(timestamp)
        if frame is None:
            if self._frames and signed_difference(timestamp, next(reversed(self._frames)), 32) < 0:
                return None  # older than what we look at
            frame = self._frames[timestamp] = _Frame()
            if len(self._frames) > _MAX_FRAMES:
                self._frames.popitem(last=False)
        return frame

    def _complete(self, timestamp: int, frame: _Frame) -> bytes | None:
        if frame.first is None or frame.last is None:
            return None
        count = signed_difference(frame.last, frame.first, 16) + 1
        if not 1 <= count <= len(frame.parts):
            return None
        sequence = [(frame.first + n) & 0xFFFF for n in range(count)]
        if not all(seq in frame.parts for seq in sequence):
            return None
        data = b"".join(frame.parts[seq] for seq in sequence)
        frame.wanted = False
        frame.parts.clear()
        return data


class PictureDecoder:
    """VP8 key frames to JPEG; runs on a worker thread, one call at a time."""

    def __init__(self, config: CameraConfig) -> None:
        self._config = config
        self._codec: Any = None

    def __call__(self, key_frame: bytes) -> tuple[bytes, int, int] | None:
        """(JPEG, width, height), or None if the frame cannot be decoded, or is larger than ``MAX_PIXELS``."""
        if not is_decodable(key_frame):
            return None
        if self._codec is None:
            self._codec = av.CodecContext.create("libvpx", "r")
        try:
            frames = self._codec.decode(av.Packet(key_frame))
        except av.FFmpegError:
            self._codec = None
            return None
        if not frames:
            return None
        frame = frames[-1]
        width = min(frame.width, self._config.max_width)
        height = max(1, round(frame.height * width / frame.width))
        rgb = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
        jpeg = io.BytesIO()
        Pixels.fromarray(rgb).save(jpeg, "JPEG", quality=self._config.jpeg_quality)
        return jpeg.getvalue(), width, height


class Camera:
    """Stands in for a video receiver's jitter buffer; ``take`` gives the newest picture once.

    ``now_s`` is the session's clock, ``now_pts`` the media time of what is being heard. Lives on the event
    loop; ``decode`` runs on ``worker``.
    """

    def __init__(
        self,
        config: CameraConfig,
        worker: Executor,
        metrics: Metrics,
        now_s: Callable[[], float],
        now_pts: Callable[[], int],
        decode: Callable[[bytes], tuple[bytes, int, int] | None] | None = None,
    ) -> None:
        self._interval_s = 1.0 / config.frames_per_s
        self._worker, self._metrics, self._now_s, self._now_pts = worker, metrics, now_s, now_pts
        self._decode = decode or PictureDecoder(config)
        self._key_frames = KeyFrames()
        self._ask_at_s = -math.inf
        self._next_at_s = -math.inf
        self._waiting: tuple[int, bytes] | None = None
        self._busy = False
        self._image: Image | None = None
        self._closed = False

    def add(self, packet: Any) -> tuple[bool, None]:
        """Takes an ``RtpPacket``; true asks aiortc to ask the sender for a key frame."""
        now_s = self._now_s()
        ask = now_s >= self._ask_at_s
        if ask:
            self._ask_at_s = now_s + self._interval_s
        key_frame = self._key_frames.push(packet.sequence_number, packet.timestamp, bool(packet.marker), packet.payload)
        # Half an interval of grace: the answer to a request comes sooner or later than the one before.
        if key_frame is not None and now_s >= self._next_at_s - self._interval_s / 2:
            self._next_at_s = max(self._next_at_s, now_s) + self._interval_s
            if self._waiting is not None:
                self._count("replaced")
            self._waiting = (self._now_pts(), key_frame)
            self._start()
        return ask, None

    def take(self) -> Image | None:
        """The newest picture, once."""
        image, self._image = self._image, None
        return image

    def close(self) -> None:
        self._closed = True
        self._waiting = self._image = None

    def _count(self, fate: str) -> None:
        self._metrics.images.labels(fate).inc()

    def _start(self) -> None:
        if self._busy or self._waiting is None or self._closed:
            return
        pts, key_frame = self._waiting
        self._waiting, self._busy = None, True
        try:
            job = asyncio.get_running_loop().run_in_executor(self._worker, self._decode, key_frame)
        except RuntimeError:  # the door is closing
            self._busy = False
            return
        job.add_done_callback(lambda done: self._decoded(pts, done))

    def _decoded(self, pts: int, done: asyncio.Future[tuple[bytes, int, int] | None]) -> None:
        self._busy = False
        if self._closed or done.cancelled():
            return
        picture = None if done.exception() is not None else done.result()
        if picture is None:
            self._count("undecodable")
        else:
            if self._image is not None:
                self._count("replaced")
            self._count("taken")
            self._image = Image(pts, *picture)
        self._start()
