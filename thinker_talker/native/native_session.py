"""One call of a native agent: frames to a slot of the device, what comes of them to replies and turn states.

Theory of operation
-------------------
``step`` looks at the frame's level, decides what the model is forced to in it (:mod:`.say`), and submits it; nothing
waits. The device's thread puts results, one for each frame and in their order, into an inbox and wakes the session;
``collect`` then watches them beside the frames they came from (:mod:`.floor_watch`) and tells what it saw. So
everything that decides runs on the session's thread, and rests on frames alone, not on how fast they were computed.

    step ─► slot ─ ─ ─ (device) ─ ─ ─► inbox ─► collect ─► FloorWatch ─► ReplyBegan, ReplyAudio, UserState …

The model's stream never stops. What lies between two replies is not passed on, except the last moments before one
begins: so no onset is cut, and a frame that comes that much late leaves no hole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from duplex.agent import (
    AgentCommand,
    AgentEvent,
    AgentSettings,
    BeginReply,
    CommitTurn,
    Configure,
    DropReply,
    Fault,
    FinalTranscript,
    Heard,
    Inject,
    ReplyAudio,
    ReplyBegan,
    ReplyEnd,
    ReplyText,
)
from duplex.conversation import Role
from duplex.errors import (
    AgentBehindError,
    AgentFaultError,
    ConfigError,
    DuplexError,
    TooLargeError,
    UnsupportedError,
)
from duplex.frames import SAMPLE_RATE_HZ, Samples, ms_to_samples, silence
from duplex.playout import ramp
from duplex.scheduler.contract import SlotResult, SlotSettings
from duplex.scheduler.deliveries import Dropped, Stepped

from .floor_watch import FloorWatch, SeenFrame, Step, Voice
from .options import NativeOptions
from .say import Forced, ForcedText, Kind, Silence, inject_plan, say_plan
from .serving import Served, Slot
from .slot_inbox import SlotInbox
from .spoken_text import SpokenText
from .user_voice import SILENT_DBFS, Hearing, UserVoice, block_levels_dbfs

_FADE_IN = ramp(ms_to_samples(5))
_TOLD_AGAIN_S = 5.0
_DIED_AWAY_S = 0.24  # of quiet in the padding after words that were put in its mouth


@dataclass(frozen=True, slots=True)
class _Sent:
    """A frame that was submitted."""

    end_pts: int
    hearing: Hearing
    forced: Forced


class NativeSession:
    """Implements ``AgentSession``, ``Preparing`` and, for replays, ``Settling``."""

    def __init__(
        self,
        served: Served,
        options: NativeOptions,
        settings: AgentSettings,
        wake: Callable[[], None],
        *,
        frame_samples: int,
        voices: Collection[str] = (),
        closed: Callable[[], None] = lambda: None,
    ) -> None:
        check_voice(settings.voice, voices)
        turn = options.turn.with_overrides(settings.turn_taking)
        tokens = served.tokens
        self._options, self._settings, self._tokens = options, settings, tokens
        self._open_slot, self._wake, self._voices, self._closed = served.open, wake, voices, closed
        self._template = options.inject_template or served.template
        self._frame_samples, self._frame_s = frame_samples, frame_samples / SAMPLE_RATE_HZ
        self._voice = UserVoice(turn)
        self._watch = FloorWatch(turn, self._frame_s)
        self._text = SpokenText(tokens, frame_samples, options.text_lead_frames)
        self._forced = ForcedText(tokens.padding[0], self._frame_s)
        self._silence = Silence(**options.silence.model_dump())
        self._preroll_samples = ms_to_samples(options.preroll_ms)
        self._out: list[AgentEvent] = []
        self._own = 0  # replies it began by itself
        self._reply: str | None = None  # being spoken
        self._wanted: str | None = None  # asked for, and not begun
        self._wanted_for_s = 0.0
        self._before = silence(frame_samples)  # the agent's last frame
        self._said_anything = self._heard_anything = False
        self._behind_at: int | None = None  # the frame at which it last was
        self._faults, self._since_fault_s = 0, 0.0
        self._restarting = False  # the slot failed, and reads its prompt again
        self._settled: int | None = None  # frames that may be collected; None: whatever is there
        self._begin_slot()

    def _begin_slot(self) -> None:
        settings, options = self._settings, self._options
        self._sent: deque[_Sent] = deque()
        self._submitted = self._taken = self._collectable = 0
        self._settled = None if self._settled is None else 0
        self._inbox = SlotInbox(lambda: self._wake())
        self._slot: Slot | None = self._open_slot(
            SlotSettings(
                prompt=settings.instructions if settings.instructions is not None else options.instructions,
                voice=settings.voice if settings.voice is not None else options.voice,
                seed=options.seed,
            ),
            self._inbox,
        )

    # --- the session's side ----------------------------------------------------------------------

    async def wait_ready(self) -> None:
        """Returns once the slot has read its prompt. Raises what kept it from that."""
        await self._inbox.wait_ready()

    def settle(self) -> None:
        """Blocks until what was submitted before the last ``collect`` is computed. For replays: from now on nothing
        is collected that is not settled."""
        self._inbox.settle(self._collectable)
        self._settled = self._collectable

    def step(self, heard: Heard) -> None:
        frame = heard.frame
        if self._slot is None or not self._inbox.ready:
            return
        hearing = self._voice.push(frame.pts, frame.samples, heard.reference)
        self._heard_anything |= hearing.speaking
        forced = self._forced.next(agent_quiet=self._watch.voice is Voice.QUIET, silenced=self._silence.holds)
        self._silence.pass_frame(self._frame_s, hearing.quiet_s)
        behind = len(self._sent) >= self._options.max_behind_frames
        if behind or not self._slot.submit(
            frame.samples, forced_text=forced.token, silent=forced.silent, link=heard.link
        ):
            self._fell_behind()
            return
        self._sent.append(_Sent(frame.end_pts, hearing, forced))
        self._submitted += 1

    def _fell_behind(self) -> None:
        """Told once, and again if it happens after a while in which it did not."""
        told_at, self._behind_at = self._behind_at, self._submitted
        if told_at is None or self._submitted - told_at > _TOLD_AGAIN_S / self._frame_s:
            told = AgentBehindError("The model fell behind and did not hear everything that was said.")
            self._out.append(Fault(told))

    def collect(self) -> Sequence[AgentEvent]:
        """What came of the frames before this tick's. (A frame's result is never there in its own tick, except where
        the device is idle and very fast; told a moment later, it comes at the same place in every replay.)"""
        limit = self._collectable if self._settled is None else self._settled
        self._collectable = self._submitted
        while self._taken < limit and self._slot is not None and (fate := self._inbox.take()) is not None:
            match fate:
                case Stepped(result=result):
                    self._stepped(self._next_sent(), result)
                case Dropped(count=count, reason=reason):
                    self._dropped([self._next_sent() for _ in range(count)], reason)
        if self._inbox.ended is not None and self._slot is not None:
            self._out.append(Fault(self._inbox.ended, fatal=True))
            self._slot = None
        out, self._out = self._out, []
        return out

    def _next_sent(self) -> _Sent:
        self._taken += 1
        return self._sent.popleft()

    def close(self) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.leave()
        self._closed()
        self._wake = self._closed = _nothing

    # --- one frame -------------------------------------------------------------------------------

    def _stepped(self, sent: _Sent, result: SlotResult) -> None:
        if result.error is not None:
            self._failed(result.error)
            return
        self._since_fault_s += self._frame_s
        self._restarting = False
        forced = sent.forced
        muted = forced.silent or self._silence.holds or (self._forced.saying and forced.kind is Kind.FREE)
        token = None if muted else result.text_token
        sound = silence(self._frame_samples) if muted or result.samples is None else result.samples
        text = not muted and (forced.kind is Kind.SAY or (token is not None and self._is_text(token)))
        level_dbfs = SILENT_DBFS if muted else max(block_levels_dbfs(sound))
        seen = self._watch.push(SeenFrame(sent.end_pts, sent.hearing, text, level_dbfs))
        self._out += seen.told
        if seen.step is Step.BEGIN:
            self._begin_reply()
            self._pass_on(np.concatenate((self._preroll(), sound)), token)
        elif seen.step is not Step.NOTHING:
            self._pass_on(sound, token)
        if seen.step is Step.END:
            self._end_reply()
        elif forced.kind is Kind.TAIL and self._watch.rest_s >= _DIED_AWAY_S - 1e-9:
            self._forced.said()
        self._before = sound
        self._wait_for_wanted()

    def _dropped(self, sent: list[_Sent], reason: str) -> None:
        """Frames the model never heard. Time went by for the user all the same, and for a reply that was being said:
        what was put in its place meanwhile is not to be taken from what comes next."""
        if reason != "reset" and not self._restarting:
            self._fell_behind()
        for frame in sent:
            seen = self._watch.push(SeenFrame(frame.end_pts, frame.hearing, self._reply is not None, SILENT_DBFS))
            self._out += seen.told
            self._pass_on(silence(self._frame_samples), None)

    def _is_text(self, token: int) -> bool:
        tokens = self._tokens
        return token not in tokens.padding and bool(tokens.decode_piece(token) or tokens.piece_byte(token) is not None)

    def _begin_reply(self) -> None:
        self._said_anything = True
        if self._wanted is not None:
            self._reply, self._wanted = self._wanted, None
        else:
            self._own += 1
            self._reply = f"own_{self._own}"
            self._out.append(ReplyBegan(self._reply))
        self._text.begin(self._preroll_samples)

    def _preroll(self) -> Samples:
        """The moments before the reply's first frame, faded in."""
        moments = self._before[len(self._before) - self._preroll_samples :].copy()
        n = min(len(_FADE_IN), len(moments))
        moments[:n] *= _FADE_IN[:n]
        return moments

    def _pass_on(self, sound: Samples, token: int | None) -> None:
        if self._reply is None:
            return
        delta, words = self._text.push(token)
        if delta:
            self._out.append(ReplyText(self._reply, delta))
        self._out.append(ReplyAudio(self._reply, sound, words))

    def _end_reply(self) -> None:
        if self._reply is not None:
            self._out.append(ReplyEnd(self._reply))
        self._reply = None
        self._forced.said()

    def _wait_for_wanted(self) -> None:
        """A reply that was asked for without words comes when the model likes, after what it is to read, or never."""
        if self._wanted is None or self._forced.saying or self._forced.waiting_to_be_read:
            return
        self._wanted_for_s += self._frame_s
        if self._wanted_for_s >= self._options.speak_within_s:
            error = UnsupportedError(
                "The model had nothing to say. A native model speaks when it likes; to make it say something, "
                "give response.create the words."
            )
            self._out.append(ReplyEnd(self._wanted, error))
            self._wanted = None

    def _failed(self, error: DuplexError) -> None:
        """The slot is as new: whatever was being said or read is gone, and the call goes on."""
        told = AgentFaultError(f"The model failed in this call and begins anew: {error}")
        self._faults = self._faults + 1 if self._since_fault_s <= 1.0 else 1
        self._since_fault_s, self._restarting = 0.0, True
        name = self._reply if self._reply is not None else self._wanted
        self._out.append(Fault(told) if name is None else ReplyEnd(name, told))
        if self._faults >= self._options.max_faults:
            self._out.append(Fault(AgentFaultError(f"The model failed {self._faults} times in a row: {error}"), True))
        self._reply = self._wanted = None
        self._before = silence(self._frame_samples)
        self._forced.clear()
        self._silence.end()
        self._watch.silenced()

    # --- commands --------------------------------------------------------------------------------

    def command(self, command: AgentCommand) -> None:
        match command:
            case BeginReply():
                self._asked_to_speak(command)
            case DropReply(reply_id=name) if name in (self._reply, self._wanted):
                self._reply = self._wanted = None
                self._forced.stop_saying()
                self._silence.begin()
                self._watch.silenced()
            case CommitTurn(turn_id=turn_id):
                self._out.append(FinalTranscript(turn_id, ""))  # it hears sound, and writes down only what it says
            case Inject(text=text, role=role):
                self._read(text, role)
            case Configure(settings=settings):
                self._configure(settings)
            case _:
                pass

    def _asked_to_speak(self, asked: BeginReply) -> None:
        plan: list[int] = []
        if asked.say is not None:
            plan = say_plan(asked.say, self._tokens, self._frame_s)
            if not plan:
                self._out.append(ReplyEnd(asked.reply_id))
                return
            if len(plan) * self._frame_s > self._options.turn.longest_reply_s:
                limit_s = self._options.turn.longest_reply_s
                error = TooLargeError(f"That would take longer than {limit_s:g} s to say. Say it in parts.")
                self._out.append(ReplyEnd(asked.reply_id, error))
                return
        if asked.instructions:
            try:
                self._read(asked.instructions, Role.SYSTEM)
            except TooLargeError as error:
                self._out.append(ReplyEnd(asked.reply_id, error))
                return
        self._silence.end()
        self._forced.say(plan)
        self._wanted, self._wanted_for_s = asked.reply_id, 0.0

    def _read(self, text: str, role: Role) -> None:
        plan = inject_plan(text, role, self._template, self._tokens)
        if self._forced.waiting_to_be_read + len(plan) > self._options.max_inject_tokens:
            limit_s = self._options.max_inject_tokens * self._frame_s
            raise TooLargeError(
                f"The model reads one token a frame, and at most {limit_s:.0f} s of text may wait. Send less, or later."
            )
        self._forced.read(plan)

    def _configure(self, settings: AgentSettings) -> None:
        turn = self._options.turn.with_overrides(settings.turn_taking)
        check_voice(settings.voice, self._voices)
        before, anything = self._settings, self._said_anything or self._heard_anything
        if settings.voice != before.voice and anything:
            raise ConfigError("The voice is part of what the model read before the call. Choose it before speaking.")
        again = settings.voice != before.voice or (settings.instructions != before.instructions and not anything)
        if settings.instructions != before.instructions and not again and settings.instructions:
            self._read(settings.instructions, Role.SYSTEM)
        self._voice.options = self._watch.options = turn
        self._settings = settings
        if again:
            self._begin_again()

    def _begin_again(self) -> None:
        """A fresh slot with the new settings: nothing was said yet that it could forget."""
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.leave()
        self._forced.clear()
        try:
            self._begin_slot()
        except DuplexError as error:
            self._out.append(Fault(error, fatal=True))


def check_voice(name: str | None, voices: Collection[str]) -> None:
    """Raises ``ConfigError`` that names those there are."""
    if name is not None and name not in voices:
        known = ", ".join(voices) or "none: set agent.options.voices_dir"
        raise ConfigError(f"There is no voice {name[:80]!r}. Known here: {known}.")


def _nothing() -> None: ...
