"""What a session tells the world: small frozen dataclasses, translated at the transport's edge.

Every event carries both times: ``pts`` (media time of the heard stream, samples) and ``at_s`` (wall
time of the session's clock).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from duplex.agent import AgentSettings, AsideKind, Word
from duplex.conversation import Role
from duplex.turn import Floor, User


@dataclass(frozen=True, slots=True)
class At:
    pts: int
    at_s: float


@dataclass(frozen=True, slots=True)
class SessionStarted:
    at: At
    session_id: str
    agent: str
    settings: AgentSettings


@dataclass(frozen=True, slots=True)
class SessionUpdated:
    at: At
    settings: AgentSettings


@dataclass(frozen=True, slots=True)
class UserSpeechStarted:
    """``audio_pts``: first voiced sample. ``item_id``: the user item this speech will become part of."""

    at: At
    item_id: str
    audio_pts: int


@dataclass(frozen=True, slots=True)
class UserSpeechStopped:
    at: At
    item_id: str
    audio_pts: int


@dataclass(frozen=True, slots=True)
class UserTurnCommitted:
    at: At
    item_id: str
    previous_item_id: str | None


@dataclass(frozen=True, slots=True)
class UserTurnReopened:
    """The user went on before the reply was heard; ``item_id`` grows on."""

    at: At
    item_id: str


@dataclass(frozen=True, slots=True)
class UserTranscriptPartial:
    at: At
    item_id: str
    text: str


@dataclass(frozen=True, slots=True)
class UserTranscriptFinal:
    """``error``: why the listener has no words, or not all of them."""

    at: At
    item_id: str
    text: str
    error: str | None = None


@dataclass(frozen=True, slots=True)
class IdleTimedOut:
    """Nobody spoke from ``start_pts``, where the last reply had been heard, to ``end_pts``. The silence becomes an
    item, and the agent speaks."""

    at: At
    item_id: str
    start_pts: int
    end_pts: int


@dataclass(frozen=True, slots=True)
class FloorChanged:
    """Floor or user state changed."""

    at: At
    floor: Floor
    user: User


@dataclass(frozen=True, slots=True)
class ItemAdded:
    """A message that did not come from speech entered the conversation."""

    at: At
    item_id: str
    role: Role
    text: str
    previous_item_id: str | None


@dataclass(frozen=True, slots=True)
class ReplyStarted:
    """A reply became public: its turn was committed (a speculation that is dropped never shows).

    ``item_id``: the message it says, if it says anything; it begins with the first of its text. ``silent``: text alone.
    ``in_conversation``: it will be remembered. ``labels``: the client's own, handed back.
    """

    at: At
    reply_id: str
    item_id: str
    previous_item_id: str | None
    silent: bool = False
    in_conversation: bool = True
    labels: Mapping[str, str] | None = None
    max_output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ReplyTextAdded:
    at: At
    reply_id: str
    item_id: str
    delta: str


@dataclass(frozen=True, slots=True)
class ReplyWords:
    """Word timings of audio that was released."""

    at: At
    reply_id: str
    item_id: str
    words: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class ReplyAudioStarted:
    """First packet of the reply went to the wire."""

    at: At
    reply_id: str
    item_id: str


@dataclass(frozen=True, slots=True)
class ToolCallStarted:
    """The reply asks for a tool; the call is an item of its own. Its result is asked of the client, or of the bot.

    ``previous_item_id``: None also where nothing precedes it because its reply is in no conversation.
    """

    at: At
    reply_id: str
    item_id: str
    previous_item_id: str | None
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    at: At
    reply_id: str
    item_id: str
    call_id: str
    delta: str


@dataclass(frozen=True, slots=True)
class ToolCallDone:
    """``arguments``: a JSON object, as text."""

    at: At
    reply_id: str
    item_id: str
    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolCallAdded:
    """A client put a call into the conversation, as history."""

    at: At
    item_id: str
    previous_item_id: str | None
    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolResultAdded:
    at: At
    item_id: str
    previous_item_id: str | None
    call_id: str
    output: str


@dataclass(frozen=True, slots=True)
class KeyPressed:
    """A key of the caller's telephone: one of 0-9, ``*``, ``#``, A-D."""

    at: At
    key: str


@dataclass(frozen=True, slots=True)
class PlayoutProgress:
    """How far a reply got. ``evidence``: where "heard" comes from; ``error_ms``: its bound."""

    at: At
    reply_id: str
    sent_ms: float
    heard_ms: float
    evidence: str
    error_ms: float


@dataclass(frozen=True, slots=True)
class LineLost:
    """There has been no sign of the far end for ``silent_s``. The session stands still: nothing is heard, the turn and
    the reply wait. ``reply_id``: the reply at hand, if any of it was sent; ``heard_ms`` of it were heard."""

    at: At
    silent_s: float
    reply_id: str | None = None
    heard_ms: float | None = None


@dataclass(frozen=True, slots=True)
class LineBack:
    """The far end is there again, after ``lost_s``. The reply at hand goes on from ``resumed_ms``."""

    at: At
    lost_s: float
    reply_id: str | None = None
    resumed_ms: float | None = None


@dataclass(frozen=True, slots=True)
class SessionDraining:
    """The server is stopping: this session is ended in ``deadline_s``, if it has not ended by then."""

    at: At
    deadline_s: float


@dataclass(frozen=True, slots=True)
class ReplyHeld:
    at: At
    reply_id: str


@dataclass(frozen=True, slots=True)
class ReplyResumed:
    at: At
    reply_id: str


@dataclass(frozen=True, slots=True)
class ReplyTruncated:
    """The reply was cut off; ``heard_text`` is what memory keeps of it, give or take ``error_ms`` of sound."""

    at: At
    reply_id: str
    item_id: str
    heard_text: str
    heard_ms: float
    evidence: str
    error_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one reply, as its thinker counted them. ``cached``: of the input's."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class ReplyFinished:
    """``status``: completed, cancelled (the user or a client took the floor), incomplete (``max_output_tokens``) or
    failed (``error`` says why). ``usage``: of agents that count."""

    at: At
    reply_id: str
    item_id: str
    status: str
    text: str
    audio_ms: float
    error: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class AsideStarted:
    """A word of ours that does not take the floor is being spoken."""

    at: At
    kind: AsideKind
    text: str


@dataclass(frozen=True, slots=True)
class TurnTraced:
    """The latency waterfall of one turn. All times in ms after the user's last voiced sample.

    ``spans``: (name, start, end). ``speculative``: the reply was begun before the turn was committed.
    """

    at: At
    item_id: str
    reply_id: str
    marks: tuple[tuple[str, float], ...]
    spans: tuple[tuple[str, float, float], ...]
    first_packet_ms: float
    voice_to_voice_ms: float
    end_of_turn_ms: float
    speculative: bool


@dataclass(frozen=True, slots=True)
class ErrorRaised:
    """Something the client should know; the session goes on."""

    at: At
    code: str
    message: str
    param: str | None = None
    client_event_id: str | None = None


@dataclass(frozen=True, slots=True)
class SessionClosed:
    at: At
    reason: str


Event = (
    SessionStarted
    | SessionUpdated
    | UserSpeechStarted
    | UserSpeechStopped
    | UserTurnCommitted
    | UserTurnReopened
    | UserTranscriptPartial
    | UserTranscriptFinal
    | IdleTimedOut
    | FloorChanged
    | ItemAdded
    | ReplyStarted
    | ReplyTextAdded
    | ReplyWords
    | ReplyAudioStarted
    | ToolCallStarted
    | ToolCallDelta
    | ToolCallDone
    | ToolCallAdded
    | ToolResultAdded
    | KeyPressed
    | PlayoutProgress
    | LineLost
    | LineBack
    | SessionDraining
    | ReplyHeld
    | ReplyResumed
    | ReplyTruncated
    | ReplyFinished
    | AsideStarted
    | TurnTraced
    | ErrorRaised
    | SessionClosed
)
