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
    BeginReply,
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
from duplex.conversation import Conversation, Message, Role, words_after
from duplex.errors import AgentFaultError
from duplex.frames import SAMPLE_RATE_HZ
from duplex.ledger import Ledger
from duplex.metrics import Metrics
from duplex.outgoing import Sent
from duplex.playout import Playout, State
from duplex.reply import Reply, Turn
from duplex.requests import CreateReply
from duplex.trace import TurnTrace
from duplex.turn import Action, Floor, Own, Signal, TurnMachine, User

_NOTHING_SPECIAL = CreateReply()
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
        self.conversation = Conversation(config.max_messages)
        self.reply: Reply | None = None
        self.turn: Turn | None = None
        self.last_item_id: str | None = None
        self._clock, self._config, self._metrics = clock, config, metrics
        self._playout, self._ledger = playout, ledger
        self._emit, self._command, self._take_back, self._at = emit, command, take_back, at
        self._last_told: tuple[Floor, User] | None = None
        self._overlap_since_s: float | None = None
        self._name = session_id.removeprefix("sess_")
        self._starved_since_s: float | None = None
        self._complete_since_s: float | None = None  # since when the predictor calls the open turn complete
        self._asked = CreateReply()
        self._ids = 0

    def new_id(self, kind: str) -> str:
        """Counted, not random, so that a replay names things alike; unique through the session's own id."""
        self._ids += 1
        return f"{kind}_{self._name}_{self._ids}"

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
        if self.machine.floor is Floor.THINKING:
            self._wait_for_reply(now_s - self.machine.since_s)
        self._watch_for_stall(now_s)
        if self.reply is not None and self._all_heard(self.reply, now_s):
            self.signal(Own.REPLY_ENDED)

    def _wait_for_reply(self, waited_s: float) -> None:
        limit_s, dead_air_s = self._config.think_limit_s, self._config.dead_air_s
        if waited_s > limit_s:
            self._give_up("reply_timeout", f"No reply came within {limit_s:g} s; the floor is yours again.")
        elif self.reply is not None and not self.reply.dead_air_told and 0 < dead_air_s < waited_s:
            self.reply.dead_air_told = True
            self._command(FillSilence(self.reply.reply_id))

    def _watch_for_stall(self, now_s: float) -> None:
        """A reply that stops in mid-sentence keeps the floor for ``stall_limit_s``, and no longer."""
        reply = self.reply
        starved = self.machine.floor is Floor.SPEAKING and not self._playout.audible
        if reply is None or reply.ended or not starved:
            self._starved_since_s = None
        elif self._starved_since_s is None:
            self._starved_since_s = now_s
        elif now_s - self._starved_since_s > self._config.stall_limit_s:
            self._starved_since_s = None
            limit_s = self._config.stall_limit_s
            self._give_up("reply_stalled", f"The reply stopped coming for {limit_s:g} s; the floor is yours again.")

    def _give_up(self, code: str, message: str) -> None:
        self._emit(ev.ErrorRaised(self._at(), code, message))
        self.signal(Own.CANCELLED)

    def _all_heard(self, reply: Reply, now_s: float) -> bool:
        """Whether a reply that was sent to its end has also reached the ear; until then it can still be cut off."""
        if reply.sent_all_at_s is None or self.machine.floor is not Floor.SPEAKING or not self._playout.drained:
            return False
        heard = self._ledger.heard(reply.reply_id, now_s)
        all_heard = heard.samples >= self._ledger.sent_samples(reply.reply_id)
        return all_heard or now_s - reply.sent_all_at_s > _LONGEST_PLAYOUT_S

    def request_reply(self, request: CreateReply) -> None:
        """Speak without a user's turn; what is asked for holds for this reply alone."""
        self._asked = request
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
                    self._begin(to_open_turn=False, asked=self._asked)
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

    # --- the user's turn -------------------------------------------------------------------------

    def open_turn(self) -> Turn:
        """The turn that is being spoken; a new one if the last is over."""
        if self.turn is None or (self.turn.committed and self.machine.floor is not Floor.THINKING):
            self.turn = Turn(self.new_id("item"))
        return self.turn

    def speech_started(self, audio_pts: int, at_s: float) -> None:
        turn = self.open_turn()
        if self.machine.floor in (Floor.SPEAKING, Floor.HOLDING):
            self._overlap_since_s = at_s
        self._emit(ev.UserSpeechStarted(self._at(), turn.turn_id, audio_pts))

    def speech_stopped(self, audio_pts: int, at_s: float) -> None:
        turn = self.open_turn()
        turn.last_voiced_s = at_s
        self._emit(ev.UserSpeechStopped(self._at(), turn.turn_id, audio_pts))

    def transcribed(self, turn_id: str, text: str) -> None:
        """The words of a committed turn. A turn that was reopened meanwhile gets its words later."""
        if text and not (self.turn is not None and self.turn.turn_id == turn_id and not self.turn.committed):
            self.conversation.put(Message(turn_id, Role.USER, text))
        self._emit(ev.UserTranscriptFinal(self._at(), turn_id, text))

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
        previous, self.last_item_id = self.last_item_id, turn.turn_id
        turn.committed = True
        reply = self.reply if self.reply is not None else self._begin()
        now_s = self._clock.now()
        if turn.last_voiced_s is not None:
            reply.trace.mark("last_voiced", turn.last_voiced_s)
            self._metrics.end_of_turn_s.observe(max(0.0, now_s - turn.last_voiced_s))
        if self._complete_since_s is not None:
            reply.trace.mark("turn_complete", self._complete_since_s)
        reply.trace.mark("commit", now_s)
        self._metrics.turns.inc()
        self._emit(ev.UserTurnCommitted(self._at(), turn.turn_id, previous))
        self._command(CommitTurn(turn.turn_id))
        self._publish()
        self.check_audible(reply)

    def _retract(self) -> None:
        if self.reply is not None:
            self._command(DropReply(self.reply.reply_id))
            self._tell_finished(self.reply, "cancelled")
            self._clear()
        if self.turn is not None and self.turn.committed:
            self.turn.committed = False
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

    def add_text(self, reply: Reply, delta: str) -> None:
        reply.text += delta
        reply.unannounced_text.append(delta)
        self._announce(reply)

    def add_audio(self, reply: Reply, audio: ReplyAudio) -> None:
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
        reply.ended = True
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
        self, *, speculative: bool = False, to_open_turn: bool = True, asked: CreateReply = _NOTHING_SPECIAL
    ) -> Reply:
        reply = Reply(self.new_id("resp"), self.new_id("item"), TurnTrace(speculative=speculative))
        reply.trace.mark("reply_asked", self._clock.now())
        self.reply = reply
        self._playout.begin()
        self._ledger.begin(reply.reply_id, reply.item_id)
        history = self.conversation.snapshot()
        self._command(BeginReply(reply.reply_id, history, to_open_turn, speculative, asked.instructions, asked.say))
        return reply

    def _publish(self) -> None:
        reply = self.reply
        if reply is not None and not reply.public:
            reply.public = True
            self._emit(ev.ReplyStarted(self._at(), reply.reply_id, reply.item_id, self.last_item_id))
            self.last_item_id = reply.item_id
            self._announce(reply)

    def _announce(self, reply: Reply) -> None:
        """Tells the client what it may know by now: text once the reply is public, words once it is released."""
        if reply.public and reply.unannounced_text:
            delta = "".join(reply.unannounced_text)
            reply.unannounced_text.clear()
            self._emit(ev.ReplyTextAdded(self._at(), reply.reply_id, reply.item_id, delta))
        if reply.public and reply.unannounced_words and self._playout.state is not State.HELD_BACK:
            words = tuple(reply.unannounced_words)
            reply.unannounced_words.clear()
            self._emit(ev.ReplyWords(self._at(), reply.reply_id, reply.item_id, words))

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
        reply = self.reply
        if reply is not None:
            self._take_back(reply)
            heard = self._ledger.heard(reply.reply_id, self._clock.now())
            heard_text = self._ledger.text_until(reply.reply_id, heard.samples) if reply.started else ""
            unheard = words_after(reply.text, heard_text)
            self._command(DropReply(reply.reply_id, heard_text, unheard))
            self._ledger.drop(reply.reply_id)
            if heard_text:
                message = Message(reply.item_id, Role.ASSISTANT, heard_text, cut_off=True, unheard=unheard)
                self.conversation.put(message)
            if reply.started:
                self._emit(
                    ev.ReplyTruncated(
                        self._at(),
                        reply.reply_id,
                        reply.item_id,
                        heard_text,
                        heard.ms,
                        heard.evidence.value,
                        heard.error_ms,
                    )
                )
            self._tell_finished(reply, "cancelled")
            self._clear()
            self._command(Remember(self.conversation.snapshot()))
        self.signal(Own.YIELDED)

    def _finish(self) -> None:
        reply = self.reply
        if reply is None:
            return
        if reply.text.strip() and reply.started:
            self.conversation.put(Message(reply.item_id, Role.ASSISTANT, reply.text.strip()))
        self._tell_finished(reply, "failed" if reply.error else "completed")
        self._clear()
        self._command(Remember(self.conversation.snapshot()))

    def _tell_finished(self, reply: Reply, status: str) -> None:
        if reply.public:
            if reply.started:
                self.tell_progress(reply)
            self._metrics.replies.labels(status).inc()
            audio_ms = self._ledger.sent_ms(reply.reply_id)
            self._emit(
                ev.ReplyFinished(self._at(), reply.reply_id, reply.item_id, status, reply.text, audio_ms, reply.error)
            )

    def _clear(self) -> None:
        self.reply = None
        self._playout.reset()

    # --- what went out ---------------------------------------------------------------------------

    def tell_progress(self, reply: Reply) -> None:
        heard = self._ledger.heard(reply.reply_id, self._clock.now())
        sent_ms = self._ledger.sent_ms(reply.reply_id)
        self._emit(
            ev.PlayoutProgress(self._at(), reply.reply_id, sent_ms, heard.ms, heard.evidence.value, heard.error_ms)
        )

    def sent(self, sent: Sent, now_s: float, last_audible_s: float) -> None:
        """A packet left. Marks the first one, measures how fast we fell silent, and notices the end."""
        reply = self.reply
        if reply is None:
            return
        if sent.real:
            if not reply.started:
                reply.started = True
                self._emit(ev.ReplyAudioStarted(self._at(), reply.reply_id, reply.item_id))
            if sent.audible and "first_packet" not in reply.trace.marks:
                reply.trace.mark("first_packet", now_s)
                self._tell_trace(reply)
        if self._playout.state is State.HOLDING and self._overlap_since_s is not None:
            self._metrics.barge_in_stop_s.observe(max(0.0, last_audible_s - self._overlap_since_s))
            self._overlap_since_s = None
        if reply.ended and self._playout.drained:
            self._sent_to_the_end(reply)

    def _tell_trace(self, reply: Reply) -> None:
        trace = reply.trace
        first_packet_ms = trace.between_ms("commit", "first_packet")
        voice_to_voice_ms = trace.since_last_voiced_ms("first_packet")
        if first_packet_ms is None or voice_to_voice_ms is None or self.turn is None:
            return  # a reply nobody's turn asked for
        for name, at_s in self.turn.marks.items():
            trace.mark(name, at_s)
        self._metrics.first_packet_s.observe(first_packet_ms / 1000.0)
        self._metrics.voice_to_voice_s.observe(max(0.0, voice_to_voice_ms / 1000.0))
        self._emit(
            ev.TurnTraced(
                self._at(),
                self.turn.turn_id,
                reply.reply_id,
                trace.marks_ms(),
                trace.waterfall(),
                first_packet_ms,
                voice_to_voice_ms,
                trace.since_last_voiced_ms("commit") or 0.0,
                trace.speculative,
            )
        )
