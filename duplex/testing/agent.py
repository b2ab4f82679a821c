"""An agent without models: hears energy, answers from a script or a function, after exact delays."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from duplex.agent import (
    Agent,
    AgentCommand,
    AgentEvent,
    AgentInfo,
    AgentSession,
    AgentSettings,
    BeginReply,
    CommitTurn,
    Configure,
    DropReply,
    FinalTranscript,
    ForgetTurn,
    Heard,
    Mark,
    ReopenTurn,
    ReplyAudio,
    ReplyEnd,
    ReplyText,
    ReplyUsage,
    ResumeReply,
    SpeechStarted,
    SpeechStopped,
    ToolCallArguments,
    ToolCallBegan,
    ToolCallEnd,
    ToolChoice,
    UserState,
    Word,
)
from duplex.clock import Clock, Timer
from duplex.conversation import Item
from duplex.frames import SAMPLE_RATE_HZ, Samples
from duplex.testing.delays import DelayMs, delay_ms
from duplex.testing.line import tone
from duplex.turn import Floor, User

_STREAMING_S = 0.1  # frames that are further apart are no stream
WORD_S = 0.3
"""How long a word of an ``answer`` takes to say."""


@dataclass(frozen=True, slots=True)
class ScriptedCall:
    """A tool that a reply asks for, if the session has it and allows it."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScriptedReply:
    """``audio_after_s``: from being asked to the first audio. ``duration_s`` of tone; words share it evenly.

    ``calls``: tools it asks for, besides what it says. Without ``text`` it says nothing.
    """

    text: str = "All right, here is my answer."
    audio_after_s: float = 0.1
    duration_s: float = 2.0
    calls: tuple[ScriptedCall, ...] = ()


Answer = Callable[[Sequence[Item], str], str | ScriptedReply]
"""A bot's mind as a function: the conversation so far, and the user's words now, to what to say or do."""


@dataclass(frozen=True, slots=True)
class ScriptedTiming:
    """The scripted ear: energy and silence only.

    A pause of ``pause_s`` starts speculation, one of ``complete_s`` ends the turn. Over our own speech,
    ``interrupt_s`` of voice interrupts, and less than that followed by ``backchannel_s`` of quiet was a
    backchannel.
    """

    pause_s: float = 0.1
    complete_s: float = 0.3
    interrupt_s: float = 0.6
    backchannel_s: float = 0.2


@dataclass(frozen=True, slots=True)
class ScriptedStages:
    """How long each stage of a reply takes, in milliseconds: a number, or a seeded distribution.

    With these the agent reports the marks a cascade reports, at the moments they stand for, and they take the
    place of ``ScriptedReply.audio_after_s``. A reply to no turn has no listener in it.
    """

    listener_ms: DelayMs = 60.0
    thinker_ms: DelayMs = 200.0
    talker_ms: DelayMs = 70.0


class ScriptedAgent:
    """An agent without models, exact to the frame. Opens any number of sessions; keeps them in ``sessions``.

    ``answer``: a function that makes the replies instead of the script, :data:`WORD_S` a word. What the user says
    is told to a session beforehand (``hears``), as a tone has no words; without that it is "(speech)".
    ``stages``: exact delays, and the marks that go with them. ``counts``: it tells the words of its replies as tokens.
    A word is a token where a reply has a longest length, too.
    """

    def __init__(
        self,
        replies: Sequence[ScriptedReply] = (ScriptedReply(),),
        timing: ScriptedTiming = ScriptedTiming(),
        *,
        echo: bool = False,
        answer: Answer | None = None,
        stages: ScriptedStages | None = None,
        counts: bool = False,
    ) -> None:
        self.replies, self.timing, self.echo = tuple(replies), timing, echo
        self.answer, self.stages, self.counts = answer, stages, counts
        self.sessions: list[ScriptedSession] = []

    @property
    def info(self) -> AgentInfo:
        return AgentInfo("echo" if self.echo else "scripted", calls_tools=not self.echo, deterministic=True)

    async def start(self) -> None: ...

    def open(self, settings: AgentSettings, clock: Clock, wake: Callable[[], None]) -> AgentSession:
        session = ScriptedSession(self, clock, wake, settings)
        self.sessions.append(session)
        return session

    async def close(self) -> None: ...


def _nobody() -> None: ...


@dataclass(slots=True)
class _Due:
    """Something to do at ``at_s`` for a reply."""

    at_s: float
    reply_id: str
    do: Callable[[], None]


class ScriptedSession:
    """One session of a :class:`ScriptedAgent`; ``commands`` keeps every command it was given."""

    def __init__(
        self, agent: ScriptedAgent, clock: Clock, wake: Callable[[], None], settings: AgentSettings | None = None
    ) -> None:
        self._agent, self._clock, self._wake = agent, clock, wake
        self.settings = settings or AgentSettings()
        self.commands: list[AgentCommand] = []
        self.closed = False
        self._out: list[AgentEvent] = []
        self._now_s = 0.0
        self._voiced_s = 0.0  # length of the running stretch of speech
        self._quiet_s = 0.0
        self._in_speech = False
        self._had_speech = False
        self._recording: list[Samples] = []
        self._committed: list[Samples] = []  # the last turn's sound, for a reply that was not begun before
        self._words: list[str] = []  # of the open turn
        self._committed_words: list[str] = []
        self._due: list[_Due] = []
        self._timers: list[Timer] = []
        self._n_replies = self._n_calls = 0

    def hears(self, text: str) -> None:
        """The words of the speech that comes next."""
        self._words.append(text)

    def step(self, heard: Heard) -> None:
        self._now_s = heard.now_s
        frame = heard.frame
        seconds = len(frame.samples) / SAMPLE_RATE_HZ
        voiced = float(np.sqrt(np.mean(frame.samples**2))) > 10 ** (-40 / 20)
        if voiced:
            if not self._in_speech:
                self._in_speech, self._voiced_s = True, 0.0
                self._out.append(SpeechStarted(frame.pts))
            self._had_speech = True
            self._voiced_s += seconds
            self._quiet_s = 0.0
        else:
            if self._in_speech:
                self._in_speech = False
                self._out.append(SpeechStopped(frame.pts))
            self._quiet_s += seconds
        if self._had_speech and self._agent.echo:
            self._recording.append(frame.samples)
            del self._recording[: max(0, len(self._recording) - 1500)]
        self._out.append(UserState(frame.end_pts, self._predict(voiced, heard.floor)))
        self._do_due(heard.now_s)

    def _predict(self, voiced: bool, floor: Floor) -> User:
        timing = self._agent.timing
        if not self._had_speech:
            return User.IDLE
        if floor in (Floor.SPEAKING, Floor.HOLDING):
            if voiced:
                return User.INTERRUPTING if self._voiced_s >= timing.interrupt_s - 1e-9 else User.SPEAKING
            if self._voiced_s < timing.interrupt_s - 1e-9:
                if self._quiet_s >= timing.backchannel_s - 1e-9:
                    self._forget()
                    return User.BACKCHANNEL
                return User.PAUSED_INCOMPLETE
        if voiced:
            return User.SPEAKING
        if self._quiet_s >= timing.complete_s - 1e-9:
            return User.TURN_COMPLETE
        return User.PAUSED_INCOMPLETE if self._quiet_s >= timing.pause_s - 1e-9 else User.SPEAKING

    @property
    def _no_line(self) -> bool:
        """Nothing is heard, not even silence, as before the first sound of a line that streams none; time goes on."""
        return self._clock.now() - self._now_s > _STREAMING_S

    def _forget(self) -> None:
        self._had_speech = False
        self._recording, self._words = [], []

    def collect(self) -> Sequence[AgentEvent]:
        if self._agent.stages is not None or self._no_line:
            self._do_due(self._clock.now())
        out, self._out = self._out, []
        return out

    def command(self, command: AgentCommand) -> None:
        self.commands.append(command)
        match command:
            case BeginReply():
                self._begin(command)
            case DropReply(reply_id=reply_id):
                self._due = [due for due in self._due if due.reply_id != reply_id]
            case CommitTurn(turn_id=turn_id):
                self._out.append(FinalTranscript(turn_id, " ".join(self._words) or "(speech)"))
                self._had_speech = False
                self._committed, self._recording = self._recording, []
                self._committed_words, self._words = self._words, []
            case ReopenTurn():
                self._had_speech = True
                self._words = [*self._committed_words, *self._words]
            case ResumeReply() | ForgetTurn():
                self._forget()
            case Configure(settings=settings):
                self.settings = settings
            case _:
                pass

    def close(self) -> None:
        self.closed = True
        for timer in self._timers:
            timer.cancel()
        self._timers = []
        self._wake = _nobody  # the agent keeps its sessions for a look; a call that is over must not stay with them

    # --- replies ---------------------------------------------------------------------------------

    def _begin(self, begin: BeginReply) -> None:
        script = self._agent.replies[self._n_replies % len(self._agent.replies)]
        number, self._n_replies = self._n_replies, self._n_replies + 1
        reply_id, stages = begin.reply_id, self._agent.stages
        if stages is None:
            if self._no_line:
                self._now_s = self._clock.now()
            self._at(
                self._now_s + script.audio_after_s, reply_id, lambda: self._speak(begin, self._reply(begin, script))
            )
            return
        at_s = self._clock.now()
        if begin.to_open_turn:
            self._out.append(Mark("listener_asked", at_s))
            at_s += delay_ms(stages.listener_ms, number) / 1000.0
            self._at(at_s, reply_id, self._marker("listener_done", at_s))
        thinker_s, talker_s = (delay_ms(delay, number) / 1000.0 for delay in (stages.thinker_ms, stages.talker_ms))
        self._at(at_s, reply_id, self._marker("thinker_asked", at_s, reply_id))
        self._at(at_s + thinker_s, reply_id, lambda: self._think(begin, script, at_s + thinker_s, talker_s))

    def _think(self, begin: BeginReply, script: ScriptedReply, at_s: float, talker_s: float) -> None:
        """The thinker's first clause is there, and the talker is asked to say it."""
        reply = self._reply(begin, script)
        self._out += [Mark(name, at_s, begin.reply_id) for name in ("thinker_first_clause", "talker_asked")]
        spoken_s = at_s + talker_s
        self._at(spoken_s, begin.reply_id, self._marker("talker_first_audio", spoken_s, begin.reply_id))
        self._at(spoken_s, begin.reply_id, lambda: self._speak(begin, reply))

    def _reply(self, begin: BeginReply, script: ScriptedReply) -> ScriptedReply:
        if begin.say is not None:
            return ScriptedReply(begin.say, script.audio_after_s, WORD_S * len(begin.say.split()))
        if self._agent.answer is None:
            return script
        said = " ".join(self._words or self._committed_words) if begin.to_open_turn else ""
        answer = self._agent.answer(begin.history, said)
        if isinstance(answer, ScriptedReply):
            return answer
        return ScriptedReply(answer, script.audio_after_s, WORD_S * len(answer.split()))

    def _speak(self, begin: BeginReply, reply: ScriptedReply) -> None:
        limit = self.settings.max_output_tokens if begin.max_output_tokens is None else begin.max_output_tokens
        n_words = len(reply.text.split())
        if cut_short := limit is not None and n_words > limit:
            duration_s = reply.duration_s * limit / n_words if limit is not None else 0.0
            reply = replace(reply, text=" ".join(reply.text.split()[:limit]), duration_s=duration_s)
        if begin.silent if begin.silent is not None else self.settings.silent:
            self._out += [ReplyText(begin.reply_id, word) for word in reply.text.splitlines(keepends=True)]
        elif reply.text:
            self._say(begin, reply)
        self._call(begin, reply)
        if self._agent.counts:
            n_read = sum(len(str(getattr(item, "text", "")).split()) for item in begin.history)
            self._out.append(ReplyUsage(begin.reply_id, n_read, 0, len(reply.text.split())))
        self._out.append(ReplyEnd(begin.reply_id, cut_short=cut_short))

    def _call(self, begin: BeginReply, reply: ScriptedReply) -> None:
        """The tools a reply asks for, as far as this session has them and lets it."""
        tools = self.settings.tools if begin.tools is None else begin.tools
        choice = begin.tool_choice or self.settings.tool_choice or ToolChoice()
        names = {tool.name for tool in tools or ()} if choice.mode != "none" else set()
        for call in reply.calls:
            if call.name not in names or choice.name not in (None, call.name):
                continue
            self._n_calls += 1
            call_id, arguments = f"call_{self._n_calls}", json.dumps(call.arguments)
            middle = len(arguments) // 2
            self._out.append(ToolCallBegan(begin.reply_id, call_id, call.name))
            self._out += [
                ToolCallArguments(begin.reply_id, call_id, part) for part in (arguments[:middle], arguments[middle:])
            ]
            self._out.append(ToolCallEnd(begin.reply_id, call_id, arguments))

    def _say(self, begin: BeginReply, reply: ScriptedReply) -> None:
        sound = self._recording or self._committed
        audio = np.concatenate(sound) if self._agent.echo and sound else tone(reply.duration_s)
        texts = reply.text.split()
        edges = np.linspace(0, len(audio), len(texts) + 1).astype(int)
        words = tuple(Word(t, int(a), int(b)) for t, a, b in zip(texts, edges[:-1], edges[1:], strict=True))
        reply_id = begin.reply_id
        self._out += [ReplyText(reply_id, reply.text), ReplyAudio(reply_id, audio, words)]

    def _marker(self, name: str, at_s: float, reply_id: str | None = None) -> Callable[[], None]:
        return lambda: self._out.append(Mark(name, at_s, reply_id))

    def _at(self, at_s: float, reply_id: str, do: Callable[[], None]) -> None:
        self._due.append(_Due(at_s, reply_id, do))
        if self._agent.stages is not None and at_s > self._clock.now():  # between two frames, if need be
            self._timers = [*self._timers[-32:], self._clock.call_at(at_s, self._wake)]

    def _do_due(self, now_s: float) -> None:
        """Does what is due, in order of time; what that makes due at once included."""
        while ready := [due for due in self._due if due.at_s <= now_s + 1e-9]:
            first = min(ready, key=lambda due: due.at_s)
            self._due.remove(first)
            first.do()


def load_echo_agent(options: Mapping[str, Any]) -> Agent:
    """Entry point ``echo``: hears a turn by its energy and answers with the same sound. Needs no models."""
    return ScriptedAgent((ScriptedReply(text="(echo)", audio_after_s=0.0),), ScriptedTiming(**options), echo=True)
