"""A session under test, run for some virtual seconds, with requests at moments of our choosing."""

from __future__ import annotations

import asyncio
from typing import Self

from duplex import requests as rq
from duplex.agent import AgentSettings
from duplex.clock import VirtualClock
from duplex.config import SessionConfig
from duplex.errors import ProtocolError
from duplex.metrics import Metrics
from duplex.session import Session
from duplex.testing import LoopbackLine, ScriptedAgent, ScriptedUser, run_virtual


class SessionRun:
    """``refused``: what requests were answered with that could not be done."""

    def __init__(
        self,
        agent: ScriptedAgent,
        user: ScriptedUser,
        total_s: float,
        lead_packets: int = 1,
        settings: AgentSettings | None = None,
    ) -> None:
        self.agent, self.total_s, self.settings = agent, total_s, settings or AgentSettings()
        self.line = LoopbackLine(lead_packets=lead_packets)
        self.line.say(user.samples(total_s))
        self.refused: list[ProtocolError] = []
        self._actions: list[tuple[float, rq.Request]] = []

    def at(self, at_s: float, *requests: rq.Request) -> Self:
        self._actions += [(at_s, request) for request in requests]
        return self

    def run(self) -> Self:
        async def main() -> None:
            clock = VirtualClock()
            self.session = Session(
                session_id="sess_test",
                line=self.line,
                agent=self.agent,
                clock=clock,
                config=SessionConfig(),
                settings=self.settings,
                metrics=Metrics(),
            )
            task = asyncio.create_task(self.session.run())
            for at_s, request in sorted(self._actions, key=lambda action: action[0]):
                await clock.sleep_until(at_s)
                try:
                    self.session.request(request)
                except ProtocolError as error:
                    self.refused.append(error)
            await clock.sleep_until(self.total_s)
            self.session.stop("done")
            await task

        run_virtual(main())
        return self
