"""What the caller said and typed, as a bot takes it: whole turns and keys, in order. Pure; fed with events.

A turn counts once it is over and its words are known. One that is reopened (the caller went on) is taken back, and
comes again with all its words. Bounded: past ``limit`` the oldest go, and are counted.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from duplex import events as ev


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a turn. ``number``: counts everything heard in this call."""

    number: int
    item_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Key:
    number: int
    key: str


class Hearing:
    """``take`` every event of the session; ``next`` and ``keys`` give what there is."""

    def __init__(self, limit: int = 64) -> None:
        self.dropped = 0
        self.count = 0
        """How much was heard so far."""
        self._limit = limit
        self._closing: str | None = None
        self._heard: deque[Words | Key] = deque()
        self._committed: deque[str] = deque(maxlen=4)  # turns whose words are still to come

    @property
    def awaiting_words(self) -> bool:
        """A turn is over, and what was said in it is not known yet."""
        return bool(self._committed)

    def __bool__(self) -> bool:
        return bool(self._heard)

    def take(self, event: ev.Event) -> None:
        match event:
            case ev.UserTurnCommitted(item_id=item_id):
                self._committed.append(item_id)
            case ev.UserTurnReopened(item_id=item_id):
                self._no_longer(item_id)
                kept = [h for h in self._heard if not (isinstance(h, Words) and h.item_id == item_id)]
                self._heard = deque(kept)
            case ev.UserTranscriptFinal(item_id=item_id, text=text) if item_id in self._committed:
                self._no_longer(item_id)
                if text.strip():
                    self._put(Words(self.count + 1, item_id, text.strip()))
            case ev.KeyPressed(key=key):
                self._put(Key(self.count + 1, key))
            case _:
                pass

    def _no_longer(self, item_id: str) -> None:
        if item_id in self._committed:
            self._committed.remove(item_id)

    def full(self, closing: str) -> None:
        """What was typed is complete; the key ``closing``, if it is the next, only says so too."""
        if not self._heard:
            self._closing = closing
        elif isinstance(first := self._heard[0], Key) and first.key == closing:
            self._heard.popleft()

    def _put(self, heard: Words | Key) -> None:
        closing, self._closing = self._closing, None
        if isinstance(heard, Key) and heard.key == closing:
            return
        self.count += 1
        if len(self._heard) >= self._limit:
            self._heard.popleft()
            self.dropped += 1
        self._heard.append(heard)

    def next(self) -> Words | Key | None:
        return self._heard.popleft() if self._heard else None

    def next_key(self) -> str | None:
        """The next key. Words that were said before it are let go: somebody who types is not talking to us."""
        while self._heard:
            heard = self._heard.popleft()
            if isinstance(heard, Key):
                return heard.key
        return None

    def key_since(self, count: int) -> bool:
        """Whether a key was pressed after ``count`` things were heard."""
        return any(isinstance(heard, Key) and heard.number > count for heard in self._heard)

    def forget_words(self, until: int) -> None:
        """Words among the first ``until`` things heard are nobody's answer any more. Keys stay: people type ahead."""
        self._heard = deque(h for h in self._heard if isinstance(h, Key) or h.number > until)
