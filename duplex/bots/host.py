"""Bots and their calls: which answers, and that one which misbehaves harms nobody.

Theory of operation
-------------------
A session is made as ever, with two things wrapped around what it gets: its line, so that the bot sees every event that
leaves, and its agent, so that the bot can answer in its stead (:mod:`duplex.bots.stand_in`). The bot itself is a task:
it begins with the session, is told when the call is over, may tidy up for ``end_limit_s``, and is then cancelled; the
session ends after it. A bot that raises, or asks nothing of its call for ``hang_limit_s``, has failed: the client is
told (``BotError``), it is logged and counted, the caller hears an apology, and the call ends.

What this cannot help against is a bot that blocks the event loop. Blocking work belongs in ``asyncio.to_thread``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from prometheus_client import Counter

from duplex.agent import Agent, AgentSettings
from duplex.bots.call import Call, HandOver
from duplex.bots.contract import Bot
from duplex.bots.load import load_bot, load_hand_over
from duplex.bots.stand_in import StandIn
from duplex.bots.tool_work import ToolWork
from duplex.clock import Clock, Timer
from duplex.config import BotConfig, SessionConfig
from duplex.errors import BotError, CallEndedError, DuplexError
from duplex.events import Event, SessionStarted
from duplex.line import Line
from duplex.line_around import LineAround
from duplex.metrics import Metrics
from duplex.session import Session

log = logging.getLogger("duplex.bots")

_APOLOGY_S = 20.0  # to say it in


class Bots:
    """Makes sessions that bots answer. ``SessionHub(make_session=bots.session)``.

    ``make_session``: what a session is made with, ``Session`` or ``Recorder.session``. Bots are loaded when first
    named, and the configured one at once. Raises ``ConfigError``.
    """

    def __init__(self, config: BotConfig, metrics: Metrics, *, make_session: Callable[..., Session] = Session) -> None:
        self._config, self._metrics, self._make_session = config, metrics, make_session
        self._loaded: dict[str, Bot] = {}
        self._outcomes = Counter(
            "duplex_bot_calls",
            "Calls that bots answered, by how they ended",
            ["outcome"],
            registry=metrics.registry,
        )
        self._tool_outcomes = Counter(
            "duplex_bot_tools", "Tools run for bots, by how they ended", ["outcome"], registry=metrics.registry
        )
        self._hand_over: HandOver | None = None if config.hand_over is None else load_hand_over(config.hand_over)
        if config.name is not None:
            self.named(config.name)

    def named(self, name: str) -> Bot:
        """The bot of that name, loaded once. Raises ``ConfigError``."""
        if name not in self._loaded:
            self._loaded[name] = load_bot(name)
        return self._loaded[name]

    def session(
        self,
        *,
        session_id: str,
        line: Line,
        agent: Agent,
        clock: Clock,
        config: SessionConfig,
        settings: AgentSettings,
        metrics: Metrics,
        bot: Bot | str | None = None,
    ) -> Session:
        """A session answered by ``bot``, or by the configured one; by the agent itself if there is neither.

        Raises ``ConfigError`` if there is no such bot.
        """
        bot = self._config.name if bot is None else bot
        if isinstance(bot, str):
            bot = self.named(bot)
        if bot is None:
            return self._make_session(
                session_id=session_id,
                line=line,
                agent=agent,
                clock=clock,
                config=config,
                settings=settings,
                metrics=metrics,
            )
        stand_in, watched = StandIn(agent, bot), WatchedLine(line)
        session = self._make_session(
            session_id=session_id,
            line=watched,
            agent=stand_in,
            clock=clock,
            # A bot's reply is never ready before the turn is over, so there is nothing to wait for.
            config=config.model_copy(update={"commit_wait_s": 0.0}),
            settings=settings,
            metrics=metrics,
        )
        tools = ToolWork(session_id, bot.tools, self._config.tool_limit_s, self._tool_outcomes)
        call = Call(session, line, stand_in, clock, self._config, tools, self._hand_over)
        watched.life = BotLife(bot, call, stand_in, tools, clock, self._config, self._outcomes, self._metrics)
        return session


class WatchedLine(LineAround):
    """A line whose events a bot sees too."""

    def __init__(self, line: Line) -> None:
        super().__init__(line)
        self.life: BotLife | None = None

    def emit(self, event: Event) -> None:
        self.inner.emit(event)
        if self.life is not None:
            self.life.told(event)

    async def close(self, reason: str) -> None:
        await self.inner.close(reason)
        if self.life is not None:
            await self.life.end(reason)


class BotLife:
    """One bot in one call: begun, watched over, ended."""

    def __init__(
        self,
        bot: Bot,
        call: Call,
        stand_in: StandIn,
        tools: ToolWork,
        clock: Clock,
        config: BotConfig,
        outcomes: Counter,
        metrics: Metrics,
    ) -> None:
        self._bot, self._call, self._stand_in, self._tools = bot, call, stand_in, tools
        self._clock, self._config, self._outcomes, self._metrics = clock, config, outcomes, metrics
        self._work: asyncio.Task[None] | None = None  # the bot's own
        self._life: asyncio.Task[None] | None = None
        self._hung: asyncio.Future[None] | None = None
        self._timer: Timer | None = None

    # --- the session's side: must not raise --------------------------------------------------------

    def told(self, event: Event) -> None:
        """An event of the session."""
        try:
            if isinstance(event, SessionStarted):
                self._begin()
            self._call.take(event)
        except Exception as error:
            log.exception("%s: the bot %s was not told of an event", self._call.id, self._bot.name)
            if self._work is not None and not self._work.done():
                self._work.cancel(str(error))

    async def end(self, reason: str) -> None:
        """The call is over. Returns when the bot is, or when it was given up."""
        self._call.over(reason)
        if self._timer is not None:
            self._timer.cancel()
        tasks = {task for task in (self._work, self._life, *self._tools.tasks) if task is not None}
        await self._ended(tasks, cancel=False)
        if self._work is not None and not self._work.done():
            self._outcomes.labels("cut off").inc()
        await self._ended(tasks, cancel=True)
        for counted, n in (("bot_heard", self._call.dropped_heard), ("bot_events", self._call.dropped_events)):
            if n:
                self._metrics.queue_drops.labels(counted).inc(n)
        if late := [task for task in tasks if not task.done()]:
            log.error("%s: %d tasks of the bot %s do not end", self._call.id, len(late), self._bot.name)
            self._outcomes.labels("stuck").inc()

    async def _ended(self, tasks: set[asyncio.Task[None]], *, cancel: bool) -> None:
        left = {task for task in tasks if not task.done()}
        for task in left:
            if cancel:
                task.cancel("the call is over")
        if left:
            await asyncio.wait(left, timeout=self._config.end_limit_s)

    # --- the bot's side ----------------------------------------------------------------------------

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        self._hung = loop.create_future()
        self._work = loop.create_task(self._run(), name=f"{self._call.id} bot {self._bot.name}")
        self._life = loop.create_task(self._watch(self._work, self._hung), name=f"{self._call.id} bot's life")
        self._look_again(self._clock.now())

    async def _run(self) -> None:
        try:
            await self._bot(self._call)
        except SystemExit as error:  # would end the server
            raise BotError(f"it asked the process to exit ({error.code})") from error

    async def _watch(self, work: asyncio.Task[None], hung: asyncio.Future[None]) -> None:
        await asyncio.wait((work, hung), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel("it did nothing for too long")
            limit_s = self._config.hang_limit_s
            await self._failed("hung", self._error(f"asked nothing of its call for {limit_s:g} s"))
        elif work.cancelled():
            if self._call.ended is None:
                await self._failed("failed", self._error("was cancelled"))
        elif (error := work.exception()) is None:
            self._outcomes.labels("completed").inc()
            await self._hang_up()
        elif isinstance(error, CallEndedError):
            self._outcomes.labels("call ended").inc()
        else:
            log.error("%s: the bot %s failed: %r", self._call.id, self._bot.name, error, exc_info=error)
            # Of other errors only the name is told: their words may be nobody else's business.
            why = str(error) if isinstance(error, DuplexError) else type(error).__name__
            told = self._error(f"failed: {why.rstrip('.')}")
            told.__cause__ = error
            await self._failed("failed", told)

    def _error(self, what: str) -> BotError:
        return BotError(f"The bot {self._bot.name!r} {what}.")

    async def _failed(self, outcome: str, error: BotError) -> None:
        self._outcomes.labels(outcome).inc()
        log.error("%s: %s", self._call.id, error)
        if self._call.ended is not None:
            return
        if self._stand_in.session is not None:
            self._stand_in.session.answering = False
            self._stand_in.session.fault(error)
        apology = asyncio.ensure_future(self._call.say(self._config.apology))
        try:
            await asyncio.wait((apology,), timeout=_APOLOGY_S)
            if apology.done() and not apology.cancelled() and (failed := apology.exception()) is not None:
                log.error("%s: the apology could not be said: %s", self._call.id, failed)
        finally:
            apology.cancel()
        self._call.session.stop("the bot failed")

    async def _hang_up(self) -> None:
        try:
            await self._call.hang_up()
        except CallEndedError:
            pass

    def _look_again(self, now_s: float) -> None:
        """Watches that the bot does something, until it is over."""
        if self._work is None or self._work.done() or self._call.ended is not None or self._hung is None:
            return
        since_s = self._call.idle_since_s
        idle_s = 0.0 if since_s is None else now_s - since_s
        if idle_s >= self._config.hang_limit_s - 1e-6:
            if not self._hung.done():
                self._hung.set_result(None)
            return
        due_s = now_s + self._config.hang_limit_s - idle_s
        self._timer = self._clock.call_at(due_s, lambda: self._look_again(self._clock.now()))
