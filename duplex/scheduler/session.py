"""A call's handle on the scheduler. Nothing here waits for the device."""

from __future__ import annotations

import math
from concurrent.futures import Future
from typing import Any

import numpy as np

from duplex.bitrate import LinkReport
from duplex.errors import ProtocolError
from duplex.frames import Samples

from .board import Board, Call, Kind
from .deliveries import Deliver


class SchedulerSession:
    """Returned by ``Scheduler.open``. From any thread."""

    def __init__(self, board: Board, call: Call) -> None:
        self._board = board
        self._call = call

    @property
    def waiting(self) -> int:
        """Frames that were taken and not stepped yet."""
        return len(self._call.frames)

    @property
    def gone(self) -> bool:
        """It left, or was told that it ended."""
        return self._call.gone

    def submit(
        self,
        samples: Samples,
        *,
        forced_text: int | None = None,
        silent: bool = False,
        codebooks: int | None = None,
        link: LinkReport | None = None,
    ) -> bool:
        """Takes one frame, float32[frame_samples] and finite; it is not copied. ``link``: a new report about the
        call's link, if there is one. The other arguments are those of ``SlotFrame``.

        True: it was taken, and its fate will be delivered. False: the call is gone, or too many frames wait already
        and the policy is to refuse. Raises ``ProtocolError`` for anything that is not a whole frame of sound.
        """
        if samples.shape != (self._board.frame_samples,) or samples.dtype != np.float32:
            raise ProtocolError(
                f"A frame is float32[{self._board.frame_samples}], not {samples.dtype}{list(samples.shape)}.",
                param="samples",
            )
        if not math.isfinite(float(samples.sum())):
            raise ProtocolError("A frame's samples must be finite numbers.", param="samples")
        return self._board.submit(self._call, samples, forced_text, silent, codebooks, link)

    def leave(self) -> None:
        """Frees the slot, soon; its place is free at once. Nothing is delivered from then on, except what is being
        delivered on another thread at this moment. Harmless when gone."""
        self._board.leave(self._call)

    def reset(self) -> Future[None]:
        """Makes the slot as new, with its settings; waiting frames are dropped. Then its prompt is read again, and
        ``Ready`` delivered. The future is done when the slot is reset; it raises what kept it from that."""
        return self._board.ask(Kind.RESET, self._call)

    def snapshot(self) -> Future[Any]:
        """The slot's state between two ticks, for ``Scheduler.restore``: no frame that was not stepped by now is in it.

        The future raises ``AgentError`` if the slot is gone or still reads its prompt."""
        return self._board.ask(Kind.SNAPSHOT, self._call)

    def fork(self, deliver: Deliver) -> SchedulerSession:
        """A second call that goes on from this one's state; frames not stepped by now are this one's alone.

        Raises ``AgentFullError`` at once; if this slot is gone or still reads its prompt, the new call is told that it
        ended."""
        return SchedulerSession(self._board, self._board.fork(self._call, deliver))
