"""Watching a native agent: tables with a row for everything, and what is seen of two streams, frame by frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duplex.agent import SpeechStarted, SpeechStopped, UserState
from duplex.errors import ConfigError
from duplex.frames import SAMPLE_RATE_HZ, Packet, silence
from duplex.pace import Pacer
from duplex.testing import tone
from duplex.thinker_talker.native.floor_watch import (
    USER,
    VOICE,
    FloorWatch,
    SeenFrame,
    Step,
    UserCue,
    Voice,
    VoiceCue,
)
from duplex.thinker_talker.native.options import WatchOptions
from duplex.thinker_talker.native.user_voice import UserVoice
from duplex.turn import TABLE, WATCHED, Action, Floor, Own, Signal, User, WatchingMachine

FRAME, FRAME_S = 1920, 0.08
L, T, S, Y = Floor.LISTENING, Floor.THINKING, Floor.SPEAKING, Floor.YIELDING


class Watched:
    """A watch fed by letters, one a frame: of the user "u" voice, "-" none; of the agent "w" a word piece without
    sound, "W" with sound, "s" sound alone, "." neither."""

    def __init__(self, **options: float) -> None:
        chosen = WatchOptions(**options)
        self.voice, self.watch = UserVoice(chosen), FloorWatch(chosen, FRAME_S)
        self.pts = 0
        self.steps: list[Step] = []
        self.users: list[User] = []
        self.speech: list[SpeechStarted | SpeechStopped] = []

    def push(self, user: str, agent: str) -> Watched:
        assert len(user) == len(agent)
        for u, a in zip(user, agent, strict=True):
            heard = tone(FRAME_S) if u == "u" else silence(FRAME)
            hearing = self.voice.push(self.pts, heard)
            self.pts += FRAME
            seen = self.watch.push(SeenFrame(self.pts, hearing, a in "wW", -20.0 if a in "Ws" else -80.0))
            self.steps.append(seen.step)
            for told in seen.told:
                if isinstance(told, UserState):
                    self.users.append(told.user)
                else:
                    self.speech.append(told)
        return self

    def frames_of(self, step: Step) -> list[int]:
        return [k for k, seen in enumerate(self.steps) if seen is step]

    def first(self, user: User) -> int:
        return self.users.index(user)


# --- the tables -----------------------------------------------------------------------------------


def test_every_table_has_a_row_for_everything() -> None:
    assert set(VOICE) == {(voice, cue) for voice in Voice for cue in VoiceCue}
    states = {state for state, _ in USER}
    assert set(USER) == {(state, cue) for state in states for cue in UserCue}
    assert {after for _, after in USER.values()} == states
    assert set(WATCHED) == set(TABLE)


@pytest.mark.parametrize(
    ("floor", "signal", "after", "actions"),
    [
        (L, User.SPEAKING, L, ()),
        (L, User.PAUSED_INCOMPLETE, L, ()),  # nothing is speculated
        (L, User.TURN_COMPLETE, L, (Action.END_TURN,)),
        (L, Own.REPLY_AUDIBLE, S, (Action.RELEASE,)),
        (L, Own.REPLY_REQUESTED, T, (Action.START_REPLY,)),
        (T, User.SPEAKING, T, ()),
        (T, Own.REPLY_AUDIBLE, S, (Action.RELEASE,)),
        (T, Own.CANCELLED, Y, (Action.YIELD,)),
        (S, User.SPEAKING, S, ()),  # no pause: the stream cannot be held
        (S, User.INTERRUPTING, S, ()),  # the model is given the chance to yield
        (S, User.BACKCHANNEL, S, (Action.FORGET,)),
        (S, User.TURN_COMPLETE, S, (Action.END_TURN,)),
        (S, Own.HOLD_EXPIRED, Y, (Action.YIELD,)),
        (S, Own.CANCELLED, Y, (Action.YIELD,)),
        (S, Own.REPLY_ENDED, L, (Action.FINISH,)),
    ],
)
def test_a_watched_row(floor: Floor, signal: Signal, after: Floor, actions: tuple[Action, ...]) -> None:
    machine = WatchingMachine(floor=floor)
    assert machine.feed(signal, 1.0) == actions
    assert machine.floor is after


def test_no_signal_leads_a_watched_floor_to_holding_and_none_is_speculated_or_held() -> None:
    for (floor, _), row in WATCHED.items():
        if floor is not Floor.HOLDING:
            assert row.floor is not Floor.HOLDING
            assert not {Action.SPECULATE, Action.HOLD, Action.COMMIT, Action.RETRACT} & set(row.actions)


@pytest.mark.parametrize(
    ("limit_s", "audible_s", "yields"), [(0.4, 10.4, True), (0.4, 10.2, False), (0.0, 10.4, False), (0.6, 10.4, False)]
)
def test_the_machine_yields_for_an_agent_that_is_interrupted_and_still_audible(
    limit_s: float, audible_s: float, yields: bool
) -> None:
    machine = WatchingMachine(yield_limit_s=limit_s, floor=S)
    machine.feed(User.SPEAKING, 9.0)
    machine.feed(User.INTERRUPTING, 10.0)
    machine.feed(User.INTERRUPTING, 10.3)  # said again; it began at 10.0
    machine.audible_s = audible_s
    assert machine.tick(10.39) == ()
    assert (machine.tick(10.4) == (Action.YIELD,)) is yields


def test_a_new_interruption_is_given_its_own_time() -> None:
    machine = WatchingMachine(yield_limit_s=0.4, floor=S)
    machine.feed(User.INTERRUPTING, 10.0)
    machine.feed(User.SPEAKING, 10.3)
    machine.feed(User.INTERRUPTING, 10.35)
    machine.audible_s = 10.5
    assert machine.tick(10.5) == ()


# --- the agent ------------------------------------------------------------------------------------


def test_a_reply_begins_with_its_first_word_and_ends_after_padding_and_silence() -> None:
    seen = Watched(reply_end_s=0.4).push("-" * 20, "..wWWs...WW.........")
    assert seen.frames_of(Step.BEGIN) == [2]
    assert seen.frames_of(Step.END) == [15]  # 5 frames of rest after frame 10; the three before were a pause
    assert Step.NOTHING not in seen.steps[2:16]


def test_a_sound_without_words_is_a_reply_too() -> None:
    seen = Watched(reply_end_s=0.4).push("-" * 10, "..s.......")
    assert seen.frames_of(Step.BEGIN) == [2]
    assert seen.frames_of(Step.END) == [7]


def test_a_model_that_falls_silent_under_the_user_has_yielded_sooner() -> None:
    seen = Watched().push("-----uuuuuuuuuu", ".WWWWWWWW......")
    assert seen.frames_of(Step.END) == [11]  # 0.24 s
    alone = Watched().push("-" * 25, ".WWWWWWWW................")
    assert alone.frames_of(Step.END) == [18]  # 0.8 s


def test_a_reply_that_does_not_end_becomes_two_at_its_next_rest() -> None:
    seen = Watched(longest_reply_s=1.1).push("-" * 30, ".WWWW.WWWWWWWWWW.WWWWWWWWWWWWW")
    assert seen.frames_of(Step.END) == [16]
    assert seen.frames_of(Step.BEGIN) == [1, 17]


def test_a_model_that_never_rests_is_cut_into_replies_all_the_same() -> None:
    seen = Watched(longest_reply_s=1.1).push("-" * 40, "W" * 40)
    begins, ends = seen.frames_of(Step.BEGIN), seen.frames_of(Step.END)
    assert begins[1:] == [end + 1 for end in ends]
    assert ends[0] * FRAME_S == pytest.approx(1.2 * 1.1, abs=FRAME_S)


def test_a_long_silence_before_it_takes_nothing_from_a_reply() -> None:
    seen = Watched(longest_reply_s=1.1).push("-" * 50, "." * 40 + "WWWWWWWWWW")
    assert seen.frames_of(Step.BEGIN) == [40]
    assert seen.frames_of(Step.END) == []


# --- the user -------------------------------------------------------------------------------------


def test_a_turn_ends_after_quiet_and_is_told_once() -> None:
    seen = Watched(turn_end_s=0.4).push("--uuuuu----------", "." * 17)
    assert seen.users[:2] == [User.IDLE] * 2
    assert seen.users[2:8] == [User.SPEAKING] * 6
    assert seen.users.count(User.TURN_COMPLETE) == 1
    assert seen.first(User.TURN_COMPLETE) == 11
    assert User.PAUSED_INCOMPLETE in seen.users[8:11]
    assert set(seen.users[12:]) == {User.IDLE}
    assert seen.speech == [SpeechStarted(2 * FRAME), SpeechStopped(7 * FRAME)]


def test_a_model_that_begins_to_speak_into_a_pause_ends_the_turn() -> None:
    seen = Watched().push("--uuuuu-----", "........WWWW")
    assert seen.first(User.TURN_COMPLETE) == 8
    assert seen.frames_of(Step.BEGIN) == [8]
    assert seen.speech[-1] == SpeechStopped(7 * FRAME)  # told at once, though it is not quiet for long
    assert len(seen.speech) == 2


def test_a_model_that_talks_over_the_user_does_not_end_their_turn() -> None:
    seen = Watched().push("--uuuuuuuuuuuu-----", ".....WW............")
    assert User.TURN_COMPLETE not in seen.users[:14]
    assert User.INTERRUPTING not in seen.users


def test_voice_over_ours_interrupts_once_it_lasts_and_for_as_long_as_we_go_on() -> None:
    seen = Watched().push("-----uuuuuuuuuuuu---", ".WWWWWWWWWWWWWWWWWWW")
    first = seen.first(User.INTERRUPTING)
    assert first - 5 + 1 == 10  # ten frames of 80 ms: 0.8 s
    assert set(seen.users[5:first]) == {User.SPEAKING}
    assert set(seen.users[first:]) == {User.INTERRUPTING}  # a short silence takes nothing back


def test_an_interruption_that_the_model_yields_to_is_a_turn() -> None:
    seen = Watched(turn_end_s=0.4).push("-----uuuuuuuuuuuuuu------", ".WWWWWWWWWWWWWWW.........")
    assert User.INTERRUPTING in seen.users
    assert seen.users.count(User.TURN_COMPLETE) == 1
    assert User.BACKCHANNEL not in seen.users


def test_a_short_word_over_ours_was_encouragement_and_no_turn() -> None:
    seen = Watched().push("-----uuu--------------", ".WWWWWWWWWWWWWWWWWWWWW")
    assert seen.users.count(User.BACKCHANNEL) == 1
    assert seen.first(User.BACKCHANNEL) == 11  # 0.32 s of quiet
    assert User.TURN_COMPLETE not in seen.users
    assert set(seen.users[12:]) == {User.IDLE}


def test_a_short_word_that_silenced_the_model_was_a_turn() -> None:
    seen = Watched(turn_end_s=0.6).push("-----uuu-----------", ".WWWWWWW...........")
    assert User.BACKCHANNEL not in seen.users
    assert User.TURN_COMPLETE in seen.users


@given(st.text("u-", min_size=1, max_size=60), st.data())
def test_whatever_happens_replies_alternate_and_nothing_rests_on_what_comes_later(
    user: str, data: st.DataObject
) -> None:
    agent = data.draw(st.text(".wWs", min_size=len(user), max_size=len(user)))
    whole = Watched().push(user, agent)
    marks = [step for step in whole.steps if step in (Step.BEGIN, Step.END)]
    assert marks == [Step.BEGIN, Step.END] * (len(marks) // 2) + [Step.BEGIN] * (len(marks) % 2)
    kinds = [type(told) for told in whole.speech]
    assert kinds == [SpeechStarted, SpeechStopped] * (len(kinds) // 2) + [SpeechStarted] * (len(kinds) % 2)
    cut = data.draw(st.integers(0, len(user)))
    part = Watched().push(user[:cut], agent[:cut])
    assert part.steps == whole.steps[:cut]
    assert part.users == whole.users[:cut]


# --- the user's voice -----------------------------------------------------------------------------


def voiced_s(sound: Sequence[np.ndarray], reference: Sequence[np.ndarray] | None = None) -> float:
    voice = UserVoice(WatchOptions())
    return sum(
        voice.push(k * FRAME, frame, None if reference is None else reference[k]).voiced_s
        for k, frame in enumerate(sound)
    )


def frames(sound: np.ndarray) -> list[np.ndarray]:
    return list(sound[: len(sound) // FRAME * FRAME].reshape(-1, FRAME))


def test_a_fan_is_soon_no_voice_and_a_voice_above_it_still_is() -> None:
    rng = np.random.default_rng(1)
    fan = rng.normal(0, 10 ** (-42 / 20), 40 * SAMPLE_RATE_HZ).astype(np.float32)
    early, late = frames(fan)[:12], frames(fan)
    voice = UserVoice(WatchOptions())
    heard = [voice.push(k * FRAME, frame).voiced_s for k, frame in enumerate(late)]
    assert sum(heard[: len(early)]) > 0.5  # nobody knows it yet
    assert sum(heard[-100:]) == 0.0
    assert voice.push(len(late) * FRAME, fan[:FRAME] + tone(FRAME_S, level_dbfs=-22)).voiced_s == pytest.approx(0.08)


def test_a_click_is_no_speech_and_our_own_echo_is_not_the_users() -> None:
    click = np.zeros(FRAME * 4, dtype=np.float32)
    click[2000:2400] = 0.5
    assert voiced_s(frames(click)) == 0.0
    echo = frames(tone(1.0, level_dbfs=-43))
    ours = frames(tone(1.0, level_dbfs=-12))
    assert voiced_s(echo) > 0.9
    assert voiced_s(echo, ours) == 0.0
    assert voiced_s(frames(tone(1.0, level_dbfs=-25)), ours) > 0.9


# --- settings and pace ----------------------------------------------------------------------------


def test_a_session_may_choose_a_preset_or_a_threshold_and_a_wrong_name_is_told() -> None:
    options = WatchOptions(interrupt_s=0.9)
    assert options.with_overrides(None) is options
    assert options.with_overrides({"turn_end_s": 0.5}).interrupt_s == 0.9
    assert options.with_overrides({"preset": "patient"}).turn_end_s == 1.0
    with pytest.raises(ConfigError, match="silence_likely_s"):
        options.with_overrides({"silence_likely_s": 0.3})


def packets(sound: np.ndarray, pts: int = 0) -> list[Packet]:
    blocks = sound.reshape(-1, 480)
    return [Packet(pts + k * 480, block) for k, block in enumerate(blocks)]


def test_what_comes_at_once_is_heard_at_the_speed_of_speech_and_pauses_are_made_up_for() -> None:
    pacer = Pacer()
    heard = []
    speech = packets(tone(1.0))
    first = pacer.take([*speech, *packets(silence(48_000), 24_000)])
    assert first is speech[0]
    ticks = 1
    while (packet := pacer.take(())) is not None:
        heard.append(packet)
        ticks += 1
    assert 50 <= ticks <= 60  # the speech whole, and of two seconds of silence next to nothing
    assert [packet.pts for packet in heard] == [480 * (k + 1) for k in range(len(heard))]
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(heard, speech[1:], strict=False))


def test_jitter_changes_nothing_and_more_than_the_bound_is_lost_and_counted() -> None:
    pacer = Pacer(max_packets=10)
    quiet = packets(silence(480 * 4), 960)
    assert pacer.take(quiet) is quiet[0]
    assert [pacer.take(()) for _ in range(4)] == [*quiet[1:], None]
    pacer.take(packets(tone(0.4), 960 + 480 * 4))
    assert pacer.dropped == 10
