"""A WebRTC far end that is out of reach for a while: who notices, and how the call goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx
import pytest
from aiortc import RTCSessionDescription
from serving import running_app, running_hub
from test_webrtc import Client

from duplex.config import Config
from duplex.frames import SAMPLE_RATE_HZ
from duplex.hub import SessionHub
from duplex.testing import ScriptedAgent, ScriptedReply, tone
from duplex.transport.app import create_app
from duplex.transport.client import CallClient
from duplex.transport.event_ring import number_of
from duplex.transport.liveness import ASK_EVERY_S, LOST_AFTER_S, UNHURRIED_S, Signs

# --- the signs of life -------------------------------------------------------------------------------------


def run(
    signs: Signs, from_s: float, to_s: float, *, packets: bool, answered_after_s: float | None, speaking: bool = True
) -> tuple[list[tuple[float, bool]], int]:
    """Looks ten times a second; returns the changes of ``lost`` with their moments, and how often was asked."""
    changes, n_asked = list[tuple[float, bool]](), 0
    due: list[tuple[float, float]] = []  # answers: when, to the question of
    for tick in range(round(from_s * 100), round(to_s * 100)):
        now_s = tick / 100
        while due and due[0][0] <= now_s:
            at_s, asked_s = due.pop(0)
            signs.answered(asked_s, at_s)
        if packets and tick % 2 == 0:
            signs.packet(now_s)
        if tick % 10:
            continue
        if signs.should_ask(now_s, speaking=speaking):
            n_asked += 1
            signs.asked(now_s)
            if answered_after_s is not None:
                due.append((now_s + answered_after_s, now_s))
        if signs.look(now_s):
            changes.append((now_s, signs.lost))
    return changes, n_asked


def test_a_far_end_that_sends_is_never_asked() -> None:
    signs = Signs(0.0)
    assert run(signs, 0.0, 10.0, packets=True, answered_after_s=None) == ([], 0)


def test_one_that_stops_and_does_not_answer_is_lost_within_half_a_second() -> None:
    signs = Signs(0.0)
    run(signs, 0.0, 2.0, packets=True, answered_after_s=None)
    ((at_s, lost),), _ = run(signs, 2.0, 6.0, packets=False, answered_after_s=None)
    assert lost
    assert LOST_AFTER_S <= at_s - 2.0 <= LOST_AFTER_S + 0.1
    ((at_s, lost),), _ = run(signs, 6.0, 7.0, packets=True, answered_after_s=None)
    assert not lost
    assert at_s == 6.0


@pytest.mark.parametrize("round_trip_s", [0.01, 0.2, 0.35])
def test_one_that_is_quiet_and_answers_is_there(round_trip_s: float) -> None:
    """Muted, typing, or sending nothing in pauses."""
    signs = Signs(0.0)
    signs.answered(-round_trip_s, 0.0)  # the question at the beginning of every call
    changes, n_asked = run(signs, 0.0, 60.0, packets=False, answered_after_s=round_trip_s)
    assert changes == []
    assert n_asked <= 60.0 / ASK_EVERY_S + 1


def test_while_nobody_speaks_it_is_asked_less_often() -> None:
    signs = Signs(0.0)
    run(signs, 0.0, 10.0, packets=False, answered_after_s=0.05, speaking=False)
    changes, n_asked = run(signs, 10.0, 70.0, packets=False, answered_after_s=0.05, speaking=False)
    assert changes == []
    assert n_asked <= 60.0 / UNHURRIED_S + 1


# --- whole calls -----------------------------------------------------------------------------------------


@asynccontextmanager
async def served(agent: ScriptedAgent) -> AsyncIterator[tuple[str, SessionHub]]:
    config = Config()
    async with running_hub(agent, config) as hub, running_app(create_app(hub, config), config) as url:
        yield url, hub


def of(call: CallClient, kind: str) -> list[Mapping[str, object]]:
    return [e.event for e in call.events if e.type == kind]


async def test_a_reply_goes_on_after_an_outage_from_where_it_was_heard() -> None:
    agent = ScriptedAgent([ScriptedReply(duration_s=2.5)])
    async with served(agent) as (url, _), CallClient.connect(url) as call:
        await call.play(tone(0.6))
        await call.wait_audible(timeout_s=5)
        await call.wait_ms(600)
        await call.outage(1.5)
        await call.wait_for("response.done", timeout_s=10)
        await call.wait_quiet(300, timeout_s=5)
        recording = call.recording()
        (lost,), (back,) = of(call, "duplex.line.lost"), of(call, "duplex.line.back")
    assert 0.35 <= float(str(lost["silent_s"])) < 1.0
    assert back["response_id"] == lost["response_id"]
    (done,) = [e.event["response"] for e in call.events if e.type == "response.done"]
    assert done["status"] == "completed"
    loud = sum(abs(recording.agent[i : i + 480]).max() > 0.02 for i in range(0, len(recording.agent), 480)) * 0.02
    assert 2.4 < loud < 3.1  # all of it, and what may have been heard twice


# --- another connection ----------------------------------------------------------------------------------


async def calls(client: Client, url: str, http: httpx.AsyncClient) -> str:
    """Calls as a page does; returns the call's address."""
    offer = {"content": await client.offer(), "headers": {"Content-Type": "application/sdp"}}
    response = await http.post(f"{url}/v1/realtime/calls", **offer)  # type: ignore[arg-type]
    assert response.status_code == 201, response.text
    await client.peer.setRemoteDescription(RTCSessionDescription(response.text, "answer"))
    return url + str(response.headers["Location"])


async def moves(client: Client, place: str, http: httpx.AsyncClient, token: str, last: str) -> httpx.Response:
    session = json.dumps({"duplex": {"resume_token": token, "last_event_id": last}})
    parts = {"sdp": (None, await client.offer()), "session": (None, session)}
    return await http.patch(place, files=parts)


async def test_a_call_whose_network_is_gone_goes_on_over_another_connection() -> None:
    agent = ScriptedAgent([ScriptedReply(duration_s=3.0)])
    async with asyncio.timeout(30), served(agent) as (url, hub), httpx.AsyncClient(trust_env=False) as http:
        first, second = Client(), Client()
        try:
            place = await calls(first, url, http)
            token = (await first.wait_event("session.created"))["session"]["duplex"]["resume_token"]
            first.channel.send(json.dumps({"type": "response.create"}))
            await first.ear.wait_for_sound(1.0)
            last = [e["event_id"] for e in first.events if "event_id" in e][-1]
            await first.vanish()
            (session,) = hub
            async with asyncio.timeout(5):
                while not session.out_of_touch_s:  # noqa: ASYNC110 - nothing announces it
                    await asyncio.sleep(0.01)
            assert (await moves(Client(), place, http, "no secret", last)).status_code == 403
            assert (await moves(Client(), f"{place}x", http, token, last)).status_code == 404
            response = await moves(second, place, http, token, last)
            assert response.status_code == 200, response.text
            await second.peer.setRemoteDescription(RTCSessionDescription(response.text, "answer"))
            resumed = await second.wait_event("duplex.session.resumed")
            assert resumed["complete"]
            back = await second.wait_event("duplex.line.back")
            done = await second.wait_event("response.done")
            assert done["response"]["status"] == "completed"
            rest_s = 3.0 - back["resumed_ms"] / 1000
            assert 0.5 < rest_s < 2.5
            assert len(second.ear.loud()) / SAMPLE_RATE_HZ == pytest.approx(rest_s, abs=0.15)
            ids = [number_of(e["event_id"]) for e in second.events if "event_id" in e]
            assert ids == sorted(ids)
            assert min(ids) > number_of(last)
            assert hub.live == 1
            second.speaker.say(tone(0.6, 300.0))  # and it hears
            await second.wait_event("input_audio_buffer.speech_started")
        finally:
            for client in list(Client.open):
                await client.close()
