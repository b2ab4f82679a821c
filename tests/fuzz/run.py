"""The fuzzing itself: seeds first, then changed and structured inputs until the time is over."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, given, seed, settings

from .corpus import kept
from .mutate import Mutator
from .target import Finding, Target, attempt
from .targets import strategy

_BATCH = 100
_MAX_POOL = 2_000


@dataclass
class Result:
    """``findings``: by signature, the shortest input of each. ``outcomes``: different words that came back."""

    executions: int = 0
    outcomes: int = 0
    findings: dict[str, Finding] = field(default_factory=dict)

    def note(self, finding: Finding) -> None:
        known = self.findings.get(finding.signature)
        if known is None or len(finding.data) < len(known.data):
            self.findings[finding.signature] = finding


def fuzz(
    target: Target,
    seconds: float,
    seed_number: int,
    *,
    before: Callable[[bytes], None] = lambda data: None,
    most: int | None = None,
) -> Result:
    """Runs ``target`` for ``seconds`` (or ``most`` inputs). ``before`` gets each input before it is run.

    An input that brings an outcome not seen before is kept and changed further.
    """
    rng, result = random.Random(seed_number), Result()
    pool = [*target.seeds(), *kept(target.name).values()]
    mutate = Mutator(rng, target.words, lambda: rng.choice(pool), target.max_bytes)
    seen: set[str] = set()
    ends_s = time.monotonic() + seconds

    def over() -> bool:
        return time.monotonic() >= ends_s or (most is not None and result.executions >= most)

    def run(data: bytes) -> None:
        before(data)
        result.executions += 1
        try:
            outcome = attempt(target, data)
        except Finding as finding:
            result.note(finding)
            return
        if outcome not in seen and len(seen) < _MAX_POOL:
            seen.add(outcome)
            if len(data) <= target.max_bytes:
                pool.append(data)

    for data in list(pool):
        run(data)
    structured = strategy(target.name)
    while not over():
        for _ in range(_BATCH):
            data = mutate(rng.choice(pool))
            run(target.mend(data) if target.mend is not None and rng.random() < 0.8 else data)
            if over():
                break
        if structured is not None and not over():

            @seed(rng.randrange(2**32))
            @settings(
                max_examples=_BATCH if most is None else min(_BATCH, most),
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(structured)
            def batch(data: bytes) -> None:
                if not over():
                    run(data)

            batch()
    result.outcomes = len(seen)
    return result
