"""Tools with the models a call has by default: what was asked leads to a call, its result to a spoken answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from duplex import events as ev
from duplex import requests as rq
from duplex.agent import AgentSettings, Tool
from duplex.clock import MonotonicClock
from duplex.config import SessionConfig
from duplex.conversation import Role
from duplex.metrics import Metrics
from duplex.session import Session
from duplex.testing import LoopbackLine
from duplex.thinker_talker import cascade
from duplex.weights import ModelStore

pytestmark = pytest.mark.models

TOOLS = (
    Tool("get_time", "Tells the current time of day."),
    Tool(
        "lookup_order",
        "Looks up the status of an order.",
        {
            "type": "object",
            "properties": {"number": {"type": "string", "description": "the order number"}},
            "required": ["number"],
        },
    ),
)
_WAIT_S = 60.0


class _TellingLine(LoopbackLine):
    """Says when the client is told something."""

    def __init__(self, told: asyncio.Event) -> None:
        super().__init__()
        self._told = told

    def emit(self, event: ev.Event) -> None:
        super().emit(event)
        self._told.set()


class Call:
    """A call in real time with the default agent; the client writes instead of speaking."""

    def __init__(self, agent: Any, settings: AgentSettings) -> None:
        self.told = asyncio.Event()
        self.line = _TellingLine(self.told)
        self.session = Session(
            session_id="sess_test",
            line=self.line,
            agent=agent,
            clock=MonotonicClock(),
            config=SessionConfig(think_limit_s=_WAIT_S),
            settings=settings,
            metrics=Metrics(),
        )

    async def until(self, done: Callable[[], object]) -> None:
        async with asyncio.timeout(_WAIT_S):
            while not done():
                self.told.clear()
                await self.told.wait()

    async def ask(self, text: str) -> ev.ReplyFinished:
        """The answer as text, which need not be waited for until it is spoken."""
        self.session.request(rq.AddMessage(Role.USER, text))
        return await self.reply(silent=True)

    async def reply(self, *, silent: bool) -> ev.ReplyFinished:
        known = len(self.line.of(ev.ReplyFinished))
        self.session.request(rq.CreateReply(silent=silent))
        await self.until(lambda: len(self.line.of(ev.ReplyFinished)) > known)
        return self.line.of(ev.ReplyFinished)[-1]


@pytest_asyncio.fixture
async def agent(models: ModelStore) -> AsyncIterator[Any]:
    loaded = cascade.load({"models_dir": str(models.root), "max_sessions": 1, "temperature": 0.0})
    await loaded.start()
    yield loaded
    await loaded.close()


async def test_a_question_leads_to_a_call_and_its_result_to_a_spoken_answer(agent: Any) -> None:
    assert agent.info.calls_tools
    call = Call(agent, AgentSettings(tools=TOOLS))
    running = asyncio.create_task(call.session.run())
    await call.until(lambda: call.line.of(ev.SessionStarted))

    asked = await call.ask("Please look up my order.")
    assert not call.line.of(ev.ToolCallStarted), "nobody said which"
    assert "order number" in asked.text

    await call.ask("It is four seven one one.")
    [done] = call.line.of(ev.ToolCallDone)
    assert (done.name, json.loads(done.arguments)) == ("lookup_order", {"number": "4711"})

    before = len(call.line.audio())
    call.session.request(rq.AddToolResult(done.call_id, json.dumps({"status": "shipped", "arrives": "Tuesday"})))
    told = await call.reply(silent=False)
    assert "shipped" in told.text
    assert "Tuesday" in told.text
    assert told.usage is not None
    assert told.usage.output_tokens > 0
    assert len(call.line.audio()) > before
    assert told.audio_ms > 500

    chat = await call.ask("What is the capital of France?")
    assert "Paris" in chat.text
    assert len(call.line.of(ev.ToolCallStarted)) == 1
    call.session.stop("done")
    await running
