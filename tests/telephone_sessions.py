"""What the tests of telephone doors share: the sessions that a door opened, what they told, a voice to call with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from duplex import events as ev
from duplex.agent import AgentSettings
from duplex.frames import Samples
from duplex.hub import Reservation, SessionHub
from duplex.session import Session
from duplex.testing import ScriptedAgent, ScriptedReply, ScriptedTiming
from duplex.transport.telephone import TelephoneLine

E = TypeVar("E", bound=ev.Event)

QUICK = ScriptedTiming(pause_s=0.06, complete_s=0.2, interrupt_s=0.3, backchannel_s=0.1)


def quick_agent() -> ScriptedAgent:
    return ScriptedAgent([ScriptedReply(duration_s=3.0)], QUICK)


class Opened:
    """Opens sessions for a door (``open_session``), and keeps them, their lines and their events."""

    def __init__(self, hub: SessionHub) -> None:
        self.hub = hub
        self.sessions: list[Session] = []
        self.lines: list[TelephoneLine] = []
        self.settings: list[AgentSettings] = []
        self.events: list[ev.Event] = []

    def open(self, line: TelephoneLine, settings: AgentSettings, reservation: Reservation) -> Session:
        emit = line.emit

        def tell(event: ev.Event) -> None:
            self.events.append(event)
            emit(event)

        line.emit = tell  # type: ignore[method-assign]
        session = self.hub.open(line, settings, reservation)
        self.sessions.append(session)
        self.lines.append(line)
        self.settings.append(settings)
        return session

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    async def until_started(self) -> None:
        await until(lambda: bool(self.of(ev.SessionStarted)))

    async def until_over(self) -> None:
        """Until nothing is left: no session, and no place kept for one."""
        await until(lambda: not self.hub.live and not self.hub._reserved)


async def until(met: Callable[[], bool], limit_s: float = 15.0) -> None:
    """Raises ``TimeoutError``."""
    async with asyncio.timeout(limit_s):
        while not met():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.005)


def speech(duration_s: float, rate_hz: int) -> Samples:
    """float32[n] at ``rate_hz``, loud enough to be taken for a voice."""
    n = round(duration_s * rate_hz)
    return (0.14 * np.sin(2 * np.pi * 220.0 * np.arange(n) / rate_hz)).astype(np.float32)
