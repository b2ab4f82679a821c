"""OpenAI Realtime client events, read strictly: bytes to a request, or an error that says what is expected.

Pure functions; the codec in :mod:`duplex.transport.realtime` adds the little memory a session needs.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from duplex.conversation import Message, ToolCall, ToolResult
from duplex.errors import InvalidEventError, TooLargeError
from duplex.requests import (
    AcknowledgePlayout,
    AddMessage,
    AddToolCall,
    AddToolResult,
    CancelReply,
    ClearInput,
    ClearOutput,
    CommitInput,
    CreateReply,
    RemoveMessage,
    Request,
    TruncateMessage,
)
from duplex.transport.realtime_fields import (
    Elsewhere,
    Only,
    SessionDefaults,
    Table,
    Text,
    as_id,
    as_ms,
    as_text,
    check,
    is_text,
    shown,
    suggest,
)
from duplex.transport.realtime_items import read_input, read_item
from duplex.transport.realtime_session import (
    MODALITIES,
    PARALLEL,
    SessionChange,
    read_longest,
    read_metadata,
    read_session,
)
from duplex.transport.realtime_tools import read_tool_choice, read_tools

MAX_DEPTH = 16
MAX_VALUES = 20_000


@dataclass(frozen=True, slots=True)
class InputAudio:
    """Decoded ``input_audio_buffer.append``, in the session's input format."""

    data: bytes


@dataclass(frozen=True, slots=True)
class RetrieveMessage:
    item_id: str


Understood = Request | SessionChange | InputAudio | RetrieveMessage


def parse(data: str | bytes, max_bytes: int = 16 * 1024 * 1024) -> dict[str, Any]:
    """One JSON object, bounded in bytes, depth and number of values before anything is built from it.

    Raises ``InvalidEventError`` or ``TooLargeError``.
    """
    if len(data) > max_bytes:
        raise TooLargeError(f"The event has {len(data)} bytes; at most {max_bytes} are taken.")
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
    except UnicodeDecodeError as error:
        raise InvalidEventError("The event is not UTF-8 text. Send one JSON object per message.") from error
    # Sound and pictures are base64, which has none of these, so a long event with many of them is not one of ours.
    if sum(text.count(mark) for mark in ",[{") > MAX_VALUES:
        raise TooLargeError(f"The event has more than {MAX_VALUES} values or commas. Send it in smaller parts.")
    try:
        event = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError as error:
        raise InvalidEventError(f"The event is nested deeper than {MAX_DEPTH} levels.") from error
    except ValueError as error:
        raise InvalidEventError(
            f"The event is not JSON: {str(error)[:200]}. Send one JSON object per message."
        ) from error
    if not isinstance(event, dict):
        raise InvalidEventError(
            f'The event must be a JSON object like {{"type": "response.create"}}, got {shown(event)}.'
        )
    if _deeper_than(event, MAX_DEPTH):
        raise InvalidEventError(f"The event is nested deeper than {MAX_DEPTH} levels.")
    if not is_text(text) or ("\\ud" in text.lower() and not is_text(json.dumps(event, ensure_ascii=False))):
        where = _not_text(event) or ""
        raise InvalidEventError(
            f"{where or 'The event'} holds half a surrogate pair, which is not text.", param=where or None
        )
    return event


def read_event(event: Mapping[str, Any], defaults: SessionDefaults) -> Understood:
    """What a client event asks for. Raises ``ProtocolError``'s kinds, with ``param`` the field at fault."""
    kind = event.get("type")
    if not isinstance(kind, str):
        raise InvalidEventError(f"The event needs a type.{suggest('', READERS)}", param="type")
    reader = READERS.get(kind)
    if reader is None:
        raise InvalidEventError(f"There is no client event {shown(kind)}.{suggest(kind, READERS)}", param="type")
    return reader(event, defaults)


# --- one reader an event ----------------------------------------------------------------------------


def _session_update(event: Mapping[str, Any], defaults: SessionDefaults) -> Understood:
    return read_session(event.get("session"), defaults)


def _append(event: Mapping[str, Any], defaults: SessionDefaults) -> Understood:
    audio = as_text(event.get("audio"), "audio", defaults.max_event_bytes)
    try:
        return InputAudio(base64.b64decode(audio, validate=True))
    except (binascii.Error, ValueError) as error:
        raise InvalidEventError(f"audio is not base64: {error}.", param="audio") from error


def _item_create(event: Mapping[str, Any], defaults: SessionDefaults) -> Understood:
    after = event.get("previous_item_id")
    if after is not None:
        after = as_id(after, "previous_item_id")
    item = read_item(event.get("item"), "item", defaults)
    item_id = item.item_id or None
    match item:
        case Message(role=role, text=text, images=images):
            return AddMessage(role, text, images, item_id, after)
        case ToolCall(call_id=call_id, name=name, arguments=arguments):
            if not call_id:
                raise InvalidEventError("item.call_id is needed, so that a result can name it.", param="item.call_id")
            return AddToolCall(call_id, name, arguments, item_id, after)
        case ToolResult(call_id=call_id, output=output):
            return AddToolResult(call_id, output, item_id, after)


def _item_truncate(event: Mapping[str, Any], defaults: SessionDefaults) -> Understood:
    if event.get("content_index", 0) != 0 or isinstance(event.get("content_index"), bool):
        raise InvalidEventError("content_index must be 0: a reply has one part.", param="content_index")
    return TruncateMessage(as_id(event.get("item_id"), "item_id"), as_ms(event.get("audio_end_ms"), "audio_end_ms"))


_RESPONSE = Table(
    {
        "instructions": Text(),
        "duplex": Table({"say": Text()}),
        "conversation": Only(("auto", "none", None), 'Use "auto" or "none".'),
        "output_modalities": MODALITIES,
        "metadata": Elsewhere(),
        "input": Elsewhere(),
        "audio": Only((None, {}), "Set audio for the session, with session.update."),
        "tools": Elsewhere(),
        "tool_choice": Elsewhere(),
        "parallel_tool_calls": PARALLEL,
        "max_output_tokens": Elsewhere(),
        "prompt": Only((None,), "Put the text into instructions."),
        "reasoning": Only((None,), "The thinker has no such setting."),
    }
)


def _response_create(event: Mapping[str, Any], defaults: SessionDefaults) -> Understood:
    response = event.get("response")
    check(_RESPONSE, response, "response", defaults)
    asked = response or {}
    say = (asked.get("duplex") or {}).get("say")
    if say is not None and not say.strip():
        raise InvalidEventError("response.duplex.say must not be empty.", param="response.duplex.say")
    longest = read_longest(asked.get("max_output_tokens"), "response.max_output_tokens", defaults)
    modalities = asked.get("output_modalities")
    return CreateReply(
        instructions=asked.get("instructions"),
        say=say,
        tools=read_tools(asked.get("tools"), "response.tools", defaults),
        tool_choice=read_tool_choice(asked.get("tool_choice"), "response.tool_choice"),
        silent=None if modalities is None else modalities == ["text"],
        max_output_tokens=longest,
        input=read_input(asked.get("input"), "response.input", defaults),
        in_conversation=asked.get("conversation") != "none",
        labels=read_metadata(asked.get("metadata"), "response.metadata"),
    )


def _response_cancel(event: Mapping[str, Any], defaults: SessionDefaults) -> Understood:
    reply_id = event.get("response_id")
    return CancelReply(None if reply_id is None else as_id(reply_id, "response_id"))


def _playback_ack(event: Mapping[str, Any], defaults: SessionDefaults) -> Understood:
    return AcknowledgePlayout(
        as_id(event.get("response_id"), "response_id"), as_ms(event.get("played_ms"), "played_ms")
    )


Reader = Callable[[Mapping[str, Any], SessionDefaults], Understood]

READERS: dict[str, Reader] = {
    "session.update": _session_update,
    "input_audio_buffer.append": _append,
    "input_audio_buffer.commit": lambda event, defaults: CommitInput(),
    "input_audio_buffer.clear": lambda event, defaults: ClearInput(),
    "conversation.item.create": _item_create,
    "conversation.item.retrieve": lambda event, defaults: RetrieveMessage(as_id(event.get("item_id"), "item_id")),
    "conversation.item.delete": lambda event, defaults: RemoveMessage(as_id(event.get("item_id"), "item_id")),
    "conversation.item.truncate": _item_truncate,
    "response.create": _response_create,
    "response.cancel": _response_cancel,
    "output_audio_buffer.clear": lambda event, defaults: ClearOutput(),
    "duplex.playback.ack": _playback_ack,
}


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _not_text(value: Any, path: str = "") -> str | None:
    """The path of the first text in ``value`` that is none, or of what holds a name that is none; else None."""
    if isinstance(value, str):
        return None if is_text(value) else path
    if isinstance(value, dict):
        if not all(map(is_text, value)):
            return path
        named = [(f"{path}.{name}".lstrip("."), inner) for name, inner in value.items()]
    else:
        named = [(f"{path}[{index}]", inner) for index, inner in enumerate(value if isinstance(value, list) else ())]
    return next((found for at, inner in named if (found := _not_text(inner, at)) is not None), None)


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):  # it could be sent to nobody
        raise ValueError(f"{digits[:40]} is out of range")
    return number


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
