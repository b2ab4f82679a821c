"""Replies beside the conversation: text alone, made at a client's request while the call goes on, and never remembered.

They have no part in the floor: nobody hears them, so nobody can talk over them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from duplex import events as ev
from duplex.agent import AgentCommand, DropReply, ReplyEnd
from duplex.clock import Clock
from duplex.conversation import Item
from duplex.errors import InvalidEventError
from duplex.items import Items
from duplex.reply import Reply
from duplex.requests import CreateReply

MOST = 4
"""As many at once; each costs the thinker as much as a spoken one."""


class Besides:
    """One session's. ``limit_s``: how long one may give no sign of life."""

    def __init__(
        self,
        items: Items,
        clock: Clock,
        limit_s: float,
        emit: Callable[[ev.Event], None],
        command: Callable[[AgentCommand], None],
        at: Callable[[], ev.At],
    ) -> None:
        self._items, self._clock, self._limit_s = items, clock, limit_s
        self._emit, self._command, self._at = emit, command, at
        self._replies: dict[str, Reply] = {}

    def begin(self, asked: CreateReply, history: tuple[Item, ...]) -> None:
        """Raises ``InvalidEventError`` when there are too many already."""
        if len(self._replies) >= MOST:
            raise InvalidEventError(
                f"{MOST} responses are being made outside the conversation. Wait for one of them.",
                code="too_many_responses",
            )
        reply = Reply.asked_for(
            asked, self._items.new_id("resp"), self._items.new_id("item"), silent=True, speculative=False
        )
        reply.public, reply.came_s = True, self._clock.now()
        self._replies[reply.reply_id] = reply
        self._emit(reply.told(self._at(), None))
        self._command(replace(reply.begin(asked, history), silent=True))

    def current(self, reply_id: str) -> Reply | None:
        return self._replies.get(reply_id)

    def add_text(self, reply: Reply, delta: str) -> None:
        reply.text += delta
        reply.came_s = self._clock.now()
        self._emit(ev.ReplyTextAdded(self._at(), reply.reply_id, reply.item_id, delta))

    def end(self, reply: Reply, end: ReplyEnd) -> None:
        if end.error is not None:
            reply.error = str(end.error)
        reply.cut_short = end.cut_short
        self._finish(reply, reply.status)

    def cancel(self, reply: Reply) -> None:
        self._command(DropReply(reply.reply_id))
        self._finish(reply, "cancelled")

    def tick(self, now_s: float) -> None:
        """A reply that shows no sign of life ends."""
        late: Iterable[Reply] = [r for r in self._replies.values() if now_s - r.came_s > self._limit_s]
        for reply in late:
            self._command(DropReply(reply.reply_id))
            reply.error = f"Nothing of it came within {self._limit_s:g} s."
            self._finish(reply, "failed")

    def _finish(self, reply: Reply, status: str) -> None:
        del self._replies[reply.reply_id]
        told = ev.ReplyFinished(
            self._at(), reply.reply_id, reply.item_id, status, reply.text, 0.0, reply.error, reply.usage
        )
        self._emit(told)
