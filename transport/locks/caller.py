"""Who is calling: the address behind the proxies, the secret they brought, and their visit. Mostly pure."""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers

from duplex.keys import Key
from duplex.limits import Account, Place, TokenBucket

KEY_SUBPROTOCOL = "openai-insecure-api-key."
_MAX_HOPS = 32

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Caller:
    """``key``: the server's key behind the call, None if nobody is asked. ``credential``: SHA-256 of what was brought.

    ``session``: the session object bound to a client secret, if one was brought; ``by_token`` says so.
    ``counted``: whether the limits of keys and addresses are held against it.
    """

    address: str
    key: Key | None = None
    credential: str | None = None
    by_token: bool = False
    session: Mapping[str, Any] | None = None
    counted: bool = True


class Meter:
    """What one connection may send: bytes and messages, its own and its accounts'. Times are the clock's."""

    BURST_S = 32.0
    MESSAGE_BURST_S = 5.0

    def __init__(self, bytes_per_s: float, messages_per_s: float, accounts: Iterable[Account], now_s: float) -> None:
        self._bytes = TokenBucket(bytes_per_s * self.BURST_S, bytes_per_s, now_s)
        self._messages = TokenBucket(messages_per_s * self.MESSAGE_BURST_S, messages_per_s, now_s)
        self._accounts = tuple(accounts)

    def wait_s(self, size: int, now_s: float) -> float:
        """Counts a message of ``size`` bytes; how long to take no more."""
        return max(self._messages.borrow(1.0, now_s), *(bucket.borrow(size, now_s) for bucket in self._buckets()))

    def has_room(self, size: int, now_s: float) -> bool:
        """Counts ``size`` bytes of what cannot be slowed. False, and nothing is counted, while there is debt."""
        buckets = self._buckets()
        if any(bucket.borrow(0.0, now_s) > 0 for bucket in buckets):
            return False
        for bucket in buckets:
            bucket.borrow(size, now_s)
        return True

    def _buckets(self) -> list[TokenBucket]:
        return [self._bytes, *(account.bytes for account in self._accounts if account.bytes is not None)]


@dataclass(slots=True)
class Visit:
    """One request, and the session that may come of it. ``expelled``: why the session has to end, once it has to."""

    caller: Caller
    meter: Meter
    place: Place | None = None
    expelled: str | None = None


_current: ContextVar[Visit | None] = ContextVar("duplex_visit", default=None)


def current_visit() -> Visit | None:
    """The visit that the running task belongs to, or was started by."""
    return _current.get()


def begin_visit(visit: Visit) -> None:
    """For the running task, and those it starts."""
    _current.set(visit)


# --- secrets ----------------------------------------------------------------------------------------


def secret_of(headers: Headers, subprotocols: Sequence[str] = ()) -> str | None:
    """What a caller shows: ``Authorization: Bearer`` (or Basic, where it is the password), or a WebSocket subprotocol.

    Never the query: addresses end up in logs.
    """
    scheme, _, value = headers.get("authorization", "").strip().partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer" and value:
        return value
    if scheme.lower() == "basic":
        try:
            _, colon, password = base64.b64decode(value, validate=True).decode("utf-8").partition(":")
        except (binascii.Error, ValueError):
            return value
        return password if colon else value
    for protocol in subprotocols:
        if protocol.startswith(KEY_SUBPROTOCOL):
            return protocol.removeprefix(KEY_SUBPROTOCOL)
    return None


# --- addresses --------------------------------------------------------------------------------------


def networks(names: Iterable[str]) -> tuple[Network, ...]:
    """From addresses and networks as text. Raises ``ValueError`` naming the one that is neither."""
    return tuple(ipaddress.ip_network(name, strict=False) for name in names)


def address_of(peer: str, forwarded_for: Sequence[str], trusted: Sequence[Network]) -> str:
    """The address that a request came from.

    ``forwarded_for``: the values of ``X-Forwarded-For`` headers, in order. Each proxy appends whom it saw, so they are
    believed from the right, as long as the one who says it is trusted; what stands left of that anybody may write.
    """
    address = peer
    if not trusted or not is_in(address, trusted):
        return address
    said = [hop.strip() for value in forwarded_for for hop in value.split(",")][-_MAX_HOPS:]
    for hop in reversed(said):
        named = _without_port(hop)
        if named is None:
            return address
        address = named
        if not is_in(address, trusted):
            return address
    return address


def account_address(address: str) -> str:
    """Whom an address stands for: itself, or in IPv6 the /64 that one household or host is given (RFC 6177)."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ipaddress.ip_network((ip, 64), strict=False))
    return str(ip)


def is_in(address: str, among: Sequence[Network]) -> bool:
    """Whether it is of one of the networks; an IPv4 address that came as an IPv6 one is that IPv4 address."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return any(ip.version == network.version and ip in network for network in among)


def _without_port(hop: str) -> str | None:
    """``192.0.2.1``, ``192.0.2.1:443``, ``2001:db8::1`` or ``[2001:db8::1]:443`` as an address; None if it is none."""
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    try:
        return str(ipaddress.ip_address(hop))
    except ValueError:
        return None
