from __future__ import annotations

import importlib.util
import queue
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import soxr

from duplex.errors import WeightsCorruptError, WeightsMissingError
from duplex.thinker_talker.listener import Transcript
from duplex.thinker_talker.listening import Abort, Aborted
from duplex.thinker_talker.moonshine import (
    MoonshineListener,
    MoonshineModel,
    read_vocabulary,
    realigned,
)

Audio = npt.NDArray[np.float32]
PATIENCE_S = 60.0

BECKETT = "ever tried ever failed no matter try again fail again fail better"
TWO_CITIES = (
    "it was the best of times it was the worst of times it was the age of wisdom it was the age of foolishness "
    "it was the epoch of belief it was the epoch of incredulity it was the season of light it was the season of "
    "darkness it was the spring of hope it was the winter of despair we had everything before us we had nothing "
    "before us we were all going direct to heaven we were all going direct the other way in short the period was "
    "so far like the present period that some of its noisiest authorities insisted on its being received for good "
    "or for evil in the superlative degree of comparison only"
)


def recording(name: str) -> Audio:
    [package] = importlib.util.find_spec("moonshine_voice").submodule_search_locations
    samples, rate_hz = soundfile.read(Path(package) / "assets" / f"{name}.wav", dtype="float32")
    return samples if rate_hz == 16_000 else soxr.resample(samples, rate_hz, 16_000)


def wrong_words(text: str, expected: str) -> int:
    """Word errors (Levenshtein) of ``text``, punctuation and case aside."""
    heard, said = re.findall(r"[a-z']+", text.lower()), expected.split()
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]


@pytest.fixture(scope="module")
def directory(models) -> Path:
    return models.path("moonshine-tiny-en")


@pytest.fixture(scope="module")
def model(directory: Path) -> MoonshineModel:
    return MoonshineModel(directory)


@pytest.fixture(scope="module")
def listener(directory: Path) -> Iterator[MoonshineListener]:
    listener = MoonshineListener(directory)
    yield listener
    listener.close()


def listen(listener: MoonshineListener, audio: Audio, partial_every_s: float | None = None) -> Transcript:
    """The final transcript of ``audio``, with partials on the way if wanted."""
    told: queue.Queue[Transcript] = queue.Queue()
    stream = listener.open(told.put)
    step = max(1, len(audio) if partial_every_s is None else round(partial_every_s * 16_000))
    for number, start in enumerate(range(0, len(audio), step)):
        stream.push(audio[start : start + step])
        if partial_every_s is not None:
            stream.request("partial", number)
            assert told.get(timeout=PATIENCE_S).request_id == number
    stream.request("final", -1)
    transcript = told.get(timeout=PATIENCE_S)
    stream.close()
    return transcript


@pytest.mark.models
def test_understands_a_person(listener: MoonshineListener) -> None:
    transcript = listen(listener, recording("beckett"))
    assert wrong_words(transcript.text, BECKETT) <= 2
    assert 0.5 < transcript.confidence <= 1.0
    assert transcript.error is None


@pytest.mark.models
def test_it_hears_where_a_sentence_ends(model: MoonshineModel) -> None:
    audio, quiet = recording("beckett"), np.zeros(3_000, np.float32)
    ended = {s: model.recognize(np.concatenate([audio[: round(s * 16_000)], quiet])).ended for s in (1.6, 2.2, 6.4)}
    assert ended[1.6] is not None  # "Ever tried."
    assert ended[2.2] is not None  # "Ever tried. Ever"
    assert ended[6.4] is not None  # "... No matter. Try again."
    assert ended[2.2] < 0.6 < min(ended[1.6], ended[6.4])
    assert model.recognize(np.zeros(16_000, np.float32)).ended is None


@pytest.mark.models
def test_partials_grow_into_the_same_final(listener: MoonshineListener) -> None:
    audio = recording("two_cities")[: 7 * 16_000]
    alone, after_partials = listen(listener, audio), listen(listener, audio, partial_every_s=0.5)
    assert wrong_words(after_partials.text, " ".join(re.findall(r"[a-z']+", alone.text.lower()))) <= 2
    assert wrong_words(alone.text, " ".join(TWO_CITIES.split()[:21])) <= 4


@pytest.mark.models
@pytest.mark.parametrize("partial_every_s", [None, 1.0], ids=["all at once", "with partials"])
def test_a_monologue_of_44_seconds(listener: MoonshineListener, partial_every_s: float | None) -> None:
    transcript = listen(listener, recording("two_cities"), partial_every_s)
    assert wrong_words(transcript.text, TWO_CITIES) <= 15  # of 119
    assert transcript.audio_samples == len(recording("two_cities"))


@pytest.mark.models
@pytest.mark.parametrize("gain", [0.02, 3.0])
def test_a_quiet_or_loud_microphone_is_understood_too(listener: MoonshineListener, gain: float) -> None:
    audio = np.clip(gain * recording("beckett"), -1.0, 1.0)
    assert wrong_words(listen(listener, audio).text, BECKETT) <= 4


@pytest.mark.models
def test_two_people_at_once_get_their_own_words(directory: Path) -> None:
    listener = MoonshineListener(directory, workers=2)
    heard: dict[str, str] = {}

    def converse(name: str) -> None:
        heard[name] = listen(listener, recording(name)[: 10 * 16_000], partial_every_s=1.0).text

    people = [threading.Thread(target=converse, args=(name,)) for name in ("beckett", "two_cities")]
    for person in people:
        person.start()
    for person in people:
        person.join()
    listener.close()
    assert "failed" in heard["beckett"].lower()
    assert "best of times" in heard["two_cities"].lower()


@pytest.mark.models
@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.3, 4.0])
def test_silence_is_no_words(listener: MoonshineListener, model: MoonshineModel, seconds: float) -> None:
    silence = np.zeros(round(seconds * 16_000), dtype=np.float32)
    assert listen(listener, silence + np.float32(1e-5)).text == ""
    assert model.recognize(silence).text == ""  # where it would otherwise write "You"


@pytest.mark.models
def test_mains_hum_is_no_words(listener: MoonshineListener) -> None:
    t = np.arange(32_000) / 16_000
    hum = 0.1 * np.sin(2 * np.pi * 50 * t) + 0.03 * np.sin(2 * np.pi * 150 * t)
    assert listen(listener, hum.astype(np.float32)).text == ""  # where it writes a row of music notes


@pytest.mark.models
def test_a_draft_changes_the_speed_but_not_the_words(model: MoonshineModel) -> None:
    audio = recording("beckett")
    alone = model.recognize(audio)
    plain = " ".join(re.findall(r"[a-z']+", alone.text.lower()))
    tokens = list(alone.tokens)
    unlike = model.recognize(recording("two_cities")[:64_000]).tokens
    for draft in (tokens, tokens[:5], tokens[:4] + tokens[6:], [*tokens[:3], 999, *tokens[3:]], unlike):
        assert wrong_words(model.recognize(audio, draft).text, plain) <= 2  # 8-bit rounding may cost a word


@pytest.mark.models
def test_a_right_draft_saves_the_decoder_its_steps(model: MoonshineModel, monkeypatch: pytest.MonkeyPatch) -> None:
    audio = recording("two_cities")[:64_000]
    tokens = model.recognize(audio).tokens
    runs: list[int] = []
    decoder = model._decoder

    class Counted:
        def run_with_ort_values(self, names: list[str], feed: dict[str, object], options: object) -> object:
            runs.append(1)
            return decoder.run_with_ort_values(names, feed, options)

    monkeypatch.setattr(model, "_decoder", Counted())
    model.recognize(audio)
    assert len(runs) == len(tokens) + 1
    runs.clear()
    model.recognize(audio, tokens)
    assert len(runs) < len(tokens) / 2


@pytest.mark.models
def test_a_recognition_stops_when_it_is_told_to(model: MoonshineModel, monkeypatch: pytest.MonkeyPatch) -> None:
    abort = Abort()
    abort.ask()
    with pytest.raises(Aborted):
        model.recognize(recording("beckett"), abort=abort)

    midway = Abort()
    decoder = model._decoder

    class Interrupted:
        runs = 0

        def run_with_ort_values(self, names: list[str], feed: dict[str, object], options: object) -> object:
            self.runs += 1
            if self.runs == 5:
                midway.ask()
            return decoder.run_with_ort_values(names, feed, options)

    monkeypatch.setattr(model, "_decoder", Interrupted())
    with pytest.raises(Aborted) as stopped:
        model.recognize(recording("beckett"), abort=midway)
    assert len(stopped.value.tokens) == 4
    monkeypatch.undo()
    assert model.recognize(recording("beckett"), stopped.value.tokens).text  # and it can begin again from there


def test_the_vocabulary_is_read_by_length(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.bin"
    long = bytes(range(32, 127)) * 3  # 285 bytes: a length of two bytes, 285 = 2 * 128 + 29
    path.write_bytes(b"\x05<unk>\x03<s>\x04</s>\x00" + b"\x06\xe2\x96\x81the" + bytes([128 + 29, 2]) + long + b"\x01<")
    assert read_vocabulary(path) == [b"", b"", b"", b"", "▁the".encode(), long, b"<"]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(WeightsCorruptError, match="duplex models"):
        read_vocabulary(path)
    with pytest.raises(WeightsMissingError, match="duplex models pull"):
        read_vocabulary(tmp_path / "absent.bin")


@pytest.mark.models
def test_text_of_tokens(model: MoonshineModel, directory: Path) -> None:
    vocabulary = read_vocabulary(directory / "tokenizer.bin")
    assert len(vocabulary) == 32_768
    number = {token: index for index, token in reversed(list(enumerate(vocabulary)))}
    cafe = [number["▁".encode()], *(number[bytes([byte])] for byte in "café ♪".encode())]
    assert model.text(cafe) == "café"


@pytest.mark.parametrize(
    ("rest", "written", "expected"),
    [
        ([1, 2, 3], 1, (True, [2, 3])),
        ([1, 2, 3], 2, (True, [3])),  # a word fell away
        ([1, 2, 3], 9, (False, [2, 3])),  # a word was replaced: the next one may fit again
        ([0, 0, 0, 0, 0, 0, 9], 9, (False, [0, 0, 0, 0, 0, 9])),  # too far to be the same place
        ([], 9, (False, [])),
    ],
)
def test_a_draft_is_taken_up_again_after_a_difference(
    rest: list[int], written: int, expected: tuple[bool, list[int]]
) -> None:
    assert realigned(rest, written) == expected
