"""Each piece of evidence by itself: which way it pulls, how far, and that it can be switched off."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duplex.config import validated
from duplex.errors import ConfigError
from duplex.thinker_talker.encouragement import PHRASES, Encouragement
from duplex.thinker_talker.evidence import (
    AT_PAUSE,
    OVER_US,
    Overlap,
    Pause,
    completeness,
    overlap_logits,
    silence_needed_s,
    softmax,
)
from duplex.thinker_talker.intonation import RATE_HZ, PitchContour, pitch_hz
from duplex.thinker_talker.loudness import UsualLevel
from duplex.thinker_talker.predictor import HeardWindow, OurSide, TurnPredictor
from duplex.thinker_talker.turn_options import Evidence, TurnOptions
from duplex.turn import Floor, User

OPTIONS = TurnOptions()


def pull(part: str, pause: Pause) -> float:
    return AT_PAUSE[part](pause, OPTIONS)


# --- at a pause ----------------------------------------------------------------------------------------


def test_the_end_of_turn_model_pulls_both_ways_and_is_silent_at_its_threshold() -> None:
    silent_at = OPTIONS.complete_threshold
    at = {p: pull("prosody", Pause(1.0, prosody=p)) for p in (0.0, 0.1, silent_at, 0.9, 1.0)}
    assert at[0.0] < at[0.1] < at[silent_at] < at[0.9] <= at[1.0]
    assert at[silent_at] == pytest.approx(0.0)
    assert pull("prosody", Pause(1.0)) == 0.0


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("I would like a coffee.", "I would like a"),
        ("I would like a coffee.", "I would like to, um"),
        ("Call me at noon.", "It's five five five"),
        ("Call me at noon.", "Call me at noon,"),
    ],
)
def test_words_tell_a_finished_sentence_from_one_that_goes_on(earlier: str, later: str) -> None:
    assert pull("words", Pause(1.0, words=earlier)) > pull("words", Pause(1.0, words=later))


def test_how_sure_the_listener_is_of_a_full_stop_counts_for_more_than_that_it_wrote_one() -> None:
    pulls = [pull("words", Pause(1.0, words="Bobby ripped.", ended=p)) for p in (0.05, 0.5, 0.62, 0.99)]
    assert pulls == sorted(pulls)
    assert pulls[0] < -1.3
    assert abs(pulls[2]) < 0.1
    assert pulls[3] > 1.5
    hanging = pull("words", Pause(1.0, words="I would like a", ended=0.99))
    assert hanging == pull("words", Pause(1.0, words="I would like a"))


def test_a_falling_voice_and_a_short_turn_speak_for_an_end() -> None:
    assert pull("intonation", Pause(1.0, fall_st=6.0)) > 0 > pull("intonation", Pause(1.0, fall_st=-2.0))
    assert pull("intonation", Pause(1.0, slope_st=-4.0)) > 0 > pull("intonation", Pause(1.0, slope_st=4.0))
    rising = Pause(1.0, words="Do you hear me?", slope_st=4.0)
    assert pull("intonation", rising) > pull("intonation", Pause(1.0, words="You hear me", slope_st=4.0))
    assert pull("floor", Pause(2.0)) > pull("floor", Pause(0.4)) == pull("floor", Pause(30.0))


def test_what_the_language_model_expects_pulls_both_ways_once_the_words_are_settled() -> None:
    pulls = [pull("expectation", Pause(1.0, words="x", settled=True, expected=p)) for p in (0.001, 0.2, 0.7)]
    assert pulls == sorted(pulls)
    assert pulls[0] < 0 < pulls[-1]
    assert pull("expectation", Pause(1.0, words="x", settled=False, expected=0.9)) == 0.0


def test_every_piece_of_evidence_can_be_switched_off_and_without_any_it_is_a_timer() -> None:
    assert {*AT_PAUSE, *OVER_US} == set(get_args(Evidence))
    pause = Pause(25.0, words="and the", settled=True, prosody=0.01, fall_st=-3.0, expected=0.01)
    everything = completeness(pause, OPTIONS)
    for name in AT_PAUSE:
        assert everything[name] != 0.0, f"this pause should make {name} speak"
        without = completeness(pause, TurnOptions(without=(name,)))
        assert without == {part: z for part, z in everything.items() if part != name}
    timer = TurnOptions(without=tuple(AT_PAUSE))
    assert silence_needed_s(sum(completeness(pause, timer).values()), timer) == timer.silence_unknown_s


@given(st.floats(-20, 20), st.floats(0, 5))
def test_more_evidence_for_an_end_never_asks_for_more_silence(z: float, more: float) -> None:
    assert silence_needed_s(z + more, OPTIONS) <= silence_needed_s(z, OPTIONS) + 1e-9
    assert OPTIONS.silence_likely_s <= silence_needed_s(z, OPTIONS) <= OPTIONS.silence_most_s


# --- over our own voice --------------------------------------------------------------------------------


def decided(overlap: Overlap, options: TurnOptions = OPTIONS) -> User:
    logits = overlap_logits(overlap, options)
    spread = softmax(logits)
    assert sum(spread.values()) == pytest.approx(1.0)
    return max(spread, key=lambda user: spread[user])


SPEAKING_ON = Overlap(voice=True, voiced_s=0.3, quiet_s=0.0)
OVER = Overlap(voice=False, voiced_s=0.3, quiet_s=0.3)


@pytest.mark.parametrize(
    ("overlap", "user"),
    [
        (SPEAKING_ON, User.SPEAKING),
        (Overlap(True, 0.3, 0.0, words="Stop."), User.INTERRUPTING),
        (Overlap(True, 0.4, 0.0, words="What about Spain"), User.INTERRUPTING),
        (Overlap(True, 0.5, 0.0, words="Yeah"), User.SPEAKING),  # it may be "yeah, but"
        (Overlap(True, 0.9, 0.0), User.INTERRUPTING),
        (Overlap(True, 0.9, 0.0, words="Yeah yeah yeah"), User.SPEAKING),
        (Overlap(False, 0.4, 0.1, words="Uh-huh.", settled=True), User.BACKCHANNEL),
        (Overlap(False, 0.4, 0.1, words="Yeah", settled=False), User.BACKCHANNEL),  # words heard while it lasted
        (Overlap(False, 0.3, 0.3, words="", settled=True), User.NOT_ADDRESSED),
        (Overlap(False, 0.3, 0.1), User.SPEAKING),
        (Overlap(False, 0.3, 0.1, words="What?", settled=True), User.INTERRUPTING),
        (Overlap(False, 0.13, 0.1, words="No.", settled=True), User.SPEAKING),  # a piece of a word: "O-kay"
        (Overlap(False, 0.13, 0.16, words="No.", settled=True), User.INTERRUPTING),  # it was all there is
        (Overlap(True, 0.3, 0.0, words="What"), User.SPEAKING),  # it may be "what a pity"
        (Overlap(False, 0.3, 0.3, words="The.", settled=True), User.BACKCHANNEL),
        (Overlap(False, 0.3, 0.8), User.BACKCHANNEL),
        (Overlap(False, 0.75, 0.8), User.INTERRUPTING),
        (Overlap(True, 0.9, 0.0, words="what did she say then", below_usual_db=15.0), User.NOT_ADDRESSED),
        (Overlap(True, 0.9, 0.0, echo=0.9), User.NOT_ADDRESSED),
        (Overlap(False, 0.3, 0.1, words="Yes.", settled=True, our_question=True), User.INTERRUPTING),
        (Overlap(False, 0.3, 0.1, words="Mm-hm.", settled=True, our_question=True), User.BACKCHANNEL),
    ],
)
def test_what_speech_over_ours_is(overlap: Overlap, user: User) -> None:
    assert decided(overlap) is user


@pytest.mark.parametrize(
    ("part", "overlap", "otherwise"),
    [
        ("words", Overlap(True, 0.4, 0.0, words="What about Spain"), User.SPEAKING),
        ("length", Overlap(True, 0.9, 0.0), User.SPEAKING),
        ("level", Overlap(True, 0.9, 0.0, below_usual_db=15.0), User.INTERRUPTING),
        ("echo", Overlap(True, 0.9, 0.0, echo=0.9), User.INTERRUPTING),
        ("question", Overlap(False, 0.3, 0.1, words="Yes.", settled=True, our_question=True), User.BACKCHANNEL),
    ],
)
def test_without_a_piece_of_evidence_the_decision_is_another(part: Evidence, overlap: Overlap, otherwise: User) -> None:
    assert decided(overlap) is not otherwise
    assert decided(overlap, TurnOptions(without=(part,))) is otherwise


# --- what the evidence is made of ------------------------------------------------------------------------


@pytest.mark.parametrize("hz", [80.0, 120.0, 210.0, 330.0])
def test_the_pitch_of_a_voice_is_found(hz: float) -> None:
    t = np.arange(512) / RATE_HZ
    voice = sum(np.sin(2 * np.pi * hz * k * t) / k for k in range(1, 6))
    assert pitch_hz((0.1 * np.asarray(voice)).astype(np.float32)) == pytest.approx(hz, rel=0.03)


def test_noise_and_silence_have_no_pitch() -> None:
    rng = np.random.default_rng(1)
    found = [pitch_hz((0.1 * rng.standard_normal(512)).astype(np.float32)) for _ in range(20)]
    assert sum(hz is not None for hz in found) <= 1
    assert pitch_hz(np.zeros(512, dtype=np.float32)) is None


def test_a_contour_knows_how_its_last_syllable_went() -> None:
    contour = PitchContour()
    for hz in (200.0, 200.0, None, 120.0, 126.0, 132.0, 138.0, 144.0, 150.0, None):
        contour.add(hz)
    assert contour.slope_st() == pytest.approx(12 * np.log2(150 / 120) * 6 / 5, rel=0.1)
    contour.add(80.0)  # another syllable
    assert contour.slope_st() is None


def test_a_contour_knows_how_far_it_fell() -> None:
    contour = PitchContour()
    for hz in [200.0] * 20 + [None] * 3 + [100.0] * 5:  # type: ignore[list-item]
        contour.add(hz)
    assert contour.fall_st() == pytest.approx(12.0)
    assert PitchContour().fall_st() is None


def test_the_usual_level_follows_and_forgives() -> None:
    usual = UsualLevel()
    assert usual.below_db(-90.0) == 0.0
    usual.learn(-20.0)
    assert usual.below_db(-35.0) == pytest.approx(15.0)
    ignored = 0
    while usual.below_db(-35.0) >= OPTIONS.faint_db:
        usual.ignored()
        ignored += 1
    assert 3 <= ignored <= 6, "somebody who leaned back is not ignored for ever"


def speak(predictor: TurnPredictor, seconds: float, level_dbfs: float, ours: OurSide, echo: float = 0.0) -> set[User]:
    seen, pts = set(), predictor._pts
    for voice in [True] * round(seconds / 0.032) + [False] * 20:
        pts += 768
        window = HeardWindow(pts, 768, 0.95 if voice else 0.02, level_dbfs if voice else -70.0, echo if voice else 0.0)
        seen.add(predictor.window(window, ours))
        predictor.asks.clear()
    return seen


def test_somebody_in_the_background_does_not_stop_us_and_is_not_answered() -> None:
    listening, speaking = OurSide(Floor.LISTENING), OurSide(Floor.SPEAKING)
    predictor = TurnPredictor()
    assert User.TURN_COMPLETE in speak(predictor, 1.0, -20.0, listening)
    predictor.committed()
    assert speak(predictor, 2.0, -35.0, speaking) == {User.IDLE}
    faint = speak(predictor, 1.0, -35.0, listening)
    assert User.NOT_ADDRESSED in faint
    assert User.TURN_COMPLETE not in faint
    assert User.SPEAKING in speak(predictor, 1.0, -22.0, speaking)


def test_our_own_echo_does_not_stop_us_and_a_voice_over_it_does() -> None:
    speaking = OurSide(Floor.SPEAKING)
    assert speak(TurnPredictor(), 2.0, -30.0, speaking, echo=0.95) == {User.IDLE}
    assert User.INTERRUPTING in speak(TurnPredictor(), 2.0, -20.0, speaking, echo=0.2)
    assert User.INTERRUPTING in speak(TurnPredictor(TurnOptions(without=("echo",))), 2.0, -30.0, speaking, echo=0.95)


# --- presets ------------------------------------------------------------------------------------------------


def test_presets_are_ordered_and_backchannel_is_off_in_patient() -> None:
    eager, balanced, patient = (TurnOptions(preset=name) for name in ("eager", "balanced", "patient"))
    for name in ("silence_likely_s", "silence_unknown_s", "silence_unlikely_s", "silence_most_s", "interrupt_s"):
        assert getattr(eager, name) < getattr(balanced, name) < getattr(patient, name), name
    assert eager.backchannels
    assert not patient.backchannels


def test_a_session_sets_single_values_or_starts_from_another_preset() -> None:
    configured = TurnOptions(preset="patient", interrupt_s=0.5)
    one = configured.with_overrides({"silence_likely_s": 0.25})
    assert (one.silence_likely_s, one.interrupt_s, one.silence_unknown_s) == (0.25, 0.5, 1.0)
    other = configured.with_overrides({"preset": "eager"})
    assert other == TurnOptions(preset="eager")
    assert configured.with_overrides(None) is configured
    assert configured.with_overrides({"without": "prosody, words"}).without == ("prosody", "words")


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"preset": "hasty"}, "turn_taking.preset"),
        ({"silence_likely_s": -1}, "turn_taking.silence_likely_s"),
        ({"silense": 1}, "turn_taking.silense"),
        ({"without": "luck"}, "turn_taking.without"),
    ],
)
def test_a_wrong_setting_is_named(table: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        TurnOptions().with_overrides(table)
    with pytest.raises(ConfigError):
        validated(TurnOptions, table)


# --- our own encouragement -----------------------------------------------------------------------------------


def hum(voiced_s: float, quiet_s: float = 0.2, needed_s: float = 0.9, **changes: object) -> str | None:
    options = TurnOptions(backchannels=True) if "options" not in changes else changes["options"]
    user = changes.get("user", User.PAUSED_INCOMPLETE)
    floor = changes.get("floor", Floor.LISTENING)
    return Encouragement().phrase(user, floor, voiced_s, quiet_s, needed_s, options)  # type: ignore[arg-type]


def test_we_encourage_in_a_pause_of_a_long_turn_and_only_there() -> None:
    assert hum(6.0) in PHRASES
    assert hum(2.0) is None
    assert hum(6.0, user=User.SPEAKING) is None
    assert hum(6.0, floor=Floor.SPEAKING) is None
    assert hum(6.0, needed_s=0.4) is None, "the turn is about to be over"
    assert hum(6.0, options=TurnOptions()) is None


def test_we_do_not_encourage_twice_in_a_row_and_vary() -> None:
    policy, options = Encouragement(), TurnOptions(backchannels=True)
    said = [
        policy.phrase(User.PAUSED_INCOMPLETE, Floor.LISTENING, voiced_s / 10, 0.2, 0.9, options)
        for voiced_s in range(0, 210)
    ]
    spoken = [(index / 10, phrase) for index, phrase in enumerate(said) if phrase]
    assert [at for at, _ in spoken] == pytest.approx([5.0, 10.0, 15.0, 20.0])
    assert len({phrase for _, phrase in spoken}) == len(PHRASES)
