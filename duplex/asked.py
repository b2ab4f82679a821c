"""What a client asks of a session, carried out: the requests of ``duplex.requests``, one after another."""

from __future__ import annotations

from collections.abc import Callable

from duplex import events as ev
from duplex import requests as rq
from duplex.agent import AgentCommand, AgentInfo, AgentSettings, Configure, Inject
from duplex.besides import Besides
from duplex.choices import changed, check_choices
from duplex.clock import Clock
from duplex.conversation import Item
from duplex.errors import ConfigError, InvalidEventError, ProtocolError, UnsupportedError
from duplex.floor import FloorKeeper
from duplex.frames import PACKET_MS, PACKET_SAMPLES, ms_to_samples, samples_to_ms
from duplex.idle import IdleWatch
from duplex.ledger import Ledger
from duplex.turn import Floor, Own, User
from duplex.turn_rules import TurnEnds
from duplex.waiting import Waiting

_EAR_MS = 60.0  # a window of the ear's own, and the packets on their way to it
_EAR_LIMIT_S = 0.5


class Asked:
    """One session's. ``settings``: what it chose, as of now. ``judged_pts``: how far the agent's ear got."""

    def __init__(
        self,
        *,
        info: AgentInfo,
        settings: AgentSettings,
        floor: FloorKeeper,
        besides: Besides,
        ledger: Ledger,
        clock: Clock,
        emit: Callable[[ev.Event], None],
        command: Callable[[AgentCommand], None],
        at: Callable[[], ev.At],
    ) -> None:
        self.settings = settings
        self.judged_pts = 0
        self.idle = IdleWatch()
        self._info, self._floor, self._besides, self._ledger, self._clock = info, floor, besides, ledger, clock
        self._emit, self._command, self._at = emit, command, at
        self._waiting = Waiting(self._ready)

    def begin(self) -> None:
        """Checks and takes over what the session chose before it began. Raises ``ProtocolError``'s kinds."""
        check_choices(self.settings, self._info)
        self._adopt(self.settings)

    def request(self, request: rq.Request, client_event_id: str | None = None) -> None:
        """Raises ``ProtocolError`` for what cannot be done. What has to wait and fails then is told as an error."""
        if not self._waiting.has_to_wait(request, client_event_id, self._clock.now()):
            self._carry_out(request)

    def carry_on(self, now_s: float) -> None:
        """Carries out what waited, as far as it need not any longer."""
        while (due := self._waiting.take(now_s)) is not None:
            request, client_event_id = due
            try:
                self._carry_out(request)
            except ProtocolError as error:
                self._emit(ev.ErrorRaised(self._at(), error.code, str(error), error.param, client_event_id))

    def _ready(self, request: rq.Request, waited_s: float) -> bool:
        """Whether what came before it has been heard, and understood."""
        match request:
            case rq.CommitInput():
                behind_ms = samples_to_ms(self._at().pts - self.judged_pts)
                return behind_ms <= _EAR_MS + PACKET_MS * self._info.packets_per_frame or waited_s >= _EAR_LIMIT_S
            case rq.CreateReply():
                return self._floor.awaiting_words is None or self._floor.reply is not None
            case _:
                return True

    def _carry_out(self, request: rq.Request) -> None:
        floor = self._floor
        match request:
            case rq.UpdateSettings():
                self._configure(request)
            case rq.CommitInput():
                self._commit()
            case rq.ClearInput():
                floor.forget_turn()
            case rq.AddMessage() | rq.AddToolCall() | rq.AddToolResult():
                if self._info.native:
                    self._inject(request)
                floor.items.add(request)
            case rq.PressKey(key=key):
                self._emit(ev.KeyPressed(self._at(), key))
            case rq.RemoveMessage(item_id=item_id):
                floor.items.remove(item_id)
            case rq.CreateReply():
                self._create_reply(request)
            case rq.ClearOutput():
                if floor.reply is not None and floor.reply.started:
                    floor.signal(Own.CANCELLED)
            case rq.CancelReply(reply_id=reply_id):
                if reply_id is not None and (beside := self._besides.current(reply_id)) is not None:
                    self._besides.cancel(beside)
                    return
                if floor.reply is None or not floor.reply.public or reply_id not in (None, floor.reply.reply_id):
                    raise InvalidEventError("There is no response to cancel.", code="response_cancel_not_active")
                floor.signal(Own.CANCELLED)
            case rq.TruncateMessage(item_id=item_id, audio_end_ms=audio_end_ms):
                self._truncate(item_id, audio_end_ms)
            case rq.AcknowledgePlayout(reply_id=reply_id, played_ms=played_ms):
                self._ledger.acknowledge(reply_id, played_ms, self._clock.now())

    def _configure(self, request: rq.UpdateSettings) -> None:
        """One setting that cannot be honoured changes nothing."""
        settings = changed(self.settings, request)
        check_choices(settings, self._info)
        try:
            self._command(Configure(settings))
        except ConfigError as error:
            raise InvalidEventError(str(error), param="session") from error
        self.settings = settings
        self._adopt(settings)
        self._emit(ev.SessionUpdated(self._at(), settings))

    def _adopt(self, settings: AgentSettings) -> None:
        self._floor.configure(settings)
        self.idle.timeout_s = self._floor.rules.idle_timeout_s

    def _commit(self) -> None:
        """The client says that the turn is over. It is answered if turns are; else the client asks when it likes."""
        floor = self._floor
        if floor.turn is None or floor.turn.committed:
            raise InvalidEventError("There is no speech to commit.", code="input_audio_buffer_commit_empty")
        answered = floor.rules.replies and floor.rules.ends is not TurnEnds.CLIENT
        if self._info.native or (answered and floor.machine.floor in (Floor.LISTENING, Floor.HOLDING)):
            floor.signal(User.TURN_COMPLETE)
        else:
            floor.end_turn()

    def _create_reply(self, asked: rq.CreateReply) -> None:
        check_choices(self.settings, self._info, asked)
        history: tuple[Item, ...] | None = None
        if asked.input is not None:
            history = self._floor.items.resolve(asked.input)
        silent = self.settings.silent if asked.silent is None else asked.silent
        if silent and not asked.in_conversation:
            self._besides.begin(asked, self._floor.conversation.snapshot() if history is None else history)
            return
        if self._floor.reply is not None and self._floor.reply.public:
            raise InvalidEventError(
                "A response is in progress. Wait for response.done or cancel it first.",
                code="conversation_already_has_active_response",
            )
        self._floor.request_reply(asked, history)

    def _inject(self, request: rq.AddMessage | rq.AddToolCall | rq.AddToolResult) -> None:
        """A native agent has no history to read: it is told now, or not at all."""
        if not isinstance(request, rq.AddMessage):
            raise UnsupportedError("This agent calls no tools, so it has no use for calls and results.", param="item")
        if request.after is not None:
            raise UnsupportedError(
                "This agent hears of an item when it comes. Leave previous_item_id out.", param="previous_item_id"
            )
        if request.text:
            self._command(Inject(request.text, request.role))

    def _truncate(self, item_id: str, audio_end_ms: float) -> None:
        reply_id = self._ledger.reply_of_item(item_id)
        if reply_id is None:
            raise InvalidEventError(f"There is no assistant item {item_id!r} with audio.", param="item_id")
        sent_ms = self._ledger.sent_ms(reply_id)
        if audio_end_ms > sent_ms + samples_to_ms(PACKET_SAMPLES):
            raise InvalidEventError(
                f"audio_end_ms is {audio_end_ms:.0f}, but the item has {sent_ms:.0f} ms of audio.", param="audio_end_ms"
            )
        if self._floor.current(reply_id):
            self._ledger.acknowledge(reply_id, audio_end_ms, self._clock.now())
            self._floor.signal(Own.CANCELLED)
            return
        text = self._ledger.text_until(reply_id, ms_to_samples(audio_end_ms))
        self._floor.conversation.truncate(item_id, text)
        self._emit(ev.ReplyTruncated(self._at(), reply_id, item_id, text, audio_end_ms, "ack"))
