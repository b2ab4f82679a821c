"""API keys: made, kept as hashes, found in constant time's way, rotated, and read again when the file changes."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duplex import keys
from duplex.cli import main
from duplex.errors import ConfigError
from duplex.keys import Key, KeyFile, KeyRing, changing, digest, new_secret, read_keys


def written(path: Path, ring: KeyRing) -> Path:
    with changing(path) as write:
        write(ring)
    return path


def ring_of(*names: str, **facts: object) -> tuple[KeyRing, list[str]]:
    ring, secrets = KeyRing(), []
    for name in names:
        ring, _, secret = ring.add(name, created_s=1000, **facts)  # type: ignore[arg-type]
        secrets.append(secret)
    return ring, secrets


def test_a_key_is_found_by_its_secret_and_by_nothing_else() -> None:
    ring, (first, second) = ring_of("first", "second")
    assert [key.name for key in (ring.find(first), ring.find(second)) if key] == ["first", "second"]
    for wrong in ("", first[:-1], first + "x", first.swapcase(), ring.keys[0].sha256, "x" * 100_000, "\ud800"):
        assert ring.find(wrong) is None


def test_a_secret_has_256_bits_and_fits_into_a_header_and_a_subprotocol() -> None:
    secrets = {new_secret() for _ in range(50)}
    assert len(secrets) == 50
    for secret in secrets:
        assert len(secret) >= 3 + 43  # 43 characters of base64 are 258 bits
        assert set(secret) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
    assert digest("dx_x") == hashlib.sha256(b"dx_x").hexdigest()


def test_every_key_is_compared_and_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ring, secrets = ring_of("a", "b", "c")
    compared: list[bytes] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for secret in (secrets[0], "wrong"):
        compared.clear()
        ring.find(secret)
        assert compared == [key.sha256.encode() for key in ring.keys]


@given(st.text(max_size=40))
def test_any_name_is_taken_or_refused_with_a_reason(name: str) -> None:
    if 1 <= len(name) <= 64 and name.isprintable():
        ring, key, _ = KeyRing().add(name, created_s=0)
        assert ring.named(name) == [key]
    else:
        with pytest.raises(ConfigError, match="1 to 64 characters"):
            KeyRing().add(name, created_s=0)


def test_what_cannot_be_is_refused() -> None:
    ring, _ = ring_of("taken")
    for name, scopes, says in (
        ("taken", ["talk"], "already"),
        ("new", ["fly"], "'fly'.*talk, metrics, admin"),
        ("", ["talk"], "1 to 64"),
        ("new", [], "Known"),
    ):
        with pytest.raises(ConfigError, match=says):
            ring.add(name, scopes=scopes, created_s=0)
    with pytest.raises(ConfigError, match=r"no key called 'other'\. There are: taken"):
        ring.revoke("other")
    full = KeyRing(Key(str(n), str(n), "0" * 64, ("talk",), 0) for n in range(keys.MAX_KEYS))
    with pytest.raises(ConfigError, match="1000 keys"):
        full.add("one more", created_s=0)


def test_scopes_and_expiry() -> None:
    _, talker, _ = KeyRing().add("talker", created_s=0, expires_s=100)
    _, boss, _ = KeyRing().add("boss", scopes=["admin"], created_s=0)
    assert [talker.may(scope) for scope in ("talk", "metrics", "admin")] == [True, False, False]
    assert all(boss.may(scope) for scope in ("talk", "metrics", "admin"))
    assert not talker.expired(99.9)
    assert talker.expired(100)
    assert not boss.expired(1e12)


def test_rotation_keeps_the_old_secret_for_a_while_and_the_rest_for_ever() -> None:
    ring, (old,) = ring_of("bot", scopes=["metrics"], sessions=3)
    rotated, key, new = ring.rotate("bot", unix_s=5000, grace_s=60)
    found = rotated.find(old)
    assert found is not None
    assert found.expires_s == 5060
    assert rotated.find(new) == key
    assert (key.scopes, key.sessions, key.expires_s, key.created_s) == (("metrics",), 3, None, 5000)
    again, _, newest = rotated.rotate("bot", unix_s=6000, grace_s=60)  # the first is over, and goes
    assert again.find(old) is None
    assert again.find(new) is not None
    assert again.find(newest) is not None
    assert again.revoke("bot").keys == ()
    at_once, _, _ = ring.rotate("bot", unix_s=5000, grace_s=0)
    assert at_once.find(old) is None
    short, _, _ = ring_of("bot", expires_s=5010)[0].rotate("bot", unix_s=5000, grace_s=60)
    assert short.keys[0].expires_s == 5010, "rotating never makes a key live longer"


# --- the file -------------------------------------------------------------------------------------------


def test_the_file_holds_hashes_is_its_owners_alone_and_is_replaced_whole(tmp_path: Path) -> None:
    ring, (secret,) = ring_of("a name with “quotes” and 😀", expires_s=9)
    path = written(tmp_path / "deep" / "keys.json", ring)
    assert read_keys(path).keys == ring.keys
    assert secret.encode() not in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".keys.json.lock", "keys.json"]


def test_two_who_change_it_at_once_lose_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "keys.json", KeyRing())

    def add(name: str) -> None:
        with changing(path) as write:
            write(read_keys(path).add(name, created_s=0)[0])

    threads = [threading.Thread(target=add, args=(f"key {n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_keys(path).keys) == 8


GOOD = {"key_id": "key_1", "name": "n", "sha256": "a" * 64, "scopes": ["talk"], "created_s": 1}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nope",
        "[]",
        '{"keys": 3}',
        '{"keys": [3]}',
        '{"keys": [{}]}',
        json.dumps({"keys": [GOOD, GOOD]}),
        json.dumps({"keys": [GOOD | {"sha256": "short"}]}),
        json.dumps({"keys": [GOOD | {"scopes": "talk"}]}),
        json.dumps({"keys": [GOOD | {"expires_s": "soon"}]}),
        json.dumps({"keys": [GOOD | {"surprise": 1}]}),
        "[" * 100_000,
        " " * (keys.MAX_FILE_BYTES + 1),
    ],
)
def test_a_damaged_file_says_what_to_do(text: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"is damaged.*duplex keys add"):
        read_keys(path)


def test_a_running_server_sees_a_changed_file_within_a_second(tmp_path: Path) -> None:
    now_s = 0.0
    path = written(tmp_path / "keys.json", ring_of("one")[0])
    file = KeyFile(path, lambda: now_s)
    ring, secrets = ring_of("one", "two")
    written(path, ring)
    assert file.ring.find(secrets[1]) is None, "it is not looked at for every request"
    now_s = 1.0
    assert file.ring.find(secrets[1]) is not None
    written(path, ring.revoke("two"))
    now_s = 2.0
    assert file.ring.find(secrets[1]) is None


def test_a_file_that_breaks_or_goes_changes_nothing_but_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 0.0
    ring, (secret,) = ring_of("one")
    path = written(tmp_path / "keys.json", ring)
    file = KeyFile(path, lambda: now_s)
    with caplog.at_level(logging.ERROR, "duplex.keys"):
        for second, spoil in enumerate((lambda: path.write_text("{"), path.unlink, lambda: None), start=1):
            spoil()
            now_s = float(second)
            assert file.ring.find(secret) is not None
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["the keys stay as they were"] * 2
    new, (other,) = ring_of("other")
    written(path, new)
    now_s = 10.0
    assert file.ring.find(other) is not None


def test_a_server_does_not_start_without_the_file_it_was_told_of(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no key file at .*none\.json.*duplex keys add NAME --file"):
        KeyFile(tmp_path / "none.json", lambda: 0.0)


# --- the command --------------------------------------------------------------------------------------------


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.json"

    def run(*argv: str, status: int = 0) -> str:
        assert main(["keys", *argv, "--file", str(path)]) == status
        said = capsys.readouterr()
        return said.out + said.err

    assert "no keys" in run("list")
    secret = run("add", "call centre", "--scope", "talk", "--scope", "metrics", "--sessions", "4").splitlines()[0]
    key = read_keys(path).find(secret)
    assert key is not None
    assert (key.name, key.scopes, key.sessions, key.expires_s) == ("call centre", ("talk", "metrics"), 4, None)
    run("add", "guest", "--expires", "12h", "--calls-per-minute", "3")
    listed = run("list")
    for word in ("call centre", "talk, metrics", "for ever", "4 calls", "guest", "3 a minute", key.key_id):
        assert word in listed
    assert secret not in listed
    assert key.sha256 not in listed
    rotated = run("rotate", "call centre", "--grace", "2d")
    assert rotated.splitlines()[0] != secret
    assert "The old secret works until" in rotated
    assert read_keys(path).find(rotated.splitlines()[0]) is not None
    assert "Revoked guest" in run("revoke", "guest")
    assert "no key called 'guest'. There are: call centre." in run("revoke", "guest", status=1)
    assert "'soon' is no time span" in run("add", "x", "--expires", "soon", status=1)
    assert "already" in run("add", "call centre", status=1)


def test_the_command_finds_the_servers_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    assert main(["keys", "add", "mine"]) == 0
    assert [key.name for key in read_keys(tmp_path / "home" / "duplex" / "keys.json").keys] == ["mine"]
    assert stat.S_IMODE(os.stat(tmp_path / "home" / "duplex").st_mode) == 0o700
    config = tmp_path / "duplex.toml"
    config.write_text(f'[security]\nkeys_file = "{tmp_path}/there.json"\n')
    assert main(["keys", "add", "other", "--config", str(config)]) == 0
    assert [key.name for key in read_keys(tmp_path / "there.json").keys] == ["other"]
