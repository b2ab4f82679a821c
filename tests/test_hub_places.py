"""How many calls a server takes when nobody says: what the agent admits, or a few of one that does not count."""

from __future__ import annotations

import pytest
from native_fakes import FakeModel, fake_agent

from duplex.agent import Admitting, AgentSettings
from duplex.clock import MonotonicClock
from duplex.config import Config, SessionConfig
from duplex.errors import AgentFullError
from duplex.hub import UNCOUNTED, SessionHub
from duplex.testing import LoopbackLine, ScriptedAgent


async def test_an_agent_that_admits_calls_is_asked_and_nobody_else() -> None:
    agent, _ = fake_agent(FakeModel(compute_s=None), max_sessions=6)
    assert isinstance(agent, Admitting)
    async with SessionHub(agent, MonotonicClock(), SessionConfig(), max_sessions=Config().server.max_sessions) as hub:
        assert hub.max_sessions is None
        for _ in range(6):
            agent.open(AgentSettings(), MonotonicClock(), lambda: None)
        with pytest.raises(AgentFullError, match="All 6 places of the model"):
            hub.reserve()


async def test_an_agent_that_does_not_count_gets_four_at_a_time_and_more_if_told() -> None:
    async with SessionHub(ScriptedAgent(), MonotonicClock(), SessionConfig(), max_sessions=None) as hub:
        kept = [hub.reserve() for _ in range(UNCOUNTED)]
        with pytest.raises(AgentFullError, match="All 4 places"):
            hub.reserve()
        kept.pop().release()
        hub.open(LoopbackLine(), AgentSettings(), hub.reserve())
    async with SessionHub(ScriptedAgent(), MonotonicClock(), SessionConfig(), max_sessions=7) as hub:
        assert [hub.reserve() for _ in range(7)]
