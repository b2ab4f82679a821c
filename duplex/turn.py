"""Turn-taking as a table.

Theory of operation
-------------------
Two variables. *User* is what the other person is doing right now, predicted frame by frame by the
agent's turn-state predictor. *Floor* is who holds the conversation. The table below maps
``(floor, signal)`` to the next floor and the actions the session carries out. A signal is either a
user state or one of the few things that happen on our own side.

The machine does no I/O, owns no timer and asks nobody for the time: ``now_s`` comes in as an
argument and deadlines are compared with it. The diagram in ``docs/turn-taking.md`` is generated from
this table, and a test asks that every pair has a row.

A reply can exist before the floor is ours. *Speculation* starts one at the first sign that the turn
may be over, and holds its audio; committing releases it, and going on speaking drops it.

*Barge-in is pause, then decide.* Speech over our audio moves SPEAKING to HOLDING at once. From there
a backchannel, side talk or silence RESUMEs from the same sample, an interruption YIELDs.

*A native agent takes the floor by itself*, and its stream cannot be paused. The table WATCHED holds what differs
then: speech over our voice changes nothing at first, because such a model yields when it understands that it
should. Where it is interrupted and does not, within ``yield_limit_s``, the machine yields for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class User(Enum):
    """What the user is doing, as predicted from causal evidence."""

    IDLE = "idle"
    SPEAKING = "speaking"
    PAUSED_INCOMPLETE = "paused-incomplete"
    TURN_COMPLETE = "turn-complete"
    BACKCHANNEL = "backchannel"
    INTERRUPTING = "interrupting"
    NOT_ADDRESSED = "not-addressed"


class Floor(Enum):
    """Who holds the floor, from the agent's point of view."""

    LISTENING = "listening"  # it is the user's, or nobody's
    THINKING = "thinking"  # the user's turn is committed, our first packet is not out yet
    SPEAKING = "speaking"  # our audio is on the wire
    HOLDING = "holding"  # our audio is paused under the user's speech; undecided
    YIELDING = "yielding"  # decided: ours is being taken back


class Own(Enum):
    """Signals from our own side."""

    REPLY_AUDIBLE = "reply-audible"  # the first packet of a committed or requested reply can go out
    REPLY_ENDED = "reply-ended"  # its last packet went out, or it failed, or there was nothing to say
    REPLY_REQUESTED = "reply-requested"  # a client or the agent asks to speak without a user turn
    CANCELLED = "cancelled"  # a client took the floor back
    YIELDED = "yielded"  # the reply was dropped and memory truncated
    HOLD_EXPIRED = "hold-expired"  # undecided for too long; of a native agent: interrupted, and still speaking


Signal = User | Own


class Action(Enum):
    """What the session does, in the order listed in a row."""

    SPECULATE = "speculate"  # start a reply, hold its audio
    DROP_SPECULATION = "drop-speculation"  # it leaves no trace
    COMMIT = "commit"  # the turn is over: keep the speculation or start now
    RETRACT = "retract"  # the user went on before anything was heard: the turn is open again
    START_REPLY = "start-reply"  # speak without a user turn
    RELEASE = "release"  # let the reply's audio out
    HOLD = "hold"  # fade and pause
    RESUME = "resume"  # go on from the same sample
    YIELD = "yield"  # drop the rest, cancel the work behind it, remember what was heard
    FINISH = "finish"  # the reply is over; remember it
    END_TURN = "end-turn"  # the user's turn is over; a native agent answers it by itself, or does not
    FORGET = "forget"  # what was said over us was no turn


@dataclass(frozen=True, slots=True)
class Row:
    floor: Floor
    actions: tuple[Action, ...] = ()


L, T, S, H, Y = Floor.LISTENING, Floor.THINKING, Floor.SPEAKING, Floor.HOLDING, Floor.YIELDING

TABLE: dict[tuple[Floor, Signal], Row] = {
    # LISTENING: the floor is the user's, or nobody's.
    (L, User.IDLE): Row(L, (Action.DROP_SPECULATION,)),
    (L, User.SPEAKING): Row(L, (Action.DROP_SPECULATION,)),
    (L, User.PAUSED_INCOMPLETE): Row(L, (Action.SPECULATE,)),
    (L, User.TURN_COMPLETE): Row(T, (Action.COMMIT,)),
    (L, User.BACKCHANNEL): Row(L, (Action.DROP_SPECULATION,)),
    (L, User.INTERRUPTING): Row(L, (Action.DROP_SPECULATION,)),
    (L, User.NOT_ADDRESSED): Row(L, (Action.DROP_SPECULATION,)),
    (L, Own.REPLY_AUDIBLE): Row(L),  # a speculation is ready; it waits for the commit
    (L, Own.REPLY_ENDED): Row(L),  # a speculation failed or was empty
    (L, Own.REPLY_REQUESTED): Row(T, (Action.DROP_SPECULATION, Action.START_REPLY)),
    (L, Own.CANCELLED): Row(L, (Action.DROP_SPECULATION,)),
    (L, Own.YIELDED): Row(L),
    (L, Own.HOLD_EXPIRED): Row(L),
    # THINKING: committed, nothing of ours was heard yet.
    (T, User.IDLE): Row(T),
    (T, User.SPEAKING): Row(L, (Action.RETRACT,)),
    (T, User.PAUSED_INCOMPLETE): Row(T),
    (T, User.TURN_COMPLETE): Row(T),
    (T, User.BACKCHANNEL): Row(T),
    (T, User.INTERRUPTING): Row(L, (Action.RETRACT,)),
    (T, User.NOT_ADDRESSED): Row(T),
    (T, Own.REPLY_AUDIBLE): Row(S, (Action.RELEASE,)),
    (T, Own.REPLY_ENDED): Row(L, (Action.FINISH,)),
    (T, Own.REPLY_REQUESTED): Row(T),
    (T, Own.CANCELLED): Row(Y, (Action.YIELD,)),
    (T, Own.YIELDED): Row(L),
    (T, Own.HOLD_EXPIRED): Row(T),
    # SPEAKING: our audio is on the wire.
    (S, User.IDLE): Row(S),
    (S, User.SPEAKING): Row(H, (Action.HOLD,)),
    (S, User.PAUSED_INCOMPLETE): Row(S),
    (S, User.TURN_COMPLETE): Row(S),
    (S, User.BACKCHANNEL): Row(S),
    (S, User.INTERRUPTING): Row(Y, (Action.YIELD,)),
    (S, User.NOT_ADDRESSED): Row(S),
    (S, Own.REPLY_AUDIBLE): Row(S),
    (S, Own.REPLY_ENDED): Row(L, (Action.FINISH,)),
    (S, Own.REPLY_REQUESTED): Row(S),
    (S, Own.CANCELLED): Row(Y, (Action.YIELD,)),
    (S, Own.YIELDED): Row(L),
    (S, Own.HOLD_EXPIRED): Row(S),
    # HOLDING: paused under the user's speech, undecided.
    (H, User.IDLE): Row(S, (Action.RESUME,)),
    (H, User.SPEAKING): Row(H),
    (H, User.PAUSED_INCOMPLETE): Row(H),
    (H, User.TURN_COMPLETE): Row(Y, (Action.YIELD,)),
    (H, User.BACKCHANNEL): Row(S, (Action.RESUME,)),
    (H, User.INTERRUPTING): Row(Y, (Action.YIELD,)),
    (H, User.NOT_ADDRESSED): Row(S, (Action.RESUME,)),
    (H, Own.REPLY_AUDIBLE): Row(H),
    (H, Own.REPLY_ENDED): Row(L, (Action.FINISH,)),
    (H, Own.REPLY_REQUESTED): Row(H),
    (H, Own.CANCELLED): Row(Y, (Action.YIELD,)),
    (H, Own.YIELDED): Row(L),
    (H, Own.HOLD_EXPIRED): Row(Y, (Action.YIELD,)),
    # YIELDING: decided; the session reports back with YIELDED in the same breath.
    (Y, User.IDLE): Row(Y),
    (Y, User.SPEAKING): Row(Y),
    (Y, User.PAUSED_INCOMPLETE): Row(Y),
    (Y, User.TURN_COMPLETE): Row(Y),
    (Y, User.BACKCHANNEL): Row(Y),
    (Y, User.INTERRUPTING): Row(Y),
    (Y, User.NOT_ADDRESSED): Row(Y),
    (Y, Own.REPLY_AUDIBLE): Row(Y),
    (Y, Own.REPLY_ENDED): Row(L),
    (Y, Own.REPLY_REQUESTED): Row(Y),
    (Y, Own.CANCELLED): Row(Y),
    (Y, Own.YIELDED): Row(L),
    (Y, Own.HOLD_EXPIRED): Row(Y),
}

SIGNALS: tuple[Signal, ...] = (*User, *Own)

WATCHED: dict[tuple[Floor, Signal], Row] = TABLE | {
    # LISTENING: nothing is speculated, and the agent speaks when it likes.
    (L, User.IDLE): Row(L),
    (L, User.SPEAKING): Row(L),
    (L, User.PAUSED_INCOMPLETE): Row(L),
    (L, User.TURN_COMPLETE): Row(L, (Action.END_TURN,)),
    (L, User.BACKCHANNEL): Row(L, (Action.FORGET,)),
    (L, User.INTERRUPTING): Row(L),
    (L, User.NOT_ADDRESSED): Row(L, (Action.FORGET,)),
    (L, Own.REPLY_AUDIBLE): Row(S, (Action.RELEASE,)),
    (L, Own.REPLY_ENDED): Row(L, (Action.FINISH,)),
    (L, Own.REPLY_REQUESTED): Row(T, (Action.START_REPLY,)),
    (L, Own.CANCELLED): Row(Y, (Action.YIELD,)),
    # THINKING: only a client's request leads here, and what it asked for is said whatever the user does.
    (T, User.SPEAKING): Row(T),
    (T, User.TURN_COMPLETE): Row(T, (Action.END_TURN,)),
    (T, User.INTERRUPTING): Row(T),
    # SPEAKING: the agent hears what is said over it, and yields or goes on.
    (S, User.SPEAKING): Row(S),
    (S, User.TURN_COMPLETE): Row(S, (Action.END_TURN,)),
    (S, User.BACKCHANNEL): Row(S, (Action.FORGET,)),
    (S, User.INTERRUPTING): Row(S),
    (S, User.NOT_ADDRESSED): Row(S, (Action.FORGET,)),
    (S, Own.HOLD_EXPIRED): Row(Y, (Action.YIELD,)),
}
"""The same for a native agent. HOLDING is never reached: nothing leads there."""


@dataclass(slots=True)
class TurnMachine:
    """The table with a memory of one cell: the floor, since when, and the last user state.

    ``hold_limit_s``: how long HOLDING may stay undecided before the user gets the floor. ``table``: a session may
    change rows of it (``duplex.turn_rules``).
    """

    hold_limit_s: float = 2.0
    floor: Floor = Floor.LISTENING
    user: User = User.IDLE
    since_s: float = 0.0
    table: Mapping[tuple[Floor, Signal], Row] = field(default_factory=lambda: TABLE, repr=False)

    def feed(self, signal: Signal, now_s: float) -> tuple[Action, ...]:
        """Takes one signal at wall time ``now_s``; returns what to do about it, in order."""
        row = self.table[self.floor, signal]
        if isinstance(signal, User):
            self.user = signal
        if row.floor is not self.floor:
            self.floor = row.floor
            self.since_s = now_s
        return row.actions

    def tick(self, now_s: float) -> tuple[Action, ...]:
        """Lets time pass; only HOLDING has a limit."""
        if self.floor is Floor.HOLDING and now_s - self.since_s >= self.hold_limit_s:
            return self.feed(Own.HOLD_EXPIRED, now_s)
        return ()

    def reset(self, now_s: float = 0.0) -> None:
        self.floor, self.user, self.since_s = Floor.LISTENING, User.IDLE, now_s


_STILL_AUDIBLE_S = 0.1  # a voice that was on the wire this lately has not fallen silent


@dataclass(slots=True)
class WatchingMachine(TurnMachine):
    """Watches a native agent, by the table WATCHED.

    ``yield_limit_s``: how long the agent may go on speaking while it is interrupted; 0: as long as it likes.
    ``audible_s``: when its voice was last on the wire.
    """

    table: Mapping[tuple[Floor, Signal], Row] = field(default_factory=lambda: WATCHED, repr=False)
    yield_limit_s: float = 0.4
    audible_s: float = float("-inf")
    user_since_s: float = 0.0

    def feed(self, signal: Signal, now_s: float) -> tuple[Action, ...]:
        if isinstance(signal, User) and signal is not self.user:
            self.user_since_s = now_s
        return TurnMachine.feed(self, signal, now_s)

    def tick(self, now_s: float) -> tuple[Action, ...]:
        """Lets time pass: an agent that speaks on under an interruption is made to yield."""
        overdue = (
            self.yield_limit_s > 0
            and self.floor is Floor.SPEAKING
            and self.user is User.INTERRUPTING
            and now_s - self.user_since_s >= self.yield_limit_s - 1e-9
            and now_s - self.audible_s < _STILL_AUDIBLE_S
        )
        return self.feed(Own.HOLD_EXPIRED, now_s) if overdue else ()

    def reset(self, now_s: float = 0.0) -> None:
        TurnMachine.reset(self, now_s)
        self.audible_s, self.user_since_s = float("-inf"), now_s
