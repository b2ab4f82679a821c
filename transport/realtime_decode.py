"""OpenAI Realtime client events, read strictly: bytes to a request, or an error that says what is expected.

Pure functions; the codec in :mod:`duplex.transport.realtime` adds the little memory a session needs.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from duplex.conversation import Role
from duplex.errors import InvalidEventError, TooLargeError, UnsupportedError
from duplex.frames import Image
from duplex.requests import (
    AcknowledgePlayout,
    AddMessage,
    CancelReply,
    ClearInput,
    CommitInput,
    CreateReply,
    RemoveMessage,
    Request,
    TruncateMessage,
)
from duplex.transport.realtime_session import (
    NO_TOOLS,
    Only,
    SessionChange,
    SessionDefaults,
    Table,
    Text,
    as_table,
    as_text,
    check,
    read_session,
    shown,
    suggest,
)

MAX_DEPTH = 16
MAX_VALUES = 20_000
MAX_IMAGES = 8
MAX_IMAGE_PIXELS = 16_000_000
MAX_ID_CHARS = 128


@dataclass(frozen=True, slots=True)
class InputAudio:
    """Decoded ``input_audio_buffer.append``: PCM16LE, an even number of bytes."""

    pcm: bytes


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
        event = json.loads(text, parse_constant=_refuse_constant)
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
        pcm = base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidEventError(f"audio is not base64: {error}.", param="audio") from error
    if len(pcm) % 2:
        raise InvalidEventError(
            f"audio has {len(pcm)} bytes, an odd number. It must be whole samples of 16-bit little-endian PCM, "
            "24 kHz mono; nothing of it was used.",
            param="audio",
        )
    return InputAudio(pcm)


def _item_create(event: Mapping[str, Any], defaults: SessionDefaults) -> Understood:
    if event.get("previous_item_id") is not None:
        raise UnsupportedError(
            "previous_item_id cannot be honoured: items join at the end of the conversation. Leave it out.",
            param="previous_item_id",
        )
    item = as_table(event.get("item"), "item")
    if item.get("type") != "message":
        raise UnsupportedError(
            f'item.type = {shown(item.get("type"))} cannot be honoured. This server takes "message" items.',
            param="item.type",
        )
    try:
        role = Role(item.get("role"))
    except ValueError as error:
        raise InvalidEventError(
            f'item.role must be "user", "assistant" or "system", got {shown(item.get("role"))}.', param="item.role"
        ) from error
    content = item.get("content")
    if not isinstance(content, list) or not content:
        raise InvalidEventError("item.content must be a list of at least one part.", param="item.content")
    texts: list[str] = []
    images: list[Image] = []
    for index, part in enumerate(content):
        path = f"item.content[{index}]"
        kind = as_table(part, path).get("type")
        if kind == _TEXT_PART[role]:
            texts.append(as_text(part.get("text"), f"{path}.text", defaults.max_text_chars))
        elif kind == "input_image" and role is Role.USER:
            if len(images) == MAX_IMAGES:
                raise TooLargeError(f"At most {MAX_IMAGES} images fit into one item.", param=path)
            images.append(_image(part.get("image_url"), f"{path}.image_url", defaults))
        elif kind in ("input_audio", "output_audio"):
            raise UnsupportedError(
                f"{path}.type = {kind!r} cannot be honoured: audio is heard live, through input_audio_buffer.append "
                "or the audio track.",
                param=f"{path}.type",
            )
        else:
            allowed = repr(_TEXT_PART[role]) + (" or 'input_image'" if role is Role.USER else "")
            raise InvalidEventError(f"{path}.type must be {allowed}, got {shown(kind)}.", param=f"{path}.type")
    text = "\n".join(texts)
    if len(text) > defaults.max_text_chars:
        raise TooLargeError(
            f"item.content has {len(text)} characters; at most {defaults.max_text_chars} are taken.",
            param="item.content",
        )
    item_id = _id(item["id"], "item.id") if item.get("id") is not None else None
    return AddMessage(role, text, tuple(images), item_id)


_TEXT_PART = {Role.USER: "input_text", Role.SYSTEM: "input_text", Role.ASSISTANT: "output_text"}


def _item_truncate(event: Mapping[str, Any], defaults: SessionDefaults) -> Understood:
    if event.get("content_index", 0) != 0:
        raise InvalidEventError("content_index must be 0: a reply has one part.", param="content_index")
    return TruncateMessage(_id(event.get("item_id"), "item_id"), _ms(event.get("audio_end_ms"), "audio_end_ms"))


_RESPONSE = Table(
    {
        "instructions": Text(),
        "duplex": Table({"say": Text()}),
        "conversation": Only(("auto", None), 'Replies join the conversation: "auto".'),
        "output_modalities": Only((None, ["audio"], ["text"]), "Set it for the session, with session.update."),
        "metadata": Only((None, {}), "Replies carry no metadata."),
        "input": Only((None,), "Add items with conversation.item.create first."),
        "audio": Only((None, {}), "Set audio for the session, with session.update."),
        "tools": NO_TOOLS,
        "tool_choice": Only(("auto", "none", None), "This server calls no tools yet."),
        "parallel_tool_calls": Only((True, False, None), "true, false or null."),
        "max_output_tokens": Only(("inf", None), 'Replies end where they end: "inf".'),
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
    return CreateReply(asked.get("instructions"), say)


def _response_cancel(event: Mapping[str, Any], defaults: SessionDefaults) -> Understood:
    reply_id = event.get("response_id")
    return CancelReply(None if reply_id is None else _id(reply_id, "response_id"))


def _playback_ack(event: Mapping[str, Any], defaults: SessionDefaults) -> Understood:
    return AcknowledgePlayout(_id(event.get("response_id"), "response_id"), _ms(event.get("played_ms"), "played_ms"))


Reader = Callable[[Mapping[str, Any], SessionDefaults], Understood]

READERS: dict[str, Reader] = {
    "session.update": _session_update,
    "input_audio_buffer.append": _append,
    "input_audio_buffer.commit": lambda event, defaults: CommitInput(),
    "input_audio_buffer.clear": lambda event, defaults: ClearInput(),
    "conversation.item.create": _item_create,
    "conversation.item.retrieve": lambda event, defaults: RetrieveMessage(_id(event.get("item_id"), "item_id")),
    "conversation.item.delete": lambda event, defaults: RemoveMessage(_id(event.get("item_id"), "item_id")),
    "conversation.item.truncate": _item_truncate,
    "response.create": _response_create,
    "response.cancel": _response_cancel,
    "output_audio_buffer.clear": lambda event, defaults: CancelReply(),
    "duplex.playback.ack": _playback_ack,
}


# --- values -----------------------------------------------------------------------------------------


def _id(value: Any, path: str) -> str:
    if not as_text(value, path, MAX_ID_CHARS):
        raise InvalidEventError(f"{path} must not be empty.", param=path)
    return str(value)


def _ms(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise InvalidEventError(f"{path} must be a number of milliseconds, 0 or more; got {shown(value)}.", param=path)
    try:
        return float(value)
    except OverflowError as error:
        raise InvalidEventError(f"{path} is out of range.", param=path) from error


_DATA_URL = re.compile(r"data:image/(?:png|jpeg|jpg);base64,", re.IGNORECASE)


def _image(url: Any, path: str, defaults: SessionDefaults) -> Image:
    """A data URL to a JPEG; a PNG is re-encoded. Takes up to tens of milliseconds: call it off the event loop."""
    from PIL import Image as Pillow

    text = as_text(url, path, defaults.max_event_bytes)
    prefix = _DATA_URL.match(text[:40])
    if prefix is None:
        raise UnsupportedError(
            f"{path} must be a data URL of a JPEG or PNG (data:image/jpeg;base64,...); no other address is fetched.",
            param=path,
        )
    try:
        raw = base64.b64decode(text[prefix.end() :], validate=True)
        with Pillow.open(io.BytesIO(raw), formats=("JPEG", "PNG")) as picture:
            width, height = picture.size
            if width * height > MAX_IMAGE_PIXELS:
                raise TooLargeError(f"{path} has {width}x{height} pixels; at most 16 million are taken.", param=path)
            if picture.format != "JPEG":
                encoded = io.BytesIO()
                picture.convert("RGB").save(encoded, "JPEG", quality=90)
                raw = encoded.getvalue()
            else:
                picture.load()  # a broken picture is the client's news, not the thinker's
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError) as error:  # what Pillow raises
        raise InvalidEventError(f"{path} is not a readable JPEG or PNG: {str(error)[:200]}.", param=path) from error
    return Image(0, raw, width, height)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


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
