"""The baseline: what it stores, what it names, and what it leaves alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duplex.baseline import SCHEMA, Baseline, BaselineError, Coverage, Threshold, compare, coverage

STAGES = {"endpointing": 300.0, "speculation": 100.0, "listener": 60.0, "thinker": 200.0, "talker": 70.0, "reply": 5.0}


def measured(
    seed: int, slower: Mapping[str, float] = {}, *, n: int = 20, sd_ms: float = 15.0
) -> dict[str, list[float]]:
    """``n`` turns with noise in every stage, and the totals that follow from them."""
    rng = np.random.default_rng(seed)
    own = {s: np.maximum(0.0, rng.normal(ms, sd_ms, n)) + slower.get(s, 0.0) for s, ms in STAGES.items()}
    ready = sum(own[s] for s in ("speculation", "listener", "thinker", "talker", "reply"))
    commit = np.maximum(own["endpointing"], np.asarray(ready))
    totals = {"end_of_turn": commit, "voice_to_voice": commit + 8.0}
    return {stage: values.tolist() for stage, values in (own | totals).items()}


# --- the file ----------------------------------------------------------------------------------------


def test_a_baseline_comes_back_as_it_was_written(tmp_path: Path) -> None:
    baseline = Baseline({"tests/a.py::b[ü]": {"thinker": [1.0, None, 2.5]}, "c": {"talker": [70.0]}})
    baseline.save(tmp_path / "new" / "b.json")
    assert Baseline.load(tmp_path / "new" / "b.json") == baseline
    assert json.loads((tmp_path / "new" / "b.json").read_text("utf-8"))["schema"] == SCHEMA


def test_a_change_of_one_stage_is_a_change_of_one_line(tmp_path: Path) -> None:
    for name, slower in (("a", {}), ("b", {"thinker": 80.0})):
        Baseline.of({s: [v + slower.get(s, 0.0)] * 3 for s, v in STAGES.items()}, "g").save(tmp_path / name)
    a, b = ((tmp_path / name).read_text("utf-8").splitlines() for name in "ab")
    assert [line.split(":")[0].strip() for line, other in zip(a, b, strict=True) if line != other] == ['"thinker"']


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read"),
        ("[]", "schema None"),
        ('{"schema": "duplex.baseline/99", "groups": {}}', "duplex.baseline/99"),
        (f'{{"schema": "{SCHEMA}", "groups": {{}}}}', "is empty"),
        (f'{{"schema": "{SCHEMA}"}}', "is empty"),
        (f'{{"schema": "{SCHEMA}", "groups": {{"a": {{"thinker": ["fast"]}}}}}}', "damaged at 'a'"),
        (f'{{"schema": "{SCHEMA}", "groups": {{"a": {{"thinker": [NaN]}}}}}}', "damaged at 'a'"),
        (f'{{"schema": "{SCHEMA}", "groups": {{"a": [1]}}}}', "damaged at 'a'"),
    ],
)
def test_a_file_that_is_no_baseline_says_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "b.json").write_text(text, "utf-8")
    with pytest.raises(BaselineError, match=says):
        Baseline.load(tmp_path / "b.json")


def test_a_missing_file_and_an_empty_run_say_so(tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match="no baseline at"):
        Baseline.load(tmp_path / "b.json")
    with pytest.raises(BaselineError, match="Nothing was measured"):
        Baseline({}).save(tmp_path / "b.json")
    assert not (tmp_path / "b.json").exists()


def test_rows_become_columns_with_gaps() -> None:
    baseline = Baseline.of_rows({"t": [{"thinker": 1.0}, {"barge_in_stop": 40.0}, {"thinker": 2.0}]})
    assert baseline.groups == {"t": {"thinker": (1.0, None, 2.0), "barge_in_stop": (None, 40.0, None)}}


# --- what is named -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("stage", STAGES)
def test_80_ms_in_a_stage_are_found_in_noise_and_only_that_stage_is_named(stage: str, seed: int) -> None:
    found = compare(Baseline.of(measured(seed)), Baseline.of(measured(seed + 100, {stage: 80.0})))
    assert [each.stage for each in found] == [stage]
    assert found[0].n == 20
    assert found[0].grown_ms == pytest.approx(80, abs=35)


def test_what_grew_with_it_is_told_but_not_named() -> None:
    [found] = compare(Baseline.of(measured(1), "t"), Baseline.of(measured(2, {"thinker": 80.0}), "t"))
    assert found.totals == ("end_of_turn", "voice_to_voice")
    assert "thinker is" in str(found)
    assert "in t" in str(found)
    assert "end_of_turn and voice_to_voice grew with it" in str(found)


def test_two_stages_that_got_slower_are_both_named() -> None:
    slower = {"listener": 80.0, "talker": 120.0}
    found = compare(Baseline.of(measured(1)), Baseline.of(measured(2, slower)))
    assert [each.stage for each in found] == ["talker", "listener"]


def test_a_total_is_named_if_no_stage_explains_it() -> None:
    before, after = measured(1), measured(2)
    after["voice_to_voice"] = [value + 80.0 for value in after["voice_to_voice"]]
    assert [each.stage for each in compare(Baseline.of(before), Baseline.of(after))] == ["voice_to_voice"]


@pytest.mark.parametrize("sd_ms", [5.0, 30.0, 80.0])
def test_a_rerun_with_fresh_noise_is_no_regression(sd_ms: float) -> None:
    for seed in range(12):
        before, after = measured(2 * seed, sd_ms=sd_ms), measured(2 * seed + 1, sd_ms=sd_ms)
        assert compare(Baseline.of(before), Baseline.of(after)) == [], f"seed {seed}"


def test_more_turns_than_before_are_compared_too() -> None:
    before = Baseline.of(measured(1, n=20))
    assert compare(before, Baseline.of(measured(2, n=31))) == []
    assert [each.stage for each in compare(before, Baseline.of(measured(2, {"talker": 80.0}, n=31)))] == ["talker"]


def test_growth_within_the_threshold_is_allowed() -> None:
    before = Baseline.of({"thinker": [100.0] * 20, "talker": [1000.0] * 20})
    grown = Baseline.of({"thinker": [119.0] * 20, "talker": [1099.0] * 20})
    assert compare(before, grown) == []
    assert [each.stage for each in compare(before, grown, Threshold(ms=10.0, percent=50.0))] == []
    assert {each.stage for each in compare(before, grown, Threshold(ms=10.0, percent=5.0))} == {"thinker", "talker"}


def test_one_slow_turn_in_the_baseline_does_not_hide_that_all_became_slower() -> None:
    before = [200.0] * 19 + [900.0]
    assert compare(Baseline.of({"thinker": before}), Baseline.of({"thinker": [280.0] * 19 + [900.0]}))


def test_getting_faster_is_no_regression() -> None:
    assert compare(Baseline.of(measured(1, {"thinker": 80.0})), Baseline.of(measured(2))) == []


def test_one_slower_turn_is_found_where_everything_else_repeats_itself() -> None:
    before = {f"t{n}": {"thinker": [200.0], "talker": [70.0]} for n in range(8)}
    after = before | {"t3": {"thinker": [280.0], "talker": [70.0]}}
    [found] = compare(Baseline(before), Baseline(after))
    assert (found.group, found.stage, found.before_p95_ms, found.after_p95_ms) == ("t3", "thinker", 200.0, 280.0)


def test_one_slower_turn_is_noise_where_every_turn_is_noisy() -> None:
    rng = np.random.default_rng(5)
    before, after = ({f"t{n}": {"thinker": [float(rng.normal(200, 30))]} for n in range(12)} for _ in range(2))
    assert any(
        after[name]["thinker"][0] > before[name]["thinker"][0] + 25 for name in before
    )  # it could be taken for one
    assert compare(Baseline(before), Baseline(after)) == []


def test_many_tests_do_not_hide_one() -> None:
    before = {f"t{n}": measured(n) for n in range(30)}
    after = {f"t{n}": measured(n + 100, {"listener": 80.0} if n == 7 else {}) for n in range(30)}
    assert [(each.group, each.stage) for each in compare(Baseline(before), Baseline(after))] == [("t7", "listener")]


@given(
    st.dictionaries(
        st.sampled_from([*STAGES, "voice_to_voice"]), st.lists(st.floats(0, 1e5), min_size=1, max_size=30), min_size=1
    )
)
def test_nothing_is_slower_than_itself(stages: dict[str, list[float]]) -> None:
    assert compare(Baseline.of(stages), Baseline.of(stages), Threshold(0.0, 0.0)) == []


# --- what cannot be compared -------------------------------------------------------------------------


def test_nothing_in_common_is_an_error_that_names_both() -> None:
    with pytest.raises(BaselineError, match=r"has a, this run has b"):
        compare(Baseline({"a": {"thinker": [1.0]}}), Baseline({"b": {"thinker": [1.0]}}))
    with pytest.raises(BaselineError, match="nothing to compare"):
        compare(Baseline({"a": {"thinker": [1.0]}}), Baseline({"a": {"talker": [1.0]}}))


def test_what_is_new_and_what_is_gone_are_told_apart() -> None:
    before = Baseline({"a": {"thinker": [1.0, 2.0], "talker": [1.0, 1.0]}, "gone": {"thinker": [1.0]}})
    after = Baseline({"a": {"thinker": [1.0, None], "listener": [5.0, 5.0]}, "new": {"thinker": [1.0]}})
    assert coverage(before, after) == Coverage(
        lost=(("a", "talker", 2, 0), ("a", "thinker", 2, 1)),
        new_stages=(("a", "listener"),),
        new_groups=("new",),
        missing_groups=("gone",),
    )


def test_a_stage_that_one_side_never_measured_is_not_compared() -> None:
    before = Baseline.of({"thinker": [200.0, 200.0], "barge_in_stop": [None, 40.0]})
    assert compare(before, Baseline.of({"thinker": [200.0, 200.0], "barge_in_stop": [None, None]})) == []


def test_fewer_turns_of_a_test_are_no_loss() -> None:
    lost = coverage(Baseline.of({"thinker": [1.0] * 20}), Baseline.of({"thinker": [1.0] * 5})).lost
    assert lost == ()
