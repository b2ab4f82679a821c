"""A session: one line, one agent session, one clock, and the floor between them.

Theory of operation
-------------------
``run`` ticks every 20 ms. A tick takes what the line heard, steps the agent with it, lets the turn
machine decide, and puts the packet that is due on the wire. When one of the agent's workers has
something ready between two ticks it wakes us and the same decisions are taken at once, so a finished
transcript or the first audio of a reply does not wait for a tick.

    line.receive ─► Framer ─► agent.step … agent.collect ─► FloorKeeper ─► Outgoing ─► line.send
                                                               ▲
                                        client's requests ─────┘

The session is the only owner of the asyncio task; everything but ``run`` is synchronous.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import fields, replace

from duplex import events as ev
from duplex import requests as rq
from duplex.agent import (
    Agent,
    AgentCommand,
    AgentEvent,
    AgentSession,
    AgentSettings,
    Aside,
    AsideKind,
    Configure,
    Fault,
    FinalTranscript,
    Heard,
    Inject,
    Mark,
    PartialTranscript,
    Preparing,
    ReplyAudio,
    ReplyBegan,
    ReplyEnd,
    ReplyText,
    SpeechStarted,
    SpeechStopped,
    UserState,
)
from duplex.clock import Clock
from duplex.config import SessionConfig
from duplex.conversation import Conversation, Message, ToolResult
from duplex.errors import AgentFaultError, ConfigError, DuplexError, InvalidEventError
from duplex.floor import FloorKeeper
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Framer, Packet, ms_to_samples, samples_to_ms
from duplex.ledger import Ledger
from duplex.line import Line
from duplex.metrics import Metrics
from duplex.outgoing import PACKET_S, Outgoing
from duplex.pace import Pacer
from duplex.playout import Playout
from duplex.turn import Floor, Own, TurnMachine, User
from duplex.watch import WatchedFloor

log = logging.getLogger("duplex.session")

_RESYNC_S = 0.5  # a machine that slept this long starts counting afresh


class Session:
    """One conversation. ``run`` is its life; ``request`` and ``stop`` are for the same event loop."""

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
        self._line, self._agent, self._clock, self._metrics = line, agent, clock, metrics
        self._progress_interval_s = config.playout.progress_interval_s
        playout = Playout(
            fade_out_ms=config.playout.fade_out_ms,
            fade_in_ms=config.playout.fade_in_ms,
            max_reply_s=config.playout.max_reply_s,
        )
        self.ledger = Ledger(assumed_delay_ms=config.playout.assumed_delay_ms)
        self._out = Outgoing(line, playout, self.ledger, config.playout, metrics)
        native = agent.info.native
        self._pacer = Pacer() if native else None
        self._floor = (WatchedFloor if native else FloorKeeper)(
            session_id=session_id,
            clock=clock,
            config=config,
            metrics=metrics,
            playout=playout,
            ledger=self.ledger,
            emit=line.emit,
            command=self._command,
            take_back=self._out.take_back,
            at=self._at,
        )
        self._framer = Framer(agent.info.packets_per_frame)
        self._opened: AgentSession | None = None  # to be closed
        self._mind: AgentSession | None = None  # ready for frames
        self._heard_pts = 0  # end of what was heard so far
        self._heard_at_s = 0.0  # when that was
        self._next_progress_s = 0.0
        self._stop_reason: str | None = None
        self._stop = asyncio.Event()
        self._wake_pending = False

    @property
    def machine(self) -> TurnMachine:
        return self._floor.machine

    @property
    def conversation(self) -> Conversation:
        return self._floor.conversation

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
            self._opened = self._agent.open(self.settings, self._clock, wake)
            if isinstance(self._opened, Preparing):
                await self._prepared(self._opened)
            self._mind = self._opened
            now_s = self._heard_at_s = self._clock.now()
            self._next_progress_s = now_s
            self._out.start(now_s)
            self.machine.reset(now_s)
            self._line.emit(ev.SessionStarted(self._at(), self.id, self._agent.info.name, self.settings))
            await self._run_ticks(now_s)
        except DuplexError as error:
            self._tell_error(error)
            self.stop(str(error))
        except Exception:
            log.exception("session %s failed", self.id)
            self.stop("an internal error ended the session")
        finally:
            if self._opened is not None:
                self._opened.close()
            reason = self._stop_reason or "the line closed"
            if not self._line.closed:
                self._line.emit(ev.SessionClosed(self._at(), reason))
            await self._line.close(reason)
            log.info("session %s ended: %s", self.id, reason)

    def stop(self, reason: str) -> None:
        """Ends the session at its next tick; the client is told ``reason``."""
        self._stop_reason = self._stop_reason or reason
        self._stop.set()

    async def _prepared(self, mind: Preparing) -> None:
        """Until the agent has read what it must, or nobody wants to know any more."""
        ready, stop = asyncio.ensure_future(mind.wait_ready()), asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait((ready, stop), return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
        finally:
            ready.cancel()
            stop.cancel()

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
            self._tell_error(error)
            self.stop(str(error))
        except Exception:
            log.exception("session %s failed", self.id)
            self.stop("an internal error ended the session")

    def _tick(self) -> None:
        mind = self._mind
        assert mind is not None
        now_s = self._clock.now()
        for packet in self._receive():
            if (frame := self._framer.push(packet)) is None:
                continue
            self._heard_pts, self._heard_at_s = frame.end_pts, now_s
            heard = Heard(
                frame=frame,
                reference=self._out.reference(frame, now_s),
                floor=self.machine.floor,
                floor_since_s=self.machine.since_s,
                now_s=now_s,
                image=self._line.take_image(),
                reply_left_s=self._floor.reply_left_s,
            )
            mind.step(heard)
        self._collect(mind)
        self._metrics.step_s.observe(self._clock.now() - now_s)
        self._floor.tick(now_s)
        self._fill_wire()
        self._tell_progress(now_s)

    def _receive(self) -> Sequence[Packet]:
        """What is to be heard now. A native agent lives in real time, however early its sound comes."""
        heard = self._line.receive()
        if self._pacer is None:
            return heard
        packet = self._pacer.take(heard)
        if self._pacer.dropped:
            self._metrics.queue_drops.labels("heard").inc(self._pacer.dropped)
            self._pacer.dropped = 0
        return () if packet is None else (packet,)

    # --- the agent's side ------------------------------------------------------------------------

    def _command(self, command: AgentCommand) -> None:
        assert self._mind is not None
        self._mind.command(command)

    def _collect(self, mind: AgentSession) -> None:
        for event in mind.collect():
            self._take(event)

    def _take(self, event: AgentEvent) -> None:
        floor = self._floor
        match event:
            case UserState(user=user):
                floor.predicted(user)
            case SpeechStarted(pts=pts):
                self._out.cut_aside(AsideKind.DEAD_AIR)
                floor.speech_started(pts, self._wall(pts))
            case SpeechStopped(pts=pts):
                floor.speech_stopped(pts, self._wall(pts))
            case PartialTranscript(text=text):
                self._line.emit(ev.UserTranscriptPartial(self._at(), floor.open_turn().turn_id, text))
            case FinalTranscript(turn_id=turn_id, text=text):
                floor.transcribed(turn_id, text)
            case ReplyBegan(reply_id=reply_id):
                if isinstance(floor, WatchedFloor):
                    floor.begin_own(reply_id)
                else:
                    self._tell_error(AgentFaultError("The agent took the floor by itself, and it is no native agent."))
            case ReplyText(reply_id=reply_id, delta=delta):
                if reply := floor.current(reply_id):
                    floor.add_text(reply, delta)
            case ReplyAudio(reply_id=reply_id):
                if reply := floor.current(reply_id):
                    floor.add_audio(reply, event)
            case ReplyEnd(reply_id=reply_id):
                if reply := floor.current(reply_id):
                    floor.end_audio(reply, event)
            case Aside():
                self._speak_aside(event)
            case Mark(name=name, at_s=at_s, reply_id=reply_id):
                if reply_id is None:
                    floor.open_turn().marks[name] = at_s
                elif reply := floor.current(reply_id):
                    reply.trace.mark(name, at_s)
            case Fault(error=error, fatal=fatal):
                if fatal:
                    raise error
                self._tell_error(error)

    def _speak_aside(self, aside: Aside) -> None:
        """Only where nobody else's words are in the way: nothing of ours is playing, or about to."""
        if self._floor.machine.floor in (Floor.LISTENING, Floor.THINKING) and self._out.speak_aside(aside):
            self._line.emit(ev.AsideStarted(self._at(), aside.kind, aside.text))

    # --- the wire --------------------------------------------------------------------------------

    def _fill_wire(self) -> None:
        now_s = self._clock.now()
        for sent in self._out.fill(now_s, self._floor.reply):
            self._floor.sent(sent, now_s, self._out.last_audible_s)

    def _tell_progress(self, now_s: float) -> None:
        if (report := self._line.playout()) is not None:
            self.ledger.report(report)
        reply = self._floor.reply
        if reply is None or not reply.started or now_s < self._next_progress_s:
            return
        self._next_progress_s = now_s + self._progress_interval_s
        self._floor.tell_progress(reply)

    # --- the client's side -----------------------------------------------------------------------

    def request(self, request: rq.Request, client_event_id: str | None = None) -> None:
        """Carries out what a client asks for. Raises ``ProtocolError`` when it cannot; the session goes on."""
        if self._mind is None:
            raise InvalidEventError("The session has not begun yet. Wait for session.created.")
        floor = self._floor
        match request:
            case rq.UpdateSettings(settings=changes):
                self._configure(changes)
            case rq.CommitInput():
                if floor.turn is None or floor.turn.committed:
                    raise InvalidEventError("There is no speech to commit.", code="input_audio_buffer_commit_empty")
                floor.signal(User.TURN_COMPLETE)
            case rq.ClearInput():
                floor.forget_turn()
            case rq.AddMessage(role=role, text=text, images=images, item_id=item_id):
                message = Message(item_id or floor.new_id("item"), role, text, images)
                if text and self._agent.info.native:
                    self._command(Inject(text, role))
                previous, floor.last_item_id = floor.last_item_id, message.item_id
                self.conversation.put(message)
                self._line.emit(ev.ItemAdded(self._at(), message.item_id, role, text, previous))
            case rq.AddToolResult(call_id=call_id, output=output, item_id=item_id):
                result = ToolResult(item_id or floor.new_id("item"), call_id, output)
                previous, floor.last_item_id = floor.last_item_id, result.item_id
                self.conversation.put(result)
                self._line.emit(ev.ToolResultAdded(self._at(), result.item_id, previous, call_id, output))
            case rq.PressKey(key=key):
                self._line.emit(ev.KeyPressed(self._at(), key))
            case rq.RemoveMessage(item_id=item_id):
                if not self.conversation.remove(item_id):
                    raise InvalidEventError(f"There is no item {item_id!r}.", param="item_id")
            case rq.CreateReply():
                if floor.reply is not None and floor.reply.public:
                    raise InvalidEventError(
                        "A response is in progress. Wait for response.done or cancel it first.",
                        code="conversation_already_has_active_response",
                    )
                floor.request_reply(request)
            case rq.CancelReply(reply_id=reply_id):
                if floor.reply is None or not floor.reply.public or reply_id not in (None, floor.reply.reply_id):
                    raise InvalidEventError("There is no response to cancel.", code="response_cancel_not_active")
                floor.signal(Own.CANCELLED)
            case rq.TruncateMessage(item_id=item_id, audio_end_ms=audio_end_ms):
                self._truncate(item_id, audio_end_ms)
            case rq.AcknowledgePlayout(reply_id=reply_id, played_ms=played_ms):
                self.ledger.acknowledge(reply_id, played_ms, self._clock.now())

    def _configure(self, changes: AgentSettings) -> None:
        """Settings that are None in ``changes`` stay as they are; one that cannot be honoured changes nothing."""
        given = {f.name: value for f in fields(changes) if (value := getattr(changes, f.name)) is not None}
        settings = replace(self.settings, **given)
        try:
            self._command(Configure(settings))
        except ConfigError as error:
            raise InvalidEventError(str(error), param="session") from error
        self.settings = settings
        self._line.emit(ev.SessionUpdated(self._at(), settings))

    def _truncate(self, item_id: str, audio_end_ms: float) -> None:
        reply_id = self.ledger.reply_of_item(item_id)
        if reply_id is None:
            raise InvalidEventError(f"There is no assistant item {item_id!r} with audio.", param="item_id")
        sent_ms = self.ledger.sent_ms(reply_id)
        if audio_end_ms > sent_ms + samples_to_ms(PACKET_SAMPLES):
            raise InvalidEventError(
                f"audio_end_ms is {audio_end_ms:.0f}, but the item has {sent_ms:.0f} ms of audio.", param="audio_end_ms"
            )
        if self._floor.current(reply_id):
            self.ledger.acknowledge(reply_id, audio_end_ms, self._clock.now())
            self._floor.signal(Own.CANCELLED)
            return
        text = self.ledger.text_until(reply_id, ms_to_samples(audio_end_ms))
        self.conversation.truncate(item_id, text)
        self._line.emit(ev.ReplyTruncated(self._at(), reply_id, item_id, text, audio_end_ms, "ack"))

    # --- small things ----------------------------------------------------------------------------

    def _tell_error(self, error: DuplexError) -> None:
        self._line.emit(ev.ErrorRaised(self._at(), type(error).__name__, str(error)))

    def _at(self) -> ev.At:
        return ev.At(self._heard_pts, self._clock.now())

    def _wall(self, pts: int) -> float:
        """When the heard sample ``pts`` was taken in."""
        return self._heard_at_s - (self._heard_pts - pts) / SAMPLE_RATE_HZ
