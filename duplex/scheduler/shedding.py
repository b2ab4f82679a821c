"""What is given up under overload, and when it is taken back. Pure: a table, a window of misses, and time.

Up: too many ticks of the window missed their deadline. The window then begins anew, so each level is judged by its own
ticks. Down: one level for every quiet stretch. A stretch that proved too short (overload came back within it) is twice
as long next time, so that a load that just does not fit is not tried again and again.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from .options import ShedOptions


@dataclass(frozen=True, slots=True)
class Level:
    """``codebook_share`` of an agent's codebooks are decoded; ``admits``: new calls are taken."""

    codebook_share: float
    admits: bool

    def codebooks(self, all_codebooks: int | None, wanted: int | None) -> int | None:
        """How many to decode of a frame, of which ``wanted`` were asked for (``None``: all)."""
        if self.codebook_share >= 1.0 or all_codebooks is None:
            return wanted
        most = max(1, math.ceil(self.codebook_share * all_codebooks))
        return most if wanted is None else min(most, wanted)


def levels(options: ShedOptions) -> tuple[Level, ...]:
    """The policy as a table: 0 gives up nothing, the last refuses calls as well."""
    shares = (1.0, *options.codebook_shares)
    return (*(Level(share, True) for share in shares), Level(shares[-1], False))


class Shedder:
    """``index``: the level in force. ``patience_s``: the quiet time that takes one back."""

    def __init__(self, options: ShedOptions) -> None:
        self._options = options
        self.levels = levels(options)
        self.index = 0
        self.patience_s = options.recover_s
        self._window: deque[bool] = deque(maxlen=options.window_ticks)
        self._quiet_since_s = -math.inf
        self._fell_at_s = -math.inf

    @property
    def level(self) -> Level:
        return self.levels[self.index]

    def tick(self, now_s: float, missed: bool) -> None:
        """One tick ended."""
        self.settle(now_s)
        self._window.append(missed)
        if missed:
            self._quiet_since_s = now_s
            if sum(self._window) > self._options.miss_share * self._options.window_ticks:
                self._rise(now_s, min(self.index + 1, len(self.levels) - 1))

    def refuse(self, now_s: float) -> None:
        """Straight to the last level: the device ran out of memory."""
        self._rise(now_s, len(self.levels) - 1)

    def settle(self, now_s: float) -> None:
        """Takes back what quiet time has earned, ticks or no ticks."""
        while now_s - self._quiet_since_s >= self.patience_s:
            if self.index:
                self.index -= 1
                self._quiet_since_s += self.patience_s
                self._fell_at_s = self._quiet_since_s
                self._window.clear()
            elif self.patience_s > self._options.recover_s:
                self._quiet_since_s += self.patience_s
                self.patience_s = max(self._options.recover_s, self.patience_s / 2)
            else:
                return

    def _rise(self, now_s: float, index: int) -> None:
        if now_s - self._fell_at_s < self.patience_s:
            self.patience_s = min(2 * self.patience_s, self._options.recover_limit_s)
            self._fell_at_s = -math.inf
        self.index = index
        self._quiet_since_s = now_s
        self._window.clear()
