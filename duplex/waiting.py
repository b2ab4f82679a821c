"""Requests that wait for what came before them: a commit for the ear, and what follows a commit for its words.

A client that says "this was my turn" means all the sound it had sent. The agent's ear is a little behind, so the commit
waits for it. And who asks for a reply right after that means a reply to those words, so it waits for them to be
understood. Nothing waits longer than :data:`LIMIT_S`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from duplex.errors import InvalidEventError
from duplex.requests import AddMessage, AddToolCall, AddToolResult, CommitInput, CreateReply, Request

LIMIT_S = 3.0
MOST = 64

Ready = Callable[[Request, float], bool]
"""Whether a request may be carried out now, having waited that long."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    request: Request
    client_event_id: str | None
    since_s: float


class Waiting:
    """One session's, in order: what follows a request that waits, and builds on it, waits behind it."""

    def __init__(self, ready: Ready) -> None:
        self._ready = ready
        self._queue: deque[_Waiting] = deque()

    def has_to_wait(self, request: Request, client_event_id: str | None, now_s: float) -> bool:
        """True if it was put aside. Raises ``InvalidEventError`` when too much waits already."""
        if not isinstance(request, CommitInput | CreateReply | AddMessage | AddToolCall | AddToolResult):
            return False
        if not self._queue and self._ready(request, 0.0):
            return False
        if len(self._queue) >= MOST:
            raise InvalidEventError(f"{MOST} events wait for the last commit. Wait for input_audio_buffer.committed.")
        self._queue.append(_Waiting(request, client_event_id, now_s))
        return True

    def take(self, now_s: float) -> tuple[Request, str | None] | None:
        """The next that need not wait any longer, with the name its client gave it."""
        if not self._queue:
            return None
        first = self._queue[0]
        waited_s = now_s - first.since_s
        if waited_s < LIMIT_S and not self._ready(first.request, waited_s):
            return None
        self._queue.popleft()
        return first.request, first.client_event_id
