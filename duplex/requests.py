"""What a client may ask of a session. Transports translate their wire's words into these."""

from __future__ import annotations

from dataclasses import dataclass

from duplex.agent import AgentSettings
from duplex.conversation import Role
from duplex.frames import Image


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """Fields that are ``None`` stay as they are."""

    settings: AgentSettings


@dataclass(frozen=True, slots=True)
class CommitInput:
    """The client says the user's turn is over."""


@dataclass(frozen=True, slots=True)
class ClearInput:
    """Forget what the open turn holds."""


@dataclass(frozen=True, slots=True)
class AddMessage:
    role: Role
    text: str
    images: tuple[Image, ...] = ()
    item_id: str | None = None


@dataclass(frozen=True, slots=True)
class AddToolResult:
    """What a tool answered. It is known to the next reply; ``CreateReply`` asks for that."""

    call_id: str
    output: str
    item_id: str | None = None


@dataclass(frozen=True, slots=True)
class PressKey:
    """The caller pressed a key of their telephone: one of 0-9, ``*``, ``#``, A-D."""

    key: str


@dataclass(frozen=True, slots=True)
class RemoveMessage:
    item_id: str


@dataclass(frozen=True, slots=True)
class CreateReply:
    """Speak now, to the conversation as it stands; or say exactly ``say``, if that is given."""

    instructions: str | None = None
    say: str | None = None


@dataclass(frozen=True, slots=True)
class CancelReply:
    """Stop the reply that is being made or spoken; ``None`` means whichever that is."""

    reply_id: str | None = None


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
    | AddToolResult
    | PressKey
    | RemoveMessage
    | CreateReply
    | CancelReply
    | TruncateMessage
    | AcknowledgePlayout
)
