"""The conversation's items as a client puts them in and takes them out, and as replies add calls to it."""

from __future__ import annotations

from collections.abc import Callable

from duplex import events as ev
from duplex import requests as rq
from duplex.agent import ToolCallArguments, ToolCallBegan, ToolCallEnd
from duplex.conversation import Conversation, Item, Message, ToolCall, ToolResult
from duplex.errors import InvalidEventError
from duplex.reply import Call, CallEvent, Reply


class Items:
    """One session's conversation, and what the client is told of it."""

    def __init__(
        self, conversation: Conversation, session_id: str, emit: Callable[[ev.Event], None], at: Callable[[], ev.At]
    ) -> None:
        self.conversation = conversation
        self._emit, self._at = emit, at
        self._name = session_id.removeprefix("sess_")
        self._ids = 0

    def new_id(self, kind: str) -> str:
        """Counted, not random, so that a replay names things alike; unique through the session's own id."""
        self._ids += 1
        return f"{kind}_{self._name}_{self._ids}"

    def follow(self, item_id: str) -> str | None:
        """Keeps the last place for an item that is told now and has its words later. Returns what precedes it."""
        previous = self.conversation.last_id
        self.conversation.keep_place(item_id)
        return previous

    # --- a client's ------------------------------------------------------------------------------

    def add(self, request: rq.AddMessage | rq.AddToolCall | rq.AddToolResult) -> None:
        """Raises ``InvalidEventError`` for an id that is taken, a place or a call that does not exist."""
        if request.item_id is not None and request.item_id in self.conversation:
            raise InvalidEventError(
                f"There is an item {request.item_id!r} already. Leave the id out, or choose another.",
                param="item.id",
                code="item_already_exists",
            )
        previous = self._place(request.after)
        item_id = request.item_id or self.new_id("item")
        item: Item
        told: ev.Event
        match request:
            case rq.AddMessage(role=role, text=text, images=images):
                item = Message(item_id, role, text, images)
                told = ev.ItemAdded(self._at(), item_id, role, text, previous)
            case rq.AddToolCall(call_id=call_id, name=name, arguments=arguments):
                if self._call(call_id) is not None:
                    raise InvalidEventError(f"There is a call {call_id!r} already.", param="item.call_id")
                item = ToolCall(item_id, call_id, name, arguments)
                told = ev.ToolCallAdded(self._at(), item_id, previous, call_id, name, arguments)
            case rq.AddToolResult(call_id=call_id, output=output):
                self._check_awaited(call_id)
                item = ToolResult(item_id, call_id, output)
                told = ev.ToolResultAdded(self._at(), item_id, previous, call_id, output)
        self.conversation.insert(item, previous)
        self._emit(told)

    def remove(self, item_id: str) -> None:
        if not self.conversation.remove(item_id):
            raise InvalidEventError(f"There is no item {item_id!r}.", param="item_id", code="item_not_found")

    def resolve(self, given: tuple[Item | rq.ItemReference, ...]) -> tuple[Item, ...]:
        """What a reply is to be made to, its references replaced by what they refer to."""
        items: list[Item] = []
        for index, one in enumerate(given):
            if isinstance(one, rq.ItemReference):
                found = self.conversation.get(one.item_id)
                if found is None:
                    known = one.item_id in self.conversation
                    why = f"The item {one.item_id!r} has no words" if known else f"There is no item {one.item_id!r}"
                    raise InvalidEventError(f"{why}.", param=f"response.input[{index}].id", code="item_not_found")
                one = found
            items.append(one)
        return tuple(items)

    def _place(self, after: str | None) -> str | None:
        if after is None:
            return self.conversation.last_id
        if after == rq.ROOT:
            return None
        if after not in self.conversation:
            raise InvalidEventError(
                f"There is no item {after!r} to follow. Leave it out to add to the end.",
                param="previous_item_id",
                code="item_not_found",
            )
        return after

    def _call(self, call_id: str) -> ToolCall | None:
        return next((i for i in self.conversation if isinstance(i, ToolCall) and i.call_id == call_id), None)

    def _check_awaited(self, call_id: str) -> None:
        if self._call(call_id) is None:
            raise InvalidEventError(
                f"No call {call_id!r} is known here, or it is not complete yet.",
                param="item.call_id",
                code="call_not_found",
            )
        if any(isinstance(item, ToolResult) and item.call_id == call_id for item in self.conversation):
            raise InvalidEventError(
                f"The call {call_id!r} has its result already; this one was left out.",
                param="item.call_id",
                code="call_already_answered",
            )

    # --- a reply's calls -------------------------------------------------------------------------

    def take_call(self, reply: Reply, event: CallEvent) -> None:
        """What the agent asks of a tool; it is told once the reply is public."""
        if reply.public:
            self._tell_call(reply, event)
        else:
            reply.unannounced_calls.append(event)

    def announce_calls(self, reply: Reply) -> None:
        waiting, reply.unannounced_calls = reply.unannounced_calls, []
        for event in waiting:
            self._tell_call(reply, event)

    def _tell_call(self, reply: Reply, event: CallEvent) -> None:
        reply_id, call_id = reply.reply_id, event.call_id
        if isinstance(event, ToolCallBegan):
            if call_id in reply.calls:
                return
            call = reply.calls[call_id] = Call(self.new_id("item"), event.name)
            previous = self.follow(call.item_id) if reply.in_conversation else None
            self._emit(ev.ToolCallStarted(self._at(), reply_id, call.item_id, previous, call_id, call.name))
            return
        known = reply.calls.get(call_id)
        if known is None or known.done:
            return  # the agent's mistake, and nothing a client could make sense of
        match event:
            case ToolCallArguments(delta=delta):
                known.arguments += delta
                self._emit(ev.ToolCallDelta(self._at(), reply_id, known.item_id, call_id, delta))
            case ToolCallEnd(arguments=arguments):
                known.arguments, known.done = arguments, True
                if reply.in_conversation and known.item_id in self.conversation:
                    self.conversation.put(ToolCall(known.item_id, call_id, known.name, arguments))
                self._emit(ev.ToolCallDone(self._at(), reply_id, known.item_id, call_id, known.name, arguments))
