"""A WebSocket session that outlives its connection: who may go on with it, what is told again, what is said again."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import NoCalls, running_app, running_hub
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from duplex import hub as hub_module
from duplex.config import Config, ServerConfig, SessionConfig
from duplex.conversation import Role
from duplex.errors import ProtocolError
from duplex.frames import Samples
from duplex.hub import SessionHub
from duplex.recording import Recording
from duplex.requests import AddMessage
from duplex.testing import ScriptedAgent, ScriptedReply, tone
from duplex.transport.app import create_app
from duplex.transport.client_websocket import WebSocketCall
from duplex.transport.event_ring import EventRing, number_of
from duplex.transport.resume import Asked, Resumption, read_asked

REPLY_S = 2.0


@asynccontextmanager
async def served(
    *, resume_s: float = 30.0, max_sessions: int = 4, reply_s: float = REPLY_S
) -> AsyncIterator[tuple[str, SessionHub]]:
    config = Config(server=ServerConfig(max_sessions=max_sessions), session=SessionConfig(resume_s=resume_s))
    agent = ScriptedAgent([ScriptedReply(duration_s=reply_s)])
    app_door = NoCalls()
    async with running_hub(agent, config) as hub, running_app(create_app(hub, config, door=app_door), config) as url:
        yield url, hub


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)


def loud_s(recording: Recording) -> float:
    agent: Samples = recording.agent
    return sum(bool(abs(agent[i : i + 480]).max() > 0.02) for i in range(0, len(agent), 480)) * 0.02


def of(call: WebSocketCall, kind: str) -> list[dict[str, Any]]:
    return [dict(e.event) for e in call.events if e.type == kind]


# --- whole calls ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("looks_well", [False, True])
async def test_a_reply_goes_on_where_the_client_stopped_and_nothing_is_said_twice(looks_well: bool) -> None:
    """``looks_well``: the client comes by another network while its first connection still looks well to the server."""
    async with served() as (url, hub), WebSocketCall.connect(url) as call:
        await call.play(tone(0.5))
        await call.wait_audible(timeout_s=5)
        await call.wait_ms(500)
        if looks_well:
            await call.resume()
        else:
            await call.outage(1.0)
        await call.wait_for("response.done", timeout_s=10)
        await call.wait_quiet(300, timeout_s=5)
        recording = call.recording()
        assert hub.live == 1
        (resumed,), (back,) = of(call, "duplex.session.resumed"), of(call, "duplex.line.back")
        assert resumed["complete"]
        assert back["resumed_ms"] > 300
        assert len(of(call, "session.created")) == 1
        (done,) = of(call, "response.done")
        assert done["response"]["status"] == "completed"
        assert loud_s(recording) == pytest.approx(REPLY_S, abs=0.3)  # a busy machine loses or repeats some packets
        ids = [number_of(e.event["event_id"]) for e in call.events]
        assert ids == sorted(set(ids))  # each once, in order


async def test_what_happened_meanwhile_is_told_afterwards() -> None:
    async with served() as (url, hub), WebSocketCall.connect(url) as call:
        await call.wait_ms(100)
        (session,) = hub
        outage = asyncio.create_task(call.outage(0.4))
        await asyncio.sleep(0.2)
        session.request(AddMessage(Role.SYSTEM, "Meanwhile.", item_id="meanwhile"))
        await outage
        added = await call.wait_for("conversation.item.added", timeout_s=5)
        assert added.event["item"]["id"] == "meanwhile"
        call.send({"type": "conversation.item.retrieve", "item_id": "meanwhile"})
        await call.wait_for("conversation.item.retrieved", timeout_s=5)


async def test_a_goodbye_is_a_goodbye() -> None:
    async with served() as (url, hub):
        async with WebSocketCall.connect(url):
            assert hub.live == 1
        await until(lambda: hub.live == 0)


async def test_where_sessions_do_not_wait_a_lost_connection_ends_them() -> None:
    async with served(resume_s=0.0) as (url, hub), begun(url) as (socket, session):
        assert "resume_token" not in session["duplex"]
        socket.transport.abort()
        await until(lambda: hub.live == 0)


async def test_a_session_that_nobody_comes_back_to_ends() -> None:
    async with served(resume_s=0.2) as (url, hub), begun(url) as (socket, session):
        socket.transport.abort()
        await until(lambda: hub.live == 0)
        assert await refused(url, resume_of(session)) == "resume_expired"


async def test_a_session_that_waits_gives_its_place_to_a_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "GIVES_WAY_S", 0.2)
    async with served(max_sessions=1) as (url, hub), begun(url) as (socket, session):
        socket.transport.abort()
        await until(lambda: [s.out_of_touch_s > 0.2 for s in hub] == [True])
        async with begun(url) as (_, another):
            assert another["id"] != session["id"]
            await until(lambda: hub.live == 1)
        assert await refused(url, resume_of(session)) == "resume_expired"


# --- who may ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def begun(url: str) -> AsyncIterator[tuple[ClientConnection, dict[str, Any]]]:
    async with connect(url.replace("http", "ws") + "/v1/realtime", proxy=None) as socket:
        created = json.loads(await socket.recv())
        assert created["type"] == "session.created"
        yield socket, created["session"]


def resume_of(session: dict[str, Any], **changed: Any) -> dict[str, Any]:
    token = session["duplex"]["resume_token"]
    return {"type": "duplex.session.resume", "session_id": session["id"], "resume_token": token, **changed}


async def refused(url: str, event: dict[str, Any]) -> str:
    """The code of the refusal."""
    async with connect(url.replace("http", "ws") + "/v1/realtime?resume", proxy=None) as socket:
        await socket.send(json.dumps(event))
        told = json.loads(await socket.recv())
        assert told["type"] == "error", told
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        return str(told["error"]["code"])


async def test_who_cannot_prove_it_is_refused_and_told_why() -> None:
    async with served() as (url, hub), begun(url) as (socket, session):
        assert await refused(url, resume_of(session, resume_token="x" * 32)) == "resume_refused"
        assert await refused(url, resume_of(session, resume_token="ä")) == "resume_refused"
        assert await refused(url, resume_of(session, session_id="sess_0")) == "resume_unknown"
        assert await refused(url, resume_of(session, last_event_id="41")) == "invalid_event"
        assert await refused(url, {"type": "session.update", "session": {"type": "realtime"}}) == "resume_missing"
        await socket.send(json.dumps({"type": "input_audio_buffer.clear"}))  # its own client noticed nothing
        while json.loads(await socket.recv())["type"] != "input_audio_buffer.cleared":
            pass
        assert hub.live == 1


@given(
    st.dictionaries(
        st.sampled_from(["type", "session_id", "resume_token", "last_event_id", "playback"]),
        st.one_of(
            st.none(),
            st.text(),
            st.integers(),
            st.booleans(),
            st.just("duplex.session.resume"),
            st.just("event_7"),
            st.dictionaries(st.sampled_from(["response_id", "played_ms"]), st.one_of(st.text(), st.floats())),
        ),
    )
)
def test_a_wish_is_read_or_refused_with_a_documented_error(event: dict[str, Any]) -> None:
    with contextlib.suppress(ProtocolError):
        assert read_asked(event).last_event >= 0


# --- the events that are kept --------------------------------------------------------------------------------


def test_the_ring_gives_what_came_after_once() -> None:
    ring = EventRing(max_events=3)
    for number in (1, 2, 5, 6):
        ring.keep(number, str(number))
    assert ring.take_after(2) == ([(5, "5"), (6, "6")], True)
    assert ring.take_after(2) == ([], True)
    assert ring.take_after(0) == ([(2, "2")], False)  # the first is kept no more


def test_the_ring_is_bounded_in_text_too() -> None:
    ring = EventRing(max_chars=10)
    for number in range(1, 6):
        ring.keep(number, "xxxx")
    assert ring.take_after(3) == ([(4, "xxxx"), (5, "xxxx")], True)
    assert ring.take_after(2)[1] is False


# --- the registry --------------------------------------------------------------------------------------------


class Line:
    def __init__(self) -> None:
        self.closed = False
        self.gone = asyncio.Event()


async def test_another_key_opens_no_session_of_this_one() -> None:
    async with running_hub() as hub:
        resumption, line = Resumption(hub), Line()
        resumption.hold("sess_1", line, "secret", "key_1")
        assert resumption.find(Asked("sess_1", "secret", 0, None), "key_1") is line
        for key_id in ("key_2", None):
            with pytest.raises(ProtocolError) as refused:
                resumption.find(Asked("sess_1", "secret", 0, None), key_id)
            assert refused.value.code == "resume_refused"


async def test_only_so_many_wait() -> None:
    async with running_hub() as hub:
        resumption = Resumption(hub, most_parked=2)
        lines = [Line() for _ in range(3)]
        for number, line in enumerate(lines):
            held = resumption.hold(f"sess_{number}", line, "secret", None)
            assert held is not None
            assert held.wait()
        assert [line.closed for line in lines] == [True, False, False]
        assert resumption.parked == 2
