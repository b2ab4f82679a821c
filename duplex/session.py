"""A session: one line, one agent session, one clock, the turn machine and the ledger.

Theory of operation
-------------------
``run`` ticks every 20 ms. A tick takes what the line heard, steps the agent with it, lets the turn
machine decide, and puts the packet that is due on the wire. When one of the agent's workers has
something ready between two ticks it wakes us and the same decisions are taken at once, so a finished
transcript or the first audio of a reply does not wait for a tick.

Everything here runs on one event loop and nothing awaits between reading a state and acting on it,
so there are no locks. The turn machine says *what* to do (``duplex.turn``); the ``_do_*`` methods
say *how*, and only they change the reply at hand.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

import numpy as np

from duplex import events as ev
from duplex import requests as rq
from duplex.agent import (
    Agent,
    AgentEvent,
    AgentSession,
    AgentSettings,
    BeginReply,
    CommitTurn,
    Configure,
    DropReply,
    Fault,
    FinalTranscript,
    ForgetTurn,
    Heard,
    HoldReply,
    Mark,
    PartialTranscript,
    ReopenTurn,
    ReplyAudio,
    ReplyEnd,
    ReplyText,
    ResumeReply,
    SpeechStarted,
    SpeechStopped,
    UserState,
)
from duplex.clock import Clock
from duplex.config import SessionConfig
from duplex.conversation import Conversation, Message, Role
from duplex.errors import AgentFaultError, DuplexError, InvalidEventError
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Framer, Samples, ms_to_samples, samples_to_ms
from duplex.ledger import Ledger
from duplex.line import Line, OutPacket
from duplex.metrics import Metrics
from duplex.playout import Playout, State
from duplex.reply import Reply, Turn
from duplex.trace import TurnTrace
from duplex.turn import Action, Floor, Own, Signal, TurnMachine, User

log = logging.getLogger("duplex.session")

PACKET_S = PACKET_SAMPLES / SAMPLE_RATE_HZ
AUDIBLE_RMS = 10 ** (-40 / 20)  # −40 dBFS: what a listener notices
_RESYNC_S = 0.5  # a machine that slept this long starts counting afresh


class Session:
    """Owns the task that runs a conversation. Everything but ``run`` is synchronous and never blocks."""

    def __init__(
        self,
        *,
        session_id: str,
        line: Line,
        agent: Agent,
        clock: Clock,
        config: SessionConfig,
        settings: AgentSettings,
        metrics: Metrics,
    ) -> None:
        self.id = session_id
        self.settings = settings
        self.conversation = Conversation(config.max_messages)
        playout = config.playout
        self.ledger = Ledger(assumed_delay_ms=playout.assumed_delay_ms)
        self.machine = TurnMachine(hold_limit_s=config.hold_limit_s)
        self._line, self._agent, self._clock, self._config, self._metrics = line, agent, clock, config, metrics
        self._playout = Playout(
            fade_out_ms=playout.fade_out_ms, fade_in_ms=playout.fade_in_ms, max_reply_s=playout.max_reply_s
        )
        self._framer = Framer(agent.info.packets_per_frame)
        self._mind: AgentSession | None = None
        self._reply: Reply | None = None
        self._turn: Turn | None = None
        self._heard_pts = 0  # end of what was heard so far
        self._heard_at_s = 0.0  # when that was
        self._out_packets = 0
        self._out_epoch_s = 0.0
        self._sent: deque[tuple[str | None, Samples, int]] = deque(maxlen=64)  # (reply, samples, real samples)
        self._last_audible_s = 0.0
        self._overlap_since_s: float | None = None
        self._next_progress_s = 0.0
        self._last_item_id: str | None = None
        self._last_told: tuple[Floor, User] | None = None
        self._stop_reason: str | None = None
        self._stop = asyncio.Event()
        self._wake_pending = False
        self._ids = 0

    # --- life ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs until the line closes, ``stop`` is called or the agent fails for good."""
        loop = asyncio.get_running_loop()

        def wake() -> None:  # called from workers' threads
            if not self._wake_pending:
                self._wake_pending = True
                try:
                    loop.call_soon_threadsafe(self._woken)
                except RuntimeError:  # the loop closed first; nobody is left to tell
                    pass

        self._metrics.sessions.inc()
        try:
            self._mind = self._agent.open(self.settings, self._clock, wake)
            now_s = self._clock.now()
            self._out_epoch_s = self._heard_at_s = now_s
            self.machine.reset(now_s)
            self._emit(ev.SessionStarted(self._at(), self.id, self._agent.info.name, self.settings))
            await self._run_ticks(now_s)
        except DuplexError as error:
            self._stop_reason = str(error)
            self._emit(ev.ErrorRaised(self._at(), type(error).__name__, str(error)))
        finally:
            if self._mind is not None:
                self._mind.close()
            reason = self._stop_reason or "the line closed"
            if not self._line.closed:
                self._emit(ev.SessionClosed(self._at(), reason))
            await self._line.close(reason)
            log.info("session %s ended: %s", self.id, reason)

    def stop(self, reason: str) -> None:
        """Ends the session at its next tick; the client is told ``reason``."""
        self._stop_reason = self._stop_reason or reason
        self._stop.set()

    async def _run_ticks(self, due_s: float) -> None:
        while not self._stop.is_set() and not self._line.closed:
            self._tick()
            due_s += PACKET_S
            now_s = self._clock.now()
            if now_s > due_s:
                self._metrics.deadline_misses.inc()
                if now_s - due_s > _RESYNC_S:
                    due_s = now_s
            await self._clock.sleep_until(due_s)

    def _woken(self) -> None:
        self._wake_pending = False
        if self._mind is None or self._stop.is_set():
            return
        try:
            self._collect(self._mind)
            self._fill_wire()
        except DuplexError as error:
            self._emit(ev.ErrorRaised(self._at(), type(error).__name__, str(error)))
            self.stop(str(error))
        except Exception:
            log.exception("session %s failed", self.id)
            self.stop("an internal error ended the session")

    def _tick(self) -> None:
        mind = self._mind
        assert mind is not None
        now_s = self._clock.now()
        for packet in self._line.receive():
            if (frame := self._framer.push(packet)) is None:
                continue
            self._heard_pts, self._heard_at_s = frame.end_pts, now_s
            heard = Heard(
                frame=frame,
                reference=self._reference(len(frame.samples)),
                floor=self.machine.floor,
                floor_since_s=self.machine.since_s,
                now_s=now_s,
                image=self._line.take_image(),
            )
            mind.step(heard)
        self._collect(mind)
        self._metrics.step_s.observe(self._clock.now() - now_s)
        self._act(self.machine.tick(now_s))
        if self.machine.floor is Floor.THINKING and now_s - self.machine.since_s > self._config.think_limit_s:
            self._emit(
                ev.ErrorRaised(
                    self._at(),
                    "reply_timeout",
                    f"No reply came within {self._config.think_limit_s:g} s; the floor is yours again.",
                )
            )
            self._signal(Own.CANCELLED)
        self._fill_wire()
        self._tell_progress(now_s)

    # --- the agent's side ------------------------------------------------------------------------

    def _collect(self, mind: AgentSession) -> None:
        for event in mind.collect():
            self._take(event)

    def _take(self, event: AgentEvent) -> None:
        match event:
            case UserState(user=user):
                self._signal(user)
            case SpeechStarted(pts=pts):
                turn = self._open_turn()
                if self.machine.floor in (Floor.SPEAKING, Floor.HOLDING):
                    self._overlap_since_s = self._wall(pts)
                self._emit(ev.UserSpeechStarted(self._at(), turn.turn_id, pts))
            case SpeechStopped(pts=pts):
                turn = self._open_turn()
                turn.last_voiced_s = self._wall(pts)
                self._emit(ev.UserSpeechStopped(self._at(), turn.turn_id, pts))
            case PartialTranscript(text=text):
                self._emit(ev.UserTranscriptPartial(self._at(), self._open_turn().turn_id, text))
            case FinalTranscript(turn_id=turn_id, text=text):
                self._transcribed(turn_id, text)
            case ReplyText(reply_id=reply_id, delta=delta):
                if reply := self._current(reply_id):
                    reply.text += delta
                    reply.unannounced_text.append(delta)
                    self._announce(reply)
            case ReplyAudio(reply_id=reply_id):
                if reply := self._current(reply_id):
                    self._add_audio(reply, event)
            case ReplyEnd(reply_id=reply_id, error=error):
                if reply := self._current(reply_id):
                    reply.ended = True
                    self._playout.complete()
                    if error is not None:
                        reply.error = str(error)
                        self._emit(ev.ErrorRaised(self._at(), type(error).__name__, str(error)))
                    self._check_audible(reply)
            case Mark(name=name, at_s=at_s, reply_id=reply_id):
                if self._reply is not None and reply_id in (None, self._reply.reply_id):
                    self._reply.trace.mark(name, at_s)
            case Fault(error=error, fatal=fatal):
                self._emit(ev.ErrorRaised(self._at(), type(error).__name__, str(error)))
                if fatal:
                    raise error

    def _current(self, reply_id: str) -> Reply | None:
        """The reply at hand if it is that one; anything else was dropped meanwhile."""
        return self._reply if self._reply is not None and self._reply.reply_id == reply_id else None

    def _transcribed(self, turn_id: str, text: str) -> None:
        if text:
            self.conversation.put(Message(turn_id, Role.USER, text))
        self._emit(ev.UserTranscriptFinal(self._at(), turn_id, text))

    def _add_audio(self, reply: Reply, audio: ReplyAudio) -> None:
        try:
            self._playout.append(audio.samples)
        except AgentFaultError as error:
            # A talker that does not stop: keep what there is, end the reply there.
            self._command_drop(reply)
            reply.ended, reply.error = True, str(error)
            self._playout.complete()
            self._emit(ev.ErrorRaised(self._at(), "reply_too_long", str(error)))
            return
        self.ledger.queue(reply.reply_id, len(audio.samples), audio.words)
        reply.unannounced_words.extend(audio.words)
        self._announce(reply)
        self._check_audible(reply)

    def _check_audible(self, reply: Reply) -> None:
        if self._playout.state is State.HELD_BACK and self._playout.audible:
            self._signal(Own.REPLY_AUDIBLE)
        elif reply.ended and self._playout.drained and self._playout.state is not State.FADING:
            self._signal(Own.REPLY_ENDED)

    # --- turn-taking -----------------------------------------------------------------------------

    def _signal(self, signal: Signal) -> None:
        self._act(self.machine.feed(signal, self._clock.now()))
        told = (self.machine.floor, self.machine.user)
        if told != self._last_told:
            self._last_told = told
            self._emit(ev.FloorChanged(self._at(), *told))

    def _act(self, actions: tuple[Action, ...]) -> None:
        for action in actions:
            match action:
                case Action.SPECULATE:
                    self._do_speculate()
                case Action.DROP_SPECULATION:
                    self._do_drop_speculation()
                case Action.COMMIT:
                    self._do_commit()
                case Action.RETRACT:
                    self._do_retract()
                case Action.START_REPLY:
                    self._begin_reply(to_open_turn=False)
                    self._publish()
                case Action.RELEASE:
                    self._do_release()
                case Action.HOLD:
                    self._do_hold()
                case Action.RESUME:
                    self._do_resume()
                case Action.YIELD:
                    self._do_yield()
                case Action.FINISH:
                    self._do_finish()

    def _do_speculate(self) -> None:
        if self._reply is None and self._turn is not None:
            self._begin_reply(speculative=True)

    def _do_drop_speculation(self) -> None:
        if self._reply is not None and not self._reply.public:
            self._command_drop(self._reply)
            self._clear_reply()

    def _do_commit(self) -> None:
        turn = self._open_turn()
        previous = self._last_item_id
        turn.committed = True
        self._last_item_id = turn.turn_id
        assert self._mind is not None
        if self._reply is None:
            self._begin_reply()
        assert self._reply is not None
        trace, now_s = self._reply.trace, self._clock.now()
        if turn.last_voiced_s is not None:
            trace.mark("last_voiced", turn.last_voiced_s)
            self._metrics.end_of_turn_s.observe(max(0.0, now_s - turn.last_voiced_s))
        trace.mark("commit", now_s)
        self._metrics.turns.inc()
        self._emit(ev.UserTurnCommitted(self._at(), turn.turn_id, previous))
        self._mind.command(CommitTurn(turn.turn_id))
        self._publish()
        self._check_audible(self._reply)

    def _do_retract(self) -> None:
        if self._reply is not None:
            self._command_drop(self._reply)
            self._finish_public("cancelled")
            self._clear_reply()
        if self._turn is not None and self._turn.committed:
            self._turn.committed = False
            self.conversation.remove(self._turn.turn_id)
            assert self._mind is not None
            self._mind.command(ReopenTurn(self._turn.turn_id))
            self._emit(ev.UserTurnReopened(self._at(), self._turn.turn_id))

    def _do_release(self) -> None:
        assert self._reply is not None
        self._playout.release()
        self._announce(self._reply)

    def _do_hold(self) -> None:
        if self._reply is None:
            return
        self._playout.hold()
        self._take_back()
        assert self._mind is not None
        self._mind.command(HoldReply(self._reply.reply_id))
        self._emit(ev.ReplyHeld(self._at(), self._reply.reply_id))

    def _do_resume(self) -> None:
        self._overlap_since_s = None
        if self._turn is not None and not self._turn.committed:
            self._turn = None  # what was said over us was no turn
        if self._reply is None:
            return
        assert self._mind is not None
        self._playout.resume()
        self._mind.command(ResumeReply(self._reply.reply_id))
        self._metrics.resumes.inc()
        self._emit(ev.ReplyResumed(self._at(), self._reply.reply_id))

    def _do_yield(self) -> None:
        reply = self._reply
        if reply is not None:
            self._take_back()
            now_s = self._clock.now()
            heard = self.ledger.heard(reply.reply_id, now_s)
            heard_text = self.ledger.text_until(reply.reply_id, heard.samples) if reply.started else ""
            self._command_drop(reply, heard_text)
            self.ledger.drop(reply.reply_id)
            if heard_text:
                self.conversation.put(Message(reply.item_id, Role.ASSISTANT, heard_text, cut_off=True))
            if reply.started:
                self._emit(
                    ev.ReplyTruncated(
                        self._at(), reply.reply_id, reply.item_id, heard_text, heard.ms, heard.evidence.value
                    )
                )
            self._finish_public("cancelled")
            self._clear_reply()
        self._signal(Own.YIELDED)

    def _do_finish(self) -> None:
        reply = self._reply
        if reply is None:
            return
        if reply.text.strip() and reply.started:
            self.conversation.put(Message(reply.item_id, Role.ASSISTANT, reply.text.strip()))
        self._finish_public("failed" if reply.error else "completed")
        self._clear_reply()

    # --- the reply at hand -----------------------------------------------------------------------

    def _begin_reply(
        self, *, speculative: bool = False, to_open_turn: bool = True, instructions: str | None = None
    ) -> None:
        reply = Reply(self._new_id("resp"), self._new_id("item"), TurnTrace(speculative=speculative))
        self._reply = reply
        self._playout.begin()
        self.ledger.begin(reply.reply_id, reply.item_id)
        assert self._mind is not None
        self._mind.command(
            BeginReply(reply.reply_id, self.conversation.snapshot(), to_open_turn, speculative, instructions)
        )

    def _publish(self) -> None:
        reply = self._reply
        if reply is not None and not reply.public:
            reply.public = True
            self._emit(ev.ReplyStarted(self._at(), reply.reply_id, reply.item_id, self._last_item_id))
            self._last_item_id = reply.item_id
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

    def _finish_public(self, status: str) -> None:
        reply = self._reply
        if reply is None or not reply.public:
            return
        self._metrics.replies.labels(status).inc()
        audio_ms = self.ledger.sent_ms(reply.reply_id)
        self._emit(
            ev.ReplyFinished(self._at(), reply.reply_id, reply.item_id, status, reply.text, audio_ms, reply.error)
        )

    def _command_drop(self, reply: Reply, heard_text: str = "") -> None:
        assert self._mind is not None
        self._mind.command(DropReply(reply.reply_id, heard_text))

    def _clear_reply(self) -> None:
        self._reply = None
        self._playout.reset()

    def _take_back(self) -> None:
        """Recalls packets the line has not put on the wire yet, so that they can be played later or dropped."""
        samples = self._line.flush()
        while samples >= PACKET_SAMPLES and self._sent:
            reply_id, packet, real = self._sent.pop()
            samples -= PACKET_SAMPLES
            self._out_packets -= 1
            if self._reply is not None and reply_id == self._reply.reply_id and real:
                self.ledger.unsend(reply_id, real)
                self._playout.rewind(packet[:real])

    # --- the wire --------------------------------------------------------------------------------

    def _fill_wire(self) -> None:
        """Puts every packet on the wire that is due now; a line with lead gets that much more while speaking."""
        now_s = self._clock.now()
        elapsed = int((now_s - self._out_epoch_s) / PACKET_S) + 1
        if elapsed - self._out_packets > _RESYNC_S / PACKET_S:
            self._out_epoch_s = now_s - self._out_packets * PACKET_S
            elapsed = self._out_packets + 1
        max_lead = ms_to_samples(self._config.playout.max_ahead_ms) // PACKET_SAMPLES
        lead = min(self._line.lead_packets, max_lead) - 1
        while True:
            ahead = lead if self._playout.state is State.PLAYING and self._playout.audible else 0
            if self._out_packets >= elapsed + ahead:
                return
            self._send_one(now_s)

    def _send_one(self, now_s: float) -> None:
        reply = self._reply
        taken = self._playout.take()
        if taken.underrun:
            self._metrics.underruns.inc()
        real = taken.end_samples - taken.start_samples
        audible = bool(np.dot(taken.samples, taken.samples) > AUDIBLE_RMS**2 * PACKET_SAMPLES)
        pts = self._out_packets * PACKET_SAMPLES
        speaks = reply is not None and (real > 0 or audible)
        self._line.send(
            OutPacket(
                pts,
                taken.samples,
                reply.reply_id if reply and speaks else None,
                reply.item_id if reply and speaks else None,
            )
        )
        self._out_packets += 1
        self._sent.append((reply.reply_id if reply else None, taken.samples, real))
        if audible:
            self._last_audible_s = now_s
        if reply is None:
            return
        if real:
            self.ledger.send(reply.reply_id, pts + PACKET_SAMPLES, taken.end_samples, real, now_s)
            self._trace_packet(reply, now_s, audible)
        if self._playout.state is State.HOLDING and self._overlap_since_s is not None:
            self._metrics.barge_in_stop_s.observe(max(0.0, self._last_audible_s - self._overlap_since_s))
            self._overlap_since_s = None
        if reply.ended and self._playout.drained:
            self._signal(Own.REPLY_ENDED)

    def _trace_packet(self, reply: Reply, now_s: float, audible: bool) -> None:
        if not reply.started:
            reply.started = True
            self._emit(ev.ReplyAudioStarted(self._at(), reply.reply_id, reply.item_id))
        trace = reply.trace
        if not audible or "first_packet" in trace.marks:
            return
        trace.mark("first_packet", now_s)
        first_packet_ms = trace.between_ms("commit", "first_packet")
        voice_to_voice_ms = trace.since_last_voiced_ms("first_packet")
        if first_packet_ms is None or voice_to_voice_ms is None or self._turn is None:
            return
        self._metrics.first_packet_s.observe(first_packet_ms / 1000.0)
        self._metrics.voice_to_voice_s.observe(max(0.0, voice_to_voice_ms / 1000.0))
        self._emit(
            ev.TurnTraced(
                self._at(),
                self._turn.turn_id,
                reply.reply_id,
                trace.marks_ms(),
                trace.waterfall(),
                first_packet_ms,
                voice_to_voice_ms,
                trace.since_last_voiced_ms("commit") or 0.0,
                trace.speculative,
            )
        )

    def _reference(self, n_samples: int) -> Samples:
        """The last ``n_samples`` we played: what an echo in the heard frame would be made of."""
        packets = [samples for _, samples, _ in list(self._sent)[-(n_samples // PACKET_SAMPLES) :]]
        reference = np.concatenate(packets) if packets else np.zeros(0, dtype=np.float32)
        return np.pad(reference, (n_samples - len(reference), 0)) if len(reference) < n_samples else reference

    def _tell_progress(self, now_s: float) -> None:
        if (report := self._line.playout()) is not None:
            self.ledger.report(report)
        reply = self._reply
        if reply is None or not reply.started or now_s < self._next_progress_s:
            return
        self._next_progress_s = now_s + self._config.playout.progress_interval_s
        heard = self.ledger.heard(reply.reply_id, now_s)
        sent_ms = self.ledger.sent_ms(reply.reply_id)
        self._emit(
            ev.PlayoutProgress(self._at(), reply.reply_id, sent_ms, heard.ms, heard.evidence.value, heard.error_ms)
        )

    # --- the client's side -----------------------------------------------------------------------

    def request(self, request: rq.Request, client_event_id: str | None = None) -> None:
        """Carries out what a client asks for. Raises ``ProtocolError`` when it cannot be done; the session goes on."""
        assert self._mind is not None
        match request:
            case rq.UpdateSettings(settings=changes):
                self.settings = AgentSettings(
                    instructions=changes.instructions
                    if changes.instructions is not None
                    else self.settings.instructions,
                    voice=changes.voice if changes.voice is not None else self.settings.voice,
                )
                self._mind.command(Configure(self.settings))
                self._emit(ev.SessionUpdated(self._at(), self.settings))
            case rq.CommitInput():
                if self._turn is None or self._turn.committed:
                    raise InvalidEventError("There is no speech to commit.", code="input_audio_buffer_commit_empty")
                self._signal(User.TURN_COMPLETE)
            case rq.ClearInput():
                self._mind.command(ForgetTurn())
                self._signal(User.IDLE)
                self._turn = None
            case rq.AddMessage(role=role, text=text, images=images, item_id=item_id):
                message = Message(item_id or self._new_id("item"), role, text, images)
                previous, self._last_item_id = self._last_item_id, message.item_id
                self.conversation.put(message)
                self._emit(ev.ItemAdded(self._at(), message.item_id, role, text, previous))
            case rq.RemoveMessage(item_id=item_id):
                if not self.conversation.remove(item_id):
                    raise InvalidEventError(f"There is no item {item_id!r}.", param="item_id")
            case rq.CreateReply():
                if self._reply is not None and self._reply.public:
                    raise InvalidEventError(
                        "A response is in progress. Wait for response.done or cancel it first.",
                        code="conversation_already_has_active_response",
                    )
                self._signal(Own.REPLY_REQUESTED)
            case rq.CancelReply(reply_id=reply_id):
                if self._reply is None or not self._reply.public or reply_id not in (None, self._reply.reply_id):
                    raise InvalidEventError("There is no response to cancel.", code="response_cancel_not_active")
                self._signal(Own.CANCELLED)
            case rq.TruncateMessage(item_id=item_id, audio_end_ms=audio_end_ms):
                self._truncate(item_id, audio_end_ms)
            case rq.AcknowledgePlayout(reply_id=reply_id, played_ms=played_ms):
                self.ledger.acknowledge(reply_id, played_ms, self._clock.now())

    def _truncate(self, item_id: str, audio_end_ms: float) -> None:
        reply_id = self.ledger.reply_of_item(item_id)
        if reply_id is None:
            raise InvalidEventError(f"There is no assistant item {item_id!r} with audio.", param="item_id")
        sent_ms = self.ledger.sent_ms(reply_id)
        if audio_end_ms > sent_ms + samples_to_ms(PACKET_SAMPLES):
            raise InvalidEventError(
                f"audio_end_ms is {audio_end_ms:.0f}, but the item has {sent_ms:.0f} ms of audio.", param="audio_end_ms"
            )
        if self._reply is not None and self._reply.reply_id == reply_id:
            self.ledger.acknowledge(reply_id, audio_end_ms, self._clock.now())
            self._signal(Own.CANCELLED)
            return
        text = self.ledger.text_until(reply_id, ms_to_samples(audio_end_ms))
        self.conversation.truncate(item_id, text)
        self._emit(ev.ReplyTruncated(self._at(), reply_id, item_id, text, audio_end_ms, "ack"))

    # --- small things ----------------------------------------------------------------------------

    def _open_turn(self) -> Turn:
        if self._turn is None or (self._turn.committed and self.machine.floor is not Floor.THINKING):
            self._turn = Turn(self._new_id("item"))
        return self._turn

    def _new_id(self, kind: str) -> str:
        """Counted, not random, so that a replay names things alike; unique through the session's own id."""
        self._ids += 1
        return f"{kind}_{self.id.removeprefix('sess_')}_{self._ids}"

    def _at(self) -> ev.At:
        return ev.At(self._heard_pts, self._clock.now())

    def _wall(self, pts: int) -> float:
        """When the heard sample ``pts`` was taken in."""
        return self._heard_at_s - (self._heard_pts - pts) / SAMPLE_RATE_HZ

    def _emit(self, event: ev.Event) -> None:
        self._line.emit(event)
