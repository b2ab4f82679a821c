"""A call as its bot sees it: say, listen, ask, let the agent talk, hand over, hang up.

Every method waits until it is done, and raises ``CallEndedError`` once the call is over; a bot that lets it through
ends there. Times are the session's clock's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from duplex import events as ev
from duplex.agent import AgentSettings
from duplex.bots.contract import KnowsCaller, Transferring
from duplex.bots.hearing import Hearing, Key
from duplex.bots.stand_in import StandIn, StandInSession
from duplex.bots.tool_work import ToolWork
from duplex.clock import Clock
from duplex.config import BotConfig
from duplex.conversation import Item
from duplex.errors import AgentFaultError, CallEndedError, HandOverError, UnsupportedError
from duplex.line import Line
from duplex.line_around import ability
from duplex.requests import CancelReply, CreateReply, Request
from duplex.session import Session
from duplex.turn import Floor, User

P = ParamSpec("P")
T = TypeVar("T")

HandOver = Callable[["Call", str], Awaitable[None]]

_TALKING = (User.SPEAKING, User.PAUSED_INCOMPLETE, User.TURN_COMPLETE, User.INTERRUPTING)
_MAX_EVENTS = 512
_LAST_WORDS_S = 10.0  # what may still be spoken before the bot hangs up


@dataclass(frozen=True, slots=True)
class Said:
    """What came of ``say``. ``heard``: as much of ``text`` as the caller heard."""

    text: str
    heard: str
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What the caller said, or what they typed (without the key that ended it): one of the two is empty."""

    text: str = ""
    keys: str = ""


class Call:
    """One call. Made by :class:`duplex.bots.host.Bots`; methods are for the session's event loop."""

    def __init__(
        self,
        session: Session,
        line: Line,
        stand_in: StandIn,
        clock: Clock,
        config: BotConfig,
        tools: ToolWork,
        hand_over: HandOver | None = None,
    ) -> None:
        self.session = session
        self.dropped_events = 0
        self._line, self._stand_in, self._clock, self._config = line, stand_in, clock, config
        self._tools, self._hand_over = tools, hand_over
        self._hearing = Hearing()
        self._ended: str | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._at_work = 0
        self._listeners = 0
        self._left_s = clock.now()
        self._latest_reply: str | None = None
        self._truncated: dict[str, str] = {}  # of replies that are being waited for: what was heard of them,
        self._finished: dict[str, ev.ReplyFinished] = {}  # and how they ended
        self._said: set[str] = set()
        self._concluded: list[object] = []
        self._speaking_of_it = False
        self._readers: list[deque[ev.Event]] = []

    # --- what is known ---------------------------------------------------------------------------

    @property
    def id(self) -> str:
        return self.session.id

    @property
    def facts(self) -> Mapping[str, str]:
        """What the door knows of the caller: ``caller``, ``called``; empty in a browser."""
        knows = ability(self._line, KnowsCaller)
        return knows.facts if knows is not None else {}

    @property
    def settings(self) -> AgentSettings:
        return self.session.settings

    @property
    def transcript(self) -> tuple[Item, ...]:
        """The conversation so far: what was said, and what was heard."""
        return self.session.conversation.snapshot()

    @property
    def ended(self) -> str | None:
        """Why the call is over, once it is."""
        return self._ended

    @property
    def listening(self) -> bool:
        """It is the caller's turn: the bot listens, or lets the agent do it."""
        return self._listeners > 0

    # --- talking ---------------------------------------------------------------------------------

    async def say(self, text: str) -> Said:
        """Says ``text`` word for word, once the caller has finished. Returns when it was heard, or cut off.

        The caller may interrupt, by voice or with a key. Raises ``AgentFaultError`` if it could not be said.
        """
        text = " ".join(text.split())
        if not text:
            return Said("", "")
        with self._working():
            await self._until(self._may_speak)
            heard_before = self._hearing.count
            reply_id = await self._begin(text)
            self._said.add(reply_id)
            try:
                return await self._spoken(reply_id, text, heard_before)
            finally:
                self._said.discard(reply_id)
                self._finished.pop(reply_id, None)
                self._truncated.pop(reply_id, None)

    async def _begin(self, text: str) -> str:
        if self._mind.waiting:
            return self._mind.answer(text)
        before = self._latest_reply
        self.session.request(CreateReply(say=text))
        await self._until(lambda: self._latest_reply != before)  # usually at once
        return self._latest_reply or ""

    async def _spoken(self, reply_id: str, text: str, heard_before: int) -> Said:
        await self._until(lambda: reply_id in self._finished or self._hearing.key_since(heard_before))
        if reply_id not in self._finished:
            self.session.request(CancelReply(reply_id))
            await self._until(lambda: reply_id in self._finished)
        finished = self._finished[reply_id]
        if finished.status == "failed":
            raise AgentFaultError(f"“{text}” could not be said: {finished.error}")
        if finished.status == "completed":
            self._hearing.forget_words(heard_before)
            return Said(text, text)
        return Said(text, self._truncated.get(reply_id, ""), interrupted=True)

    async def listen(
        self, timeout_s: float = 8.0, *, end_key: str = "#", max_keys: int = 32, key_pause_s: float = 3.0
    ) -> Answer | None:
        """What the caller says next, or types; None if nothing comes for ``timeout_s`` while nobody speaks.

        Typing ends with ``end_key``, after ``max_keys`` keys, or when no key comes for ``key_pause_s``; ``end_key``
        alone counts as a key. Raises ``UnsupportedError`` with an agent that takes the floor by itself.
        """
        if self._stand_in.info.native:
            raise UnsupportedError(
                f"The agent {self._stand_in.info.name!r} answers by itself, so a bot cannot listen in its stead. "
                "Use a cascade, or let it talk: await call.converse()."
            )
        with self._working(), self._listening():
            if not await self._heard_something(timeout_s):
                return None
            heard = self._hearing.next()
            if isinstance(heard, Key):
                return Answer(keys=await self._typed(heard.key, end_key, max_keys, key_pause_s))
            return None if heard is None else Answer(text=heard.text)

    async def _heard_something(self, timeout_s: float) -> bool:
        while not self._hearing:
            await self._until(lambda: bool(self._hearing) or not self._caller_talks())
            if not self._hearing and self.session.machine.floor is Floor.THINKING:
                self._mind.let_go()  # the turn's words were nothing, or the bot has no answer to them
            if await self._until(lambda: bool(self._hearing) or self._caller_talks(), timeout_s):
                continue
            return False
        return True

    async def _typed(self, first: str, end_key: str, max_keys: int, key_pause_s: float) -> str:
        typed, key = "", first
        while key != end_key:
            typed += key
            if len(typed) >= max_keys:
                self._hearing.full(end_key)
                return typed
            if not await self._until(lambda: bool(self._hearing), key_pause_s):
                return typed
            while (next_key := self._hearing.next_key()) is None:
                if not await self._until(lambda: bool(self._hearing), key_pause_s):
                    return typed
            key = next_key
        return typed or end_key

    async def ask(
        self, text: str, timeout_s: float = 8.0, *, end_key: str = "#", max_keys: int = 32, key_pause_s: float = 3.0
    ) -> Answer | None:
        """Says ``text`` and listens. What the caller says over it is the answer, and so is what they typed before."""
        with self._working():
            await self._until(lambda: bool(self._hearing) or self._may_speak())
            if not self._hearing:
                await self.say(text)
            return await self.listen(timeout_s, end_key=end_key, max_keys=max_keys, key_pause_s=key_pause_s)

    async def wait(self, seconds: float) -> None:
        """Lets time pass."""
        with self._working():
            await self._until(lambda: False, seconds)

    # --- the agent ---------------------------------------------------------------------------------

    async def converse(self, timeout_s: float | None = None) -> Any:
        """Lets the agent answer by itself, with the bot's tools, until one of them calls ``conclude``.

        Returns what was concluded, or None after ``timeout_s``. What the caller said last is answered first.
        """
        with self._working(), self._listening():
            self._concluded.clear()
            self._mind.answering = True
            try:
                await self._answer_what_was_said()
                await self._until(lambda: bool(self._concluded), timeout_s)
            finally:
                self._mind.answering = False
            await self._until(self._nothing_being_said, _LAST_WORDS_S)
            self._hearing.forget_words(self._hearing.count)
            return self._concluded[-1] if self._concluded else None

    async def _answer_what_was_said(self) -> None:
        """The caller's turn that the bot left to the agent, if there is one."""
        mind, machine = self._mind, self.session.machine
        if mind.waiting and (machine.floor is Floor.LISTENING or self._hearing.awaiting_words):
            mind.pass_on()  # the agent has its words, or will have
        elif mind.waiting:
            mind.let_go()  # it belongs to a turn that is closed: the words are in the history now
            await self._until(lambda: machine.floor is not Floor.THINKING)
            if self._may_speak():
                self.session.request(CreateReply())
        self._hearing.forget_words(self._hearing.count)

    def conclude(self, result: object = True) -> None:
        """From a tool: ``converse`` is over, and returns ``result``."""
        self._concluded.append(result)
        self._notify()

    async def run(self, tool: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """A tool that the bot calls itself. Raises ``ToolError`` if it raises, or takes longer than the limit."""
        with self._working():
            name = getattr(tool, "__name__", repr(tool))
            return await self._tools.run(name, lambda: tool(*args, **kwargs), self._until, self._notify)

    # --- ending --------------------------------------------------------------------------------------

    async def hand_over(self, to: str) -> None:
        """Passes the call on: the line's own way, or else the one configured as ``bot.hand_over``; ends our part.

        Raises ``HandOverError`` if there is neither, or if it fails; the call goes on then.
        """
        with self._working():
            await self._until(self._nothing_being_said, _LAST_WORDS_S)
            line, hook = ability(self._line, Transferring), self._hand_over
            if line is not None:
                await self._handing_over(line.transfer(to), to)
            elif hook is not None:
                await self._handing_over(hook(self, to), to)
            else:
                raise HandOverError(
                    "This line cannot pass calls on, and no way to do it is configured. "
                    "Set bot.hand_over to a function 'async def f(call, to)', as \"file.py:f\"."
                )
            self._leave(f"handed over to {to}")

    async def _handing_over(self, work: Awaitable[None], to: str) -> None:
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda _: self._notify())
        try:
            if not await self._until(task.done, self._config.hand_over_limit_s):
                raise HandOverError(f"Handing over to {to!r} took longer than {self._config.hand_over_limit_s:g} s.")
            if (error := task.exception()) is not None:
                raise error if isinstance(error, HandOverError) else HandOverError(f"{to!r}: {error}") from error
        finally:
            task.cancel()

    async def hang_up(self) -> None:
        """Ends the call, once what is being said was heard. The bot may still tidy up after it."""
        if self._ended is not None:
            return
        with self._working():
            await self._until(self._nothing_being_said, _LAST_WORDS_S)
        self._leave("the bot hung up")

    def _leave(self, reason: str) -> None:
        self.session.stop(reason)
        self.over(reason)

    # --- below the surface ---------------------------------------------------------------------------

    def request(self, request: Request) -> None:
        """Whatever a client may ask of a session (``duplex/requests.py``). Raises ``ProtocolError``."""
        self.session.request(request)

    async def events(self) -> AsyncIterator[ev.Event]:
        """Everything the session tells, from now on. Past 512 unread, the oldest go (``dropped_events``)."""
        waiting: deque[ev.Event] = deque()
        self._readers.append(waiting)
        try:
            while True:
                while waiting:
                    yield waiting.popleft()
                if self._ended is not None:
                    return
                with self._working(), contextlib.suppress(CallEndedError):
                    await self._until(lambda: bool(waiting))
        finally:
            self._readers.remove(waiting)

    # --- the session's side, through the host ----------------------------------------------------------

    def take(self, event: ev.Event) -> None:
        """An event of the session, while it is being told."""
        self._hearing.take(event)
        match event:
            case ev.ReplyStarted(reply_id=reply_id):
                self._latest_reply = reply_id
            case ev.ReplyTruncated(reply_id=reply_id, heard_text=heard_text) if reply_id in self._said:
                self._truncated[reply_id] = heard_text
            case ev.ReplyFinished(reply_id=reply_id) if reply_id in self._said:
                self._finished[reply_id] = event
                self._tools.told_by(self._mind.knew(reply_id))
            case ev.ReplyFinished(reply_id=reply_id):
                self._tools.told_by(self._mind.knew(reply_id))
            case ev.ToolCallDone():
                self._tools.asked(event, self, self._until, self._notify, self.session.request)
            case _:
                pass
        for waiting in self._readers:
            if len(waiting) >= _MAX_EVENTS:
                waiting.popleft()
                self.dropped_events += 1
            waiting.append(event)
        self._notify()

    def over(self, reason: str) -> None:
        """The call is over: every method that waits raises, and every one begun from now on."""
        self._ended = self._ended or reason
        self._notify()

    @property
    def idle_since_s(self) -> float | None:
        """Since when the bot asks nothing of the call; None while it does."""
        return None if self._at_work else self._left_s

    @property
    def dropped_heard(self) -> int:
        return self._hearing.dropped

    # --- waiting ---------------------------------------------------------------------------------------

    @property
    def _mind(self) -> StandInSession:
        if self._stand_in.session is None:
            raise CallEndedError("The call has not begun.")
        return self._stand_in.session

    def _may_speak(self) -> bool:
        machine = self.session.machine
        if machine.floor is Floor.THINKING:
            return self._mind.waiting and not self._hearing.awaiting_words
        return machine.floor is Floor.LISTENING and not self._caller_talks()

    def _caller_talks(self) -> bool:
        """The caller speaks, or spoke and the words are still to come."""
        machine = self.session.machine
        if machine.floor is Floor.THINKING:
            return self._hearing.awaiting_words
        return machine.floor is Floor.HOLDING or (machine.floor is Floor.LISTENING and machine.user in _TALKING)

    def _nothing_being_said(self) -> bool:
        return self.session.machine.floor is Floor.LISTENING or self._mind.waiting

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        self._check()
        self._at_work += 1
        try:
            yield
        finally:
            self._at_work -= 1
            self._left_s = self._clock.now()

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        self._listeners += 1
        try:
            yield
        finally:
            self._listeners -= 1

    def _check(self) -> None:
        if self._ended is not None:
            raise CallEndedError(f"The call is over: {self._ended}.")

    async def _until(self, met: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Waits until ``met``; False if that did not come within ``timeout_s``. Raises ``CallEndedError``."""
        deadline_s = None if timeout_s is None else self._clock.now() + timeout_s
        while True:
            self._check()
            if met():
                return True
            if deadline_s is not None and self._clock.now() >= deadline_s:
                return False
            changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(changed)
            timer = None if deadline_s is None else self._clock.call_at(deadline_s, self._notify)
            try:
                await changed
            finally:
                if timer is not None:
                    timer.cancel()
                if changed in self._waiters:
                    self._waiters.remove(changed)

    def _notify(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self._tools.owes and not self._speaking_of_it:
            self._speaking_of_it = True  # not now: the session may be in the middle of something
            asyncio.get_running_loop().call_soon(self._speak_of_it)

    def _speak_of_it(self) -> None:
        self._speaking_of_it = False
        if self._ended is None and self._tools.owes and self._mind.answering and self._may_speak():
            self._tools.speak_of_it(self.session.request)
