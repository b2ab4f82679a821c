"""Which of a session's places in the thinker a reply is thought at.

A place thinks one thought at a time and keeps its prompt warm, so the conversation's replies have one of their own. A
client may ask for others beside them (text alone, while the call goes on): those get places that are opened when they
are needed, so that neither cancels the other.
"""

from __future__ import annotations

from .reply_work import ReplyWork
from .thinker import Thinker, ThinkerSession


class ThinkingPlaces:
    """One session's. For its thread. Raises ``AgentFullError`` if there is no place at all."""

    def __init__(self, thinker: Thinker) -> None:
        self._thinker = thinker
        self.main = thinker.open()
        self._beside: list[ThinkerSession] = []
        self._works: list[tuple[ReplyWork, ThinkerSession]] = []

    def take(self, work: ReplyWork, *, beside: bool) -> ThinkerSession:
        """The main place, unless the reply is made ``beside`` the conversation or another is thought there just now."""
        self._works = [(other, place) for other, place in self._works if other.thinking]
        busy = [place for _, place in self._works]
        mine: list[ThinkerSession] = [*self._beside] if beside else [self.main, *self._beside]
        free = [place for place in mine if place not in busy]
        if not free:
            free = [self._thinker.open_beside()]
            self._beside += free
        self._works.append((work, free[0]))
        return free[0]

    def close(self) -> None:
        for place in (self.main, *self._beside):
            place.close()
