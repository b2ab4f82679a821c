"""Who ends the user's turn, and what follows from it: what a session may choose, as variants of the turn table.

The table in :mod:`duplex.turn` answers every turn and yields to every interruption. A client may want less: turns that
end and are not answered, a reply that is not to be interrupted, or no turn-taking at all, because a person holds a
button. Each wish replaces rows of the table; what is left out stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from duplex.turn import TABLE, Action, Floor, Row, Signal, User


class TurnEnds(Enum):
    """What ends the user's turn."""

    MEANING = "meaning"  # voice, prosody and words
    SILENCE = "silence"  # silence of a given length, and nothing else
    CLIENT = "client"  # the client says so; voice neither ends a turn nor interrupts


@dataclass(frozen=True, slots=True)
class TurnRules:
    """``replies``: a turn that is over is answered. ``interrupts``: speech over a reply may end it.

    ``idle_timeout_s``: this long after a reply was heard, if nobody speaks, the agent speaks again.
    ``silence_s``, ``threshold`` (of the probability of voice, 0 to 1) and ``prefix_s`` (sound from before the voice
    that belongs to the turn) are what a client asked of ``TurnEnds.SILENCE``; an agent reads them in its own
    ``turn_taking`` table.
    """

    ends: TurnEnds = TurnEnds.MEANING
    replies: bool = True
    interrupts: bool = True
    idle_timeout_s: float | None = None
    silence_s: float | None = None
    threshold: float | None = None
    prefix_s: float | None = None

    @property
    def ordinary(self) -> bool:
        """Nothing in it asks the turn machine for anything but what it does anyway."""
        return self.ends is not TurnEnds.CLIENT and self.replies and self.interrupts and self.idle_timeout_s is None


Table = Mapping[tuple[Floor, Signal], Row]

L, T, S, H = Floor.LISTENING, Floor.THINKING, Floor.SPEAKING, Floor.HOLDING

UNANSWERED: Table = {
    (L, User.PAUSED_INCOMPLETE): Row(L),  # nothing to speculate on
    (L, User.TURN_COMPLETE): Row(L, (Action.END_TURN,)),
}
"""Turns end, and a client asks for replies when it wants them."""

UNINTERRUPTED: Table = {
    (T, User.SPEAKING): Row(T),
    (T, User.INTERRUPTING): Row(T),
    (T, User.TURN_COMPLETE): Row(T, (Action.END_TURN,)),
    (S, User.SPEAKING): Row(S),
    (S, User.INTERRUPTING): Row(S),
    (S, User.TURN_COMPLETE): Row(S, (Action.END_TURN,)),
    (S, User.BACKCHANNEL): Row(S, (Action.FORGET,)),
    (S, User.NOT_ADDRESSED): Row(S, (Action.FORGET,)),
}
"""What is said over a reply is a turn of its own, and the reply goes on."""

CLIENT_DECIDES: Table = {
    (floor, user): Row(S, (Action.RESUME,)) if floor is H else Row(floor) for floor in (L, T, S, H) for user in User
}
"""What the user does moves nothing. A reply that was being held when the client took over goes on."""


def table_for(rules: TurnRules | None, base: Table = TABLE) -> Table:
    """The whole table under these rules."""
    if rules is None:
        return base
    if rules.ends is TurnEnds.CLIENT:
        return {**base, **CLIENT_DECIDES}
    table = dict(base)
    if not rules.replies:
        table |= UNANSWERED
    if not rules.interrupts:
        table |= UNINTERRUPTED
    return table


__all__ = ["CLIENT_DECIDES", "UNANSWERED", "UNINTERRUPTED", "TurnEnds", "TurnRules", "table_for"]
