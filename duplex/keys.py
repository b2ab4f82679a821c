"""API keys: made, hashed, kept in a file, and read again whenever the file changes.

A key is 256 random bits, so what is stored is one SHA-256 of it. The slow, salted hashes that passwords need
(scrypt, Argon2) defend secrets that can be guessed; nobody guesses 256 bits, and a hash that is slow on purpose
would only make every request slow. The comparison takes the same time wherever two hashes differ, and every key of
the ring is compared, so the time of an answer says nothing about the keys there are.

The file is JSON, readable by its owner alone, replaced as a whole under a lock, and never holds a key itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from duplex.errors import ConfigError

log = logging.getLogger("duplex.keys")

PREFIX = "dx_"
SCOPES = {
    "talk": "open calls, end one's own, make client secrets",
    "metrics": "read /metrics",
    "admin": "all of that, and end anybody's call",
}
MAX_KEYS = 1000
MAX_FILE_BYTES = 1024 * 1024
MAX_SECRET_CHARS = 512
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHECK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key. Times are whole seconds since 1970. ``None`` in a limit: the server's own."""

    key_id: str
    name: str
    sha256: str
    scopes: tuple[str, ...]
    created_s: int
    expires_s: int | None = None
    sessions: int | None = None
    calls_per_minute: float | None = None

    def may(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes

    def expired(self, unix_s: float) -> bool:
        return self.expires_s is not None and unix_s >= self.expires_s


def new_secret(prefix: str = PREFIX) -> str:
    """256 random bits as text that fits into a header and into a WebSocket subprotocol (RFC 9110, token)."""
    return prefix + secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


class KeyRing:
    """The keys of one reading of the file; immutable."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self.keys = tuple(keys)

    def find(self, secret: str) -> Key | None:
        """The key that ``secret`` is, expired or not; None if it is none. Time does not depend on which."""
        found: Key | None = None
        if len(secret) > MAX_SECRET_CHARS:
            return None
        asked = digest(secret).encode()
        for key in self.keys:
            if hmac.compare_digest(asked, key.sha256.encode()):
                found = key
        return found

    def holds(self, key_id: str) -> bool:
        return any(key.key_id == key_id for key in self.keys)

    def usable(self, unix_s: float) -> bool:
        """Whether any key opens anything now."""
        return any(not key.expired(unix_s) for key in self.keys)

    def named(self, name: str) -> list[Key]:
        """By name or by id."""
        return [key for key in self.keys if name in (key.name, key.key_id)]

    # --- changes, each a new ring --------------------------------------------------------------------

    def add(
        self,
        name: str,
        *,
        scopes: Iterable[str] = ("talk",),
        created_s: float,
        expires_s: float | None = None,
        sessions: int | None = None,
        calls_per_minute: float | None = None,
    ) -> tuple[KeyRing, Key, str]:
        """A ring with one more key; the key; the secret, which nobody can be told again. Raises ``ConfigError``."""
        if self.named(name):
            raise ConfigError(f"There is a key called {name!r} already. Choose another name, or: duplex keys rotate")
        secret = new_secret()
        key = Key(
            f"key_{secrets.token_hex(6)}",
            name,
            digest(secret),
            tuple(dict.fromkeys(scopes)),
            int(created_s),
            None if expires_s is None else int(expires_s),
            sessions,
            calls_per_minute,
        )
        _check(key)
        if len(self.keys) >= MAX_KEYS:
            raise ConfigError(f"There are {MAX_KEYS} keys, the most that are kept. Revoke one first.")
        return KeyRing([*self.keys, key]), key, secret

    def revoke(self, name: str) -> KeyRing:
        """Without every key of that name or id. Raises ``ConfigError`` if there is none."""
        gone = self._existing(name)
        return KeyRing(key for key in self.keys if key not in gone)

    def rotate(self, name: str, *, unix_s: float, grace_s: float) -> tuple[KeyRing, Key, str]:
        """A new secret for ``name``; the old one works for ``grace_s`` more, so that its users can change over."""
        old = self._existing(name)
        newest = old[-1]
        until_s = int(unix_s + grace_s)
        kept = [
            replace(key, expires_s=until_s if key.expires_s is None else min(until_s, key.expires_s))
            if key in old
            else key
            for key in self.keys
        ]
        if len(kept) >= MAX_KEYS:
            raise ConfigError(f"There are {MAX_KEYS} keys, the most that are kept. Revoke one first.")
        secret = new_secret()
        key = replace(newest, key_id=f"key_{secrets.token_hex(6)}", sha256=digest(secret), created_s=int(unix_s))
        over = {key.key_id for key in kept if key.expired(unix_s)} & {key.key_id for key in old}
        return KeyRing([*(kept_key for kept_key in kept if kept_key.key_id not in over), key]), key, secret

    def _existing(self, name: str) -> list[Key]:
        found = self.named(name)
        if not found:
            known = ", ".join(dict.fromkeys(key.name for key in self.keys)) or "none yet"
            raise ConfigError(f"There is no key called {name!r}. There are: {known}.")
        return found


# --- the file ---------------------------------------------------------------------------------------


def read_keys(path: Path) -> KeyRing:
    """Raises ``ConfigError`` that says what is wrong with the file, ``FileNotFoundError`` if there is none."""
    try:
        raw = path.read_bytes()
        if len(raw) > MAX_FILE_BYTES:
            raise ValueError(f"it has more than {MAX_FILE_BYTES} bytes")
        entries = json.loads(raw)["keys"]
        keys = []
        for entry in entries:
            key = Key(**{**entry, "scopes": tuple(entry["scopes"])})
            _check(key)
            keys.append(key)
        if len({key.key_id for key in keys}) < len(keys) or len(keys) > MAX_KEYS:
            raise ValueError(f"two keys have one id, or there are more than {MAX_KEYS}")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"The key file {path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError, RecursionError, ConfigError) as error:
        raise ConfigError(
            f"The key file {path} is damaged ({type(error).__name__}: {ascii(str(error))[1:200]}). Restore it, or "
            "begin a new one: move it away, and run: duplex keys add NAME"
        ) from error
    return KeyRing(keys)


@contextlib.contextmanager
def changing(path: Path) -> Iterator[Callable[[KeyRing], None]]:
    """Holds the file's lock; what is yielded replaces the file, atomically. Raises ``ConfigError``.

    Read the ring inside, so that two changes at once do not lose one another.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (path.parent / f".{path.name}.lock").open("a+b") as handle:
            if sys.platform != "win32":
                import fcntl

                fcntl.flock(handle, fcntl.LOCK_EX)
            yield lambda ring: _write(path, ring)
    except OSError as error:
        raise ConfigError(f"The key file {path} cannot be written: {error.strerror}.") from error


def _write(path: Path, ring: KeyRing) -> None:
    document = {"keys": [{k: v for k, v in asdict(key).items() if v is not None} for key in ring.keys]}
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(document, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _check(key: Key) -> None:
    if not isinstance(key.name, str) or not 1 <= len(key.name) <= 64 or not key.name.isprintable():
        raise ConfigError("A key's name has 1 to 64 characters that can be printed.")
    unknown = [scope for scope in key.scopes if scope not in SCOPES]
    if unknown or not key.scopes:
        raise ConfigError(f"There is no scope {', '.join(map(repr, unknown)) or 'given'}. Known: {', '.join(SCOPES)}.")
    if not isinstance(key.sha256, str) or not _SHA256.fullmatch(key.sha256) or not isinstance(key.key_id, str):
        raise ConfigError(f"The key {key.name!r} has no SHA-256 or no id.")
    for limit in (key.sessions, key.calls_per_minute, key.expires_s):
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or limit < 0):
            raise ConfigError(f"The key {key.name!r} has a limit that is no number: {limit!r}.")


class KeyFile:
    """The keys as they are now. ``now_s``: a clock; the file is looked at no more than once a second.

    A file that vanished or is damaged changes nothing but the log: the keys read last stay in force.
    Raises ``ConfigError`` at the start if there is no readable file.
    """

    def __init__(self, path: Path, now_s: Callable[[], float]) -> None:
        self.path = path
        self._now_s = now_s
        try:
            self._seen = _identity(path)
            self._ring = read_keys(path)
        except FileNotFoundError as error:
            message = f"There is no key file at {path}. Make one: duplex keys add NAME --file {path}"
            raise ConfigError(message) from error
        except OSError as error:
            raise ConfigError(f"The key file {path} cannot be read: {error.strerror}.") from error
        self._looked_s = now_s()

    @property
    def ring(self) -> KeyRing:
        now_s = self._now_s()
        if now_s - self._looked_s >= _CHECK_EVERY_S:
            self._looked_s = now_s
            self._look()
        return self._ring

    def _look(self) -> None:
        try:
            seen = _identity(self.path)
            if seen == self._seen:
                return
            self._seen = seen
            self._ring = read_keys(self.path)
            log.info("read %d keys from %s", len(self._ring.keys), self.path)
        except (OSError, ConfigError) as error:
            if self._seen is not None:
                log.error("the keys stay as they were: %s", error)
            if isinstance(error, OSError):
                self._seen = None  # told once


def _identity(path: Path) -> Any:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def default_key_file() -> Path:
    """Where ``duplex keys`` writes and a server beyond loopback reads, unless told otherwise."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "duplex" / "keys.json"
