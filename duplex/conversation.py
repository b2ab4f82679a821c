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
    """Items in order, by id. Bounded: past ``max_messages`` the oldest quarter leaves, all at once: a conversation that
    lost one item with every new one would begin differently at every turn, and a thinker would have to read it anew.

    A place can be kept for an item that has no words yet (a turn not understood, a reply not heard); nobody sees it.
    """

    def __init__(self, max_messages: int = 400) -> None:
        self._items: dict[str, Item | None] = {}
        self._max = max_messages

    def __len__(self) -> int:
        return sum(item is not None for item in self._items.values())

    def __iter__(self) -> Iterator[Item]:
        return iter(self.snapshot())

    def __contains__(self, item_id: object) -> bool:
        """Also of a place that is kept."""
        return item_id in self._items

    def get(self, item_id: str) -> Item | None:
        return self._items.get(item_id)

    @property
    def last_id(self) -> str | None:
        """The last item, or the last place that is kept."""
        return next(reversed(self._items), None)

    def keep_place(self, item_id: str) -> None:
        """The next item of that id comes here."""
        self._items.setdefault(item_id, None)

    def put(self, item: Item) -> None:
        """Adds an item, or replaces the one with the same id in its place."""
        self._items[item.item_id] = item
        if len(self._items) > self._max:
            for item_id in list(self._items)[: max(1, self._max // 4)]:
                del self._items[item_id]

    def insert(self, item: Item, after: str | None) -> None:
        """Adds a new item behind the one called ``after``, or before all others."""
        if after != self.last_id:
            items = list(self._items.items())
            index = 0 if after is None else list(self._items).index(after) + 1
            self._items = dict([*items[:index], (item.item_id, item), *items[index:]])
        self.put(item)

    def remove(self, item_id: str) -> bool:
        """Removes an item, or the place that is kept for one."""
        there = item_id in self._items
        self._items.pop(item_id, None)
        return there

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
        return tuple(item for item in self._items.values() if item is not None)


def words_after(text: str, heard: str) -> str:
    """What of ``text`` comes after its beginning ``heard``, by words."""
    return " ".join(text.split()[len(heard.split()) :])
