"""The listener engine with a recogniser made of events, and an utterance's memory. No model, no waiting on time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duplex.errors import AgentError
from duplex.thinker_talker.listener import ListenerStream, Samples16k, Transcript
from duplex.thinker_talker.listening import UPKEEP_EVERY_SAMPLES, Abort, Aborted, ThreadedListener
from duplex.thinker_talker.utterance import (
    FRAME_SAMPLES,
    CutPolicy,
    Recognition,
    Span,
    Utterance,
    find_cut,
    frame_levels_db,
    trimmed,
    voiced_span,
)

PATIENCE_S = 20.0  # a failing test gives up here; a passing one never waits for it
SECOND = 16_000


def tone(seconds: float, level: float = 0.3) -> Samples16k:
    t = np.arange(round(seconds * SECOND)) / SECOND
    return (level * np.sin(2 * np.pi * 220 * t)).astype(np.float32)


def quiet(seconds: float) -> Samples16k:
    return np.zeros(round(seconds * SECOND), dtype=np.float32)


class Puppet:
    """A recogniser that says how long what it heard was, in tenths of a second, and waits to be let go."""

    def __init__(self) -> None:
        self.started: queue.Queue[Puppet.Call] = queue.Queue()
        self.hold = False
        self.deaf = False  # finishes although it is told to stop

    class Call:
        def __init__(self, samples: Samples16k, draft: Sequence[int], abort: Abort, commands: bool) -> None:
            self.samples, self.draft, self.abort, self.commands = samples, tuple(draft), abort, commands
            self.go = threading.Event()
            self.fault: Exception | None = None

    def recognize(self, samples_16k: Samples16k, draft: Sequence[int], abort: Abort, *, commands: bool) -> Recognition:
        call = Puppet.Call(samples_16k, draft, abort, commands)
        if not self.deaf:
            abort.on_ask(call.go.set)
        self.started.put(call)
        if self.hold:
            assert call.go.wait(PATIENCE_S)
        if abort.asked and not self.deaf:
            raise Aborted((7, 7))
        if call.fault:
            raise call.fault
        tenths = round(np.count_nonzero(samples_16k) / SECOND * 10)
        return Recognition(f"<{tenths}>", (tenths,), -0.5, 1)

    def warm_up(self) -> None: ...


class Room:
    """An engine with a puppet, and what its streams were told."""

    def __init__(self, workers: int = 1) -> None:
        self.puppet = Puppet()
        self.engine = ThreadedListener(self.puppet, workers=workers, now=lambda: 0.0)
        self.told: queue.Queue[tuple[str, Transcript]] = queue.Queue()

    def open(self, name: str = "a") -> ListenerStream:
        return self.engine.open(lambda transcript: self.told.put((name, transcript)))

    def next_call(self) -> Puppet.Call:
        return self.puppet.started.get(timeout=PATIENCE_S)

    def next_told(self) -> tuple[str, int, str]:
        name, transcript = self.told.get(timeout=PATIENCE_S)
        return name, transcript.request_id, transcript.text


@pytest.fixture
def room() -> Iterator[Room]:
    room = Room()
    yield room
    room.engine.close()


def test_answers_with_everything_pushed_so_far(room: Room) -> None:
    stream = room.open()
    stream.push(tone(1.0))
    stream.push(tone(0.5))
    stream.request("partial", 1)
    _, transcript = room.told.get(timeout=PATIENCE_S)
    assert (transcript.request_id, transcript.kind, transcript.text) == (1, "partial", "<15>")
    assert transcript.audio_samples == 1.5 * SECOND
    assert transcript.confidence == pytest.approx(np.exp(-0.5))
    assert transcript.error is None


def test_silence_is_no_text_and_costs_nothing(room: Room) -> None:
    stream = room.open()
    stream.request("partial", 1)
    stream.push(quiet(3.0))
    stream.request("final", 2)
    answers = [room.next_told()]
    while answers[-1][1] != 2:
        answers.append(room.next_told())
    assert all(text == "" for _, _, text in answers)
    assert room.puppet.started.empty()


def test_silence_after_a_transcript_does_not_run_the_model_again(room: Room) -> None:
    stream = room.open()
    stream.push(np.concatenate((tone(1.0), quiet(0.3))))
    stream.request("partial", 1)
    assert room.next_told() == ("a", 1, "<10>")
    stream.push(quiet(0.5))
    stream.request("final", 2)
    assert room.next_told() == ("a", 2, "<10>")
    stream.push(tone(0.5))
    stream.request("final", 3)
    assert room.next_told()[2] != "<10>"
    assert room.puppet.started.qsize() == 2


def test_a_newer_partial_takes_the_place_of_one_that_waits(room: Room) -> None:
    room.puppet.hold = True
    stream = room.open()
    stream.push(tone(1.0))
    stream.request("partial", 1)
    running = room.next_call()
    for request_id in (2, 3, 4):
        stream.push(tone(1.0))
        stream.request("partial", request_id)
    room.puppet.hold = False
    running.go.set()
    assert room.next_told() == ("a", 1, "<10>")
    assert room.next_told() == ("a", 4, "<40>")
    assert room.told.empty()


def test_a_final_stops_another_sessions_partial_which_is_answered_later(room: Room) -> None:
    room.puppet.hold = True
    first, second = room.open("first"), room.open("second")
    for stream in (first, second):
        stream.push(tone(1.0))
    first.request("partial", 1)
    stopped = room.next_call()
    room.puppet.hold = False
    second.request("final", 2)
    assert room.next_told() == ("second", 2, "<10>")
    assert stopped.abort.asked
    assert room.next_told() == ("first", 1, "<10>")
    assert [room.next_call().draft, room.next_call().draft] == [(), (7, 7)]  # the second try begins where it stopped


def test_a_final_stops_its_own_streams_partial_for_good(room: Room) -> None:
    room.puppet.hold = True
    stream = room.open()
    stream.push(tone(1.0))
    stream.request("partial", 1)
    stopped = room.next_call()
    room.puppet.hold = False
    stream.push(tone(1.0))
    stream.request("final", 2)
    assert room.next_told() == ("a", 2, "<20>")
    assert stopped.abort.asked
    stream.request("final", 3)
    assert room.next_told()[1] == 3  # and not 1


def test_finals_go_before_partials_that_came_earlier(room: Room) -> None:
    room.puppet.hold = True
    streams = {name: room.open(name) for name in "abcd"}
    for stream in streams.values():
        stream.push(tone(1.0))
    streams["a"].request("final", 1)
    running = room.next_call()
    streams["b"].request("partial", 2)
    streams["c"].request("partial", 3)
    streams["d"].request("final", 4)
    room.puppet.hold = False
    running.go.set()
    assert [room.next_told()[0] for _ in range(4)] == ["a", "d", "b", "c"]
    assert not running.abort.asked  # a final is never stopped for another


def test_two_workers_serve_two_streams_but_never_one_stream_twice() -> None:
    room = Room(workers=2)
    room.puppet.hold = True
    one, two = room.open("one"), room.open("two")
    one.push(tone(1.0))
    one.request("final", 1)
    first = room.next_call()
    one.push(tone(1.0))
    one.request("final", 2)  # has to wait for 1, although a worker is free
    two.push(tone(0.5))
    two.request("final", 3)
    second = room.next_call()
    assert len(second.samples) < SECOND
    second.go.set()
    assert room.next_told() == ("two", 3, "<5>")
    assert room.puppet.started.empty()
    room.puppet.hold = False
    first.go.set()
    assert [room.next_told(), room.next_told()] == [("one", 1, "<10>"), ("one", 2, "<20>")]
    room.engine.close()


def test_a_final_that_has_not_begun_gives_way_to_a_newer_one_of_its_stream(room: Room) -> None:
    room.puppet.hold = True
    stream, other = room.open("a"), room.open("b")
    stream.push(tone(1.0))
    stream.request("final", 1)
    running = room.next_call()
    other.push(tone(0.5))
    other.request("final", 2)
    for request_id in (3, 4, 5):
        stream.push(tone(0.5))
        stream.request("final", request_id)
    room.puppet.hold = False
    running.go.set()
    told = [room.next_told() for _ in range(3)]
    assert told == [("a", 1, "<10>"), ("b", 2, "<5>"), ("a", 5, "<25>")]


def test_a_recognition_that_finished_too_late_is_dropped(room: Room) -> None:
    room.puppet.hold = room.puppet.deaf = True
    stream, other = room.open(), room.open("other")
    stream.push(tone(1.0))
    stream.request("final", 1)
    running = room.next_call()
    stream.reset()
    room.puppet.hold = False
    running.go.set()
    other.push(tone(2.0))
    other.request("final", 2)
    assert room.next_told() == ("other", 2, "<20>")
    assert room.told.empty()


@pytest.mark.parametrize("end", ["reset", "close"])
def test_nothing_about_an_utterance_arrives_after_it_ended(room: Room, end: str) -> None:
    room.puppet.hold = True
    stream, other = room.open(), room.open("other")
    stream.push(tone(1.0))
    stream.request("final", 1)
    running = room.next_call()
    stream.request("final", 2)
    getattr(stream, end)()
    assert running.abort.asked
    room.puppet.hold = False
    other.push(tone(2.0))
    other.request("final", 3)
    assert room.next_told() == ("other", 3, "<20>")
    assert room.told.empty()


def test_a_new_utterance_remembers_nothing(room: Room) -> None:
    stream = room.open()
    stream.push(tone(2.0))
    stream.request("final", 1)
    room.next_told()
    stream.reset()
    stream.push(tone(1.0))
    stream.request("final", 2)
    _, transcript = room.told.get(timeout=PATIENCE_S)
    assert (transcript.text, transcript.audio_samples) == ("<10>", SECOND)


def test_a_fault_is_an_answer_and_the_engine_lives_on(room: Room) -> None:
    room.puppet.hold = True
    stream = room.open()
    stream.push(tone(1.0))
    stream.request("final", 1)
    call = room.next_call()
    call.fault = RuntimeError("out of cheese")
    call.go.set()
    _, transcript = room.told.get(timeout=PATIENCE_S)
    assert transcript.request_id == 1
    assert "out of cheese" in str(transcript.error)
    room.puppet.hold = False
    stream.request("final", 2)
    assert room.next_told() == ("a", 2, "<10>")


def test_a_receiver_that_raises_harms_nobody(room: Room) -> None:
    def refuse(_: Transcript) -> None:
        raise RuntimeError("not interested")

    stream, other = room.engine.open(refuse), room.open("other")
    stream.push(tone(1.0))
    stream.request("final", 1)
    other.push(tone(1.0))
    other.request("final", 2)
    assert room.next_told() == ("other", 2, "<10>")


def test_a_receiver_may_reset_the_stream_it_hears_from(room: Room) -> None:
    done = threading.Event()
    streams: list[ListenerStream] = []

    def receive(_: Transcript) -> None:
        streams[0].reset()
        done.set()

    streams.append(room.engine.open(receive))
    streams[0].push(tone(1.0))
    streams[0].request("final", 1)
    assert done.wait(PATIENCE_S)


def test_a_long_monologue_is_heard_in_bounded_pieces_and_loses_nothing(room: Room) -> None:
    stream = room.open()
    for _ in range(15):  # 60 s: 2.5 s of voice, then 1.5 s of pause
        for piece in np.split(np.concatenate((tone(2.5), quiet(1.5))), 8):
            stream.push(piece)
    stream.request("final", 1)
    _, transcript = room.told.get(timeout=PATIENCE_S)
    heard = [int(word.strip("<>")) for word in transcript.text.split()]
    assert len(heard) > 3
    assert sum(heard) == 15 * 25
    assert transcript.audio_samples == 60 * SECOND
    longest = max(len(room.next_call().samples) for _ in heard)
    assert longest <= (CutPolicy().hard_s + 1) * SECOND


def test_a_long_utterance_is_frozen_as_it_grows_without_being_asked(room: Room) -> None:
    stream = room.open()
    for _ in range(4):
        stream.push(np.concatenate((tone(2.0), quiet(1.0))))
    assert len(room.next_call().samples) <= UPKEEP_EVERY_SAMPLES + SECOND  # nobody asked
    assert room.told.empty()


def test_upkeep_does_not_swallow_a_request(room: Room) -> None:
    room.puppet.hold = True
    stream = room.open()
    stream.push(tone(1.0))
    stream.request("partial", 1)
    running = room.next_call()
    stream.request("partial", 2)
    stream.push(tone(6.0))  # due for upkeep
    room.puppet.hold = False
    running.go.set()
    assert [room.next_told()[1], room.next_told()[1]] == [1, 2]


def test_a_closed_engine_says_so_and_leaves_no_thread() -> None:
    before = threading.active_count()
    room = Room(workers=2)
    stream = room.open()
    room.engine.close()
    assert threading.active_count() == before
    with pytest.raises(AgentError, match="closed"):
        room.open()
    for ask in (lambda: stream.push(quiet(0.1)), lambda: stream.request("final", 1)):
        with pytest.raises(AgentError, match="closed"):
            ask()
    stream.reset()
    room.engine.close()


def test_closing_does_not_wait_for_a_recognition_to_finish() -> None:
    room = Room()
    room.puppet.hold = True
    stream = room.open()
    stream.push(tone(1.0))
    stream.request("final", 1)
    room.next_call()
    room.engine.close()
    assert room.told.empty()


# ── one utterance ──


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 9 * SECOND), max_size=9))
def test_audio_comes_back_as_it_went_in(cuts: list[int]) -> None:
    audio = np.random.default_rng(0).normal(size=9 * SECOND).astype(np.float32)
    utterance = Utterance()
    for piece in np.split(audio, sorted(cuts)):
        utterance.append(piece)
    start, tail = utterance.tail(utterance.end)
    assert start == 0
    assert np.array_equal(tail, audio)
    utterance.commit(5 * SECOND, Recognition("five"))
    start, tail = utterance.tail(8 * SECOND)
    assert start == 5 * SECOND
    assert np.array_equal(tail, audio[5 * SECOND : 8 * SECOND])


def test_whether_a_sentence_ended_is_said_of_its_last_words() -> None:
    utterance = Utterance()
    utterance.append(np.zeros(5 * SECOND, dtype=np.float32))
    assert utterance.ended_with(Recognition("")) is None
    utterance.commit(SECOND, Recognition("one.", ended=0.9))
    assert utterance.ended_with(Recognition("")) == 0.9
    assert utterance.ended_with(Recognition("two", ended=0.2)) == 0.2


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 40_000), min_size=1, max_size=20))
def test_beyond_its_capacity_the_oldest_audio_is_lost_and_counted(sizes: list[int]) -> None:
    policy = CutPolicy(soft_s=0.5, hard_s=1.0, capacity_s=1.5, min_piece_s=0.1)
    utterance = Utterance(policy)
    audio = np.arange(sum(sizes), dtype=np.float32)
    position = 0
    for size in sizes:
        utterance.append(audio[position : position + size])
        position += size
    start, tail = utterance.tail(utterance.end)
    assert utterance.end == len(audio)
    assert utterance.lost_samples == start == max(0, len(audio) - 24_000)
    assert np.array_equal(tail, audio[start:])


@pytest.mark.parametrize(
    ("heard", "asked", "voiced_to", "known"),
    [
        (18_500, 40_000, 16_000, True),  # only silence has come since
        (16_500, 40_000, 16_000, False),  # the last word may have been cut off
        (16_500, 16_500, 16_000, True),  # nothing has come since
        (18_500, 40_000, 20_000, False),  # more was said
    ],
)
def test_what_is_known_is_not_recognised_again(heard: int, asked: int, voiced_to: int, known: bool) -> None:
    utterance, recognition = Utterance(), Recognition("one two", (1, 2))
    utterance.append(np.zeros(40_000, dtype=np.float32))
    utterance.learn(Span(0, 16_000), heard, recognition)
    assert (utterance.known(Span(0, voiced_to), asked) is recognition) == known
    assert utterance.draft == (1, 2)


def test_waiting_in_silence_keeps_almost_no_audio(room: Room) -> None:
    stream = room.open()
    for request_id in range(60):
        stream.push(quiet(2.0))
        stream.request("final", request_id)
        room.next_told()
    assert stream._utterance.end - stream._utterance.start <= 3 * SECOND


@pytest.mark.parametrize("gain", [1.0, 0.01])
def test_what_is_voiced_does_not_depend_on_the_gain(gain: float) -> None:
    rng = np.random.default_rng(0)
    audio = np.concatenate((quiet(0.5), tone(1.0), quiet(0.7))) + rng.normal(0, 0.0005, round(2.2 * SECOND))
    span = voiced_span(frame_levels_db((gain * audio).astype(np.float32)))
    assert span is not None
    assert abs(span.start - 0.5 * SECOND) <= 2 * FRAME_SAMPLES
    assert abs(span.stop - 1.5 * SECOND) <= 2 * FRAME_SAMPLES


def test_a_piece_keeps_its_margins_and_ends_in_silence() -> None:
    piece = trimmed(np.ones(4 * SECOND, dtype=np.float32), Span(SECOND, 2 * SECOND))
    assert np.count_nonzero(piece) == 0.2 * SECOND + SECOND + 0.15 * SECOND
    assert not piece[-3200:].any()


def find(audio: Samples16k, *, final: bool = False) -> float | None:
    cut = find_cut(frame_levels_db(audio), CutPolicy(), final=final)
    return None if cut is None else cut / SECOND


@pytest.mark.parametrize(
    ("audio", "final", "expected_s"),
    [
        (lambda: tone(7.9), False, None),  # short enough
        (lambda: tone(12.0), False, None),  # no pause to cut at, and not yet too long
        (lambda: np.concatenate((tone(4.0), quiet(0.6), tone(6.0))), False, 4.3),
        (lambda: np.concatenate((tone(4.0), quiet(0.2), tone(6.0))), False, None),  # a breath, not a pause
        (lambda: np.concatenate((tone(4.0), quiet(0.4), tone(2.0), quiet(0.8), tone(3.0))), False, 6.8),
        (lambda: np.concatenate((tone(4.0), quiet(0.6), tone(6.0))), True, None),  # a final has no time for it
        (lambda: np.concatenate((tone(9.0), quiet(0.6), tone(9.0))), True, 9.3),
        (lambda: np.concatenate((tone(1.0), quiet(0.9), tone(8.0))), False, None),  # too little before it
    ],
)
def test_a_tail_is_cut_in_the_middle_of_its_longest_pause(
    audio: Callable[[], Samples16k], final: bool, expected_s: float | None
) -> None:
    cut_s = find(audio(), final=final)
    assert cut_s == (None if expected_s is None else pytest.approx(expected_s, abs=0.05))


def test_without_any_pause_it_is_cut_where_it_is_softest() -> None:
    audio = tone(20.0)
    audio[12 * SECOND : round(12.1 * SECOND)] *= 0.3
    assert find(audio) == pytest.approx(12.05, abs=0.06)


def test_a_policy_that_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="soft_s <= hard_s"):
        CutPolicy(soft_s=20.0)
