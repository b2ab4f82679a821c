"""A line around another passes everything on, and what the innermost can besides is found."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from duplex.line import Line
from duplex.line_around import LineAround, ability
from duplex.testing import LoopbackLine


@runtime_checkable
class Singing(Protocol):
    def sing(self) -> str: ...


class SingingLine(LoopbackLine):
    def sing(self) -> str:
        return "la"


@runtime_checkable
class Dancing(Protocol):
    def dance(self) -> str: ...


def test_an_ability_is_found_through_any_number_of_lines_around_it() -> None:
    inner = SingingLine()
    around = LineAround(LineAround(inner))
    assert ability(inner, Singing) is inner
    assert ability(around, Singing) is inner
    assert ability(around, Dancing) is None


def test_everything_is_passed_on() -> None:
    """Each method and property of the contract, so that one that is added to it is not forgotten."""
    contract = {name for name in vars(Line) if not name.startswith("_")}
    assert contract <= set(vars(LineAround))
