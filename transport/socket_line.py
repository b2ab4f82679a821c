"""What every line over one connection does alike: a bounded queue to a far end that may stop reading, and the end.

Nothing in it blocks or awaits but ``close``. A task of the connection takes from the queue and sends; another reads,
and waits while the queue is long, so that a far end cannot make us queue answers without end. When the queue is full
or one message takes longer than the limit to be taken, the far end is not reading, and the connection ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

from starlette.websockets import WebSocket, WebSocketDisconnect

from duplex.clock import Clock

T = TypeVar("T")

STALL_LIMIT_S = 5.0
DRAIN_LIMIT_S = 2.0
NORMAL, UNUSABLE, TOO_SLOW = 1000, 1003, 1008  # RFC 6455, 7.4.1: normal, data of a kind not taken, policy


class SocketLine(Generic[T]):
    """``T``: what waits to be sent. ``max_unsent``: how many of them may."""

    def __init__(self, clock: Clock, *, max_unsent: int = 512, stall_limit_s: float = STALL_LIMIT_S) -> None:
        self.closed = False
        self.ending: tuple[int, str] | None = None  # close code and reason, once somebody wants an end
        self.wants_end = asyncio.Event()
        self.has_room = asyncio.Event()  # the outgoing queue is short enough to read on
        self.gone = asyncio.Event()  # the connection is over, everything of it
        self._clock = clock
        self._max_unsent, self._stall_limit_s = max_unsent, stall_limit_s
        self._queue: deque[T] = deque()
        self._queued = asyncio.Event()
        self._sending_since_s: float | None = None
        self.has_room.set()

    def end(self, code: int, reason: str) -> None:
        """Asks for the end of the connection; the first reason given is the one that counts."""
        if self.ending is None:
            self.ending = (code, reason)
            self.wants_end.set()
            self._queued.set()
        if code != NORMAL:
            self.closed = True

    async def close(self, reason: str) -> None:
        self.end(NORMAL, reason)
        await self.gone.wait()

    def end_if_stalled(self, now_s: float) -> None:
        """For every tick: a message that nobody takes ends the connection."""
        if self._sending_since_s is not None and now_s - self._sending_since_s > self._stall_limit_s:
            self.end(TOO_SLOW, f"The far end took nothing for {self._stall_limit_s:g} s.")

    def put(self, waiting: T) -> None:
        """Queues it. A queue that is full is a far end that does not keep up."""
        if self.closed:
            return
        if len(self._queue) >= self._max_unsent:
            self.end(TOO_SLOW, f"The far end did not keep up: {self._max_unsent} messages were waiting for it.")
            return
        self._queue.append(waiting)
        self._queued.set()
        self.look_at_room()

    def look_at_room(self) -> None:
        """For whoever took from the queue."""
        if len(self._queue) < self._max_unsent // 2:
            self.has_room.set()
        else:
            self.has_room.clear()

    async def sending(self, message: Awaitable[None]) -> None:
        """Waits for one message to be taken, under watch."""
        self._sending_since_s = self._clock.now()
        await message
        self._sending_since_s = None


async def hold_connection(
    websocket: WebSocket,
    line: SocketLine[Any],
    *,
    reader: Coroutine[Any, Any, Any],
    sender: Coroutine[Any, Any, None],
    log: logging.Logger,
    also: Sequence[Coroutine[Any, Any, Any]] = (),
    parks: Callable[[asyncio.Task[Any]], bool] = lambda reading: False,
) -> None:
    """Runs both until the far end is gone or the line wants an end, drains what is queued, and closes.

    ``also``: what else runs meanwhile, and whose end is the connection's. ``parks`` is asked then, with the reader's
    task, whether the line goes on without this connection.
    """
    sending = asyncio.create_task(sender, name="socket sender")
    reading = asyncio.create_task(reader, name="socket reader")
    ending = asyncio.create_task(line.wants_end.wait(), name="socket end")
    tasks: list[asyncio.Task[Any]] = [sending, reading, ending, *(asyncio.create_task(work) for work in also)]
    parked = False
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if line.ending is not None and not line.closed and not reading.done():
            await asyncio.wait([sending], timeout=DRAIN_LIMIT_S)
    finally:
        parked = parks(reading)
        if not parked:
            line.closed = True
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception) and not isinstance(result, WebSocketDisconnect) and not parked:
                log.error("a connection failed: %s", result, exc_info=result)
        code, reason = line.ending or (NORMAL, "")
        if parked:
            code, reason = TOO_SLOW, "The connection was lost; the session waits to be resumed."
        elif code != NORMAL:
            log.warning("closed a connection: %s", reason)
        await close_websocket(websocket, code, reason)
        if not parked:
            line.gone.set()


async def close_websocket(websocket: WebSocket, code: int, reason: str) -> None:
    """Says goodbye, if the far end still takes it."""
    # RuntimeError: the far end closed first. The limit: one that does not read takes no goodbye either.
    with contextlib.suppress(RuntimeError, WebSocketDisconnect, TimeoutError):
        async with asyncio.timeout(DRAIN_LIMIT_S):
            # A close frame holds 123 bytes of reason.
            await websocket.close(code, reason.encode("utf-8")[:123].decode("utf-8", "ignore"))
