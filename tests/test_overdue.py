"""How long the floor is kept for a reply that does not come, or stops coming."""

from __future__ import annotations

from duplex.config import SessionConfig
from duplex.overdue import Overdue
from duplex.reply import Reply
from duplex.trace import TurnTrace
from duplex.turn import Floor, TurnMachine

CONFIG = SessionConfig(think_limit_s=8.0, stall_limit_s=1.5, dead_air_s=2.0)


def machine(floor: Floor, since_s: float = 0.0) -> TurnMachine:
    made = TurnMachine()
    made.floor, made.since_s = floor, since_s
    return made


def reply(**changes: bool) -> Reply:
    return Reply("resp_1", "item_1", TurnTrace(), **changes)  # type: ignore[arg-type]


def code(overdue: Overdue, at: TurnMachine, of: Reply | None, now_s: float, *, audible: bool = False) -> str | None:
    fault = overdue.fault(at, of, audible, now_s)
    return None if fault is None else fault[0]


def test_thinking_ends_at_its_limit_and_a_sign_of_life_counts() -> None:
    thinking, made = machine(Floor.THINKING, since_s=10.0), reply()
    assert code(Overdue(CONFIG), thinking, made, 17.9) is None
    assert code(Overdue(CONFIG), thinking, made, 18.1) == "reply_timeout"
    made.came_s = 15.0  # text, or a call to a tool
    assert code(Overdue(CONFIG), thinking, made, 22.9) is None
    assert code(Overdue(CONFIG), machine(Floor.LISTENING), made, 99.0) is None


def test_dead_air_is_noticed_once_and_never_of_a_silent_reply() -> None:
    thinking, made, overdue = machine(Floor.THINKING), reply(), Overdue(CONFIG)
    assert not overdue.is_dead_air(thinking, made, 1.9)
    assert overdue.is_dead_air(thinking, made, 2.1)
    made.dead_air_told = True
    assert not overdue.is_dead_air(thinking, made, 3.0)
    assert not overdue.is_dead_air(thinking, reply(silent=True), 3.0)
    assert not overdue.is_dead_air(thinking, None, 3.0)


def test_a_reply_that_stops_in_mid_sentence_is_given_up_and_one_that_goes_on_is_not() -> None:
    speaking, overdue, made = machine(Floor.SPEAKING), Overdue(CONFIG), reply()
    assert code(overdue, speaking, made, 1.0) is None
    assert code(overdue, speaking, made, 2.4) is None
    assert code(overdue, speaking, made, 2.5, audible=True) is None  # it goes on
    assert code(overdue, speaking, made, 3.0) is None
    assert code(overdue, speaking, made, 4.6) == "reply_stalled"
    assert code(overdue, speaking, made, 4.7) is None, "told twice"
    ended = reply(ended=True)
    assert [code(overdue, speaking, ended, at_s) for at_s in (5.0, 9.0)] == [None, None]


def test_time_that_stood_still_is_not_waited() -> None:
    speaking, overdue, made = machine(Floor.SPEAKING), Overdue(CONFIG), reply()
    assert code(overdue, speaking, made, 1.0) is None
    overdue.stood_still()
    assert code(overdue, speaking, made, 9.0) is None
    assert code(overdue, speaking, made, 10.6) == "reply_stalled"
