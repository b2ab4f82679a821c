"""The floor of a native agent: watched, told of, and taken from it where it does not yield by itself.

A native agent hears and speaks all the time and decides for itself when. So a reply here begins because the agent
says that it did, the user's turn ends without anybody being asked to answer it, and nothing is ever held or resumed.
What a reply is, from then on (its place in the conversation, the ledger, what the client is told), is what it is for
every agent: :mod:`duplex.floor`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from duplex.agent import AgentCommand, DropReply, FillSilence, ReplyAudio, ReplyEnd
from duplex.config import SessionConfig
from duplex.floor import FloorKeeper
from duplex.frames import PACKET_SAMPLES
from duplex.late_sound import LateSound
from duplex.outgoing import Sent
from duplex.overdue import Fault
from duplex.playout import State
from duplex.reply import Reply, Turn
from duplex.trace import TurnTrace
from duplex.turn import Floor, Own, WatchingMachine


class WatchedFloor(FloorKeeper):
    """One session's floor when its agent is native. Takes what ``FloorKeeper`` takes."""

    def __init__(self, *, config: SessionConfig, command: Callable[[AgentCommand], None], **others: Any) -> None:
        super().__init__(config=config, command=lambda told: command(self._by_its_name(told)), **others)
        self.machine: WatchingMachine = WatchingMachine(yield_limit_s=config.yield_limit_s)
        self._own_name: str | None = None  # what the agent calls the reply at hand, if it began it
        self._unanswered: tuple[Turn, float] | None = None  # the turn that ended last, and when
        self._came_s = 0.0  # when sound of the reply came last
        self._late: tuple[Reply | None, LateSound] = (None, LateSound())

    # --- the agent's own replies -----------------------------------------------------------------

    def begin_own(self, name: str) -> None:
        """The agent began to speak, and calls it ``name``. A reply before it is over, wherever it stands."""
        if (before := self.reply) is not None:
            if not before.ended:
                self.end_audio(before, ReplyEnd(before.reply_id))
            if self.reply is not None:  # its last sounds are still on their way to the ear
                self.signal(Own.REPLY_ENDED)
        reply = Reply(self.new_id("resp"), self.new_id("item"), TurnTrace(), silent=self.silent)
        self.reply, self._own_name = reply, name
        if self._unanswered is not None:
            turn, ended_s = self._unanswered
            if turn is self.turn and turn.last_voiced_s is not None:
                reply.trace.mark("last_voiced", turn.last_voiced_s)
                reply.trace.mark("commit", ended_s)
            self._unanswered = None
        self._playout.begin()
        self._ledger.begin(reply.reply_id, reply.item_id)
        self._publish()

    def add_audio(self, reply: Reply, audio: ReplyAudio) -> None:
        self._came_s = self._clock.now()
        super().add_audio(reply, replace(audio, samples=self._late_of(reply).take(audio.samples)))

    def tick(self, now_s: float) -> None:
        super().tick(now_s)
        self._conceal(now_s)

    def stood_still(self, for_s: float) -> None:
        super().stood_still(for_s)
        self._came_s += for_s

    def _conceal(self, now_s: float) -> None:
        """Puts something in the place of sound that is due now and not there: its tick missed the deadline."""
        reply, playout = self.reply, self._playout
        if reply is None or reply.ended or playout.state is not State.PLAYING:
            return
        missing = self._late_of(reply).missing(now_s, playout.position_samples + playout.queued_samples)
        if len(missing):
            self._metrics.underruns.inc(-(-len(missing) // PACKET_SAMPLES))
            super().add_audio(reply, ReplyAudio(reply.reply_id, missing))

    def _late_of(self, reply: Reply) -> LateSound:
        if self._late[0] is not reply:
            self._late = (reply, LateSound())
        return self._late[1]

    def _overdue_at(self, now_s: float) -> Fault | None:
        """Sound comes as it is spoken, and a line that is kept ahead takes it at once: an empty queue is no stall."""
        reply = self.reply
        speaking = self.machine.floor is Floor.SPEAKING and reply is not None and not reply.ended
        stalled = self._overdue.stalled(now_s - self._came_s if speaking else 0.0)
        return self._overdue.no_reply(self.machine, reply, now_s) or stalled

    def current(self, reply_id: str) -> Reply | None:
        """The reply at hand if it is that one, by our name or by the agent's."""
        return self.reply if self._own_name is not None and self._own_name == reply_id else super().current(reply_id)

    def _by_its_name(self, command: AgentCommand) -> AgentCommand:
        reply, name = self.reply, self._own_name
        if isinstance(command, DropReply | FillSilence) and reply is not None and name is not None:
            return replace(command, reply_id=name) if command.reply_id == reply.reply_id else command
        return command

    def _clear(self) -> None:
        self._own_name = None
        if self._playout.state is State.PLAYING:
            self.reply = None
            self._playout.cut()
        else:
            super()._clear()

    # --- what follows from the table -------------------------------------------------------------

    def end_turn(self) -> None:
        """What the user said stands. Whether it is answered is the agent's affair."""
        if self.turn is not None and not self.turn.committed:
            self._unanswered = (self.turn, self._clock.now())
        super().end_turn()

    def _yield(self) -> None:
        self._tell_stop()
        super()._yield()

    def _finish(self) -> None:
        self._tell_stop()
        super()._finish()

    def _tell_stop(self) -> None:
        """How long we went on speaking under the speech that ended the reply, if any did."""
        since_s, self._overlap_since_s = self._overlap_since_s, None
        if since_s is not None and self.reply is not None and self.reply.started:
            self._metrics.barge_in_stop_s.observe(max(0.0, self.machine.audible_s - since_s))

    def sent(self, sent: Sent, now_s: float, last_audible_s: float) -> None:
        if self.reply is not None and sent.audible:
            self.machine.audible_s = now_s
        if self.reply is not None and sent.real:
            self._late_of(self.reply).sent(now_s)
        super().sent(sent, now_s, last_audible_s)
