"""What a run of the suite found, as values: what is printed, written as JSON, and drawn.

    SuiteResult ─ ScenarioResult ─┬─ MeasureSummary   one per measure: statistics with intervals, and its values
                                  ├─ LimitVerdict     one per limit
                                  └─ TrialResult      one per trial; a failing one has a Clip of its call

Everything is plain data: :meth:`SuiteResult.to_json` gives a dict for ``json.dumps``, and
:meth:`SuiteResult.from_json` takes it back. Clips lie beside the JSON file, see :func:`load_clip`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from duplex.benchmarks.turns.contract import Limit, Statistic
from duplex.errors import DuplexError
from duplex.recording import RecordedEvent, Recording

FORMAT = 1
"""Grows when a reader of older files would misread a newer one."""

Verdict = Literal["pass", "miss", "not judged", "not run"]
"""``not judged``: no limit had anything to judge by. ``not run``: this door, server or machine cannot; see ``note``."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval: where the figure may lie, given how few trials there are."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class MeasureSummary:
    """One measure over all valid trials that have it. ``values``: one per trial, in order.

    ``share``: every value is 0 or 1, so the mean is a share. Percentiles are observations, at that rank or the
    next higher one. ``ci95``: interval by statistic ("mean", "p50", "p95"); empty with fewer than two values.
    """

    n: int
    mean: float
    min: float
    p50: float
    p95: float
    p99: float
    max: float
    sum: float
    share: bool
    ci95: Mapping[str, Interval]
    values: tuple[float, ...]

    def statistic(self, name: Statistic) -> float:
        """One of the figures by name."""
        return float(getattr(self, name))


@dataclass(frozen=True, slots=True)
class LimitVerdict:
    """A limit, what was found, and whether it holds. ``value`` and ``passed`` are None if nothing was measured."""

    limit: Limit
    value: float | None
    passed: bool | None

    def __str__(self) -> str:
        """As in the table: ``stop_ms p95 ≤ 350``."""
        sign, bound = ("≤", self.limit.at_most) if self.limit.at_most is not None else ("≥", self.limit.at_least)
        return f"{self.limit.measure} {self.limit.statistic} {sign} {bound:g}"


@dataclass(frozen=True, slots=True)
class Clip:
    """The part of a call that a trial is about, kept on disk. Paths are relative to the run's directory.

    ``audio``: stereo FLAC, user left, agent right. ``events``: JSON, what :class:`~duplex.recording.Recording`
    has besides sound. ``start_ms`` and ``end_ms``: where it lay on the call's time line.
    """

    audio: str
    events: str
    start_ms: float
    end_ms: float


@dataclass(frozen=True, slots=True)
class TrialResult:
    """One trial. ``start_ms`` and ``end_ms``: its place on the call's time line, if it has one."""

    seed: int
    stimulus: str
    valid: bool
    values: Mapping[str, float]
    failed: str | None = None
    start_ms: float | None = None
    end_ms: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    clip: Clip | None = None


@dataclass(frozen=True, slots=True)
class ScenarioResult:
    """One row of the table. ``note``: why it was not run, or what a reader of its figures should know."""

    scenario: int
    name: str
    verdict: Verdict
    limits: tuple[LimitVerdict, ...]
    measures: Mapping[str, MeasureSummary]
    trials: tuple[TrialResult, ...]
    invalid: int = 0
    took_s: float = 0.0
    note: str | None = None

    @property
    def failures(self) -> tuple[TrialResult, ...]:
        return tuple(trial for trial in self.trials if trial.failed is not None)


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """A whole run. ``machine`` and ``load``: what it ran on and how busy that was, before and after.

    ``configuration``: everything that was asked for (options of the command, the server's arguments).
    ``started_at``: UTC, ISO 8601. ``quick``: fewer and shorter trials than the table asks for.
    """

    version: str
    machine: Mapping[str, Any]
    load: Mapping[str, Any]
    configuration: Mapping[str, Any]
    door: str
    seed: int
    split: str
    quick: bool
    started_at: str
    took_s: float
    results: tuple[ScenarioResult, ...]

    @property
    def passed(self) -> bool:
        """Whether every scenario that was run met its limits, and one was."""
        judged = [result.verdict for result in self.results if result.verdict != "not run"]
        return bool(judged) and all(verdict == "pass" for verdict in judged)

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``."""
        return {"format": FORMAT, "passed": self.passed, **asdict(self)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> SuiteResult:
        """The inverse of :meth:`to_json`. Raises ``DuplexError`` if it is something else."""
        if found.get("format") != FORMAT:
            raise DuplexError(f"This is not a result of duplex bench turns (format {FORMAT}).")
        fields = {name: value for name, value in found.items() if name not in {"format", "passed"}}
        try:
            return cls(**{**fields, "results": tuple(_scenario(row) for row in fields["results"])})
        except (KeyError, TypeError) as error:
            raise DuplexError(f"This result of duplex bench turns is damaged: {error}.") from error

    def save(self, path: Path) -> None:
        """Writes JSON to ``path``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_json(), indent=1, default=str) + "\n", "utf-8")

    @classmethod
    def load_file(cls, path: Path) -> SuiteResult:
        """Reads what :meth:`save` wrote. Raises ``DuplexError`` with the path if it cannot."""
        try:
            return cls.from_json(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, DuplexError) as error:
            raise DuplexError(f"{path} cannot be read: {error}") from error


def _scenario(row: Mapping[str, Any]) -> ScenarioResult:
    return ScenarioResult(
        **{
            **row,
            "limits": tuple(LimitVerdict(**{**item, "limit": Limit(**item["limit"])}) for item in row["limits"]),
            "measures": {name: _measure(item) for name, item in row["measures"].items()},
            "trials": tuple(_trial(item) for item in row["trials"]),
        }
    )


def _measure(item: Mapping[str, Any]) -> MeasureSummary:
    ci95 = {name: Interval(**interval) for name, interval in item["ci95"].items()}
    return MeasureSummary(**{**item, "ci95": ci95, "values": tuple(item["values"])})


def _trial(item: Mapping[str, Any]) -> TrialResult:
    return TrialResult(**{**item, "clip": None if item["clip"] is None else Clip(**item["clip"])})


# --- clips -------------------------------------------------------------------------------------------


def save_clip(recording: Recording, directory: Path, name: str, start_ms: float, end_ms: float) -> Clip:
    """Keeps ``start_ms`` to ``end_ms`` of a call as ``audio/NAME.flac`` and ``audio/NAME.json`` in ``directory``."""
    import soundfile

    rate = recording.sample_rate_hz
    start_ms, end_ms = max(0.0, start_ms), min(recording.duration_ms, end_ms)
    (directory / "audio").mkdir(parents=True, exist_ok=True)
    sound = recording.stereo[round(start_ms * rate / 1000.0) : round(end_ms * rate / 1000.0)]
    soundfile.write(directory / "audio" / f"{name}.flac", sound, rate, subtype="PCM_16")
    kept = [
        {"at_ms": round(recorded.at_ms - start_ms, 1), "event": _without_audio(recorded.event)}
        for recorded in recording.events
        if start_ms <= recorded.at_ms <= end_ms
    ]
    rest = {"playout_ms": recording.playout_ms, "wire": asdict(recording.wire), "events": kept}
    (directory / "audio" / f"{name}.json").write_text(json.dumps(rest, default=str) + "\n", "utf-8")
    return Clip(f"audio/{name}.flac", f"audio/{name}.json", start_ms, end_ms)


def load_clip(directory: Path, clip: Clip) -> Recording:
    """A kept clip as a recording of its own: its time line begins at ``clip.start_ms`` of the call's."""
    import soundfile

    stereo, rate = soundfile.read(directory / clip.audio, dtype="float32", always_2d=True)
    rest = json.loads((directory / clip.events).read_text("utf-8"))
    events = tuple(RecordedEvent(float(item["at_ms"]), item["event"]) for item in rest["events"])
    return Recording(np.asarray(stereo, np.float32), float(rest["playout_ms"]), events, sample_rate_hz=int(rate))


def _without_audio(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """Audio deltas are in the FLAC already."""
    if event.get("type") == "response.output_audio.delta":
        return {**event, "delta": ""}
    return event


def failures_of(results: Sequence[ScenarioResult]) -> list[tuple[ScenarioResult, TrialResult]]:
    """Every failing trial with its scenario, in order."""
    return [(result, trial) for result in results for trial in result.failures]
