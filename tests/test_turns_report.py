"""The suite's report: what it says, that a miss looks like one, and that nothing in it reaches out or breaks out."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import expect, sync_playwright

from duplex.benchmarks.turns import report_section
from duplex.benchmarks.turns.contract import Limit, Trial
from duplex.benchmarks.turns.report import write_report
from duplex.benchmarks.turns.report_charts import distribution, is_share, ticks, waterfall_of, waterfalls
from duplex.benchmarks.turns.report_words import ABOUT, label_of, limit_text, shown
from duplex.benchmarks.turns.results import Clip, ScenarioResult, SuiteResult, TrialResult, save_clip
from duplex.benchmarks.turns.statistics import judge, measures_of, summarise, verdict_of
from duplex.recording import RecordedEvent, Recording
from duplex.testing import ScriptedUser, tone

EVIL = "<script>alert('x')</script> & \"quoted\""
TRACE = {
    "type": "duplex.trace",
    "speculative": True,
    "spans": [
        {"name": "end_of_turn", "start_ms": 0, "end_ms": 300},
        {"name": "thinker", "start_ms": 120, "end_ms": 280},
        {"name": "first_packet", "start_ms": 300, "end_ms": 318},
    ],
}


def recording() -> Recording:
    """Six seconds: the user speaks, the agent answers, the user speaks over it, and it is held and cut off."""
    user = ScriptedUser(((0.5, 1.0), (3.5, 0.8))).samples(6.0)
    agent = np.zeros_like(user)
    agent[2 * 24_000 : 2 * 24_000 + 40_000] = tone(40_000 / 24_000)
    events = (
        RecordedEvent(1800.0, {"type": "input_audio_buffer.committed", "item_id": "i1"}),
        RecordedEvent(1800.0, {"type": "duplex.floor", "floor": "thinking"}),
        RecordedEvent(
            1850.0,
            {
                "type": "conversation.item.input_audio_transcription.completed",
                "item_id": "i1",
                "transcript": "What <is> that?",
            },
        ),
        RecordedEvent(1990.0, {"type": "duplex.floor", "floor": "speaking"}),
        RecordedEvent(2000.0, {"type": "output_audio_buffer.started", "response_id": "r1"}),
        RecordedEvent(
            2000.0,
            {
                "type": "duplex.words",
                "response_id": "r1",
                "item_id": "o1",
                "words": [
                    {"text": "Nothing", "start_ms": 0, "end_ms": 700},
                    {"text": "whatsoever", "start_ms": 1700, "end_ms": 2300},
                ],
            },
        ),
        RecordedEvent(3600.0, {"type": "duplex.reply.held", "response_id": "r1"}),
        RecordedEvent(3600.0, {"type": "duplex.floor", "floor": "holding"}),
        RecordedEvent(3900.0, {"type": "conversation.item.truncated", "item_id": "o1", "audio_end_ms": 1650}),
        RecordedEvent(3900.0, {"type": "duplex.floor", "floor": "listening"}),
    )
    return Recording(np.stack([user, agent], axis=1), 20.0, events)


def scenario(
    number: int,
    limits: Sequence[Limit],
    values: Sequence[Mapping[str, float]],
    failed: Mapping[int, str] | None = None,
    *,
    clips: Mapping[int, Clip] | None = None,
    details: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> ScenarioResult:
    failed, clips = failed or {}, clips or {}
    trials = tuple(
        TrialResult(
            seed=number * 1000 + index,
            stimulus=f"stimulus {index}",
            valid=True,
            values=each,
            failed=failed.get(index),
            start_ms=1000.0,
            end_ms=4000.0,
            details=details or {},
            clip=clips.get(index),
        )
        for index, each in enumerate(values)
    )
    measures = measures_of([Trial(number, trial.seed, "", trial.values) for trial in trials])
    verdicts = judge(limits, measures)
    return ScenarioResult(number, name or ABOUT[number].name, verdict_of(verdicts), verdicts, measures, trials)


STOP = (Limit("stop_ms", "p50", at_most=200.0), Limit("yielded", "mean", at_least=0.98))
FAST = [{"stop_ms": 100.0 + k, "yielded": 1.0} for k in range(20)]
SLOW = [{"stop_ms": 300.0 + k, "yielded": float(k != 3)} for k in range(20)]


def suite(*results: ScenarioResult, **changes: Any) -> SuiteResult:
    whole = SuiteResult(
        version="1.2.3",
        machine={"cpu": "Test CPU", "cores": 2},
        load={"before": [0.5, 0.25]},
        configuration={"url": "http://127.0.0.1:8998", "preset": "balanced"},
        door="webrtc",
        seed=7,
        split="report",
        quick=False,
        started_at="2026-01-02T03:04:05Z",
        took_s=600.0,
        results=results,
    )
    return replace(whole, **changes)


def written(tmp_path: Path, *results: ScenarioResult, **changes: Any) -> str:
    path = write_report(suite(*results, **changes), tmp_path)
    assert path == tmp_path / "report.html"
    return path.read_text("utf-8")


class Page(HTMLParser):
    """The document as tags; complains if they do not match."""

    VOID = frozenset({"meta", "br", "hr", "img", "input", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def row_of(html: str, number: int) -> str:
    """The table's rows of one scenario."""
    rows = re.findall(r"<tbody.*?</tbody>", html, re.S)
    return next(row for row in rows if f"<span>{number}</span>" in row)


def section_of(html: str, number: int) -> str:
    found = re.search(rf'<section[^>]*id="s{number}".*?</section>', html, re.S)
    assert found is not None
    return found[0]


# --- what it says ------------------------------------------------------------------------------------------


def test_the_head_says_what_was_run_where_and_how(tmp_path: Path) -> None:
    html = written(tmp_path, scenario(7, STOP, FAST), scenario(8, STOP, SLOW, {3: "it went on"}))
    text = " ".join(Page(html).text)
    assert "1 of 2 scenarios pass" in text
    for said in ("Test CPU", "cores 2", "before 0.5 / 0.25", "webrtc", "duplex 1.2.3", "7, report", "2026-01-02T03"):
        assert said in text, said
    assert "balanced" in text
    assert "quick run" not in text
    assert "quick run" in written(tmp_path, quick=True)


def test_there_is_a_row_for_each_of_the_26_and_one_that_was_not_run_says_so(tmp_path: Path) -> None:
    html = written(
        tmp_path,
        scenario(7, STOP, FAST),
        ScenarioResult(22, "outage", "not run", (), {}, (), note="websocket: no line to cut"),
    )
    assert len(re.findall(r"<tbody", html)) >= 26
    assert "not run" in row_of(html, 22)
    assert "websocket: no line to cut" in row_of(html, 22)
    assert "not asked for in this run" in row_of(html, 1)
    assert "not run" not in row_of(html, 7)
    assert 'id="s22"' not in html  # there is nothing to show of it


def test_a_miss_looks_different_from_a_pass(tmp_path: Path) -> None:
    html = written(tmp_path, scenario(7, STOP, FAST), scenario(8, STOP, SLOW, {3: "it went on"}))
    passing, missing = row_of(html, 7), row_of(html, 8)
    assert 'data-verdict="pass"' in passing
    assert 'class="badge pass">pass<' in passing
    assert "missed" not in passing
    assert 'data-verdict="miss"' in missing
    assert 'class="badge miss">miss<' in missing
    assert missing.count('class="n missed"') == 2
    assert 'class="scenario miss"' in section_of(html, 8)
    assert 'class="scenario pass"' in section_of(html, 7)
    assert "dot bad" in section_of(html, 8)
    assert "dot bad" not in section_of(html, 7)
    # Not by colour alone.
    css = html[: html.index("</style>")]
    assert '.badge.pass::before{content:"✓"}' in css
    assert '.badge.miss::before{content:"✕"}' in css


def test_a_scenario_without_anything_to_judge_is_neither(tmp_path: Path) -> None:
    html = written(tmp_path, scenario(12, (Limit("spurious_replies", "sum", at_most=0.0),), []))
    assert "not judged" in row_of(html, 12)
    assert "badge open" in row_of(html, 12)
    assert "0 of 1 scenarios pass" in html


def test_the_row_has_the_figures_the_interval_and_the_limit(tmp_path: Path) -> None:
    row = row_of(written(tmp_path, scenario(8, STOP, SLOW, {3: "it went on"})), 8)
    cells = dict(re.findall(r'data-name="([^"]+)">([^<]*)<', row[: row.index("</tr>")]))
    assert cells == {
        "p50": "310 ms",
        "p95": "319 ms",
        "found": "310 ms",
        "95 %": cells["95 %"],
        "limit": "≤ 200 ms",
        "n": "20",
    }
    assert re.fullmatch(r"3\d\d – 3\d\d ms", cells["95 %"])
    cells = dict(re.findall(r'data-name="([^"]+)">([^<]*)<', row[row.index("</tr>") :]))
    assert (cells["found"], cells["limit"], cells["95 %"]) == ("95 %", "≥ 98 %", "76.4 – 99.1 %")


def test_a_section_says_what_is_tried_and_how_it_is_judged(tmp_path: Path) -> None:
    html = written(tmp_path, *(scenario(number, STOP, FAST) for number in ABOUT))
    for number, about in ABOUT.items():
        section = section_of(html, number)
        assert about.tried[:20].replace("'", "&#x27;") in section
        assert about.judged[-20:].replace("'", "&#x27;") in section
    assert sorted(ABOUT) == list(range(1, 27))


def test_failing_trials_are_shown_with_their_reason_sound_and_timeline(tmp_path: Path) -> None:
    clips = {k: save_clip(recording(), tmp_path, f"08-{k:03}", 0.0, 6000.0) for k in (0, 3)}
    html = written(tmp_path, scenario(8, STOP, SLOW, {3: "the agent went on"}, clips=clips))
    section = section_of(html, 8)
    failing, other = re.findall(r"<article.*?</article>", section, re.S)
    assert "Failing trial 4" in failing
    assert "the agent went on" in failing
    assert "stimulus 3" in failing
    assert "seed 8003" in failing
    assert 'src="data:audio/ogg;base64,' in failing
    assert "A trial that did not fail 1" in other
    assert 'src="audio/08-000.flac"' in other
    for drawn in (failing, other):
        assert 'class="wave user"' in drawn
        assert 'class="wave agent"' in drawn
        assert "floor-holding" in drawn
        assert "mark-hold" in drawn
        assert "mark-cut" in drawn
        assert "What &lt;is&gt; that?" in drawn
        assert '<tspan class="unheard">whatsoever</tspan>' in drawn  # it was cut off before that
        assert drawn.count('class="beside"') == 2  # before and after the stretch that was judged


def test_waterfalls_come_from_the_trials_own_traces(tmp_path: Path) -> None:
    section = section_of(written(tmp_path, scenario(1, (), FAST[:3], details={"trace": TRACE})), 1)
    assert section.count('<rect class="span-thinker"') == 3
    assert "thinker 120 to 280 ms" in section
    assert 'class="key span-talker"' not in section  # nobody measured it
    assert "318 ms after the user" in section


def test_only_so_many_failing_trials_are_drawn_and_all_are_listed(tmp_path: Path) -> None:
    section = section_of(written(tmp_path, scenario(8, STOP, SLOW, {k: f"reason {k}" for k in range(20)})), 8)
    assert section.count("<article") == report_section.MOST_TIMELINES
    assert "14 more failing trials" in section
    assert all(f"reason {k}<" in section for k in range(20))
    assert section.count('<tr class="bad">') == 20


def test_a_clip_that_is_gone_leaves_a_sentence(tmp_path: Path) -> None:
    clip = save_clip(recording(), tmp_path, "08-003", 0.0, 6000.0)
    (tmp_path / clip.audio).unlink()
    section = section_of(written(tmp_path, scenario(8, STOP, SLOW, {3: "went on"}, clips={3: clip})), 8)
    assert "Its sound cannot be shown: audio/08-003.flac" in section
    assert "<audio" not in section


def test_sound_beyond_the_budget_is_played_from_beside_the_page(tmp_path: Path) -> None:
    clips = {k: save_clip(recording(), tmp_path, f"08-{k:03}", 0.0, 6000.0) for k in range(3)}
    one = section_of(written(tmp_path, scenario(8, STOP, SLOW, {0: "x"}, clips={0: clips[0]})), 8)
    found = re.search(r'src="(data:[^"]+)"', one)
    assert found is not None
    whole = suite(scenario(8, STOP, SLOW, dict.fromkeys(range(3), "x"), clips=clips))
    html = write_report(whole, tmp_path, embedded_bytes=round(len(found[1]) * 1.5)).read_text("utf-8")
    sources = [str(each["src"])[:10] for each in Page(html).of("audio")]
    assert sources == ["data:audio", "audio/08-0", "audio/08-0"]


def test_a_long_clip_does_not_take_the_room_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_section, "EMBEDDED_MS", 5000.0)
    clips = {k: save_clip(recording(), tmp_path, f"08-{k:03}", 0.0, 6000.0 - 2000.0 * k) for k in range(2)}
    html = written(tmp_path, scenario(8, STOP, SLOW, {0: "long", 1: "short"}, clips=clips))
    assert [str(each["src"])[:10] for each in Page(html).of("audio")] == ["audio/08-0", "data:audio"]


# --- what it must not do --------------------------------------------------------------------------------------


def everything(tmp_path: Path) -> str:
    clips = {3: save_clip(recording(), tmp_path, "08-003", 0.0, 6000.0)}
    evil = scenario(
        8,
        STOP,
        SLOW,
        {3: EVIL},
        clips=clips,
        details={EVIL: EVIL, "trace": {"spans": [{"name": EVIL, "start_ms": 0, "end_ms": 5}]}},
        name=EVIL,
    )
    odd = scenario(27, (Limit(EVIL, "p95", at_most=1.0),), [{EVIL: 2.0}] * 2, name="not in the table")
    strange = {"machine": {EVIL: EVIL}, "configuration": {EVIL: EVIL}, "door": EVIL, "version": EVIL}
    return written(tmp_path, replace(evil, note=EVIL), odd, **strange)


def test_everything_is_escaped(tmp_path: Path) -> None:
    page = Page(everything(tmp_path))  # which also sees to it that every tag is closed
    assert len(page.of("script")) == 1  # the page's own
    assert "alert('x')" in " ".join(page.text)
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)


def test_nothing_is_fetched(tmp_path: Path) -> None:
    html = everything(tmp_path)
    page = Page(html)
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:audio/ogg;base64,", "audio/", "#")), (tag, value)
    css = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in css
    assert "@import" not in css
    policy = next(each["content"] for each in page.of("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_it_can_be_read_without_seeing_it(tmp_path: Path) -> None:
    page = Page(everything(tmp_path))
    assert page.of("html")[0]["lang"] == "en"
    assert len(page.of("h1")) == 1
    assert page.of("meta")[1]["name"] == "viewport"
    drawings = [each for each in page.of("svg") if each.get("role") == "img"]
    assert drawings
    assert all(each.get("aria-label") for each in drawings)
    # Any other drawing is part of one, or is hidden because the cells beside it say the same.
    assert all(each.get("aria-hidden") == "true" for each in page.of("svg") if each.get("class") == "bullet")
    assert all(each.get("scope") in {"col", "rowgroup"} for each in page.of("th"))
    assert all(each.get("aria-label") for each in page.of("audio"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {str(each["href"])[1:] for each in page.of("a")}
    assert targets <= set(ids)


def test_a_full_run_stays_small(tmp_path: Path) -> None:
    """26 scenarios of 20 trials, all failing, with traces; sound aside."""
    clip = save_clip(recording(), tmp_path, "clip", 0.0, 6000.0)
    values = [{"stop_ms": 300.0 + k, "yielded": 1.0, "listener_ms": 50.0 + k, "thinker_ms": 9.0 * k} for k in range(20)]
    details = {"said": "a sentence of some length " * 5, "trace": TRACE}
    failed = dict.fromkeys(range(19), "the agent went on")
    clips = dict.fromkeys(range(20), clip)
    rows = [scenario(number, STOP, values, failed, clips=clips, details=details) for number in ABOUT]
    page = write_report(suite(*rows), tmp_path, embedded_bytes=0)
    assert page.stat().st_size < 3_000_000
    assert 'src="data:' not in page.read_text("utf-8")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_on_a_phone_filters_it_and_plays_it(tmp_path: Path, scheme: Any) -> None:
    clips = {k: save_clip(recording(), tmp_path, f"08-{k:03}", 0.0, 6000.0) for k in (0, 3)}
    missed = scenario(8, STOP, SLOW, {3: "went on"}, clips=clips, details={"trace": TRACE})
    path = write_report(suite(scenario(7, STOP, FAST), missed), tmp_path)
    chromium = next(
        found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))
    )
    arguments = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        page = browser.new_page(viewport={"width": 375, "height": 800}, color_scheme=scheme)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        assert (
            page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
            == {
                "light": "rgb(245, 246, 248)",
                "dark": "rgb(16, 20, 27)",
            }[scheme]
        )
        page.get_by_role("button", name="Misses only").click()
        expect(page.locator("#s7")).to_be_hidden()
        expect(page.locator("#s8")).to_be_visible()
        expect(page.locator("#table tbody:visible")).to_have_count(1)
        embedded, beside = page.locator("audio").all()
        for audio, length_s in ((embedded, 6.0), (beside, 6.0)):
            audio.evaluate("audio => { audio.muted = true; return audio.play(); }")
            assert audio.evaluate("audio => audio.duration") == pytest.approx(length_s, abs=0.1)
        assert embedded.evaluate("audio => audio.paused")  # one at a time
        expect(page.locator("article:last-of-type .playhead")).to_have_class("playhead on")
        browser.close()
    assert complaints == []


# --- charts and words ------------------------------------------------------------------------------------------


def places(svg: str, kind: str) -> list[float]:
    """Where circles of a class lie across, in percent."""
    return [float(at) for at in re.findall(rf'<circle class="{kind}" cx="([\d.]+)%"', svg)]


def test_dots_lie_where_their_values_say() -> None:
    limit = Limit("wait_ms", "p95", at_most=500.0)
    summary = summarise([100.0, 200.0, 600.0])
    svg = distribution("wait_ms", summary, judge((limit,), {"wait_ms": summary}))
    good, bad = places(svg, "dot"), places(svg, "dot bad")
    assert (len(good), len(bad)) == (2, 1)
    assert (bad[0] - good[0]) / (good[1] - good[0]) == pytest.approx(5.0, abs=0.01)
    line = re.search(r'<line class="limit missed" x1="([\d.]+)%"', svg)
    assert line is not None
    assert (float(line[1]) - good[0]) / (good[1] - good[0]) == pytest.approx(4.0, abs=0.01)
    assert "limit p95 ≤ 500 ms missed" in svg


@pytest.mark.parametrize("values", [[0.0, 0.0], [-5.0, 3.0], [7.0], [0.0], [1e-9, 1e9], [-3.0, -2.0]])
def test_any_values_can_be_drawn(values: list[float]) -> None:
    svg = distribution("drift_ms", summarise(values), ())
    assert all(0.0 <= at <= 100.0 for at in places(svg, "dot"))
    assert "nan" not in svg


def test_what_is_counted_is_not_a_share() -> None:
    zeros = summarise([0.0, 0.0, 1.0])
    counted = judge((Limit("underruns", "sum", at_most=0.0),), {"underruns": zeros})
    shared = judge((Limit("takeover", "mean", at_most=0.1),), {"takeover": zeros})
    assert is_share("takeover", zeros, shared)
    assert not is_share("underruns", zeros, counted)
    assert not is_share("stop_ms", zeros, ())


def test_waterfalls_survive_what_a_server_may_send() -> None:
    assert waterfall_of("x", {"spans": None}) is None
    assert waterfall_of("x", {"spans": [{"name": "thinker"}, {"name": "talker", "start_ms": "?", "end_ms": 2}]}) is None
    turn = waterfall_of("x", {"spans": [{"name": "thinker", "start_ms": -80, "end_ms": 20}, {}]})
    assert turn is not None
    assert turn.spans == (("thinker", -80.0, 20.0),)
    assert "<svg" in waterfalls([turn])
    assert waterfalls([]) == ""


@pytest.mark.parametrize(
    ("value", "measure", "share", "text"),
    [
        (412.3, "stop_ms", False, "412 ms"),
        (12_345.6, "spoken_ms", False, "12.3 s"),
        (41.26, "wait_ms", False, "41.3 ms"),
        (0.954, "answered", True, "95.4 %"),
        (1.0, "answered", True, "100 %"),
        (3.0, "underruns", False, "3"),
        (-2.5, "drift_ms", False, "−2.50 ms"),
        (210.4, "memory_mb", False, "210 MB"),
    ],
)
def test_figures_have_their_unit(value: float, measure: str, share: bool, text: str) -> None:
    assert shown(value, measure, share=share) == text


def test_names_and_limits_in_words() -> None:
    assert label_of("voice_to_voice_ms") == "voice-to-voice"
    assert label_of("one_turn") == "one turn"
    assert limit_text(Limit("a_ms", "p95", at_most=350.0), share=False) == "≤ 350 ms"
    assert limit_text(Limit("a", "mean", at_least=0.98), share=True) == "≥ 98 %"


def test_ticks_are_round_and_few() -> None:
    assert ticks(530.0, 5) == [0.0, 200.0, 400.0]
    assert ticks(1.0, 5) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(0.0) == [0.0]
    assert len(ticks(1e9)) <= 7
