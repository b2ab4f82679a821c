"""How long the long scenarios are: as the table asks for, or shorter for a quick look."""

from __future__ import annotations

from dataclasses import dataclass

from duplex.benchmarks.turns.contract import Bench


@dataclass(frozen=True, slots=True)
class Sizes:
    """``echo_s``: of each call of scenario 15, so that twenty of them are ten minutes of the agent's speech."""

    noise_s: float = 60.0
    silence_s: float = 300.0
    echo_s: float = 32.0
    monologue_s: float = 60.0
    jitter_s: float = 600.0
    mixed_s: float = 1800.0
    outage_s: float = 3.0


FULL = Sizes()
QUICK = Sizes(noise_s=15.0, silence_s=30.0, echo_s=20.0, monologue_s=30.0, jitter_s=90.0, mixed_s=240.0)


@dataclass(frozen=True, slots=True)
class SuiteBench(Bench):
    """What the suite's own runs add: how long is long, and where the server's own counts are, if it has any."""

    sizes: Sizes = FULL
    server_url: str | None = None


def sizes_of(bench: Bench) -> Sizes:
    return bench.sizes if isinstance(bench, SuiteBench) else FULL
