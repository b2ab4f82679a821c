"""What was said, as the agent may remember it: the words the person said and the words they heard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from duplex.frames import Image


class Role(Enum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Message:
    """One item of the conversation.

    ``cut_off``: an assistant message of which only ``text`` was heard; ``unheard`` is what it would have gone on
    to say, as far as that is known.
    """

    item_id: str
    role: Role
    text: str
    images: tuple[Image, ...] = ()
    cut_off: bool = False
    unheard: str = ""


class Conversation:
    """Messages in order, by id. Bounded: past ``max_messages`` the oldest leave."""

    def __init__(self, max_messages: int = 400) -> None:
        self._messages: dict[str, Message] = {}
        self._max = max_messages

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[Message]:
        return iter(self._messages.values())

    def get(self, item_id: str) -> Message | None:
        return self._messages.get(item_id)

    def put(self, message: Message) -> None:
        """Adds a message, or replaces the one with the same id in its place."""
        self._messages[message.item_id] = message
        while len(self._messages) > self._max:
            del self._messages[next(iter(self._messages))]

    def remove(self, item_id: str) -> bool:
        return self._messages.pop(item_id, None) is not None

    def truncate(self, item_id: str, text: str) -> Message | None:
        """Keeps only what was heard of an assistant message. Returns the message as it stands now."""
        message = self._messages.get(item_id)
        if message is None:
            return None
        if not text:
            del self._messages[item_id]
            return None
        unheard = words_after(message.text, text)
        self._messages[item_id] = replace(message, text=text, cut_off=True, unheard=unheard)
        return self._messages[item_id]

    def snapshot(self) -> tuple[Message, ...]:
        return tuple(self._messages.values())


def words_after(text: str, heard: str) -> str:
    """What of ``text`` comes after its beginning ``heard``, by words."""
    return " ".join(text.split()[len(heard.split()) :])
