"""Who has the floor, and what follows from it: the turn machine's actions, carried out.

The machine (``duplex.turn``) says *what* to do; this says *how*. It owns the user's open turn, the
reply at hand, the conversation and the ledger, and nothing else changes them. Everything is
synchronous: between reading a state and acting on it nothing else runs, so there are no locks.
"""

from __future__ import annotations

from collections.abc import Callable

from duplex import events as ev
from duplex.agent import (
    AgentCommand,
    AgentSettings,
    CommitTurn,
    DropReply,
    FillSilence,
    ForgetTurn,
    HoldReply,
    Remember,
    ReopenTurn,
    ReplyAudio,
    ReplyEnd,
    ResumeReply,
)
from duplex.clock import Clock
from duplex.config import SessionConfig
from duplex.conversation import Conversation, Item, Message, Role, words_after
from duplex.errors import AgentFaultError
from duplex.frames import SAMPLE_RATE_HZ
from duplex.items import Items
from duplex.ledger import Ledger
from duplex.metrics import Metrics
from duplex.outgoing import Sent
from duplex.overdue import Fault, Overdue
from duplex.playout import Playout, State
from duplex.reply import CallEvent, Reply, Turn, traced
from duplex.requests import CreateReply
from duplex.telling import ReplyTeller
from duplex.turn import Action, Floor, Own, Signal, TurnMachine, User
from duplex.turn_rules import TurnEnds, TurnRules, table_for

_NOTHING_SPECIAL = CreateReply()
_SILENT_USER = "(I have said nothing for a while. Ask me whether I am still there.)"  # for one reply, not remembered
_LONGEST_PLAYOUT_S = 0.5  # a far end that reports nothing newer has played it by then


class FloorKeeper:
    """One session's floor. ``emit`` tells the client, ``command`` the agent, ``take_back`` recalls packets.

    ``at`` stamps an event with both times.
    """

    def __init__(
        self,
        *,
        session_id: str,
        clock: Clock,
        config: SessionConfig,
        metrics: Metrics,
        playout: Playout,
        ledger: Ledger,
        emit: Callable[[ev.Event], None],
        command: Callable[[AgentCommand], None],
        take_back: Callable[[Reply], None],
        at: Callable[[], ev.At],
    ) -> None:
        self.machine = TurnMachine(hold_limit_s=config.hold_limit_s)
        self.rules = TurnRules()
        self.silent = False  # replies are text alone, unless asked for otherwise
        self.items = Items(Conversation(config.max_messages), session_id, emit, at)
        self.conversation, self.new_id = self.items.conversation, self.items.new_id
        self._tell = ReplyTeller(self.items, ledger, clock, metrics, emit, at)
        self.reply: Reply | None = None
        self.turn: Turn | None = None
        self.awaiting_words: str | None = None  # the turn that was committed last, until it was understood
        self._clock, self._config, self._metrics = clock, config, metrics
        self._playout, self._ledger = playout, ledger
        self._emit, self._command, self._take_back, self._at = emit, command, take_back, at
        self._last_told: tuple[Floor, User] | None = None
        self._overlap_since_s: float | None = None
        self._overdue = Overdue(config)
        self._complete_since_s: float | None = None  # since when the predictor calls the open turn complete
        self._asked = CreateReply()
        self._asked_history: tuple[Item, ...] | None = None

    def configure(self, settings: AgentSettings) -> None:
        """What of a session's settings concerns the floor; the agent is told by the session."""
        self.silent = bool(settings.silent)
        self.rules = settings.turns or TurnRules()
        self.machine.table = table_for(self.rules, type(self.machine)().table)
        if self.rules.ends is TurnEnds.CLIENT or not self.rules.replies:
            self._drop_speculation()

    # --- signals ---------------------------------------------------------------------------------

    def predicted(self, user: User) -> None:
        """What the user is doing now, from the agent's predictor."""
        now_s = self._clock.now()
        if user is not User.TURN_COMPLETE or self.machine.floor is not Floor.LISTENING:
            self._complete_since_s = None
        elif self._complete_since_s is None:
            self._complete_since_s = now_s
        if self._complete_since_s is not None and self._worth_waiting(now_s - self._complete_since_s):
            user = User.PAUSED_INCOMPLETE
        self.signal(user)

    def _worth_waiting(self, waited_s: float) -> bool:
        """Whether to leave a finished turn open a little longer.

        Deciding to speak before there is anything to say gains nothing, and gives away the chance to notice
        that the user goes on after all. So the commit waits for the speculation's first packet, within limits.
        """
        return (
            waited_s < self._config.commit_wait_s
            and self.reply is not None
            and not self.reply.ended
            and not self._playout.audible
        )

    def signal(self, signal: Signal) -> None:
        """Feeds the machine and does what it says."""
        self._act(self.machine.feed(signal, self._clock.now()))
        self._tell_floor()

    def _tell_floor(self) -> None:
        told = (self.machine.floor, self.machine.user)
        if told != self._last_told:
            self._last_told = told
            self._emit(ev.FloorChanged(self._at(), *told))

    def tick(self, now_s: float) -> None:
        """Lets time pass: a hold that nobody decides ends, and so does a reply that does not come, or stops coming."""
        if expired := self.machine.tick(now_s):
            self._act(expired)
            self._tell_floor()
        if fault := self._overdue_at(now_s):
            self._emit(ev.ErrorRaised(self._at(), *fault))
            self.signal(Own.CANCELLED)
        elif self._overdue.is_dead_air(self.machine, self.reply, now_s):
            self._say_that_it_takes_long()
        if self.reply is not None and self._all_heard(self.reply, now_s):
            self.signal(Own.REPLY_ENDED)

    def stood_still(self, for_s: float) -> None:
        """Time in which nothing could happen is no time that anybody waited."""
        self.machine.since_s += for_s
        self._overdue.stood_still()
        if self.reply is not None:
            self.reply.came_s += for_s
            self.reply.sent_all_at_s = None

    def _overdue_at(self, now_s: float) -> Fault | None:
        return self._overdue.fault(self.machine, self.reply, self._playout.audible, now_s)

    def _say_that_it_takes_long(self) -> None:
        if self.reply is not None:
            self.reply.dead_air_told = True
            self._command(FillSilence(self.reply.reply_id))

    def _all_heard(self, reply: Reply, now_s: float) -> bool:
        """Whether a reply that was sent to its end has also reached the ear; until then it can still be cut off."""
        if reply.sent_all_at_s is None or self.machine.floor is not Floor.SPEAKING or not self._playout.drained:
            return False
        heard = self._ledger.heard(reply.reply_id, now_s)
        all_heard = heard.samples >= self._ledger.sent_samples(reply.reply_id)
        return all_heard or now_s - reply.sent_all_at_s > _LONGEST_PLAYOUT_S

    def request_reply(self, request: CreateReply, history: tuple[Item, ...] | None = None) -> None:
        """Speak without a user's turn, to ``history`` (or the conversation); it all holds for this reply alone."""
        self._asked, self._asked_history = request, history
        self.signal(Own.REPLY_REQUESTED)

    def _act(self, actions: tuple[Action, ...]) -> None:
        for action in actions:
            match action:
                case Action.SPECULATE:
                    self._speculate()
                case Action.DROP_SPECULATION:
                    self._drop_speculation()
                case Action.COMMIT:
                    self._commit()
                case Action.RETRACT:
                    self._retract()
                case Action.START_REPLY:
                    self._begin(to_open_turn=False, asked=self._asked, history=self._asked_history)
                    self._publish()
                case Action.RELEASE:
                    self._release()
                case Action.HOLD:
                    self._hold()
                case Action.RESUME:
                    self._resume()
                case Action.YIELD:
                    self._yield()
                case Action.FINISH:
                    self._finish()
                case Action.END_TURN:
                    self.end_turn()
                case Action.FORGET:
                    self._forget_overlap()

    # --- the user's turn -------------------------------------------------------------------------

    def open_turn(self) -> Turn:
        """The turn that is being spoken; a new one if the last is over."""
        if self.turn is None or (self.turn.committed and not self._may_reopen):
            self.turn = Turn(self.new_id("item"))
        return self.turn

    @property
    def _may_reopen(self) -> bool:
        """The committed turn is being answered, and nothing of that was heard: who speaks now goes on with it."""
        answering = self.machine.floor is Floor.THINKING and self.reply is not None and self.reply.to_turn
        return answering and self.machine.table[Floor.THINKING, User.SPEAKING].floor is Floor.LISTENING

    def speech_started(self, audio_pts: int, at_s: float) -> None:
        turn = self.open_turn()
        if self.rules.ends is TurnEnds.CLIENT:
            return  # whoever decides when a turn is over does not ask when somebody speaks
        if self.machine.floor in (Floor.SPEAKING, Floor.HOLDING) and self.rules.interrupts:
            self._overlap_since_s = at_s
        self._emit(ev.UserSpeechStarted(self._at(), turn.turn_id, audio_pts))

    def speech_stopped(self, audio_pts: int, at_s: float) -> None:
        turn = self.open_turn()
        turn.last_voiced_s = at_s
        if self.rules.ends is TurnEnds.CLIENT:
            return
        self._emit(ev.UserSpeechStopped(self._at(), turn.turn_id, audio_pts))

    def transcribed(self, turn_id: str, text: str, error: str | None = None) -> None:
        """The words of a committed turn. A turn that was reopened meanwhile gets its words later."""
        reopened = self.turn is not None and self.turn.turn_id == turn_id and not self.turn.committed
        if text and not reopened and turn_id in self.conversation:
            self.conversation.put(Message(turn_id, Role.USER, text))
        if self.awaiting_words == turn_id:
            self.awaiting_words = None
        self._emit(ev.UserTranscriptFinal(self._at(), turn_id, text, error))

    def forget_turn(self) -> None:
        self._command(ForgetTurn())
        self.signal(User.IDLE)
        self.turn = None

    def _speculate(self) -> None:
        if self.reply is None and self.turn is not None:
            self._begin(speculative=True)

    def _drop_speculation(self) -> None:
        if self.reply is not None and not self.reply.public:
            self._command(DropReply(self.reply.reply_id))
            self._clear()

    def _commit(self) -> None:
        turn = self.open_turn()
        reply = self.reply if self.reply is not None else self._begin()
        now_s = self._clock.now()
        if turn.last_voiced_s is not None:
            reply.trace.mark("last_voiced", turn.last_voiced_s)
        if self._complete_since_s is not None:
            reply.trace.mark("turn_complete", self._complete_since_s)
        reply.trace.mark("commit", now_s)
        self.end_turn()
        self._publish()
        self.check_audible(reply)

    def end_turn(self) -> None:
        """What the user said stands. Whether it is answered is not decided here."""
        turn = self.turn
        if turn is None or turn.committed:
            return
        turn.committed = True
        if turn.last_voiced_s is not None:
            self._metrics.end_of_turn_s.observe(max(0.0, self._clock.now() - turn.last_voiced_s))
        self._metrics.turns.inc()
        self._emit(ev.UserTurnCommitted(self._at(), turn.turn_id, self.items.follow(turn.turn_id)))
        self.awaiting_words = turn.turn_id
        self._command(CommitTurn(turn.turn_id))

    def idle(self, start_pts: int) -> None:
        """Nobody has spoken since ``start_pts``: the silence is an item of its own, and we speak."""
        at, item_id = self._at(), self.new_id("item")
        self._emit(ev.IdleTimedOut(at, item_id, start_pts, at.pts))
        self._emit(ev.UserTurnCommitted(at, item_id, self.items.follow(item_id)))
        self._emit(ev.UserTranscriptFinal(at, item_id, ""))
        asked = Message(item_id, Role.USER, _SILENT_USER)  # as if the user had: small models answer nobody else
        self.request_reply(CreateReply(), (*self.conversation.snapshot(), asked))

    def _forget_overlap(self) -> None:
        """What was said over us was a word of encouragement, and nobody's turn."""
        self._overlap_since_s = None
        if self.turn is not None and not self.turn.committed:
            self.turn = None

    def _retract(self) -> None:
        reply = self.reply
        if reply is not None and reply.left_a_trace:
            self._cut_off(reply)
            return  # what was told of it stands, and so does the turn it answers
        if reply is not None:
            self._command(DropReply(reply.reply_id))
            self._tell.finished(reply, "cancelled")
            self._clear()
        if self.turn is not None and self.turn.committed and (reply is None or reply.to_turn):
            self.turn.committed = False
            self.awaiting_words = None
            self.conversation.remove(self.turn.turn_id)
            self._command(ReopenTurn(self.turn.turn_id))
            self._emit(ev.UserTurnReopened(self._at(), self.turn.turn_id))

    # --- the reply at hand -----------------------------------------------------------------------

    def current(self, reply_id: str) -> Reply | None:
        """The reply at hand if it is that one; anything else was dropped meanwhile."""
        return self.reply if self.reply is not None and self.reply.reply_id == reply_id else None

    @property
    def reply_left_s(self) -> float | None:
        """What is still to be sent of the reply at hand, once its end is known."""
        if self.reply is None or not self.reply.ended:
            return None
        return self._playout.queued_samples / SAMPLE_RATE_HZ

    @property
    def reply_sent_s(self) -> float | None:
        """What was sent of the reply at hand, if there is one."""
        return None if self.reply is None else self._ledger.sent_ms(self.reply.reply_id) / 1000

    def add_text(self, reply: Reply, delta: str) -> None:
        reply.text += delta
        reply.unannounced_text.append(delta)
        reply.came_s = self._clock.now() if reply.silent else reply.came_s
        self._announce(reply)

    def add_call(self, reply: Reply, event: CallEvent) -> None:
        reply.came_s = self._clock.now()
        self.items.take_call(reply, event)

    def add_audio(self, reply: Reply, audio: ReplyAudio) -> None:
        if reply.silent:
            return  # of an agent that cannot help it
        try:
            self._playout.append(audio.samples)
        except AgentFaultError as error:
            # A talker that does not stop: keep what there is and end the reply there.
            self._command(DropReply(reply.reply_id))
            self.end_audio(reply, ReplyEnd(reply.reply_id, error))
            return
        reply.trace.mark("reply_first_audio", self._clock.now())
        self._ledger.queue(reply.reply_id, len(audio.samples), audio.words)
        reply.unannounced_words.extend(audio.words)
        self._announce(reply)
        self.check_audible(reply)

    def end_audio(self, reply: Reply, end: ReplyEnd) -> None:
        reply.ended, reply.cut_short = True, end.cut_short
        self._playout.complete()
        if end.error is not None:
            reply.error = str(end.error)
            self._emit(ev.ErrorRaised(self._at(), type(end.error).__name__, str(end.error)))
        self.check_audible(reply)

    def check_audible(self, reply: Reply) -> None:
        """Signals the machine once the reply can be heard, or will never be."""
        if self._playout.state is State.HELD_BACK and self._playout.audible:
            if self._complete_since_s is not None and self.machine.floor is Floor.LISTENING:
                self.signal(User.TURN_COMPLETE)  # it only waited for this
            self.signal(Own.REPLY_AUDIBLE)
        elif reply.ended and self._playout.drained and self._playout.state is not State.FADING:
            self._sent_to_the_end(reply)

    def _sent_to_the_end(self, reply: Reply) -> None:
        """Nothing of it is left to send. It is over once it was heard, or at once if there was nothing to hear."""
        if not reply.started:
            self.signal(Own.REPLY_ENDED)
        elif reply.sent_all_at_s is None:
            reply.sent_all_at_s = self._clock.now()

    def _begin(
        self,
        *,
        speculative: bool = False,
        to_open_turn: bool = True,
        asked: CreateReply = _NOTHING_SPECIAL,
        history: tuple[Item, ...] | None = None,
    ) -> Reply:
        reply_id, item_id = self.new_id("resp"), self.new_id("item")
        reply = Reply.asked_for(
            asked, reply_id, item_id, silent=self.silent, to_turn=to_open_turn, speculative=speculative
        )
        reply.trace.mark("reply_asked", self._clock.now())
        self.reply = reply
        self._playout.begin()
        self._ledger.begin(reply.reply_id, reply.item_id)
        self._command(reply.begin(asked, self.conversation.snapshot() if history is None else history))
        return reply

    def _publish(self) -> None:
        if self.reply is not None:
            self._tell.publish(self.reply)

    def _announce(self, reply: Reply) -> None:
        self._tell.announce(reply, released=self._playout.state is not State.HELD_BACK)

    def _release(self) -> None:
        assert self.reply is not None
        self._playout.release()
        self._announce(self.reply)

    def _hold(self) -> None:
        if self.reply is None:
            return
        self._playout.hold()
        self._take_back(self.reply)
        self._ledger.hold(self.reply.reply_id, self._clock.now())
        self._command(HoldReply(self.reply.reply_id))
        self._emit(ev.ReplyHeld(self._at(), self.reply.reply_id))

    def _resume(self) -> None:
        self._overlap_since_s = None
        if self.turn is not None and not self.turn.committed:
            self.turn = None  # what was said over us was no turn
        if self.reply is None:
            return
        self._playout.resume()
        self._ledger.resume(self.reply.reply_id)
        self._command(ResumeReply(self.reply.reply_id))
        self._metrics.resumes.inc()
        self._emit(ev.ReplyResumed(self._at(), self.reply.reply_id))

    def _yield(self) -> None:
        if self.reply is not None:
            self._cut_off(self.reply)
        self.signal(Own.YIELDED)

    def _cut_off(self, reply: Reply) -> None:
        """Ends it here; what was heard of it is remembered, or read of a silent one."""
        self._take_back(reply)
        heard = self._ledger.heard(reply.reply_id, self._clock.now())
        heard_text = self._ledger.text_until(reply.reply_id, heard.samples) if reply.started else ""
        heard_text = reply.text.strip() if reply.silent and reply.public else heard_text
        self._command(DropReply(reply.reply_id, heard_text, words_after(reply.text, heard_text)))
        self._ledger.drop(reply.reply_id)
        self._tell.truncated(reply, heard, heard_text)
        self._tell.finished(reply, "cancelled")
        self._clear()
        self._command(Remember(self.conversation.snapshot()))

    def _finish(self) -> None:
        reply = self.reply
        if reply is None:
            return
        self._tell.said(reply)
        self._tell.finished(reply, reply.status)
        self._clear()
        self._command(Remember(self.conversation.snapshot()))

    def _clear(self) -> None:
        self.reply = None
        self._playout.reset()

    # --- what went out ---------------------------------------------------------------------------

    def tell_progress(self, reply: Reply) -> None:
        self._tell.progress(reply)

    def sent(self, sent: Sent, now_s: float, last_audible_s: float) -> None:
        """A packet left. Marks the first one, measures how fast we fell silent, and notices the end."""
        reply = self.reply
        if reply is None:
            return
        if sent.real:
            if not reply.started:
                reply.started = True
                self._tell.first_packet(reply)
            if sent.audible and "first_packet" not in reply.trace.marks:
                reply.trace.mark("first_packet", now_s)
                if (trace := traced(self._at(), self.turn, reply)) is not None:
                    self._metrics.first_packet_s.observe(trace.first_packet_ms / 1000.0)
                    self._metrics.voice_to_voice_s.observe(max(0.0, trace.voice_to_voice_ms / 1000.0))
                    self._emit(trace)
        if self._playout.state is State.HOLDING and self._overlap_since_s is not None:
            self._metrics.barge_in_stop_s.observe(max(0.0, last_audible_s - self._overlap_since_s))
            self._overlap_since_s = None
        if reply.ended and self._playout.drained:
            self._sent_to_the_end(reply)
