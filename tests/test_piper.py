"""The talker: where words lie, how pieces join, and a real Piper voice through all of it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duplex.errors import AgentFaultError, ConfigError, WeightsCorruptError, WeightsMissingError
from duplex.thinker_talker.piper import PiperSettings, PiperTalker, gain_for, gap_samples
from duplex.thinker_talker.piper_graph import piece_edges
from duplex.thinker_talker.talker import CollectingTalkSink, Speech
from duplex.thinker_talker.word_spans import Span, word_spans
from duplex.weights import ModelStore

_WAIT_S = 60.0

# --- pure parts -----------------------------------------------------------------------------------


@given(st.integers(0, 50), st.integers(0, 2000), st.integers(1, 40), st.integers(0, 100))
def test_pieces_cover_everything_once(start: int, length: int, first: int, extra: int) -> None:
    edges = list(piece_edges(start, start + length, first, first + extra))
    assert [a for a, _ in edges] == [start, *(b for _, b in edges)][: len(edges)]
    assert (edges[-1][1] if edges else start) == start + length
    assert all(b - a >= min(first, length) for a, b in edges)
    assert all(b - a < first + extra + first for a, b in edges)


_SOUNDS = {"of": "ʌv", "the": "ðə", "cat": "kˈæt", "25": "twˈɛnti fˈaɪv", "and": "ænd", "I'm": "aɪm", "—": ""}


def _pronounce(word: str) -> list[str]:
    return list(_SOUNDS[word.strip(".,!")])


def _read(words: str, phonemes: str) -> list[str]:
    spans = word_spans(words.split(), list(phonemes), _pronounce)
    return ["".join(phonemes[s.start : s.stop]) for s in spans]


def test_words_and_groups_one_to_one() -> None:
    assert _read("the cat,", "ðə kˈæt,") == ["ðə", "kˈæt"]


def test_words_read_as_one_group_are_told_apart() -> None:
    assert _read("of the cat.", "ʌvðə kˈæt.") == ["ʌv", "ðə", "kˈæt"]


def test_a_number_read_as_two_groups() -> None:
    assert _read("25 and the cat", "twˈɛnti fˈaɪv ænd ðə kˈæt") == ["twˈɛnti fˈaɪv", "ænd", "ðə", "kˈæt"]


def test_a_word_without_sound_has_an_empty_span() -> None:
    spans = word_spans(["cat", "—", "cat"], list("kˈæt kˈæt"), _pronounce)
    assert spans == [Span(0, 4, False), Span(4, 4, False), Span(5, 9, False)]


def test_a_reading_nothing_like_the_word_is_marked() -> None:
    spans = word_spans(["25", "cat"], list("zzzzz kˈæt"), _pronounce)
    assert [s.estimated for s in spans] == [True, False]


@given(
    st.lists(st.sampled_from(sorted(_SOUNDS)), max_size=12),
    st.lists(st.sampled_from(list("ʌvðəkæt ˈˌː.,z")), max_size=60),
)
def test_spans_are_in_order_and_inside_whatever_was_read(words: list[str], phonemes: list[str]) -> None:
    spans = word_spans(words, phonemes, _pronounce)
    assert len(spans) == len(words)
    cursor = 0
    for span in spans:
        assert cursor <= span.start <= span.stop <= len(phonemes)
        cursor = span.stop


def test_gaps_follow_the_punctuation() -> None:
    assert gap_samples("Yes. ") == 6000
    assert gap_samples('He said "no," ') == 2880
    assert gap_samples("cut here ") == 0


def test_gain_brings_active_speech_to_the_level() -> None:
    tone = np.sin(np.arange(24_000) * 0.1).astype(np.float32) * 0.5
    sound = np.concatenate([tone, np.zeros(48_000, np.float32)])
    assert 20 * np.log10(gain_for(sound, 24_000, -20.0) * 0.5 / np.sqrt(2)) == pytest.approx(-20.0, abs=0.1)
    assert gain_for(np.zeros(24_000, np.float32), 24_000, -20.0) == 1.0


@pytest.mark.parametrize("wrong", [{"speed": 9.0}, {"level_dbfs": 0.0}, {"threads": 0}])
def test_settings_say_what_is_accepted(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        PiperSettings(**wrong)  # type: ignore[arg-type]


# --- a real voice ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def voice(models: ModelStore) -> Path:
    return models.path("piper-joe") / "en_US-joe-medium.onnx"


@pytest.fixture(scope="module")
def talker(voice: Path) -> Iterator[PiperTalker]:
    engine = PiperTalker(voice)
    engine.warm_up()
    yield engine
    engine.close()
    assert not engine._thread.is_alive()


def _say(talker: PiperTalker, *clauses: str) -> CollectingTalkSink:
    sink = CollectingTalkSink()
    utterance = talker.begin(sink)
    for clause in clauses:
        utterance.say(clause)
    utterance.end()
    assert utterance.wait_over(_WAIT_S)
    assert sink.error is None
    return sink


def _level_dbfs(samples: np.ndarray) -> float:
    return float(20 * np.log10(np.sqrt(np.mean(np.square(samples))) + 1e-9))


@pytest.mark.models
def test_pieces_join_to_what_one_call_makes(talker: PiperTalker) -> None:
    graph = talker._voice.graph
    ids, _ = talker._voice._ids(talker._voice._phonemes("A sentence that is long enough for some pieces."))
    latents = talker._voice._encode(ids)
    whole = graph.generate(latents, 0, latents.n_frames)
    pieces = [graph.generate(latents, a, b) for a, b in piece_edges(0, latents.n_frames, 20, 80)]
    assert len(pieces) > 2
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-4)
    assert len(whole) == int(latents.durations.sum()) * graph.hop_samples


@pytest.mark.models
def test_a_reply_is_one_axis_of_samples_and_words(talker: PiperTalker) -> None:
    clauses = ["The capital of France is Paris, ", "and Dr. Smith of the U.S. paid $20 ", "on the 3rd of May. ", "Yes!"]
    sink = _say(talker, *clauses)
    assert sink.done
    pts = 0
    for speech in sink.speeches:
        assert speech.pts == pts
        assert speech.samples.dtype == np.float32
        pts = speech.end_pts
        assert all(speech.pts <= w.start_samples for w in speech.words)
    assert "".join(s.clause for s in sink.speeches) == "".join(clauses)
    words = sink.words
    assert [w.text for w in words] == "".join(clauses).split()
    for word, following in itertools.pairwise(words):
        assert word.start_samples < word.end_samples <= following.start_samples
    assert words[-1].end_samples <= pts
    assert not any(w.estimated for w in words if w.text not in ("3rd", "$20"))
    assert len(sink.speeches) > len(clauses)  # pieces, not whole clauses


@pytest.mark.models
def test_words_lie_where_the_sound_is(talker: PiperTalker) -> None:
    samples, words = (sink := _say(talker, "Well, one, two, three. ", "Stop!")).samples, sink.words
    assert [w.text for w in words] == ["Well,", "one,", "two,", "three.", "Stop!"]
    for word, following in itertools.pairwise(words):
        spoken = samples[word.start_samples : word.end_samples]
        pause = samples[word.end_samples + 960 : following.start_samples - 960]
        assert len(pause) > 480
        assert _level_dbfs(spoken) > _level_dbfs(pause) + 20


@pytest.mark.models
def test_sound_starts_at_once_and_ends_softly(talker: PiperTalker) -> None:
    samples = _say(talker, "Hello there.").samples
    loud = np.flatnonzero(np.abs(samples) > 0.005)
    assert loud[0] <= 480  # 20 ms
    assert len(samples) - loud[-1] <= 2400
    assert abs(samples[0]) < 0.01
    assert abs(samples[-1]) < 0.01


@pytest.mark.models
def test_loudness_is_even_and_never_clips(talker: PiperTalker) -> None:
    for text in ("Yes!", "The weather is sunny and warm today.", "No, that is really not what I meant at all."):
        samples = _say(talker, text).samples
        assert float(np.abs(samples).max()) < 1.0
        assert 1 / gain_for(samples, 24_000, 0.0) == pytest.approx(10 ** (-20 / 20), rel=0.5)


@pytest.mark.models
def test_clauses_are_parted_by_their_punctuation(talker: PiperTalker) -> None:
    def pause(first: str) -> int:
        sink = _say(talker, first, "and yes.")
        second = next(s for s in sink.speeches if s.clause == "and yes.")
        return int(np.flatnonzero(np.abs(second.samples) > 0.001)[0])

    assert pause("It is so. ") > pause("It is so, ") > pause("It is so ")


@pytest.mark.models
def test_speed_shortens_speech(voice: Path, talker: PiperTalker) -> None:
    quick = PiperTalker(voice, settings=PiperSettings(speed=1.6))
    text = "The weather is sunny and warm today."
    assert len(_say(quick, text).samples) < 0.8 * len(_say(talker, text).samples)
    quick.close()


@pytest.mark.models
@pytest.mark.parametrize("clauses", [(), ("",), ("— ",), ("...",)])
def test_nothing_to_say_is_done_without_sound(talker: PiperTalker, clauses: tuple[str, ...]) -> None:
    sink = _say(talker, *clauses)
    assert sink.done
    assert len(sink.samples) == 0


@pytest.mark.models
def test_after_cancel_nothing_comes(talker: PiperTalker) -> None:
    first = threading.Event()

    class Sink(CollectingTalkSink):
        def on_speech(self, speech: Speech) -> None:
            super().on_speech(speech)
            first.set()

    sink = Sink()
    utterance = talker.begin(sink)
    for _ in range(6):
        utterance.say("This is a rather long clause that takes several pieces to say in full. ")
    assert first.wait(_WAIT_S)
    utterance.cancel()
    count = len(sink.speeches)
    assert _say(talker, "Something else.").done  # the thread has moved on past what was cancelled
    assert len(sink.speeches) == count
    assert not sink.done
    assert count < 12
    assert utterance not in talker._utterances


@pytest.mark.models
def test_a_sink_may_cancel_from_its_callback(talker: PiperTalker) -> None:
    class Sink(CollectingTalkSink):
        def on_speech(self, speech: Speech) -> None:
            super().on_speech(speech)
            utterance.cancel()

    sink = Sink()
    utterance = talker.begin(sink)
    utterance.say("One two three four five six seven eight nine ten eleven twelve.")
    assert utterance.wait_over(_WAIT_S)
    assert _say(talker, "Go on.").done
    assert len(sink.speeches) == 1


@pytest.mark.models
def test_a_long_reply_does_not_delay_another(talker: PiperTalker) -> None:
    order: list[str] = []

    class Named(CollectingTalkSink):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def on_speech(self, speech: Speech) -> None:
            order.append(self.name)

    long, short = talker.begin(Named("long")), talker.begin(Named("short"))
    for _ in range(4):
        long.say("This is a rather long clause that takes several pieces to say in full. ")
    short.say("Hello.")
    long.end()
    short.end()
    assert long.wait_over(_WAIT_S)
    assert short.wait_over(_WAIT_S)
    assert order.index("short") <= 4
    assert order.count("long") > 10


@pytest.mark.models
def test_misuse_is_refused(talker: PiperTalker) -> None:
    utterance = talker.begin(CollectingTalkSink())
    utterance.end()
    with pytest.raises(AgentFaultError, match="ended"):
        utterance.say("More.")


@pytest.mark.models
def test_too_many_waiting_clauses_are_refused(talker: PiperTalker) -> None:
    utterance = talker.begin(CollectingTalkSink())

    def say_far_too_much() -> None:
        for _ in range(200):
            utterance.say("A clause that takes a while to say. ")

    with pytest.raises(AgentFaultError, match="already waiting"):
        say_far_too_much()
    utterance.cancel()


@pytest.mark.models
def test_close_ends_what_is_being_said(voice: Path) -> None:
    engine = PiperTalker(voice)
    sink = CollectingTalkSink()
    utterance = engine.begin(sink)
    utterance.say("This is a rather long clause that takes several pieces to say in full. ")
    engine.close()
    assert not utterance.live
    assert not engine._thread.is_alive()
    with pytest.raises(AgentFaultError, match="closed"):
        engine.begin(sink)


@pytest.mark.models
def test_bad_files_say_what_to_do(voice: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsMissingError, match="duplex models pull"):
        PiperTalker(tmp_path / "no.onnx")
    config = Path(f"{voice}.json")
    with pytest.raises(WeightsMissingError, match="duplex models pull"):
        PiperTalker(tmp_path / "no.onnx", config)
    (tmp_path / "cut.onnx").write_bytes(voice.read_bytes()[:100_000])
    with pytest.raises(WeightsCorruptError):
        PiperTalker(tmp_path / "cut.onnx", config)
    (tmp_path / "odd.json").write_text("{}")
    with pytest.raises(WeightsCorruptError):
        PiperTalker(voice, tmp_path / "odd.json")
    with pytest.raises(ConfigError, match="speakers"):
        PiperTalker(voice, settings=PiperSettings(speaker=3))
