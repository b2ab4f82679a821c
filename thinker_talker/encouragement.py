"""When we say "mm-hm": at a pause of a long turn that is clearly not over yet.

After Ward & Tsukahara (2000), who found that listeners encourage at pauses after a stretch of speech; the pause
here is the predictor's, so that we never encourage somebody who is waiting for an answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from duplex.turn import Floor, User

from .turn_options import TurnOptions

PHRASES = ("Mm-hm.", "Okay.", "I see.")
_PAUSE_S = 0.16  # into the pause, so that it is one
_ROOM_S = 0.35  # the word must fit in before the turn could end


@dataclass(slots=True)
class Encouragement:
    """One session's policy; ``phrase`` is asked once a window."""

    said_at_voiced_s: float = 0.0
    count: int = 0

    def phrase(
        self, user: User, floor: Floor, voiced_s: float, quiet_s: float, needed_s: float, options: TurnOptions
    ) -> str | None:
        """What to say now, if anything. ``voiced_s``: voice in the open turn; ``needed_s``: silence that ends it."""
        if voiced_s < self.said_at_voiced_s:
            self.said_at_voiced_s = 0.0  # another turn
        if not options.backchannels or floor is not Floor.LISTENING or user is not User.PAUSED_INCOMPLETE:
            return None
        if voiced_s - self.said_at_voiced_s < options.backchannel_every_s:
            return None
        if quiet_s < _PAUSE_S or needed_s - quiet_s < _ROOM_S:
            return None
        self.said_at_voiced_s = voiced_s
        self.count += 1
        return PHRASES[(self.count - 1) % len(PHRASES)]

    def reset(self) -> None:
        self.said_at_voiced_s, self.count = 0.0, 0
