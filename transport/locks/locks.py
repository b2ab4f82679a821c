"""What the doors are locked with: keys, client secrets and limits, and the decisions made of them. No HTTP but errors.

Every decision is one of three: who is calling (``identify``), may they do that (``require``), and is there room for one
more of theirs (``enter``). Each raises a ``RequestError`` with the words for the caller.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from http import HTTPStatus

from starlette.datastructures import Headers

from duplex.clock import Clock
from duplex.config import Config
from duplex.errors import ConfigError, LimitError
from duplex.exposure import key_file_of, limits_in_force
from duplex.keys import KeyFile, digest
from duplex.limits import Account, Accounts, Allowance
from duplex.metrics import Metrics
from duplex.session import Session
from duplex.transport.http_errors import RequestError, too_many
from duplex.transport.locks.caller import Caller, Meter, Visit, account_address, address_of, networks, secret_of
from duplex.transport.locks.client_secrets import PREFIX, ClientSecrets
from duplex.transport.locks.watched_line import watched

_MAX_CALLS_KNOWN = 10_000


class Locks:
    """One for a server. ``unix_s``: seconds since 1970, for what expires. Raises ``ConfigError``."""

    def __init__(
        self, config: Config, clock: Clock, metrics: Metrics, *, unix_s: Callable[[], float] = time.time
    ) -> None:
        self.clock, self._metrics, self._unix_s = clock, metrics, unix_s
        self.limits = limits_in_force(config)
        path = key_file_of(config)
        self.keys = None if path is None else KeyFile(path, clock.now)
        if self.keys is not None and not self.keys.ring.usable(unix_s()):
            raise ConfigError(f"{path} holds no key that is still good. Make one: duplex keys add NAME --file {path}")
        self.secrets = ClientSecrets(config.security.max_client_secrets, unix_s)
        self.origins = config.security.origins
        try:
            self._proxies = networks(config.security.trusted_proxies)
        except ValueError as error:
            raise ConfigError(f"security.trusted_proxies: {error}.") from error
        self._accounts = Accounts()
        self._openers: OrderedDict[str, str | None] = OrderedDict()  # call → the credential that opened it

    # --- who ------------------------------------------------------------------------------------------

    def identify(self, headers: Headers, subprotocols: Sequence[str], peer: str) -> Caller:
        """Raises ``RequestError``: 401 for a secret that is missing where one is needed, or wrong; 429 for too many."""
        address = address_of(peer, headers.getlist("x-forwarded-for"), self._proxies)
        secret = secret_of(headers, subprotocols)
        if self.keys is None and (secret is None or not secret.startswith(PREFIX)):
            return Caller(address)  # nobody is asked; a client that must send some key may send any
        if secret is None:
            raise self._unauthorized(
                "missing_api_key",
                "This server asks for a key. Send it as: Authorization: Bearer KEY. A page sends it as WebSocket "
                "subprotocol openai-insecure-api-key.KEY, and had better use a client secret.",
            )
        caller = self._by_token(secret, address) if secret.startswith(PREFIX) else self._by_key(secret, address)
        if caller is None:
            self._count_failure(address)
            raise self._unauthorized(
                "invalid_api_key", "This key or client secret is unknown, was revoked, or has expired."
            )
        return caller

    def vouched_for(self, headers: Headers, peer: str) -> Caller:
        """One whom the door behind us checks: it may call for many from one address, so nothing of it is counted."""
        return Caller(address_of(peer, headers.getlist("x-forwarded-for"), self._proxies), counted=False)

    def _by_key(self, secret: str, address: str) -> Caller | None:
        assert self.keys is not None
        key = self.keys.ring.find(secret)
        if key is None or key.expired(self._unix_s()):
            return None
        return Caller(address, key, digest(secret))

    def _by_token(self, value: str, address: str) -> Caller | None:
        token = self.secrets.find(value)
        if token is None or (token.key is not None and not self._holds(token.key.key_id)):
            return None
        return Caller(address, token.key, token.credential, by_token=True, session=token.session)

    def _holds(self, key_id: str) -> bool:
        return self.keys is not None and self.keys.ring.holds(key_id)

    def _count_failure(self, address: str) -> None:
        """Raises ``RequestError`` (429) after too many wrong keys. A right one passes all the same: it is not guessed,
        and somebody else behind the same address must not be able to lock its owner out."""
        allowance = Allowance("your address", calls_per_minute=self.limits.failures_per_minute)
        now_s = self.clock.now()
        wrong = self._accounts.account(f"failures:{account_address(address)}", allowance, now_s).calls
        if wrong is not None and (wait_s := wrong.take(1.0, now_s)) > 0:
            raise too_many(LimitError("Too many wrong keys came from your address. Try again later.", wait_s))

    def _unauthorized(self, code: str, message: str) -> RequestError:
        self._metrics.sessions_refused.labels("key").inc()
        challenge = {"WWW-Authenticate": 'Bearer realm="duplex"'}
        return RequestError(HTTPStatus.UNAUTHORIZED, code, message, headers=challenge)

    # --- what ---------------------------------------------------------------------------------------

    def require(self, caller: Caller, scope: str, *, token_may: bool) -> None:
        """Raises ``RequestError`` (403) unless ``caller`` may do what needs ``scope``."""
        if caller.by_token and not token_may:
            raise RequestError(
                HTTPStatus.FORBIDDEN, "insufficient_scope", "A client secret opens calls, and does nothing else."
            )
        if caller.key is not None and not caller.key.may(scope):
            raise RequestError(
                HTTPStatus.FORBIDDEN,
                "insufficient_scope",
                f"This needs a key of scope {scope!r}; yours has: {', '.join(caller.key.scopes)}. Keys are given "
                "scopes with: duplex keys add --scope",
            )

    def opened(self, call_id: str, caller: Caller) -> None:
        """Remembers who may hang up."""
        self._openers[call_id] = caller.credential
        if len(self._openers) > _MAX_CALLS_KNOWN:
            self._openers.popitem(last=False)

    def may_end(self, call_id: str, caller: Caller) -> bool:
        """One who opened the call, or whose key may do everything; anybody where nobody is asked for a key."""
        if self.keys is None or (caller.key is not None and not caller.by_token and caller.key.may("admin")):
            return True
        return call_id in self._openers and self._openers[call_id] == caller.credential

    def still_welcome(self, visit: Visit) -> str | None:
        """Why a caller whose session is up is welcome no more."""
        key = visit.caller.key
        return None if key is None or self._holds(key.key_id) else "The key of this call was revoked."

    # --- how much -------------------------------------------------------------------------------------

    def visit(self, caller: Caller) -> Visit:
        limits, now_s = self.limits, self.clock.now()
        meter = Meter(limits.connection_bytes_per_s, limits.connection_events_per_s, self._accounts_of(caller), now_s)
        return Visit(caller, meter)

    def enter(self, visit: Visit) -> None:
        """A place for one more call. Raises ``RequestError`` (429)."""
        try:
            visit.place = self._accounts.enter(self._accounts_of(visit.caller), self.clock.now())
        except LimitError as error:
            self._metrics.sessions_refused.labels("limit").inc()
            raise too_many(error) from error

    def count_request(self, caller: Caller) -> None:
        """One more request of the kind that is counted with the calls. Raises ``LimitError``."""
        self._accounts.count_call(self._accounts_of(caller), self.clock.now())

    def sessions(self, make_session: Callable[..., Session]) -> Callable[..., Session]:
        """``make_session``, with lines that hold the limits; as it is where there are none to hold."""
        limits = self.limits
        held = (limits.session_s, limits.idle_s, limits.sessions_per_key, limits.sessions_per_address)
        if self.keys is None and not any(held):
            return make_session
        return watched(make_session, limits, self.still_welcome)

    def _accounts_of(self, caller: Caller) -> list[Account]:
        limits, now_s = self.limits, self.clock.now()
        found: list[Account] = []
        if not caller.counted:
            return found
        if (key := caller.key) is not None:
            sessions = limits.sessions_per_key if key.sessions is None else key.sessions or None
            calls = limits.calls_per_minute_per_key if key.calls_per_minute is None else key.calls_per_minute or None
            mine = Allowance("this key", sessions, calls, limits.bytes_per_minute)
            found.append(self._accounts.account(f"key:{key.name}", mine, now_s))
        if caller.key is None or caller.by_token:  # a key may stand for a server that calls for many
            mine = Allowance(
                f"your address ({caller.address})",
                limits.sessions_per_address,
                limits.calls_per_minute_per_address,
                limits.bytes_per_minute,
            )
            found.append(self._accounts.account(f"address:{account_address(caller.address)}", mine, now_s))
        return found
