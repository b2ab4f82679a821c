"""The suite's report: one HTML file that a person can read on its own.

    write_report(result, Path("run"))  →  run/report.html

It shows the table, and for each scenario what is tried, how it is judged, every distribution against its limits, where
each turn's time went, and the timelines of the failing trials and of one that did not fail. It needs no network and no
other file, but for the sound of trials that would make it too large: those it plays from ``audio/`` beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from duplex.benchmarks.turns.report_charts import bullet, esc, is_share
from duplex.benchmarks.turns.report_page import page
from duplex.benchmarks.turns.report_section import CLASSES, EMBEDDED_BYTES, Sections, as_json, badge, marks, minutes
from duplex.benchmarks.turns.report_words import ABOUT, label_of, limit_text, shown, statistic_word
from duplex.benchmarks.turns.results import LimitVerdict, MeasureSummary, ScenarioResult, SuiteResult

FILE_NAME = "report.html"


def write_report(result: SuiteResult, out_dir: Path, *, embedded_bytes: int = EMBEDDED_BYTES) -> Path:
    """Writes ``out_dir/report.html`` and returns its path. Clips are looked for in ``out_dir``, where they were kept.

    At most ``embedded_bytes`` of the page are sound, that of failing trials; 0 embeds none. A clip that is gone or
    damaged leaves a sentence in the page and nothing else missing.
    """
    writer = _Writer(result, out_dir, embedded_bytes)
    path = out_dir / FILE_NAME
    out_dir.mkdir(parents=True, exist_ok=True)
    path.write_text(page(f"Turn-taking: {writer.headline}", "\n".join(writer.body())), "utf-8")
    return path


@dataclass(slots=True)
class _Writer:
    result: SuiteResult
    directory: Path
    embedded_bytes: int
    _rows: list[ScenarioResult] = field(init=False)

    def __post_init__(self) -> None:
        found = {row.scenario: row for row in self.result.results}
        missing = [number for number in ABOUT if number not in found]
        self._rows = [
            *self.result.results,
            *(
                ScenarioResult(number, ABOUT[number].name, "not run", (), {}, (), note="not asked for in this run")
                for number in missing
            ),
        ]
        self._rows.sort(key=lambda row: row.scenario)

    @property
    def headline(self) -> str:
        judged = [row for row in self.result.results if row.verdict != "not run"]
        passed = sum(row.verdict == "pass" for row in judged)
        return f"{passed} of {len(judged)} scenarios pass"

    def body(self) -> Iterator[str]:
        yield from self._head()
        yield from self._table()
        sections = Sections(self.directory, self.embedded_bytes)
        for row in self._rows:
            if row.trials or row.verdict != "not run":
                yield from sections.write(row)
        version = esc(self.result.version)
        yield (
            f"<footer><p>duplex {version} · duplex bench turns · p95 is the observation at that rank or the next "
            "higher one · intervals are 95 %: Wilson’s for shares, bootstrap for the rest · sound: user left, agent "
            "right</p></footer>"
        )

    # --- head ------------------------------------------------------------------------------------------

    def _head(self) -> Iterator[str]:
        result = self.result
        quick = " A quick run: fewer and shorter trials than the table asks for." if result.quick else ""
        trials = sum(len(row.trials) for row in result.results)
        yield f"<header><h1>Turn-taking: {esc(self.headline)}</h1>"
        yield (
            f'<p class="summary quiet">{trials} trials over {esc(result.door)} in {minutes(result.took_s)}, '
            f"judged from the stereo sound recorded at the client.{quick}</p>"
        )
        counts = {name: sum(row.verdict == name for row in self._rows) for name in CLASSES}
        tally = "".join(
            f'<li class="{CLASSES[name]}"><b>{count}</b>{esc(name)}</li>'
            for name, count in counts.items()
            if count or name in {"pass", "miss"}
        )
        yield f'<ul class="tally">{tally}</ul><dl class="facts">'
        facts: list[tuple[str, object]] = [
            ("machine", _sentence(result.machine)),
            ("load", _sentence(result.load)),
            ("door", result.door),
            ("version", f"duplex {result.version}"),
            ("seed and split", f"{result.seed}, {result.split}"),
            ("started", result.started_at),
        ]
        for name, value in facts:
            yield f"<div><dt>{esc(name)}</dt><dd>{esc(value)}</dd></div>"
        yield "</dl>"
        yield (
            '<details class="more"><summary>Configuration</summary>'
            f"<pre>{esc(as_json(result.configuration, 8000))}</pre></details></header>"
        )

    # --- the table -------------------------------------------------------------------------------------

    def _table(self) -> Iterator[str]:
        failed = any(row.failures for row in self._rows)
        buttons = [("all", "All", True), ("miss", "Misses only", False)]
        buttons += [("failed", "With failing trials", False)] if failed else []
        yield '<div class="filter"><h2>All rows</h2>'
        for value, label, pressed in buttons:
            yield f'<button type="button" value="{value}" aria-pressed="{str(pressed).lower()}">{label}</button>'
        yield '</div><div class="sheet"><table id="table"><thead><tr>'
        for label, kind in (
            ("Scenario", ""),
            ("Verdict", ""),
            ("Measure", ""),
            ("p50", "n"),
            ("p95", "n"),
            ("Found", "n"),
            ("95 % interval", "n"),
            ("Limit", "n"),
            ("n", "n"),
            ("", ""),
        ):
            yield f'<th scope="col" class="{kind}">{label}</th>' if label else '<td aria-hidden="true"></td>'
        yield "</tr></thead>"
        for row in self._rows:
            yield from self._table_row(row)
        yield "</table></div>"

    def _table_row(self, row: ScenarioResult) -> Iterator[str]:
        limits = row.limits if row.verdict != "not run" else ()
        span = max(1, len(limits))
        linked = bool(row.trials) or row.verdict != "not run"
        name = f'<a href="#s{row.scenario}">{esc(row.name)}</a>' if linked else esc(row.name)
        yield f'<tbody {marks(row)}><tr class="first">'
        yield (
            f'<th scope="rowgroup" rowspan="{span}"><div><span>{row.scenario}</span>{name}</div></th>'
            f'<td rowspan="{span}">{badge(row)}</td>'
        )
        if not limits:
            yield f'<td colspan="8" class="why">{esc(row.note or "nothing to judge by")}</td></tr></tbody>'
            return
        for index, verdict in enumerate(limits):
            yield "" if index == 0 else "<tr>"
            yield from self._limit_cells(verdict, row.measures.get(verdict.limit.measure))
            yield "</tr>"
        yield "</tbody>"

    def _limit_cells(self, verdict: LimitVerdict, summary: MeasureSummary | None) -> Iterator[str]:
        limit, measure = verdict.limit, verdict.limit.measure
        share = limit.statistic == "mean" if summary is None else is_share(measure, summary, (verdict,))
        interval = summary.ci95.get(limit.statistic) if summary is not None else None
        cells = [("p50", ""), ("p95", ""), ("found", "–"), ("95 %", ""), ("limit", ""), ("n", "0")]
        told = dict(cells)
        if summary is not None and not share:
            told |= {"p50": shown(summary.p50, measure), "p95": shown(summary.p95, measure)}
        if verdict.value is not None:
            told["found"] = shown(verdict.value, measure, share=share)
        if interval is not None:
            low, high = (shown(edge, measure, share=share) for edge in (interval.low, interval.high))
            told["95 %"] = f"{_without_unit(low, high)} – {high}"
        told["limit"] = limit_text(limit, share=share)
        told["n"] = str(summary.n) if summary is not None else "0"
        yield (
            f'<td class="measure">{esc(label_of(measure))} '
            f'<span class="quiet">{esc(statistic_word(limit.statistic, share=share))}</span></td>'
        )
        for name, _ in cells:
            missed = " missed" if name == "found" and verdict.passed is False else ""
            yield f'<td class="n{missed}" data-name="{esc(name)}">{esc(told[name])}</td>'
        yield f'<td class="meter">{bullet(verdict, summary, share=share)}</td>'


# --- pieces --------------------------------------------------------------------------------------------


def _without_unit(low: str, high: str) -> str:
    """``490 ms`` beside ``540 ms`` → ``490``."""
    figure, _, unit = low.partition(" ")
    return figure if unit == high.partition(" ")[2] else low


def _sentence(values: Mapping[str, Any]) -> str:
    """A mapping as a line: ``cpu: …, cores: 2``."""
    parts = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            value = f"({_sentence(value)})"
        elif isinstance(value, (list, tuple)):
            value = " / ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in value)
        elif isinstance(value, float):
            value = f"{value:.3g}"
        parts.append(f"{str(name).replace('_', ' ')} {value}")
    return ", ".join(parts) or "unknown"
