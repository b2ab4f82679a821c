"""What follows from where a server listens: whether it asks for keys, and which limits hold. Pure.

On loopback whoever is there may use the machine anyway, so nobody is asked and nothing is limited. Beyond it keys are
asked for, and a server without any does not start, unless it is told to be open.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path

from duplex.config import Config, LimitsConfig
from duplex.errors import ConfigError
from duplex.keys import default_key_file

BEYOND_LOOPBACK = {
    "sessions_per_address": 4,
    "calls_per_minute_per_key": 300.0,
    "calls_per_minute_per_address": 30.0,
    "failures_per_minute": 20.0,
    "session_s": 3600.0,  # as the Realtime API's own
    "idle_s": 300.0,
}
"""Limits that hold where none is configured, once strangers can come."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``. A name that is not "localhost" is taken to be reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def key_file_of(config: Config) -> Path | None:
    """The file of the keys that callers need; None if nobody is asked for one.

    Raises ``ConfigError`` for a server that would be open to the network without having been told to be.
    """
    security, host = config.security, config.server.host
    if security.keys_file is not None:
        if security.insecure:
            raise ConfigError("--insecure asks nobody for a key, and security.keys_file does. Leave one of them out.")
        return security.keys_file
    if is_loopback(host) or security.insecure:
        return None
    path = default_key_file()
    if path.exists():
        return path
    raise ConfigError(
        f"The server would listen on {host}, where others can reach it, and there are no keys. Make one:  "
        "duplex keys add NAME  and start again. Or listen on this machine only: --host 127.0.0.1. Or, where everybody "
        "on the network may call, and cost you what that costs: --insecure"
    )


def limits_in_force(config: Config) -> LimitsConfig:
    """``config.limits`` with everything decided: None is no limit."""
    limits = config.limits
    given = {name: value for name in LimitsConfig.model_fields if (value := getattr(limits, name)) is not None}
    assumed = {} if is_loopback(config.server.host) else BEYOND_LOOPBACK
    return limits.model_copy(update={name: value or None for name, value in {**assumed, **given}.items()})
