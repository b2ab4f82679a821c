"""Twilio Media Streams' words: JSON messages read strictly, messages to write, and the TwiML that asks for a stream.

Pure. After twilio.com/docs/voice/media-streams/websocket-messages and twilio.com/docs/voice/twiml/stream. What is wrong
raises ``ProtocolError``'s kinds with ``param`` the field; events nobody knows are passed over.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import quoteattr

from duplex.agent import AgentSettings
from duplex.errors import InvalidEventError, ProtocolError, TooLargeError, UnsupportedError
from duplex.transport.realtime_decode import parse

MAX_MESSAGE_CHARS = 64 * 1024
MAX_PAYLOAD_CHARS = 32 * 1024  # 3 s; Twilio sends 20 ms
MAX_PARAMETER_CHARS = 500  # name and value together, says Twilio
KEYS = frozenset("0123456789*#ABCD")
ENCODING, SAMPLE_RATE_HZ, CHANNELS = "audio/x-mulaw", 8000, 1


@dataclass(frozen=True, slots=True)
class Connected:
    pass


@dataclass(frozen=True, slots=True)
class Start:
    stream_sid: str
    call_sid: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Media:
    """``code``: µ-law bytes of the caller's voice."""

    code: bytes


@dataclass(frozen=True, slots=True)
class Dtmf:
    """``key``: one of :data:`KEYS`."""

    key: str


@dataclass(frozen=True, slots=True)
class Mark:
    name: str


@dataclass(frozen=True, slots=True)
class Stop:
    pass


@dataclass(frozen=True, slots=True)
class Other:
    """An event of another day."""

    event: str


Body = Connected | Start | Media | Dtmf | Mark | Stop | Other


@dataclass(frozen=True, slots=True)
class Received:
    """``number``: which message of the stream it is, counted from 1; None where none is given."""

    body: Body
    number: int | None = None


# --- in ---------------------------------------------------------------------------------------------------


def read(text: str) -> Received:
    """One message. Raises ``InvalidEventError``, ``TooLargeError`` or ``UnsupportedError``, naming the field."""
    message = parse(text, MAX_MESSAGE_CHARS)
    event = message.get("event")
    if not isinstance(event, str):
        raise InvalidEventError("A message needs an event, like 'media'.", param="event")
    match event:
        case "connected":
            return Received(Connected())
        case "start":
            body: Body = _start(message)
        case "media":
            body = _media(_table(message, "media"))
        case "dtmf":
            body = _dtmf(_table(message, "dtmf"))
        case "mark":
            body = Mark(_text(_table(message, "mark"), "mark.name"))
        case "stop":
            body = Stop()
        case _:
            body = Other(event[:80])
    return Received(body, _number(message))


def _start(message: Mapping[str, Any]) -> Start:
    start = _table(message, "start")
    stream_sid = _text(start if "streamSid" in start else message, "start.streamSid")
    form = _table(start, "start.mediaFormat")
    expected = (("encoding", ENCODING), ("sampleRate", SAMPLE_RATE_HZ), ("channels", CHANNELS))
    for name, value in expected:
        if form.get(name) != value:
            raise UnsupportedError(
                f"start.mediaFormat.{name} is {_shown(form.get(name))}; here it has to be {value!r}.",
                param=f"start.mediaFormat.{name}",
            )
    tracks = start.get("tracks")
    if isinstance(tracks, list) and "inbound" not in tracks:
        raise UnsupportedError(
            f"start.tracks is {_shown(tracks)}: without 'inbound' nobody can be heard. Use <Connect><Stream>.",
            param="start.tracks",
        )
    call_sid = start.get("callSid")
    given = start.get("customParameters")
    parameters = {
        name: value for name, value in (given.items() if isinstance(given, dict) else ()) if isinstance(value, str)
    }
    return Start(stream_sid, call_sid if isinstance(call_sid, str) else "", parameters)


def _media(media: Mapping[str, Any]) -> Media | Other:
    track = media.get("track", "inbound")
    if track == "outbound":
        return Other("media of the outbound track")  # ourselves
    if track != "inbound":
        raise InvalidEventError(f"media.track is {_shown(track)}; it is 'inbound' or 'outbound'.", param="media.track")
    payload = _text(media, "media.payload", allow_empty=True)
    if len(payload) > MAX_PAYLOAD_CHARS:
        raise TooLargeError(
            f"media.payload has {len(payload)} characters; at most {MAX_PAYLOAD_CHARS} are taken.",
            param="media.payload",
        )
    try:
        return Media(base64.b64decode(payload, validate=True))
    except (binascii.Error, ValueError) as error:
        raise InvalidEventError(f"media.payload is not base64: {error}.", param="media.payload") from error


def _dtmf(dtmf: Mapping[str, Any]) -> Dtmf:
    key = _text(dtmf, "dtmf.digit").upper()
    if key not in KEYS:
        raise InvalidEventError(
            f"dtmf.digit is {_shown(key)}; a telephone has 0 to 9, *, # and A to D.", param="dtmf.digit"
        )
    return Dtmf(key)


def _number(message: Mapping[str, Any]) -> int | None:
    number = message.get("sequenceNumber")
    if number is None:
        return None
    try:
        return int(number) if not isinstance(number, bool | float) and len(str(number)) <= 18 else int("")
    except (TypeError, ValueError) as error:
        raise InvalidEventError(
            f"sequenceNumber is {_shown(number)}; it has to be a whole number.", param="sequenceNumber"
        ) from error


def _table(message: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    table = message.get(path.rpartition(".")[2])
    if not isinstance(table, dict):
        raise InvalidEventError(f"{path} has to be an object, got {_shown(table)}.", param=path)
    return table


def _text(table: Mapping[str, Any], path: str, *, allow_empty: bool = False) -> str:
    text = table.get(path.rpartition(".")[2])
    if not isinstance(text, str) or not (text or allow_empty):
        raise InvalidEventError(f"{path} has to be a text, got {_shown(text)}.", param=path)
    return text


def _shown(value: object) -> str:
    return repr(value)[:80]


class Sequence:
    """The order of messages, by their numbers."""

    def __init__(self) -> None:
        self._last: int | None = None

    def missing(self, number: int | None) -> int:
        """How many messages are missing before this one; -1: it comes too late, or again."""
        if number is None:
            return 0
        last, self._last = self._last, number
        if last is None:
            return 0
        if number <= last:
            self._last = last
            return -1
        return number - last - 1


# --- out --------------------------------------------------------------------------------------------------


def media(stream_sid: str, code: bytes) -> str:
    return _dump({"event": "media", "streamSid": stream_sid, "media": {"payload": base64.b64encode(code).decode()}})


def mark(stream_sid: str, name: str) -> str:
    return _dump({"event": "mark", "streamSid": stream_sid, "mark": {"name": name}})


def clear(stream_sid: str) -> str:
    return _dump({"event": "clear", "streamSid": stream_sid})


def _dump(message: Mapping[str, Any]) -> str:
    return json.dumps(message, separators=(",", ":"))


# --- what a stream asks for -------------------------------------------------------------------------------


def settings_of(
    parameters: Mapping[str, str], voices: tuple[str, ...], max_text_chars: int
) -> tuple[AgentSettings, list[ProtocolError]]:
    """``instructions`` and ``voice`` of a stream's custom parameters, and what was wrong with them.

    What is wrong is left out: a caller is on the line already. ``voices`` empty: the agent checks by itself.
    """
    wrong: list[ProtocolError] = []
    instructions = parameters.get("instructions", "").strip() or None
    if instructions is not None and len(instructions) > max_text_chars:
        where = "start.customParameters.instructions"
        wrong.append(
            TooLargeError(f"{where} has {len(instructions)} characters; at most {max_text_chars}.", param=where)
        )
        instructions = None
    voice = parameters.get("voice") or None
    if voice is not None and voices and voice not in voices:
        where = "start.customParameters.voice"
        message = f"{where} is {_shown(voice)}, which this agent does not have. It has: {', '.join(voices)}."
        wrong.append(UnsupportedError(message, param=where))
        voice = None
    return AgentSettings(instructions=instructions, voice=voice), wrong


def twiml_stream(url: str, parameters: Mapping[str, str]) -> str:
    """Asks for a stream both ways. Raises ``TooLargeError`` for a parameter that Twilio would not pass on."""
    lines = []
    for name, value in parameters.items():
        if len(name) + len(value) > MAX_PARAMETER_CHARS:
            raise TooLargeError(
                f"{name[:40]} and its value have {len(name) + len(value)} characters; Twilio passes on at most "
                f"{MAX_PARAMETER_CHARS}.",
                param=name[:40],
            )
        lines.append(f"<Parameter name={_attribute(name)} value={_attribute(value)}/>")
    stream = f"<Stream url={_attribute(url)}>{''.join(lines)}</Stream>"
    return f'<?xml version="1.0" encoding="UTF-8"?><Response><Connect>{stream}</Connect></Response>'


def twiml_busy() -> str:
    """Turns a call away as an engaged telephone does."""
    return '<?xml version="1.0" encoding="UTF-8"?><Response><Reject reason="busy"/></Response>'


def _attribute(text: str) -> str:
    """Quoted; what XML 1.0 cannot hold at all becomes a question mark."""
    allowed = "".join(
        c if c in "\t\n\r" or (c >= " " and not "\ud800" <= c <= "\udfff" and c not in "\ufffe\uffff") else "?"
        for c in text
    )
    return quoteattr(allowed, {"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"})
