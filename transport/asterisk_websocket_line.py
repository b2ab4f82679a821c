"""The session's side of one call through Asterisk's ``chan_websocket``.

Asterisk takes what it is sent into a queue of frames and plays one every 20 ms of its own clock. A mark in that queue
is reported when all before it has been played; ``FLUSH_MEDIA`` empties the queue, marks and all, so the marks behind a
flush are never heard of again: a later one settles their fate. The frame that is being played is played to its end.

Marks wait for Asterisk's beat even where there is nothing to play, so they cannot tell how long the way is. The answer
to ``GET_STATUS`` does not wait: that measures the round trip, at the beginning and with every flush.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from duplex import events as ev
from duplex.clock import Clock
from duplex.line import OutPacket
from duplex.metrics import Metrics
from duplex.transport.asterisk_websocket_wire import Command, ControlFormat, MediaStart, write
from duplex.transport.continuous_line import ContinuousLine
from duplex.transport.telephone import Message, Wire
from duplex.transport.telephone_edge import Encoding
from duplex.transport.telephone_playout import FarEnd, Fate

log = logging.getLogger("duplex.asterisk")

NO_MARKS_S = 5.0
_MAX_ASKED = 16
LAST_SOUND_S = 0.5  # what Asterisk may still have to play when we hang up


class AsteriskFarEnd(FarEnd):
    """The queue of a channel, and how far it is."""

    def answered(self, took_s: float) -> None:
        """How long a question took that is answered at once."""
        self._trips.append(took_s)


class AsteriskLine(ContinuousLine):
    """``answer``: say so when the session has begun, for dial strings that leave the answering to us (``n``)."""

    def __init__(
        self,
        clock: Clock,
        metrics: Metrics,
        start: MediaStart,
        control: ControlFormat,
        encoding: Encoding,
        *,
        answer: bool = False,
        facts: Mapping[str, str] | None = None,
        assumed_delay_ms: float = 100.0,
        max_unsent: int = 512,
    ) -> None:
        self._control, self._answer = control, answer
        self._held = False
        self._greeted_s: float | None = None
        self._asked_s: deque[float] = deque(maxlen=_MAX_ASKED)
        words = Wire(
            media=lambda code: code,
            mark=lambda name: write(Command.MARK, control, name),
            clear=lambda: write(Command.FLUSH, control),
        )
        super().__init__(
            clock,
            metrics,
            words,
            encoding,
            name=f"Asterisk call {start.channel_id or start.connection_id}",
            facts=facts,
            assumed_delay_ms=assumed_delay_ms,
            max_unsent=max_unsent,
        )
        self.far_end: AsteriskFarEnd = AsteriskFarEnd(
            lead_packets=self.lead_packets, assumed_delay_s=assumed_delay_ms / 1000.0
        )

    def tell(self, command: Command) -> None:
        """Queues a command."""
        self.put(write(command, self._control))

    def emit(self, event: ev.Event) -> None:
        if isinstance(event, ev.SessionStarted) and self._answer:
            self.tell(Command.ANSWER)
        super().emit(event)

    def greet(self) -> None:
        self._greeted_s = self._clock.now()
        self._ask()
        super().greet()

    def flush(self) -> int:
        samples = super().flush()
        self._ask()
        return samples

    def _ask(self) -> None:
        self._asked_s.append(self._clock.now())
        self.tell(Command.GET_STATUS)

    def status(self) -> None:
        """The answer to the oldest ``GET_STATUS``."""
        if self._asked_s:
            self.far_end.answered(self._clock.now() - self._asked_s.popleft())

    # --- flow ---------------------------------------------------------------------------------------

    def hold_back(self, held: bool) -> None:
        """Asterisk's queue is full (XOFF), or has room again (XON). Commands pass, sound waits, silence is left out."""
        self._held = held
        self._queued.set()

    def returned(self, mark: str) -> Fate:
        self._greeted_s = None
        return super().returned(mark)

    def send(self, packet: OutPacket) -> None:
        if self._greeted_s is not None and self._clock.now() - self._greeted_s > NO_MARKS_S:
            self._greeted_s = None
            self._wire = replace(self._wire, mark=None)
            log.warning(
                "%s: no mark came back, so what was heard is judged by the clock. Asterisk reports marks from 20.18, "
                "22.8 and 23.2 on.",
                self.name,
            )
        super().send(packet)

    def _is_behind(self) -> bool:
        return self._held or super()._is_behind()

    def _may_leave(self) -> bool:
        if self._held and isinstance(self._queue[0], OutPacket):
            return False
        return super()._may_leave()

    def _wake_in_time(self) -> None:
        if not self._held:
            super()._wake_in_time()

    async def run_sender(self, send: Callable[[Message], Awaitable[None]]) -> None:
        """Ends with the hang-up, once what is with Asterisk has been played."""
        await super().run_sender(send)
        now_s = self._clock.now()
        await self._clock.sleep_until(now_s + min(self.far_end.remaining_s(now_s), LAST_SOUND_S))
        await self.sending(send(write(Command.HANG_UP, self._control)))
