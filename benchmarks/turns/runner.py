"""Runs scenarios one after the other and turns what they yield into results."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from duplex.benchmarks.turns.contract import Bench, Call, CallOptions, Door, Scenario, Trial
from duplex.benchmarks.turns.results import Clip, ScenarioResult, TrialResult, Verdict, save_clip
from duplex.benchmarks.turns.statistics import judge, measures_of, verdict_of
from duplex.benchmarks.turns.trials import PLAIN, CannotRunError
from duplex.errors import DuplexError

_AROUND_MS = 3_000.0  # how much of a call is kept before and after a trial


class Watcher(Protocol):
    """Is told how the run goes on."""

    def began(self, scenario: Scenario, trials: int) -> None: ...

    def tried(self, scenario: Scenario, trial: Trial) -> None: ...

    def ended(self, result: ScenarioResult) -> None: ...


class Quiet:
    """A watcher that says nothing."""

    def began(self, scenario: Scenario, trials: int) -> None: ...

    def tried(self, scenario: Scenario, trial: Trial) -> None: ...

    def ended(self, result: ScenarioResult) -> None: ...


@dataclass(frozen=True, slots=True)
class ConfiguredDoor:
    """A door whose calls ask for ``instructions`` and ``turn_taking`` unless a scenario asks for its own."""

    inner: Door
    instructions: str | None = None
    turn_taking: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        return self.inner.name

    def call(self, options: CallOptions = PLAIN) -> AbstractAsyncContextManager[Call]:
        return self.inner.call(
            replace(
                options,
                instructions=self.instructions if options.instructions is None else options.instructions,
                turn_taking=self.turn_taking if options.turn_taking is None else options.turn_taking,
            )
        )


@dataclass(slots=True)
class Runner:
    """``keep``: directory for the clips of failing trials (and of the first one of each scenario); None: no clips.

    ``max_clips``: of failing trials per scenario.
    """

    bench: Bench
    keep: Path | None = None
    max_clips: int = 20
    monotonic_s: Callable[[], float] = time.perf_counter
    results: list[ScenarioResult] = field(default_factory=list)
    """Of the scenarios that have ended, also when the run is broken off."""
    _clips: int = field(default=0, init=False)

    async def run(
        self, scenarios: Sequence[Scenario], trials_of: Callable[[Scenario], int], watcher: Watcher
    ) -> list[ScenarioResult]:
        """Every scenario, in order. What goes wrong in one is its own result; the others are still run."""
        for scenario in scenarios:
            trials = trials_of(scenario)
            watcher.began(scenario, trials)
            self.results.append(await self._run_one(scenario, trials, watcher))
            watcher.ended(self.results[-1])
        return self.results

    async def _run_one(self, scenario: Scenario, trials: int, watcher: Watcher) -> ScenarioResult:
        began_s = self.monotonic_s()
        self._clips = 0
        done: list[Trial] = []
        kept: list[TrialResult] = []
        verdict: Verdict | None = None
        note: str | None = None
        try:
            async for trial in scenario.run(self.bench, trials):
                kept.append(self._kept(trial, len(kept)))
                done.append(replace(trial, recording=None))  # hours of sound would not fit into memory
                watcher.tried(scenario, done[-1])
        except CannotRunError as error:
            verdict, note = "not run", str(error)
        except (DuplexError, TimeoutError) as error:
            verdict, note = "miss", f"It broke off: {error or type(error).__name__}"
        measures = measures_of(done, self.bench.seed)
        limits = judge(scenario.limits, measures)
        if verdict is None:
            verdict, note = verdict_of(limits), _note_of(done, trials)
        return ScenarioResult(
            scenario=scenario.number,
            name=scenario.name,
            verdict=verdict,
            limits=limits,
            measures=measures,
            trials=tuple(kept),
            invalid=sum(not trial.valid for trial in done),
            took_s=round(self.monotonic_s() - began_s, 1),
            note=note,
        )

    def _kept(self, trial: Trial, number: int) -> TrialResult:
        span = trial.span
        return TrialResult(
            seed=trial.seed,
            stimulus=trial.stimulus,
            valid=trial.valid,
            values=dict(trial.values),
            failed=trial.failed,
            start_ms=None if span is None else span.start_ms,
            end_ms=None if span is None else span.end_ms,
            details=dict(trial.details),
            clip=self._clip(trial, number),
        )

    def _clip(self, trial: Trial, number: int) -> Clip | None:
        """Keeps the sound of a trial that failed, and of the first one for comparison."""
        wanted = number == 0 or (trial.failed is not None and self._clips < self.max_clips)
        if self.keep is None or trial.recording is None or not wanted:
            return None
        self._clips += trial.failed is not None
        start_ms, end_ms = 0.0, trial.recording.duration_ms
        if trial.span is not None:
            start_ms, end_ms = trial.span.start_ms - _AROUND_MS, trial.span.end_ms + _AROUND_MS
        return save_clip(trial.recording, self.keep, f"{trial.scenario:02}-{number + 1:03}", start_ms, end_ms)


def _note_of(done: Sequence[Trial], trials: int) -> str | None:
    """What a reader of the figures should know: too few of them, or calls that broke."""
    valid = sum(trial.valid for trial in done)
    broken = sum("broken" in trial.values for trial in done)
    notes = []
    if valid < trials and broken < len(done):
        notes.append(f"{valid} of {trials} trials could be judged")
    if broken:
        notes.append(f"{broken} calls broke")
    return "; ".join(notes) or None
