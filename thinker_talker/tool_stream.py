"""An endpoint's streamed tool calls, put together: pure, no network.

In a chat-completion stream a call comes in deltas: the first has an index, an id and the function's name, those after
it pieces of the arguments. Servers differ in what they leave out or repeat, so what a delta belongs to is decided so:

* no index: by the id, else the call at hand;
* no name: it goes on with the call of its index (some servers send a fresh id with every piece);
* a name at an index that has one already: another call if its id is another one, or if the arguments of the one at
  hand are complete (some servers number every call 0, some repeat the name with every piece);
* no id, or one that the conversation has already: it gets one of ours. Arguments may be an object instead of text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from .thinker import Call
from .tool_schema import new_call_id


@dataclass(slots=True)
class _Open:
    call_id: str
    their_id: str
    name: str
    arguments: str = ""


class ToolCallStream:
    """Feed it the ``tool_calls`` of every delta. ``began`` and ``piece`` are told at once, in order of the calls.

    A call is told only when the one before it has ended: when the next begins and it is complete, or when ``close`` is
    called. ``ended`` is given each. Raises ``ValueError`` for a delta that is none.
    """

    def __init__(
        self,
        taken_ids: Collection[str],
        *,
        began: Callable[[str, str], object],
        piece: Callable[[str, str], object],
        ended: Callable[[Call], object],
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        self._taken = set(taken_ids)
        self._began, self._piece, self._ended, self._new_id = began, piece, ended, new_id
        self._by_index: dict[int, _Open] = {}
        self._order: list[_Open] = []  # the first is told as it comes; the others wait for it to end
        self.count = 0

    def feed(self, deltas: Any) -> None:
        if not isinstance(deltas, list):
            raise ValueError(f"tool_calls is {type(deltas).__name__}, not a list")
        for delta in deltas:
            if not isinstance(delta, Mapping):
                raise ValueError(f"a tool call is {type(delta).__name__}, not an object")
            self._feed(delta)

    def close(self, *, whole: bool = True) -> None:
        """The stream has ended, and so have all calls; if it was cut off (not ``whole``), those that are complete."""
        while self._order and (whole or complete(self._order[0].arguments)):
            self._end_first()

    def _feed(self, delta: Mapping[str, Any]) -> None:
        function = delta.get("function") or {}
        name, their_id = str(function.get("name") or ""), str(delta.get("id") or "")
        pieces = function.get("arguments")
        text = pieces if isinstance(pieces, str) else "" if pieces is None else json.dumps(pieces)
        index = delta.get("index")
        if not isinstance(index, int):
            index = next((i for i, call in self._by_index.items() if their_id and call.their_id == their_id), None)
            if index is None:
                index = max(self._by_index, default=-1) + (1 if name or not self._by_index else 0)
        call = self._by_index.get(index)
        if call is None or (name and self._is_another(call, their_id, text)):
            if not name:
                raise ValueError("a tool call begins without a name")
            self._begin(index, their_id, name, text)
        elif text:
            call.arguments += text
            if self._order and call is self._order[0]:
                self._piece(call.call_id, text)

    @staticmethod
    def _is_another(call: _Open, their_id: str, text: str) -> bool:
        if call.arguments and not complete(call.arguments):
            return False  # whatever it is called, this must be the rest of it
        if their_id and call.their_id and their_id != call.their_id:
            return True
        return complete(call.arguments) and text.lstrip().startswith("{")

    def _begin(self, index: int, their_id: str, name: str, text: str) -> None:
        call_id = their_id if their_id and len(their_id) <= 64 and their_id not in self._taken else self._new_id()
        self._taken.add(call_id)
        self.count += 1
        call = self._by_index[index] = _Open(call_id, their_id, name, text)
        self._order.append(call)
        if len(self._order) == 1:
            self._tell_first()
        elif len(self._order) == 2 and complete(self._order[0].arguments):
            self._end_first()  # servers send calls one after the other; a complete one has nothing to come

    def _tell_first(self) -> None:
        call = self._order[0]
        self._began(call.call_id, call.name)
        if call.arguments:
            self._piece(call.call_id, call.arguments)

    def _end_first(self) -> None:
        call = self._order.pop(0)
        if not call.arguments.strip():  # a tool without parameters
            call.arguments = "{}"
            self._piece(call.call_id, "{}")
        self._ended(Call(call.call_id, call.name, call.arguments))
        if self._order:
            self._tell_first()


def complete(arguments: str) -> bool:
    """Whether that is a JSON object already, and not its beginning."""
    try:
        return isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        return False


_WRITTEN = ("<tool_call", "<|tool", "[TOOL_CALLS]", "<function", "<|python_tag|>", '{"name"', '{"tool')


class SpokenText:
    """Tells text that is to be spoken from a call that the server did not recognise as one, by how it begins."""

    def __init__(self) -> None:
        self._held: str | None = ""

    def feed(self, delta: str) -> str:
        """What may be spoken now. Raises ``ValueError`` when it turns out to be a call, written out as text."""
        if self._held is None:
            return delta
        self._held += delta
        seen = "".join(self._held.split()) if self._held.lstrip().startswith("{") else self._held.lstrip()
        if any(seen.startswith(mark) for mark in _WRITTEN):
            raise ValueError("a tool call written out as text")
        if any(mark.startswith(seen) for mark in _WRITTEN):
            return ""
        text, self._held = self._held, None
        return text

    def close(self) -> str:
        text, self._held = self._held or "", None
        return text
