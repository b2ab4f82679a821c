"""The locks on the app: keys, scopes, origins, limits and headers, as a caller over HTTP sees them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import running_hub
from starlette.datastructures import Headers
from test_app import OFFER, SDP, FakeDoor, refusal

from duplex.config import Config
from duplex.errors import ConfigError, TooLargeError
from duplex.keys import KeyRing, changing
from duplex.transport.app import create_app
from duplex.transport.locks.caller import account_address, address_of, networks, secret_of
from duplex.transport.locks.guard import CALL, OPEN, need_of
from duplex.transport.locks.locks import Locks
from duplex.transport.locks.log_filter import RefusalsAreNoFaults, SecretsLeftOut, without_secrets
from duplex.transport.offers import MAX_LINE_CHARS, MAX_LINES, MOST, check_bounds

CALLS = "/v1/realtime/calls"
STRANGER = "198.51.100.7"


class House:
    """An app with keys, a clock that stands until it is moved, and one client for each caller."""

    def __init__(self, folder: Path) -> None:
        self.path, self.ring = folder / "keys.json", KeyRing()
        self.door, self.secrets = FakeDoor(), dict[str, str]()
        self.now_s, self.unix_s = 1000.0, 1_800_000_000.0
        self.app: Any = None

    def key(self, name: str, *scopes: str, **limits: Any) -> str:
        self.ring, _, self.secrets[name] = self.ring.add(name, scopes=scopes or ("talk",), created_s=1, **limits)
        return self.write(name)

    def write(self, name: str) -> str:
        with changing(self.path) as write:
            write(self.ring)
        return self.secrets[name]

    # What the locks need of a clock.
    def now(self) -> float:
        return self.now_s

    def caller(self, secret: str | None = None, address: str = STRANGER) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False, client=(address, 50_000))
        headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        return httpx.AsyncClient(transport=transport, base_url="http://duplex.test", headers=headers)


@asynccontextmanager
async def opened(folder: Path, **config: Mapping[str, Any]) -> AsyncIterator[House]:
    house = House(folder)
    house.key("talker")
    config["security"] = {"keys_file": str(house.path), **config.get("security", {})}
    settings = Config.model_validate(config)
    async with running_hub(config=settings) as hub:
        locks = Locks(settings, house, hub.metrics, unix_s=lambda: house.unix_s)  # type: ignore[arg-type]
        (folder / "page").mkdir()
        (folder / "page" / "index.html").write_text("<title>duplex</title>")
        house.app = create_app(hub, settings, door=house.door, locks=locks, static_dir=folder / "page")
        yield house


async def call(client: httpx.AsyncClient, **headers: str) -> httpx.Response:
    return await client.post(CALLS, content=OFFER, headers={**SDP, **headers})


# --- keys -------------------------------------------------------------------------------------------------


async def test_without_a_key_only_the_page_and_its_health_are_there(tmp_path: Path) -> None:
    async with opened(tmp_path) as house, house.caller() as stranger:
        for open_to_all in ("/", "/index.html", "/healthz", "/readyz"):
            assert (await stranger.get(open_to_all)).status_code == 200
        for method, path in (
            *[("POST", CALLS), ("DELETE", CALLS + "/call_1"), ("POST", CALLS + "/call_1/hangup"), ("GET", "/metrics")],
            *[("GET", "/v1/realtime"), ("GET", "/api/chat"), ("POST", "/v1/realtime/client_secrets")],
            *[("GET", "/v1/models"), ("POST", "/"), ("PUT", "/index.html")],
        ):
            response = await stranger.request(method, path)
            assert "Authorization: Bearer" in refusal(response, 401, "missing_api_key")
            assert response.headers["WWW-Authenticate"].startswith("Bearer")
        assert house.door.offers == []


async def test_a_key_opens_what_its_scopes_say(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        house.key("scraper", "metrics")
        house.key("boss", "admin")
        house.now_s += 1
        for name, talks, measures in (("talker", 201, 403), ("scraper", 403, 200), ("boss", 201, 200)):
            async with house.caller(house.secrets[name]) as client:
                assert (await call(client)).status_code == talks
                assert (await client.get("/metrics")).status_code == measures
        async with house.caller(house.secrets["talker"]) as client:
            assert "'metrics'; yours has: talk" in refusal(await client.get("/metrics"), 403, "insufficient_scope")


@pytest.mark.parametrize("wrong", ["", "dx_", "dx_wrong", "ek_wrong", "sk-from-elsewhere", "a b", "x" * 5000])
async def test_a_wrong_key_is_wrong(wrong: str, tmp_path: Path) -> None:
    async with opened(tmp_path) as house, house.caller() as client:
        response = await call(client, Authorization=f"Bearer {wrong}")
        assert response.status_code == 401
        assert wrong not in response.text or wrong in ("", "dx_", "ek_wrong")
        assert "key" in response.json()["error"]["message"]


async def test_a_key_may_also_come_as_a_password(tmp_path: Path) -> None:
    async with opened(tmp_path) as house, house.caller() as client:
        secret = house.secrets["talker"]
        assert (await client.post(CALLS, content=OFFER, headers=SDP, auth=("asterisk", secret))).status_code == 201
        assert (await client.post(CALLS, content=OFFER, headers=SDP, auth=(secret, ""))).status_code == 401


async def test_keys_expire_are_revoked_and_rotate_while_the_server_runs(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        brief = house.key("brief", expires_s=house.unix_s + 60)
        house.now_s += 1
        async with house.caller(brief) as client, house.caller(house.secrets["talker"]) as talker:
            assert (await call(client)).status_code == 201
            house.unix_s += 61
            refusal(await call(client), 401, "invalid_api_key")
            old = house.ring
            house.ring, _, house.secrets["new"] = house.ring.rotate("talker", unix_s=house.unix_s, grace_s=100)
            house.write("new")
            house.now_s += 1
            assert (await call(talker)).status_code == 201
            async with house.caller(house.secrets["new"]) as renewed:
                assert (await call(renewed)).status_code == 201
                house.unix_s += 101
                refusal(await call(talker), 401, "invalid_api_key")
                house.ring = old.revoke("talker")
                house.write("new")
                house.now_s += 1
                refusal(await call(renewed), 401, "invalid_api_key")


async def test_guessing_is_slowed_and_a_right_key_passes_all_the_same(tmp_path: Path) -> None:
    async with opened(tmp_path, limits={"failures_per_minute": 3}) as house, house.caller("dx_guess") as guesser:
        for _ in range(3):
            refusal(await call(guesser), 401, "invalid_api_key")
        slowed = await call(guesser)
        assert slowed.json()["error"]["type"] == "rate_limit_error"
        assert slowed.status_code == 429
        assert slowed.headers["Retry-After"] == "20"
        async with house.caller(house.secrets["talker"]) as talker, house.caller("dx_guess", "203.0.113.1") as other:
            assert (await call(talker)).status_code == 201
            assert (await call(other)).status_code == 401
        house.now_s += 20
        refusal(await call(guesser), 401, "invalid_api_key")


async def test_who_may_hang_up(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        house.key("other")
        house.key("boss", "admin")
        house.now_s += 1
        async with (
            house.caller(house.secrets["talker"]) as talker,
            house.caller(house.secrets["other"]) as other,
            house.caller(house.secrets["boss"]) as boss,
        ):
            await call(talker)
            refusal(await other.delete(CALLS + "/call_1"), 404, "call_not_found")
            refusal(await other.post(CALLS + "/call_1/hangup"), 404, "call_not_found")
            assert (await talker.delete(CALLS + "/call_1")).status_code == 204
            await call(talker)
            assert (await boss.post(CALLS + "/call_1/hangup")).status_code == 204


async def test_on_loopback_any_key_will_do_and_none_is_needed(tmp_path: Path) -> None:
    async with running_hub() as hub:
        house = House(tmp_path)
        house.app = create_app(hub, Config(), door=house.door)
        for secret in (None, "dx_anything", "sk-from-elsewhere"):
            async with house.caller(secret) as client:
                assert (await call(client)).status_code == 201
                assert (await client.get("/metrics")).status_code == 200
                assert (await client.delete(CALLS + "/call_1")).status_code == 204


async def test_a_server_that_would_be_open_or_whose_keys_are_all_over_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    house = House(tmp_path)
    house.key("old", expires_s=10)
    async with running_hub() as hub:
        for config, says in (
            ({"server": {"host": "0.0.0.0"}}, "duplex keys add NAME"),
            ({"security": {"keys_file": str(house.path)}}, "no key that is still good"),
            ({"security": {"keys_file": str(tmp_path / "none")}}, "no key file"),
            ({"security": {"trusted_proxies": ["here"]}}, "trusted_proxies: 'here'"),
        ):
            with pytest.raises(ConfigError, match=says):
                Locks(Config.model_validate(config), house, hub.metrics)  # type: ignore[arg-type]


# --- what a request needs -----------------------------------------------------------------------------------


@given(
    st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"]),
    st.lists(st.sampled_from(["", "v1", "V1", "api", "chat", "realtime", "calls", "metrics", "healthz", ".."])),
)
def test_what_can_be_changed_or_heard_is_never_open(method: str, parts: list[str]) -> None:
    path = "/" + "/".join(parts)
    need = need_of("http", method, path)
    if method not in ("GET", "HEAD") or path.startswith(("/v1/", "/api/")) or path == "/metrics":
        assert need != OPEN
        assert need.scope is not None
    assert need_of("websocket", "GET", path) == CALL


def test_a_door_with_a_check_of_its_own_is_that_door_alone() -> None:
    for path, own in (("/twilio", True), ("/twilio/media", True), ("/twilio2", False), ("/v1/twilio", False)):
        assert need_of("websocket", "GET", path, ("/twilio",)).own_check is own
    assert not need_of("websocket", "GET", "/twilio/media").own_check


@pytest.mark.parametrize(
    ("headers", "protocols", "secret"),
    [
        ({}, [], None),
        ({"authorization": "Bearer  dx_a "}, [], "dx_a"),
        ({"authorization": "bearer dx_a"}, ["openai-insecure-api-key.dx_b"], "dx_a"),
        ({"authorization": "Basic eDpkeF9h"}, [], "dx_a"),
        ({"authorization": "Basic !!"}, [], "!!"),
        ({"authorization": "Digest x"}, [], None),
        ({"authorization": "Bearer"}, ["realtime", "openai-insecure-api-key.dx_b"], "dx_b"),
        ({}, ["realtime", "openai-beta.realtime-v1"], None),
    ],
)
def test_where_a_secret_is_looked_for(headers: dict[str, str], protocols: list[str], secret: str | None) -> None:
    assert secret_of(Headers(headers), protocols) == secret


# --- addresses ------------------------------------------------------------------------------------------------

PROXIES = networks(["10.0.0.0/8", "2001:db8:1::/48", "127.0.0.1"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("198.51.100.1", ["203.0.113.9"], "198.51.100.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["6.6.6.6, 203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["6.6.6.6", "203.0.113.9, 10.9.9.9"], "203.0.113.9"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["203.0.113.9:4711"], "203.0.113.9"),
        ("10.0.0.1", ["[2001:db8:2::1]:443"], "2001:db8:2::1"),
        ("::ffff:10.0.0.1", ["2001:db8:2::1"], "2001:db8:2::1"),
        ("10.0.0.1", ["203.0.113.9, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9, <script>, 10.0.0.2"], "10.0.0.2"),
        ("unknown", ["203.0.113.9"], "unknown"),
    ],
)
def test_only_proxies_that_are_trusted_say_where_a_call_comes_from(
    peer: str, forwarded: list[str], address: str
) -> None:
    assert address_of(peer, forwarded, PROXIES) == address


def test_without_trusted_proxies_nobody_says_so() -> None:
    assert address_of("127.0.0.1", ["203.0.113.9"], ()) == "127.0.0.1"


def test_a_household_is_one_address() -> None:
    assert account_address("2001:db8::1") == account_address("2001:db8::ffff:1") == "2001:db8::/64"
    assert account_address("2001:db8:0:1::1") != account_address("2001:db8::1")
    assert account_address("::ffff:192.0.2.1") == account_address("192.0.2.1") == "192.0.2.1"
    assert account_address("unknown") == "unknown"


# --- limits over HTTP --------------------------------------------------------------------------------------------


async def test_calls_a_minute_and_at_a_time_for_a_key(tmp_path: Path) -> None:
    async with opened(tmp_path, limits={"calls_per_minute_per_key": 4, "sessions_per_key": 2}) as house:
        house.key("generous", sessions=0, calls_per_minute=0)
        house.now_s += 1
        async with house.caller(house.secrets["talker"]) as client:
            assert [(await call(client)).status_code for _ in range(3)] == [201, 201, 429]
            said = refusal_429(await call(client))
            assert "2 calls up" in said
            said = refusal_429(await call(client))
            assert "4 calls a minute" in said
            house.now_s += 30.1  # the offers that never became calls give their places back
            assert [(await call(client)).status_code for _ in range(3)] == [201, 201, 429]
        async with house.caller(house.secrets["generous"]) as client:
            assert {(await call(client)).status_code for _ in range(20)} == {201}


def refusal_429(response: httpx.Response) -> str:
    assert response.status_code == 429
    assert int(response.headers["Retry-After"]) >= 1
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    return str(error["message"])


async def test_an_offer_that_is_refused_takes_no_place(tmp_path: Path) -> None:
    limits = {"sessions_per_key": 1}
    async with opened(tmp_path, limits=limits) as house, house.caller(house.secrets["talker"]) as client:
        for content in ("nonsense", OFFER + "bad"):
            assert (await client.post(CALLS, content=content, headers=SDP)).status_code == 400
        assert (await call(client)).status_code == 201


async def test_addresses_are_limited_where_nobody_has_a_key(tmp_path: Path) -> None:
    limits = {"sessions_per_address": 1, "calls_per_minute_per_address": 10}
    config = Config.model_validate({"limits": limits, "security": {"trusted_proxies": ["10.0.0.0/8"]}})
    async with running_hub(config=config) as hub:
        house = House(tmp_path)
        house.app = create_app(hub, config, door=house.door)
        async with house.caller() as one, house.caller(address="198.51.100.8") as two:
            assert [(await call(client)).status_code for client in (one, one, two)] == [201, 429, 201]
            assert STRANGER in refusal_429(await call(one))
            # What anybody writes into the header is not believed, what the proxy writes is.
            assert (await call(one, **{"X-Forwarded-For": "203.0.113.1"})).status_code == 429
        async with house.caller(address="10.1.1.1") as proxy:
            assert (await call(proxy, **{"X-Forwarded-For": "6.6.6.6, 203.0.113.1"})).status_code == 201
            assert (await call(proxy, **{"X-Forwarded-For": "7.7.7.7, 203.0.113.1"})).status_code == 429
        text = hub.metrics.exposition().decode()
        assert 'duplex_sessions_refused_total{reason="limit"} 4.0' in text


# --- pages of other origins ------------------------------------------------------------------------------------

APP = "https://app.example"


async def test_a_page_that_is_let_in_may_ask_first_and_then_call(tmp_path: Path) -> None:
    async with opened(tmp_path, security={"origins": [APP]}) as house:
        async with house.caller() as page:
            asked = {
                "Origin": APP,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
            }
            answer = await page.options(CALLS, headers=asked)
            assert answer.status_code == 204
            assert answer.headers["Access-Control-Allow-Origin"] == APP
            assert "POST" in answer.headers["Access-Control-Allow-Methods"]
            assert answer.headers["Access-Control-Allow-Headers"] == "authorization,content-type,x-stainless-lang"
            assert "Origin" in answer.headers["Vary"]
            assert "Access-Control-Allow-Credentials" not in answer.headers
            refused = await call(page, Origin=APP)  # it can read why
            assert refused.status_code == 401
            assert refused.headers["Access-Control-Allow-Origin"] == APP
        async with house.caller(house.secrets["talker"]) as page:
            answer = await call(page, Origin=APP)
            assert answer.status_code == 201
            assert answer.headers["Access-Control-Allow-Origin"] == APP
            assert "Location" in answer.headers["Access-Control-Expose-Headers"]


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://app.example", "https://app.example.evil"])
async def test_a_page_that_is_not_let_in_is_told_nothing(origin: str, tmp_path: Path) -> None:
    async with opened(tmp_path, security={"origins": [APP]}) as house, house.caller(house.secrets["talker"]) as page:
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        for answer in (await page.options(CALLS, headers=asked), await call(page, Origin=origin)):
            refusal(answer, 403, "foreign_origin")
            assert not [name for name in answer.headers if name.startswith("access-control")]
        assert "access-control-allow-origin" not in (await page.get("/healthz", headers={"Origin": origin})).headers


async def test_every_page_may_be_let_in(tmp_path: Path) -> None:
    async with opened(tmp_path, security={"origins": ["*"]}) as house, house.caller(house.secrets["talker"]) as page:
        answer = await call(page, Origin="https://anywhere.example")
        assert answer.headers["Access-Control-Allow-Origin"] == "https://anywhere.example"
        assert answer.status_code == 201


# --- headers -----------------------------------------------------------------------------------------------------


async def test_the_page_is_held_to_what_it_needs(tmp_path: Path) -> None:
    async with opened(tmp_path) as house, house.caller() as client:
        page = await client.get("/")
        policy = dict(part.split(" ", 1) for part in page.headers["Content-Security-Policy"].split("; "))
        assert policy["script-src-elem"] == policy["connect-src"] == policy["style-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["object-src"] == policy["base-uri"] == "'none'"
        assert "unsafe" not in page.headers["Content-Security-Policy"]
        assert "microphone=(self), camera=(self)" in page.headers["Permissions-Policy"]
        assert page.headers["X-Frame-Options"] == "DENY"
        for answer in (page, await client.get("/healthz"), await call(client), await client.get("/nothing")):
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Referrer-Policy"] == "no-referrer"
        again = await client.get("/", headers={"If-None-Match": page.headers["ETag"]})
        assert again.status_code == 304


# --- what an offer may hold ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", MOST)
def test_an_offer_with_too_much_of_something_is_refused(prefix: str) -> None:
    most, _ = MOST[prefix]
    check_bounds(OFFER + f"{prefix}1 x\r\n" * most)
    with pytest.raises(TooLargeError, match=f"has {most + 1} .*at most {most}"):
        check_bounds(OFFER + f"{prefix}1 x\r\n" * (most + 1))


async def test_endless_lines_and_long_ones_are_refused(tmp_path: Path) -> None:
    for content in (OFFER + "a=x\n" * MAX_LINES, OFFER + "a=" + "x" * MAX_LINE_CHARS):
        with pytest.raises(TooLargeError, match="2000 lines, or one of more than 4096"):
            check_bounds(content)
    async with opened(tmp_path) as house, house.caller(house.secrets["talker"]) as client:
        for content in (OFFER + "a=candidate:x\r\n" * 65, OFFER + "m=audio 9 X 0\r\n" * 9):
            refusal(await client.post(CALLS, content=content, headers=SDP), 413, "too_large")
        files = {"sdp": (None, OFFER + "m=audio 9 X 0\r\n" * 9)}
        refusal(await client.post(CALLS, files=files), 413, "too_large")


# --- the log -------------------------------------------------------------------------------------------------------


def test_secrets_are_left_out_of_what_is_logged() -> None:
    key, token = "dx_" + "A1b-_" * 9, "ek_" + "z9Y" * 15
    for text, left in (
        (f"< Authorization: Bearer {key}", "< Authorization: Bearer …"),
        (f"{{'authorization': 'Bearer {token}', 'x': 1}}", "{'authorization': 'Bearer …', 'x': 1}"),
        (f"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.{key}, x", None),
        ("openai-insecure-api-key.sk-from-elsewhere", "openai-insecure-api-key.…"),
        ("authorization: basic eDpkeF9hYmM=", "authorization: basic …"),
        ("the session dx_1 said: basic maths", "the session dx_1 said: basic maths"),
    ):
        cleaned = without_secrets(text)
        assert left is None or cleaned == left
        assert key not in cleaned
        assert token not in cleaned


def test_the_filters_of_the_log() -> None:
    key = "dx_" + "A1b-_" * 9

    def record(message: str, *args: object) -> logging.LogRecord:
        return logging.LogRecord("x", logging.INFO, "x.py", 1, message, args, None)

    header = record("%s: %s", "Authorization", f"Bearer {key}")
    plain = record("%d of %d", 1, 2)
    assert all(SecretsLeftOut().filter(each) for each in (header, plain))
    assert header.getMessage() == "Authorization: Bearer …"
    assert (plain.getMessage(), plain.args) == ("1 of 2", (1, 2))
    noise = "ASGI callable returned without completing handshake."
    assert [RefusalsAreNoFaults().filter(record(message)) for message in (noise, "Exception in ASGI")] == [False, True]
