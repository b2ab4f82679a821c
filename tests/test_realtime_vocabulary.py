"""The public vocabulary: every event we send is one the official client's models take, every event we get is
read strictly."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from openai.types.realtime import SessionUpdateEvent
from realtime_talk import OFFICIAL, check_official

from duplex import events as ev
from duplex import requests as rq
from duplex.agent import AgentSettings, AsideKind, ToolChoice, Word
from duplex.conversation import Role
from duplex.errors import InvalidEventError
from duplex.frames import silence
from duplex.line import OutPacket
from duplex.testing import tone
from duplex.transport.pcm import from_pcm16
from duplex.transport.realtime import RealtimeCodec, SessionDefaults
from duplex.turn import Floor, User
from duplex.turn_rules import TurnRules

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
    ev.IdleTimedOut(AT, "item_9", 24_000, 48_000),
    ev.UserTranscriptFinal(AT, "item_1", "What is the capital of France?"),
    ev.FloorChanged(AT, Floor.THINKING, User.TURN_COMPLETE),
    ev.ItemAdded(AT, "item_0", Role.SYSTEM, "You are in a car.", None),
    ev.ItemAdded(AT, "item_0b", Role.ASSISTANT, "Hello.", "item_0"),
    ev.ToolCallAdded(AT, "item_0c", "item_0b", "call_0", "find_order", "{}"),
    ev.ToolResultAdded(AT, "item_0d", "item_0c", "call_0", "none"),
    ev.KeyPressed(AT, "5"),
    ev.ReplyStarted(AT, "resp_1", "item_2", "item_1"),
    ev.ReplyTextAdded(AT, "resp_1", "item_2", "Paris, "),
    ev.ReplyAudioStarted(AT, "resp_1", "item_2"),
    ev.ToolCallStarted(AT, "resp_1", "item_3", "item_2", "call_1", "find_order"),
    ev.ToolCallDelta(AT, "resp_1", "item_3", "call_1", '{"a"'),
    ev.ToolCallDone(AT, "resp_1", "item_3", "call_1", "find_order", '{"a": 1}'),
    ev.ReplyWords(AT, "resp_1", "item_2", (Word("Paris,", 0, 9_600, True),)),
    ev.PlayoutProgress(AT, "resp_1", 200.0, 100.0, "clock", 100.0),
    ev.LineLost(AT, 0.45, "resp_1", 812.5),
    ev.LineBack(AT, 3.02, "resp_1", 812.5),
    ev.SessionDraining(AT, 30.0),
    ev.ReplyHeld(AT, "resp_1"),
    ev.ReplyResumed(AT, "resp_1"),
    ev.ReplyTruncated(AT, "resp_1", "item_2", "Paris,", 400.4, "ack"),
    ev.ReplyFinished(AT, "resp_1", "item_2", "cancelled", "Paris, I think.", 900.0, None, ev.Usage(9, 4, 3)),
    ev.AsideStarted(AT, AsideKind.BACKCHANNEL, "Mm-hm."),
    ev.TurnTraced(AT, "item_1", "resp_1", (("commit", 300.0),), (("thinker", 100.0, 250.0),), 20.0, 320.0, 300.0, True),
    ev.ErrorRaised(AT, "AgentFaultError", "The talker stopped.", None, None),
    ev.SessionClosed(AT, "bye"),
)


TURN = [event for event in ONE_OF_EACH[2:9] if not isinstance(event, ev.IdleTimedOut)]
FINAL = TURN[-1]


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
    [sound] = session.encode_audio(OutPacket(0, tone(0.02), "resp_1", "item_2"))
    for wire in [*sent, sound]:
        kind = wire["type"]
        json.dumps(wire, allow_nan=False)
        check_official(wire)
        if kind.startswith("duplex."):
            assert wire["at_ms"] == 2000.0
            assert wire["at_s"] == 12.5
    ids = [wire["event_id"] for wire in [*sent, sound]]
    assert len(set(ids)) == len(ids)


def test_the_session_object_is_one_the_official_client_could_send_back() -> None:
    [created] = codec().encode(ONE_OF_EACH[0])
    SessionUpdateEvent.model_validate({"type": "session.update", "session": created["session"]})
    request = decode({"type": "session.update", "session": created["session"] | {"model": "x"}})
    assert isinstance(request, rq.UpdateSettings)
    back = AgentSettings("Be brief.", "joe", turns=TurnRules(), tools=(), tool_choice=ToolChoice())
    assert request.settings == replace(back, silent=False, captions=True)
    assert request.reset == ("max_output_tokens", "turn_taking")


def test_a_turn_is_told_in_the_published_order() -> None:
    session = codec()
    told = [kind for event in TURN for kind in types(session.encode(event))]
    assert told == [
        "input_audio_buffer.speech_started",
        "duplex.transcript.partial",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "duplex.turn.reopened",
        "conversation.item.input_audio_transcription.delta",
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
    _, completed, _ = session.encode(FINAL)
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
    assert types(session.encode(ev.ReplyStarted(AT, "resp_1", "item_2", "item_1"))) == ["response.created"]
    assert types(session.encode(ev.ReplyTextAdded(AT, "resp_1", "item_2", "Paris, "))) == [
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        "response.output_audio_transcript.delta",
    ]
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
    session.encode(ev.ReplyTextAdded(AT, "resp_1", "item_2", "Paris, I think."))
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
    session.encode(ev.ReplyStarted(AT, "resp_1", "item_2", None))
    *before, delta = session.encode_audio(packet)
    assert types(before) == ["response.output_item.added", "conversation.item.added", "response.content_part.added"]
    np.testing.assert_allclose(from_pcm16(base64.b64decode(delta["delta"])), packet.samples, atol=1 / 32768)
    assert session.encode_audio(OutPacket(480, silence())) == []


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
    assert request == rq.UpdateSettings(AgentSettings(silent=True))
    [updated] = session.encode(ev.SessionUpdated(AT, AgentSettings(silent=True)))
    assert updated["session"]["output_modalities"] == ["text"]
    told = session.encode(ev.ReplyStarted(AT, "resp_1", "item_2", None, silent=True))
    told += session.encode(ev.ReplyTextAdded(AT, "resp_1", "item_2", "Paris."))
    told += finish(session, "completed")
    assert [kind for kind in types(told) if "output_" in kind and "item" not in kind] == [
        "response.output_text.delta",
        "response.output_text.done",
    ]
    assert session.encode_audio(OutPacket(0, tone(0.02), "resp_1", "item_2")) == []
    for wire in told:
        OFFICIAL[wire["type"]].validate_python(wire)


def test_captions_can_be_switched_off() -> None:
    session = codec()
    off = '{"type": "session.update", "session": {"audio": {"input": {"transcription": null}}}}'
    assert session.decode(off) == rq.UpdateSettings(AgentSettings(captions=False))
    session.encode(ev.SessionUpdated(AT, AgentSettings(captions=False)))
    assert session.encode(ONE_OF_EACH[3]) == []
    [done] = session.encode(FINAL)
    assert (done["type"], done["item"]["content"][0]["transcript"]) == ("conversation.item.done", None)


def test_a_turn_that_was_not_understood_says_why() -> None:
    failed, done = codec().encode(ev.UserTranscriptFinal(AT, "item_1", "", "The listener stopped."))
    OFFICIAL[failed["type"]].validate_python(failed)
    assert failed["type"] == "conversation.item.input_audio_transcription.failed"
    assert failed["error"]["message"] == "The listener stopped."
    assert done["type"] == "conversation.item.done"


def test_the_items_of_a_response_have_places_of_their_own() -> None:
    session = codec()
    told = session.encode(ev.ReplyStarted(AT, "resp_1", "item_2", "item_1"))
    for event in (
        ev.ToolCallStarted(AT, "resp_1", "item_3", "item_1", "call_1", "f"),
        ev.ReplyTextAdded(AT, "resp_1", "item_2", "One moment."),
        ev.ToolCallDone(AT, "resp_1", "item_3", "call_1", "f", "{}"),
        ev.ToolCallStarted(AT, "resp_1", "item_4", "item_2", "call_2", "g"),
        ev.ToolCallDelta(AT, "resp_1", "item_4", "call_2", '{"a'),
        ev.ReplyFinished(AT, "resp_1", "item_2", "cancelled", "One moment.", 0.0),
    ):
        told += session.encode(event)
    added = [(e["output_index"], e["item"]["id"]) for e in told if e["type"] == "response.output_item.added"]
    assert added == [(0, "item_3"), (1, "item_2"), (2, "item_4")]
    previous = [e["previous_item_id"] for e in told if e["type"] == "conversation.item.added"]
    assert previous == ["item_1", "item_3", "item_2"]
    output = told[-1]["response"]["output"]
    assert [(item["id"], item["status"]) for item in output] == [
        ("item_3", "completed"),
        ("item_2", "incomplete"),
        ("item_4", "incomplete"),
    ]
    assert output[2]["arguments"] == '{"a'
    for wire in told:
        OFFICIAL[wire["type"]].validate_python(wire)


def test_a_reply_outside_the_conversation_adds_no_items() -> None:
    session = codec()
    started = ev.ReplyStarted(AT, "resp_1", "item_2", None, True, False, {"topic": "mood"}, 7)
    told = session.encode(started) + session.encode(ev.ReplyTextAdded(AT, "resp_1", "item_2", "Glad."))
    told += session.encode(ev.ReplyFinished(AT, "resp_1", "item_2", "completed", "Glad.", 0.0))
    assert not [kind for kind in types(told) if kind.startswith("conversation.")]
    done = told[-1]["response"]
    assert (done["conversation_id"], done["metadata"], done["max_output_tokens"]) == (None, {"topic": "mood"}, 7)
    assert done["output_modalities"] == ["text"]
