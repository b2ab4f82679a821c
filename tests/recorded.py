"""A recorded call for tests: scripted, on virtual time, with late ticks and a clock that never stands still."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from duplex import requests as rq
from duplex.agent import Agent, AgentSettings
from duplex.clock import VirtualClock
from duplex.config import Config, RecordConfig, SessionConfig
from duplex.errors import DuplexError
from duplex.metrics import Metrics
from duplex.records.archive import Archive, find
from duplex.records.recorder import Recorder
from duplex.session import Session
from duplex.testing import LoopbackLine, ScriptedAgent, ScriptedReply, ScriptedUser, run_virtual

SPEECH = ((0.5, 1.0), (2.9, 0.2), (4.0, 1.5))  # a turn, a backchannel over the answer, an interruption of it
TOTAL_S = 8.0
NEW_YEAR = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class JitteryClock(VirtualClock):
    """Every look at it takes a few microseconds, and it wakes up to 6 ms late."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random, self._gone_s = random.Random(seed), 0.0

    def now(self) -> float:
        self._gone_s += self._random.random() * 2e-5
        return super().now() + self._gone_s

    async def sleep_until(self, deadline_s: float) -> None:
        await super().sleep_until(deadline_s - self._gone_s + self._random.random() * 0.006)


def scripted() -> ScriptedAgent:
    return ScriptedAgent([ScriptedReply("One two three four five six.", audio_after_s=0.7)])


@dataclass
class Call:
    """What is recorded. ``actions``: requests by their time; ``line`` and ``metrics`` tell what came of it."""

    agent: Agent = field(default_factory=scripted)
    speech: Sequence[tuple[float, float]] = SPEECH
    total_s: float = TOTAL_S
    actions: Sequence[tuple[float, rq.Request]] = ()
    settings: AgentSettings = field(default_factory=lambda: AgentSettings(instructions="Be kind to Ada."))
    config: SessionConfig = field(default_factory=SessionConfig)
    seed: int = 1
    session_id: str = "sess_test"
    lead_packets: int = 1
    on_line: Callable[[LoopbackLine, float], None] = lambda line, now_s: None
    metrics: Metrics = field(default_factory=Metrics)

    def run(self, make_session: Callable[..., Session] = Session) -> LoopbackLine:
        line = LoopbackLine(lead_packets=self.lead_packets)
        line.say(ScriptedUser(self.speech).samples(self.total_s))

        async def main() -> None:
            clock = JitteryClock(self.seed)
            session = make_session(
                session_id=self.session_id,
                line=line,
                agent=self.agent,
                clock=clock,
                config=self.config,
                settings=self.settings,
                metrics=self.metrics,
            )
            task = asyncio.create_task(session.run())
            pending = sorted(self.actions, key=lambda pair: pair[0])
            now_s = 0.0
            while now_s < self.total_s and not task.done():
                now_s = min([self.total_s, now_s + 0.1, *(at_s for at_s, _ in pending[:1])])
                await VirtualClock().sleep_until(now_s)
                self.on_line(line, now_s)
                while pending and pending[0][0] <= now_s:
                    try:
                        session.request(pending.pop(0)[1])
                    except DuplexError:
                        pass
            session.stop("the test is over")
            await task

        run_virtual(main())
        return line

    def record(self, root: Path, wall: datetime = NEW_YEAR, **settings: Any) -> Archive:
        """Records it into ``root``; ``settings`` are those of the table ``record``."""
        config = Config(record=RecordConfig(dir=root, **settings), session=self.config)
        recorder = Recorder(
            config.record, self.metrics, configuration=config.model_dump(mode="json"), wall=lambda: wall
        )
        try:
            self.run(recorder.session)
        finally:
            recorder.close()
        return Archive(find(root, self.session_id))
