"""The pytest plugin's gate: collects what a run measured, and compares it with the baseline or writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from duplex.baseline import Baseline, BaselineError, Regression, Threshold, compare, coverage
from duplex.testing.call import VirtualCall

Rows = dict[str, list[dict[str, float]]]
"""Test → one row a measurement, each stage → milliseconds. Plain data, so that it can cross processes."""


class Gate:
    """One run's. ``told``: what to print at its end, (line, is it bad news), once :meth:`judge` was called.

    ``judges`` is False in a process that only measures. A baseline to compare with is read at once, so that a run
    that cannot be judged does not begin: raises ``BaselineError``.
    """

    def __init__(self, path: Path, threshold: Threshold, *, update: bool, judges: bool = True) -> None:
        self.rows: Rows = {}
        self.told: list[tuple[str, bool]] = []
        self._path, self._threshold, self._update = path, threshold, update
        self._baseline: Baseline | None = None
        if not judges:
            return
        try:
            self._baseline = Baseline.load(path)
        except BaselineError:
            if not update:  # else one that is missing or cannot be read is about to be made anew
                raise

    def measured(self, test: str, calls: Sequence[VirtualCall]) -> None:
        """Takes what was measured in the calls of one test. A test that is run again replaces its first run."""
        rows = [{stage: float(ms) for stage, ms in row.items()} for call in calls for row in call.measures if row]
        if rows:
            self.rows[test] = rows

    def merge(self, rows: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
        """Takes what another process measured."""
        self.rows |= {test: [dict(row) for row in found] for test, found in rows.items()}

    def judge(self, *, passed: bool) -> bool:
        """Compares or writes; whether the run may pass. ``passed``: whether its tests did."""
        found = Baseline.of_rows({test: self.rows[test] for test in sorted(self.rows)})
        try:
            return self._write(found, passed) if self._update else self._compare(found)
        except BaselineError as error:
            self.told.append((str(error), True))
            return False

    def _write(self, found: Baseline, passed: bool) -> bool:
        if not passed:
            self.told.append((f"{self._path} was not written: a baseline is made from a run that passes.", True))
            return False
        baseline = found if self._baseline is None else self._baseline.updated(found)
        baseline.save(self._path)
        turns = sum(map(len, self.rows.values()))
        self.told.append((f"{self._path} written: {turns} measurements of {len(self.rows)} tests.", False))
        if kept := len(baseline.groups) - len(self.rows):
            self.told.append(
                (f"{kept} tests that did not run keep what they had. Delete the file to drop them.", False)
            )
        return True

    def _compare(self, found: Baseline) -> bool:
        assert self._baseline is not None
        if not found.groups:
            self.told.append(("No test measured anything, so nothing was compared.", False))
            return True
        cover = coverage(self._baseline, found)
        regressions = compare(self._baseline, found, self._threshold)
        bad: list[str] = []
        for stage in dict.fromkeys(each.stage for each in regressions):
            here = [each for each in regressions if each.stage == stage]
            most = max(here, key=lambda each: each.grown_ms)
            tests = f"in {len(here)} tests, most " if len(here) > 1 else ""
            bad.append(f"{stage} got slower: {tests}in {most.group}")
        if regressions:
            bad += ["", *_table(regressions), ""]
        bad += [
            f"{stage} was measured {n_before} times in {test}, and now {n_now or 'never'}."
            for test, stage, n_before, n_now in cover.lost
        ]
        self.told += [(line, True) for line in bad]
        self.told += [(line, False) for line in self._news(found, len(cover.new_groups))]
        if cover.new_groups or cover.new_stages:
            new = [*cover.new_groups, *(f"{stage} of {test}" for test, stage in cover.new_stages)]
            self.told.append((f"Not in the baseline, so not compared: {', '.join(new)}.", False))
        if bad:
            self.told.append(("If this is meant to be so, run again with --duplex-update-baseline.", True))
        return not bad

    def _news(self, found: Baseline, n_new: int) -> list[str]:
        compared = len(found.groups) - n_new
        allowed = f"{self._threshold.ms:g} ms and {self._threshold.percent:g} %"
        return [f"{compared} tests compared with {self._path}, stage by stage; a p95 or p50 may grow by {allowed}."]


def _table(regressions: Sequence[Regression]) -> list[str]:
    rows = [("stage", "grew", "p95 was", "is", "p50 was", "is", "n", "with it grew", "test")]
    rows += [
        (
            each.stage,
            f"+{each.grown_ms:.0f} ms",
            f"{each.before_p95_ms:.0f} ms",
            f"{each.after_p95_ms:.0f} ms",
            f"{each.before_p50_ms:.0f} ms",
            f"{each.after_p50_ms:.0f} ms",
            str(each.n_after) if each.n_before == each.n_after else f"{each.n_before}/{each.n_after}",
            ", ".join(each.totals) or "-",
            each.group,
        )
        for each in regressions
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
