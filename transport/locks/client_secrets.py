"""Client secrets: tokens for browsers, which open calls for a while and do nothing else.

A page cannot keep a key, so its server asks us for a token (``POST /v1/realtime/client_secrets``) and hands that on.
A token may bring a session configuration: the calls opened with it begin so. Tokens live in memory, so many of them
and not beyond a restart; each opens any number of calls until it expires, which ends no call that is up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from duplex.errors import InvalidEventError, LimitError, UnsupportedError
from duplex.keys import MAX_SECRET_CHARS, Key, digest, new_secret

PREFIX = "ek_"
LIFETIME_S = 600
SHORTEST_S, LONGEST_S = 10, 7200


@dataclass(frozen=True, slots=True)
class ClientSecret:
    """``session``: the session object it was made with. ``key``: who made it, if keys are asked for."""

    credential: str
    expires_s: int
    session: Mapping[str, Any] | None
    key: Key | None


class ClientSecrets:
    """``unix_s``: seconds since 1970. Looked up by hash: what its timing tells is of no use without the 256 bits."""

    def __init__(self, max_secrets: int, unix_s: Callable[[], float]) -> None:
        self._max, self._unix_s = max_secrets, unix_s
        self._secrets: dict[str, ClientSecret] = {}

    def __len__(self) -> int:
        return len(self._secrets)

    def make(self, session: Mapping[str, Any] | None, lifetime_s: int, key: Key | None) -> tuple[str, ClientSecret]:
        """The token and what is known of it; it does not outlive its key. Raises ``LimitError`` when there are many."""
        now_s = self._unix_s()
        if len(self._secrets) >= self._max:
            self._secrets = {name: kept for name, kept in self._secrets.items() if kept.expires_s > now_s}
        if len(self._secrets) >= self._max:
            wait_s = min(kept.expires_s for kept in self._secrets.values()) - now_s
            raise LimitError(f"{self._max} client secrets are in use. Try again in {math.ceil(wait_s)} s.", wait_s)
        expires_s = math.floor(now_s) + lifetime_s
        if key is not None and key.expires_s is not None:
            expires_s = min(expires_s, key.expires_s)
        value = new_secret(PREFIX)
        secret = ClientSecret(digest(value), expires_s, session, key)
        self._secrets[secret.credential] = secret
        return value, secret

    def find(self, value: str) -> ClientSecret | None:
        """None for one that never was, or has expired."""
        if len(value) > MAX_SECRET_CHARS:
            return None
        secret = self._secrets.get(digest(value))
        if secret is not None and secret.expires_s <= self._unix_s():
            del self._secrets[secret.credential]
            return None
        return secret


def read_request(body: Mapping[str, Any]) -> tuple[dict[str, Any] | None, int]:
    """The session object (not looked into) and the lifetime in seconds. Raises ``ProtocolError``'s kinds."""
    unknown = sorted(set(body) - {"expires_after", "session"})
    if unknown:
        raise InvalidEventError(
            f"There is no field {unknown[0][:80]!r} here. Known: expires_after, session.", param=unknown[0][:80]
        )
    session = body.get("session")
    if session is not None and not isinstance(session, dict):
        raise InvalidEventError("session must be an object.", param="session")
    after = body.get("expires_after")
    if after is None:
        return session, LIFETIME_S
    if not isinstance(after, dict):
        raise InvalidEventError("expires_after must be an object.", param="expires_after")
    if after.get("anchor", "created_at") != "created_at":
        raise UnsupportedError('The only anchor is "created_at".', param="expires_after.anchor")
    if extra := sorted(set(after) - {"anchor", "seconds"}):
        raise InvalidEventError(
            f"expires_after has no field {extra[0][:80]!r}. Known: anchor, seconds.", param="expires_after"
        )
    seconds = after.get("seconds", LIFETIME_S)
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not SHORTEST_S <= seconds <= LONGEST_S:
        raise InvalidEventError(
            f"expires_after.seconds must be a whole number from {SHORTEST_S} to {LONGEST_S}.",
            param="expires_after.seconds",
        )
    return session, seconds


def merged(defaults: Mapping[str, Any] | None, session: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """``session`` on top of ``defaults``, table by table; None if there is neither."""
    if defaults is None or session is None:
        given = session if defaults is None else defaults
        return None if given is None else dict(given)
    result = dict(defaults)
    for name, value in session.items():
        below = result.get(name)
        # A table that names another kind (of turn detection, of format) is another table.
        if isinstance(below, dict) and isinstance(value, dict) and _is_more_of(below, value):
            result[name] = merged(below, value)
        else:
            result[name] = value
    return result


def _is_more_of(below: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    return "type" not in value or value["type"] == below.get("type")
