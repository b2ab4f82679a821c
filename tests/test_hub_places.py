"""How many calls a server takes when nobody says: what the agent admits, or a few of one that does not count."""

from __future__ import annotations

from dataclasses import replace

import pytest
from native_fakes import FakeModel, fake_agent

from duplex.agent import Admitting, AgentInfo, AgentSettings
from duplex.clock import MonotonicClock
from duplex.config import Config, SessionConfig
from duplex.errors import AgentFullError
from duplex.hub import UNCOUNTED, SessionHub
from duplex.testing import LoopbackLine, ScriptedAgent
from duplex.thinker_talker import cascade


class Small(ScriptedAgent):
    """Has two places."""

    @property
    def info(self) -> AgentInfo:
        return replace(super().info, places=2)


@pytest.mark.parametrize(("wanted", "most"), [(None, 2), (1, 1), (2, 2), (5, 2)])
async def test_no_more_calls_are_taken_than_the_agent_has_places(
    wanted: int | None, most: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with SessionHub(Small(), MonotonicClock(), SessionConfig(), max_sessions=wanted) as hub:
        for _ in range(most):
            hub.open(LoopbackLine(), AgentSettings())
        with pytest.raises(AgentFullError, match=f"All {most} places are taken"):  # at the door, not in the call
            hub.reserve()
    assert ("give agent.options.max_sessions the same number" in caplog.text) == (wanted == 5)


def test_the_agents_that_come_with_it_say_how_many_places_they_have() -> None:
    assert cascade.load({"max_sessions": 3}).info.places == 3
    assert fake_agent(max_sessions=6)[0].info.places == 6


async def test_an_agent_that_admits_calls_is_asked_and_nobody_else() -> None:
    agent, _ = fake_agent(FakeModel(compute_s=None, full_after=6))
    assert isinstance(agent, Admitting)
    async with SessionHub(agent, MonotonicClock(), SessionConfig(), max_sessions=Config().server.max_sessions) as hub:
        assert hub.max_sessions is None
        for _ in range(6):
            agent.open(AgentSettings(), MonotonicClock(), lambda: None)
        with pytest.raises(AgentFullError, match="Every slot of the device"):
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
