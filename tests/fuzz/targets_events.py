"""Words of clients and telephone exchanges: Realtime events over both doors, Twilio, Asterisk, AudioSocket, Moshi."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import QueryParams

from duplex.agent import AgentSettings
from duplex.clock import VirtualClock
from duplex.config import SessionConfig
from duplex.errors import ProtocolError
from duplex.events import At, Event, SessionStarted, SessionUpdated
from duplex.metrics import Metrics
from duplex.requests import UpdateSettings
from duplex.session import Session
from duplex.testing import LoopbackLine, ScriptedAgent, ScriptedReply, run_virtual
from duplex.transport import asterisk_websocket_wire, audiosocket_wire, moshi_chat_wire, twilio_wire
from duplex.transport.realtime import RealtimeCodec, SessionDefaults
from duplex.transport.realtime_decode import READERS
from duplex.transport.webrtc_line import WebRtcLine

from .target import MAX_MESSAGE_CHARS, Finding, Target

MAX_ANSWER_CHARS = 16_000
_AT = At(0, 0.0)
_DEFAULTS = SessionDefaults(voices=("default", "other"), max_text_chars=2_000, max_event_bytes=256 * 1024)

EVENTS: tuple[dict[str, Any], ...] = (
    {"type": "session.update", "event_id": "e1", "session": {"type": "realtime", "instructions": "Be kind."}},
    {
        "type": "session.update",
        "session": {
            "type": "realtime",
            "output_modalities": ["audio"],
            "audio": {
                "input": {
                    "format": {"type": "audio/pcmu"},
                    "transcription": {"model": "whisper-1", "language": "en"},
                    "turn_detection": {
                        "type": "server_vad",
                        "threshold": 0.5,
                        "prefix_padding_ms": 300,
                        "silence_duration_ms": 200,
                        "idle_timeout_ms": 5000,
                        "create_response": True,
                    },
                },
                "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "marin", "speed": 1.0},
            },
            "tools": [
                {
                    "type": "function",
                    "name": "look_up",
                    "description": "Looks it up.",
                    "parameters": {"type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]},
                }
            ],
            "tool_choice": {"type": "function", "name": "look_up"},
            "max_output_tokens": 100,
            "duplex": {"turn_taking": {"preset": "patient", "silence_most_s": 1.5}},
        },
    },
    {
        "type": "session.update",
        "session": {
            "type": "realtime",
            "audio": {"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "low"}}},
        },
    },
    {"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(960)).decode()},
    {"type": "input_audio_buffer.commit"},
    {"type": "input_audio_buffer.clear"},
    {
        "type": "conversation.item.create",
        "previous_item_id": "root",
        "item": {
            "id": "item_1",
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "Hello."}],
        },
    },
    {
        "type": "conversation.item.create",
        "item": {"type": "function_call", "id": "item_2", "call_id": "c1", "name": "look_up", "arguments": "{}"},
    },
    {
        "type": "conversation.item.create",
        "item": {"type": "function_call_output", "call_id": "c1", "output": "42"},
    },
    {"type": "conversation.item.retrieve", "item_id": "item_1"},
    {"type": "conversation.item.truncate", "item_id": "item_1", "content_index": 0, "audio_end_ms": 20},
    {"type": "conversation.item.delete", "item_id": "item_1"},
    {"type": "response.create"},
    {
        "type": "response.create",
        "response": {
            "instructions": "Short.",
            "conversation": "none",
            "output_modalities": ["text"],
            "metadata": {"topic": "weather"},
            "input": [{"type": "item_reference", "id": "item_1"}],
            "tools": [],
            "tool_choice": "none",
            "max_output_tokens": "inf",
            "duplex": {"say": "Good day."},
        },
    },
    {"type": "response.cancel", "response_id": "resp_1"},
    {"type": "output_audio_buffer.clear"},
    {"type": "duplex.playback.ack", "response_id": "resp_1", "played_ms": 200.5},
)


def _lines(documents: Sequence[object]) -> list[bytes]:
    each = [json.dumps(document).encode() for document in documents]
    return [*each, b"\n".join(each)]


_EVENT_WORDS = (
    *(f'"{name}"'.encode() for name in READERS),
    b'"type"', b'"item"', b'"content"', b'"session"', b'"audio"', b'"event_id":"\\ud800"', b'"input_audio"', b"null",
    b"{}", b"[]", b'"data:image/png;base64,', b'"audio/pcma"', b'"input"', b'"item_reference"', b'"\\ud800":1',
)  # fmt: skip


def _sendable(codec: RealtimeCodec, events: Sequence[dict[str, Any]], data: bytes, most: int) -> None:
    """What is sent in answer is text, and not much more than what was sent to us."""
    text = json.dumps(events, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Finding("events", data, f"an answer cannot be sent: {text[:200]!r}", "unsendable answer") from error
    if len(text) > most:
        raise Finding("events", data, f"an answer has {len(text)} characters: {text[:200]!r}", "long answer")


def _run_events(data: bytes) -> str:
    """One event a line, to a codec of each door's kind; what is accepted is carried out as a session would say so."""
    outcomes = []
    for deltas in (True, False):
        codec = RealtimeCodec(_DEFAULTS, audio_deltas=deltas)
        codec.encode(SessionStarted(_AT, "sess_1", "agent", AgentSettings()))
        for line in data.split(b"\n")[:40]:
            try:
                request = codec.decode(line)
                if isinstance(request, UpdateSettings):
                    _sendable(codec, codec.encode(SessionUpdated(_AT, request.settings)), data, 400_000)
                _sendable(codec, codec.answers(), data, 400_000)
                codec.take_audio()
                outcomes.append(type(request).__name__)
            except ProtocolError as error:
                outcomes.append(f"{type(error).__name__} {error.code} {error.param}"[:60])
                _sendable(codec, codec.refusal(error, _AT), data, MAX_ANSWER_CHARS)
    return " ".join(outcomes)


EVENTS_TARGET = Target("events", _run_events, (), lambda: _lines(EVENTS), _EVENT_WORDS, cpu_s=1.0, max_bytes=300_000)


# --- over a data channel, with a session behind it -------------------------------------------------------------


class _Channel:
    """An open data channel that sends as aiortc's does: text as UTF-8."""

    readyState, bufferedAmount, bufferedAmountLowThreshold = "open", 0, 0  # noqa: N815

    def __init__(self) -> None:
        self.received: Any = None

    def on(self, event: str, handler: Any) -> None:
        if event == "message":
            self.received = handler

    def send(self, text: str) -> None:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise AssertionError(f"what is told cannot be sent: {text[:200]!r}") from error


class _TellingLine(LoopbackLine):
    """A line in memory that tells its client through a WebRTC line's data channel."""

    def __init__(self, line: WebRtcLine) -> None:
        super().__init__()
        self._told = line

    def emit(self, event: Event) -> None:
        self._told.emit(event)
        super().emit(event)


def _run_channel(data: bytes) -> str:
    """One message a line (a line that begins with NUL is binary), 50 ms apart, to a session that is really running."""
    agent = ScriptedAgent([ScriptedReply("One two three.")])
    outcome = []

    async def main() -> None:
        clock, metrics = VirtualClock(), Metrics()
        codec = RealtimeCodec(_DEFAULTS, audio_deltas=False)
        door = WebRtcLine(codec, clock, metrics, max_unsent_events=64, max_event_bytes=_DEFAULTS.max_event_bytes)
        line, channel = _TellingLine(door), _Channel()
        session = Session(
            session_id="sess_1",
            line=line,
            agent=agent,
            clock=clock,
            config=SessionConfig(),
            settings=AgentSettings(),
            metrics=metrics,
        )
        door.session = session
        door.attach(channel)  # type: ignore[arg-type]
        task = asyncio.create_task(session.run())
        for message in data.split(b"\n")[:20]:
            await clock.sleep_until(clock.now() + 0.05)
            if message.startswith(b"\0"):
                channel.received(message[1:])
            else:
                channel.received(message.decode("utf-8", "replace"))
        await clock.sleep_until(clock.now() + 0.2)
        outcome.append(f"{len(line.events)} {sorted({type(event).__name__ for event in line.events})}")
        session.stop("enough")
        await task

    logging.getLogger("duplex").setLevel(logging.CRITICAL)
    run_virtual(main())
    return outcome[0]


CHANNEL_TARGET = Target("channel", _run_channel, (), lambda: _lines(EVENTS), _EVENT_WORDS, cpu_s=2.0, max_bytes=20_000)


# --- telephones ----------------------------------------------------------------------------------------------

TWILIO: tuple[dict[str, Any], ...] = (
    {"event": "connected", "protocol": "Call", "version": "1.0.0"},
    {
        "event": "start",
        "sequenceNumber": "1",
        "start": {
            "accountSid": "AC0",
            "streamSid": "MZ0",
            "callSid": "CA0",
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": {"voice": "default", "instructions": "Be kind.", "caller": "+15550100"},
        },
        "streamSid": "MZ0",
    },
    {
        "event": "media",
        "sequenceNumber": "3",
        "media": {"track": "inbound", "chunk": "1", "timestamp": "5", "payload": base64.b64encode(bytes(160)).decode()},
        "streamSid": "MZ0",
    },
    {"event": "dtmf", "sequenceNumber": "5", "streamSid": "MZ0", "dtmf": {"track": "inbound_track", "digit": "1"}},
    {"event": "mark", "sequenceNumber": "4", "streamSid": "MZ0", "mark": {"name": "m1"}},
    {"event": "stop", "sequenceNumber": "6", "streamSid": "MZ0", "stop": {"accountSid": "AC0", "callSid": "CA0"}},
)


def _short(error: ProtocolError) -> None:
    """A complaint is logged."""
    assert len(str(error)) <= MAX_MESSAGE_CHARS, f"a complaint of {len(str(error))} characters"


def _run_twilio(data: bytes) -> str:
    sequence, outcomes = twilio_wire.Sequence(), []
    for line in data.split(b"\n")[:40]:
        try:
            received = twilio_wire.read(line.decode("utf-8", "surrogateescape"))
            sequence.missing(received.number)
            if isinstance(received.body, twilio_wire.Start):
                _, wrong = twilio_wire.settings_of(received.body.parameters, ("default",), 1000)
                for error in wrong:
                    _short(error)
                twilio_wire.mark(received.body.stream_sid, "m").encode()
            outcomes.append(type(received.body).__name__)
        except ProtocolError as error:
            _short(error)
            outcomes.append(f"{type(error).__name__} {error.param}")
    return " ".join(outcomes)


TWILIO_TARGET = Target(
    "twilio", _run_twilio, (), lambda: _lines(TWILIO), (b'"event"', b'"media"', b'"payload"', b"null", b"{}", b"[]")
)

ASTERISK: tuple[dict[str, Any], ...] = (
    {
        "event": "MEDIA_START",
        "connection_id": "media",
        "channel": "WebSocket/1",
        "channel_id": "c1",
        "format": "slin16",
        "optimal_frame_size": 640,
        "ptime": 20,
        "channel_variables": {"CALLERID": "5550100"},
    },
    {"event": "DTMF_END", "digit": "5", "duration_ms": 80},
    {"event": "MEDIA_MARK_PROCESSED", "correlation_id": "m1"},
    {
        "event": "STATUS",
        "queue_length": 3,
        "xon_level": 800,
        "xoff_level": 900,
        "queue_full": False,
        "bulk_media": False,
        "media_paused": False,
    },
    {"event": "ERROR", "error_text": "no"},
)
_ASTERISK_PLAIN = (
    b"MEDIA_START connection_id:media channel:WebSocket/1 channel_id:c1 format:ulaw optimal_frame_size:160",
    b"MEDIA_MARK_PROCESSED m1",
    b"STATUS queue_length:3 xon_level:800 xoff_level:900 queue_full:false bulk_media:false media_paused:false",
    b"DTMF_END duration_ms:80 digit:5",
    b"ERROR error_text:no such command: X",
    b"MEDIA_XOFF",
    b"QUEUE_DRAINED",
)


def _run_asterisk(data: bytes) -> str:
    event, control = asterisk_websocket_wire.read(data.decode("utf-8", "surrogateescape"))
    if isinstance(event, asterisk_websocket_wire.MediaStart):
        asterisk_websocket_wire.check_media(event)
    return f"{type(event).__name__} {control.value}"


ASTERISK_TARGET = Target(
    "asterisk",
    _run_asterisk,
    (ProtocolError,),
    lambda: [*(json.dumps(each).encode() for each in ASTERISK), *_ASTERISK_PLAIN],
    (b'"event"', b"MEDIA_START ", b"format:", b"slin16", b"true", b"digit:", b"correlation_id:", b" "),
    max_bytes=100_000,
)


def _run_audiosocket(data: bytes) -> str:
    """The first byte says in how many pieces the stream comes."""
    reader, outcomes = audiosocket_wire.FrameReader(), []
    size = max(1, len(data) // (1 + (data[0] if data else 0)))
    for start in range(1, len(data), size):
        for frame in reader.feed(data[start : start + size]):
            try:
                outcomes.append(type(audiosocket_wire.read(frame)).__name__)
            except ProtocolError as error:
                _short(error)
                outcomes.append(error.code)
    assert len(reader._bytes) <= audiosocket_wire.HEADER_BYTES + audiosocket_wire.MAX_PAYLOAD_BYTES
    try:
        reader.end()
    except ProtocolError as error:
        outcomes.append(error.code)
    return " ".join(sorted(set(outcomes)))


def _audiosocket_seeds() -> list[bytes]:
    kind, frame = audiosocket_wire.Kind, audiosocket_wire.frame
    call = frame(kind.CALL_ID, bytes(range(16)))
    sound = audiosocket_wire.sound(8000, bytes(320))
    return [b"\x00" + call + sound * 3 + frame(kind.KEY, b"5") + audiosocket_wire.HANG_UP, b"\x07" + call + sound,
            b"\x01" + call + frame(kind.SOUND_192K, bytes(7680)) + frame(kind.ERROR, b"\x01")]  # fmt: skip


AUDIOSOCKET_TARGET = Target(
    "audiosocket",
    _run_audiosocket,
    (),
    _audiosocket_seeds,
    (b"\x01\x00\x10", b"\x10\xff\xff", b"\x03\x00\x01"),
    max_bytes=16_000,
)


# --- the Moshi door's address --------------------------------------------------------------------------------


def _run_address(data: bytes) -> str:
    query = QueryParams(data.decode("latin-1"))
    settings = moshi_chat_wire.read_query(query, ("default", "NATF2.pt"), 500)
    return f"{settings.voice} {settings.instructions is None}"


ADDRESS_TARGET = Target(
    "moshi-address",
    _run_address,
    (ProtocolError,),
    lambda: [
        b"text_temperature=0.7&text_topk=25&audio_temperature=0.8&audio_topk=250&pad_mult=0&text_seed=100&audio_seed=9"
        b"&repetition_penalty_context=64&repetition_penalty=1.0&max_steps=4500",
        b"voice_prompt=NATF0.pt&text_prompt=You%20enjoy%20having%20a%20good%20conversation.&seed=-1",
    ],
    (b"voice_prompt=", b"seed=", b"&", b"%ff", b"../", b"nan", b"inf", b"1e999"),
)


def _run_moshi(data: bytes) -> str:
    kind, payload = moshi_chat_wire.read(data)
    if kind is moshi_chat_wire.Kind.HANDSHAKE:
        moshi_chat_wire.check_handshake(payload)
    return str(kind)


MOSHI_TARGET = Target(
    "moshi", _run_moshi, (ProtocolError,), lambda: [b"\x00", b"\x00" + bytes(8), b"\x01OggS", b"\x03\x01", b"\x04{}"]
)

TARGETS = (
    EVENTS_TARGET,
    CHANNEL_TARGET,
    TWILIO_TARGET,
    ASTERISK_TARGET,
    AUDIOSOCKET_TARGET,
    ADDRESS_TARGET,
    MOSHI_TARGET,
)
