"""Every row of the table, in order."""

from __future__ import annotations

from collections.abc import Collection

from duplex.benchmarks.turns import (
    scenarios_link,
    scenarios_long,
    scenarios_memory,
    scenarios_noise,
    scenarios_overlap,
    scenarios_self,
    scenarios_turns,
)
from duplex.benchmarks.turns.contract import Scenario
from duplex.errors import DuplexError

SCENARIOS: tuple[Scenario, ...] = tuple(
    sorted(
        (
            *scenarios_turns.SCENARIOS,
            *scenarios_overlap.SCENARIOS,
            *scenarios_memory.SCENARIOS,
            *scenarios_noise.SCENARIOS,
            *scenarios_long.SCENARIOS,
            *scenarios_link.SCENARIOS,
            *scenarios_self.SCENARIOS,
        ),
        key=lambda scenario: scenario.number,
    )
)


def chosen(numbers: Collection[int] | None) -> tuple[Scenario, ...]:
    """The scenarios of those numbers in the table's order; all of them for None. Raises for one there is not."""
    known = {scenario.number for scenario in SCENARIOS}
    if unknown := sorted(set(numbers or ()) - known):
        raise DuplexError(f"There is no scenario {unknown[0]}. There are 1 to {max(known)}.")
    return tuple(scenario for scenario in SCENARIOS if numbers is None or scenario.number in numbers)
