"""The Twilio door on virtual time: the documented call, and all that can be wrong with one."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest
import twilio_far_end as twilio
from starlette.datastructures import URL, Headers
from twilio_far_end import CONNECTED, STREAM, ULAW, voice

from duplex.clock import VirtualClock
from duplex.codecs.g711 import encode_ulaw
from duplex.config import Config, SessionConfig
from duplex.errors import AgentFullError
from duplex.hub import SessionHub
from duplex.testing import ScriptedAgent, ScriptedReply, ScriptedTiming, run_virtual
from duplex.transport.twilio import TwilioDoor

QUICK = ScriptedTiming(pause_s=0.06, complete_s=0.2, interrupt_s=0.3, backchannel_s=0.1)
PACKET_S = 0.02


def agent(duration_s: float = 2.0) -> ScriptedAgent:
    return ScriptedAgent((ScriptedReply(audio_after_s=0.02, duration_s=duration_s),), QUICK)


class FakeSocket:
    """What the door needs of a WebSocket. ``reads``: what is sent to it is taken."""

    def __init__(self) -> None:
        self.headers = Headers({"host": "a.example"})
        self.url = URL("ws://a.example/twilio/media")
        self.sent: list[dict[str, Any]] = []
        self.closed: tuple[int, str] | None = None
        self.reads = True
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def accept(self) -> None: ...

    def say(self, message: Any) -> None:
        if isinstance(message, bytes):
            self._inbox.put_nowait({"type": "websocket.receive", "bytes": message})
            return
        text = message if isinstance(message, str) else json.dumps(message)
        self._inbox.put_nowait({"type": "websocket.receive", "text": text})

    def hang_up(self) -> None:
        self._inbox.put_nowait({"type": "websocket.disconnect", "code": 1006})

    async def receive(self) -> dict[str, Any]:
        return await self._inbox.get()

    async def send_text(self, text: str) -> None:
        if not self.reads:
            await asyncio.Event().wait()
        self.sent.append(json.loads(text))

    async def close(self, code: int, reason: str) -> None:
        self.closed = (code, reason)


class Scene:
    def __init__(self, hub: SessionHub, clock: VirtualClock, socket: FakeSocket, served: asyncio.Task[None]) -> None:
        self.hub, self.clock, self.socket, self.served = hub, clock, socket, served
        self.number = 1

    async def wait(self, seconds: float) -> None:
        await self.clock.sleep_until(self.clock.now() + seconds)

    async def hear(self, seconds: float, *, voiced: bool = True) -> None:
        for n in range(round(seconds / PACKET_S)):
            self.number += 1
            sound = voice(n) if voiced else np.zeros(160, dtype=np.float32)
            self.socket.say(twilio.media(encode_ulaw(sound), self.number))
            await self.wait(PACKET_S)

    def sent(self, event: str) -> list[dict[str, Any]]:
        return [message for message in self.socket.sent if message["event"] == event]


def on_stage(play: Callable[[Scene], Coroutine[Any, Any, None]], of: ScriptedAgent | None = None) -> None:
    """Plays a scene with the door, a hub and a scripted agent, on virtual time."""

    async def main() -> None:
        clock = VirtualClock()
        async with SessionHub(of or agent(), clock, SessionConfig(), max_sessions=4) as hub:
            door = TwilioDoor(hub, Config(), None, ULAW, hub.open)
            socket = FakeSocket()
            served = asyncio.create_task(door.serve(socket))  # type: ignore[arg-type]
            scene = Scene(hub, clock, socket, served)
            await play(scene)
            socket.hang_up()
            await served
            await clock.sleep_until(clock.now() + 0.1)
            assert hub.live == 0

    run_virtual(main())


def test_the_documented_call_is_replayed() -> None:
    """connected, start, sound, a mark that is not ours, a key, stop."""

    async def play(t: Scene) -> None:
        t.socket.say(CONNECTED)
        t.socket.say(twilio.start(FirstName="Jane"))
        await t.hear(0.6)
        t.socket.say({"event": "mark", "sequenceNumber": "32", "streamSid": STREAM, "mark": {"name": "my label"}})
        t.socket.say(
            {
                "event": "dtmf",
                "streamSid": STREAM,
                "sequenceNumber": "33",
                "dtmf": {"track": "inbound_track", "digit": "1"},
            }
        )
        t.number = 33
        await t.hear(1.0, voiced=False)
        assert {tuple(message) for message in t.sent("media")} == {("event", "streamSid", "media")}
        assert all(list(message["media"]) == ["payload"] for message in t.sent("media"))
        assert {message["streamSid"] for message in t.socket.sent} == {STREAM}
        assert len(t.sent("media")) > 20
        assert t.hub.metrics.queue_drops.labels("telephone_marks")._value.get() == 1
        t.socket.say(twilio.stop(t.number + 1))
        await t.served
        assert t.socket.closed == (1000, "")

    on_stage(play)


def test_a_stream_that_never_starts_is_closed() -> None:
    async def play(t: Scene) -> None:
        t.socket.say(CONNECTED)
        await t.wait(9.9)
        assert t.socket.closed is None
        await t.wait(0.2)
        assert t.socket.closed == (1003, "No start message came within 10 s.")
        assert t.hub.live == 0

    on_stage(play)


def test_sound_before_start_is_not_taken_and_the_call_begins_when_it_starts(caplog: pytest.LogCaptureFixture) -> None:
    async def play(t: Scene) -> None:
        t.number = 0
        await t.hear(0.2)
        assert t.hub.live == 0
        assert caplog.text.count("media came before start") == 1
        t.socket.say(twilio.start() | {"sequenceNumber": str(t.number + 1)})
        t.number += 1
        await t.wait(0.05)
        assert t.hub.live == 1

    on_stage(play)


def test_stop_before_start_ends_it() -> None:
    async def play(t: Scene) -> None:
        t.socket.say(twilio.stop(1))
        await t.served
        assert t.hub.live == 0

    on_stage(play)


@pytest.mark.parametrize("wrong", [{"encoding": "audio/L16"}, {"sampleRate": 16000}, {"channels": 2}])
def test_a_format_we_do_not_speak_closes_the_stream_by_its_name(wrong: dict[str, Any]) -> None:
    async def play(t: Scene) -> None:
        message = twilio.start()
        message["start"]["mediaFormat"] |= wrong
        t.socket.say(message)
        await t.wait(0.1)
        assert t.socket.closed is not None
        code, reason = t.socket.closed
        assert code == 1003
        assert f"start.mediaFormat.{next(iter(wrong))}" in reason
        assert t.hub.live == 0

    on_stage(play)


def with_number(number: int, message: dict[str, Any]) -> dict[str, Any]:
    return message | {"sequenceNumber": str(number)}


NONSENSE: list[tuple[Sequence[Any], str]] = [
    ([b"\x00\x01"], "message"),
    (["no json"], "None"),
    (["[" * 60_000], "None"),
    (["x" * 70_000], "None"),
    ([{"event": "start"}], "start"),
    ([twilio.start()], "start"),
    (
        [twilio.start() | {"start": {"streamSid": "MZ2", "mediaFormat": {"encoding": "x"}}}],
        "start.mediaFormat.encoding",
    ),
    ([{"event": "media", "media": {"payload": "%%%"}}], "media.payload"),
    ([{"event": "media", "media": {"payload": "A" * 40_000}}], "media.payload"),
    ([{"event": "media", "media": {"track": "third", "payload": ""}}], "media.track"),
    ([{"event": "dtmf", "dtmf": {"digit": "flash"}}], "dtmf.digit"),
    ([{"event": "mark", "mark": {}}], "mark.name"),
    ([{"event": "media", "sequenceNumber": "x", "media": {"payload": ""}}], "sequenceNumber"),
    ([with_number(90, twilio.media(b"", 90))], "sequenceNumber"),
    ([twilio.media(bytes(160), 1)], "sequenceNumber"),
]


@pytest.mark.parametrize(("messages", "field"), NONSENSE)
def test_nonsense_is_named_once_and_the_call_goes_on(
    messages: Sequence[Any], field: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")

    async def play(t: Scene) -> None:
        t.socket.say(twilio.start())
        await t.hear(0.2, voiced=False)
        for message in messages:
            for _ in range(3):
                t.socket.say(message)
        await t.wait(0.05)
        told = [r for r in caplog.records if r.name == "duplex.twilio" and r.levelno == logging.WARNING]
        assert len({r.args[-1] for r in told if r.args}) == len(told)  # type: ignore[index]
        assert f"({field})" in caplog.text
        t.number = 100
        t.socket.say({"event": "dtmf", "dtmf": {"digit": "5"}})
        await t.hear(0.5)
        await t.hear(1.0, voiced=False)
        assert "KeyPressed" in caplog.text
        assert len(t.sent("media")) > 20  # it is answered
        assert t.socket.closed is None

    on_stage(play)


def test_messages_that_are_missing_or_late_are_counted() -> None:
    async def play(t: Scene) -> None:
        t.socket.say(twilio.start())
        for number in (2, 3, 6, 5, 6, 7):
            t.socket.say(twilio.media(bytes(160), number))
        await t.wait(0.1)
        assert t.hub.metrics.packets_lost._value.get() == 2
        assert t.hub.metrics.packets_late._value.get() == 2

    on_stage(play)


def test_our_own_voice_is_not_heard() -> None:
    async def play(t: Scene) -> None:
        t.socket.say(twilio.start())
        for number in range(2, 60):
            message = twilio.media(encode_ulaw(voice(number)), number)
            message["media"]["track"] = "outbound"
            t.socket.say(message)
            await t.wait(PACKET_S)
        await t.wait(1.0)
        assert not t.sent("media")

    on_stage(play)


def test_a_far_end_that_stops_reading_is_let_go() -> None:
    async def play(t: Scene) -> None:
        t.socket.say(twilio.start())
        await t.hear(0.5)
        t.socket.reads = False
        await t.hear(1.0, voiced=False)
        assert t.socket.closed is None
        await t.hear(8.0, voiced=False)
        assert t.socket.closed == (1008, "The far end took nothing for 5 s.")
        await t.served

    on_stage(play)


def test_a_hub_that_cannot_open_says_so() -> None:
    async def main() -> None:
        async with SessionHub(agent(), VirtualClock(), SessionConfig(), max_sessions=1) as hub:

            def refuse(*_: Any) -> Any:
                raise AgentFullError("No slot is free.")

            socket = FakeSocket()
            socket.say(twilio.start())
            await TwilioDoor(hub, Config(), None, ULAW, refuse).serve(socket)  # type: ignore[arg-type]
            assert socket.closed == (1013, "No slot is free.")
            hub.reserve().release()

    run_virtual(main())
