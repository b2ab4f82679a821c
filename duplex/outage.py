"""A call whose far end is out of reach for a while: what waits meanwhile, and from where it goes on.

Theory of operation
-------------------
A door notices (by its own means: see the line's) that nothing comes from the far end and asks the session for
``LoseLine``, later for ``RegainLine``. In between the session stands still. Nothing is heard, so the agent is not
stepped and nobody's turn ends because a network was silent; what was sent is taken as heard up to the last sign of
life and no further; the reply at hand waits. Then it goes on from where it was heard last: on evidence of the ledger,
or where the client says that its player stopped.

What is said twice is what left us shortly before the last sign, whose fate nobody knows.

*A turn that ended just then* ended because the line fell silent, perhaps. If its reply has not been heard, it is open
again. After the line is back a turn does not end for ``SETTLE_S``: who was speaking on gets the time to be heard.

*A native agent's* stream is not wound back, as its sound is made for the moment it is played in; but it is not
stepped either, so it waits in mid-word.
"""

from __future__ import annotations

from collections.abc import Callable

from duplex import events as ev
from duplex.clock import Clock
from duplex.floor import FloorKeeper
from duplex.frames import samples_to_ms
from duplex.ledger import Ledger
from duplex.metrics import Metrics
from duplex.outgoing import Outgoing
from duplex.reply import Reply
from duplex.turn import Floor, User

SETTLE_S = 0.6


class Outage:
    """One session's. ``lost``: nobody is there now. ``rewinds``: what was not heard is said again."""

    def __init__(
        self,
        *,
        floor: FloorKeeper,
        out: Outgoing,
        ledger: Ledger,
        clock: Clock,
        metrics: Metrics,
        emit: Callable[[ev.Event], None],
        at: Callable[[], ev.At],
        rewinds: bool,
    ) -> None:
        self.lost = False
        self._floor, self._out, self._ledger, self._clock, self._metrics = floor, out, ledger, clock, metrics
        self._emit, self._at, self._rewinds = emit, at, rewinds
        self._sign_s = 0.0  # the last sign of life
        self._lost_at_s = 0.0
        self._settled_s = float("-inf")

    @property
    def lost_s(self) -> float:
        """For how long there has been no sign of the far end; 0 while it is there."""
        return self._clock.now() - self._sign_s if self.lost else 0.0

    def lose(self, silent_s: float) -> None:
        """There has been no sign for ``silent_s``. Harmless when that is known."""
        if self.lost:
            return
        self.lost, self._lost_at_s = True, self._clock.now()
        self._sign_s = self._lost_at_s - silent_s
        self._reopen()
        reply = self._begun()
        if reply is not None:
            self._ledger.lose(reply.reply_id, self._sign_s)
        self._out.lose(self._floor.reply)
        self._metrics.lines_lost.inc()
        told = (None, None) if reply is None else (reply.reply_id, self._heard_ms(reply))
        self._emit(ev.LineLost(self._at(), silent_s, *told))

    def regain(self, *, delivered: bool = False) -> None:
        """Goes on; with what was not sent yet, where all else was delivered. Harmless when the line was not lost."""
        if not self.lost:
            return
        now_s = self._clock.now()
        self.lost, self._settled_s = False, now_s + SETTLE_S
        self._floor.stood_still(now_s - self._lost_at_s)
        reply = self._begun()
        told: tuple[str | None, float | None] = (None, None)
        if reply is None or delivered or not self._rewinds:
            self._out.regain(None)
        else:
            heard = self._ledger.heard(reply.reply_id, now_s)
            self._out.regain(reply, heard.samples)
        if reply is not None:
            told = (reply.reply_id, samples_to_ms(self._ledger.sent_samples(reply.reply_id)))
        if reply is not None:
            self._ledger.regain(reply.reply_id)
        self._emit(ev.LineBack(self._at(), now_s - self._sign_s, *told))

    def tempered(self, user: User) -> User:
        """The user's state as it may be believed: shortly after an outage nobody has finished a turn."""
        unsettled = user is User.TURN_COMPLETE and self._clock.now() < self._settled_s
        return User.PAUSED_INCOMPLETE if unsettled else user

    def _begun(self) -> Reply | None:
        """The reply at hand, if any of it was sent."""
        reply = self._floor.reply
        return reply if reply is not None and reply.started else None

    def _heard_ms(self, reply: Reply) -> float:
        return self._ledger.heard(reply.reply_id, self._clock.now()).ms

    def _reopen(self) -> None:
        """A turn that was taken to be over after the last sign of life may have been cut off by the network."""
        floor = self._floor
        reply = floor.reply
        if floor.machine.floor not in (Floor.THINKING, Floor.SPEAKING) or reply is None or not reply.to_turn:
            return
        if reply.trace.marks.get("commit", float("-inf")) >= self._sign_s:
            floor.machine.floor = Floor.THINKING  # whatever was sent of it, nobody heard any
            floor.signal(User.SPEAKING)
