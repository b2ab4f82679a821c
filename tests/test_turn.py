"""The turn machine: a row for everything, and one test a row that matters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duplex.turn import SIGNALS, TABLE, Action, Floor, Own, Signal, TurnMachine, User

L, T, S, H, Y = Floor.LISTENING, Floor.THINKING, Floor.SPEAKING, Floor.HOLDING, Floor.YIELDING


def test_every_floor_and_signal_has_a_row_and_no_other_exists() -> None:
    assert set(TABLE) == {(floor, signal) for floor in Floor for signal in SIGNALS}


@pytest.mark.parametrize(
    ("floor", "signal", "after", "actions"),
    [
        (L, User.PAUSED_INCOMPLETE, L, (Action.SPECULATE,)),
        (L, User.SPEAKING, L, (Action.DROP_SPECULATION,)),
        (L, User.NOT_ADDRESSED, L, (Action.DROP_SPECULATION,)),
        (L, User.TURN_COMPLETE, T, (Action.COMMIT,)),
        (L, Own.REPLY_AUDIBLE, L, ()),
        (L, Own.REPLY_REQUESTED, T, (Action.DROP_SPECULATION, Action.START_REPLY)),
        (T, User.SPEAKING, L, (Action.RETRACT,)),
        (T, User.IDLE, T, ()),
        (T, Own.REPLY_AUDIBLE, S, (Action.RELEASE,)),
        (T, Own.REPLY_ENDED, L, (Action.FINISH,)),
        (T, Own.CANCELLED, Y, (Action.YIELD,)),
        (S, User.SPEAKING, H, (Action.HOLD,)),
        (S, User.INTERRUPTING, Y, (Action.YIELD,)),
        (S, User.BACKCHANNEL, S, ()),
        (S, Own.REPLY_ENDED, L, (Action.FINISH,)),
        (H, User.SPEAKING, H, ()),
        (H, User.BACKCHANNEL, S, (Action.RESUME,)),
        (H, User.NOT_ADDRESSED, S, (Action.RESUME,)),
        (H, User.IDLE, S, (Action.RESUME,)),
        (H, User.INTERRUPTING, Y, (Action.YIELD,)),
        (H, Own.HOLD_EXPIRED, Y, (Action.YIELD,)),
        (Y, Own.YIELDED, L, ()),
        (Y, User.SPEAKING, Y, ()),
    ],
)
def test_a_row(floor: Floor, signal: Signal, after: Floor, actions: tuple[Action, ...]) -> None:
    machine = TurnMachine(floor=floor)
    assert machine.feed(signal, 1.0) == actions
    assert machine.floor is after


def test_a_hold_expires_once_and_only_after_its_limit() -> None:
    machine = TurnMachine(hold_limit_s=2.0, floor=S)
    machine.feed(User.SPEAKING, 10.0)
    assert machine.tick(11.9) == ()
    assert machine.tick(12.0) == (Action.YIELD,)
    assert machine.tick(13.0) == ()


def test_reset_forgets_everything() -> None:
    machine = TurnMachine(floor=H, user=User.SPEAKING, since_s=3.0)
    machine.reset(5.0)
    assert (machine.floor, machine.user, machine.since_s) == (L, User.IDLE, 5.0)


@given(st.lists(st.sampled_from(SIGNALS)))
def test_audio_is_released_held_resumed_and_given_up_in_a_sensible_order(signals: list[Signal]) -> None:
    machine = TurnMachine()
    out = False  # our audio is on the wire
    for now_s, signal in enumerate(signals):
        if signal is Own.YIELDED and machine.floor is not Y:
            continue  # the session says so only while it yields
        for action in machine.feed(signal, float(now_s)):
            match action:
                case Action.RELEASE | Action.RESUME:
                    assert not out
                    out = True
                case Action.HOLD:
                    assert out
                    out = False
                case Action.YIELD | Action.FINISH:
                    out = False
                case Action.COMMIT | Action.SPECULATE | Action.START_REPLY | Action.RETRACT:
                    assert not out
                case _:
                    pass
