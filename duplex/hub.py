"""The hub: every live session of a process, and the one place that says "full"."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterator
from typing import Self

from duplex.agent import Admitting, Agent, AgentSettings
from duplex.clock import Clock
from duplex.config import SessionConfig
from duplex.echo import EchoCancelledLine, EchoCanceller
from duplex.errors import AgentFullError
from duplex.line import Line
from duplex.metrics import Metrics
from duplex.session import Session

log = logging.getLogger("duplex.hub")

UNCOUNTED = 4  # calls at a time of an agent that does not know how many it can take: what two CPU cores carry


GIVES_WAY_S = 3.0
"""So long a far end may be out of reach before somebody who is here gets its place."""


def _most(agent: Agent, wanted: int | None) -> int | None:
    """Calls at a time; ``None``: as many as the agent admits."""
    places = agent.info.places
    if places is None:
        return UNCOUNTED if wanted is None and not isinstance(agent, Admitting) else wanted
    if wanted is not None and wanted > places:
        log.warning(
            "the agent has %d places, so no more than that of the %d calls in server.max_sessions are taken;"
            " give agent.options.max_sessions the same number",
            places,
            wanted,
        )
    return places if wanted is None else min(wanted, places)


class Reservation:
    """A place kept while a call is being set up. Use it with ``SessionHub.open`` or release it."""

    def __init__(self, hub: SessionHub) -> None:
        self._hub: SessionHub | None = hub

    def release(self) -> None:
        """Gives the place back; harmless when it was used or given back already."""
        if self._hub is not None:
            self._hub._reserved -= 1
            self._hub = None


class SessionHub:
    """Opens, counts and ends sessions. Lives on one event loop; ``async with`` starts and closes it.

    ``max_sessions`` bounds live sessions plus reservations; one more raises ``AgentFullError``. None: as many as the
    agent admits or has places for, or ``UNCOUNTED`` of one that does not say. Never more than its places.
    ``make_session`` makes each of them, e.g. ``Recorder.session``; it takes what ``Session`` takes.
    ``make_canceller`` makes each an echo canceller; without it lines are taken to cancel echo themselves.
    """

    def __init__(
        self,
        agent: Agent,
        clock: Clock,
        config: SessionConfig,
        *,
        max_sessions: int | None,
        metrics: Metrics | None = None,
        retry_after_s: float = 5.0,
        make_session: Callable[..., Session] = Session,
        make_canceller: Callable[[], EchoCanceller] | None = None,
    ) -> None:
        self.agent = agent
        self.clock = clock
        self.config = config
        self.metrics = metrics if metrics is not None else Metrics()
        self.max_sessions = _most(agent, max_sessions)
        self.ready = False
        self.draining = False
        self.empty = asyncio.Event()  # no session is open
        self.empty.set()
        self._retry_after_s = self._stops_s = retry_after_s
        self._make_session = make_session
        self._make_canceller = make_canceller
        self._reserved = 0
        self._leaving: set[str] = set()  # sessions that end, and whose places are free
        self._sessions: dict[str, tuple[Session, asyncio.Task[None]]] = {}

    def __iter__(self) -> Iterator[Session]:
        return iter([session for session, _ in self._sessions.values()])

    @property
    def live(self) -> int:
        return len(self._sessions)

    def drain(self, deadline_s: float) -> None:
        """Takes no more calls, and is not ready any more; the server stops in ``deadline_s`` at the latest."""
        self.ready, self.draining = False, True
        self._stops_s = max(deadline_s, self._retry_after_s)

    def let_go(self, reason: str) -> bool:
        """Ends the session whose far end has been out of reach for longest, and for ``GIVES_WAY_S``, if there is one.
        Its place is free at once."""
        waiting = [s for s in self if s.id not in self._leaving and s.out_of_touch_s >= GIVES_WAY_S]
        if not waiting:
            return False
        session = max(waiting, key=lambda s: s.out_of_touch_s)
        log.info("session %s waits no more for its far end: %s", session.id, reason)
        self._leaving.add(session.id)
        session.stop(reason)
        return True

    async def start(self) -> None:
        """Loads and warms the agent; afterwards ``ready`` is true."""
        await self.agent.start()
        self.metrics.include(self.agent)
        self.ready = True

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def reserve(self) -> Reservation:
        """Keeps a place for a call that is being set up. Raises ``AgentFullError``."""
        if self.draining:
            raise AgentFullError("The server is stopping. Try again later, or call another.", self._stops_s)
        if not self.ready:
            raise AgentFullError("The models are still warming up. Try again in a moment.", self._retry_after_s)
        if self._full() and not self.let_go("its place is needed"):
            raise AgentFullError(
                f"All {self.max_sessions} places are taken. Try again when a call has ended.", self._retry_after_s
            )
        if isinstance(self.agent, Admitting):
            self.agent.admit()
        self._reserved += 1
        return Reservation(self)

    def _full(self) -> bool:
        taken = self.live - len(self._leaving) + self._reserved
        return self.max_sessions is not None and taken >= self.max_sessions

    def open(
        self, line: Line, settings: AgentSettings, reservation: Reservation | None = None, *, bot: str | None = None
    ) -> Session:
        """Starts a session on ``line``; it ends by itself when the line closes. Raises ``AgentFullError``.

        ``bot``: who answers, where that is not the configured one; ``make_session`` has to know bots then
        (``duplex.bots.Bots.session``), and raises ``ConfigError`` for one that does not exist.
        """
        if reservation is None:
            reservation = self.reserve()
        reservation.release()
        if self._make_canceller is not None:
            line = EchoCancelledLine(line, self._make_canceller(), self.clock)
        session = self._make_session(
            session_id=f"sess_{uuid.uuid4().hex[:24]}",
            line=line,
            agent=self.agent,
            clock=self.clock,
            config=self.config,
            settings=settings,
            metrics=self.metrics,
            **({} if bot is None else {"bot": bot}),
        )
        task = asyncio.create_task(session.run(), name=session.id)
        self._sessions[session.id] = (session, task)
        self.empty.clear()
        self.metrics.sessions_live.set(self.live)
        task.add_done_callback(lambda done: self._ended(session.id, done))
        return session

    async def left(self, session: Session) -> None:
        """Returns once a session whose line has closed is over, and its place free."""
        if (live := self._sessions.get(session.id)) is not None:
            await asyncio.wait([live[1]])

    def _ended(self, session_id: str, task: asyncio.Task[None]) -> None:
        self._sessions.pop(session_id, None)
        self._leaving.discard(session_id)
        if not self._sessions:
            self.empty.set()
        self.metrics.sessions_live.set(self.live)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("session %s ended by a fault: %s", session_id, error, exc_info=error)

    async def close(self, reason: str = "the server is stopping", grace_s: float = 2.0) -> None:
        """Ends every session (told why, within ``grace_s``), then the agent."""
        self.ready = False
        sessions = list(self._sessions.values())
        for session, _ in sessions:
            session.stop(reason)
        tasks = [task for _, task in sessions]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self.agent.close()
