"""Twilio's messages: what is read, what is written, what is refused by the name of its field."""

from __future__ import annotations

import base64
import json
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duplex.agent import AgentSettings
from duplex.errors import InvalidEventError, ProtocolError, TooLargeError, UnsupportedError
from duplex.transport import twilio_wire as wire

# Written after the examples of Twilio's page on WebSocket messages, a whole call in their order.
CAPTURE = [
    ('{"event":"connected","protocol":"Call","version":"1.0.0"}', wire.Connected(), None),
    (
        '{"event":"start","sequenceNumber":"1","start":{"accountSid":"AC00000000000000000000000000000001",'
        '"streamSid":"MZ00000000000000000000000000000002","callSid":"CA00000000000000000000000000000003",'
        '"tracks":["inbound"],"mediaFormat":{"encoding":"audio/x-mulaw","sampleRate":8000,"channels":1},'
        '"customParameters":{"FirstName":"Jane","LastName":"Doe"}},'
        '"streamSid":"MZ00000000000000000000000000000002"}',
        wire.Start(
            "MZ00000000000000000000000000000002",
            "CA00000000000000000000000000000003",
            {"FirstName": "Jane", "LastName": "Doe"},
        ),
        1,
    ),
    (
        '{"event":"media","sequenceNumber":"2","media":{"track":"inbound","chunk":"1","timestamp":"5",'
        '"payload":"//5+fn7+"},"streamSid":"MZ00000000000000000000000000000002"}',
        wire.Media(b"\xff\xfe~~~\xfe"),
        2,
    ),
    (
        '{"event":"mark","sequenceNumber":"3","streamSid":"MZ00000000000000000000000000000002",'
        '"mark":{"name":"my label"}}',
        wire.Mark("my label"),
        3,
    ),
    (
        '{"event":"dtmf","streamSid":"MZ00000000000000000000000000000002","sequenceNumber":"4",'
        '"dtmf":{"track":"inbound_track","digit":"1"}}',
        wire.Dtmf("1"),
        4,
    ),
    (
        '{"event":"stop","sequenceNumber":"5","stop":{"accountSid":"AC00000000000000000000000000000001",'
        '"callSid":"CA00000000000000000000000000000003"},"streamSid":"MZ00000000000000000000000000000002"}',
        wire.Stop(),
        5,
    ),
]


@pytest.mark.parametrize(("text", "body", "number"), CAPTURE, ids=[type(body).__name__ for _, body, _ in CAPTURE])
def test_the_documented_messages_are_read(text: str, body: wire.Body, number: int | None) -> None:
    assert wire.read(text) == wire.Received(body, number)


def test_what_we_write_is_what_is_documented() -> None:
    assert json.loads(wire.media("MZ1", b"\xff\x7f")) == {
        "event": "media",
        "streamSid": "MZ1",
        "media": {"payload": "/38="},
    }
    assert json.loads(wire.mark("MZ1", "3-480")) == {"event": "mark", "streamSid": "MZ1", "mark": {"name": "3-480"}}
    assert json.loads(wire.clear("MZ1")) == {"event": "clear", "streamSid": "MZ1"}


def started(**changes: Any) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(CAPTURE[1][0])
    message["start"] |= changes
    return message


def of_media(**changes: Any) -> dict[str, Any]:
    return {"event": "media", "sequenceNumber": "2", "media": {"track": "inbound", "payload": "//8="} | changes}


FORMAT = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
WRONG: list[tuple[Any, type[ProtocolError], str | None]] = [
    ([], InvalidEventError, None),
    ({}, InvalidEventError, "event"),
    ({"event": 7}, InvalidEventError, "event"),
    ({"event": "media"}, InvalidEventError, "media"),
    ({"event": "media", "media": [1]}, InvalidEventError, "media"),
    (of_media(payload=None), InvalidEventError, "media.payload"),
    (of_media(payload="no base64!"), InvalidEventError, "media.payload"),
    (of_media(payload="//8"), InvalidEventError, "media.payload"),
    (of_media(payload="ÿÿÿÿ"), InvalidEventError, "media.payload"),
    (of_media(payload="A" * 32772), TooLargeError, "media.payload"),
    (of_media(payload="A" * 70_000), TooLargeError, None),
    (of_media(track="sideways"), InvalidEventError, "media.track"),
    (of_media() | {"sequenceNumber": "two"}, InvalidEventError, "sequenceNumber"),
    (of_media() | {"sequenceNumber": 2.5}, InvalidEventError, "sequenceNumber"),
    (of_media() | {"sequenceNumber": "9" * 5000}, InvalidEventError, "sequenceNumber"),
    (of_media() | {"sequenceNumber": {}}, InvalidEventError, "sequenceNumber"),
    ({"event": "start"}, InvalidEventError, "start"),
    (started(streamSid=""), InvalidEventError, "start.streamSid"),
    (started(mediaFormat=None), InvalidEventError, "start.mediaFormat"),
    (started(mediaFormat=FORMAT | {"encoding": "audio/pcm"}), UnsupportedError, "start.mediaFormat.encoding"),
    (started(mediaFormat=FORMAT | {"sampleRate": 16000}), UnsupportedError, "start.mediaFormat.sampleRate"),
    (started(mediaFormat=FORMAT | {"channels": 2}), UnsupportedError, "start.mediaFormat.channels"),
    (started(tracks=["outbound"]), UnsupportedError, "start.tracks"),
    ({"event": "dtmf", "dtmf": {}}, InvalidEventError, "dtmf.digit"),
    ({"event": "dtmf", "dtmf": {"digit": "12"}}, InvalidEventError, "dtmf.digit"),
    ({"event": "dtmf", "dtmf": {"digit": "E"}}, InvalidEventError, "dtmf.digit"),
    ({"event": "mark"}, InvalidEventError, "mark"),
    ({"event": "mark", "mark": {"name": 3}}, InvalidEventError, "mark.name"),
]


@pytest.mark.parametrize(("message", "error", "param"), WRONG)
def test_what_is_wrong_is_refused_by_its_name(message: Any, error: type[ProtocolError], param: str | None) -> None:
    with pytest.raises(error) as refused:
        wire.read(json.dumps(message))
    assert refused.value.param == param
    assert len(str(refused.value)) < 300
    if param is not None:
        assert param.rpartition(".")[2] in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "NaN", "[" * 100_000, '{"event":' + "[" * 40 + "]" * 40 + "}", "\ud800"])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        wire.read(text)


@settings(max_examples=30, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.dictionaries(st.text(), x)))
def test_any_json_is_read_or_refused(value: Any) -> None:
    for message in (value, {"event": "start", "start": value}, {"event": "media", "media": value}):
        try:
            assert isinstance(wire.read(json.dumps(message)), wire.Received)
        except ProtocolError:
            pass


@pytest.mark.parametrize("size", [0, 1, 7, 159, 160, 161, 4000])
def test_sound_of_any_size_is_sound(size: int) -> None:
    payload = base64.b64encode(bytes(size)).decode()
    assert wire.read(json.dumps(of_media(payload=payload))).body == wire.Media(bytes(size))


def test_our_own_voice_and_events_of_another_day_are_passed_over() -> None:
    assert wire.read(json.dumps(of_media(track="outbound"))).body == wire.Other("media of the outbound track")
    assert wire.read('{"event":"transcription","sequenceNumber":"9"}') == wire.Received(wire.Other("transcription"), 9)


@pytest.mark.parametrize("key", "0123456789*#ABCDabcd")
def test_every_key_of_a_telephone(key: str) -> None:
    assert wire.read(json.dumps({"event": "dtmf", "dtmf": {"digit": key}})).body == wire.Dtmf(key.upper())


def test_the_order_of_messages() -> None:
    order = wire.Sequence()
    assert [order.missing(n) for n in (None, 1, 2, 2, 5, 4, None, 6)] == [0, 0, 0, -1, 2, -1, 0, 0]


def test_what_a_stream_asks_for() -> None:
    ask = {"instructions": " Be brief. ", "voice": "anna", "FirstName": "Jane"}
    assert wire.settings_of(ask, ("anna", "joe"), 100) == (AgentSettings(instructions="Be brief.", voice="anna"), [])
    assert wire.settings_of({}, (), 100) == (AgentSettings(), [])
    assert wire.settings_of({"voice": "any"}, (), 100)[0].voice == "any"  # the agent knows by itself


def test_what_it_cannot_have_is_left_out_and_named() -> None:
    asked, wrong = wire.settings_of({"instructions": "x" * 101, "voice": "nobody"}, ("anna",), 100)
    assert asked == AgentSettings()
    assert [error.param for error in wrong] == [
        "start.customParameters.instructions",
        "start.customParameters.voice",
    ]
    assert "anna" in str(wrong[1])


@given(st.text(max_size=200), st.text(max_size=200))
def test_twiml_holds_whatever_is_asked_for(name: str, value: str) -> None:
    document = wire.twiml_stream("wss://a.example/twilio/media", {"x" + name: value})
    (parameter,) = ElementTree.fromstring(document.encode("utf-8")).iter("Parameter")

    def kept(text: str) -> str:
        return "".join(c if c in "\t\n\r" or (c >= " " and c not in "\ufffe\uffff") else "?" for c in text)

    assert parameter.attrib == {"name": "x" + kept(name), "value": kept(value)}


def test_twiml_that_twilio_would_cut_is_refused() -> None:
    assert "Parameter" in wire.twiml_stream("wss://a", {"n": "v" * 499})
    with pytest.raises(TooLargeError, match="at most 500"):
        wire.twiml_stream("wss://a", {"n": "v" * 500})
