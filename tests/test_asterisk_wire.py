"""The control messages of Asterisk's ``chan_websocket``: both formats read alike, and what is wrong is named."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from asterisk_far_end import ChanWebsocket
from hypothesis import given
from hypothesis import strategies as st

from duplex.clock import MonotonicClock
from duplex.errors import InvalidEventError, ProtocolError, TooLargeError
from duplex.transport import asterisk_websocket_wire as wire
from duplex.transport.asterisk_websocket_wire import Command, ControlFormat, check_media, read, write

PLAIN, JSON = ControlFormat.PLAIN, ControlFormat.JSON

START = wire.MediaStart("duplex", "WebSocket/duplex/0x7f4b28003c00", "1795369383.1", "slin16", 640, 20)
VARIABLES = {"MEDIA_WEBSOCKET_CONNECTION_ID": "duplex", "MEDIA_WEBSOCKET_OPTIMAL_FRAME_SIZE": "640"}

# Written down by hand after channels/chan_websocket.c and the documentation: one exchange in each format.
CAPTURE = [
    (
        "MEDIA_START connection_id:duplex channel:WebSocket/duplex/0x7f4b28003c00 channel_id:1795369383.1 "
        "format:slin16 optimal_frame_size:640 ptime:20",
        {
            "event": "MEDIA_START",
            "connection_id": "duplex",
            "channel": "WebSocket/duplex/0x7f4b28003c00",
            "channel_id": "1795369383.1",
            "format": "slin16",
            "optimal_frame_size": 640,
            "ptime": 20,
            "channel_variables": {},
        },
        START,
    ),
    ("DTMF_END digit:5 channel_id:1795369383.1", {"event": "DTMF_END", "digit": "5"}, wire.KeyPressed("5")),
    ("DTMF_END digit:# channel_id:1795369383.1", {"event": "DTMF_END", "digit": "#"}, wire.KeyPressed("#")),
    ("MEDIA_XOFF", {"event": "MEDIA_XOFF", "channel_id": "1795369383.1"}, wire.Xoff()),
    ("MEDIA_XON", {"event": "MEDIA_XON", "channel_id": "1795369383.1"}, wire.Xon()),
    (
        "MEDIA_MARK_PROCESSED 3-480",
        {"event": "MEDIA_MARK_PROCESSED", "channel_id": "1795369383.1", "correlation_id": "3-480"},
        wire.MarkProcessed("3-480"),
    ),
    ("MEDIA_MARK_PROCESSED", {"event": "MEDIA_MARK_PROCESSED", "correlation_id": ""}, wire.MarkProcessed("")),
    (
        "MEDIA_BUFFERING_COMPLETED greeting",
        {"event": "MEDIA_BUFFERING_COMPLETED", "correlation_id": "greeting"},
        wire.BufferingCompleted("greeting"),
    ),
    ("QUEUE_DRAINED", {"event": "QUEUE_DRAINED", "channel_id": "1795369383.1"}, wire.QueueDrained()),
    (
        "STATUS channel_id:1795369383.1 queue_length:43 xon_level:800 xoff_level:900 queue_full:false bulk_media:true "
        "media_paused:false",
        {
            "event": "STATUS",
            "queue_length": 43,
            "xon_level": 800,
            "xoff_level": 900,
            "queue_full": False,
            "bulk_media": True,
            "media_paused": False,
        },
        wire.Status(43, 800, 900, False, True, False),
    ),
    (
        "ERROR channel_id:1795369383.1 error_text:MARK_MEDIA not supported: passthrough mode",
        {"event": "ERROR", "error_text": "MARK_MEDIA not supported: passthrough mode"},
        wire.FarError("MARK_MEDIA not supported: passthrough mode"),
    ),
]


@pytest.mark.parametrize(("plain", "as_json", "event"), CAPTURE)
def test_both_formats_say_the_same(plain: str, as_json: dict[str, Any], event: wire.Event) -> None:
    assert read(plain) == (event, PLAIN)
    assert read(json.dumps(as_json)) == (event, JSON)
    assert read(json.dumps(as_json, indent=2) + "\n") == (event, JSON)


def test_the_older_start_has_no_channel_id() -> None:
    said = "MEDIA_START connection_id:e226e283 channel:WebSocket/c format:ulaw optimal_frame_size:160 ptime:20"  # 22.6
    assert read(said)[0] == wire.MediaStart("e226e283", "WebSocket/c", "", "ulaw", 160, 20)


def test_variables_of_the_channel_come_with_json() -> None:
    event, _ = read(
        json.dumps(
            {
                "event": "MEDIA_START",
                "format": "ulaw",
                "optimal_frame_size": 160,
                "ptime": 20,
                "channel_variables": {**VARIABLES, "odd": 3},
            }
        )
    )
    assert isinstance(event, wire.MediaStart)
    assert event.variables == VARIABLES


COMMANDS = {
    Command.ANSWER: "ANSWER",
    Command.HANG_UP: "HANGUP",
    Command.START_BUFFERING: "START_MEDIA_BUFFERING",
    Command.STOP_BUFFERING: "STOP_MEDIA_BUFFERING",
    Command.MARK: "MARK_MEDIA",
    Command.FLUSH: "FLUSH_MEDIA",
    Command.PAUSE: "PAUSE_MEDIA",
    Command.CONTINUE: "CONTINUE_MEDIA",
    Command.REPORT_DRAINED: "REPORT_QUEUE_DRAINED",
    Command.GET_STATUS: "GET_STATUS",
}


@pytest.mark.parametrize("command", Command)
def test_every_command_in_both_formats(command: Command) -> None:
    assert write(command, PLAIN) == COMMANDS[command]
    assert json.loads(write(command, JSON)) == {"command": COMMANDS[command]}


@pytest.mark.parametrize("command", [Command.MARK, Command.STOP_BUFFERING])
def test_an_id_that_comes_back(command: Command) -> None:
    assert write(command, PLAIN, "3-480") == f"{COMMANDS[command]} 3-480"
    assert json.loads(write(command, JSON, "3-480")) == {"command": COMMANDS[command], "correlation_id": "3-480"}


def test_what_asterisk_would_not_read_is_not_written() -> None:
    with pytest.raises(ValueError, match="at most 128 bytes"):
        write(Command.MARK, JSON, "x" * 100)
    with pytest.raises(ValueError, match="takes no correlation_id"):
        write(Command.FLUSH, PLAIN, "1")
    a_day = f"100000-{24_000 * 86_400}+++"
    assert len(write(Command.MARK, JSON, a_day)) < 128


# --- what is wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "param", "message"),
    [
        ("", "event", "Nobody knows the event ''"),
        ("MEDIA_STOP", "event", "Nobody knows the event 'MEDIA_STOP'. Known are: DTMF_END,"),
        ("media_xoff", "event", "Nobody knows"),
        ("{", None, "not JSON"),
        ("{}", "event", "has no event"),
        ('{"event": 3}', "event", "has no event"),
        ('{"event": "MEDIA_START", "optimal_frame_size": 160}', "format", "format should be text; it is not there"),
        ("MEDIA_START format:ulaw", "optimal_frame_size", "optimal_frame_size should be a number; it is not there"),
        ("MEDIA_START format:ulaw optimal_frame_size:many", "optimal_frame_size", "should be a number; it is 'many'"),
        ("MEDIA_START format:ulaw optimal_frame_size:-1", "optimal_frame_size", "it is '-1'"),
        ('{"event": "DTMF_END", "digit": "12"}', "digit", "digit should be one of 0 to 9"),
        ("DTMF_END digit:x", "digit", "DTMF_END: digit should be one of 0 to 9, *, #, A to D; it is 'X'"),
        ("DTMF_END", "digit", "it is not there"),
        ('{"event": "MEDIA_MARK_PROCESSED", "correlation_id": 5}', "correlation_id", "should be text; it is '5'"),
        (
            "STATUS queue_length:1 xon_level:2 xoff_level:3 queue_full:yes bulk_media:true media_paused:true",
            "queue_full",
            "queue_full should be true or false; it is 'yes'",
        ),
    ],
)
def test_what_is_wrong_is_named(text: str, param: str | None, message: str) -> None:
    with pytest.raises(InvalidEventError) as caught:
        read(text)
    assert caught.value.param == param
    assert message in str(caught.value)


def test_a_message_longer_than_allowed() -> None:
    with pytest.raises(TooLargeError, match="has 65537 characters; at most 65536"):
        read("x" * 65537)


def test_json_that_nests_without_end_is_refused() -> None:
    with pytest.raises(InvalidEventError):
        read('{"event":' * 6000)


@given(st.one_of(st.text(), st.from_regex(r"(MEDIA_START|STATUS|DTMF_END|ERROR)( [a-z_]{1,12}:[^ ]{0,8}){0,8}")))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ProtocolError):
        read(text)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=3), st.sampled_from(
    ["MEDIA_START", "DTMF_END", "STATUS", "MEDIA_MARK_PROCESSED", "ERROR"]
))  # fmt: skip
def test_any_value_in_any_field_is_read_or_refused(value: Any, name: str) -> None:
    fields = ("format", "optimal_frame_size", "digit", "queue_length", "correlation_id", "error_text", "channel")
    with contextlib.suppress(ProtocolError):
        read(json.dumps({"event": name, **dict.fromkeys(fields, value)}))


WORD = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="/-._()"), min_size=1)


@given(WORD, WORD, WORD, st.integers(0, 10**6), st.integers(0, 999), st.booleans())
def test_what_the_driver_writes_is_read_back(
    connection: str, channel: str, identifier: str, size: int, ptime: int, json_control: bool
) -> None:
    far_end = ChanWebsocket(MonotonicClock(), lambda message: None, json_control=json_control)
    text = far_end.start_message(
        connection_id=connection, channel=channel, channel_id=identifier, optimal_frame_size=size, ptime=ptime
    )
    event, control = read(text)
    assert control is (JSON if json_control else PLAIN)
    assert isinstance(event, wire.MediaStart)
    assert (event.connection_id, event.channel, event.channel_id) == (connection, channel, identifier)
    assert (event.media_format, event.frame_bytes, event.ptime_ms) == ("slin16", size, ptime)


# --- formats ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("media_format", "frame_bytes"),
    [("ulaw", 160), ("alaw", 160), ("slin", 320), ("slin12", 480), ("slin16", 640), ("slin24", 960), ("slin32", 1280),
     ("slin44", 1764), ("slin48", 1920), ("slin96", 3840), ("slin192", 7680)],
)  # fmt: skip
def test_formats_that_are_taken(media_format: str, frame_bytes: int) -> None:
    """The frame sizes are those of Asterisk's ``main/codec_builtin.c``."""
    check_media(wire.MediaStart("c", "ch", "id", media_format, frame_bytes, 20))


@pytest.mark.parametrize(
    ("media_format", "frame_bytes", "ptime_ms", "param"),
    [
        ("opus", 0, 20, "format"),
        ("g722", 160, 20, "format"),
        ("", 320, 20, "format"),
        ("slin16", 0, 20, "optimal_frame_size"),  # passthrough
        ("slin16", 320, 10, "optimal_frame_size"),
        ("ulaw", 320, 20, "optimal_frame_size"),
    ],
)
def test_formats_that_are_refused(media_format: str, frame_bytes: int, ptime_ms: int, param: str) -> None:
    with pytest.raises(InvalidEventError) as caught:
        check_media(wire.MediaStart("c", "ch", "id", media_format, frame_bytes, ptime_ms))
    assert caught.value.param == param
    assert "dial string" in str(caught.value)
