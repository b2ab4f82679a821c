"""The session's side of a WebSocket that carries sound both ways: what every such door does alike, on a ``SocketLine``.

Theory of operation
-------------------
Nothing here that the session calls blocks or awaits. Two tasks of the connection move bytes. The *sender*
(``run_sender``) takes what is queued, in order, and makes messages of it at the moment they leave. The *reader*, the
door's own, waits for ``has_room`` before it reads on, so a client cannot make us queue answers without end.

    session ─ send, emit ─► put ─► queue ─► run_sender ─► WebSocket ─► reader ─► LiveInput ─ receive ─► session

When the queue is full, ``_make_room`` may drop what can be spared; if it cannot, the client is not reading and the
connection ends. A door says what it tells the client of (``emit``), what of its queue is sound (``_sound_in``) and how
it is written (``_messages``); everything else is here.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TypeVar

from starlette.websockets import WebSocket

from duplex.bitrate import LinkReport
from duplex.clock import Clock
from duplex.events import Event
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Image, Packet
from duplex.line import OutPacket, PlayoutReport
from duplex.metrics import Metrics
from duplex.transport.pcm import LiveInput
from duplex.transport.socket_line import STALL_LIMIT_S, TOO_SLOW, SocketLine

LINK_EVERY_S = 1.0

Waiting = TypeVar("Waiting")


class SessionSocket(SocketLine[Waiting], ABC):
    """Implements ``duplex.line.Line`` but for ``lead_packets``, ``send`` and ``emit``, and
    ``duplex.bitrate.LinkReporting``. ``max_input_s``: the most sound that may wait to be heard.
    """

    def __init__(
        self,
        clock: Clock,
        metrics: Metrics,
        *,
        max_unsent: int = 512,
        stall_limit_s: float = STALL_LIMIT_S,
        max_input_s: float = 60.0,
    ) -> None:
        super().__init__(clock, max_unsent=max_unsent, stall_limit_s=stall_limit_s)
        self.drained = asyncio.Event()  # all that was pushed has been heard
        self._metrics = metrics
        self._input = LiveInput(max_input_s)
        self._queued_samples = 0  # of sound, in the queue
        self._least_behind_s = math.inf  # since the last report about the link
        self._reported_s = clock.now()
        self.drained.set()

    # --- what a door says of itself ---------------------------------------------------------------

    @abstractmethod
    def send(self, packet: OutPacket) -> None: ...

    @abstractmethod
    def emit(self, event: Event) -> None: ...

    @abstractmethod
    def _sound_in(self, waiting: Waiting) -> int:
        """How many samples of sound it is; 0 for what ``flush`` leaves in its place."""
        ...

    @abstractmethod
    def _messages(self, waiting: Waiting) -> Iterable[str | bytes]:
        """What to send for it, now that its turn has come. Text goes out as text messages, bytes as binary ones."""
        ...

    def _make_room(self) -> bool:
        """The queue is full: drops something of it that can be spared, and says whether it did."""
        return False

    def _too_slow(self) -> str:
        """The reason a client is told that did not read."""
        return f"The client did not keep up: {self._max_unsent} messages were waiting for it."

    # --- what the session calls -------------------------------------------------------------------

    def receive(self) -> Sequence[Packet]:
        now_s = self._clock.now()
        self.end_if_stalled(now_s)
        self._least_behind_s = min(self._least_behind_s, self.behind_s)
        packets = self._input.receive(now_s)
        if len(self._input) < PACKET_SAMPLES:
            self.drained.set()
        return packets

    def take_image(self) -> Image | None:
        return None

    def flush(self) -> int:
        taken_back = self._queued_samples
        if taken_back:
            self._queue = deque(waiting for waiting in self._queue if not self._sound_in(waiting))
            self._queued_samples = 0
            self.look_at_room()
        return taken_back

    def playout(self) -> PlayoutReport | None:
        return None

    def take_link(self) -> LinkReport | None:
        """Once a second, the queue that stood before the client all the while: what comes in bursts and is taken is
        no sign of a slow link. TCP tells of no loss."""
        now_s = self._clock.now()
        if now_s - self._reported_s < LINK_EVERY_S or self._least_behind_s == math.inf:
            return None
        report = LinkReport(rtt_ms=1000.0 * self._least_behind_s)
        self._reported_s, self._least_behind_s = now_s, math.inf
        return report

    # --- the queue ----------------------------------------------------------------------------------

    @property
    def behind_s(self) -> float:
        """How much sound waits for the client to take it."""
        return self._queued_samples / SAMPLE_RATE_HZ

    def put(self, waiting: Waiting) -> None:
        if self.closed:
            return
        if len(self._queue) >= self._max_unsent and not self._make_room():
            self.end(TOO_SLOW, self._too_slow())
            return
        super().put(waiting)
        self._queued_samples += self._sound_in(waiting)

    async def run_sender(self, websocket: WebSocket) -> None:
        """Sends what is queued, in order; returns when the end is wanted and everything is out."""
        while True:
            while self._queue:
                waiting = self._take()
                for message in self._messages(waiting):
                    if isinstance(message, str):
                        await self.sending(websocket.send_text(message))
                    else:
                        await self.sending(websocket.send_bytes(message))
            if self.ending is not None:
                return
            self._queued.clear()
            await self._queued.wait()

    def _take(self) -> Waiting:
        waiting = self._queue.popleft()
        self._queued_samples -= self._sound_in(waiting)
        self.look_at_room()
        return waiting
