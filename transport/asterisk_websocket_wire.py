"""What Asterisk's ``chan_websocket`` says and understands in text messages, in both of its formats. Sans-I/O.

Binary messages are sound in the call's format. Text messages are control: events from Asterisk, commands to it. The
older format is one line, ``EVENT key:value key:value``; the newer one is a JSON object with ``event`` or ``command``.
Which of them a call uses is Asterisk's choice (``chan_websocket.conf``, or ``f(json)`` in the dial string); the first
message, ``MEDIA_START``, shows it, and we answer alike. Commands are case-sensitive and at most 128 bytes long.

Written after the documentation of Asterisk 23 and ``channels/chan_websocket.c`` of 22.6 to 22.10.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from duplex.errors import InvalidEventError, TooLargeError

MAX_EVENT_CHARS = 64 * 1024  # the variables of a channel travel in MEDIA_START
MAX_COMMAND_BYTES = 128
KEYS = frozenset("0123456789*#ABCD")

RATES_HZ = {
    "ulaw": 8_000,
    "alaw": 8_000,
    "slin": 8_000,
    "slin12": 12_000,
    "slin16": 16_000,
    "slin24": 24_000,
    "slin32": 32_000,
    "slin44": 44_100,
    "slin48": 48_000,
    "slin96": 96_000,
    "slin192": 192_000,
}
"""The formats whose bytes are samples. The others (opus, g729, speex) come in packets of their own."""


class ControlFormat(Enum):
    PLAIN = "plain-text"
    JSON = "json"


class Command(Enum):
    ANSWER = "ANSWER"
    HANG_UP = "HANGUP"
    START_BUFFERING = "START_MEDIA_BUFFERING"
    STOP_BUFFERING = "STOP_MEDIA_BUFFERING"
    MARK = "MARK_MEDIA"
    FLUSH = "FLUSH_MEDIA"
    PAUSE = "PAUSE_MEDIA"
    CONTINUE = "CONTINUE_MEDIA"
    REPORT_DRAINED = "REPORT_QUEUE_DRAINED"
    GET_STATUS = "GET_STATUS"


_WITH_ID = (Command.MARK, Command.STOP_BUFFERING)


# --- events -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MediaStart:
    """The call's first message. ``frame_bytes`` of ``media_format`` are ``ptime_ms``. ``variables``: JSON only."""

    connection_id: str
    channel: str
    channel_id: str
    media_format: str
    frame_bytes: int
    ptime_ms: int
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Xoff:
    """Its queue is nearly full: what is sent now may be lost."""


@dataclass(frozen=True, slots=True)
class Xon:
    pass


@dataclass(frozen=True, slots=True)
class MarkProcessed:
    """All that was sent before the mark has left its queue."""

    correlation_id: str


@dataclass(frozen=True, slots=True)
class BufferingCompleted:
    correlation_id: str


@dataclass(frozen=True, slots=True)
class QueueDrained:
    pass


@dataclass(frozen=True, slots=True)
class KeyPressed:
    key: str


@dataclass(frozen=True, slots=True)
class Status:
    queue_length: int
    xon_level: int
    xoff_level: int
    queue_full: bool
    bulk_media: bool
    media_paused: bool


@dataclass(frozen=True, slots=True)
class FarError:
    """A command of ours that it could not carry out."""

    text: str


Event = MediaStart | Xoff | Xon | MarkProcessed | BufferingCompleted | QueueDrained | KeyPressed | Status | FarError


# --- reading ----------------------------------------------------------------------------------------


def read(text: str) -> tuple[Event, ControlFormat]:
    """One text message, and the format it is in. Raises ``InvalidEventError`` naming the event and its field."""
    if len(text) > MAX_EVENT_CHARS:
        raise TooLargeError(f"A control message has {len(text)} characters; at most {MAX_EVENT_CHARS} are read.")
    text = text.strip()
    if text.startswith("{"):
        return _read_json(text), ControlFormat.JSON
    return _read_plain(text), ControlFormat.PLAIN


def _read_json(text: str) -> Event:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidEventError(f"A control message is not JSON: {text[:80]!r}.") from error
    name = message.get("event")
    if not isinstance(name, str):
        raise InvalidEventError(f"A control message has no event: {text[:80]!r}.", param="event")
    return _event(name, message)


_PAIR = re.compile(r"(?:^|\s)([a-z_]+):")
_BARE_ID = ("MEDIA_MARK_PROCESSED", "MEDIA_BUFFERING_COMPLETED")


def _read_plain(text: str) -> Event:
    name, _, rest = text.partition(" ")
    if name in _BARE_ID and not rest.startswith("correlation_id:"):
        return _event(name, {"correlation_id": rest.strip()})
    if name == "ERROR":  # the last field is a sentence, which may hold anything
        return FarError(rest.partition("error_text:")[2] or rest)
    names = list(_PAIR.finditer(rest))
    ends = [following.start() for following in names[1:]] + [len(rest)]
    return _event(name, {match[1]: rest[match.end() : end].strip() for match, end in zip(names, ends, strict=False)})


def _event(name: str, fields: Mapping[str, Any]) -> Event:
    make = _EVENTS.get(name)
    if make is None:
        known = ", ".join(sorted(_EVENTS))
        raise InvalidEventError(f"Nobody knows the event {name[:40]!r}. Known are: {known}.", param="event")
    return make(_Fields(name, fields))


class _Fields:
    """The fields of one event, each checked as it is taken. Numbers and truth may come as text."""

    def __init__(self, event: str, fields: Mapping[str, Any]) -> None:
        self._event, self._fields = event, fields

    def text(self, name: str, default: str | None = None) -> str:
        value = self._fields.get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, "text", value)
        return value

    def number(self, name: str, default: int | None = None) -> int:
        value = self._fields.get(name, default)
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 9:
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._wrong(name, "a number", value)
        return value

    def truth(self, name: str) -> bool:
        value = self._fields.get(name)
        if isinstance(value, str) and value in ("true", "false"):
            return value == "true"
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false", value)
        return value

    def variables(self) -> Mapping[str, str]:
        given = self._fields.get("channel_variables")
        return {str(k): v for k, v in given.items() if isinstance(v, str)} if isinstance(given, dict) else {}

    def key(self) -> str:
        value = self.text("digit").upper()
        if value not in KEYS or len(value) != 1:
            raise self._wrong("digit", "one of 0 to 9, *, #, A to D", value)
        return value

    def _wrong(self, name: str, wanted: str, value: object) -> InvalidEventError:
        got = "it is not there" if value is None else f"it is {str(value)[:40]!r}"
        return InvalidEventError(f"{self._event}: {name} should be {wanted}; {got}.", param=name)


def _media_start(fields: _Fields) -> MediaStart:
    return MediaStart(
        connection_id=fields.text("connection_id", ""),
        channel=fields.text("channel", ""),
        channel_id=fields.text("channel_id", ""),
        media_format=fields.text("format"),
        frame_bytes=fields.number("optimal_frame_size"),
        ptime_ms=fields.number("ptime", 20),
        variables=fields.variables(),
    )


def _status(fields: _Fields) -> Status:
    return Status(
        queue_length=fields.number("queue_length"),
        xon_level=fields.number("xon_level"),
        xoff_level=fields.number("xoff_level"),
        queue_full=fields.truth("queue_full"),
        bulk_media=fields.truth("bulk_media"),
        media_paused=fields.truth("media_paused"),
    )


_EVENTS: dict[str, Callable[[_Fields], Event]] = {
    "MEDIA_START": _media_start,
    "MEDIA_XOFF": lambda fields: Xoff(),
    "MEDIA_XON": lambda fields: Xon(),
    "MEDIA_MARK_PROCESSED": lambda fields: MarkProcessed(fields.text("correlation_id", "")),
    "MEDIA_BUFFERING_COMPLETED": lambda fields: BufferingCompleted(fields.text("correlation_id", "")),
    "QUEUE_DRAINED": lambda fields: QueueDrained(),
    "DTMF_END": lambda fields: KeyPressed(fields.key()),
    "STATUS": _status,
    "ERROR": lambda fields: FarError(fields.text("error_text", "")),
}


def check_media(start: MediaStart) -> None:
    """Raises ``InvalidEventError`` where the call's sound is in a form that cannot be taken."""
    rate_hz = RATES_HZ.get(start.media_format)
    if rate_hz is None:
        raise InvalidEventError(
            f"MEDIA_START: format is {start.media_format[:40]!r}. Name one of {', '.join(RATES_HZ)} in the dial "
            "string, as Dial(WebSocket/duplex/c(slin16)).",
            param="format",
        )
    expected = rate_hz // 50 * (1 if start.media_format in ("ulaw", "alaw") else 2)
    if (start.ptime_ms, start.frame_bytes) != (20, expected):
        raise InvalidEventError(
            f"MEDIA_START: {start.frame_bytes} bytes of {start.media_format} every {start.ptime_ms} ms; "
            f"only {expected} every 20 ms are taken. In passthrough mode (p in the dial string) there is no frame "
            "size: leave the p out.",
            param="optimal_frame_size",
        )


# --- writing ----------------------------------------------------------------------------------------


def write(command: Command, control: ControlFormat, correlation_id: str = "") -> str:
    """One command as a text message. ``correlation_id`` comes back with what it leads to; without spaces."""
    if correlation_id and command not in _WITH_ID:
        raise ValueError(f"{command.value} takes no correlation_id")
    if control is ControlFormat.PLAIN:
        text = f"{command.value} {correlation_id}".rstrip()
    else:
        message = {"command": command.value}
        if correlation_id:
            message["correlation_id"] = correlation_id
        text = json.dumps(message, separators=(",", ":"))
    if len(text.encode()) > MAX_COMMAND_BYTES:
        raise ValueError(f"Asterisk reads commands of at most {MAX_COMMAND_BYTES} bytes: {text[:60]}…")
    return text
