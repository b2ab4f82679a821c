"""A running server with keys: over WebSocket and WebRTC, with the official client, and with every logger turned up."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from duplex.cli import serve_main
from duplex.config import Config
from duplex.errors import ConfigError, TransportError
from duplex.keys import KeyRing, changing
from duplex.serve import Running, exposed, running
from duplex.transport.client import CallClient
from duplex.transport.client_websocket import WebSocketCall
from duplex.transport.locks.twilio_signature import twilio_signature

SESSION = {
    "type": "realtime",
    "instructions": "Sing.",
    "audio": {"input": {"turn_detection": {"type": "semantic_vad"}}},
}


class Locked:
    """A running server, and the secret of its one key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ring, _, self.secret = KeyRing().add("talker", created_s=1)
        self.write()

    def write(self) -> None:
        with changing(self.path) as write:
            write(self.ring)

    def config(self, **tables: Any) -> Config:
        tables["server"] = {"port": 0, **tables.get("server", {})}
        security = {"keys_file": str(self.path), **tables.pop("security", {})}
        return Config.model_validate({"agent": {"name": "echo"}, "security": security, **tables})


@pytest.fixture
def locked(tmp_path: Path) -> Locked:
    return Locked(tmp_path / "keys.json")


def socket(server: Running, secret: str | None = None, **options: Any) -> connect:
    headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
    return connect(server.url.replace("http", "ws") + "/v1/realtime", additional_headers=headers, **options)


async def first(call: ClientConnection, kind: str) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while True:
            event: dict[str, Any] = json.loads(await call.recv())
            if event["type"] == kind:
                return event


async def refused(connecting: connect) -> InvalidStatus:
    with pytest.raises(InvalidStatus) as refusal:
        async with connecting:
            pass
    return refusal.value


@asynccontextmanager
async def official(server: Running, secret: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0) as client:
        yield client


# --- WebSocket --------------------------------------------------------------------------------------------


async def test_a_websocket_needs_a_key_too(locked: Locked) -> None:
    async with running(locked.config()) as server:
        for path in ("/v1/realtime", "/api/chat", "/elsewhere"):
            missing = await refused(connect(server.url.replace("http", "ws") + path))
            assert missing.response.status_code == 401
            assert json.loads(missing.response.body or b"")["error"]["code"] == "missing_api_key"
        assert (await refused(socket(server, "dx_wrong"))).response.status_code == 401
        async with socket(server, locked.secret) as call:
            await first(call, "session.created")
        protocols: Any = ["realtime", f"openai-insecure-api-key.{locked.secret}"]
        async with socket(server, subprotocols=protocols) as call:
            assert call.subprotocol == "realtime", "the key is not sent back"
            await first(call, "session.created")
        assert (await refused(socket(server, subprotocols=["realtime"]))).response.status_code == 401  # type: ignore[list-item]
        foreign = await refused(socket(server, locked.secret, origin="https://evil.example"))  # type: ignore[arg-type]
        assert foreign.response.status_code == 403


async def test_a_call_is_one_call_however_it_is_made_and_ends_with_its_key(locked: Locked) -> None:
    async with running(locked.config(limits={"sessions_per_key": 2})) as server:
        async with official(server, locked.secret) as client, client.realtime.connect(model="duplex") as one:
            await one.recv()
            async with socket(server, locked.secret) as two:
                await first(two, "session.created")
                third = await refused(socket(server, locked.secret))
                assert third.response.status_code == 429
                assert int(third.response.headers["Retry-After"]) >= 1
                locked.ring = locked.ring.revoke("talker")
                locked.write()
                told = await first(two, "error")
                assert told["error"]["code"] == "invalid_api_key"
                assert (await first(two, "duplex.session.closed"))["reason"] == "The key of this call was revoked."
                await two.wait_closed()
                assert two.close_code == 1000
        assert (await refused(socket(server, locked.secret))).response.status_code == 401


async def test_a_session_over_its_time_is_told_and_closed(locked: Locked) -> None:
    async with running(locked.config(limits={"session_s": 0.5, "sessions_per_key": 1})) as server:
        for _ in range(2):  # the second proves that the first gave its place back
            async with socket(server, locked.secret) as call:
                assert (await first(call, "error"))["error"]["code"] == "session_expired"
                await first(call, "duplex.session.closed")
                await call.wait_closed()


async def test_a_client_that_sends_too_much_is_slowed_and_not_cut_off(locked: Locked) -> None:
    limits = {"connection_events_per_s": 50}
    async with running(locked.config(limits=limits)) as server, socket(server, locked.secret) as call:
        await first(call, "session.created")
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        for _ in range(300):  # 250 at once, and a second for the rest
            await call.send('{"type": "input_audio_buffer.clear"}')
        for _ in range(300):
            await first(call, "input_audio_buffer.cleared")
        assert loop.time() - began_s > 0.9


# --- client secrets ------------------------------------------------------------------------------------------


async def test_the_official_client_makes_a_secret_and_another_calls_with_it(
    locked: Locked, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(locked.config()) as server, official(server, locked.secret) as client:
        made = await client.realtime.client_secrets.create(
            expires_after={"anchor": "created_at", "seconds": 7200},
            session=SESSION,  # type: ignore[arg-type]
        )
        assert made.value.startswith("ek_")
        assert made.session.type == "realtime"
        assert made.session.instructions == "Sing."
        assert type(made).model_validate(made.model_dump()) == made
        plain = await client.realtime.client_secrets.create()
        assert 6500 < made.expires_at - plain.expires_at <= 6601
        async with official(server, made.value) as page:
            async with page.realtime.connect(model="duplex") as call:
                assert (await call.recv()).type == "session.created"
                updated = await call.recv()
                assert updated.type == "session.updated"
                assert updated.session.type == "realtime"
                assert updated.session.instructions == "Sing."
            with pytest.raises(openai.PermissionDeniedError, match="opens calls, and does nothing else"):
                await page.realtime.client_secrets.create()
        async with httpx.AsyncClient(
            base_url=server.url, headers={"Authorization": f"Bearer {made.value}"}
        ) as page_http:
            for method, path in (("GET", "/metrics"), ("GET", "/v1/models"), ("POST", "/v1/realtime/client_secrets")):
                assert (await page_http.request(method, path)).status_code == 403
        locked.ring = locked.ring.revoke("talker")
        locked.write()
        monkeypatch.setattr("duplex.keys._CHECK_EVERY_S", 0.0)
        assert (await refused(socket(server, made.value))).response.status_code == 401, "it dies with its key"


async def test_a_webrtc_call_with_a_secret_begins_as_it_was_configured_and_its_owner_hangs_up(locked: Locked) -> None:
    async with running(locked.config()) as server:
        auth = {"Authorization": f"Bearer {locked.secret}"}
        async with httpx.AsyncClient(base_url=server.url) as http:
            body = {"session": {**SESSION, "audio": {"output": {"voice": "marin"}}}}
            made = (await http.post("/v1/realtime/client_secrets", json=body, headers=auth)).json()
            token = {"Authorization": f"Bearer {made['value']}"}
            offer, peer = await an_offer()
            try:
                session = {"audio": {"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "low"}}}}
                files = {"sdp": (None, offer), "session": (None, json.dumps({"type": "realtime", **session}))}
                answer = await http.post("/v1/realtime/calls", files=files, headers=token)
                assert answer.status_code == 201
                await peer.set_answer(answer.text)
                await peer.heard_of_us()
                [settings] = [session.settings for session in server.hub]
                assert settings.instructions == "Sing."
                assert settings.turn_taking == {"preset": "patient"}
                place = answer.headers["Location"]
                assert (await http.delete(place, headers=auth)).status_code == 404, "the key did not open it"
                assert (await http.delete(place, headers=token)).status_code == 204
            finally:
                await peer.close()


async def test_on_loopback_secrets_work_without_keys() -> None:
    config = Config.model_validate({"server": {"port": 0}, "agent": {"name": "echo"}})
    async with running(config) as server, official(server, "any key at all") as client:
        made = await client.realtime.client_secrets.create(session=SESSION)  # type: ignore[arg-type]
        async with socket(server, made.value) as call:
            updated = await first(call, "session.updated")
            assert updated["session"]["instructions"] == "Sing."
        # A configuration that would be lost without a word is refused instead.
        assert (await refused(socket(server, "ek_unknown"))).response.status_code == 401


# --- other doors, other clients -------------------------------------------------------------------------------


async def test_our_own_clients_show_the_key_of_the_environment(locked: Locked, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(locked.config()) as server:
        for calling in (CallClient, WebSocketCall):
            monkeypatch.delenv("DUPLEX_API_KEY", raising=False)
            with pytest.raises(TransportError, match=r"401, .*Set DUPLEX_API_KEY"):
                async with calling.connect(server.url):
                    pass
            monkeypatch.setenv("DUPLEX_API_KEY", locked.secret)
            async with calling.connect(server.url) as call:
                assert server.hub.live == 1
                call.send({"type": "input_audio_buffer.clear"})
                await call.wait_for("input_audio_buffer.cleared", timeout_s=20)


async def test_the_telephone_doors_are_shut_until_they_are_opened_and_then_locked(locked: Locked) -> None:
    doors = {"doors": ["twilio", "asterisk"]}
    twilio = {"auth_token": "12345", "public_url": "https://voice.example"}
    async with running(locked.config()) as server, httpx.AsyncClient(base_url=server.url) as http:
        key = {"Authorization": f"Bearer {locked.secret}"}
        assert (await http.post("/twilio/voice", headers=key)).status_code in (404, 405)
        for path in ("/twilio/media", "/asterisk/media"):
            shut = await refused(connect(server.url.replace("http", "ws") + path, additional_headers=key))
            assert shut.response.status_code == 404
    async with (
        running(locked.config(server=doors, twilio=twilio)) as server,
        httpx.AsyncClient(base_url=server.url) as http,
    ):
        for signature, status in (
            ("wrong", 403),
            (twilio_signature("https://voice.example/twilio/voice", {}, "12345"), 200),
        ):
            answer = await http.post("/twilio/voice", headers={"X-Twilio-Signature": signature})
            assert answer.status_code == status
        media = server.url.replace("http", "ws") + "/twilio/media"
        assert (await refused(connect(media))).response.status_code == 403
        signed = twilio_signature("wss://voice.example/twilio/media", {}, "12345")
        async with connect(media, additional_headers={"X-Twilio-Signature": signed}):
            pass
        asterisk = server.url.replace("http", "ws") + "/asterisk/media"
        assert (await refused(connect(asterisk))).response.status_code == 401
        # websocket_client.conf sends username and password as Basic.
        password = base64.b64encode(f"asterisk:{locked.secret}".encode()).decode()
        async with connect(asterisk, additional_headers={"Authorization": f"Basic {password}"}, subprotocols=["media"]):  # type: ignore[list-item]
            pass
    with pytest.raises(ConfigError, match=r"twilio\.auth_token"):
        async with running(locked.config(server=doors)):
            pass


async def test_a_call_with_a_hundred_data_channels_ends(locked: Locked) -> None:
    auth = {"Authorization": f"Bearer {locked.secret}"}
    async with running(locked.config()) as server, httpx.AsyncClient(base_url=server.url, headers=auth) as http:
        offer, peer = await an_offer(more_channels=100)
        try:
            answer = await http.post("/v1/realtime/calls", content=offer, headers={"Content-Type": "application/sdp"})
            await peer.set_answer(answer.text)
            async with asyncio.timeout(20):
                await peer.gone.wait()
        finally:
            await peer.close()


async def test_audiosocket_listens_where_it_has_a_port_and_its_calls_are_limited_too(locked: Locked) -> None:
    config = locked.config(audiosocket={"port": 0}, limits={"session_s": 0.5})
    async with running(config) as server:
        assert server.audiosocket is not None
        reader, writer = await asyncio.open_connection(*server.audiosocket)
        writer.write(b"\x01\x00\x10" + bytes(range(16)) + b"\x10\x01\x40" + bytes(320))
        async with asyncio.timeout(20):
            assert await reader.readexactly(1) == b"\x10", "sound of the kind we sent"
            assert (await reader.read()).endswith(b"\x00\x00\x00"), "and the hang-up, when the time was over"
        writer.close()
    async with running(locked.config()) as server:
        assert server.audiosocket is None


# --- starting -------------------------------------------------------------------------------------------------


def test_it_does_not_start_open_to_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert serve_main(["--port", "0", "--agent", "echo", "--host", "0.0.0.0"]) == 1
    out = capsys.readouterr().out
    for word in ("0.0.0.0", "duplex keys add NAME", "--host 127.0.0.1", "--insecure"):
        assert word in out


async def test_told_to_be_open_it_is_and_says_so() -> None:
    config = Config.model_validate(
        {"server": {"port": 0, "host": "0.0.0.0"}, "agent": {"name": "echo"}, "security": {"insecure": True}}
    )
    warnings = " ".join(exposed(config))
    assert "asks nobody for a key" in warnings
    assert "plain http" in warnings
    assert exposed(Config()) == []
    async with running(config) as server, socket(server) as call:
        await first(call, "session.created")


# --- the log ----------------------------------------------------------------------------------------------------


async def test_no_secret_is_logged_whatever_is_turned_up(locked: Locked, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with running(locked.config()) as server, official(server, locked.secret) as client:
            made = await client.realtime.client_secrets.create()
            protocols: Any = ["realtime", f"openai-insecure-api-key.{made.value}"]
            async with socket(server, locked.secret) as one, socket(server, subprotocols=protocols) as two:
                await first(one, "session.created")
                await first(two, "session.created")
            wrong = "dx_" + "wrongwrong" * 4
            await refused(socket(server, wrong))
        ours = [record for record in caplog.records if not record.name.startswith(("websockets.client", "openai"))]
    assert any(record.name.startswith("duplex") for record in ours)
    said = "\n".join(logging.Formatter().format(record) for record in ours)
    for secret in (locked.secret, made.value, wrong):
        assert secret not in said
        assert secret[3:] not in said


# --- WebRTC, by hand ----------------------------------------------------------------------------------------------


class Peer:
    def __init__(self) -> None:
        from aiortc import RTCConfiguration, RTCPeerConnection

        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.connection.addTransceiver("audio")
        self.channel = self.connection.createDataChannel("oai-events")
        self._told = asyncio.Event()
        self.channel.on("message", lambda _: self._told.set())
        self.gone = asyncio.Event()
        self.connection.on("connectionstatechange", self._look)

    def _look(self) -> None:
        if self.connection.connectionState in ("closed", "failed"):
            self.gone.set()

    async def set_answer(self, sdp: str) -> None:
        from aiortc import RTCSessionDescription

        await self.connection.setRemoteDescription(RTCSessionDescription(sdp, "answer"))

    async def heard_of_us(self) -> None:
        async with asyncio.timeout(20):
            await self._told.wait()

    async def close(self) -> None:
        await self.connection.close()


async def an_offer(more_channels: int = 0) -> tuple[str, Peer]:
    peer = Peer()
    for number in range(more_channels):
        peer.connection.createDataChannel(f"channel {number}")
    await peer.connection.setLocalDescription(await peer.connection.createOffer())
    return peer.connection.localDescription.sdp, peer
