"""Files that somebody else may have written: keys, configurations, recordings."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from pathlib import Path

from recorded import Call

from duplex.config import load_config
from duplex.errors import ConfigError, DuplexError
from duplex.keys import KeyRing, changing, read_keys
from duplex.records.archive import Archive
from duplex.records.replay import replay

from .target import Target


@functools.cache
def _folder() -> Path:
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="duplex-fuzz-", dir=memory if memory.is_dir() else None))


# --- keys ----------------------------------------------------------------------------------------------------


def _run_keys(data: bytes) -> str:
    path = _folder() / "keys.json"
    path.write_bytes(data)
    ring = read_keys(path)
    ring.find("dx_something")
    ring.usable(1e9)
    with changing(path) as write:
        write(ring)
    assert read_keys(path).keys == ring.keys, "the keys are others once written"
    return str(len(ring.keys).bit_length())


@functools.cache
def _keys() -> bytes:
    ring, _, _ = KeyRing().add("laptop", created_s=1_700_000_000, expires_s=1_800_000_000, sessions=4)
    ring, _, _ = ring.add("prometheus", scopes=("metrics", "talk"), created_s=1_700_000_001, calls_per_minute=2.5)
    path = _folder() / "made.json"
    with changing(path) as write:
        write(ring)
    return path.read_bytes()


KEYS_TARGET = Target(
    "keys",
    _run_keys,
    (ConfigError,),
    lambda: [_keys(), b'{"keys": []}', _keys().decode().encode("utf-16")],
    (b'"scopes"', b'["talk"]', b'"expires_s": 1e999', b"NaN", b"Infinity", b"null", b"[]", b"{}", b'"admin"'),
)


# --- configurations ------------------------------------------------------------------------------------------

_TOML = b"""
[server]
host = "0.0.0.0"
port = 8998
doors = ["twilio", "asterisk"]

[security]
keys_file = "/etc/duplex/keys.json"
origins = ["https://app.example"]
trusted_proxies = ["127.0.0.1"]

[limits]
sessions_per_key = 4
connection_bytes_per_s = 1.5e6

[session.playout]
fade_in_ms = 20

[agent]
name = "echo"
options = { temperature = 0.5, voices = ["a", "b"], when = 2026-01-02T03:04:05Z }

[twilio]
public_url = "https://voice.example"
auth_token = "the-secret-of-the-account"
"""


def _run_config(data: bytes) -> str:
    """A file; then its lines as ``--set`` and as variables of the environment."""
    path = _folder() / "duplex.toml"
    path.write_bytes(data)
    outcomes, lines = [], data.decode("utf-8", "replace").replace("\0", "").splitlines()[:20]
    for attempted in ("file", "set", "environment"):
        try:
            match attempted:
                case "file":
                    load_config(path, {})
                case "set":
                    load_config(None, {}, lines)
                case _:
                    load_config(None, dict(_variable(line) for line in lines))
            outcomes.append("ok")
        except ConfigError as error:
            outcomes.append(str(error))
    shown = [outcome for outcome in outcomes if outcome.startswith("Setting") and "secret" in outcome]
    assert not shown, f"a secret in an error: {shown}"
    return " ".join(outcome[:60] for outcome in outcomes)


def _variable(line: str) -> tuple[str, str]:
    name, _, value = line.partition("=")
    return f"DUPLEX_{name.strip().upper().replace('.', '__')}", value.strip()


CONFIG_TARGET = Target(
    "config",
    _run_config,
    (),
    lambda: [
        _TOML,
        b'twilio.auth_token={"secret": 1}',
        b'server.port=9000\nagent.options={"a": [1]}\nsession=5',
        b"server = 5\n[server]\nport=1",
    ],
    (b"[", b"]]", b"[[server]]", b'"""', b"inf", b"nan", b"1979-05-27", b"{", b"=", b"session.playout.", b"\\u0000"),
    max_bytes=20_000,
)


# --- recordings ----------------------------------------------------------------------------------------------


@functools.cache
def _recorded(redact: str) -> Path:
    return Call(total_s=3.0, speech=((0.3, 0.8),)).record(_folder() / f"recorded-{redact}", redact=redact).directory


def _run_recording(data: bytes) -> str:
    """The first byte says whether sound was kept; then the manifest, NUL, and the journal (its sound as recorded)."""
    redact = ("none", "audio")[data[0] % 2 if data else 0]
    manifest, _, journal = data[1:].partition(b"\0")
    directory = _folder() / f"changed-{redact}"
    if not directory.exists():
        shutil.copytree(_recorded(redact), directory)
    (directory / "manifest.json").write_bytes(manifest)
    (directory / "journal.jsonl").write_bytes(journal)
    result = replay(Archive(directory, check=False))
    return f"{result.same} {len(result.events).bit_length()} {len(result.notes)}"


def _recordings() -> list[bytes]:
    made = []
    for first, redact in (b"\0", "none"), (b"\1", "audio"):
        manifest, journal = ((_recorded(redact) / name).read_bytes() for name in ("manifest.json", "journal.jsonl"))
        short = json.dumps({**json.loads(manifest), "config": {}, "libraries": {}, "models": []}).encode()
        made.append(first + short + b"\0" + journal)
    return made


RECORDING_TARGET = Target(
    "recording",
    _run_recording,
    (DuplexError,),
    _recordings,
    (b'"kind": "tick"', b'"us": [', b'"heard": [0, "r"]', b'"n": 1000000000000', b'"levels": []', b'"request": {"is": ',
     b'"state": "recording"', b'"redact": "all"', b'"lead_packets": 1e9', b'"collected": [[]]', b'"file": "../x"'),
    cpu_s=6.0,
    peak_mb=128.0,
    max_bytes=200_000,
)  # fmt: skip


def _run_archive(data: bytes) -> str:
    """The manifest of a recording whose files are held against it."""
    directory = _folder() / "manifest"
    if not directory.exists():
        shutil.copytree(_recorded("none"), directory)
    (directory / "manifest.json").write_bytes(data)
    archive = Archive(directory)
    for name in archive.manifest.files:
        assert (directory / name).resolve().is_relative_to(directory.resolve()), "a file of elsewhere was read"
    return archive.manifest.state


ARCHIVE_TARGET = Target(
    "archive",
    _run_archive,
    (DuplexError,),
    lambda: [(_recorded("none") / "manifest.json").read_bytes()],
    (
        b'"../',
        b'"/etc/hostname": {"size_bytes": 1, "sha256": ""}',
        b'"format": 2',
        b'"files": {',
        b"null",
        b"{}",
        b"[]",
    ),
)

TARGETS = (KEYS_TARGET, CONFIG_TARGET, RECORDING_TARGET, ARCHIVE_TARGET)
