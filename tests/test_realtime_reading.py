"""What clients send, read strictly: an event becomes a request, or an error that names the field."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from realtime_talk import OFFICIAL

from duplex import events as ev
from duplex import requests as rq
from duplex.agent import AgentSettings, Tool, ToolChoice
from duplex.conversation import Message, Role
from duplex.errors import InvalidEventError, ProtocolError, TooLargeError, UnsupportedError
from duplex.frames import PACKET_SAMPLES
from duplex.thinker_talker.evidence import silence_needed_s
from duplex.thinker_talker.predictor import TurnPredictor
from duplex.thinker_talker.turn_options import TurnOptions
from duplex.transport.pcm import from_pcm16, to_pcm16
from duplex.transport.realtime import RealtimeCodec, SessionDefaults, read_call_session
from duplex.transport.realtime_decode import READERS
from duplex.transport.realtime_session import Formats, read_session, session_object
from duplex.turn_rules import TurnEnds, TurnRules

AT = ev.At(48_000, 12.5)
DEFAULTS = SessionDefaults(voices=("joe",), max_text_chars=1000)


def codec(*, audio_deltas: bool = True) -> RealtimeCodec:
    return RealtimeCodec(DEFAULTS, audio_deltas=audio_deltas)


def decode(event: Any, *, audio_deltas: bool = True) -> rq.Request | None:
    return codec(audio_deltas=audio_deltas).decode(event if isinstance(event, str | bytes) else json.dumps(event))


# --- what we read -------------------------------------------------------------------------------------

MESSAGE = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}


@pytest.mark.parametrize(
    ("event", "request_"),
    [
        ({"type": "input_audio_buffer.commit"}, rq.CommitInput()),
        ({"type": "input_audio_buffer.clear"}, rq.ClearInput()),
        ({"type": "conversation.item.create", "item": MESSAGE}, rq.AddMessage(Role.USER, "Hi")),
        (
            {"type": "conversation.item.create", "item": MESSAGE | {"id": "my_1"}, "previous_item_id": None},
            rq.AddMessage(Role.USER, "Hi", (), "my_1"),
        ),
        ({"type": "conversation.item.delete", "item_id": "item_1"}, rq.RemoveMessage("item_1")),
        (
            {"type": "conversation.item.truncate", "item_id": "item_1", "content_index": 0, "audio_end_ms": 250},
            rq.TruncateMessage("item_1", 250.0),
        ),
        ({"type": "response.create"}, rq.CreateReply()),
        ({"type": "response.create", "response": {"instructions": "Sing."}}, rq.CreateReply("Sing.")),
        ({"type": "response.create", "response": {}}, rq.CreateReply()),
        ({"type": "response.cancel", "response_id": "resp_1"}, rq.CancelReply("resp_1")),
        (
            {"type": "conversation.item.create", "item": MESSAGE, "previous_item_id": "root"},
            rq.AddMessage(Role.USER, "Hi", (), None, "root"),
        ),
        (
            {
                "type": "conversation.item.create",
                "item": {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}", "id": "i1"},
            },
            rq.AddToolCall("c1", "f", "{}", "i1"),
        ),
        (
            {
                "type": "conversation.item.create",
                "item": {"type": "function_call_output", "call_id": "c1", "output": ""},
            },
            rq.AddToolResult("c1", ""),
        ),
        (
            {
                "type": "response.create",
                "response": {
                    "conversation": "none",
                    "output_modalities": ["text"],
                    "metadata": {"a": "b"},
                    "max_output_tokens": 5,
                    "tools": [],
                    "tool_choice": "none",
                    "input": [{"type": "item_reference", "id": "item_1"}, MESSAGE],
                },
            },
            rq.CreateReply(
                tools=(),
                tool_choice=ToolChoice("none"),
                silent=True,
                max_output_tokens=5,
                input=(rq.ItemReference("item_1"), Message("input_1", Role.USER, "Hi")),
                in_conversation=False,
                labels={"a": "b"},
            ),
        ),
        ({"type": "output_audio_buffer.clear"}, rq.ClearOutput()),
        (
            {"type": "duplex.playback.ack", "response_id": "resp_1", "played_ms": 812.5},
            rq.AcknowledgePlayout("resp_1", 812.5),
        ),
    ],
)
def test_client_events_become_requests(event: dict[str, Any], request_: rq.Request) -> None:
    assert decode(event) == request_


TOOL = {"type": "function", "name": "find_order", "description": "Finds.", "parameters": {"type": "object"}}
VAD = "session.audio.input.turn_detection"


def update(**session: Any) -> dict[str, Any]:
    return {"type": "session.update", "session": session}


def vad(value: Any) -> dict[str, Any]:
    return update(audio={"input": {"turn_detection": value}})


def create(**response: Any) -> dict[str, Any]:
    return {"type": "response.create", "response": response}


SESSION_UPDATES = (  # as the official client's README and examples send them
    {"type": "realtime", "output_modalities": ["text"]},
    {"type": "realtime", "output_modalities": ["audio"], "audio": {"output": {"voice": "marin"}}},
    {"audio": {"input": {"turn_detection": {"type": "server_vad"}}}, "model": "gpt-realtime", "type": "realtime"},
    {
        "type": "realtime",
        "model": "gpt-realtime",
        "output_modalities": ["audio"],
        "audio": {
            "input": {"format": {"type": "audio/pcm", "rate": 24000}, "turn_detection": {"type": "semantic_vad"}},
            "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "marin"},
        },
        "instructions": "Speak clearly and briefly.",
    },
    {
        "type": "realtime",
        "audio": {
            "input": {
                "transcription": {"model": "gpt-4o-transcribe", "language": "en"},
                "noise_reduction": None,
                "turn_detection": {
                    "type": "server_vad",
                    "threshold": 0.5,
                    "prefix_padding_ms": 300,
                    "silence_duration_ms": 500,
                    "create_response": True,
                    "interrupt_response": True,
                },
            }
        },
        "tools": [],
        "tool_choice": "auto",
    },
)


@pytest.mark.parametrize("session", SESSION_UPDATES)
def test_ordinary_session_updates_work(session: dict[str, Any]) -> None:
    request = decode({"type": "session.update", "session": session})
    assert isinstance(request, rq.UpdateSettings)
    assert (request.settings.instructions, request.settings.voice) == (session.get("instructions"), None)


@pytest.mark.parametrize(
    ("turn_detection", "rules", "table"),
    [
        (None, TurnRules(ends=TurnEnds.CLIENT), None),
        ({"type": "semantic_vad"}, TurnRules(), None),
        ({"type": "semantic_vad", "eagerness": "auto"}, TurnRules(), None),
        ({"type": "semantic_vad", "eagerness": "low"}, TurnRules(), {"preset": "patient"}),
        ({"type": "semantic_vad", "create_response": False}, TurnRules(replies=False), None),
        ({"type": "semantic_vad", "interrupt_response": False}, TurnRules(interrupts=False), None),
    ],
)
def test_turn_detection_becomes_rules(turn_detection: Any, rules: TurnRules, table: Any) -> None:
    session = {"audio": {"input": {"turn_detection": turn_detection}}}
    request = decode({"type": "session.update", "session": session})
    assert isinstance(request, rq.UpdateSettings)
    assert (request.settings.turns, request.settings.turn_taking) == (rules, table)
    assert request.reset == (() if table else ("turn_taking",))


def test_server_vad_is_a_silence_timer_that_the_default_agent_takes() -> None:
    vad = {"type": "server_vad", "threshold": 0.7, "silence_duration_ms": 900, "idle_timeout_ms": 6000}
    change = read_session({"audio": {"input": {"turn_detection": vad}}}, DEFAULTS)
    assert change.settings.turns == TurnRules(
        TurnEnds.SILENCE, idle_timeout_s=6.0, silence_s=0.9, threshold=0.7, prefix_s=0.3
    )
    options = TurnOptions().with_overrides(change.settings.turn_taking)
    assert (options.speech_threshold, options.silence_threshold, options.overlap_threshold) == (0.7, 0.55, 0.8)
    predictor = TurnPredictor(options)
    assert predictor.silence_needed_s() == 0.9
    assert {silence_needed_s(z, options) for z in (-9.0, -3.0, -1.0, 0.0, 1.0, 9.0)} == {0.9}
    shown = session_object(DEFAULTS, "sess_1", change.settings, Formats())["audio"]["input"]["turn_detection"]
    assert {**shown, **vad} == shown
    assert shown["prefix_padding_ms"] == 300


def test_a_native_agent_keeps_its_own_turns() -> None:
    native = replace(DEFAULTS, native=True)
    session = {"audio": {"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 500}}}}
    change = read_session(session, native)
    assert (change.settings.turns, change.settings.turn_taking) == (TurnRules(), None)
    session["audio"]["input"]["turn_detection"]["silence_duration_ms"] = 900
    with pytest.raises(UnsupportedError) as refused:
        read_session(session, native)
    assert refused.value.param == "session.audio.input.turn_detection.silence_duration_ms"


def nested(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    return {"type": "session.update", **value}


@pytest.mark.parametrize(
    ("path", "value", "advice"),
    [
        ("session.type", "transcription", "realtime"),
        ("session.output_modalities", ["audio", "text"], "audio"),
        ("session.audio.input.format.type", "audio/opus", "24000"),
        ("session.audio.input.format.rate", 16000, "24000"),
        ("session.audio.output.format.type", "audio/g722", "24000"),
        ("session.audio.output.voice", "hal", "joe"),
        ("session.audio.output.speed", 1.5, "1.0"),
        ("session.audio.input.noise_reduction", {"type": "near_field"}, "before sending"),
        ("session.audio.input.transcription.language", "de", "'en'"),
        ("session.parallel_tool_calls", False, "thinker"),
        ("session.truncation", "disabled", "oldest"),
        ("session.truncation", {"type": "retention_ratio", "retention_ratio": 0.8}, "oldest"),
        ("session.include", ["item.input_audio_transcription.logprobs"], "no extra"),
        ("session.prompt", {"id": "p"}, "instructions"),
        ("session.tracing", {"workflow_name": "w"}, "duplex.trace"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(path: str, value: Any, advice: str) -> None:
    with pytest.raises(UnsupportedError, match=advice) as refused:
        decode(nested(path, value))
    assert refused.value.param == path


@pytest.mark.parametrize(
    ("event", "param", "says"),
    [
        ("{not json", None, "not JSON"),
        (b"\xff\xfe", None, "UTF-8"),
        ("[1, 2]", None, "JSON object"),
        ('{"type": "response.create", "x": NaN}', None, "not JSON"),
        ("[" * 5000 + "]" * 5000, None, "nested"),
        ({"type": "response.create", "response": json.loads("[" * 30 + "]" * 30)}, None, "nested"),
        ({"no": "type"}, "type", "session.update"),
        ({"type": 7}, "type", "session.update"),
        ({"type": "input_audio_bufer.append"}, "type", "Did you mean 'input_audio_buffer.append'"),
        ({"type": "response.cancel", "event_id": 4}, "event_id", "text"),
        ({"type": "session.update"}, "session", "object"),
        ({"type": "session.update", "session": {"instrctions": "x"}}, "session.instrctions", "'instructions'"),
        ({"type": "session.update", "session": {"instructions": 5}}, "session.instructions", "text"),
        ({"type": "session.update", "session": {"audio": "loud"}}, "session.audio", "object"),
        ({"type": "input_audio_buffer.append"}, "audio", "text"),
        ({"type": "input_audio_buffer.append", "audio": "not base64!"}, "audio", "base64"),
        ({"type": "input_audio_buffer.append", "audio": "AAAA"}, "audio", "16-bit"),
        ({"type": "conversation.item.create", "item": MESSAGE | {"role": "robot"}}, "item.role", "assistant"),
        ({"type": "conversation.item.create", "item": MESSAGE | {"content": []}}, "item.content", "at least one"),
        (
            {"type": "conversation.item.create", "item": MESSAGE | {"content": [{"type": "text", "text": "x"}]}},
            "item.content[0].type",
            "input_text",
        ),
        (
            {
                "type": "conversation.item.create",
                "item": MESSAGE | {"content": [{"type": "input_text", "text": "\ud800"}]},
            },
            "item.content[0].text",
            "surrogate",
        ),
        ({"type": "conversation.item.truncate", "item_id": "a", "audio_end_ms": "now"}, "audio_end_ms", "number"),
        ({"type": "conversation.item.truncate", "item_id": "a", "audio_end_ms": True}, "audio_end_ms", "number"),
        ({"type": "conversation.item.truncate", "item_id": "a", "audio_end_ms": 10**400}, "audio_end_ms", "range"),
        ({"type": "duplex.playback.ack", "response_id": "", "played_ms": 1}, "response_id", "empty"),
        ({"type": "duplex.playback.ack", "response_id": "r", "played_ms": -1}, "played_ms", "0 or more"),
        ({"type": "conversation.item.retrieve", "item_id": "nope"}, "item_id", "no item"),
        ({"type": "conversation.item.truncate", "item_id": "a", "content_index": 1}, "content_index", "must be 0"),
        ({"type": "conversation.item.create", "item": {"type": "function_call"}}, "item.name", "text"),
        ({"type": "conversation.item.create", "item": {"type": "function_call_output"}}, "item.call_id", "text"),
        (
            {"type": "conversation.item.create", "item": {"type": "function_call", "name": "f", "arguments": "{}"}},
            "item.call_id",
            "needed",
        ),
        (
            {"type": "conversation.item.create", "item": MESSAGE, "previous_item_id": 3},
            "previous_item_id",
            "text",
        ),
        (vad({"type": "loud"}), f"{VAD}.type", "semantic_vad"),
        (vad({"threshold": 0.5}), f"{VAD}.type", "server_vad"),
        (vad({"type": "server_vad", "threshold": 1.5}), f"{VAD}.threshold", "0.99"),
        (vad({"type": "server_vad", "silence_duration_ms": "long"}), f"{VAD}.silence_duration_ms", "number"),
        (vad({"type": "server_vad", "prefix_padding_ms": 2000}), f"{VAD}.prefix_padding_ms", "300"),
        (vad({"type": "server_vad", "idle_timeout_ms": 0}), f"{VAD}.idle_timeout_ms", "number"),
        (vad({"type": "server_vad", "eagerness": "low"}), f"{VAD}.eagerness", "no field"),
        (vad({"type": "semantic_vad", "silence_duration_ms": 200}), f"{VAD}.silence_duration_ms", "no field"),
        (update(max_output_tokens=0), "session.max_output_tokens", "4096"),
        (update(max_output_tokens=True), "session.max_output_tokens", "whole"),
        (update(tools="f"), "session.tools", "list"),
        (update(tools=[{"type": "function"}]), "session.tools[0].name", "text"),
        (update(tools=[{"type": "function", "name": "a b"}]), "session.tools[0].name", "letters"),
        (update(tools=[TOOL, TOOL]), "session.tools[1].name", "twice"),
        (update(tools=[TOOL | {"parameters": []}]), "session.tools[0].parameters", "object"),
        (update(tools=[TOOL | {"params": {}}]), "session.tools[0].params", "Did you mean 'parameters'"),
        (update(tool_choice="sometimes"), "session.tool_choice", "required"),
        (create(metadata={"a": 1}), "response.metadata.a", "texts"),
        (create(metadata={str(n): "" for n in range(17)}), "response.metadata", "16"),
        (create(input=[{"type": "item_reference"}]), "response.input[0].id", "text"),
        (create(input="hello"), "response.input", "list"),
        (create(max_output_tokens=5000), "response.max_output_tokens", "4096"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_expected(event: Any, param: str | None, says: str) -> None:
    with pytest.raises(InvalidEventError, match=says) as refused:
        decode(event)
    assert refused.value.param == param


def test_sizes_are_bounded() -> None:
    long = {"type": "session.update", "session": {"instructions": "x" * 10_000_000}}
    with pytest.raises(TooLargeError, match="at most 1000") as refused:
        decode(long)
    assert refused.value.param == "session.instructions"
    with pytest.raises(TooLargeError, match="20000 values"):
        decode('{"type": "response.create", "response": [' + "1," * 30_000 + "1]}")
    with pytest.raises(TooLargeError, match="bytes"):
        RealtimeCodec(replace(DEFAULTS, max_event_bytes=100), audio_deltas=True).decode(b" " * 101)
    parts = [{"type": "input_text", "text": "y" * 600}] * 2
    with pytest.raises(TooLargeError, match="1201 characters"):
        decode({"type": "conversation.item.create", "item": MESSAGE | {"content": parts}})


@pytest.mark.parametrize(
    ("response", "param"),
    [
        ({"prompt": {"id": "p"}}, "response.prompt"),
        ({"audio": {"output": {"voice": "joe"}}}, "response.audio"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "response.tools[0].type"),
        ({"tool_choice": {"type": "mcp", "server_label": "x"}}, "response.tool_choice"),
        ({"conversation": "conv_1"}, "response.conversation"),
        ({"output_modalities": ["audio", "text"]}, "response.output_modalities"),
        ({"input": [{"type": "mcp_call"}]}, "response.input[0].type"),
    ],
)
def test_what_a_response_cannot_have_is_refused_by_name(response: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedError) as refused:
        decode({"type": "response.create", "response": response})
    assert refused.value.param == param


def test_items_from_the_client() -> None:
    with pytest.raises(UnsupportedError, match="function_call_output"):
        decode({"type": "conversation.item.create", "item": {"type": "mcp_call"}})
    content = [{"type": "input_audio", "audio": "AAAA"}]
    with pytest.raises(UnsupportedError, match="live"):
        decode({"type": "conversation.item.create", "item": MESSAGE | {"content": content}})


def test_tools_and_their_choice() -> None:
    chosen = {"type": "function", "name": "find_order"}
    request = decode(update(tools=[TOOL], tool_choice=chosen))
    assert isinstance(request, rq.UpdateSettings)
    assert request.settings.tools == (Tool("find_order", "Finds.", {"type": "object"}),)
    assert request.settings.tool_choice == ToolChoice("required", "find_order")
    shown = session_object(DEFAULTS, "sess_1", request.settings, Formats())
    assert (shown["tools"], shown["tool_choice"]) == ([TOOL], chosen)
    assert decode(update(tools=[], tool_choice=None)) == rq.UpdateSettings(AgentSettings(tools=()), ("tool_choice",))


def picture(kind: str, size: tuple[int, int] = (64, 48)) -> str:
    out = io.BytesIO()
    Pillow.new("RGB", size, (200, 30, 30)).save(out, kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(out.getvalue()).decode()


def create_image(url: Any) -> dict[str, Any]:
    content = [{"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": url}]
    return {"type": "conversation.item.create", "item": MESSAGE | {"content": content}}


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_pictures_arrive_as_jpeg(kind: str) -> None:
    request = decode(create_image(picture(kind)))
    assert isinstance(request, rq.AddMessage)
    [image] = request.images
    assert (image.width, image.height) == (64, 48)
    with Pillow.open(io.BytesIO(image.jpeg)) as opened:
        assert (opened.format, opened.size) == ("JPEG", (64, 48))


def test_pictures_that_are_none_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="data URL"):
        decode(create_image("https://example.com/cat.jpg"))
    for broken in ("data:image/jpeg;base64,AAAA", "data:image/jpeg;base64,?", picture("JPEG")[:-400] + "===="):
        with pytest.raises(InvalidEventError, match="not a readable"):
            decode(create_image(broken))
    with pytest.raises(TooLargeError, match="pixels"):
        decode(create_image(picture("PNG", (5000, 4000))))


def test_sound_is_handed_to_the_line_once_and_refused_where_there_is_a_track() -> None:
    session = codec()
    append = json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(b"\1\0\2\0").decode()})
    assert session.decode(append) is None
    assert session.take_audio() == b"\1\0\2\0"
    assert session.take_audio() is None
    with pytest.raises(UnsupportedError, match="audio track"):
        decode(append, audio_deltas=False)


def test_some_client_events_are_answered_directly() -> None:
    session = codec()
    session.encode(ev.ItemAdded(AT, "item_0", Role.USER, "Hi", None))
    assert session.decode('{"type": "conversation.item.retrieve", "item_id": "item_0"}') is None
    [retrieved] = session.answers()
    assert OFFICIAL[retrieved["type"]].validate_python(retrieved).item.content[0].text == "Hi"
    session.decode('{"type": "conversation.item.delete", "item_id": "item_0"}')
    [deleted] = session.answers()
    session.decode('{"type": "input_audio_buffer.clear"}')
    [cleared] = session.answers()
    assert session.answers() == []
    for wire in (deleted, cleared):
        OFFICIAL[wire["type"]].validate_python(wire)
    with pytest.raises(InvalidEventError):
        session.decode('{"type": "conversation.item.retrieve", "item_id": "item_0"}')


def test_a_call_may_bring_its_session() -> None:
    settings = read_call_session(
        {"type": "realtime", "instructions": "Hum.", "audio": {"output": {"voice": "joe"}}}, DEFAULTS
    )
    assert settings == AgentSettings("Hum.", "joe")
    whole = {"output_modalities": ["text"], "tools": [TOOL], "audio": {"input": {"transcription": None}}}
    settings = read_call_session(whole, DEFAULTS)
    assert (settings.silent, settings.captions, len(settings.tools or ())) == (True, False, 1)
    with pytest.raises(UnsupportedError, match="audio track"):
        read_call_session({"audio": {"input": {"format": {"type": "audio/pcmu"}}}}, DEFAULTS)


# --- anything at all ----------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("session", "audio", "item", "item_id", "response", "response_id", "event_id", "played_ms", "content_index")


@given(st.sampled_from(sorted(READERS)), st.dictionaries(st.sampled_from(FIELDS), json_values))
def test_no_event_breaks_the_reader(kind: str, fields: dict[str, Any]) -> None:
    with contextlib.suppress(ProtocolError):  # and nothing else
        decode({"type": kind, **fields})


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_no_message_breaks_the_reader(message: str | bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(message)


@given(st.lists(st.integers(-32768, 32767), min_size=1, max_size=2 * PACKET_SAMPLES))
def test_pcm16_survives_both_conversions(values: list[int]) -> None:
    pcm = np.array(values, dtype="<i2").tobytes()
    assert to_pcm16(from_pcm16(pcm)) == pcm


def test_a_response_may_be_given_its_words() -> None:
    def create(say: object) -> rq.Request:
        return decode({"type": "response.create", "response": {"duplex": {"say": say}}})  # type: ignore[return-value]

    assert create("Welcome.") == rq.CreateReply(None, "Welcome.")
    for wrong in ("  ", 3):
        with pytest.raises(InvalidEventError) as refused:
            create(wrong)
        assert refused.value.param == "response.duplex.say"
