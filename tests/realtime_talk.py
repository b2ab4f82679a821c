"""A client of the Realtime doors on virtual time: a real line, codec and session; only the socket is a queue.

Every server event that comes out is held against the official client's model of it, unknown fields included.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from typing import Any, get_args

from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from starlette.websockets import WebSocketDisconnect

from duplex.agent import Agent, AgentSettings
from duplex.clock import Clock, VirtualClock
from duplex.codecs import g711
from duplex.config import SessionConfig
from duplex.errors import ProtocolError
from duplex.events import Event
from duplex.frames import SAMPLE_RATE_HZ
from duplex.metrics import Metrics
from duplex.session import Session
from duplex.testing import LoopbackLine, ScriptedAgent, run_virtual, tone
from duplex.transport.pcm import to_pcm16
from duplex.transport.realtime import RealtimeCodec, SessionDefaults
from duplex.transport.websocket import WebSocketLine, _converse

OFFICIAL: dict[str, TypeAdapter[Any]] = {
    get_args(model.model_fields["type"].annotation)[0]: TypeAdapter(model)
    for model in get_args(get_args(RealtimeServerEvent)[0])
}
"""The official client's server events, by type."""


def check_official(wire: dict[str, Any]) -> None:
    """An event of ours that is no extension is one the official models take, with no field they do not know."""
    kind = wire["type"]
    if kind.startswith("duplex."):
        return
    assert kind in OFFICIAL, f"the official client knows no event {kind}"
    parsed = OFFICIAL[kind].validate_python(wire)
    unknown = set(parsed.model_extra or {}) - {"duplex"}
    assert not unknown, f"{kind} has fields the official model does not know: {unknown}"


class Talk:
    """One conversation, from the client's side. ``events`` came, ``sent`` went."""

    def __init__(self, clock: Clock) -> None:
        self.events: list[dict[str, Any]] = []
        self.sent: list[dict[str, Any]] = []
        self.encode: Callable[[Any], bytes] = to_pcm16
        self.rate_hz = SAMPLE_RATE_HZ
        self.clock = clock
        self.session: Session
        self._read = 0  # events that ``until`` has gone past
        self._to_server: asyncio.Queue[str] = asyncio.Queue()

    # --- what a test does ---------------------------------------------------------------------------

    async def send(self, kind: str, **fields: Any) -> None:
        event = {"type": kind, **fields}
        self.sent.append(event)
        await self._to_server.put(json.dumps(event))
        await self.wait(0.02)

    async def update(self, **session: Any) -> dict[str, Any]:
        """Sends ``session.update``; returns the session as it is now."""
        await self.send("session.update", session=session)
        updated: dict[str, Any] = (await self.until("session.updated"))["session"]
        return updated

    async def until(self, kind: str, limit_s: float = 20.0) -> dict[str, Any]:
        """The next event of this type."""
        deadline_s = self.clock.now() + limit_s
        while True:
            while self._read < len(self.events):
                event = self.events[self._read]
                self._read += 1
                if event["type"] == kind:
                    return event
                assert event["type"] != "error" or kind == "error", event
            assert self.clock.now() < deadline_s, f"no {kind}; there were {self.kinds()}"
            await self.wait(0.02)

    async def wait(self, seconds: float) -> None:
        await self.clock.sleep_until(self.clock.now() + seconds)

    async def speak(self, seconds: float) -> None:
        """A microphone: 20 ms at a time, in real time."""
        sound = tone(seconds)[:: SAMPLE_RATE_HZ // self.rate_hz]
        step = self.rate_hz // 50
        for start in range(0, len(sound), step):
            audio = base64.b64encode(self.encode(sound[start : start + step])).decode()
            event = {"type": "input_audio_buffer.append", "audio": audio}
            self.sent.append(event)
            await self._to_server.put(json.dumps(event))
            await self.wait(0.02)

    async def quiet(self, seconds: float) -> None:
        """A microphone in a silent room."""
        audio = base64.b64encode(self.encode(tone(0.02)[:: SAMPLE_RATE_HZ // self.rate_hz] * 0)).decode()
        for _ in range(round(seconds / 0.02)):
            await self._to_server.put(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
            await self.wait(0.02)

    def law(self, name: str) -> None:
        """From now on the microphone sends ``ulaw`` or ``alaw``."""
        self.encode, self.rate_hz = (g711.encode_ulaw if name == "ulaw" else g711.encode_alaw), g711.RATE_HZ

    # --- what came of it ----------------------------------------------------------------------------

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    def kinds(self, *, extensions: bool = False) -> list[str]:
        """What came, in order; sound only once in a row."""
        kinds = [event["type"] for event in self.events if extensions or not event["type"].startswith("duplex.")]
        return [kind for kind, before in zip(kinds, [None, *kinds], strict=False) if kind != before]

    def sound(self) -> bytes:
        return b"".join(base64.b64decode(event["delta"]) for event in self.of("response.output_audio.delta"))

    # --- the socket ---------------------------------------------------------------------------------

    async def receive(self) -> dict[str, Any]:
        return {"type": "websocket.receive", "text": await self._to_server.get()}

    async def send_text(self, text: str) -> None:
        self.take(json.loads(text))

    async def close(self, code: int, reason: str) -> None:
        raise WebSocketDisconnect(code, reason)

    def take(self, wire: dict[str, Any]) -> None:
        check_official(wire)
        self.events.append(wire)


class TrackLine(LoopbackLine):
    """A line whose sound has a track of its own, as over WebRTC; events go through the codec."""

    codec: RealtimeCodec
    talk: Talk

    def emit(self, event: Event) -> None:
        for wire in self.codec.encode(event):
            self.talk.take(wire)


def run_talk(
    script: Callable[[Talk], Awaitable[None]],
    agent: Agent | None = None,
    *,
    track: bool = False,
    settings: AgentSettings | None = None,
    defaults: SessionDefaults | None = None,
    config: SessionConfig | None = None,
) -> Talk:
    """Runs ``script`` against a session of ``agent``; ``track``: with an audio track, and events beside it."""

    async def main() -> Talk:
        clock = VirtualClock()
        talk = Talk(clock)
        codec = RealtimeCodec(defaults or SessionDefaults(), audio_deltas=not track)
        line = _track_line(codec, talk) if track else WebSocketLine(codec, clock, Metrics())
        talk.session = Session(
            session_id="sess_test",
            line=line,
            agent=agent or ScriptedAgent(),
            clock=clock,
            config=config or SessionConfig(),
            settings=settings or AgentSettings(),
            metrics=Metrics(),
        )
        running = asyncio.create_task(talk.session.run())
        if isinstance(line, WebSocketLine):
            reading = asyncio.create_task(_converse(talk, line, talk.session))  # type: ignore[arg-type]
        else:
            reading = asyncio.create_task(_read_track(talk, codec))
        try:
            await talk.until("session.created")
            await script(talk)
        finally:
            talk.session.stop("the test is over")
            await running
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        return talk

    return run_virtual(main())


def _track_line(codec: RealtimeCodec, talk: Talk) -> TrackLine:
    line = TrackLine()
    line.codec, line.talk = codec, talk
    return line


async def _read_track(talk: Talk, codec: RealtimeCodec) -> None:
    """What a WebRTC line does with its data channel."""
    while True:
        text = (await talk.receive())["text"]
        try:
            if (request := codec.decode(text)) is not None:
                talk.session.request(request, codec.client_event_id)
            told = codec.answers()
        except ProtocolError as error:
            told = codec.refusal(error, talk.session._at())
        for wire in told:
            talk.take(wire)
