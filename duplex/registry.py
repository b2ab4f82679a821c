"""Agents, bots, codecs and transports by name, through entry points, so anyone can add one from outside this tree."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from duplex.agent import Agent, AgentFactory
from duplex.errors import ConfigError

GROUPS = ("duplex.agents", "duplex.bots", "duplex.codecs", "duplex.transports")


def names(group: str) -> tuple[str, ...]:
    """The names registered in ``group``, sorted. Nothing is imported."""
    return tuple(sorted({entry.name for entry in entry_points(group=group)}))


def lookup(group: str, name: str) -> Any:
    """Imports and returns what ``name`` stands for in ``group``. Raises ``ConfigError`` listing what there is."""
    found: tuple[EntryPoint, ...] = tuple(entry_points(group=group, name=name))
    if not found:
        kind = group.removeprefix("duplex.").removesuffix("s")
        raise ConfigError(f"There is no {kind} named {name!r}. Installed: {', '.join(names(group)) or 'none'}.")
    return found[0].load()


def create_agent(name: str, options: Mapping[str, Any]) -> Agent:
    """An agent by name, configured and not yet started."""
    return cast(AgentFactory, lookup("duplex.agents", name))(options)
