"""Answering in the agent's stead: an agent that hears and speaks as ever, and whose replies to turns are the bot's.

Theory of operation
-------------------
When the user pauses, the session asks its agent to begin a reply, and when the turn is over that reply is made public.
A bot knows what to answer only once it has the words. So what the session asks for is *kept* here, unbegun; when the
bot says something, the agent is told to say just that under the kept reply's name. To the session it is the reply to
the turn: its latency is traced, a wait that gets long is filled ("one moment"), and a user who goes on takes it back.
A bot that does not answer lets go of it, and it ends with nothing said.

While the agent answers by itself (``answering``), all of this stands aside.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

from duplex.agent import (
    Agent,
    AgentCommand,
    AgentEvent,
    AgentInfo,
    AgentSession,
    AgentSettings,
    BeginReply,
    Configure,
    DropReply,
    Fault,
    Heard,
    Preparing,
    ReplyEnd,
)
from duplex.bots.contract import Bot
from duplex.clock import Clock
from duplex.conversation import ToolResult
from duplex.errors import AgentFaultError, ConfigError, DuplexError

_REPLIES_KEPT = 16  # of which what they knew is remembered


class StandInSession:
    """One agent session with a bot before it. For one event loop, like the session's own.

    ``given``: a session's settings with what the bot gives the agent.
    """

    def __init__(
        self, inner: AgentSession, wake: Callable[[], None], given: Callable[[AgentSettings], AgentSettings]
    ) -> None:
        self.answering = False
        """The agent answers by itself."""
        self._inner, self._wake, self._given = inner, wake, given
        self._kept: BeginReply | None = None
        self._out: list[AgentEvent] = []
        self._knew: OrderedDict[str, frozenset[str]] = OrderedDict()

    @property
    def waiting(self) -> bool:
        """The session waits for a reply to what the user said."""
        return self._kept is not None

    def answer(self, text: str) -> str:
        """The reply that the session waits for is ``text``. Returns its name."""
        kept, self._kept = self._kept, None
        if kept is None:
            raise AgentFaultError("Nobody waits for an answer.")
        self._inner.command(replace(kept, history=(), to_open_turn=False, speculative=False, say=text))
        return kept.reply_id

    def pass_on(self) -> None:
        """The agent is to answer after all."""
        if self._kept is not None:
            kept, self._kept = self._kept, None
            self._to_the_agent(kept)

    def let_go(self) -> None:
        """The reply that the session waits for, if it does, will not come."""
        if self._kept is not None:
            kept, self._kept = self._kept, None
            self._tell(ReplyEnd(kept.reply_id))

    def fault(self, error: DuplexError) -> None:
        """Tells the client, in the session's words."""
        self._tell(Fault(error))

    def knew(self, reply_id: str) -> frozenset[str]:
        """The tool calls whose results that reply was shown."""
        return self._knew.get(reply_id, frozenset())

    def _tell(self, event: AgentEvent) -> None:
        self._out.append(event)
        self._wake()

    # --- the session's side ------------------------------------------------------------------------

    def step(self, heard: Heard) -> None:
        self._inner.step(heard)

    def collect(self) -> Sequence[AgentEvent]:
        out, self._out = self._out, []
        return [*self._inner.collect(), *out]

    def command(self, command: AgentCommand) -> None:
        match command:
            case BeginReply(to_open_turn=True, say=None) if not self.answering:
                self._kept = command
                return
            case BeginReply():
                self._to_the_agent(command)
                return
            case DropReply(reply_id=reply_id) if self._kept is not None and self._kept.reply_id == reply_id:
                self._kept = None
                return
            case Configure(settings=settings):
                command = Configure(self._given(settings))
            case _:
                pass
        self._inner.command(command)

    def close(self) -> None:
        self._inner.close()

    def _to_the_agent(self, begin: BeginReply) -> None:
        self._knew[begin.reply_id] = frozenset(item.call_id for item in begin.history if isinstance(item, ToolResult))
        while len(self._knew) > _REPLIES_KEPT:
            self._knew.popitem(last=False)
        self._inner.command(begin)


class PreparingStandInSession(StandInSession):
    """The same for an agent that must read something first."""

    async def wait_ready(self) -> None:
        assert isinstance(self._inner, Preparing)
        await self._inner.wait_ready()


class StandIn:
    """The agent of one call that has a bot: with the bot's tools and instructions, which are no client's business."""

    def __init__(self, inner: Agent, bot: Bot) -> None:
        self._inner, self._bot = inner, bot
        self.session: StandInSession | None = None

    @property
    def info(self) -> AgentInfo:
        return self._inner.info

    async def start(self) -> None:
        await self._inner.start()

    def open(self, settings: AgentSettings, clock: Clock, wake: Callable[[], None]) -> AgentSession:
        """Raises ``ConfigError`` for a bot with tools where the agent calls none."""
        if self._bot.tools and not self.info.calls_tools:
            names = ", ".join(tool.name for tool in self._bot.tools)
            raise ConfigError(
                f"The bot {self._bot.name!r} gives the agent tools ({names}), and the agent {self.info.name!r} cannot "
                "call any with this thinker. Choose a thinker that can; or take them out of @bot(tools=…), and let the "
                "bot call them itself: await call.run(tool, …)."
            )
        inner = self._inner.open(self._given(settings), clock, wake)
        made = PreparingStandInSession if isinstance(inner, Preparing) else StandInSession
        self.session = made(inner, wake, self._given)
        return self.session

    def _given(self, settings: AgentSettings) -> AgentSettings:
        if self._bot.tools:
            own = tuple(tool.tool for tool in self._bot.tools)
            settings = replace(settings, tools=(*(settings.tools or ()), *own))
        if self._bot.instructions is not None:
            settings = replace(settings, instructions=self._bot.instructions)
        return settings

    async def close(self) -> None:
        await self._inner.close()
