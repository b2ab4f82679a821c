"""Client secrets as a store and as a request, without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_app import refusal
from test_locks import House, opened

from duplex.errors import LimitError, ProtocolError
from duplex.keys import KeyRing
from duplex.transport.locks.client_secrets import ClientSecrets, merged, read_request

PATH = "/v1/realtime/client_secrets"


def test_a_secret_is_good_until_it_expires_and_is_kept_as_a_hash() -> None:
    now_s = 1000.4
    secrets = ClientSecrets(10, lambda: now_s)
    value, made = secrets.make({"instructions": "Sing."}, 600, None)
    assert made.expires_s == 1600
    assert secrets.find(value) == made
    assert value not in repr(vars(secrets))
    assert secrets.find("ek_other") is secrets.find("x" * 10_000) is None
    now_s = 1599.9
    assert secrets.find(value) is not None
    now_s = 1600.0
    assert secrets.find(value) is None
    assert len(secrets) == 0


def test_it_does_not_outlive_its_key() -> None:
    _, key, _ = KeyRing().add("brief", created_s=0, expires_s=1100)
    assert ClientSecrets(10, lambda: 1000.0).make(None, 600, key)[1].expires_s == 1100


def test_there_are_only_so_many_and_those_that_expired_make_room() -> None:
    now_s = 0.0
    secrets = ClientSecrets(3, lambda: now_s)
    for lifetime_s in (10, 20, 30):
        secrets.make(None, lifetime_s, None)
    with pytest.raises(LimitError, match="3 client secrets are in use") as full:
        secrets.make(None, 600, None)
    assert full.value.retry_after_s == 10
    now_s = 21.0
    secrets.make(None, 600, None)
    assert len(secrets) == 2


@pytest.mark.parametrize(
    ("body", "read"),
    [
        ({}, (None, 600)),
        ({"expires_after": None, "session": None}, (None, 600)),
        ({"expires_after": {"anchor": "created_at"}}, (None, 600)),
        ({"expires_after": {"seconds": 10}, "session": {"type": "realtime"}}, ({"type": "realtime"}, 10)),
        ({"expires_after": {"anchor": "created_at", "seconds": 7200}}, (None, 7200)),
    ],
)
def test_a_request_is_read(body: dict[str, Any], read: tuple[Any, int]) -> None:
    assert read_request(body) == read


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"expires_after": {"seconds": 9}}, "expires_after.seconds"),
        ({"expires_after": {"seconds": 7201}}, "expires_after.seconds"),
        ({"expires_after": {"seconds": 60.0}}, "expires_after.seconds"),
        ({"expires_after": {"seconds": True}}, "expires_after.seconds"),
        ({"expires_after": {"seconds": None}}, "expires_after.seconds"),
        ({"expires_after": {"anchor": "now"}}, "expires_after.anchor"),
        ({"expires_after": {"minutes": 1}}, "expires_after"),
        ({"expires_after": 600}, "expires_after"),
        ({"session": "realtime"}, "session"),
        ({"model": "duplex"}, "model"),
    ],
)
def test_what_cannot_be_read_is_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(ProtocolError) as wrong:
        read_request(body)
    assert wrong.value.param == param


def test_a_calls_own_session_goes_on_top_field_by_field() -> None:
    bound = {
        "type": "realtime",
        "instructions": "Sing.",
        "audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 0.5}}, "output": {"voice": "amy"}},
        "tools": [1],
    }
    given_now = {
        "type": "realtime",
        "audio": {"input": {"turn_detection": {"type": "semantic_vad"}}, "output": {"speed": 1.0}},
        "tools": [],
    }
    assert merged(bound, given_now) == {
        "type": "realtime",
        "instructions": "Sing.",
        "audio": {"input": {"turn_detection": {"type": "semantic_vad"}}, "output": {"voice": "amy", "speed": 1.0}},
        "tools": [],
    }
    assert merged(bound, {"audio": {"input": {"turn_detection": None}}})["audio"]["input"]["turn_detection"] is None  # type: ignore[index]
    assert merged({"a": {"type": "x", "b": 1}}, {"a": {"b": 2}}) == {"a": {"type": "x", "b": 2}}
    assert merged(None, None) is None
    assert merged(bound, None) == merged(None, bound) == bound


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["x", "y"]),
    lambda inner: st.dictionaries(st.sampled_from(["type", "a", "b"]), inner, max_size=3),
    max_leaves=8,
)
TABLES = st.dictionaries(st.sampled_from(["type", "a", "b"]), JSON, max_size=3)


@given(TABLES, TABLES)
def test_what_a_call_asks_for_it_gets(bound: dict[str, Any], asked: dict[str, Any]) -> None:
    result = merged(bound, asked)
    assert result is not None
    assert set(result) == set(bound) | set(asked)
    for name, value in asked.items():
        if isinstance(value, dict):
            assert value.items() <= result[name].items() or all(key in result[name] for key in value)
        else:
            assert result[name] == value
    assert merged(result, asked) == result, "twice is once"


async def make(house: House, secret: str | None, body: Any) -> Any:
    async with house.caller(secret) as client:
        if isinstance(body, bytes):
            return await client.post(PATH, content=body)
        return await client.post(PATH, json=body)


async def test_over_http(tmp_path: Path) -> None:
    async with opened(tmp_path, limits={"calls_per_minute_per_key": 5}, security={"max_client_secrets": 3}) as house:
        talker = house.secrets["talker"]
        for body, status, code in (
            (b"{nope", 400, "invalid_event"),
            (b"[" * 5000, 400, "invalid_event"),
            (b"x" * 1_000_000, 413, "too_large"),
            ({"session": {"type": "transcription"}}, 400, "unsupported"),
            ({"session": {"instructionz": "Sing."}}, 400, "invalid_event"),
            ({"expires_after": {"seconds": 1}}, 400, "invalid_event"),
        ):
            refusal(await make(house, talker, body), status, code)
        refusal(await make(house, None, {}), 401, "missing_api_key")
        for body in ({}, b"", {"session": {"type": "realtime"}}):
            made = await make(house, talker, body)
            assert made.status_code == 200
            assert set(made.json()) == {"value", "expires_at", "session"}
            assert made.json()["expires_at"] == int(house.unix_s) + 600
            assert made.headers["Cache-Control"] == "no-store"
        full = await make(house, talker, {})
        assert full.status_code == 429
        assert full.headers["Retry-After"] == "600"
        refusal(await make(house, made.json()["value"], {}), 403, "insufficient_scope")
        house.unix_s += 601
        refusal(await make(house, made.json()["value"], {}), 401, "invalid_api_key")
        assert (await make(house, talker, {})).status_code == 200
        assert (
            (await make(house, talker, {})).json()["error"]["message"].startswith("This key may open 5 calls a minute")
        )
