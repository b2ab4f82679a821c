"""What the scheduler's thread tells a call, kept until the call's own thread asks for it."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable

from duplex.errors import AgentFaultError, DuplexError
from duplex.scheduler.deliveries import Delivery, Dropped, Ended, Ready, Stepped

_SETTLE_LIMIT_S = 60.0


class SlotInbox:
    """One slot's. It is the ``Deliver`` that the slot is opened with; ``wake`` is called after each delivery.

    Bounded by what may be submitted and not collected: every fate in it is that of one frame.
    ``ended``: why the slot is gone.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._changed = threading.Condition()
        self._fates: deque[Stepped | Dropped] = deque()
        self._frames = 0  # whose fates have come
        self._whenever_ready: Callable[[], None] = lambda: None
        self.ready = False
        self.ended: DuplexError | None = None

    def __call__(self, delivery: Delivery) -> None:
        with self._changed:
            was_ready = self.ready
            match delivery:
                case Stepped():
                    self._fates.append(delivery)
                    self._frames += 1
                case Dropped(count=count):
                    self._fates.append(delivery)
                    self._frames += count
                case Ready():
                    self.ready = True
                case Ended(error=error):
                    self.ended, self.ready = error, True
            became_ready = self.ready and not was_ready
            self._changed.notify_all()
        if became_ready:
            self._whenever_ready()
        self._wake()

    def take(self) -> Stepped | Dropped | None:
        """The next fate, in the order in which the frames were submitted."""
        return self._fates.popleft() if self._fates else None

    def __len__(self) -> int:
        return len(self._fates)

    async def wait_ready(self) -> None:
        """Returns once the slot has read its prompt. Raises what kept it from that."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def ready() -> None:
            try:
                loop.call_soon_threadsafe(done.set)
            except RuntimeError:  # the loop closed first
                pass

        with self._changed:
            self._whenever_ready = ready
            if self.ready:
                done.set()
        await done.wait()
        if self.ended is not None:
            raise self.ended

    def settle(self, frames: int) -> None:
        """Blocks until the slot is ready, and the fates of the first ``frames`` frames have come or never will."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: self.ended is not None or (self.ready and self._frames >= frames), _SETTLE_LIMIT_S
            ):
                raise AgentFaultError(f"The device did not finish a frame within {_SETTLE_LIMIT_S:g} s.")
