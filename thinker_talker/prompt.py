"""What the thinker is shown: instructions, what was said and heard so far, and the open turn's words.

A tool's call and its result are shown side by side, as every endpoint demands, where the result came into the
conversation: one that comes late is then the newest thing there is, and gets the answer. Until it comes the call is
shown where it was made, with a note that the result is not there yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from duplex.conversation import Item, Message, Role, ToolCall, ToolResult
from duplex.frames import Image

from . import thinker as th

NOT_YET = "The result is not there yet."
_WORTH_REMEMBERING_WORDS = 3  # a small model that is shown "I'm glad —" says it again
_UNHEARD = "The user interrupted you and did not hear the rest: {}"
_UNHEARD_WORDS = 40
_ROLES: Mapping[Role, th.Role] = {Role.SYSTEM: "system", Role.USER: "user", Role.ASSISTANT: "assistant"}


def prompt(
    system: str, history: Sequence[Item], said: str | None, pictures: tuple[Image, ...], *, tell_unheard: bool
) -> tuple[th.Message, ...]:
    """``said``: the open turn's words, shown with the newest ``pictures``; ``None`` if the user said nothing new.

    A reply that was cut off ends in a dash where it was cut, and ``tell_unheard`` adds what was not heard of it.
    """
    messages = [th.Message("system", system)]
    calls = {item.call_id: item for item in history if isinstance(item, ToolCall)}
    answered = {item.call_id for item in history if isinstance(item, ToolResult)}
    for item in history:
        match item:
            case Message():
                messages += _message(item, tell_unheard)
            case ToolCall(call_id=call_id) if call_id not in answered:
                _add_call(messages, item, NOT_YET)
            case ToolResult(call_id=call_id, output=output) if call_id in calls:
                _add_call(messages, calls.pop(call_id), output)  # popped: a second answer is not shown
    if said is not None:
        messages.append(th.Message("user", said, pictures))
    return tuple(messages)


def _message(message: Message, tell_unheard: bool) -> Iterable[th.Message]:
    if message.cut_off and len(message.text.split()) < _WORTH_REMEMBERING_WORDS:
        return
    text = f"{message.text} —" if message.cut_off else message.text
    yield th.Message(_ROLES[message.role], text, message.images)
    if message.unheard and tell_unheard:
        yield th.Message("system", _UNHEARD.format(_first_words(message.unheard)))


def _add_call(messages: list[th.Message], call: ToolCall, output: str) -> None:
    """A reply that spoke before it called is one message: some models know no two of a role in a row."""
    asked = th.Call(call.call_id, call.name, call.arguments)
    if messages[-1].role == "assistant" and not messages[-1].calls:
        messages[-1] = replace(messages[-1], calls=(asked,))
    else:
        messages.append(th.Message("assistant", "", calls=(asked,)))
    messages.append(th.Message("tool", output, call_id=call.call_id))


def _first_words(text: str) -> str:
    words = text.split()
    return " ".join(words[:_UNHEARD_WORDS]) + (" …" if len(words) > _UNHEARD_WORDS else "")
