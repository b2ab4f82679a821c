"""The turn-state predictor: evidence in, state out, no models and no clock."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duplex.frames import SAMPLE_RATE_HZ
from duplex.thinker_talker.predictor import Ask, Edge, HeardWindow, OurSide, TurnPredictor
from duplex.thinker_talker.turn_options import TurnOptions
from duplex.turn import Floor, User

WINDOW = 768
WINDOW_S = WINDOW / SAMPLE_RATE_HZ


@dataclass
class Listening:
    """A predictor that is fed seconds of voice and silence, with a log of when its state changed."""

    predictor: TurnPredictor = field(default_factory=TurnPredictor)
    ours: OurSide = field(default_factory=lambda: OurSide(Floor.LISTENING))
    pts: int = 0
    asks: list[tuple[float, Ask]] = field(default_factory=list)
    states: list[tuple[float, User]] = field(default_factory=list)

    def feed(self, seconds: float, probability: float, level_dbfs: float = -20.0, echo: float = 0.0) -> Listening:
        for _ in range(round(seconds / WINDOW_S)):
            self.pts += WINDOW
            self.note(self.predictor.window(HeardWindow(self.pts, WINDOW, probability, level_dbfs, echo), self.ours))
        return self

    def voice(self, seconds: float, level_dbfs: float = -20.0) -> Listening:
        return self.feed(seconds, 0.95, level_dbfs)

    def quiet(self, seconds: float) -> Listening:
        return self.feed(seconds, 0.02)

    def prosody(self, probability: float) -> Listening:
        self.predictor.prosody(probability, self.pts)
        return self.reviewed()

    def words(self, text: str, *, final: bool = True) -> Listening:
        self.predictor.transcript(text, final=final, asked_pts=self.pts)
        return self.reviewed()

    def reviewed(self) -> Listening:
        self.note(self.predictor.review(self.ours))
        return self

    def note(self, user: User) -> None:
        spread = self.predictor.probabilities()
        assert sum(spread.values()) == pytest.approx(1.0)
        assert spread[user] == pytest.approx(max(spread.values())), (user, spread)
        now_s = self.pts / SAMPLE_RATE_HZ
        self.asks += [(now_s, ask) for ask in self.predictor.asks]
        self.predictor.asks.clear()
        if not self.states or self.states[-1][1] is not user:
            self.states.append((now_s, user))

    def when(self, user: User) -> float:
        return next(at for at, state in self.states if state is user)

    @property
    def users(self) -> list[User]:
        return [user for _, user in self.states]


def test_a_pause_asks_for_words_and_prosody_at_once_and_once() -> None:
    listening = Listening().quiet(0.5).voice(1.0).quiet(0.32)
    assert listening.users == [User.IDLE, User.SPEAKING, User.PAUSED_INCOMPLETE]
    pause_s = listening.when(User.PAUSED_INCOMPLETE)
    assert pause_s == pytest.approx(1.5 + 0.064, abs=2 * WINDOW_S)
    assert [ask for at, ask in listening.asks if at >= pause_s - 1e-6] == [Ask.FINAL, Ask.PROSODY]


def test_an_unsure_end_of_turn_model_is_asked_once_more_and_a_sure_one_is_not() -> None:
    unsure = Listening().voice(1.0).quiet(0.128).prosody(0.1).quiet(0.6)
    sure = Listening().voice(1.0).quiet(0.128).prosody(0.9).quiet(0.6)
    assert [ask for _, ask in unsure.asks].count(Ask.PROSODY) == 2
    assert [ask for _, ask in sure.asks].count(Ask.PROSODY) == 1


def test_a_likely_end_is_taken_early() -> None:
    listening = without_asking().voice(1.0).quiet(0.128).prosody(0.98).words("What time is it?").quiet(1.0)
    assert listening.when(User.TURN_COMPLETE) == pytest.approx(1.0 + 0.26, abs=2 * WINDOW_S)


def test_without_any_evidence_a_plain_silence_timer_ends_the_turn() -> None:
    listening = Listening().voice(1.0).quiet(1.5)
    assert listening.when(User.TURN_COMPLETE) == pytest.approx(1.0 + 0.6, abs=2 * WINDOW_S)


@pytest.mark.parametrize(
    ("prosody", "words", "needed_s"),
    [
        (0.98, "I am done.", 0.26),
        (0.9, "I am done.", 0.35),
        (0.4, "I am done.", 0.64),
        (0.0, "I am done.", 0.8),
        (0.9, "I would like a", 0.71),
        (0.0, "I would like a", 1.94),
        (0.9, "I'd like, um", 1.76),
        (0.9, "It's four one five", 1.53),
    ],
)
def test_evidence_moves_the_end_earlier_or_later(prosody: float, words: str, needed_s: float) -> None:
    listening = without_asking().voice(1.0).quiet(0.128).prosody(prosody).words(words).quiet(3.0)
    assert listening.when(User.TURN_COMPLETE) == pytest.approx(1.0 + needed_s, abs=2 * WINDOW_S)


def test_a_likely_end_without_words_yet_waits_for_them() -> None:
    listening = without_asking().voice(1.0).quiet(0.128).prosody(0.95).quiet(0.25)
    assert listening.users[-1] is User.PAUSED_INCOMPLETE
    assert listening.words("Hello there.").users[-1] is User.TURN_COMPLETE


def test_sound_without_words_is_not_for_us() -> None:
    listening = Listening().voice(0.5).quiet(0.128).words("").quiet(1.0)
    assert User.TURN_COMPLETE not in listening.users
    assert User.NOT_ADDRESSED in listening.users
    assert listening.users[-1] is User.IDLE


def test_a_voice_that_fell_silent_is_noticed_before_the_detector_lets_go() -> None:
    listening = Listening().voice(1.0).feed(0.32, 0.9, level_dbfs=-55.0)
    assert listening.users[-1] is User.PAUSED_INCOMPLETE
    assert Listening().voice(1.0).feed(0.32, 0.9, level_dbfs=-40.0).users[-1] is User.SPEAKING


def test_a_click_is_no_turn() -> None:
    listening = Listening().voice(0.064).quiet(1.0)
    assert listening.users[-1] is User.IDLE
    assert User.TURN_COMPLETE not in listening.users


def test_going_on_makes_old_answers_worthless() -> None:
    listening = Listening().voice(1.0).quiet(0.128)
    asked = listening.pts
    listening.voice(0.5).quiet(0.128)
    listening.predictor.prosody(0.99, asked)
    listening.predictor.transcript("Old words", final=True, asked_pts=asked)
    listening.quiet(0.3)
    assert listening.users[-1] is User.PAUSED_INCOMPLETE


def without_asking() -> Listening:
    """Nobody asks the language model, so nobody waits for its answer."""
    return Listening(TurnPredictor(TurnOptions(without=("expectation",))))


def over_us() -> Listening:
    return Listening(ours=OurSide(Floor.SPEAKING))


def test_speech_over_ours_is_speaking_within_two_windows() -> None:
    assert over_us().voice(0.064).users[-1] is User.SPEAKING


@pytest.mark.parametrize("words", ["Uh-huh.", "Yeah, right.", ""])
def test_encouragement_and_noise_hand_the_floor_back(words: str) -> None:
    listening = over_us().voice(0.35).quiet(0.128).words(words).quiet(0.4)
    assert User.INTERRUPTING not in listening.users
    assert listening.users[-2] in (User.BACKCHANNEL, User.NOT_ADDRESSED)
    assert listening.users[-1] is User.IDLE


@pytest.mark.parametrize("words", ["Stop.", "Wait.", "What about Spain?"])
def test_an_order_or_content_interrupts_before_the_speaker_is_done(words: str) -> None:
    listening = over_us().voice(0.35).words(words, final=False)
    assert listening.users[-1] is User.INTERRUPTING


def test_long_speech_interrupts_whatever_it_says() -> None:
    listening = over_us().voice(1.5)
    assert listening.when(User.INTERRUPTING) == pytest.approx(0.8, abs=2 * WINDOW_S)


def test_long_encouragement_does_not() -> None:
    listening = over_us().voice(0.6).words("Yeah yeah yeah okay", final=False).voice(0.6)
    assert User.INTERRUPTING not in listening.users


def test_without_words_its_length_decides() -> None:
    assert User.BACKCHANNEL in over_us().voice(0.3).quiet(1.0).users
    assert User.INTERRUPTING in over_us().voice(0.7).quiet(1.0).users


def test_after_interrupting_it_is_a_turn_like_any_other() -> None:
    listening = over_us().voice(1.0)
    assert User.INTERRUPTING in listening.users
    listening.ours = OurSide(Floor.LISTENING)
    listening.voice(0.5).quiet(0.128).prosody(0.9).words("What about Spain?").quiet(0.6)
    assert listening.users[-1] is User.TURN_COMPLETE


def test_edges_name_the_first_and_last_voiced_sample() -> None:
    listening = Listening().quiet(0.512).voice(0.64).quiet(0.32)
    (first, start), (last, stop) = listening.predictor.edges
    assert (first, last) == (Edge.STARTED, Edge.STOPPED)
    assert start / SAMPLE_RATE_HZ == pytest.approx(0.512)
    assert stop / SAMPLE_RATE_HZ == pytest.approx(0.512 + 0.64)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("window"), st.floats(0, 1)),
            st.tuples(st.just("prosody"), st.floats(0, 1)),
            st.tuples(st.just("final"), st.sampled_from(["", "Yeah.", "Stop.", "What is it?"])),
            st.tuples(st.just("floor"), st.sampled_from(list(Floor))),
        ),
        max_size=200,
    )
)
def test_whatever_comes_it_answers_and_forgets_cleanly(script: list[tuple[str, object]]) -> None:
    predictor, ours, pts = TurnPredictor(TurnOptions()), OurSide(Floor.LISTENING), 0
    for kind, value in script:
        match kind, value:
            case "window", float(p):
                pts += WINDOW
                assert isinstance(predictor.window(HeardWindow(pts, WINDOW, p, -60.0 * p), ours), User)
            case "prosody", float(p):
                predictor.prosody(p, pts)
            case "final", str(text):
                predictor.transcript(text, final=True, asked_pts=pts)
            case "floor", Floor() as new:
                ours = OurSide(new)
        assert predictor.quiet_s >= 0
        predictor.asks.clear()
    predictor.reset()
    assert predictor == TurnPredictor(TurnOptions())


def test_the_language_model_is_asked_once_a_pause_and_its_answer_moves_the_end() -> None:
    def complete_s(expected: float | None) -> float:
        listening = Listening().voice(1.0).quiet(0.128).prosody(0.9).words("I'd like to book it.").quiet(0.16)
        assert [ask for _, ask in listening.asks].count(Ask.EXPECTATION) == 1
        if expected is not None:
            listening.predictor.expectation(expected, listening.pts)
        return listening.quiet(3.0).when(User.TURN_COMPLETE)

    assert complete_s(0.9) < complete_s(None) < complete_s(0.001)
    assert complete_s(None) == pytest.approx(1.4, abs=2 * WINDOW_S), "an answer is waited for, but not for ever"


def test_without_words_there_is_nothing_to_ask_the_language_model() -> None:
    assert Ask.EXPECTATION not in [ask for _, ask in Listening().voice(1.0).quiet(0.5).asks]


def test_an_answer_about_words_that_went_on_is_ignored() -> None:
    listening = Listening().voice(1.0).quiet(0.128).words("I'd like to").quiet(0.16)
    asked = listening.pts
    listening.voice(0.5).quiet(0.128).words("I'd like to go.")
    listening.predictor.expectation(0.0001, asked)
    pause = listening.predictor.pause()
    assert pause is not None
    assert pause.expected is None


def interrupted_after(seconds: float) -> Listening:
    """A turn, our answer, and somebody who speaks ``seconds`` into it."""
    listening = without_asking().voice(1.0).quiet(0.128).prosody(0.98).words("Mary rolled.").quiet(0.6)
    listening.predictor.committed()
    listening.ours = OurSide(Floor.SPEAKING)
    listening.quiet(seconds).voice(1.0)
    assert User.INTERRUPTING in listening.users
    return listening


def silence_asked_s(listening: Listening) -> float:
    listening.predictor.forget()
    listening.ours = OurSide(Floor.LISTENING)
    listening.states.clear()
    ended_s = listening.quiet(0.5).voice(1.0).pts / SAMPLE_RATE_HZ
    return listening.quiet(0.128).prosody(0.9).words("I am done.").quiet(3.0).when(User.TURN_COMPLETE) - ended_s


def test_who_was_cut_off_is_given_more_time_and_who_interrupted_is_not() -> None:
    plain, cut_off, interrupted = without_asking(), interrupted_after(0.3), interrupted_after(2.5)
    assert silence_asked_s(interrupted) == pytest.approx(silence_asked_s(plain), abs=WINDOW_S)
    assert silence_asked_s(cut_off) > silence_asked_s(plain) + 0.1
    impatient = interrupted_after(0.3)
    impatient.predictor.options = TurnOptions(without=("expectation",), patience=False)
    assert silence_asked_s(impatient) == pytest.approx(silence_asked_s(plain), abs=WINDOW_S)


def test_patience_has_an_end_and_wears_off() -> None:
    patience = interrupted_after(0.3).predictor.patience
    for _ in range(10):
        patience.cut_off()
    assert patience.factor == 2.0
    for _ in range(20):
        patience.went_well()
    assert patience.factor == pytest.approx(1.0, abs=0.05)


def finals(listening: Listening) -> list[float]:
    return [at for at, ask in listening.asks if ask is Ask.FINAL]


def test_a_faint_sound_after_the_voice_has_the_words_asked_for_once_more() -> None:
    listening = Listening().feed(0.5, 0.02, -60.0).voice(1.0).feed(0.032, 0.02, -60.0)
    assert len(finals(listening)) == 1
    listening.feed(0.064, 0.02, -45.0)  # "… France": its last sound has no voice
    assert len(finals(listening)) == 1, "it goes on, so its end is still to come"
    listening.feed(0.32, 0.02, -60.0)
    assert len(finals(listening)) == 2
    listening.feed(0.064, 0.02, -45.0).feed(0.32, 0.02, -60.0)
    assert len(finals(listening)) == 2, "once a pause"


def test_a_quiet_room_is_no_sound() -> None:
    listening = Listening().feed(0.5, 0.02, -50.0).voice(1.0).feed(0.4, 0.02, -48.0)
    assert len(finals(listening)) == 1


def test_words_heard_better_are_asked_about_again() -> None:
    listening = Listening().feed(0.5, 0.02, -60.0).voice(1.0).feed(0.3, 0.02, -60.0).words("Where is my friend?")
    listening.feed(0.032, 0.02, -60.0)
    assert [ask for _, ask in listening.asks].count(Ask.EXPECTATION) == 1
    listening.predictor.expectation(0.1, listening.pts)
    listening.words("where is my friend").feed(0.032, 0.02, -60.0)
    assert [ask for _, ask in listening.asks].count(Ask.EXPECTATION) == 1, "the same words"
    listening.words("Where is France?").feed(0.032, 0.02, -60.0)
    assert [ask for _, ask in listening.asks].count(Ask.EXPECTATION) == 2
    pause = listening.predictor.pause()
    assert pause is not None
    assert pause.expected is None


def test_on_a_line_that_echoes_a_voice_over_ours_has_to_last() -> None:
    predictor, ours = TurnPredictor(), OurSide(Floor.SPEAKING)
    heard = [HeardWindow(n * WINDOW, WINDOW, 0.99, -20.0, line_echoes=True) for n in range(1, 5)]
    assert [predictor.window(window, ours) for window in heard] == [User.IDLE] * 3 + [User.SPEAKING]


def test_a_voice_that_soon_turns_out_to_be_ours_is_not_addressed_to_us() -> None:
    """Some windows of an echo pass before its delay is found; what follows tells what they were."""
    predictor, ours = TurnPredictor(), OurSide(Floor.SPEAKING)
    user = User.IDLE
    for n in range(1, 30):
        echo = 0.0 if n <= 4 else 0.9
        user = predictor.window(HeardWindow(n * WINDOW, WINDOW, 0.99 if n < 10 else 0.01, -20.0, echo), ours)
        if n == 12:
            predictor.transcript("Once upon a time", final=True, asked_pts=n * WINDOW)
        if user is User.NOT_ADDRESSED:
            break
    assert user is User.NOT_ADDRESSED


@pytest.mark.parametrize(("text", "decided"), [("And thief.", User.SPEAKING), ("Stop.", User.INTERRUPTING)])
def test_two_words_of_a_moment_interrupt_nobody_where_there_may_be_an_echo(text: str, decided: User) -> None:
    predictor, ours = TurnPredictor(), OurSide(Floor.SPEAKING, said="One of them stood there.")
    for n in range(1, 8):
        predictor.window(HeardWindow(n * WINDOW, WINDOW, 0.99, -20.0, line_echoes=True), ours)
    predictor.transcript(text, final=False, asked_pts=7 * WINDOW)
    assert predictor.review(ours) is decided


def first_of(states: set[User], text: str, ours: OurSide, line_echoes: bool, upto: int = 25) -> User:
    """The first of ``states`` that somebody is in who says ``text`` for eleven windows; else the last of all."""
    predictor, user = TurnPredictor(), User.IDLE
    for n in range(1, upto):
        probability = 0.99 if n < 12 else 0.01
        user = predictor.window(HeardWindow(n * WINDOW, WINDOW, probability, -20.0, line_echoes=line_echoes), ours)
        if n == 14:
            predictor.transcript(text, final=True, asked_pts=n * WINDOW)
        if user in states:
            break
    return user


@pytest.mark.parametrize(("line_echoes", "decided"), [(True, User.NOT_ADDRESSED), (False, User.INTERRUPTING)])
def test_our_own_words_are_an_echo_where_there_may_be_one(line_echoes: bool, decided: User) -> None:
    ours = OurSide(Floor.SPEAKING, said="In the year 1980 there was a young deer in the forest.")
    assert (
        first_of({User.NOT_ADDRESSED, User.INTERRUPTING}, "Hey, there was a young deer", ours, line_echoes) is decided
    )


def echoing(text: str, *, voiced: int, said: str = "", upto: int = 40, again_at: int | None = None) -> list[User]:
    """States after each of ``upto`` windows of somebody over us on a line that echoes: ``voiced`` windows of voice, and
    again from ``again_at``; their words come two windows after the first stretch."""
    predictor, ours = TurnPredictor(), OurSide(Floor.SPEAKING, said=said)
    users = []
    for n in range(1, upto + 1):
        voice = n <= voiced or (again_at is not None and n >= again_at)
        users.append(
            predictor.window(HeardWindow(n * WINDOW, WINDOW, 0.99 if voice else 0.01, -20.0, line_echoes=True), ours)
        )
        if n == voiced + 2:
            predictor.transcript(text, final=True, asked_pts=n * WINDOW)
            users.append(predictor.review(ours))
    return users


def test_three_words_that_are_not_ours_interrupt_however_much_of_them_our_echo_covered() -> None:
    assert User.INTERRUPTING in echoing("I think it's like", voiced=8)
    assert User.INTERRUPTING not in echoing("Big Montreal.", voiced=8)
    assert User.INTERRUPTING not in echoing("I think it's like", voiced=8, said="and I think it's like that")


def test_who_pauses_under_our_echo_has_a_moment_longer_to_go_on() -> None:
    """Two words, and 0.2 s later the voice is back, of which the first 0.13 s are not believed."""
    assert User.INTERRUPTING in echoing("Big Montreal.", voiced=9, again_at=16)
    assert User.BACKCHANNEL not in echoing("Big Montreal.", voiced=9, again_at=16)
    assert User.BACKCHANNEL in echoing("Big Montreal.", voiced=9)
    assert echoing("Mm-hm.", voiced=9, again_at=16).count(User.BACKCHANNEL) == 1, "encouragement need not wait"


def test_a_voice_that_begins_again_ends_the_pause() -> None:
    """The pause of 0.16 s is over in the window in which an unsure voice, not yet speech, has begun."""
    predictor, ours = TurnPredictor(), OurSide(Floor.SPEAKING)
    for n in range(1, 9):
        predictor.window(HeardWindow(n * WINDOW, WINDOW, 0.99, -20.0), ours)
    for n in range(9, 13):
        predictor.window(HeardWindow(n * WINDOW, WINDOW, 0.01, -60.0), ours)
    predictor.transcript("The", final=True, asked_pts=12 * WINDOW)
    assert predictor.window(HeardWindow(13 * WINDOW, WINDOW, 0.7, -20.0), ours) is User.PAUSED_INCOMPLETE
    assert predictor.window(HeardWindow(14 * WINDOW, WINDOW, 0.7, -20.0), ours) is User.SPEAKING


@pytest.mark.parametrize(
    ("said", "line_echoes", "decided"),
    [
        ("the light went out of the dark.", True, User.NOT_ADDRESSED),
        ("the light went out of the dark.", False, User.TURN_COMPLETE),
        ("nobody was on board.", True, User.TURN_COMPLETE),
    ],
)
def test_our_last_words_that_come_back_after_them_are_no_turn(said: str, line_echoes: bool, decided: User) -> None:
    ours = OurSide(Floor.LISTENING, said=said)
    assert first_of({User.NOT_ADDRESSED, User.TURN_COMPLETE}, "Of the dark.", ours, line_echoes, upto=80) is decided


def test_over_us_one_window_of_a_sure_voice_is_enough_and_an_unsure_one_is_not() -> None:
    assert over_us().feed(0.032, 0.95).users[-1] is User.SPEAKING
    assert over_us().feed(0.032, 0.7).users[-1] is User.IDLE
    assert Listening().feed(0.032, 0.95).users[-1] is User.IDLE
