"""The agent contract: one for native full-duplex models and for cascades.

An *agent* is loaded once per process: weights, engines, graphs, warm-up. It opens *agent sessions*,
and says at once, with :class:`~duplex.errors.AgentFullError`, when it has no room.

An agent session is *stepped*. ``step`` hands over one frame of what was heard and returns without
waiting for anything: no I/O, no lock a model holds, no model that could miss the frame's deadline.
Whatever became ready since (audio, text, turn state, faults) is fetched with ``collect``, which
preserves order. Workers call ``wake`` (from any thread) when something is ready, and the session
collects then instead of waiting for the next frame. Commands reach the agent between steps.

Replies are named by the session (``reply_id``), so audio that arrives for a reply that was dropped
meanwhile is recognised and ignored on both sides. A native agent takes the floor by itself: it tells that
it began (:class:`ReplyBegan`), under a name of its own, and is spoken to of that reply by the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, Protocol, runtime_checkable

from duplex.bitrate import LinkReport
from duplex.clock import Clock
from duplex.conversation import Item, Role
from duplex.errors import DuplexError
from duplex.frames import Frame, Image, Samples
from duplex.turn import Floor, User
from duplex.turn_rules import TurnRules

# --- what an agent is ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """``packets_per_frame``: the agent's frame in 20 ms packets (a cascade 1, the Moshi family 4).

    ``native``: takes the floor by itself; the turn machine then watches instead of commanding.
    ``calls_tools``: its thinker can be given tools (:class:`Tool`).
    ``deterministic``: the same frames and commands give the same output, within step and collect, so that a
    replay may run it anew.
    ``places``: calls at a time that it was configured for, where that is a number; no server takes more.
    """

    name: str
    packets_per_frame: int = 1
    native: bool = False
    takes_images: bool = False
    voices: tuple[str, ...] = ()
    calls_tools: bool = False
    deterministic: bool = False
    places: int | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the agent may ask for. ``parameters``: a JSON Schema of type object."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """``required``: the reply has to call a tool; the one called ``name``, if that is given."""

    mode: Literal["auto", "none", "required"] = "auto"
    name: str | None = None


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What one session may choose. ``None`` means the agent's configured default.

    ``turn_taking``: how it takes turns, as a table the agent validates; ``preset`` names where to start from.
    ``tools``: what its replies may ask for; an agent that cannot raises ``ConfigError`` for any.
    ``silent``: replies are text alone, and no sound is made of them. ``max_output_tokens``: the longest reply.
    ``turns``: who ends the user's turn; the session sees to it. ``captions``: whether the client is told what was
    understood.
    """

    instructions: str | None = None
    voice: str | None = None
    turn_taking: Mapping[str, Any] | None = None
    tools: tuple[Tool, ...] | None = None
    tool_choice: ToolChoice | None = None
    silent: bool | None = None
    max_output_tokens: int | None = None
    turns: TurnRules | None = None
    captions: bool | None = None


class Agent(Protocol):
    @property
    def info(self) -> AgentInfo: ...

    async def start(self) -> None:
        """Loads and warms up; returns when the first session would be answered at full speed."""
        ...

    def open(self, settings: AgentSettings, clock: Clock, wake: Callable[[], None]) -> AgentSession:
        """Opens a session. ``wake`` may be called from any thread.

        Raises ``AgentFullError``, or ``ConfigError`` for settings it cannot honour.
        """
        ...

    async def close(self) -> None:
        """Ends every worker. Sessions still open get nothing more."""
        ...


@runtime_checkable
class Admitting(Protocol):
    """What an agent has too that knows before a call is set up whether it could take it."""

    def admit(self) -> None:
        """Raises the ``AgentFullError`` that ``open`` would raise now."""
        ...


class AgentSession(Protocol):
    def step(self, heard: Heard) -> None: ...

    def collect(self) -> Sequence[AgentEvent]: ...

    def command(self, command: AgentCommand) -> None: ...

    def close(self) -> None: ...


@runtime_checkable
class Preparing(Protocol):
    """What the session of an agent that must read something first has too: the call is answered after it.

    Frames come once ``wait_ready`` has returned. It raises what ``open`` would have.
    """

    async def wait_ready(self) -> None: ...


AgentFactory = Callable[[Mapping[str, Any]], Agent]
"""What the entry-point group ``duplex.agents`` names: options (a config table) to an agent, not started."""


# --- in: frames and commands --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heard:
    """One step's input.

    ``reference``: what we played meanwhile, float32, as long as the frame (zeros if none). ``reply_sent_s``: how
    much of the reply at hand went out. ``reply_left_s``: how much of it is still to be heard, once its end is known.
    ``link``: a report about the line's link, once, when it came.
    """

    frame: Frame
    reference: Samples
    floor: Floor
    floor_since_s: float
    now_s: float
    image: Image | None = None
    reply_left_s: float | None = None
    reply_sent_s: float | None = None
    link: LinkReport | None = None


@dataclass(frozen=True, slots=True)
class BeginReply:
    """Start on a reply to ``history`` plus, if ``to_open_turn``, what the user said in the open turn.

    ``speculative`` replies may be dropped before anyone hears them. ``say``: the reply is this text, word for word;
    an agent that cannot do that ends it with an ``UnsupportedError``. What is None further on is as in the settings.
    """

    reply_id: str
    history: tuple[Item, ...]
    to_open_turn: bool = True
    speculative: bool = False
    instructions: str | None = None
    say: str | None = None
    tools: tuple[Tool, ...] | None = None
    tool_choice: ToolChoice | None = None
    silent: bool | None = None
    max_output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class CommitTurn:
    """The user's turn is over: its words are settled, and what comes next is a new turn."""

    turn_id: str


@dataclass(frozen=True, slots=True)
class ReopenTurn:
    """The user went on: what was committed last is the beginning of the same turn after all."""

    turn_id: str


@dataclass(frozen=True, slots=True)
class ForgetTurn:
    """Drop what the open turn holds: it was noise, or the client cleared it."""


@dataclass(frozen=True, slots=True)
class DropReply:
    """Cancel the work behind a reply; nothing of it was or will be heard beyond ``heard_text``.

    ``unheard_text``: what it would have gone on to say, as far as it was made.
    """

    reply_id: str
    heard_text: str = ""
    unheard_text: str = ""


@dataclass(frozen=True, slots=True)
class HoldReply:
    reply_id: str


@dataclass(frozen=True, slots=True)
class ResumeReply:
    reply_id: str


@dataclass(frozen=True, slots=True)
class FillSilence:
    """The reply takes long: say so, once, with an :class:`Aside` (or do nothing)."""

    reply_id: str


@dataclass(frozen=True, slots=True)
class Remember:
    """The conversation as it stands, told whenever it changed while nobody waits: read ahead if that helps."""

    history: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Inject:
    """Text a native agent is to know from now on, without being asked to speak: what a tool answered, what the user
    sees. ``command`` raises ``ProtocolError`` for text it cannot take. Other agents read the history instead."""

    text: str
    role: Role = Role.SYSTEM


@dataclass(frozen=True, slots=True)
class Configure:
    """New settings. ``command`` raises ``ConfigError`` for those it cannot honour, and keeps the old ones."""

    settings: AgentSettings


AgentCommand = (
    BeginReply
    | CommitTurn
    | ReopenTurn
    | ForgetTurn
    | DropReply
    | HoldReply
    | ResumeReply
    | FillSilence
    | Remember
    | Inject
    | Configure
)


# --- out: what collect() returns ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a reply; offsets in samples from the start of the reply's audio."""

    text: str
    start_samples: int
    end_samples: int
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class UserState:
    """The predictor's view at ``pts``: the state it decides for, and what that rests on.

    ``probabilities``: over all states, summing to 1 (empty if the agent has none). ``evidence``: by name.
    """

    pts: int
    user: User
    evidence: Mapping[str, float] = field(default_factory=dict)
    probabilities: Mapping[User, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """First voiced sample of a stretch of speech (``pts``), known a little later."""

    pts: int


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """Last voiced sample of a stretch of speech (``pts``)."""

    pts: int


@dataclass(frozen=True, slots=True)
class PartialTranscript:
    """The open turn's words so far; replaces the previous partial."""

    text: str


@dataclass(frozen=True, slots=True)
class FinalTranscript:
    """The committed turn's words. Follows every ``CommitTurn``, also with an empty text.

    ``error``: why the listener has none, or not all of them.
    """

    turn_id: str
    text: str
    error: DuplexError | None = None


@dataclass(frozen=True, slots=True)
class ReplyBegan:
    """A native agent began to speak by itself; ``reply_id``, which it chose and never uses again, is what follows of
    it. Another reply of its own that has not ended ends here."""

    reply_id: str


@dataclass(frozen=True, slots=True)
class ReplyText:
    reply_id: str
    delta: str


@dataclass(frozen=True, slots=True)
class ReplyAudio:
    """The next stretch of a reply: float32[n] at 24 kHz, with the words that lie in it."""

    reply_id: str
    samples: Samples
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallBegan:
    """The reply asks for a tool. ``call_id``: unique in the session. It may speak before and besides."""

    reply_id: str
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """The next piece of a call's arguments, JSON text."""

    reply_id: str
    call_id: str
    delta: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """The call is complete; ``arguments`` is all of it, a JSON object. Its result comes as an item of a
    later history."""

    reply_id: str
    call_id: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ReplyUsage:
    """Tokens of one reply, told before its ``ReplyEnd`` by agents that count. ``cached``: of the input's."""

    reply_id: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class ReplyEnd:
    """No more of this reply will come. ``error``: why it ended early, if it did. ``cut_short``: it reached
    ``max_output_tokens``, and would have gone on."""

    reply_id: str
    error: DuplexError | None = None
    cut_short: bool = False


class AsideKind(Enum):
    BACKCHANNEL = "backchannel"  # "mm-hm", in a pause of the user's turn
    DEAD_AIR = "dead-air"  # "one moment", when thinking takes long


@dataclass(frozen=True, slots=True)
class Aside:
    """A word of ours that does not take the floor: float32[n] at 24 kHz, at most 2 s, never remembered."""

    kind: AsideKind
    text: str
    samples: Samples


@dataclass(frozen=True, slots=True)
class Mark:
    """A named instant for the latency trace, in the session's wall time; of the open turn if no reply is named."""

    name: str
    at_s: float
    reply_id: str | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """Something went wrong inside this session. ``fatal``: it cannot go on."""

    error: DuplexError
    fatal: bool = False


AgentEvent = (
    UserState
    | SpeechStarted
    | SpeechStopped
    | PartialTranscript
    | FinalTranscript
    | ReplyBegan
    | ReplyText
    | ReplyAudio
    | ToolCallBegan
    | ToolCallArguments
    | ToolCallEnd
    | ReplyUsage
    | ReplyEnd
    | Aside
    | Mark
    | Fault
)
