"""A telephone call to a bot on virtual time: speak, press keys, keep silent, hang up, and see what the bot did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from duplex import events as ev
from duplex.agent import Agent, AgentSettings
from duplex.bots import Bot, Bots, Call, as_bot
from duplex.config import BotConfig, SessionConfig
from duplex.errors import DuplexError, HandOverError
from duplex.frames import PACKET_MS, Samples
from duplex.metrics import Metrics
from duplex.requests import PressKey
from duplex.testing.agent import ScriptedAgent
from duplex.testing.call import VirtualCall
from duplex.testing.observed import RecordedLine
from duplex.testing.turns import Overlap
from duplex.turn import Floor

KEY_PAUSE_S = 0.2


@dataclass(slots=True)
class PhoneLine(RecordedLine):
    """A recorded line that knows its caller and can be passed on. ``transfers``: to whom it was.

    ``refuses``: why passing it on fails, if it is to.
    """

    facts: Mapping[str, str] = field(default_factory=dict)
    transfers: list[str] = field(default_factory=list)
    refuses: str | None = None

    async def transfer(self, to: str) -> None:
        if self.refuses is not None:
            raise HandOverError(self.refuses)
        self.transfers.append(to)


class BotCall(VirtualCall):
    """A call that ``bot`` answers. What :class:`VirtualCall` can, and what a telephone can besides.

    ``agent``: who hears and speaks; a :class:`ScriptedAgent` without one. ``bots``: the table ``[bot]`` of the
    configuration, for limits. ``facts``: what the line knows of the caller.
    """

    line: PhoneLine

    def __init__(
        self,
        bot: Bot | Callable[..., object],
        agent: Agent | None = None,
        *,
        config: SessionConfig | None = None,
        settings: AgentSettings | None = None,
        bots: BotConfig | None = None,
        facts: Mapping[str, str] | None = None,
        answer_timeout_s: float = 10.0,
    ) -> None:
        self.bot = as_bot(bot)
        self.call: Call | None = None
        """The call as the bot sees it."""
        self.metrics = Metrics()
        self._bots = Bots(bots if bots is not None else BotConfig(), self.metrics)
        self._facts = dict(facts or {})
        self._config = config if config is not None else SessionConfig()
        self._settings = settings if settings is not None else AgentSettings()
        self._heard_until = 0  # of the events: what of the bot's words was handed out
        super().__init__(
            agent if agent is not None else ScriptedAgent(),
            config=config,
            settings=settings,
            answer_timeout_s=answer_timeout_s,
        )

    async def _begin(self) -> None:
        self.line = PhoneLine(facts=self._facts)
        self.session = self._bots.session(
            session_id="sess_test",
            line=self.line,
            agent=self._agent,
            clock=self._clock,
            config=self._config,
            settings=self._settings,
            metrics=self.metrics,
            bot=replace(self.bot, function=self._watched),
        )
        await super()._begin()

    async def _watched(self, call: Call) -> None:
        self.call = call
        await self.bot(call)

    # --- the caller ------------------------------------------------------------------------------

    def hear(self, timeout_s: float = 30.0) -> str:
        """Hears the bot out: until it waits for the caller, or has hung up. Returns what was heard of it since last.

        Raises ``AssertionError`` if it says nothing for ``timeout_s``.
        """
        __tracebackhide__ = True
        if not self._run(self._until(lambda: bool(self._spoken()) and self._silent(), timeout_s)):
            raise AssertionError(f"The bot said nothing for {timeout_s:g} s.\n\n{self}")
        spoken = self._spoken()
        self._heard_until = len(self.line.events)
        return spoken

    def press(self, keys: str, *, every_s: float = KEY_PAUSE_S) -> None:
        """Presses keys, one after another, also while the bot is speaking."""
        for key in keys:
            self.request(PressKey(key))
            self.wait(every_s)

    def hang_up(self) -> None:
        """The caller hangs up. Returns when the call is over, the bot included."""
        self.line.closed = True
        self.wait_ended()

    def wait_ended(self, timeout_s: float = 60.0) -> str:
        """Until the call is over. Returns why; raises ``AssertionError`` if it does not end."""
        __tracebackhide__ = True
        if not self._run(self._until(lambda: self.ended, timeout_s)):
            raise AssertionError(f"The call is not over after {timeout_s:g} s.\n\n{self}")
        return self.line.closed_because or ""

    # --- what came of it -------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        return self._task is not None and self._task.done()

    @property
    def handed_over_to(self) -> str | None:
        """Where the call was passed on to."""
        return self.line.transfers[-1] if self.line.transfers else None

    @property
    def counted(self) -> Mapping[str, float]:
        """How the bot and its tools ended: ``{"calls completed": 1.0, "tools late": 1.0}``."""
        found: dict[str, float] = {}
        for metric in self.metrics.registry.collect():
            if metric.name in ("duplex_bot_calls", "duplex_bot_tools"):
                kind = metric.name.rpartition("_")[2]
                totals = [s for s in metric.samples if s.name.endswith("_total")]
                found |= {f"{kind} {sample.labels['outcome']}": sample.value for sample in totals}
        return found

    def _spoken(self) -> str:
        """What was heard of the replies that ended since ``hear`` was called last."""
        since = self.line.events[self._heard_until :]
        cut = {e.reply_id: e.heard_text for e in since if isinstance(e, ev.ReplyTruncated)}
        finished = [e for e in since if isinstance(e, ev.ReplyFinished) and e.text.strip()]
        heard = [cut.get(e.reply_id, "" if e.status == "cancelled" else e.text.strip()) for e in finished]
        return " ".join(filter(None, heard))

    def _silent(self) -> bool:
        return self.ended or (self._quiet() and self.call is not None and self.call.listening)

    async def _talk_over(self, text: str | None, sound: Samples, after_s: float, question: str | None) -> Overlap:
        if question is None:  # a bot speaks of its own accord
            await self._until(lambda: self.session.machine.floor is Floor.SPEAKING, self._timeout_s)
        return await super()._talk_over(text, sound, after_s, question)

    async def _until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Like the one of every call; that the session ends is no error here: bots hang up."""
        deadline_s = self._clock.now() + timeout_s
        while not done():
            if self.ended:
                assert self._task is not None
                self._task.result()
                if not self._begun():
                    raise DuplexError(" ".join(self.errors) or "The session ended before it began.")
                return done()
            if self._clock.now() >= deadline_s:
                return False
            await self._clock.sleep_until(self._clock.now() + PACKET_MS / 1000.0)
        return True

    def _begun(self) -> bool:
        return bool(self.line.of(ev.SessionStarted))


__all__ = ["KEY_PAUSE_S", "BotCall", "PhoneLine"]
