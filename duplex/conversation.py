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


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The agent asked for a tool. ``arguments``: JSON text, as the thinker wrote it."""

    item_id: str
    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool answered to the call ``call_id``: any text, usually JSON."""

    item_id: str
    call_id: str
    output: str


Item = Message | ToolCall | ToolResult


class Conversation:
    """Items in order, by id. Bounded: past ``max_messages`` the oldest leave."""

    def __init__(self, max_messages: int = 400) -> None:
        self._items: dict[str, Item] = {}
        self._max = max_messages

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items.values())

    def get(self, item_id: str) -> Item | None:
        return self._items.get(item_id)

    def put(self, item: Item) -> None:
        """Adds an item, or replaces the one with the same id in its place."""
        self._items[item.item_id] = item
        while len(self._items) > self._max:
            del self._items[next(iter(self._items))]

    def remove(self, item_id: str) -> bool:
        return self._items.pop(item_id, None) is not None

    def truncate(self, item_id: str, text: str) -> Message | None:
        """Keeps only what was heard of an assistant message. Returns the message as it stands now."""
        message = self._items.get(item_id)
        if not isinstance(message, Message):
            return None
        if not text:
            del self._items[item_id]
            return None
        unheard = words_after(message.text, text)
        kept = replace(message, text=text, cut_off=True, unheard=unheard)
        self._items[item_id] = kept
        return kept

    def snapshot(self) -> tuple[Item, ...]:
        return tuple(self._items.values())


def words_after(text: str, heard: str) -> str:
    """What of ``text`` comes after its beginning ``heard``, by words."""
    return " ".join(text.split()[len(heard.split()) :])
