"""What is given up under overload, and when it is taken back. Pure: numbers of each tick in, and time.

First codebooks, then new calls. How many codebooks the device has time for is :mod:`duplex.bitrate`'s deadline ceiling,
told of every tick's headroom and, at once, of an overload: when more than a share of the last ticks missed their
deadline. The window then begins anew, so that each step is judged by its own ticks. An overload with the fewest
codebooks refuses new calls until a quiet stretch is over; a stretch that proved too short (overload came back within
it) is twice as long next time, so that a load that just does not fit is not tried again and again.
"""

from __future__ import annotations

import math
from collections import deque
from enum import IntEnum

from duplex.bitrate import BitrateOptions, BitratePolicy

from .options import ShedOptions


class Level(IntEnum):
    NOTHING = 0  # is given up
    CODEBOOKS = 1
    CALLS = 2  # new ones are refused


class Shedder:
    """``codebooks``: how many a frame has. ``policy``: how many of them calls get. ``patience_s``: the quiet time after
    which calls are taken again."""

    def __init__(self, options: ShedOptions, codebooks: int) -> None:
        self._options = options
        fewest = max(1, math.ceil(options.fewest_share * codebooks))
        self.policy = BitratePolicy(
            BitrateOptions(fewest=fewest, most=codebooks, deadline=options.deadline, link=options.link)
        )
        self.refusing = False
        self.patience_s = options.recover_s
        self._window: deque[bool] = deque(maxlen=options.window_ticks)
        self._last_tick_s = -math.inf
        self._quiet_since_s = -math.inf
        self._opened_at_s = -math.inf  # when calls were taken again

    @property
    def level(self) -> Level:
        if self.refusing:
            return Level.CALLS
        return Level.NOTHING if self.policy.ceiling == self.policy.options.most else Level.CODEBOOKS

    def tick(self, now_s: float, headroom: float, missed: bool) -> None:
        """One tick ended. ``headroom``: what was left, of a frame, until the first of its results was due; below 0 if
        it was late. ``missed``: it was."""
        self.settle(now_s)
        self._last_tick_s = now_s
        self._window.append(missed)
        overload = False
        if missed:
            self._quiet_since_s = now_s
            overload = sum(self._window) > self._options.miss_share * self._options.window_ticks
        fewest = self.policy.ceiling == self.policy.options.fewest
        # A single late tick is short of time like others; that many are an overload.
        self.policy.tick(max(0.0, headroom), missed=overload)
        if overload:
            self._window.clear()
            if fewest:
                self.refuse(now_s)

    def refuse(self, now_s: float) -> None:
        """No new calls for a while: nothing is left to give up, or the device ran out of memory."""
        if now_s - self._opened_at_s < self.patience_s:
            self.patience_s = min(2 * self.patience_s, self._options.recover_limit_s)
            self._opened_at_s = -math.inf
        self.refusing = True
        self._quiet_since_s = now_s
        self._window.clear()

    def settle(self, now_s: float) -> None:
        """Takes back what quiet time has earned, ticks or no ticks."""
        if now_s - self._last_tick_s >= self._options.recover_s:
            self.policy.reset()  # nobody has spoken since
        while now_s - self._quiet_since_s >= self.patience_s:
            if self.refusing:
                self.refusing = False
                self._quiet_since_s += self.patience_s
                self._opened_at_s = self._quiet_since_s
                self._window.clear()
            elif self.patience_s > self._options.recover_s:
                self._quiet_since_s += self.patience_s
                self.patience_s = max(self._options.recover_s, self.patience_s / 2)
            else:
                return
