"""What a process counts: the runtime's figures, and its agent's beside them."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Gauge

from duplex.clock import MonotonicClock
from duplex.config import SessionConfig
from duplex.hub import SessionHub
from duplex.testing import load_echo_agent


class CountingAgent:
    """An echo that counts."""

    def __init__(self, registry: CollectorRegistry | None) -> None:
        self.registry = registry
        self._inner = load_echo_agent({})

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


@pytest.mark.parametrize("counts", [True, False])
async def test_an_agents_own_figures_are_on_the_page(counts: bool) -> None:
    registry = CollectorRegistry()
    Gauge("ticks_of_the_agent", "Ticks", registry=registry).set(7)
    agent = CountingAgent(registry if counts else None)
    async with SessionHub(agent, MonotonicClock(), SessionConfig(), max_sessions=1) as hub:  # type: ignore[arg-type]
        page = hub.metrics.exposition().decode()
    assert ("ticks_of_the_agent 7.0" in page) == counts
    assert "duplex_sessions_live 0.0" in page
