"""The public vocabulary: every event we send is one the official client's models take, every event we get is
read strictly."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.realtime import RealtimeServerEvent, SessionUpdateEvent
from PIL import Image as Pillow
from pydantic import TypeAdapter

from duplex import events as ev
from duplex import requests as rq
from duplex.agent import AgentSettings, AsideKind, Word
from duplex.conversation import Role
from duplex.errors import InvalidEventError, ProtocolError, TooLargeError, UnsupportedError
from duplex.frames import PACKET_SAMPLES, silence
from duplex.line import OutPacket
from duplex.testing import tone
from duplex.transport.pcm import from_pcm16, to_pcm16
from duplex.transport.realtime import RealtimeCodec, SessionDefaults, read_call_session
from duplex.transport.realtime_decode import READERS
from duplex.turn import Floor, User

OFFICIAL: dict[str, TypeAdapter[Any]] = {
    get_args(model.model_fields["type"].annotation)[0]: TypeAdapter(model)
    for model in get_args(get_args(RealtimeServerEvent)[0])
}
AT = ev.At(48_000, 12.5)
DEFAULTS = SessionDefaults(voices=("joe",), max_text_chars=1000)

ONE_OF_EACH: tuple[ev.Event, ...] = (
    ev.SessionStarted(AT, "sess_1", "echo", AgentSettings(instructions="Be brief.")),
    ev.SessionUpdated(AT, AgentSettings(voice="joe")),
    ev.UserSpeechStarted(AT, "item_1", 24_000),
    ev.UserTranscriptPartial(AT, "item_1", "what is"),
    ev.UserSpeechStopped(AT, "item_1", 48_000),
    ev.UserTurnCommitted(AT, "item_1", None),
    ev.UserTurnReopened(AT, "item_1"),
    ev.UserTranscriptFinal(AT, "item_1", "What is the capital of France?"),
    ev.FloorChanged(AT, Floor.THINKING, User.TURN_COMPLETE),
    ev.ItemAdded(AT, "item_0", Role.SYSTEM, "You are in a car.", None),
    ev.ItemAdded(AT, "item_0b", Role.ASSISTANT, "Hello.", "item_0"),
    ev.ReplyStarted(AT, "resp_1", "item_2", "item_1"),
    ev.ReplyTextAdded(AT, "resp_1", "item_2", "Paris, "),
    ev.ReplyAudioStarted(AT, "resp_1", "item_2"),
    ev.ReplyWords(AT, "resp_1", "item_2", (Word("Paris,", 0, 9_600, True),)),
    ev.PlayoutProgress(AT, "resp_1", 200.0, 100.0, "clock", 100.0),
    ev.ReplyHeld(AT, "resp_1"),
    ev.ReplyResumed(AT, "resp_1"),
    ev.ReplyTruncated(AT, "resp_1", "item_2", "Paris,", 400.4, "ack"),
    ev.ReplyFinished(AT, "resp_1", "item_2", "cancelled", "Paris, I think.", 900.0),
    ev.AsideStarted(AT, AsideKind.BACKCHANNEL, "Mm-hm."),
    ev.TurnTraced(AT, "item_1", "resp_1", (("commit", 300.0),), (("thinker", 100.0, 250.0),), 20.0, 320.0, 300.0, True),
    ev.ErrorRaised(AT, "AgentFaultError", "The talker stopped.", None, None),
    ev.SessionClosed(AT, "bye"),
)


def codec(*, audio_deltas: bool = True) -> RealtimeCodec:
    return RealtimeCodec(DEFAULTS, audio_deltas=audio_deltas)


def decode(event: Any, *, audio_deltas: bool = True) -> rq.Request | None:
    return codec(audio_deltas=audio_deltas).decode(event if isinstance(event, str | bytes) else json.dumps(event))


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


# --- what we send -----------------------------------------------------------------------------------


def test_there_is_an_example_of_every_internal_event() -> None:
    assert {type(event) for event in ONE_OF_EACH} == set(get_args(ev.Event))


@pytest.mark.parametrize("audio_deltas", [True, False])
def test_every_event_is_the_official_clients_or_an_extension(audio_deltas: bool) -> None:
    session = codec(audio_deltas=audio_deltas)
    sent = [wire for event in ONE_OF_EACH for wire in session.encode(event)]
    sound = session.encode_audio(OutPacket(0, tone(0.02), "resp_1", "item_2"))
    assert sound is not None
    for wire in [*sent, sound]:
        kind = wire["type"]
        json.dumps(wire, allow_nan=False)
        if kind.startswith("duplex."):
            assert wire["at_ms"] == 2000.0
            assert wire["at_s"] == 12.5
        else:
            parsed = OFFICIAL[kind].validate_python(wire)
            unknown = set(parsed.model_extra or {}) - {"duplex"}
            assert not unknown, f"{kind} has fields the official model does not know: {unknown}"
    ids = [wire["event_id"] for wire in [*sent, sound]]
    assert len(set(ids)) == len(ids)


def test_the_session_object_is_one_the_official_client_could_send_back() -> None:
    [created] = codec().encode(ONE_OF_EACH[0])
    SessionUpdateEvent.model_validate({"type": "session.update", "session": created["session"]})
    assert decode({"type": "session.update", "session": created["session"] | {"model": "x"}}) == rq.UpdateSettings(
        AgentSettings("Be brief.", "joe")
    )


def test_a_turn_is_told_in_the_published_order() -> None:
    session = codec()
    told = [kind for event in ONE_OF_EACH[2:8] for kind in types(session.encode(event))]
    assert told == [
        "input_audio_buffer.speech_started",
        "duplex.transcript.partial",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "duplex.turn.reopened",
        "conversation.item.input_audio_transcription.completed",
        "conversation.item.done",
    ]


def test_times_of_speech_are_media_time_and_its_length_is_the_usage() -> None:
    session = codec()
    [started] = session.encode(ONE_OF_EACH[2])
    [stopped] = session.encode(ONE_OF_EACH[4])
    assert (started["audio_start_ms"], stopped["audio_end_ms"]) == (1000, 2000)
    session.encode(ev.UserSpeechStarted(AT, "item_1", 72_000))
    session.encode(ev.UserSpeechStopped(AT, "item_1", 84_000))
    completed, _ = session.encode(ONE_OF_EACH[7])
    assert completed["usage"] == {"type": "duration", "seconds": 1.5}


def test_a_reopened_turn_stays_one_item() -> None:
    session = codec()
    commit = ev.UserTurnCommitted(AT, "item_1", None)
    assert types(session.encode(commit)) == ["input_audio_buffer.committed", "conversation.item.added"]
    session.encode(ev.UserTurnReopened(AT, "item_1"))
    assert types(session.encode(commit)) == ["input_audio_buffer.committed"]


def finish(session: RealtimeCodec, status: str, error: str | None = None) -> list[dict[str, Any]]:
    return session.encode(ev.ReplyFinished(AT, "resp_1", "item_2", status, "Paris, I think.", 900.0, error))


def test_a_spoken_reply_is_told_in_the_published_order() -> None:
    session = codec()
    assert types(session.encode(ev.ReplyStarted(AT, "resp_1", "item_2", "item_1"))) == [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
    ]
    [delta] = session.encode(ev.ReplyTextAdded(AT, "resp_1", "item_2", "Paris, "))
    assert delta["type"] == "response.output_audio_transcript.delta"
    done = finish(session, "completed")
    assert types(done) == [
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
    ]
    response = done[-1]["response"]
    assert (response["status"], response["status_details"]) == ("completed", None)
    assert response["output"][0]["content"] == [{"type": "output_audio", "transcript": "Paris, I think."}]
    assert response["output"][0]["status"] == "completed"


def test_a_reply_cut_off_keeps_the_words_that_were_heard() -> None:
    session = codec()
    session.encode(ev.ReplyStarted(AT, "resp_1", "item_2", "item_1"))
    [truncated] = session.encode(ev.ReplyTruncated(AT, "resp_1", "item_2", "Paris,", 400.4, "ack"))
    assert truncated["audio_end_ms"] == 400
    done = finish(session, "cancelled")
    item = done[-1]["response"]["output"][0]
    assert (item["content"][0]["transcript"], item["status"]) == ("Paris,", "incomplete")
    assert done[1]["transcript"] == "Paris, I think."  # the sum of the deltas
    assert done[-1]["response"]["status_details"] == {"type": "cancelled", "reason": "turn_detected"}


def test_a_reply_the_client_cancelled_says_so() -> None:
    session = codec()
    session.encode(ev.ReplyStarted(AT, "resp_1", "item_2", None))
    assert session.decode('{"type": "response.cancel"}') == rq.CancelReply(None)
    assert finish(session, "cancelled")[-1]["response"]["status_details"]["reason"] == "client_cancelled"
    session.encode(ev.ReplyStarted(AT, "resp_1", "item_2", None))
    assert finish(session, "cancelled")[-1]["response"]["status_details"]["reason"] == "turn_detected"


def test_a_failed_reply_says_why() -> None:
    session = codec()
    session.encode(ev.ReplyStarted(AT, "resp_1", "item_2", None))
    details = finish(session, "failed", "The thinker is down.")[-1]["response"]["status_details"]
    assert details["error"]["message"] == "The thinker is down."


@pytest.mark.parametrize(("status", "end"), [("completed", "stopped"), ("cancelled", "cleared")])
def test_an_audio_track_has_its_buffer_events(status: str, end: str) -> None:
    for audio_deltas, expected in ((False, ["output_audio_buffer.started", f"output_audio_buffer.{end}"]), (True, [])):
        session = codec(audio_deltas=audio_deltas)
        session.encode(ev.ReplyStarted(AT, "resp_1", "item_2", None))
        told = types(session.encode(ev.ReplyAudioStarted(AT, "resp_1", "item_2"))) + types(finish(session, status))
        assert [kind for kind in told if kind.startswith("output_audio_buffer.")] == expected


def test_sound_goes_out_as_pcm16_and_silence_between_replies_does_not() -> None:
    session = codec()
    packet = OutPacket(0, tone(0.02), "resp_1", "item_2")
    delta = session.encode_audio(packet)
    assert delta is not None
    np.testing.assert_allclose(from_pcm16(base64.b64decode(delta["delta"])), packet.samples, atol=1 / 32768)
    assert session.encode_audio(OutPacket(480, silence())) is None


def test_errors_tell_whose_fault_it_was() -> None:
    [ours] = codec().encode(ev.ErrorRaised(AT, "ThinkerUnavailableError", "down"))
    assert (ours["error"]["type"], ours["error"]["code"]) == ("server_error", "thinker_unavailable")
    session = codec()
    with pytest.raises(InvalidEventError) as refused:
        session.decode('{"type": "response.craete", "event_id": "mine"}')
    [theirs] = session.refusal(refused.value, AT)
    assert theirs["error"]["type"] == "invalid_request_error"
    assert theirs["error"]["event_id"] == "mine"
    assert "response.create" in theirs["error"]["message"]


# --- text only, and captions off ----------------------------------------------------------------------


def test_text_replies_on_request() -> None:
    session = codec()
    request = session.decode(
        '{"type": "session.update", "session": {"type": "realtime", "output_modalities": ["text"]}}'
    )
    assert request == rq.UpdateSettings(AgentSettings())
    [updated] = session.encode(ev.SessionUpdated(AT, AgentSettings()))
    assert updated["session"]["output_modalities"] == ["text"]
    told = session.encode(ev.ReplyStarted(AT, "resp_1", "item_2", None))
    told += session.encode(ev.ReplyTextAdded(AT, "resp_1", "item_2", "Paris."))
    told += finish(session, "completed")
    assert [kind for kind in types(told) if "output_" in kind and "item" not in kind] == [
        "response.output_text.delta",
        "response.output_text.done",
    ]
    assert session.encode_audio(OutPacket(0, tone(0.02), "resp_1", "item_2")) is None
    for wire in told:
        OFFICIAL[wire["type"]].validate_python(wire)
    with pytest.raises(UnsupportedError, match="audio track"):
        decode({"type": "session.update", "session": {"output_modalities": ["text"]}}, audio_deltas=False)


def test_captions_can_be_switched_off() -> None:
    session = codec()
    session.decode('{"type": "session.update", "session": {"audio": {"input": {"transcription": null}}}}')
    session.encode(ev.SessionUpdated(AT, AgentSettings()))
    assert session.encode(ONE_OF_EACH[3]) == []
    assert types(session.encode(ONE_OF_EACH[7])) == ["conversation.item.done"]


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
        ({"type": "output_audio_buffer.clear"}, rq.CancelReply()),
        (
            {"type": "duplex.playback.ack", "response_id": "resp_1", "played_ms": 812.5},
            rq.AcknowledgePlayout("resp_1", 812.5),
        ),
    ],
)
def test_client_events_become_requests(event: dict[str, Any], request_: rq.Request) -> None:
    assert decode(event) == request_


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
    assert request == rq.UpdateSettings(AgentSettings(session.get("instructions"), None))


def nested(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    return {"type": "session.update", **value}


@pytest.mark.parametrize(
    ("path", "value", "advice"),
    [
        ("session.type", "transcription", "realtime"),
        ("session.output_modalities", ["audio", "text"], "audio"),
        ("session.audio.input.format.type", "audio/pcmu", "24000"),
        ("session.audio.input.format.rate", 16000, "24000"),
        ("session.audio.output.format.type", "audio/pcma", "24000"),
        ("session.audio.output.voice", "hal", "joe"),
        ("session.audio.output.speed", 1.5, "1.0"),
        ("session.audio.input.turn_detection", None, "commit"),
        ("session.audio.input.turn_detection.threshold", 0.9, "thresholds"),
        ("session.audio.input.turn_detection.silence_duration_ms", 2000, "thresholds"),
        ("session.audio.input.turn_detection.idle_timeout_ms", 5000, "leave this field out"),
        ("session.audio.input.turn_detection.interrupt_response", False, "leave this field out"),
        ("session.audio.input.turn_detection.eagerness", "keen", "auto"),
        ("session.audio.input.noise_reduction", {"type": "near_field"}, "before sending"),
        ("session.audio.input.transcription.language", "de", "'en'"),
        ("session.tools", [{"type": "function", "name": "f"}], "tools"),
        ("session.max_output_tokens", 100, "inf"),
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


@pytest.mark.parametrize("field", ["conversation", "input", "tools", "max_output_tokens", "prompt"])
def test_responses_out_of_band_are_refused(field: str) -> None:
    value = {"conversation": "none", "input": [], "tools": [{}], "max_output_tokens": 1, "prompt": {"id": "p"}}[field]
    with pytest.raises(UnsupportedError) as refused:
        decode({"type": "response.create", "response": {field: value}})
    assert refused.value.param == f"response.{field}"


def test_items_from_the_client() -> None:
    with pytest.raises(UnsupportedError, match="end of the conversation"):
        decode({"type": "conversation.item.create", "item": MESSAGE, "previous_item_id": "root"})
    with pytest.raises(UnsupportedError, match="message"):
        decode({"type": "conversation.item.create", "item": {"type": "function_call_output"}})
    content = [{"type": "input_audio", "audio": "AAAA"}]
    with pytest.raises(UnsupportedError, match="live"):
        decode({"type": "conversation.item.create", "item": MESSAGE | {"content": content}})


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
    with pytest.raises(UnsupportedError):
        read_call_session({"output_modalities": ["text"]}, DEFAULTS)


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
