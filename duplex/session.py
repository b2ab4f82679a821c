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
import contextvars
import logging
from collections.abc import Sequence
from dataclasses import replace

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
    Fault,
    FinalTranscript,
    Heard,
    Mark,
    PartialTranscript,
    Preparing,
    ReplyAudio,
    ReplyBegan,
    ReplyEnd,
    ReplyText,
    ReplyUsage,
    SpeechStarted,
    SpeechStopped,
    ToolCallArguments,
    ToolCallBegan,
    ToolCallEnd,
    UserState,
)
from duplex.asked import Asked
from duplex.besides import Besides
from duplex.bitrate import LinkReporting
from duplex.clock import Clock
from duplex.config import SessionConfig
from duplex.conversation import Conversation
from duplex.errors import AgentFaultError, DuplexError, InvalidEventError
from duplex.floor import FloorKeeper
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Framer, Packet
from duplex.ledger import Ledger
from duplex.line import Line
from duplex.line_around import ability
from duplex.metrics import Metrics
from duplex.outage import Outage
from duplex.outgoing import PACKET_S, Outgoing
from duplex.pace import Pacer
from duplex.playout import Playout
from duplex.turn import Floor, TurnMachine, User
from duplex.watch import WatchedFloor

log = logging.getLogger("duplex.session")

_RESYNC_S = 0.5  # a machine that slept this long starts counting afresh
_QUIET = (User.IDLE, User.BACKCHANNEL, User.NOT_ADDRESSED)


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
        self._line, self._agent, self._clock, self._metrics = line, agent, clock, metrics
        self._link = ability(line, LinkReporting)
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
        self._besides = Besides(self._floor.items, clock, config.think_limit_s, line.emit, self._command, self._at)
        self._asked = Asked(
            info=agent.info,
            settings=settings,
            floor=self._floor,
            besides=self._besides,
            ledger=self.ledger,
            clock=clock,
            emit=line.emit,
            command=self._command,
            at=self._at,
        )
        self._idle = self._asked.idle
        self._outage = Outage(
            floor=self._floor,
            out=self._out,
            ledger=self.ledger,
            clock=clock,
            metrics=metrics,
            emit=line.emit,
            at=self._at,
            rewinds=not native,
        )
        self._framer = Framer(agent.info.packets_per_frame)
        self._left_out = 0  # samples that came while the line was lost; media time stands still then
        self._opened: AgentSession | None = None  # to be closed
        self._mind: AgentSession | None = None  # ready for frames
        self._heard_pts = 0  # end of what was heard so far
        self._heard_at_s = 0.0  # when that was
        self._next_progress_s = 0.0
        self._stop_reason: str | None = None
        self._stop = asyncio.Event()
        self._wake_pending = False

    @property
    def settings(self) -> AgentSettings:
        return self._asked.settings

    @property
    def machine(self) -> TurnMachine:
        return self._floor.machine

    @property
    def conversation(self) -> Conversation:
        return self._floor.conversation

    @property
    def out_of_touch_s(self) -> float:
        """For how long there has been no sign of the far end; 0 while it is there."""
        return self._outage.lost_s

    # --- life ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs until the line closes, ``stop`` is called or the agent fails for good."""
        loop = asyncio.get_running_loop()

        context = contextvars.copy_context()  # what the log knows of this session

        def wake() -> None:  # called from workers' threads
            if not self._wake_pending:
                self._wake_pending = True
                try:
                    loop.call_soon_threadsafe(self._woken, context=context)
                except RuntimeError:  # the loop closed first; nobody is left to tell
                    pass

        self._metrics.sessions.inc()
        try:
            self._asked.begin()
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
        heard_now = self._receive()
        if len(heard_now) > 1:  # we are late: what is overdue goes first, so that its echo finds it on the tape
            self._fill_wire()
        for packet in heard_now:
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
                reply_sent_s=self._floor.reply_sent_s,
                link=self._link.take_link() if self._link is not None else None,
            )
            mind.step(heard)
        self._collect(mind)
        self._metrics.step_s.observe(self._clock.now() - now_s)
        self._besides.tick(now_s)
        self._asked.carry_on(now_s)
        if not self._outage.lost:
            self._floor.tick(now_s)
            listening, quiet = self.machine.floor is Floor.LISTENING, self.machine.user in _QUIET
            if (since_pts := self._idle.tick(now_s, self._heard_pts, listening=listening, quiet=quiet)) is not None:
                self._floor.idle(since_pts)
        self._fill_wire()
        self._tell_progress(now_s)

    def _receive(self) -> Sequence[Packet]:
        """What is to be heard now. A native agent lives in real time, however early its sound comes."""
        heard = self._line.receive()
        if self._outage.lost:
            self._left_out += PACKET_SAMPLES * len(heard)
            return ()
        if self._left_out:
            heard = [replace(packet, pts=packet.pts - self._left_out) for packet in heard]
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
            case UserState(user=user, pts=pts):
                self._asked.judged_pts = pts
                floor.predicted(self._outage.tempered(user))
            case SpeechStarted(pts=pts):
                self._out.cut_aside(AsideKind.DEAD_AIR)
                floor.speech_started(pts, self._wall(pts))
            case SpeechStopped(pts=pts):
                floor.speech_stopped(pts, self._wall(pts))
            case PartialTranscript(text=text):
                self._line.emit(ev.UserTranscriptPartial(self._at(), floor.open_turn().turn_id, text))
            case FinalTranscript(turn_id=turn_id, text=text, error=error):
                floor.transcribed(turn_id, text, None if error is None else str(error))
                self._asked.carry_on(self._clock.now())
            case ReplyBegan(reply_id=reply_id):
                if isinstance(floor, WatchedFloor):
                    floor.begin_own(reply_id)
                else:
                    self._tell_error(AgentFaultError("The agent took the floor by itself, and it is no native agent."))
            case ReplyText() | ToolCallBegan() | ToolCallArguments() | ToolCallEnd() | ReplyUsage():
                self._take_words(event)
            case ReplyAudio(reply_id=reply_id):
                if reply := floor.current(reply_id):
                    floor.add_audio(reply, event)
            case ReplyEnd(reply_id=reply_id):
                if beside := self._besides.current(reply_id):
                    self._besides.end(beside, event)
                elif reply := floor.current(reply_id):
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

    def _take_words(self, event: ReplyText | ToolCallBegan | ToolCallArguments | ToolCallEnd | ReplyUsage) -> None:
        """What needs no sound: of the reply at hand, or of one beside it."""
        beside = self._besides.current(event.reply_id)
        reply = beside or self._floor.current(event.reply_id)
        if reply is None:
            return  # it was dropped meanwhile
        match event:
            case ReplyText(delta=delta):
                if beside is not None:
                    self._besides.add_text(beside, delta)
                else:
                    self._floor.add_text(reply, delta)
            case ReplyUsage():
                reply.usage = ev.Usage(event.input_tokens, event.cached_tokens, event.output_tokens)
            case _:
                self._floor.add_call(reply, event)

    def _speak_aside(self, aside: Aside) -> None:
        """Only where nobody else's words are in the way: nothing of ours is playing, or about to."""
        if self.settings.silent:
            return
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
        match request:
            case rq.LoseLine(silent_s=silent_s):
                self._outage.lose(silent_s)
            case rq.AnnounceEnd(deadline_s=deadline_s):
                self._line.emit(ev.SessionDraining(self._at(), deadline_s))
            case rq.RegainLine(delivered=delivered):
                self._outage.regain(delivered=delivered)
            case _:
                self._asked.request(request, client_event_id)

    # --- small things ----------------------------------------------------------------------------

    def _tell_error(self, error: DuplexError) -> None:
        self._line.emit(ev.ErrorRaised(self._at(), type(error).__name__, str(error)))

    def _at(self) -> ev.At:
        return ev.At(self._heard_pts, self._clock.now())

    def _wall(self, pts: int) -> float:
        """When the heard sample ``pts`` was taken in."""
        return self._heard_at_s - (self._heard_pts - pts) / SAMPLE_RATE_HZ
