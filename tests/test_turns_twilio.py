"""The suite's own Twilio: what it buffers, plays and gives back, and a call to the real door."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from serving import running_app, running_hub
from twilio_far_end import ULAW

from duplex.benchmarks.turns.contract import CallOptions, Link
from duplex.benchmarks.turns.doors import TwilioDoor, door_of
from duplex.benchmarks.turns.trials import CannotRunError
from duplex.benchmarks.turns.twilio_call import PACKET_BYTES, Gateway
from duplex.config import Config
from duplex.errors import TransportError
from duplex.recording import turn_heard
from duplex.testing import ScriptedAgent, ScriptedReply, ScriptedTiming, tone
from duplex.transport.twilio import add_twilio


def media(code: bytes) -> dict[str, Any]:
    return {"event": "media", "media": {"payload": base64.b64encode(code).decode()}}


def mark(name: str) -> dict[str, Any]:
    return {"event": "mark", "mark": {"name": name}}


def test_sound_is_played_in_packets_of_twenty_milliseconds_whatever_it_came_in() -> None:
    gateway = Gateway()
    for code in (b"a" * 100, b"b" * 300):
        gateway.arrive(media(code))
    assert gateway.buffered_bytes == 400
    played = [gateway.play() for _ in range(4)]
    assert {len(packet) for packet in played} == {PACKET_BYTES}
    assert b"".join(played) == b"a" * 100 + b"b" * 300 + b"\xff" * 240
    assert gateway.buffered_bytes == 0


def test_a_mark_comes_back_when_what_was_before_it_has_been_played() -> None:
    gateway = Gateway()
    for message in (media(b"a" * 160), mark("one"), media(b"b" * 160), mark("two")):
        gateway.arrive(message)
    found = []
    for _ in range(4):
        gateway.play()
        found.append(gateway.marks())
    assert found == [[], ["one"], ["two"], []]


def test_a_clear_drops_what_waits_and_gives_back_every_mark() -> None:
    gateway = Gateway()
    for message in (media(b"a" * 160), mark("one"), media(b"b" * 320), mark("two")):
        gateway.arrive(message)
    assert gateway.play() == b"a" * 160
    gateway.arrive({"event": "clear"})
    assert gateway.marks() == ["one", "two"]
    assert gateway.play() == b"\xff" * 160
    gateway.arrive({"event": "unheard of"})
    with pytest.raises(TransportError, match="ahead of what can be heard"):
        gateway.arrive(media(b"a" * 160 * 50 * 61))


async def test_a_question_is_answered_over_the_telephone() -> None:
    agent = ScriptedAgent((ScriptedReply(duration_s=1.0),), ScriptedTiming(pause_s=0.1, complete_s=0.3))
    config, app = Config(), FastAPI()
    async with running_hub(agent, config) as hub, running_app(app, config) as url:
        add_twilio(app, hub, config, encoding=ULAW)
        async with door_of(url, door="twilio") as door, door.call() as call:
            await call.wait_ms(100)
            asked = await call.play(tone(0.6))
            assert await call.wait_settled(asked.end_ms, answer_timeout_s=5, quiet_ms=150)
            with pytest.raises(CannotRunError, match="cannot write"):
                call.send({"type": "response.create"})
            with pytest.raises(NotImplementedError, match="stream"):
                await call.outage(1.0)
        recording = call.recording()
    heard = turn_heard(recording, 0.0)
    assert heard is not None
    assert heard.voice_to_voice_ms is not None
    assert 250.0 < heard.voice_to_voice_ms < 3000.0
    assert np.abs(recording.agent).max() > 0.05
    assert not call.events


async def test_what_a_telephone_cannot_do_is_said() -> None:
    door = TwilioDoor("http://127.0.0.1:9")
    for options in (CallOptions(link=Link(loss=0.1)), CallOptions(turn_taking={"preset": "eager"})):
        with pytest.raises(CannotRunError):
            await door.call(options).__aenter__()
    with pytest.raises(TransportError, match=r"127\.0\.0\.1:9"):
        await door.call().__aenter__()
