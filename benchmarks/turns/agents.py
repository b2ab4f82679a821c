"""Agents with known faults and known delays: what the suite is tried on, so that its verdicts can be trusted.

``EagerAgent``    takes the floor a fifth of a second into anything it hears, and never gives it back
``SilentAgent``   hears everything and never says a word
``StagedAgent``   takes turns like a careful agent, with exact delays in each of its stages

None of them has a model; on virtual time their calls take as long as the arithmetic.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from duplex.agent import (
    AgentCommand,
    AgentEvent,
    AgentInfo,
    AgentSession,
    AgentSettings,
    BeginReply,
    CommitTurn,
    DropReply,
    FinalTranscript,
    Heard,
    Mark,
    ReplyAudio,
    ReplyEnd,
    ReplyText,
    SpeechStarted,
    SpeechStopped,
    UserState,
    Word,
)
from duplex.clock import Clock
from duplex.frames import SAMPLE_RATE_HZ
from duplex.recording import AUDIBLE_DBFS, level_dbfs
from duplex.stages import STAGE_MARKS
from duplex.testing import ScriptedAgent, ScriptedTiming, tone
from duplex.turn import Floor, User

STAGES = ("listener", "thinker", "talker")
_EAGER_AFTER_S = 0.2
_YIELD_AFTER_S = 0.2
_TEXT = "this is what I have to say about it"


def _speech(reply_id: str, duration_s: float) -> list[AgentEvent]:
    """A reply of steady sound whose words share it evenly."""
    sound = tone(duration_s)
    texts = _TEXT.split()
    edges = np.linspace(0, len(sound), len(texts) + 1).astype(int)
    words = tuple(Word(text, int(a), int(b)) for text, a, b in zip(texts, edges[:-1], edges[1:], strict=True))
    return [ReplyText(reply_id, _TEXT), ReplyAudio(reply_id, sound, words), ReplyEnd(reply_id)]


class _Ear:
    """Energy only: is there voice in this frame, and since when."""

    def __init__(self) -> None:
        self.voiced_s = 0.0  # of the running stretch
        self.quiet_s = 0.0
        self.voice = False

    def hear(self, heard: Heard) -> list[AgentEvent]:
        frame = heard.frame
        seconds = len(frame.samples) / SAMPLE_RATE_HZ
        was, self.voice = self.voice, level_dbfs(frame.samples) >= AUDIBLE_DBFS
        if self.voice:
            self.voiced_s, self.quiet_s = (self.voiced_s if was else 0.0) + seconds, 0.0
        else:
            self.quiet_s += seconds
        if was == self.voice:
            return []
        return [SpeechStarted(frame.pts)] if self.voice else [SpeechStopped(frame.pts)]


class _Base:
    """What the agents here share: no start-up, no end, any number of sessions."""

    name = "base"

    @property
    def info(self) -> AgentInfo:
        return AgentInfo(self.name)

    async def start(self) -> None: ...

    async def close(self) -> None: ...


class EagerAgent(_Base):
    """Always takes the floor: it starts to speak in the middle of what it hears, and never stops for anybody."""

    name = "always-eager"

    def open(self, settings: AgentSettings, clock: Clock, wake: Callable[[], None]) -> AgentSession:
        return _EagerSession()


class _EagerSession:
    def __init__(self) -> None:
        self._ear = _Ear()
        self._out: list[AgentEvent] = []

    def step(self, heard: Heard) -> None:
        self._out += self._ear.hear(heard)
        grab = heard.floor is Floor.LISTENING and self._ear.voice and self._ear.voiced_s >= _EAGER_AFTER_S
        self._out.append(UserState(heard.frame.end_pts, User.TURN_COMPLETE if grab else User.IDLE))

    def collect(self) -> Sequence[AgentEvent]:
        out, self._out = self._out, []
        return out

    def command(self, command: AgentCommand) -> None:
        if isinstance(command, BeginReply):
            self._out += _speech(command.reply_id, 8.0)
        elif isinstance(command, CommitTurn):
            self._out.append(FinalTranscript(command.turn_id, "(speech)"))

    def close(self) -> None: ...


class SilentAgent(_Base):
    """Never takes the floor; asked for a reply, it has nothing to say."""

    name = "never-answering"

    def open(self, settings: AgentSettings, clock: Clock, wake: Callable[[], None]) -> AgentSession:
        return _SilentSession()


class _SilentSession:
    def __init__(self) -> None:
        self._ear = _Ear()
        self._out: list[AgentEvent] = []

    def step(self, heard: Heard) -> None:
        self._out += self._ear.hear(heard)
        user = User.SPEAKING if self._ear.voice else User.IDLE
        self._out.append(UserState(heard.frame.end_pts, user))

    def collect(self) -> Sequence[AgentEvent]:
        out, self._out = self._out, []
        return out

    def command(self, command: AgentCommand) -> None:
        if isinstance(command, BeginReply):
            self._out.append(ReplyEnd(command.reply_id))
        elif isinstance(command, CommitTurn):
            self._out.append(FinalTranscript(command.turn_id, "(speech)"))

    def close(self) -> None: ...


def delayed_agent(delay_s: float) -> ScriptedAgent:
    """Answers exactly ``delay_s`` (whole packets) after the last voiced frame it heard.

    Over its own speech a fifth of a second of voice is enough for it to yield: running speech dips below the threshold
    that often.
    """
    return ScriptedAgent(timing=ScriptedTiming(complete_s=delay_s, interrupt_s=_YIELD_AFTER_S))


@dataclass(frozen=True, slots=True)
class StageDelays:
    """How long each stage takes, ms, and by how much that varies from turn to turn (± ``spread_ms``, seeded)."""

    listener: float = 60.0
    thinker: float = 160.0
    talker: float = 80.0
    spread_ms: float = 20.0
    seed: int = 0

    def more(self, stage: str, by_ms: float) -> StageDelays:
        """The same with ``by_ms`` added to one stage."""
        changed: Mapping[str, float] = {name: getattr(self, name) + by_ms * (name == stage) for name in STAGES}
        return StageDelays(**changed, spread_ms=self.spread_ms, seed=self.seed)


class StagedAgent(_Base):
    """A cascade in name only: it waits as long as each stage would take, and marks when each began and ended."""

    name = "staged"

    def __init__(self, delays: StageDelays = StageDelays()) -> None:
        self.delays = delays

    def open(self, settings: AgentSettings, clock: Clock, wake: Callable[[], None]) -> AgentSession:
        return _StagedSession(self.delays, clock)


@dataclass
class _StagedSession:
    delays: StageDelays
    clock: Clock
    _ear: _Ear = field(default_factory=_Ear)
    _out: list[AgentEvent] = field(default_factory=list)
    _due: list[tuple[float, str]] = field(default_factory=list)
    _in_turn: bool = False
    _asked: int = 0

    def step(self, heard: Heard) -> None:
        self._out += self._ear.hear(heard)
        self._in_turn = self._in_turn or self._ear.voice
        self._out.append(UserState(heard.frame.end_pts, self._user()))
        for at_s, reply_id in [due for due in self._due if due[0] <= heard.now_s + 1e-9]:
            self._due.remove((at_s, reply_id))
            self._out += _speech(reply_id, 1.0)

    def _user(self) -> User:
        if self._ear.voice:
            return User.SPEAKING
        if not self._in_turn:
            return User.IDLE
        return User.TURN_COMPLETE if self._ear.quiet_s >= 0.2 - 1e-9 else User.SPEAKING

    def collect(self) -> Sequence[AgentEvent]:
        out, self._out = self._out, []
        return out

    def command(self, command: AgentCommand) -> None:
        match command:
            case BeginReply(reply_id=reply_id):
                self._begin(reply_id)
            case DropReply(reply_id=reply_id):
                self._due = [due for due in self._due if due[1] != reply_id]
            case CommitTurn(turn_id=turn_id):
                self._in_turn = False
                self._out.append(FinalTranscript(turn_id, "(speech)"))
            case _:
                pass

    def _begin(self, reply_id: str) -> None:
        """Lays out the reply's stages from now on, as marks of what is to come."""
        rng = random.Random(self.delays.seed * 1_000_003 + self._asked)
        self._asked += 1
        at_s = self.clock.now()
        for stage in STAGES:
            asked, done = STAGE_MARKS[stage]
            spread_ms = rng.uniform(-self.delays.spread_ms, self.delays.spread_ms)
            until_s = at_s + (getattr(self.delays, stage) + spread_ms) / 1000.0
            owner = None if stage == "listener" else reply_id
            self._out += [Mark(asked, at_s, owner), Mark(done, until_s, owner)]
            at_s = until_s
        self._due.append((at_s, reply_id))

    def close(self) -> None: ...
