"""One reply of an endpoint, put together from the events of its stream. No network.

A model can ask for what cannot be done: a tool nobody declared, arguments without what is required, half an object.
It is told so as a tool's answer, and then gets to say in words what it could not do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from duplex.agent import ToolChoice

from .openai_wire import reported_usage
from .thinker import Call, Message, ThinkRequest, Thought, Usage
from .tool_schema import complaint
from .tool_stream import SpokenText, ToolCallStream, complete


class WrittenCallError(ValueError):
    """A call came as text that would have been spoken."""


class Answer:
    """One reply as far as it came, over one request or, after a call that could not be made, two."""

    def __init__(self, request: ThinkRequest, thought: Thought) -> None:
        self.request, self.thought = request, thought
        self.reason, self.usage = "", Usage()
        self.began = self.called = False
        self._counted = Usage()  # by the requests before this one
        self._wrong: tuple[Call, str] | None = None
        self._known = {tool.name: tool for tool in request.callable_tools}
        self._told = ""  # the call that was told last
        self._spoken = SpokenText() if self._known else None
        self._calls = self._new_calls()

    def _new_calls(self) -> ToolCallStream:
        taken = {call.call_id for message in self.request.messages for call in message.calls}
        return ToolCallStream(taken, began=self._call_began, piece=self._call_piece, ended=self._call_ended)

    def take(self, event: Mapping[str, Any]) -> bool:
        """An event of the stream. True if there was something of the reply in it."""
        came = False
        for choice in event.get("choices") or []:
            delta = choice.get("delta") or {}
            if text := delta.get("content") or "":
                came = True
                self._say(text)
            if calls := delta.get("tool_calls"):
                came = True
                self._calls.feed(calls)
            self.reason = choice.get("finish_reason") or self.reason
        self.began = self.began or came
        if usage := reported_usage(event.get("usage")):
            self.usage = _sum(self._counted, usage)
        return came

    def close(self) -> None:
        if self._spoken is not None:
            self.thought.text(self._spoken.close())
        self._calls.close(whole=self.reason != "length")

    def told_wrong(self) -> bool:
        """Puts what was wrong with a call into the next request, which may only be answered in words."""
        if self._wrong is None:
            return False
        (call, what), self._wrong = self._wrong, None
        asked = replace(call, arguments=call.arguments if complete(call.arguments) else "{}")
        told = (
            Message("assistant", "", calls=(asked,)),
            Message("tool", f"Error: the call was not made, because {what}. Tell the user.", call_id=call.call_id),
        )
        self.request = replace(
            self.request, messages=(*self.request.messages, *told), tools=(), tool_choice=ToolChoice()
        )
        self.reason, self.began, self._known, self._spoken = "", False, {}, None
        self._counted = self.usage
        self._calls = self._new_calls()
        return True

    def _say(self, text: str) -> None:
        if self._spoken is not None:
            try:
                text = self._spoken.feed(text)
            except ValueError as error:
                raise WrittenCallError(str(error)) from error
        self.thought.text(text)

    def _call_began(self, call_id: str, name: str) -> None:
        if self._spoken is not None:
            self.thought.text(self._spoken.close())
        if name in self._known:
            self._told = call_id
            self.thought.call_began(call_id, name)

    def _call_piece(self, call_id: str, delta: str) -> None:
        if self._told == call_id:
            self.thought.call_arguments(call_id, delta)

    def _call_ended(self, call: Call) -> None:
        tool = self._known.get(call.name)
        what = complaint(tool, call.arguments) if tool is not None else f"there is no tool {call.name!r}"
        if what is None:
            self.called = True
            self.thought.call_end(call.call_id, call.arguments)
        elif self._wrong is None:
            self._wrong = (call, what)


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(
        one.prompt_tokens + other.prompt_tokens,
        one.cached_tokens + other.cached_tokens,
        one.reply_tokens + other.reply_tokens,
    )
