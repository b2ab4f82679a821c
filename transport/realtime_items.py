"""Conversation items on the wire: messages, function calls and their outputs, read and shown."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

from duplex.conversation import Item, Message, Role, ToolCall, ToolResult
from duplex.errors import InvalidEventError, TooLargeError, UnsupportedError
from duplex.frames import Image
from duplex.requests import ItemReference
from duplex.transport.realtime_fields import SessionDefaults, as_id, as_list, as_table, as_text, shown

Wire = dict[str, Any]

MAX_PARTS = 64
MAX_IMAGES = 8
MAX_IMAGE_PIXELS = 16_000_000
MAX_JPEG_SCANS = 100
"""Encoders make ten. Each is a pass over the whole picture, however few bytes it has: 30 are enough for 2 ms."""
_TEXT_PART = {Role.USER: "input_text", Role.SYSTEM: "input_text", Role.ASSISTANT: "output_text"}


def read_item(value: Any, path: str, defaults: SessionDefaults) -> Item:
    """An item a client made. Its ``item_id`` is empty where the client gave none. Raises ``ProtocolError``'s kinds."""
    item = as_table(value, path)
    item_id = as_id(item["id"], f"{path}.id") if item.get("id") is not None else ""
    match item.get("type"):
        case "message":
            return _read_message(item, item_id, path, defaults)
        case "function_call":
            return ToolCall(
                item_id,
                # A call without a name of its own is named by its item, so that a result can refer to it.
                as_id(item["call_id"], f"{path}.call_id") if item.get("call_id") is not None else item_id,
                as_text(item.get("name"), f"{path}.name", 64),
                as_text(item.get("arguments"), f"{path}.arguments", defaults.max_text_chars),
            )
        case "function_call_output":
            call_id = as_id(item.get("call_id"), f"{path}.call_id")
            return ToolResult(item_id, call_id, as_text(item.get("output"), f"{path}.output", defaults.max_text_chars))
        case other:
            raise UnsupportedError(
                f'{path}.type = {shown(other)} cannot be honoured. This server takes "message", "function_call" and '
                '"function_call_output" items.',
                param=f"{path}.type",
            )


def read_input(value: Any, path: str, defaults: SessionDefaults) -> tuple[Item | ItemReference, ...] | None:
    """``response.input``: items of its own, or references to those of the conversation; None for null."""
    if value is None:
        return None
    items: list[Item | ItemReference] = []
    for index, given in enumerate(as_list(value, path, 400)):
        where = f"{path}[{index}]"
        if as_table(given, where).get("type") == "item_reference":
            items.append(ItemReference(as_id(given.get("id"), f"{where}.id")))
        else:
            items.append(read_item({"id": f"input_{index}", **given}, where, defaults))
    return tuple(items)


def _read_message(item: Wire, item_id: str, path: str, defaults: SessionDefaults) -> Message:
    try:
        role = Role(item.get("role"))
    except ValueError as error:
        raise InvalidEventError(
            f'{path}.role must be "user", "assistant" or "system", got {shown(item.get("role"))}.', param=f"{path}.role"
        ) from error
    content = item.get("content")
    if not isinstance(content, list) or not content:
        raise InvalidEventError(f"{path}.content must be a list of at least one part.", param=f"{path}.content")
    texts: list[str] = []
    images: list[Image] = []
    for index, part in enumerate(as_list(content, f"{path}.content", MAX_PARTS)):
        where = f"{path}.content[{index}]"
        kind = as_table(part, where).get("type")
        if kind == _TEXT_PART[role]:
            texts.append(as_text(part.get("text"), f"{where}.text", defaults.max_text_chars))
        elif kind == "input_image" and role is Role.USER:
            if len(images) == MAX_IMAGES:
                raise TooLargeError(f"At most {MAX_IMAGES} images fit into one item.", param=where)
            images.append(_read_image(part.get("image_url"), f"{where}.image_url", defaults))
        elif kind in ("input_audio", "output_audio"):
            raise UnsupportedError(
                f"{where}.type = {kind!r} cannot be honoured: audio is heard live, through input_audio_buffer.append "
                "or the audio track.",
                param=f"{where}.type",
            )
        else:
            allowed = repr(_TEXT_PART[role]) + (" or 'input_image'" if role is Role.USER else "")
            raise InvalidEventError(f"{where}.type must be {allowed}, got {shown(kind)}.", param=f"{where}.type")
    text = "\n".join(texts)
    if len(text) > defaults.max_text_chars:
        raise TooLargeError(
            f"{path}.content has {len(text)} characters; at most {defaults.max_text_chars} are taken.",
            param=f"{path}.content",
        )
    return Message(item_id, role, text, tuple(images))


_DATA_URL = re.compile(r"data:image/(?:png|jpeg|jpg);base64,", re.IGNORECASE)


def _read_image(url: Any, path: str, defaults: SessionDefaults) -> Image:
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
        if raw.startswith(b"\xff\xd8") and raw.count(b"\xff\xda") > MAX_JPEG_SCANS:
            raise TooLargeError(f"{path} has more than {MAX_JPEG_SCANS} scans. Save it as a plain JPEG.", param=path)
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


# --- shown ------------------------------------------------------------------------------------------


def message_object(item_id: str, role: str, content: Wire | None, status: str = "completed") -> Wire:
    return {
        "id": item_id,
        "object": "realtime.item",
        "type": "message",
        "status": status,
        "role": role,
        "content": [] if content is None else [content],
    }


def call_object(item_id: str, call_id: str, name: str, arguments: str, status: str = "completed") -> Wire:
    return {
        "id": item_id,
        "object": "realtime.item",
        "type": "function_call",
        "status": status,
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
    }


def result_object(item_id: str, call_id: str, output: str) -> Wire:
    return {
        "id": item_id,
        "object": "realtime.item",
        "type": "function_call_output",
        "status": "completed",
        "call_id": call_id,
        "output": output,
    }
