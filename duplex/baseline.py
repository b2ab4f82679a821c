"""A stored baseline of latencies, and the rule that says which stage got slower.

Pure but for ``load`` and ``save``: mappings of numbers in, findings out. The pytest plugin feeds it turns measured
on virtual time; the stages of any other measurement can be compared the same way (:func:`Baseline.of`).

The rule
--------
A *group* is a test, or a scenario; its measurements are rows, and each stage has one value a row (null where the
stage was not measured). Every stage of every group that both sides have is compared. It has *regressed* if

1. its p95 or its median grew by more than the threshold: more than ``ms`` and more than ``percent`` of what it was.
   The p95 is the value at that rank or the next higher one that was seen, so with 20 values it is the largest; the
   median is asked too because one slow turn in the baseline would otherwise hide that all turns became slower.
2. and chance does not explain it. Where both sides have the same rows (the same test with as many turns), they are
   paired: under "nothing changed" each difference is as likely to be negative as positive, so the sum of the
   differences is compared with what all sign flips of them give (exactly up to 2¹² flips, else by up to 20 000
   seeded ones). Where they do not pair, all values are dealt out anew (up to 20 000 seeded deals) and the means of
   the slower halves are compared. A chance of at most 1 %, divided by the number of comparisons (Bonferroni), is
   taken for none: of a hundred re-runs with fresh noise, about one may fail.

   Few values cannot reach such a level at all. Rows that came out exactly the same carry no noise, so what counts
   is how many differ: with m of them the most extreme outcome (all slower) has a chance of 2⁻ᵐ. Where that is more
   than the level, it is accepted if the stage's differences in all groups together pass the same test. So on virtual
   time, where unchanged code repeats itself to the microsecond, one slower turn in one test is found; and where
   every turn has fresh noise, the other tests are asked whether this is more than noise.

3. Only *own* stages are named (``duplex/stages.py``): a total (end of turn, first packet, voice-to-voice) contains
   them and grows with them. A total is named only if no own stage regressed at all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from duplex.errors import DuplexError
from duplex.stages import TOTALS

SCHEMA = "duplex.baseline/1"

_CHANCE = 0.01
_RESAMPLES = 20_000
_EXACT_UP_TO = 12
_SAME_MS = 0.051  # files keep a tenth of a millisecond

Stages = Mapping[str, Sequence[float | None]]
"""Stage → one value a row, in milliseconds; None where that row has none."""


_Pair = tuple[str, str, Sequence[float | None], Sequence[float | None]]  # group, stage, before, after


class BaselineError(DuplexError):
    """A baseline cannot be read, or cannot be compared with."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """What growth of a p95 or a median is allowed: ``ms``, or ``percent`` of what it was, whichever is more."""

    ms: float = 20.0
    percent: float = 10.0

    def allows(self, before_ms: float, after_ms: float) -> bool:
        return after_ms - before_ms <= max(self.ms, before_ms * self.percent / 100.0)


@dataclass(frozen=True, slots=True)
class Regression:
    """One stage of one group got slower. ``chance``: how likely unchanged code would look like this, at most.

    ``totals``: those of the same group that grew past the threshold with it.
    """

    group: str
    stage: str
    before_p95_ms: float
    after_p95_ms: float
    before_p50_ms: float
    after_p50_ms: float
    n_before: int
    n_after: int
    chance: float
    totals: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        return self.n_after

    @property
    def grown_ms(self) -> float:
        """Of p95 and median, the growth that is larger."""
        return max(self.after_p95_ms - self.before_p95_ms, self.after_p50_ms - self.before_p50_ms)

    def __str__(self) -> str:
        sizes = f"n = {self.n_before}" if self.n_before == self.n_after else f"n = {self.n_before}, now {self.n_after}"
        also = f"; {' and '.join(self.totals)} grew with it" if self.totals else ""
        where = f" in {self.group}" if self.group else ""
        return (
            f"{self.stage} is {self.grown_ms:.0f} ms slower{where}: "
            f"p95 {self.before_p95_ms:.0f} → {self.after_p95_ms:.0f} ms, "
            f"p50 {self.before_p50_ms:.0f} → {self.after_p50_ms:.0f} ms ({sizes}){also}"
        )


@dataclass(frozen=True, slots=True)
class Coverage:
    """What could not be compared. ``lost`` is a failure: nobody watches that stage any more; the rest is news.

    ``lost``: (group, stage, rows before, rows now) measured less often in a group that ran with as many rows.
    """

    lost: tuple[tuple[str, str, int, int], ...]
    new_stages: tuple[tuple[str, str], ...]
    new_groups: tuple[str, ...]
    missing_groups: tuple[str, ...]


class Baseline:
    """Groups of stages of values. Equal stages of a group have equally many rows; None pads them."""

    def __init__(self, groups: Mapping[str, Stages]) -> None:
        self.groups: dict[str, dict[str, tuple[float | None, ...]]] = {}
        for group, stages in groups.items():
            rows = max((len(values) for values in stages.values()), default=0)
            self.groups[group] = {
                stage: (*(None if v is None else float(v) for v in values), *[None] * (rows - len(values)))
                for stage, values in stages.items()
            }

    @classmethod
    def of(cls, stages: Stages, group: str = "") -> Baseline:
        """One group, from any mapping of stages to milliseconds."""
        return cls({group: stages})

    @classmethod
    def of_rows(cls, groups: Mapping[str, Sequence[Mapping[str, float]]]) -> Baseline:
        """Groups of rows (one a turn), each a mapping of stages to milliseconds."""
        columns: dict[str, Stages] = {}
        for group, rows in groups.items():
            names = list(dict.fromkeys(name for row in rows for name in row))
            columns[group] = {name: [row.get(name) for row in rows] for name in names}
        return cls(columns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Baseline) and self.groups == other.groups

    __hash__ = None  # type: ignore[assignment]

    def updated(self, newer: Baseline) -> Baseline:
        """With the groups of ``newer`` in place of its own of that name."""
        return Baseline(self.groups | newer.groups)

    @classmethod
    def load(cls, path: Path) -> Baseline:
        """Reads the file at ``path``. Raises ``BaselineError`` that says what is wrong with it and what to do."""
        try:
            found = json.loads(path.read_text("utf-8"))
        except FileNotFoundError as error:
            raise BaselineError(f"There is no baseline at {path} yet.") from error
        except (OSError, ValueError) as error:
            raise BaselineError(f"The baseline {path} cannot be read: {error}. Restore it or make it anew.") from error
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            schema = found.get("schema") if isinstance(found, dict) else None
            raise BaselineError(
                f"The baseline {path} has schema {schema!r}; this version reads {SCHEMA!r}. Make it anew."
            )
        groups = found.get("groups")
        if not isinstance(groups, dict) or not groups:
            raise BaselineError(f"The baseline {path} is empty: nothing was measured when it was made. Make it anew.")
        for group, stages in groups.items():
            if not isinstance(stages, dict) or not all(map(_is_values, stages.values())):
                raise BaselineError(
                    f"The baseline {path} is damaged at {group!r}: a stage is a list of numbers of milliseconds. "
                    "Restore it or make it anew."
                )
        return cls(groups)

    def save(self, path: Path) -> None:
        """Writes the file: sorted, one line a stage, tenths of a millisecond, so that a diff can be read.

        Raises ``BaselineError`` if there is nothing to write.
        """
        if not any(self.groups.values()):
            raise BaselineError("Nothing was measured, so there is no baseline to write.")
        groups = []
        for group, stages in sorted(self.groups.items()):
            lines = [f"      {json.dumps(stage)}: {_list(values)}" for stage, values in sorted(stages.items())]
            groups.append(f"    {json.dumps(group, ensure_ascii=False)}: {{\n" + ",\n".join(lines) + "\n    }")
        text = f'{{\n  "schema": "{SCHEMA}",\n  "unit": "ms",\n  "groups": {{\n' + ",\n".join(groups) + "\n  }\n}\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def _is_values(values: Any) -> bool:
    return isinstance(values, list) and all(
        v is None or (isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)) for v in values
    )


def _list(values: Sequence[float | None]) -> str:
    return json.dumps([None if value is None else round(value, 1) for value in values])


def p95(values: Sequence[float]) -> float:
    """The value at 95 %, or the next higher one that was seen: never better than the measurements."""
    return float(np.percentile(np.asarray(values, np.float64), 95, method="higher"))


# --- comparing ---------------------------------------------------------------------------------------


def compare(before: Baseline, after: Baseline, threshold: Threshold = Threshold()) -> list[Regression]:
    """The stages that got slower, by the rule above, worst first.

    Groups that only one side has are left out (:func:`coverage` tells). Raises ``BaselineError`` if nothing at all
    can be compared.
    """
    pairs: list[_Pair] = [
        (group, stage, before.groups[group][stage], after.groups[group][stage])
        for group in after.groups
        if group in before.groups
        for stage in after.groups[group]
        if stage in before.groups[group]
    ]
    pairs = [pair for pair in pairs if _numbers(pair[2]) and _numbers(pair[3])]
    if not pairs:
        raise BaselineError(
            f"There is nothing to compare: the baseline has {_names(before.groups)}, this run has "
            f"{_names(after.groups)}, and no stage of one group was measured in both."
        )
    level = _CHANCE / len(pairs)
    grown: dict[str, list[Regression]] = {}
    for group, stage, old, new in pairs:
        found, sure = _regression(group, stage, old, new, threshold, level)
        if found is not None and (sure or _grown_everywhere(pairs, stage)):
            grown.setdefault(group, []).append(found)
    everything = [each for here in grown.values() for each in here]
    own = [
        replace(each, totals=tuple(other.stage for other in grown[each.group] if other.stage in TOTALS))
        for each in everything
        if each.stage not in TOTALS
    ]
    return sorted(own or everything, key=lambda each: -each.grown_ms)


def coverage(before: Baseline, after: Baseline) -> Coverage:
    """What only one of the two has."""
    lost, new_stages = [], []
    for group in [group for group in after.groups if group in before.groups]:
        old, new = before.groups[group], after.groups[group]
        as_many = _rows(new) >= _rows(old)
        for stage in sorted({*old, *new}):
            n_old, n_new = len(_numbers(old.get(stage, ()))), len(_numbers(new.get(stage, ())))
            if n_new < n_old and (as_many or not n_new):
                lost.append((group, stage, n_old, n_new))
            elif n_new and not n_old:
                new_stages.append((group, stage))
    return Coverage(
        tuple(lost),
        tuple(new_stages),
        tuple(group for group in after.groups if group not in before.groups),
        tuple(group for group in before.groups if group not in after.groups),
    )


def _regression(
    group: str,
    stage: str,
    old: Sequence[float | None],
    new: Sequence[float | None],
    threshold: Threshold,
    level: float,
) -> tuple[Regression | None, bool]:
    """What grew, if it did, and whether its own values are enough to be sure."""
    before, after = _numbers(old), _numbers(new)
    slow, typical = (p95(before), p95(after)), (float(np.median(before)), float(np.median(after)))
    if threshold.allows(*slow) and threshold.allows(*typical):
        return None, False
    odds = _flipped(_differences(old, new)) if _are_paired(old, new) else _dealt(before, after)
    if not odds.at(max(level, odds.least)):
        return None, False
    return Regression(group, stage, *slow, *typical, len(before), len(after), odds.chance), odds.at(level)


def _grown_everywhere(pairs: Sequence[_Pair], stage: str) -> bool:
    """Whether the stage grew over all groups together, as far as their rows pair."""
    n_stages = len({pair[1] for pair in pairs})
    each = [_differences(old, new) for _, name, old, new in pairs if name == stage and _are_paired(old, new)]
    if not each:
        return True
    odds = _flipped(np.concatenate(each))
    return odds.at(max(_CHANCE / n_stages, odds.least))


@dataclass(frozen=True, slots=True)
class _Odds:
    """``chance`` of growing this much if nothing changed, no finer than ``step``; ``least``: of the most extreme."""

    chance: float
    least: float
    step: float = 0.0

    def at(self, level: float) -> bool:
        return self.chance <= max(level, self.step)


def _are_paired(old: Sequence[float | None], new: Sequence[float | None]) -> bool:
    return len(old) == len(new) and all((a is None) == (b is None) for a, b in zip(old, new, strict=True))


def _differences(old: Sequence[float | None], new: Sequence[float | None]) -> npt.NDArray[np.float64]:
    """Row by row, without the rows that stayed the same."""
    differences = np.asarray(_numbers(new), np.float64) - np.asarray(_numbers(old), np.float64)
    return differences[np.abs(differences) > _SAME_MS]


def _flipped(differences: npt.NDArray[np.float64]) -> _Odds:
    """Of the sum of the differences, under sign flips."""
    m, observed = len(differences), float(differences.sum())
    if m <= _EXACT_UP_TO:
        signs = np.asarray(list(product((1.0, -1.0), repeat=m)), np.float64).reshape(2**m, m)
        return _Odds(_share_at_least(signs @ np.abs(differences), observed), 2.0**-m)
    flips = max(2_000, min(_RESAMPLES, 4_000_000 // m))  # what fits in memory
    signs = np.random.default_rng(m).choice((-1.0, 1.0), size=(flips, m))
    return _estimated(signs @ np.abs(differences), observed, 2.0**-m)


def _dealt(before: Sequence[float], after: Sequence[float]) -> _Odds:
    """Of the slower half of ``after`` being this much slower than that of ``before``, under new deals."""
    pooled = np.asarray([*before, *after], np.float64)
    n = len(before)
    deals = max(2_000, min(_RESAMPLES, 4_000_000 // len(pooled)))  # what fits in memory
    dealt = np.random.default_rng([n, len(after)]).permuted(np.tile(pooled, (deals, 1)), axis=1)
    differences = _slower_half(dealt[:, n:]) - _slower_half(dealt[:, :n])
    observed = float((_slower_half(pooled[None, n:]) - _slower_half(pooled[None, :n]))[0])
    # A half more than the chance of the most extreme deal, because chances are only estimated here.
    return _estimated(differences, observed, 1.5 / math.comb(len(pooled), n))


def _slower_half(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean of the upper half of each row: moved by a shift, and by a longer tail."""
    half: npt.NDArray[np.float64] = np.sort(rows, axis=1)[:, rows.shape[1] // 2 :].mean(axis=1)
    return half


def _share_at_least(values: npt.NDArray[np.float64], observed: float) -> float:
    return float(np.mean(values >= observed - 1e-6))


def _estimated(resampled: npt.NDArray[np.float64], observed: float, least: float) -> _Odds:
    """From resamples, with the observation counted as one of them: never zero."""
    count = len(resampled)
    chance = (_share_at_least(resampled, observed) * count + 1.0) / (count + 1.0)
    return _Odds(chance, least, 1.0 / (count + 1.0))


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _rows(stages: Stages) -> int:
    return max((len(values) for values in stages.values()), default=0)


def _names(groups: Mapping[str, Any]) -> str:
    shown = ", ".join(list(groups)[:3]) or "nothing"
    return f"{shown} and {len(groups) - 3} more" if len(groups) > 3 else shown
