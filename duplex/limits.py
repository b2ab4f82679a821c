"""Who may have how much: token buckets, and accounts that hold them. Pure: the time is an argument.

A bucket holds up to ``capacity`` tokens and gets ``per_s`` more each second. ``take`` refuses what is not there;
``borrow`` gives it and says how long to wait for the debt to be paid, which is how a stream is slowed and not broken.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from duplex.errors import LimitError

MAX_ACCOUNTS = 10_000


class TokenBucket:
    """Full at ``now_s``. Times are seconds of any one clock; one that goes back counts as standing still."""

    def __init__(self, capacity: float, per_s: float, now_s: float) -> None:
        if capacity <= 0 or per_s <= 0:
            raise ValueError(f"a bucket of {capacity} with {per_s} a second never gives anything")
        self.capacity, self.per_s = capacity, per_s
        self._tokens, self._at_s = capacity, now_s

    def take(self, amount: float, now_s: float) -> float:
        """0, and the tokens are taken; or the seconds until they could be, and none are. inf: they never fit."""
        self._fill(now_s)
        if amount <= self._tokens:
            self._tokens -= amount
            return 0.0
        return math.inf if amount > self.capacity else (amount - self._tokens) / self.per_s

    def borrow(self, amount: float, now_s: float) -> float:
        """Takes them in any case; the seconds until the bucket is out of debt."""
        self._fill(now_s)
        self._tokens -= amount
        return max(0.0, -self._tokens / self.per_s)

    def _fill(self, now_s: float) -> None:
        passed_s = max(0.0, now_s - self._at_s)
        self._tokens = min(self.capacity, self._tokens + passed_s * self.per_s)
        self._at_s = max(self._at_s, now_s)


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one account may use; None: no limit. ``whose``: for messages, "this key" or "this address"."""

    whose: str
    sessions: int | None = None
    calls_per_minute: float | None = None
    bytes_per_minute: float | None = None


@dataclass(slots=True)
class Account:
    allowance: Allowance
    calls: TokenBucket | None
    bytes: TokenBucket | None
    waiting: list[Place] = field(default_factory=list)
    live: int = 0

    def held(self, now_s: float) -> int:
        """Places in use: sessions, and calls being set up that may still come."""
        self.waiting = [place for place in self.waiting if place.waits_until_s > now_s]
        return self.live + len(self.waiting)


class Place:
    """One call's place in its accounts: kept from the request until the session ends, or for ``SETUP_S``.

    ``begin`` when the session has begun, ``end`` when it is over or never will be; both any number of times.
    """

    SETUP_S = 30.0

    def __init__(self, accounts: Iterable[Account], now_s: float) -> None:
        self._accounts = tuple(accounts)
        self.waits_until_s = now_s + self.SETUP_S
        self._live = self._over = False
        for account in self._accounts:
            account.waiting.append(self)

    def begin(self) -> None:
        if self._live or self._over:
            return
        self._live = True
        for account in self._accounts:
            self._leave_waiting(account)
            account.live += 1

    def end(self) -> None:
        if self._over:
            return
        self._over = True
        for account in self._accounts:
            if self._live:
                account.live -= 1
            else:
                self._leave_waiting(account)

    def _leave_waiting(self, account: Account) -> None:
        if self in account.waiting:
            account.waiting.remove(self)


class Accounts:
    """An account for each name, made at its first use. At most ``MAX_ACCOUNTS``: the longest unused go first."""

    def __init__(self, max_accounts: int = MAX_ACCOUNTS) -> None:
        self._max = max_accounts
        self._accounts: OrderedDict[str, Account] = OrderedDict()

    def __len__(self) -> int:
        return len(self._accounts)

    def account(self, name: str, allowance: Allowance, now_s: float) -> Account:
        account = self._accounts.get(name)
        if account is None or account.allowance != allowance:
            fresh = Account(allowance, _a_minute(allowance.calls_per_minute, now_s), None)
            fresh.bytes = _a_minute(allowance.bytes_per_minute, now_s)
            if account is not None:  # the limits changed, not who is there
                account.allowance, account.calls, account.bytes = fresh.allowance, fresh.calls, fresh.bytes
            else:
                account = self._accounts[name] = fresh
        self._accounts.move_to_end(name)
        self._forget(now_s)
        return account

    def enter(self, accounts: Iterable[Account], now_s: float) -> Place:
        """A place for one more call. Raises ``LimitError``; a refused call costs nothing but its attempt."""
        accounts = list(accounts)
        self.count_call(accounts, now_s)
        for account in accounts:
            most = account.allowance.sessions
            if most is not None and account.held(now_s) >= most:
                message = f"{account.allowance.whose} has {most} calls up, as many as it may. End one first."
                raise LimitError(message[0].upper() + message[1:], 5.0)
        return Place(accounts, now_s)

    def count_call(self, accounts: Iterable[Account], now_s: float) -> None:
        """Raises ``LimitError`` when one account asked too often."""
        for account in accounts:
            wait_s = account.calls.take(1.0, now_s) if account.calls is not None else 0.0
            if wait_s > 0:
                message = (
                    f"{account.allowance.whose} may open {account.allowance.calls_per_minute:g} calls a minute. "
                    f"Try again in {math.ceil(wait_s)} s."
                )
                raise LimitError(message[0].upper() + message[1:], wait_s)

    def _forget(self, now_s: float) -> None:
        while len(self._accounts) > self._max:
            idle = next((name for name, account in self._accounts.items() if not account.held(now_s)), None)
            if idle is None:
                return  # each of them is in use: bounded by the sessions of the server
            del self._accounts[idle]


def _a_minute(amount: float | None, now_s: float) -> TokenBucket | None:
    """A minute's worth at once, and the same again each minute."""
    return None if amount is None else TokenBucket(max(1.0, amount), amount / 60.0, now_s)
