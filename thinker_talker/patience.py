"""Every speaker pauses differently: who was cut off once is given more time from then on."""

from __future__ import annotations

from dataclasses import dataclass

from duplex.frames import SAMPLE_RATE_HZ
from duplex.turn import Floor, User

_SOON_S = 1.0  # somebody who speaks this soon after our first word had not finished
_STEP, _MOST = 1.5, 2.0
_FORGET = 0.85  # of what is above 1, after a turn that went well


@dataclass(slots=True)
class Patience:
    """One session's: ``factor`` (1 to 2) stretches every silence that ends a turn."""

    factor: float = 1.0
    _ours_since_pts: int | None = None  # when our reply began to play

    def floor(self, floor: Floor, pts: int) -> None:
        """Who has the floor at ``pts``, told at every window."""
        if floor is Floor.SPEAKING:
            if self._ours_since_pts is None:
                self._ours_since_pts = pts
        elif floor is not Floor.HOLDING:
            self._ours_since_pts = None

    def judged(self, user: User, started_pts: int) -> None:
        """Speech over ours that began at ``started_pts`` was decided on."""
        if user is not User.INTERRUPTING or self._ours_since_pts is None:
            return
        if started_pts - self._ours_since_pts < _SOON_S * SAMPLE_RATE_HZ:
            self.cut_off()

    def cut_off(self) -> None:
        """We spoke, or were about to, and the user went on."""
        self.factor = min(_MOST, self.factor * _STEP)
        self._ours_since_pts = None

    def went_well(self) -> None:
        """A turn was taken and nobody was cut off by it."""
        self.factor = 1.0 + (self.factor - 1.0) * _FORGET

    def reset(self) -> None:
        self.factor, self._ours_since_pts = 1.0, None
