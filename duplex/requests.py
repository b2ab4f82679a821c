"""What a client may ask of a session. Transports translate their wire's words into these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from duplex.agent import AgentSettings, Tool, ToolChoice
from duplex.conversation import Item, Role
from duplex.frames import Image


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """Fields that are ``None`` stay as they are, but for those that ``reset`` names: they become ``None`` again."""

    settings: AgentSettings
    reset: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CommitInput:
    """The client says the user's turn is over."""


@dataclass(frozen=True, slots=True)
class ClearInput:
    """Forget what the open turn holds."""


ROOT = "root"
"""As ``after``: before everything else."""


@dataclass(frozen=True, slots=True)
class AddMessage:
    """``after``: the item it is to follow, or :data:`ROOT`; the end without it."""

    role: Role
    text: str
    images: tuple[Image, ...] = ()
    item_id: str | None = None
    after: str | None = None


@dataclass(frozen=True, slots=True)
class AddToolCall:
    """A call that was made before, as history. Its result may follow."""

    call_id: str
    name: str
    arguments: str
    item_id: str | None = None
    after: str | None = None


@dataclass(frozen=True, slots=True)
class AddToolResult:
    """What a tool answered. It is known to the next reply; ``CreateReply`` asks for that."""

    call_id: str
    output: str
    item_id: str | None = None
    after: str | None = None


@dataclass(frozen=True, slots=True)
class PressKey:
    """The caller pressed a key of their telephone: one of 0-9, ``*``, ``#``, A-D."""

    key: str


@dataclass(frozen=True, slots=True)
class LoseLine:
    """A door has had no sign of the far end for ``silent_s``: nobody hears what is said, until ``RegainLine``."""

    silent_s: float


@dataclass(frozen=True, slots=True)
class RegainLine:
    """The far end is there again. ``delivered``: what was sent to it before arrived after all."""

    delivered: bool = False


@dataclass(frozen=True, slots=True)
class AnnounceEnd:
    """The server is stopping: tell the client that the session ends in ``deadline_s`` at the latest."""

    deadline_s: float


@dataclass(frozen=True, slots=True)
class RemoveMessage:
    item_id: str


@dataclass(frozen=True, slots=True)
class ItemReference:
    """An item of the conversation, by its id."""

    item_id: str


@dataclass(frozen=True, slots=True)
class CreateReply:
    """Speak now, to the conversation as it stands; or say exactly ``say``, if that is given.

    What is None is as in the session's settings. ``silent``: text alone. ``input``: reply to these items, and not to
    the conversation. ``in_conversation`` False: the reply is not remembered; if it is silent too, it may be made
    beside another. ``labels``: the client's own words for
    it, which come back with what is told of it.
    """

    instructions: str | None = None
    say: str | None = None
    tools: tuple[Tool, ...] | None = None
    tool_choice: ToolChoice | None = None
    silent: bool | None = None
    max_output_tokens: int | None = None
    input: tuple[Item | ItemReference, ...] | None = None
    in_conversation: bool = True
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class CancelReply:
    """Stop the reply that is being made or spoken; ``None`` means whichever that is."""

    reply_id: str | None = None


@dataclass(frozen=True, slots=True)
class ClearOutput:
    """Stop what can be heard now. Nothing happens if nothing can."""


@dataclass(frozen=True, slots=True)
class TruncateMessage:
    """The client's own word on how much of an item was played."""

    item_id: str
    audio_end_ms: float


@dataclass(frozen=True, slots=True)
class AcknowledgePlayout:
    """The client's playout clock: ``played_ms`` of the reply have left its speaker."""

    reply_id: str
    played_ms: float


Request = (
    UpdateSettings
    | CommitInput
    | ClearInput
    | AddMessage
    | AddToolCall
    | AddToolResult
    | PressKey
    | RemoveMessage
    | CreateReply
    | CancelReply
    | ClearOutput
    | TruncateMessage
    | AcknowledgePlayout
    | LoseLine
    | RegainLine
    | AnnounceEnd
)
