"""A server of ours with the tiny random model, every slot of which is written down; and a caller on its WebSocket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from prometheus_client import CollectorRegistry
from serving import NoCalls, running_app
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from duplex.bitrate import LinkReport
from duplex.clock import MonotonicClock
from duplex.config import Config, ServerConfig, validated
from duplex.errors import DuplexError
from duplex.frames import Samples, silence
from duplex.hub import SessionHub
from duplex.scheduler import Deliver, SlotSettings
from duplex.scheduler.contract import SlotResult
from duplex.scheduler.deliveries import Delivery, Dropped, Ended, Ready, Stepped
from duplex.thinker_talker.native.agent import NativeAgent
from duplex.thinker_talker.native.checkpoints.voices import VoiceFolder
from duplex.thinker_talker.native.options import NativeOptions
from duplex.thinker_talker.native.serving import EngineServing, Loaded, Served, Slot, load_native
from duplex.transport.app import create_app
from duplex.transport.pcm import from_pcm16, to_pcm16

FRAME = 1920
LIMIT_S = 60.0
# However slow the machine is, nothing is given up: what was submitted is stepped, and no call is refused for it.
UNHURRIED = {
    "calibrate_ticks": 0,
    "queue_frames": 1000,
    "stale_frames": 1000.0,
    "max_utilisation": 100.0,
    "stall_limit_s": LIMIT_S,
    "shed": {"miss_share": 0.999, "window_ticks": 1_000_000},
}
TINY = {
    "preset": "tiny",
    "device": "cpu",
    "seed": 11,
    "max_slots": 4,
    "max_behind_frames": 1000,
    "scheduler": UNHURRIED,
}

Token = tuple[int | None, tuple[int, ...]]


@dataclass(frozen=True)
class Submitted:
    samples: Samples
    forced_text: int | None
    silent: bool


@dataclass(eq=False)
class SlotLog:
    """One slot: what it was opened with, given, and told."""

    settings: SlotSettings
    slot: Any = None
    submitted: list[Submitted] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    left: bool = False

    def submit(
        self,
        samples: Samples,
        *,
        forced_text: int | None = None,
        silent: bool = False,
        codebooks: int | None = None,
        link: LinkReport | None = None,
    ) -> bool:
        taken: bool = self.slot.submit(samples, forced_text=forced_text, silent=silent, codebooks=codebooks, link=link)
        if taken:
            self.submitted.append(Submitted(samples, forced_text, silent))
        return taken

    def leave(self) -> None:
        self.left = True
        self.slot.leave()

    @property
    def lives(self) -> list[list[tuple[Submitted, SlotResult]]]:
        """Frames that were stepped and what came of them, from one beginning of the slot to the next."""
        lives: list[list[tuple[Submitted, SlotResult]]] = []
        for delivery in list(self.deliveries):
            if isinstance(delivery, Ready):
                lives.append([])
            elif isinstance(delivery, Stepped) and delivery.result.error is None:
                lives[-1].append((self.submitted[delivery.seq], delivery.result))
            elif isinstance(delivery, Stepped):
                continue  # it failed in this frame; a life ends
            else:
                assert not isinstance(delivery, Ended), delivery.error
                assert isinstance(delivery, Dropped)
                assert delivery.reason == "reset"
        return lives

    @property
    def faults(self) -> list[DuplexError]:
        results = [delivery.result for delivery in list(self.deliveries) if isinstance(delivery, Stepped)]
        return [result.error for result in results if result.error is not None]

    @property
    def steps(self) -> list[tuple[Submitted, SlotResult]]:
        return [step for life in self.lives for step in life]


def tokens(results: list[SlotResult]) -> list[Token]:
    return [(r.text_token, () if r.codes is None else tuple(r.codes.tolist())) for r in results]


class Watched:
    """Implements ``Serving``: the tiny model's, with a log of every slot."""

    def __init__(self, options: NativeOptions) -> None:
        def load() -> Loaded:
            loaded = load_native(options)
            self._engine = loaded.engine
            return loaded

        self._serving = EngineServing(load, options.scheduler)
        self._engine: Any = None
        self._served: Served | None = None
        self.logs: list[SlotLog] = []

    @property
    def registry(self) -> CollectorRegistry | None:
        return self._serving.registry

    async def start(self) -> Served:
        self._served = await self._serving.start()
        return replace(self._served, open=self.open)

    async def close(self) -> None:
        await self._serving.close()

    def open(self, settings: SlotSettings, deliver: Deliver) -> Slot:
        assert self._served is not None
        log = SlotLog(settings)

        def told(delivery: Delivery) -> None:
            log.deliveries.append(delivery)
            deliver(delivery)

        log.slot = self._served.open(settings, told)
        self.logs.append(log)
        return log

    def poison(self, row: int) -> None:
        """Puts something that is no number into all that the slot in that row remembers of its call."""
        with torch.inference_mode():
            for tensor in self._engine.states[0].tensors().values():
                if tensor.is_floating_point():
                    tensor[row] = torch.nan

    async def alone(self, settings: SlotSettings, frames: list[Submitted]) -> list[SlotResult]:
        """What a call of its own, that nobody else is beside, says to these frames."""
        assert self._served is not None
        log = SlotLog(settings)
        log.slot = self._served.open(settings, log.deliveries.append)
        for frame in frames:
            log.submit(frame.samples, forced_text=frame.forced_text, silent=frame.silent)
        await until(lambda: len(log.steps) == len(frames))
        log.leave()
        return [result for _, result in log.steps]


@dataclass(frozen=True)
class Up:
    """A server that is up. ``url``: http://…"""

    url: str
    hub: SessionHub
    model: Watched

    @property
    def realtime(self) -> str:
        return self.url.replace("http", "ws", 1) + "/v1/realtime?model=duplex"

    @property
    def moshi(self) -> str:
        return self.url.replace("http", "ws", 1) + "/api/chat"


@asynccontextmanager
async def native_server(*, max_sessions: int = 4, webrtc: bool = False, **options: Any) -> AsyncIterator[Up]:
    """The tiny model behind every door. ``webrtc``: with its door, too."""
    torch.set_num_threads(1)
    checked = validated(NativeOptions, TINY | options, "agent.options")
    model = Watched(checked)
    agent = NativeAgent(checked, model, VoiceFolder(checked.voices_dir).names)
    config = Config(server=ServerConfig(max_sessions=max_sessions))
    hub = SessionHub(agent, MonotonicClock(), config.session, max_sessions=max_sessions)
    async with hub:
        app = create_app(hub, config, door=None if webrtc else NoCalls())
        async with running_app(app, config) as url:
            yield Up(url, hub, model)


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not done():  # noqa: ASYNC110  (several things make it true, some of them on other threads)
            await asyncio.sleep(0.01)  # the model's thread, and the pace of speech


class Caller:
    """A program at ``/v1/realtime``. ``events``: everything it was told, as it comes."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.events: list[dict[str, Any]] = []
        self.reading = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, up: Up) -> Self:
        caller = cls(await connect(up.realtime, max_size=None))
        await caller.told("session.created")
        return caller

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for message in self._socket:
                self.events.append(json.loads(message))

    def types(self) -> list[str]:
        return [event["type"] for event in self.events]

    async def told(self, kind: str, after: int = 0) -> dict[str, Any]:
        """The first event of this type from index ``after`` on."""
        await until(lambda: kind in self.types()[after:] or self.reading.done())
        found = [event for event in self.events[after:] if event["type"] == kind]
        assert found, f"the connection closed before {kind}: {self.types()}"
        return found[0]

    async def send(self, kind: str, **fields: Any) -> None:
        await self._socket.send(json.dumps({"type": kind} | fields))

    async def say(self, samples: Samples) -> None:
        """All at once, as a program that reads a file does."""
        await self.send("input_audio_buffer.append", audio=base64.b64encode(to_pcm16(samples)).decode())

    @property
    def sound(self) -> Samples:
        parts = [base64.b64decode(e["delta"]) for e in self.events if e["type"] == "response.output_audio.delta"]
        return np.concatenate([silence(0), *(from_pcm16(part) for part in parts)])

    @property
    def text(self) -> str:
        kind = "response.output_audio_transcript.delta"
        return "".join(event["delta"] for event in self.events if event["type"] == kind)

    async def hang_up(self) -> None:
        await self._socket.close()
        await self.reading


def speech(call: int, n_frames: int) -> Samples:
    """Something like a voice, another for each call, and never so quiet that a line that is ahead leaves it out."""
    rng = np.random.default_rng(call)
    t = np.arange(n_frames * FRAME) / 24_000
    sound = 0.2 * np.sin(2 * np.pi * (110 + 37 * call) * t) * (0.6 + 0.4 * np.sin(2 * np.pi * (1 + call) * t))
    said = (sound + 0.02 * rng.standard_normal(len(t))).astype(np.float32)
    return from_pcm16(to_pcm16(said))
