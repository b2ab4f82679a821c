"""``duplex keys add|list|revoke|rotate``: the keys that callers need. A running server notices within a second."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from duplex.config import load_config
from duplex.errors import ConfigError
from duplex.keys import SCOPES, Key, KeyRing, changing, default_key_file, read_keys

DEFAULT_GRACE = "1h"
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(\d{1,9})([smhdw])")
_LONGEST_S = 100 * 365 * 86_400


def add_parser(subparsers: Any) -> None:
    """Add ``keys`` to the ``duplex`` command (``subparsers``: what ``ArgumentParser.add_subparsers`` returns)."""
    parser = subparsers.add_parser(
        "keys", help="make, list, revoke and rotate API keys", description="The keys that callers of a server need."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="add|list|revoke|rotate")

    adding = actions.add_parser("add", help="make a key; it is shown once")
    adding.add_argument("name", help="who or what it is for")
    adding.add_argument(
        "--scope",
        action="append",
        choices=SCOPES,
        help="; ".join(f"{scope}: {may}" for scope, may in SCOPES.items()) + ". May be given several times (talk)",
    )
    adding.add_argument("--expires", metavar="TIME", help="for how long it is good, as 90d or 12h (for ever)")
    adding.add_argument("--sessions", type=int, help="calls at a time (the server's limits.sessions_per_key)")
    adding.add_argument("--calls-per-minute", type=float, help="the server's limits.calls_per_minute_per_key")
    adding.set_defaults(run=lambda args: _add(args, time.time))

    listing = actions.add_parser("list", help="which keys there are")
    listing.set_defaults(run=lambda args: _list(args, time.time))

    revoking = actions.add_parser("revoke", help="make a key worthless now; calls opened with it end")
    revoking.add_argument("name", help="its name or id")
    revoking.set_defaults(run=_revoke)

    rotating = actions.add_parser("rotate", help="make a new secret for a name; the old one works a while longer")
    rotating.add_argument("name", help="its name or id")
    rotating.add_argument("--grace", default=DEFAULT_GRACE, metavar="TIME", help="for how long (%(default)s; 0s: not)")
    rotating.set_defaults(run=lambda args: _rotate(args, time.time))

    for action in (adding, listing, revoking, rotating):
        action.add_argument("--file", type=Path, help=f"the key file ({default_key_file()}, or as --config says)")
        action.add_argument("--config", type=Path, metavar="FILE", help="the server's TOML file of settings")


def _add(args: argparse.Namespace, unix_s: Callable[[], float]) -> int:
    now_s, path = unix_s(), _file(args)
    with changing(path) as write:
        ring, key, secret = _ring(path).add(
            args.name,
            scopes=args.scope or ["talk"],
            created_s=now_s,
            expires_s=None if args.expires is None else now_s + _seconds(args.expires),
            sessions=args.sessions,
            calls_per_minute=args.calls_per_minute,
        )
        write(ring)
    _show(key, secret, path)
    return 0


def _list(args: argparse.Namespace, unix_s: Callable[[], float]) -> int:
    path = _file(args)
    ring = _ring(path)
    if not ring.keys:
        print(f"There are no keys in {path}. Make one: duplex keys add NAME")
        return 0
    table = Table(box=None, pad_edge=False)
    for column in ("name", "id", "scopes", "made", "good until", "limits"):
        table.add_column(column, overflow="fold")
    for key in ring.keys:
        until = "for ever" if key.expires_s is None else _date(key.expires_s)
        limits = [f"{key.sessions} calls"] if key.sessions is not None else []
        limits += [f"{key.calls_per_minute:g} a minute"] if key.calls_per_minute is not None else []
        table.add_row(
            key.name,
            key.key_id,
            ", ".join(key.scopes),
            _date(key.created_s),
            f"{until} (over)" if key.expired(unix_s()) else until,
            ", ".join(limits) or "the server's",
        )
    console = Console()
    if not console.is_terminal:
        console.width = 240  # for grep and the like: a key a line
    console.print(table, markup=False)
    return 0


def _revoke(args: argparse.Namespace) -> int:
    path = _file(args)
    with changing(path) as write:
        write(_ring(path).revoke(args.name))
    print(f"Revoked {args.name}. A running server refuses it from now on and ends its calls.")
    return 0


def _rotate(args: argparse.Namespace, unix_s: Callable[[], float]) -> int:
    path, grace_s = _file(args), _seconds(args.grace)
    with changing(path) as write:
        ring, key, secret = _ring(path).rotate(args.name, unix_s=unix_s(), grace_s=grace_s)
        write(ring)
    _show(key, secret, path)
    print(f"The old secret works until {_date(unix_s() + grace_s)}." if grace_s else "The old secret works no more.")
    return 0


def _show(key: Key, secret: str, path: Path) -> None:
    print(secret)
    print(
        f"\nThis is the key {key.name!r} ({', '.join(key.scopes)}). It is shown only now; {path} holds its hash. "
        "Send it as:  Authorization: Bearer KEY"
    )


def _file(args: argparse.Namespace) -> Path:
    path: Path | None = args.file
    return path or load_config(args.config).security.keys_file or default_key_file()


def _ring(path: Path) -> KeyRing:
    try:
        return read_keys(path)
    except FileNotFoundError:
        return KeyRing()


def _seconds(text: str) -> int:
    found = _DURATION.fullmatch(text.strip())
    if found is None or (seconds := int(found[1]) * _UNITS_S[found[2]]) > _LONGEST_S:
        raise ConfigError(f"{text!r} is no time span. It looks like 30s, 15m, 12h, 90d or 8w.")
    return seconds


def _date(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
