"""The events a client was sent lately, to be sent again to one that comes back and says which it had last.

Events carry ids that count up within a session (``event_17``). Sound is not kept: what was not heard is said again by
the session itself.
"""

from __future__ import annotations

from collections import deque

from duplex.errors import InvalidEventError

_PREFIX = "event_"


def number_of(event_id: object) -> int:
    """Which event of its session that is. Raises ``InvalidEventError``."""
    if isinstance(event_id, str) and event_id.startswith(_PREFIX):
        digits = event_id[len(_PREFIX) :]
        if digits.isascii() and digits.isdigit() and len(digits) <= 18:
            return int(digits)
    message = 'last_event_id must be the event_id of an event of ours, as "event_17".'
    raise InvalidEventError(message, param="last_event_id")


class EventRing:
    """Holds the last ``max_events``, and ``max_chars`` of text."""

    def __init__(self, max_events: int = 1024, max_chars: int = 2 * 1024 * 1024) -> None:
        self._max_events, self._max_chars = max_events, max_chars
        self._kept: deque[tuple[int, str]] = deque()
        self._chars = 0
        self._forgotten = 0  # the newest that is kept no more

    def keep(self, number: int, text: str) -> None:
        """An event was sent, as ``text``."""
        self._kept.append((number, text))
        self._chars += len(text)
        while self._kept and (len(self._kept) > self._max_events or self._chars > self._max_chars):
            self._forgotten, old = self._kept.popleft()
            self._chars -= len(old)

    def take_after(self, number: int) -> tuple[list[tuple[int, str]], bool]:
        """Those that came after that one, in order, to be sent again; and whether that is all of them."""
        taken: list[tuple[int, str]] = []
        while self._kept and self._kept[-1][0] > number:
            taken.append(self._kept.pop())
            self._chars -= len(taken[-1][1])
        return taken[::-1], self._forgotten <= number
