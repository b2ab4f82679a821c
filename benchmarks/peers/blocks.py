"""Who says what, when, to whom: a run in blocks of a few trials, each made with one contender after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from duplex.benchmarks.peers.comparison import Contender
from duplex.benchmarks.peers.pipecat_server import Turnstile, order_of
from duplex.benchmarks.server_process import ServerProcess, cpu_s
from duplex.benchmarks.turns.contract import Bench, Scenario, Trial
from duplex.benchmarks.turns.doors import WebRtcDoor
from duplex.benchmarks.turns.material import Material
from duplex.benchmarks.turns.results import ScenarioResult
from duplex.benchmarks.turns.runner import Runner


@dataclass(frozen=True, slots=True)
class Part:
    """A scenario of the suite, how many trials of it a full and a quick run make, and how many at a stretch."""

    scenario: int
    name: str
    trials: int
    quick: int
    block: int


PARTS = (
    Part(1, "turns", 30, 4, 6),
    Part(3, "pauses", 20, 3, 5),
    Part(4, "pauses after um", 12, 2, 4),
    Part(7, "interruptions", 20, 3, 5),
    Part(6, "backchannels", 20, 3, 5),
)


@dataclass(frozen=True, slots=True)
class Block:
    """``first``: how many trials of its part were made before it, so that it goes on where they left off."""

    number: int
    part: Part
    first: int
    size: int


def blocks(parts: Sequence[Part], trials_of: Mapping[str, int]) -> list[Block]:
    """The parts take turns, so that each is spread over the whole run."""
    planned: list[Block] = []
    made = dict.fromkeys(trials_of, 0)
    while any(made[part.name] < trials_of[part.name] for part in parts):
        for part in parts:
            if (size := min(part.block, trials_of[part.name] - made[part.name])) > 0:
                planned.append(Block(len(planned), part, made[part.name], size))
                made[part.name] += size
    return planned


COUNTED = ("question", "paused", "um_pause", "interruption", "backchannel")
"""What the parts say, of :class:`Material`: each is a method of the trial's number."""


class Continued:
    """Material that goes on from its ``first``-th thing: a scenario counts its trials from 0 in each block."""

    def __init__(self, material: Material, first: int) -> None:
        self._material, self._first = material, first

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._material, name)
        return (lambda k: found(self._first + k)) if name in COUNTED else found


@dataclass(frozen=True, slots=True)
class Side:
    """A contender and the server it is."""

    contender: Contender
    server: ServerProcess


class SideBySide:
    """Runs the blocks. Within a block every side gets the same seed and the same things to hear.

    ``out``: directory for the clips of failing trials; None keeps none.
    """

    def __init__(
        self, sides: Sequence[Side], scenarios: Mapping[int, Scenario], material: Material, seed: int, out: Path | None
    ) -> None:
        self._sides = {side.contender.name: side for side in sides}
        self._scenarios = scenarios
        self._material = material
        self._seed = seed
        self._out = out
        self._turnstile = Turnstile({side.contender.name: side.server.pid for side in sides})

    async def run(self, planned: Sequence[Block], tell: Callable[[str], None]) -> None:
        """All of them, in order. At the end, or when it breaks off, every server runs again."""
        try:
            for block in planned:
                for name in order_of(list(self._sides), block.number):
                    tell(f"Block {block.number + 1} of {len(planned)}: {block.size} {block.part.name}, {name}")
                    self._turnstile.let(name)
                    await self._run_one(self._sides[name], block)
        finally:
            self._turnstile.open()

    async def _run_one(self, side: Side, block: Block) -> None:
        material = cast(Material, Continued(self._material, block.first))
        pid = side.server.pid
        bench = Bench(WebRtcDoor(side.server.url), material, self._seed + block.number, server_pid=pid)
        keep = None if self._out is None else self._out / side.contender.name / f"block-{block.number + 1:02}"
        began_s, began_cpu_s = time.perf_counter(), cpu_s(pid)
        scenario = self._scenarios[block.part.scenario]
        (result,) = await Runner(bench, keep).run([scenario], lambda _scenario: block.size, _Silent())
        side.contender.take(result)
        side.contender.wall_s += time.perf_counter() - began_s
        side.contender.server_s += (cpu_s(pid) or 0.0) - (began_cpu_s or 0.0)


class _Silent:
    """A watcher that says nothing: the line per block has it all."""

    def began(self, scenario: Scenario, trials: int) -> None: ...

    def tried(self, scenario: Scenario, trial: Trial) -> None: ...

    def ended(self, result: ScenarioResult) -> None: ...
