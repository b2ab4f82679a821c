"""Pictures out of a video stream: put together right, few, the newest, and never in the way of sound."""

from __future__ import annotations

import asyncio
import io
import random
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from aiortc import AudioStreamTrack, MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.codecs.vpx import Vp8Encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pixels

from duplex.agent import AgentInfo, AgentSettings, Heard
from duplex.clock import MonotonicClock
from duplex.config import CameraConfig, Config
from duplex.frames import Image
from duplex.hub import SessionHub
from duplex.metrics import Metrics
from duplex.testing import ScriptedAgent
from duplex.transport.camera import MAX_FRAME_PACKETS, Camera, KeyFrames, PictureDecoder
from duplex.transport.realtime import RealtimeCodec, SessionDefaults
from duplex.transport.webrtc import WebRtcDoor

Rgb = npt.NDArray[np.uint8]


def scene(number: int, width: int = 320, height: int = 240) -> Rgb:
    """A colour that says which frame it is, over a texture that gives the encoder something to do."""
    texture = np.random.default_rng(7).integers(0, 60, (height, width, 3), dtype=np.uint8)
    texture[..., 0] += np.uint8(180 if number % 2 else 0)
    return texture


def video_frame(number: int, **size: int) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(scene(number, **size), format="rgb24")
    frame.pts, frame.time_base = number * 6000, Fraction(1, 90_000)
    return frame


class Sender:
    """A browser's video sender: frames to RTP payloads, key frames on demand."""

    def __init__(self) -> None:
        self._encoder = Vp8Encoder()
        self._seq = 65_500  # wraps soon
        self._number = 0

    def packets(self, key: bool = False, **size: int) -> list[SimpleNamespace]:
        payloads, _ = self._encoder.encode(video_frame(self._number, **size), force_keyframe=key)
        timestamp = (2**32 - 9000 + self._number * 6000) % 2**32
        self._number += 1
        packets = []
        for index, payload in enumerate(payloads):
            packets.append(
                SimpleNamespace(
                    sequence_number=self._seq % 65_536,
                    timestamp=timestamp,
                    marker=int(index == len(payloads) - 1),
                    payload=payload,
                )
            )
            self._seq += 1
        return packets


def push(frames: KeyFrames, packet: SimpleNamespace) -> bytes | None:
    return frames.push(packet.sequence_number, packet.timestamp, bool(packet.marker), packet.payload)


class Later(Executor):
    """A worker that works when told to."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Future[Any], Any, tuple[Any, ...]]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.jobs.append((future, fn, args))
        return future

    async def work(self) -> None:
        future, fn, args = self.jobs.pop(0)
        try:
            future.set_result(fn(*args))
        except Exception as error:
            future.set_exception(error)
        for _ in range(3):  # the loop hears of it
            await asyncio.sleep(0)


# --- key frames --------------------------------------------------------------------------------------


def test_key_frames_are_found_and_the_rest_is_thrown_away() -> None:
    sender, frames = Sender(), KeyFrames()
    found = []
    for number in range(40):
        for packet in sender.packets(key=number % 10 == 0):
            if (data := push(frames, packet)) is not None:
                found.append((number, data))
    assert [number for number, _ in found] == [0, 10, 20, 30]
    assert all(data[3:6] == b"\x9d\x01\x2a" for _, data in found)  # RFC 6386, 9.1: the start code


@pytest.mark.parametrize("seed", range(5))
def test_packets_of_a_key_frame_may_come_in_any_order(seed: int) -> None:
    sender, frames = Sender(), KeyFrames()
    packets = sender.packets(key=True)
    straight = [push(KeyFrames(), packet) for packet in packets]
    assert len(packets) > 3
    whole = KeyFrames()
    expected = next(data for data in (push(whole, packet) for packet in packets) if data is not None)
    assert straight[:-1] == [None] * (len(packets) - 1)
    random.Random(seed).shuffle(packets)
    results = [push(frames, packet) for packet in [*packets, *packets]]  # and twice
    assert results[len(packets) - 1] == expected
    assert results.count(None) == len(results) - 1


def test_a_key_frame_with_a_hole_is_not_used_and_the_next_one_is() -> None:
    sender, frames = Sender(), KeyFrames()
    broken = sender.packets(key=True)
    del broken[1]
    assert [push(frames, packet) for packet in broken] == [None] * len(broken)
    assert any(push(frames, packet) is not None for packet in sender.packets(key=True))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 65_535), st.integers(0, 2**32 - 1), st.booleans(), st.binary(max_size=40)),
        max_size=60,
    )
)
def test_any_bytes_are_survived(packets: list[tuple[int, int, bool, bytes]]) -> None:
    frames = KeyFrames()
    for packet in packets:
        frames.push(*packet)
    assert len(frames._frames) <= 2


def test_a_frame_without_an_end_is_given_up() -> None:
    frames = KeyFrames()
    for seq in range(MAX_FRAME_PACKETS + 50):
        assert frames.push(seq, 0, False, b"\x10\x00" + b"x" * 50 if seq == 0 else b"\x00" + b"x" * 50) is None
    assert sum(len(frame.parts) for frame in frames._frames.values()) == 0


# --- pictures ----------------------------------------------------------------------------------------


def key_frame(**size: int) -> bytes:
    frames = KeyFrames()
    return next(data for data in (push(frames, packet) for packet in Sender().packets(True, **size)) if data)


def test_a_picture_is_a_jpeg_no_wider_than_asked() -> None:
    decode = PictureDecoder(CameraConfig(max_width=160))
    picture = decode(key_frame(width=640, height=360))
    assert picture is not None
    jpeg, width, height = picture
    assert (width, height) == (160, 90)
    pixels = np.asarray(Pixels.open(io.BytesIO(jpeg)))
    assert pixels.shape == (90, 160, 3)
    assert np.abs(pixels.mean(axis=(0, 1)) - scene(0).mean(axis=(0, 1))).max() < 12


def test_a_small_picture_keeps_its_size() -> None:
    picture = PictureDecoder(CameraConfig())(key_frame(width=320, height=240))
    assert picture is not None
    assert picture[1:] == (320, 240)


def test_what_is_no_picture_is_refused_and_the_next_one_works() -> None:
    decode = PictureDecoder(CameraConfig())
    assert decode(b"\x10\x02\x00\x9d\x01\x2anonsense") is None
    assert decode(key_frame()) is not None


# --- the camera --------------------------------------------------------------------------------------


class Stage:
    """A camera on a clock of its own, with a decoder that returns what it was given."""

    def __init__(self, frames_per_s: float = 2.0) -> None:
        self.now_s, self.metrics, self.worker = 0.0, Metrics(), Later()
        self.camera = Camera(
            CameraConfig(frames_per_s=frames_per_s),
            self.worker,
            self.metrics,
            lambda: self.now_s,
            lambda: round(self.now_s * 24_000),
            decode=lambda data: (data, 1, 1) if data else None,
        )
        self._sender = Sender()
        self.asked = 0

    def frame(self, key: bool) -> None:
        for packet in self._sender.packets(key):
            ask, nothing = self.camera.add(packet)
            assert nothing is None
            self.asked += ask

    def fate(self, fate: str) -> float:
        return self.metrics.images.labels(fate)._value.get()  # type: ignore[no-any-return]


async def test_key_frames_are_asked_for_at_the_camera_rate() -> None:
    stage = Stage(frames_per_s=2.0)
    for number in range(150):  # 10 s at 15 frames a second
        stage.now_s = number / 15
        stage.frame(key=False)
    assert 19 <= stage.asked <= 21
    assert len(stage.worker.jobs) <= 1


async def test_more_pictures_than_configured_are_not_decoded() -> None:
    stage = Stage(frames_per_s=2.0)
    for number in range(150):
        stage.now_s = number / 15
        stage.frame(key=True)
        while stage.worker.jobs:
            await stage.worker.work()
    assert 19 <= stage.fate("taken") <= 21


async def test_the_newest_picture_wins_and_is_given_once() -> None:
    stage = Stage()
    for number in range(5):
        stage.now_s = number * 0.5
        stage.frame(key=True)
    assert len(stage.worker.jobs) == 1  # one at work, one waiting; three were replaced unseen
    assert stage.camera.take() is None
    assert stage.fate("replaced") == 3
    await stage.worker.work()
    await stage.worker.work()
    image = stage.camera.take()
    assert isinstance(image, Image)
    assert image.pts == 2 * 24_000  # media time of its arrival
    assert stage.camera.take() is None


async def test_an_undecodable_picture_is_counted_and_the_camera_goes_on() -> None:
    stage = Stage()
    stage.camera._decode = lambda data: None
    stage.frame(key=True)
    await stage.worker.work()
    assert stage.fate("undecodable") == 1
    stage.camera._decode = lambda data: (data, 1, 1)
    stage.now_s = 1.0
    stage.frame(key=True)
    await stage.worker.work()
    assert stage.camera.take() is not None


async def test_a_closed_camera_keeps_nothing() -> None:
    stage = Stage()
    stage.frame(key=True)
    stage.camera.close()
    await stage.worker.work()
    assert stage.camera.take() is None
    stage.now_s = 1.0
    stage.frame(key=True)
    assert stage.worker.jobs == []


# --- over a real connection --------------------------------------------------------------------------


class Film(MediaStreamTrack):
    kind = "video"

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    async def recv(self) -> av.VideoFrame:
        await asyncio.sleep(1 / 15)
        self.number += 1
        return video_frame(self.number)


class SeeingAgent(ScriptedAgent):
    @property
    def info(self) -> AgentInfo:
        return AgentInfo("seeing", takes_images=True)


@asynccontextmanager
async def filming(agent: ScriptedAgent, config: Config) -> AsyncIterator[tuple[WebRtcDoor, str]]:
    """A door with a caller who has a camera; yields it and the call's id."""
    hub = SessionHub(agent, MonotonicClock(), config.session, max_sessions=1)
    await hub.start()
    limits = SessionDefaults(voices=(), max_text_chars=100, max_event_bytes=4096)
    door = WebRtcDoor(hub, config, lambda: RealtimeCodec(limits, audio_deltas=False))
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    peer.addTransceiver(AudioStreamTrack(), "sendrecv")
    peer.addTransceiver(Film(), "sendonly")
    try:
        await peer.setLocalDescription(await peer.createOffer())
        call_id, answer = await door.answer(peer.localDescription.sdp, AgentSettings())
        await peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        yield door, call_id
    finally:
        await peer.close()
        await door.close()
        await hub.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)


async def test_a_camera_reaches_the_agent_and_a_slow_decoder_holds_nothing_up() -> None:
    agent, heard = SeeingAgent(), []
    async with filming(agent, Config(camera=CameraConfig(frames_per_s=4))) as (door, _):
        await until(lambda: bool(agent.sessions))
        mind = agent.sessions[0]
        step = mind.step

        def watch(frame: Heard) -> None:
            heard.append(frame)
            step(frame)

        mind.step = watch  # type: ignore[method-assign]
        await until(lambda: sum(frame.image is not None for frame in heard) >= 3)
        go_on = threading.Event()
        door._worker.submit(go_on.wait)  # the decoder stands still from here
        before = len(heard)
        await until(lambda: len(heard) >= before + 25)
        go_on.set()
    images = [frame.image for frame in heard if frame.image is not None]
    assert all((image.width, image.height) == (320, 240) for image in images)
    assert [image.pts for image in images] == sorted({image.pts for image in images})
    assert all(0 <= frame.frame.pts - frame.image.pts < 24_000 for frame in heard if frame.image is not None)


async def test_pictures_nobody_wants_are_not_even_sent() -> None:
    async with filming(ScriptedAgent(), Config()) as (door, call_id):
        call = door._calls[call_id]
        await until(lambda: call.line.media.jitter.started)
        assert call.line.media.camera is None
        answer = call.connection.peer.localDescription.sdp
        assert "a=inactive" in answer[answer.index("m=video") :]
        assert "a=sendrecv" in answer[: answer.index("m=video")]
