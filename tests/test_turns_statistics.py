"""The suite's figures: observations and honest intervals; results survive the way to disk and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duplex.benchmarks.turns.contract import Limit, Trial
from duplex.benchmarks.turns.results import (
    Interval,
    LimitVerdict,
    ScenarioResult,
    SuiteResult,
    TrialResult,
    load_clip,
    save_clip,
)
from duplex.benchmarks.turns.statistics import (
    bootstrap,
    judge,
    measures_of,
    percentile,
    summarise,
    verdict_of,
    wilson,
)
from duplex.errors import DuplexError
from duplex.recording import RecordedEvent, Recording


@given(st.lists(st.floats(0, 5000), min_size=1, max_size=60), st.sampled_from([50.0, 95.0, 99.0]))
def test_a_percentile_is_an_observation_and_never_better_than_its_rank(values: list[float], rank: float) -> None:
    found = percentile(values, rank)
    assert found in values
    assert sum(value <= found for value in values) >= rank / 100 * len(values)
    assert found >= np.percentile(values, rank) - 1e-9


def test_twenty_latencies_show_their_worst_but_one_or_the_worst() -> None:
    assert percentile(list(range(1, 21)), 95) == 20
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)


def test_wilson_knows_that_none_of_twenty_is_not_never() -> None:
    none = wilson(0, 20)
    assert (none.low, round(none.high, 3)) == (0.0, 0.161)  # the value of the published formula
    half = wilson(10, 20)
    assert half.low < 0.5 < half.high
    assert round(half.low, 3) == 0.299


def test_the_bootstrap_is_seeded_and_covers_what_it_should() -> None:
    values = list(np.random.default_rng(1).normal(500, 50, 40))
    once, again, other = bootstrap(values, 3), bootstrap(values, 3), bootstrap(values, 4)
    assert once == again
    assert once != other
    assert once["mean"].low < np.mean(values) < once["mean"].high
    assert 20 < once["mean"].high - once["mean"].low < 45  # 4 × 50 / √40 ≈ 32
    assert once["p50"].low <= percentile(values, 50) <= once["p50"].high
    assert bootstrap([1.0]) == {}


def test_intervals_of_means_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for k in range(100):
        interval = bootstrap(list(rng.exponential(200, 30)), k, 400)["mean"]
        hits += interval.low <= 200 <= interval.high
    assert 84 <= hits <= 99


def trial(valid: bool = True, **values: float) -> Trial:
    return Trial(7, 1, "x", values, valid=valid)


def test_shares_get_wilsons_interval_and_invalid_trials_are_not_counted() -> None:
    trials = [trial(yielded=1, stop_ms=180), trial(yielded=0), trial(False, yielded=0), trial(yielded=1, stop_ms=220)]
    found = measures_of(trials)
    assert (found["yielded"].n, found["yielded"].share, round(found["yielded"].mean, 3)) == (3, True, 0.667)
    assert found["yielded"].ci95["mean"] == wilson(2, 3)
    assert (found["stop_ms"].n, found["stop_ms"].share, found["stop_ms"].p95) == (2, False, 220)


def test_counts_and_times_are_no_shares_even_if_they_are_zero_or_one() -> None:
    found = measures_of([trial(spurious=0, both_ms=1, resolved=1), trial(spurious=1, both_ms=0, resolved=1)])
    assert {name: summary.share for name, summary in found.items()} == {
        "spurious": False,
        "both_ms": False,
        "resolved": True,
    }


def test_a_limit_is_met_at_the_limit_and_missed_past_it() -> None:
    measures = measures_of([trial(stop_ms=350), trial(stop_ms=200)])
    at, past, low, absent = judge(
        [
            Limit("stop_ms", "p95", at_most=350),
            Limit("stop_ms", "p95", at_most=349.9),
            Limit("stop_ms", "min", at_least=200),
            Limit("absent", "mean", at_least=1),
        ],
        measures,
    )
    assert [at.passed, past.passed, low.passed, absent.passed] == [True, False, True, None]
    assert str(past) == "stop_ms p95 ≤ 349.9"
    assert str(low) == "stop_ms min ≥ 200"


def test_what_was_not_measured_is_no_pass() -> None:
    met, missed = (LimitVerdict(Limit("a", "mean", at_most=1), 0.5, passed) for passed in (True, False))
    silent = LimitVerdict(Limit("a", "mean", at_most=1), None, None)
    assert verdict_of([met]) == "pass"
    assert verdict_of([met, silent]) == "not judged"
    assert verdict_of([silent, missed]) == "miss"
    assert verdict_of([]) == "not judged"


def a_result(**changes: object) -> SuiteResult:
    measures = {"stop_ms": summarise([180.0, 220.0, 260.0])}
    limits = judge([Limit("stop_ms", "p95", at_most=350)], measures)
    tried = TrialResult(1, "x", True, {"stop_ms": 180.0}, details={"heard": "Wait."}, start_ms=1.0, end_ms=2.0)
    row = ScenarioResult(7, "interruption", "pass", limits, measures, (tried,), note="ok")
    fields = {
        "version": "0",
        "machine": {"cores": 2},
        "load": {"before": [0.1]},
        "configuration": {"only": [7]},
        "door": "webrtc",
        "seed": 1,
        "split": "reporting",
        "quick": True,
        "started_at": "2026-01-01T00:00:00Z",
        "took_s": 1.5,
        "results": (row,),
    }
    return SuiteResult(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_result_survives_json(tmp_path: Path) -> None:
    result = a_result()
    result.save(tmp_path / "a" / "turns.json")
    assert SuiteResult.load_file(tmp_path / "a" / "turns.json") == result
    assert json.loads((tmp_path / "a" / "turns.json").read_text())["passed"] is True
    assert isinstance(result.results[0].measures["stop_ms"].ci95["mean"], Interval)


@pytest.mark.parametrize("text", ["{}", "no json", '{"format": 1, "results": []}'])
def test_something_else_is_refused_with_its_path(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DuplexError, match=r"x\.json"):
        SuiteResult.load_file(tmp_path / "x.json")


def test_a_run_passes_only_if_everything_that_was_run_did() -> None:
    row = a_result().results[0]
    assert a_result().passed
    assert not a_result(results=()).passed
    for verdict, passed in {"miss": False, "not judged": False, "not run": True}.items():
        other = ScenarioResult(8, "stop", verdict, (), {}, ())  # type: ignore[arg-type]
        assert a_result(results=(row, other)).passed is passed


def test_a_clip_is_a_recording_with_its_own_time_line(tmp_path: Path) -> None:
    stereo = np.zeros((48_000, 2), np.float32)
    stereo[24_000:, 1] = 0.1
    delta = {"type": "response.output_audio.delta", "delta": "AAAA", "response_id": "r"}
    events = (RecordedEvent(100, {"type": "early"}), RecordedEvent(1200, {"type": "late"}), RecordedEvent(1300, delta))
    clip = save_clip(Recording(stereo, 20.0, events), tmp_path, "07-001", 500, 5000)
    assert (clip.start_ms, clip.end_ms) == (500, 2000)
    found = load_clip(tmp_path, clip)
    assert found.duration_ms == 1500
    assert found.agent[:12_000].max() < 0.001
    assert found.agent[12_000:].min() == pytest.approx(0.1, abs=1e-4)
    assert [(e.at_ms, e.type) for e in found.events] == [(700, "late"), (800, "response.output_audio.delta")]
    assert found.events[1].event["delta"] == ""
