"""The Moshi protocol without a network: its bytes, its address, which word goes with which packet, and the line."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duplex import events as ev
from duplex.agent import AgentSettings, AsideKind, Word
from duplex.bitrate import LinkReport, LinkReporting
from duplex.clock import Timer
from duplex.errors import InvalidEventError, ProtocolError, TooLargeError, UnsupportedError
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Samples, silence
from duplex.line import OutPacket
from duplex.metrics import Metrics
from duplex.testing import tone
from duplex.transport import moshi_chat_wire as wire
from duplex.transport.moshi_chat_line import BEHIND_PACKETS, MoshiLine
from duplex.transport.moshi_chat_text import SpokenText
from duplex.transport.moshi_chat_wire import Kind

AT = ev.At(0, 0.0)
STARTED = ev.SessionStarted(AT, "sess_1", "scripted", AgentSettings())


# --- bytes ------------------------------------------------------------------------------------------------


def test_messages_are_a_kind_and_a_payload() -> None:
    assert wire.HANDSHAKE == b"\x00"
    assert wire.audio(b"OggS...") == b"\x01OggS..."
    assert wire.text(" né") == b"\x02 n\xc3\xa9"
    assert wire.error("no") == b"\x05no"
    assert wire.text("\ud800") == b"\x02?"  # half a surrogate pair is no text, and no reason to fall over


@given(st.binary(max_size=20))
def test_any_message_can_be_read(message: bytes) -> None:
    kind, payload = wire.read(message)
    if message and message[0] <= 6:
        assert (kind, payload) == (Kind(message[0]), message[1:])
    else:
        assert (kind, payload) == (None, b"")


@pytest.mark.parametrize("payload", [b"", bytes(2), bytes(8), b"\x00\x07", bytes(4) + b"\x01\x02\x03\x04"])
def test_all_three_handshakes_are_understood(payload: bytes) -> None:
    wire.check_handshake(payload)  # any model; version 0


@pytest.mark.parametrize(
    ("payload", "error", "says"),
    [
        (b"\x01\x00", UnsupportedError, "version 1"),
        (b"\x02\x01\x00\x00" + bytes(4), UnsupportedError, "version 258"),
        (bytes(3), InvalidEventError, "this one has 4"),
    ],
)
def test_other_handshakes_are_refused(payload: bytes, error: type[ProtocolError], says: str) -> None:
    with pytest.raises(error, match=says):
        wire.check_handshake(payload)


# --- the address ------------------------------------------------------------------------------------------

STOCK_PAGE = {
    "text_temperature": "0.7",
    "text_topk": "25",
    "audio_temperature": "0.8",
    "audio_topk": "250",
    "pad_mult": "0",
    "text_seed": "12345",
    "audio_seed": "54321",
    "repetition_penalty_context": "64",
    "repetition_penalty": "1",
}
PERSONAPLEX_PAGE = {**STOCK_PAGE, "text_prompt": " You are a wise teacher. ", "voice_prompt": "NATF0.pt"}


def settings_of(query: dict[str, str], voices: tuple[str, ...] = ()) -> AgentSettings:
    return wire.read_query(query, voices, max_text_chars=1000)


def test_what_the_stock_pages_send_is_taken() -> None:
    assert settings_of({}) == AgentSettings()
    assert settings_of(STOCK_PAGE) == AgentSettings()
    settings = settings_of(PERSONAPLEX_PAGE, ("NATF0", "NATM0"))
    assert settings == AgentSettings(instructions="You are a wise teacher.", voice="NATF0")
    assert settings_of({"worker_auth_id": "x", "email": "a@b.example", "of_tomorrow": "1"}) == AgentSettings()


@pytest.mark.parametrize(
    ("asked", "voices", "voice"),
    [
        ("", ("anna",), None),
        ("anna", ("anna", "joe"), "anna"),
        ("joe.pt", ("anna", "joe"), "joe"),
        ("NATM1", ("NATF0.pt", "NATM1.pt"), "NATM1.pt"),
        ("NATF0.pt", ("piper-joe",), None),  # PersonaPlex's page always names one
        ("VARM3.pt", (), None),
        ("anything.wav", (), "anything.wav"),  # the agent says what it has
    ],
)
def test_voices(asked: str, voices: tuple[str, ...], voice: str | None) -> None:
    assert settings_of({"voice_prompt": asked}, voices).voice == voice


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"voice_prompt": "nobody.pt"}, "anna"),
        ({"voice_prompt": "../secrets.pt"}, "not a path"),
        ({"voice_prompt": "/etc/passwd"}, "not a path"),
        ({"voice_prompt": "..\\x.wav"}, "not a path"),
        ({"voice_prompt": ".hidden"}, "not a path"),
        ({"voice_prompt": "anna\0.pt"}, "not a path"),
        ({"text_seed": "a lot"}, "text_seed must be a whole number"),
        ({"seed": "1.5"}, "whole number"),
        ({"text_temperature": "nan"}, "text_temperature must be a number"),
        ({"audio_temperature": "-1"}, "at least 0"),
        ({"audio_topk": "many"}, "audio_topk"),
        ({"pad_mult": "inf"}, "pad_mult"),
        ({"text_prompt": "x" * 1001}, "1001 characters; at most 1000"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(query: dict[str, str], says: str) -> None:
    with pytest.raises(ProtocolError, match=says) as refused:
        settings_of(query, ("anna",))
    assert refused.value.param in query
    assert isinstance(refused.value, TooLargeError) == ("text_prompt" in query)


# --- words with their sound -------------------------------------------------------------------------------


def words(*texts: str, each: int = 2 * PACKET_SAMPLES) -> tuple[Word, ...]:
    return tuple(Word(text, i * each, (i + 1) * each) for i, text in enumerate(texts))


def test_words_come_with_the_packet_they_begin_in() -> None:
    spoken = SpokenText()
    spoken.add_text("r", "All right. Then")
    spoken.add_words("r", words("All", "right.", "Then"))
    assert [spoken.passing("r") for _ in range(6)] == [" All", "", " right.", "", " Then", ""]


def test_a_native_model_is_shown_piece_by_piece_as_it_speaks() -> None:
    spoken = SpokenText(by_words=False)
    spoken.add_text("r", "Hel")
    assert spoken.passing("r") == " Hel"  # it does not run into what was there before
    spoken.add_text("r", "lo")
    spoken.add_words("r", words("Hello"))  # which is known once it is whole
    assert [spoken.passing("r") for _ in range(2)] == ["lo", ""]
    spoken.add_text("r", " there")
    assert spoken.rest("r") == " there"


def test_a_reply_without_word_times_is_shown_once_that_is_plain() -> None:
    spoken = SpokenText()
    spoken.add_text("r", "Hello")
    assert [spoken.passing("r") for _ in range(25)] == [""] * 25  # words may still come with the next piece of sound
    assert spoken.passing("r") == " Hello"
    spoken.add_text("r", " there")
    spoken.add_words("r", words("Hello", "there"))  # too late to go by them: nothing is said twice
    assert [spoken.passing("r") for _ in range(4)] == [" there", "", "", ""]


def test_words_may_come_a_little_after_their_reply_began_to_sound() -> None:
    spoken = SpokenText()
    spoken.add_text("r", "Hello there")
    assert spoken.passing("r") == ""
    spoken.add_words("r", words("Hello", "there"))
    assert [spoken.passing("r") for _ in range(3)] == [" Hello", " there", ""]


def test_what_was_cut_off_is_not_shown_and_what_was_said_to_the_end_is_whole() -> None:
    spoken = SpokenText()
    for reply_id in ("cut", "whole", "silent"):
        spoken.add_text(reply_id, "one two three")
    for reply_id in ("cut", "whole"):
        spoken.add_words(reply_id, words("one", "two", "three"))
    assert spoken.passing("cut") == spoken.passing("whole") == " one"
    spoken.forget("cut")
    assert spoken.rest("cut") == ""
    assert spoken.rest("whole") == " two three"
    assert spoken.rest("whole") == ""
    assert spoken.rest("silent") == " one two three"  # a reply that made no sound


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 900)), max_size=12))
def test_every_word_comes_once_and_in_order(spans: list[tuple[int, int]]) -> None:
    spoken, said, start = SpokenText(), [], 0
    listed = []
    for number, (gap, length) in enumerate(spans):
        start += gap
        listed.append(Word(f"w{number}", start, start + length))
        start += length
    if listed:
        spoken.add_words("r", listed)
    for packet in range(start // PACKET_SAMPLES + 1):
        said += spoken.passing("r").split()
        assert len(said) == sum(word.start_samples < (packet + 1) * PACKET_SAMPLES for word in listed)
    assert [*said, *spoken.rest("r").split()] == [word.text for word in listed]


# --- the line ---------------------------------------------------------------------------------------------


class HandClock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def now(self) -> float:
        return self.now_s

    def call_at(self, deadline_s: float, callback: Any) -> Timer:
        raise NotImplementedError

    async def sleep_until(self, deadline_s: float) -> None:
        raise NotImplementedError


class FakeSocket:
    """Takes messages while ``open``; then a send hangs, as it does when the far end stops reading."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.open = asyncio.Event()
        self.open.set()

    async def send_bytes(self, message: bytes) -> None:
        await self.open.wait()
        self.sent.append(message)


class Plain:
    """A writer whose bytes show what was written."""

    def write(self, samples: Samples) -> bytes:
        return b"loud" if samples.any() else b"quiet"


def make_line(max_unsent: int = 512) -> tuple[MoshiLine, HandClock, Metrics]:
    clock, metrics = HandClock(), Metrics()
    return MoshiLine(clock, metrics, Plain(), max_unsent=max_unsent, max_message_s=1.0), clock, metrics


async def sent(line: MoshiLine) -> list[bytes]:
    """All that is queued, as it goes out."""
    socket = FakeSocket()
    line.end(1000, "done")
    await line.run_sender(socket)  # type: ignore[arg-type]
    return socket.sent


def packet(reply_id: str | None = "r") -> OutPacket:
    return OutPacket(0, tone(0.02) if reply_id else silence(), reply_id, "item_1" if reply_id else None)


async def test_a_reply_goes_out_in_words_and_sound_and_silence_goes_out_too() -> None:
    line, _, _ = make_line()
    line.emit(STARTED)
    line.send(packet(None))
    line.emit(ev.ReplyTextAdded(AT, "r", "item_1", "Hello there"))
    line.emit(ev.ReplyWords(AT, "r", "item_1", words("Hello", "there", each=PACKET_SAMPLES)))
    for _ in range(2):
        line.send(packet())
    line.emit(ev.ReplyFinished(AT, "r", "item_1", "completed", "Hello there", 40.0))
    assert await sent(line) == [b"\x00", b"\x01quiet", b"\x02 Hello", b"\x01loud", b"\x02 there", b"\x01loud"]


async def test_what_is_taken_back_was_neither_said_nor_shown() -> None:
    line, _, _ = make_line()
    line.emit(ev.ReplyWords(AT, "r", "item_1", words("one", "two", each=PACKET_SAMPLES)))
    line.emit(STARTED)
    line.send(packet())
    line.send(packet())
    assert line.flush() == 2 * PACKET_SAMPLES
    assert line.flush() == 0
    line.send(packet())  # it is resumed: the same sound again
    line.emit(ev.ReplyTruncated(AT, "r", "item_1", "one", 20.0, "clock"))
    assert await sent(line) == [b"\x00", b"\x01loud"]  # cut off before the words' packet left


async def test_the_protocol_has_words_for_little_else() -> None:
    line, _, _ = make_line()
    line.emit(ev.UserTranscriptFinal(AT, "item_1", "hello"))
    line.emit(ev.AsideStarted(AT, AsideKind.BACKCHANNEL, "mm-hm"))
    line.emit(ev.ErrorRaised(AT, "AgentFaultError", "The voice failed."))
    assert await sent(line) == [b"\x02 mm-hm", b"\x05The voice failed."]
    assert line.playout() is None  # nothing is acknowledged: the clock is all there is
    assert line.lead_packets == 1


async def test_a_client_that_falls_behind_loses_silence_and_never_sound() -> None:
    line, _, metrics = make_line(max_unsent=40)
    for _ in range(BEHIND_PACKETS + 10):
        line.send(packet(None))
    for _ in range(20):
        line.send(packet())
    assert metrics.queue_drops.labels("moshi_silence")._value.get() == 10
    assert line.ending is None
    assert await sent(line) == [b"\x01quiet"] * BEHIND_PACKETS + [b"\x01loud"] * 20


async def test_a_client_that_does_not_keep_up_is_let_go() -> None:
    line, _, _ = make_line(max_unsent=50)
    for _ in range(51):
        line.send(packet())
    assert line.closed
    assert line.ending == (1008, "The client did not keep up: 1 s of sound were waiting for it.")


async def test_a_client_that_takes_nothing_for_five_seconds_is_let_go() -> None:
    line, clock, _ = make_line()
    socket = FakeSocket()
    socket.open.clear()
    sender = asyncio.create_task(line.run_sender(socket))  # type: ignore[arg-type]
    line.send(packet())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    clock.now_s = 4.9
    line.receive()
    assert not line.closed
    clock.now_s = 5.1
    line.receive()
    assert line.closed
    sender.cancel()


async def test_sound_before_the_handshake_is_nobodys_to_hear() -> None:
    line, clock, _ = make_line()
    line.hear(tone(0.5))
    line.emit(STARTED)
    assert line.receive() == []
    line.hear(tone(0.04))
    clock.now_s = 0.02
    assert [packet.pts for packet in line.receive()] == [0, PACKET_SAMPLES]


async def test_reading_waits_while_much_is_still_to_be_heard() -> None:
    line, _, _ = make_line()
    line.emit(STARTED)
    line.hear(tone(1.5))
    assert line.can_hear.is_set()
    line.hear(tone(1.0))
    assert not line.can_hear.is_set()
    assert not line.drained.is_set()
    heard = [packet for _ in range(20) for packet in line.receive()]
    assert line.can_hear.is_set()
    assert line.drained.is_set()
    assert np.concatenate([packet.samples for packet in heard]).shape == (round(2.5 * SAMPLE_RATE_HZ),)


async def test_the_same_complaint_is_made_once_until_there_is_sound_again() -> None:
    line, _, _ = make_line()
    line.emit(STARTED)
    for trouble in ("bad", "bad", "worse", "bad"):
        line.complain(InvalidEventError(trouble))
    line.hear(tone(0.02))
    line.complain(InvalidEventError("bad"))
    assert await sent(line) == [b"\x00", b"\x05bad", b"\x05worse", b"\x05bad", b"\x05bad"]


async def test_a_client_that_does_not_take_what_is_sent_has_a_slow_link() -> None:
    line, clock, _ = make_line()
    assert isinstance(line, LinkReporting)

    def second(packets_taken: int) -> LinkReport | None:
        for _ in range(50):
            line.send(packet())
            clock.now_s += 0.02
            line.receive()
            for _ in range(packets_taken):
                line._take()
        return line.take_link()

    assert second(1) == LinkReport(rtt_ms=20.0)  # each packet is taken before the next is sent
    assert line.take_link() is None  # it was told
    assert second(0) == LinkReport(rtt_ms=20.0)  # a second is not a standing queue yet
    assert second(1) == LinkReport(rtt_ms=1020.0)
