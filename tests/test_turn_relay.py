"""Calls through a TURN server: who is told of it, with what credentials, and that sound comes through and back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from aiortc import RTCIceServer
from browser import heard, microphone, page_with_microphone
from coturn import SECRET, Coturn, coturn
from live import duplex_serve
from playwright.sync_api import expect
from serving import running_app, running_hub

from duplex.config import Config, SecurityConfig, ServerConfig, WebRtcConfig, load_config
from duplex.errors import ConfigError, TransportError
from duplex.keys import KeyRing, changing
from duplex.testing import tone
from duplex.transport.app import create_app
from duplex.transport.client import CallClient, CallSettings
from duplex.transport.ice_servers import ICE_SERVERS, told_to_callers, turn_credentials, used_here
from duplex.transport.liveness import ice_of


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coturn]:
    with coturn(tmp_path_factory.mktemp("coturn")) as server:
        yield server


def configured(relay: Coturn, uses: str = "stun", secret: str = SECRET) -> Config:
    servers = [{"urls": [relay.stun]}, {"urls": [relay.turn]}]
    return Config(
        webrtc=WebRtcConfig.model_validate({"ice_servers": servers, "turn_secret": secret, "server_uses": uses})
    )


# --- configuration and credentials -------------------------------------------------------------------------


def test_credentials_are_what_the_scheme_says() -> None:
    """A known answer, by the shell: printf 1433895918:caller | openssl dgst -sha1 -hmac key -binary | base64"""
    username, credential = turn_credentials("a long enough secret", 1433895918.9)
    assert username == "1433895918:caller"
    assert credential == "bIzcrrDerHU0uGAMPDx0Il8WuS0="


def test_each_caller_is_told_the_servers_with_credentials_that_run_out() -> None:
    config = load_config(
        environ={"DUPLEX_WEBRTC__TURN_SECRET": "a long enough secret"},
        assignments=[
            'webrtc.ice_servers=[{"urls":["stun:a.test"]},{"urls":["turn:a.test:3478?transport=udp"]},'
            '{"urls":["turns:b.test"],"username":"u","credential":"p"}]'
        ],
    ).webrtc
    first, second, third = told_to_callers(config, 1000.0)
    assert first == {"urls": ["stun:a.test"]}
    assert second["username"] == "8200:caller"
    assert third == {"urls": ["turns:b.test"], "username": "u", "credential": "p"}
    assert "long enough" not in repr(config)
    assert "long enough" not in json.dumps(config.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("uses", "urls"),
    [
        ("nothing", []),
        ("stun", [["stun:a.test"]]),
        ("all", [["stun:a.test", "turn:a.test"], ["turns:b.test?transport=tcp"]]),
    ],
)
def test_which_of_them_the_server_uses_itself(uses: str, urls: list[list[str]]) -> None:
    config = WebRtcConfig.model_validate(
        {
            "ice_servers": [{"urls": ["stun:a.test", "turn:a.test"]}, {"urls": ["turns:b.test?transport=tcp"]}],
            "turn_secret": "a long enough secret",
            "server_uses": uses,
        }
    )
    servers: list[RTCIceServer] = used_here(config, 0.0)
    assert [server.urls for server in servers] == urls


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('[{"urls":["turn:a.test"]}]', "turn_secret"),
        ('[{"urls":["turn:a.test"],"username":"u"}]', "turn_secret"),
        ('[{"urls":["http://a.test"]}]', "pattern"),
        ('[{"urls":["turn:a.test?transport=sctp"]}]', "pattern"),
    ],
)
def test_a_server_that_cannot_work_is_said(table: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(environ={}, assignments=[f"webrtc.ice_servers={table}"])


async def test_a_server_without_any_says_so() -> None:
    async with running_hub() as hub, running_app(create_app(hub, Config())) as url, httpx.AsyncClient() as http:
        answer = await http.get(url + ICE_SERVERS)
    assert answer.json() == {"ice_servers": [], "expires_after_s": 7200}
    assert answer.headers["Cache-Control"] == "no-store"


async def test_the_credentials_are_for_those_who_may_call(tmp_path: Path, relay: Coturn) -> None:
    ring, _, secret = KeyRing().add("talker", created_s=1)
    with changing(tmp_path / "keys.json") as write:
        write(ring)
    config = configured(relay).model_copy(update={"security": SecurityConfig(keys_file=tmp_path / "keys.json")})
    async with running_hub() as hub, running_app(create_app(hub, config)) as url, httpx.AsyncClient() as http:
        refused = await http.get(url + ICE_SERVERS)
        shown = {"Authorization": f"Bearer {secret}"}
        asked = {"expires_after": {"anchor": "created_at", "seconds": 60}}
        token = (await http.post(url + "/v1/realtime/client_secrets", json=asked, headers=shown)).json()["value"]
        answer = await http.get(url + ICE_SERVERS, headers={"Authorization": f"Bearer {token}"})
    assert refused.status_code == 401
    assert SECRET not in answer.text
    assert answer.json()["ice_servers"][1]["username"].endswith(":caller")


# --- the page --------------------------------------------------------------------------------------------

RELAY_ONLY = """
const Plain = RTCPeerConnection;
window.RTCPeerConnection = class extends Plain {
  constructor(options) {
    super({ ...options, iceTransportPolicy: "relay" });
    window.peer = this;
  }
};
"""
PATH = """async () => {
  const all = [...(await peer.getStats()).values()];
  const pair = all.find((s) => s.type === "candidate-pair" && s.nominated && s.state === "succeeded");
  const own = all.find((s) => s.id === pair?.localCandidateId);
  return [own?.candidateType, pair?.bytesReceived ?? 0];
}"""


@pytest.mark.browser
def test_the_page_calls_through_the_relay_where_nothing_else_passes(relay: Coturn, tmp_path: Path) -> None:
    settings = tmp_path / "duplex.toml"
    servers = f'[{{urls = ["{relay.stun}"]}}, {{urls = ["{relay.turn}"]}}]'
    settings.write_text(f'[webrtc]\nturn_secret = "{SECRET}"\nice_servers = {servers}\n')
    with (
        duplex_serve("--agent", "echo", "--config", str(settings), models_dir=tmp_path) as url,
        page_with_microphone("about:blank", microphone(tmp_path / "mic.wav", tone(1.0))) as page,
    ):
        page.add_init_script(RELAY_ONLY)
        page.goto(url)
        page.click("#talk")
        page.wait_for_function(
            "duplexState.events.some(e => e.event.type === 'output_audio_buffer.stopped')", timeout=60_000
        )
        kind, received = page.evaluate(PATH)
        page.click("#talk")
        expect(page.locator("#status")).to_have_text("Ready")
        assert kind == "relay"
        assert received > 2000
        assert np.abs(heard(page)).max() > 0.01


# --- calls -------------------------------------------------------------------------------------------------


async def told(url: str) -> CallSettings:
    """A caller who goes through the relay or not at all, with what the server tells it."""
    async with httpx.AsyncClient() as http:
        servers = (await http.get(url + ICE_SERVERS)).json()["ice_servers"]
    return CallSettings(ice_servers=servers, relay_only=True)


async def hold(url: str, settings: CallSettings) -> tuple[float, str, str]:
    """Says something to the echo; returns how loud the answer was, the kind of path, and the server's SDP."""
    async with CallClient.connect(url, settings) as call:
        (pair,) = ice_of(call._peer)._nominated.values()
        await call.play(tone(0.8))
        await call.wait_for("response.done", timeout_s=20)
        kind = pair.local_candidate.type
        answer = call._peer.remoteDescription.sdp
    return float(np.abs(call.recording().stereo[:, 1]).max()), kind, answer


async def test_a_caller_behind_a_firewall_holds_a_call_through_the_relay(relay: Coturn) -> None:
    config = configured(relay)
    async with running_hub(config=config) as hub, running_app(create_app(hub, config), config) as url:
        loudest, kind, answer = await hold(url, await told(url))
    assert " typ relay " not in answer, "the server is reached as it is"
    assert kind == "relay"
    assert loudest > 0.02
    names = re.findall(r"user <(\d+:caller)>", relay.log.read_text())
    assert names, "coturn knows the caller by the name it was given"


async def test_a_server_that_nothing_reaches_is_called_through_its_own_relay(relay: Coturn) -> None:
    config = configured(relay, uses="all")
    async with running_hub(config=config) as hub, running_app(create_app(hub, config), config) as url:
        loudest, kind, answer = await hold(url, await told(url))
    assert kind == "relay"
    assert " typ relay " in answer
    assert loudest > 0.02


async def test_wrong_credentials_get_nobody_through(relay: Coturn) -> None:
    config = configured(relay, secret="not the secret of that relay")
    async with running_hub(config=config) as hub, running_app(create_app(hub, config), config) as url:
        settings = await told(url)
        settings = CallSettings(ice_servers=settings.ice_servers, relay_only=True, connect_timeout_s=3.0)
        with pytest.raises(TransportError):
            await hold(url, settings)
        assert hub.live == 0


async def test_stun_tells_a_server_its_address(relay: Coturn) -> None:
    """What a server behind NAT needs: its answer has the address that the STUN server saw."""
    config = Config(server=ServerConfig(port=0), webrtc=configured(relay).webrtc)
    async with (
        running_hub(config=config) as hub,
        running_app(create_app(hub, config), config) as url,
        CallClient.connect(url) as call,
    ):
        answer = call._peer.remoteDescription.sdp
    assert " typ srflx " in answer
    assert " typ relay " not in answer
