"""The embedded cascade: an agent of a listener, a thinker, a talker and a turn-state predictor.

Theory of operation
-------------------
A session's ``step`` only queues the frame for the ear. Whatever the workers finish (32 ms windows of
voice activity, transcripts, end-of-turn probabilities, text and audio of replies) lands in one inbox,
in order, and wakes the session, which then calls ``collect``: there, on the session's own thread, the
predictor judges and events come out. So everything that decides runs single-threaded, and everything
that computes runs elsewhere.

    step ─► ear ───────┐
       listener ───────┤
        prosody ───────┼─► inbox ─► collect ─► predictor ─► UserState, transcripts, reply audio …
    thinker ─► talker ─┘

A reply begins when the session says ``BeginReply``, usually at the first pause of a turn, and waits only
for the words up to that pause. Whether it is heard is not decided here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from duplex.agent import (
    Agent,
    AgentCommand,
    AgentEvent,
    AgentInfo,
    AgentSession,
    AgentSettings,
    AsideKind,
    BeginReply,
    CommitTurn,
    Configure,
    DropReply,
    Fault,
    FillSilence,
    FinalTranscript,
    ForgetTurn,
    Heard,
    Mark,
    PartialTranscript,
    Remember,
    ReopenTurn,
    ReplyAudio,
    ReplyEnd,
    ReplyText,
    SpeechStarted,
    SpeechStopped,
    UserState,
)
from duplex.clock import Clock
from duplex.config import validated
from duplex.conversation import Item
from duplex.errors import AgentFaultError, AgentFullError, ConfigError
from duplex.frames import SAMPLE_RATE_HZ, Image, Samples
from duplex.turn import Floor, User

from . import thinker as th
from .aside_work import speak_aside
from .cascade_options import CascadeOptions
from .ear import Window
from .encouragement import Encouragement
from .engines import Engines, load_engines, voices_of
from .intonation import pitch_hz
from .lexicon import only_says_stop, words_of
from .listener import Transcript
from .predictor import Ask, Edge, HeardWindow, OurSide, TurnPredictor
from .prompt import prompt
from .reply_request import request, wishes
from .reply_work import ReplyWork
from .said_lately import SaidLately
from .thinking_places import ThinkingPlaces
from .turn_options import TurnOptions

_PRE_ROLL_WINDOWS = 12  # 384 ms kept from before speech was noticed, for the listener
_PROSODY_WINDOWS = 250  # 8 s


def load(options: Mapping[str, Any]) -> Agent:
    """Entry point ``cascade`` of ``duplex.agents``. Raises ``ConfigError`` for options it does not know."""
    return CascadeAgent(validated(CascadeOptions, options, "agent.options"))


class CascadeAgent:
    """Loads the models on ``start`` and opens up to ``options.max_sessions`` sessions on them."""

    def __init__(self, options: CascadeOptions) -> None:
        self.options = options
        self._engines: Engines | None = None
        self._open = 0

    @property
    def info(self) -> AgentInfo:
        thinker = None if self._engines is None else self._engines.thinker
        sees, calls = (False, False) if thinker is None else (thinker.takes_images, thinker.calls_tools)
        voices, places = voices_of(self.options), self.options.max_sessions
        return AgentInfo("cascade", takes_images=sees, voices=voices, calls_tools=calls, places=places)

    async def start(self) -> None:
        if self._engines is None:
            self._engines = await asyncio.to_thread(load_engines, self.options)

    def open(self, settings: AgentSettings, clock: Clock, wake: Callable[[], None]) -> AgentSession:
        if self._engines is None:
            raise AgentFullError("The models are still loading. Try again in a moment.")
        if self._open >= self.options.max_sessions:
            raise AgentFullError(f"All {self.options.max_sessions} places of the cascade are taken.")
        session = CascadeSession(self._engines, self.options, settings, clock, wake, self._closed_one)
        self._open += 1
        return session

    def _closed_one(self) -> None:
        self._open -= 1

    async def close(self) -> None:
        if self._engines is not None:
            engines, self._engines = self._engines, None
            await asyncio.to_thread(engines.close)


@dataclass(frozen=True, slots=True)
class _Prosody:
    probability: float
    asked_pts: int


@dataclass(frozen=True, slots=True)
class _Expected:
    probability: float
    asked_pts: int


class CascadeSession:
    """One conversation. ``step``, ``collect`` and ``command`` are for one thread; workers only use ``_post``."""

    def __init__(
        self,
        engines: Engines,
        options: CascadeOptions,
        settings: AgentSettings,
        clock: Clock,
        wake: Callable[[], None],
        closed: Callable[[], None],
    ) -> None:
        self._engines, self._options, self._settings = engines, options, settings
        self._clock, self._wake, self._when_closed = clock, wake, closed
        # Appended to by workers, emptied by collect. Bounded by what feeds it: the ear's queue, one answer
        # for each request to a model, and a reply's length (max_reply_tokens).
        self._inbox: deque[AgentEvent | Window | Transcript | _Prosody | _Expected] = deque()
        self._predictor = TurnPredictor(self._turn_options(settings))
        wishes(settings, options, engines.thinker)
        self._encouragement = Encouragement()
        self._places = ThinkingPlaces(engines.thinker)
        self._stream = engines.listener.open(self._post)
        self._ear = engines.ear.open(self._take_window)
        self._ours = OurSide(Floor.LISTENING)
        self._latest_reply = ""  # the reply begun last ...
        self._saying = ""  # ... and its text, as far as it goes
        self._said = SaidLately()
        self._recent: deque[Samples] = deque(maxlen=_PRE_ROLL_WINDOWS)
        self._turn_audio: deque[Samples] = deque(maxlen=_PROSODY_WINDOWS)
        self._listening = False  # the current stretch goes to the listener
        self._pts = 0
        self._last_request = 0
        self._asked_pts: dict[int, int] = {}
        self._final: str | None = None  # words of the open turn, settled up to the current pause
        self._partial = ""
        self._prefix = ""  # words of the turn from before it was reopened
        self._committed: dict[str, str] = {}
        self._awaiting: str | None = None  # a committed turn whose words are still to come
        self._awaiting_from_pts = 0
        self._awaiting_since_s = 0.0
        self._waiting_reply: BeginReply | None = None  # to begin when the words are there
        self._begun: BeginReply | None = None  # the one being made to the open turn
        self._works: dict[str, ReplyWork] = {}
        self._images: deque[Image] = deque(maxlen=max(1, options.images_per_prompt))
        self._history: tuple[Item, ...] = ()  # as of the last reply, for reading ahead
        self._closed = False
        self._read_ahead("")

    def _turn_options(self, settings: AgentSettings) -> TurnOptions:
        """Raises ``ConfigError`` for settings that cannot be honoured."""
        options = self._options.turn.with_overrides(settings.turn_taking)
        if self._engines.thinker.expectation is None and "expectation" not in options.without:
            options = options.model_copy(update={"without": (*options.without, "expectation")})
        return options

    # --- the session's side ----------------------------------------------------------------------

    def step(self, heard: Heard) -> None:
        said = self._said.text(heard.reply_sent_s)
        self._ours = OurSide(heard.floor, heard.reply_left_s, self._saying, said)
        if self._awaiting is not None and heard.now_s - self._awaiting_since_s > self._options.listener_limit_s:
            self._do_without_words(self._awaiting)
        if heard.image is not None:
            self._images.append(heard.image)
        self._ear.hear(heard.frame.pts, heard.frame.samples, heard.reference)

    def collect(self) -> Sequence[AgentEvent]:
        out: list[AgentEvent] = []
        while self._inbox:
            match self._inbox.popleft():
                case Window() as window:
                    self._take(window, out)
                case Transcript() as transcript:
                    self._understand(transcript, out)
                case _Prosody(probability=probability, asked_pts=asked_pts):
                    self._predictor.prosody(probability, asked_pts)
                    self._judged(out)
                case _Expected(probability=probability, asked_pts=asked_pts):
                    self._predictor.expectation(probability, asked_pts)
                    self._judged(out)
                case ReplyText(reply_id=reply_id, delta=delta) as text:
                    if reply_id == self._latest_reply:
                        self._saying += delta
                    out.append(text)
                    # The talker is busy with it now, and the thinker has a moment.
                    self._predictor.ask_expectation()
                    self._judged(out)
                case ReplyAudio(reply_id=reply_id, words=words) as audio:
                    if reply_id == self._latest_reply:
                        self._said.add(words)
                    out.append(audio)
                case ReplyEnd() as end:
                    self._works.pop(end.reply_id, None)
                    out.append(end)
                case event:
                    out.append(event)
        return out

    def command(self, command: AgentCommand) -> None:
        match command:
            case BeginReply():
                self._begin(command)
            case DropReply(reply_id=reply_id):
                if self._waiting_reply is not None and self._waiting_reply.reply_id == reply_id:
                    self._waiting_reply = None
                if work := self._works.pop(reply_id, None):
                    work.cancel()
            case CommitTurn(turn_id=turn_id):
                self._commit(turn_id)
            case ReopenTurn(turn_id=turn_id):
                self._predictor.patience.cut_off()
                self._prefix = self._committed.get(turn_id, self._partial)
                self._awaiting = None
            case ForgetTurn():
                self._forget()
                self._prefix = ""
            case Remember(history=history):
                self._history = history
                self._read_ahead("")
            case FillSilence() if self._options.dead_air:
                talker = self._engines.talker(self._settings.voice)
                speak_aside(AsideKind.DEAD_AIR, self._options.dead_air, talker, self._post)
            case Configure(settings=settings):
                wishes(settings, self._options, self._engines.thinker)
                self._predictor.options = self._turn_options(settings)
                self._settings = settings
                self._read_ahead("")
            case _:
                pass  # holding and resuming need nothing from us: the audio is made ahead

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._ear.close()
        self._stream.close()
        for work in self._works.values():
            work.cancel()
        self._works.clear()
        self._places.close()
        self._when_closed()

    # --- the workers' side -----------------------------------------------------------------------

    def _post(self, item: AgentEvent | Window | Transcript | _Prosody | _Expected) -> None:
        """From any thread: into the inbox, and wake the session."""
        if not self._closed:
            self._inbox.append(item)
            self._wake()

    def _take_window(self, window: Window | AgentFaultError) -> None:
        self._post(Fault(window, fatal=self._ear.closed) if isinstance(window, AgentFaultError) else window)

    # --- listening -------------------------------------------------------------------------------

    def _take(self, window: Window, out: list[AgentEvent]) -> None:
        self._pts = window.end_pts
        n_samples = len(window.samples_16k) * SAMPLE_RATE_HZ // 16_000
        pitch = pitch_hz(window.samples_16k) if self._predictor.voice else None
        heard = HeardWindow(
            window.end_pts, n_samples, window.probability, window.level_dbfs, window.echo, pitch, window.line_echoes
        )
        self._predictor.window(heard, self._ours)
        if self._predictor.in_stretch and not self._listening:
            self._start_listening()
        if self._listening:
            self._stream.push(window.samples_16k)
            self._turn_audio.append(window.samples_16k)
        self._recent.append(window.samples_16k)
        self._judged(out, judge=False)

    def _start_listening(self) -> None:
        if self._awaiting is not None:  # the last turn's words never came: keep what was understood
            self._settle(self._awaiting, self._partial)
        self._listening = True
        self._final, self._partial = None, ""
        self._stream.reset()
        self._turn_audio.clear()
        for before in self._recent:
            self._stream.push(before)
            self._turn_audio.append(before)

    def _judged(self, out: list[AgentEvent], *, judge: bool = True) -> None:
        """Reports what the predictor thinks and asks for what it wants to know."""
        predictor = self._predictor
        user = predictor.review(self._ours) if judge else predictor.user
        for edge, pts in predictor.edges:
            if edge is Edge.STARTED:
                self._final = None
            out.append(SpeechStarted(pts) if edge is Edge.STARTED else SpeechStopped(pts))
        predictor.edges.clear()
        out.append(UserState(self._pts, user, dict(predictor.evidence), predictor.probabilities()))
        if user is User.PAUSED_INCOMPLETE:
            self._encourage()
        for ask in predictor.asks:
            self._ask(ask, out)
        predictor.asks.clear()
        if not predictor.in_stretch and self._listening:
            self._listening = False
            if user in (User.BACKCHANNEL, User.NOT_ADDRESSED, User.IDLE):
                self._forget()

    def _encourage(self) -> None:
        predictor = self._predictor
        needed_s = predictor.evidence.get("silence_needed_s", 0.0)
        phrase = self._encouragement.phrase(
            predictor.user, self._ours.floor, predictor.voiced_s, predictor.quiet_s, needed_s, predictor.options
        )
        if phrase is not None:
            speak_aside(AsideKind.BACKCHANNEL, phrase, self._engines.talker(self._settings.voice), self._post)

    def _ask(self, ask: Ask, out: list[AgentEvent]) -> None:
        if ask is Ask.PROSODY:
            asked_pts = self._pts
            audio = np.concatenate(self._turn_audio)
            self._engines.prosody.ask(audio, lambda p: self._post(_Prosody(p, asked_pts)))
            return
        if ask is Ask.EXPECTATION:
            if (expectation := self._engines.thinker.expectation) is not None and self._final:
                asked_pts = self._pts
                expectation.ask(self._final, lambda p: self._post(_Expected(p, asked_pts)))
            return
        self._last_request += 1
        self._asked_pts[self._last_request] = self._pts
        if ask is Ask.FINAL:
            if self._final is None:
                out.append(Mark("listener_asked", self._clock.now()))
            self._stream.request("final", self._last_request, commands=self._predictor.over_us)
        else:
            self._stream.request("partial", self._last_request, commands=self._predictor.over_us)

    def _understand(self, transcript: Transcript, out: list[AgentEvent]) -> None:
        asked_pts = self._asked_pts.pop(transcript.request_id, None)
        for request_id in [r for r in self._asked_pts if r < transcript.request_id]:
            del self._asked_pts[request_id]  # superseded, never answered
        if transcript.error is not None:
            out.append(Fault(transcript.error))
        if asked_pts is None:
            return
        final = transcript.kind == "final"
        if self._awaiting is not None:
            if final and asked_pts >= self._awaiting_from_pts:
                self._settle(self._awaiting, self._joined(transcript.text), out)
            return
        if not self._listening:
            return
        self._partial = self._joined(transcript.text)
        if self._partial:
            out.append(PartialTranscript(self._partial))
            if not final:
                self._read_ahead(self._partial)
        settles = self._predictor.transcript(transcript.text, final=final, asked_pts=asked_pts, ended=transcript.ended)
        if settles:
            misheard = self._final is not None and words_of(self._final) != words_of(self._partial)
            if self._final is None or misheard:
                out.append(Mark("listener_done", self._clock.now()))
            self._final = self._partial
            if misheard:
                self._think_again()
            if self._waiting_reply is not None:
                waiting, self._waiting_reply = self._waiting_reply, None
                self._begin(waiting)
        self._judged(out)

    def _joined(self, text: str) -> str:
        return f"{self._prefix} {text}".strip() if self._prefix else text

    # --- turns -----------------------------------------------------------------------------------

    def _commit(self, turn_id: str) -> None:
        voiced_pts, over_us = self._predictor.last_voiced_pts, self._predictor.over_us
        self._predictor.committed()
        self._listening = False
        self._awaiting_since_s = self._clock.now()
        if self._final is not None:
            self._settle(turn_id, self._final)
            return
        self._awaiting, self._awaiting_from_pts = turn_id, self._pts if voiced_pts is None else voiced_pts
        if not any(pts >= self._awaiting_from_pts for pts in self._asked_pts.values()):
            self._last_request += 1
            self._asked_pts[self._last_request] = self._pts
            self._stream.request("final", self._last_request, commands=over_us)

    def _do_without_words(self, turn_id: str) -> None:
        limit_s = self._options.listener_limit_s
        self._post(Fault(AgentFaultError(f"The listener gave no words within {limit_s:g} s; going on without them.")))
        self._asked_pts.clear()
        self._settle(turn_id, self._partial)

    def _settle(self, turn_id: str, text: str, out: list[AgentEvent] | None = None) -> None:
        """A committed turn's words are known."""
        self._awaiting = None
        self._final, self._partial, self._prefix = None, "", ""
        self._committed = {turn_id: text}
        event = FinalTranscript(turn_id, text)
        if out is not None:
            out.append(event)
        else:
            self._post(event)
        if self._waiting_reply is not None:
            waiting, self._waiting_reply = self._waiting_reply, None
            self._start(waiting, text)
        for work in self._works.values():
            work.release()
        self._begun = None

    def _forget(self) -> None:
        self._predictor.forget()
        self._listening = False
        self._begun = None
        self._final, self._partial = None, ""
        self._stream.reset()
        self._asked_pts.clear()
        if self._waiting_reply is not None:
            self._post(ReplyEnd(self._waiting_reply.reply_id))
            self._waiting_reply = None

    # --- replies ---------------------------------------------------------------------------------

    def _begin(self, command: BeginReply) -> None:
        if not command.to_open_turn:
            self._start(command, None)
        elif self._final is not None:
            self._start(command, self._final)
        else:
            self._waiting_reply = command

    def _think_again(self) -> None:
        """The pause's words are other ones after all: the reply to them begins anew, if nothing of it was said yet."""
        begun = self._begun
        if begun is not None and (work := self._works.get(begun.reply_id)) is not None and work.withdraw():
            del self._works[begun.reply_id]
            self._start(begun, self._final)

    def _start(self, command: BeginReply, said: str | None) -> None:
        if said is not None and (not said or only_says_stop(said)):  # nothing to answer, or no answer wanted
            self._post(ReplyEnd(command.reply_id))
            return
        try:
            wished = wishes(self._settings, self._options, self._engines.thinker, command)
        except ConfigError as error:
            self._post(ReplyEnd(command.reply_id, error))
            return
        if not wished.silent:
            self._latest_reply, self._saying = command.reply_id, ""
            self._said.begin()
        work = ReplyWork(command.reply_id, self._clock, self._post, hold_calls=said is not None)
        self._works[command.reply_id] = work
        talker = None if wished.silent else self._engines.talker(self._settings.voice)
        if command.say is not None:
            work.say(talker, command.say)
            return
        self._begun = None if said is None else command
        messages = self._prompt(command.history, said, command.instructions)
        beside = wished.silent and said is None and not self._settings.silent
        work.start(self._places.take(work, beside=beside), talker, request(wished, messages, self._options))

    def _prompt(
        self, history: Sequence[Item], said: str | None, instructions: str | None = None
    ) -> tuple[th.Message, ...]:
        system = instructions or self._settings.instructions or self._options.instructions
        sees = self._engines.thinker.takes_images and self._options.images_per_prompt
        pictures = tuple(self._images) if sees else ()
        return prompt(system, history, said, pictures, tell_unheard=self._options.tell_unheard)

    def _read_ahead(self, said: str) -> None:
        """Lets the thinker read what the next prompt will begin with, while nobody waits for it."""
        self._places.main.prefill(self._prompt(self._history, said or None), self._settings.tools or ())
