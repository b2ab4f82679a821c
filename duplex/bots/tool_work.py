"""Tools at work: each in a task of its own, with a limit; what the agent asked for goes back into the conversation.

An answer is told to the session at once and *owed* to the caller until a reply that was shown it is over. What is owed
makes the agent speak as soon as nobody else does and no other tool of that reply is still at work; a caller who speaks
first gets it with the reply to that. So an answer that comes after an interruption is kept, and none is told twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from prometheus_client import Counter

from duplex import events as ev
from duplex.bots.tools import BotTool, answer_text
from duplex.errors import CallEndedError, ProtocolError, ToolError
from duplex.requests import AddToolResult, CreateReply, Request

log = logging.getLogger("duplex.bots")

T = TypeVar("T")

_MOST_AT_ONCE = 16


class Until(Protocol):
    """Waits until something is met; False after ``timeout_s``. Raises ``CallEndedError``."""

    async def __call__(self, met: Callable[[], bool], timeout_s: float | None = None) -> bool: ...


class ToolWork:
    """The tools of one call. ``outcomes`` counts them; ``limit_s``: a tool that takes longer has failed."""

    def __init__(self, call_id: str, tools: Sequence[BotTool], limit_s: float, outcomes: Counter) -> None:
        self._call_id, self._limit_s, self._outcomes = call_id, limit_s, outcomes
        self._tools = {tool.name: tool for tool in tools}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._running: dict[str, str] = {}  # calls of the agent that are at work → the reply that asked
        self._owed: set[str] = set()

    @property
    def owes(self) -> bool:
        """Something was answered that the caller has not heard of, and nothing is at work that belongs to it."""
        return bool(self._owed) and not self._running

    @property
    def tasks(self) -> frozenset[asyncio.Task[Any]]:
        return frozenset(self._tasks)

    def told_by(self, knew: frozenset[str]) -> None:
        """A reply that was shown the answers to the calls ``knew`` is over."""
        self._owed -= knew

    def task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that ends with the call."""
        task = asyncio.get_running_loop().create_task(work, name=f"{self._call_id} tool")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def run(self, name: str, begin: Callable[[], Awaitable[T]], until: Until, done: Callable[[], None]) -> T:
        """What ``begin()`` returns. Raises ``ToolError`` if it raises or is late; ``done`` is called when it ends."""

        async def work() -> T:
            return await begin()

        task = self.task(work())
        task.add_done_callback(lambda _: done())
        try:
            if not await until(task.done, self._limit_s):
                raise ToolError(f"{name} did not answer within {self._limit_s:g} s.")
            answer = task.result()
        except ToolError as error:
            self._outcomes.labels("failed" if task.done() else "late").inc()
            log.warning("%s: the tool %s failed: %s", self._call_id, name, error)
            raise
        except CallEndedError:
            raise
        except (Exception, SystemExit) as error:
            self._outcomes.labels("failed").inc()
            log.error("%s: the tool %s failed: %r", self._call_id, name, error, exc_info=error)
            # What it says is for its author, and not for a caller's ears.
            raise ToolError(f"{name} failed.") from error
        finally:
            task.cancel()
        self._outcomes.labels("answered").inc()
        return answer

    # --- what the agent asks for -----------------------------------------------------------------------

    def asked(
        self,
        event: ev.ToolCallDone,
        call: object,
        until: Until,
        done: Callable[[], None],
        request: Callable[[Request], None],
    ) -> None:
        """The agent asks for a tool; one that is not ours is somebody else's."""
        if (tool := self._tools.get(event.name)) is None or event.call_id in self._running:
            return
        busy = len(self._running) >= _MOST_AT_ONCE
        self._running[event.call_id] = event.reply_id
        self.task(self._answer(tool, event, call, until, done, request, busy))

    async def _answer(
        self,
        tool: BotTool,
        event: ev.ToolCallDone,
        call: object,
        until: Until,
        done: Callable[[], None],
        request: Callable[[Request], None],
        busy: bool,
    ) -> None:
        try:
            try:
                if busy:
                    raise ToolError(f"{_MOST_AT_ONCE} tools are at work already; wait for them.")
                answer = await self.run(tool.name, tool.bound(event.arguments, call), until, done)
                output = answer_text(tool.name, answer)
            except ToolError as error:
                output = f"This did not work: {error} Tell the caller so, and go on without it."
            request(AddToolResult(event.call_id, output))
            self._owed.add(event.call_id)
        except CallEndedError:
            pass
        except ProtocolError as error:
            log.warning("%s: what %s answered was refused: %s", self._call_id, tool.name, error)
        finally:
            self._running.pop(event.call_id, None)
            done()

    def speak_of_it(self, request: Callable[[Request], None]) -> None:
        """Makes the agent go on with what its tools answered."""
        try:
            request(CreateReply())
        except ProtocolError as error:
            log.warning("%s: a reply to what tools answered was refused: %s", self._call_id, error)
            self._owed.clear()
