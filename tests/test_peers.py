"""The side-by-side run's own parts: what it counts, in which order it goes, what it tells the client. No Pipecat."""

from __future__ import annotations

import inspect
import json
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from duplex.benchmarks.peers import pipecat_env
from duplex.benchmarks.peers.blocks import COUNTED, PARTS, Continued, Part, blocks
from duplex.benchmarks.peers.comparison import Comparison, Contender, Row
from duplex.benchmarks.peers.comparison_plot import save_plot
from duplex.benchmarks.peers.pipecat_server import Turnstile, order_of, settings_for
from duplex.benchmarks.peers.reply_events import ReplyEvents
from duplex.benchmarks.peers.side_by_side import ROWS
from duplex.benchmarks.turns.material import Material
from duplex.benchmarks.turns.results import ScenarioResult, TrialResult
from duplex.benchmarks.turns.scenarios import SCENARIOS
from duplex.errors import DuplexError

WAIT = Row(1, "voice_to_voice_ms", "voice-to-voice", "ms")
CUTS = Row(3, "takeover", "takes over", "share")


# --- what a peer's bot tells our client ------------------------------------------------------------------


def told(*signals: tuple[Any, ...]) -> list[str]:
    """The events that come of ``signals``: (method, arguments …), as short words."""
    sent: list[Mapping[str, Any]] = []
    events = ReplyEvents(sent.append)
    for name, *arguments in signals:
        getattr(events, name)(*arguments)
    words = []
    for event in sent:
        response = event.get("response", {})
        words.append(
            " ".join(filter(None, [event["type"].rpartition(".")[2], response.get("id"), response.get("status")]))
        )
    return words


def test_a_reply_is_open_from_its_first_thought_to_its_last_sound() -> None:
    assert told(("thinking_started",), ("speaking_started",), ("thinking_stopped", "Rome.", False)) == [
        "created reply-1",
        "started",
        "done",  # the transcript
    ]
    assert told(
        ("thinking_started",), ("speaking_started",), ("thinking_stopped", "Rome.", False), ("speaking_stopped",)
    )[-1] == ("done reply-1 completed")


def test_a_reply_that_waits_for_its_voice_is_not_done() -> None:
    waiting = [("thinking_started",), ("thinking_stopped", "Rome.", False)]
    assert told(*waiting) == ["created reply-1", "done"]
    assert told(*waiting, ("speaking_started",), ("speaking_stopped",))[-1] == "done reply-1 completed"


def test_a_reply_without_a_word_is_done_at_once() -> None:
    assert told(("thinking_started",), ("thinking_stopped", " ", False)) == [
        "created reply-1",
        "done reply-1 completed",
    ]


@pytest.mark.parametrize("order", [("thinking", "speaking"), ("speaking", "thinking")])
def test_an_interrupted_reply_is_cancelled_whichever_signal_comes_first(order: Sequence[str]) -> None:
    ends = {"thinking": ("thinking_stopped", "Once upon", True), "speaking": ("speaking_stopped",)}
    spoken = told(("thinking_started",), ("speaking_started",), *(ends[name] for name in order))
    assert spoken[-1] == "done reply-1 cancelled"


def test_the_reply_after_a_cancelled_one_is_its_own() -> None:
    spoken = told(
        ("thinking_started",), ("speaking_started",), ("thinking_stopped", "Once", True), ("speaking_stopped",),
        ("thinking_started",), ("speaking_started",), ("thinking_stopped", "Sure.", False), ("speaking_stopped",),
    )  # fmt: skip
    assert [word for word in spoken if "reply" in word] == [
        "created reply-1", "done reply-1 cancelled", "created reply-2", "done reply-2 completed",
    ]  # fmt: skip


def test_a_turn_is_open_until_it_begins_to_be_answered() -> None:
    answered = told(("turn_started",), ("turn_started",), ("turn_stopped", "Tell me."), ("thinking_started",))
    assert answered == ["created turn-1", "committed", "completed", "created reply-1", "done turn-1 completed"]
    assert told(("turn_started",), ("turn_stopped", ""))[-1] == "done turn-1 completed"


@pytest.mark.parametrize("first", ["turn_started", "thinking_started"])
def test_something_stays_open_when_the_user_goes_on_after_a_pause(first: str) -> None:
    """The bot takes the pause for the end, hears the rest, drops its thought and is yet to answer."""
    both = [(first,), ("thinking_started" if first == "turn_started" else "turn_started",)]
    signals = [("turn_started",), ("turn_stopped", "I think"), *both, ("thinking_stopped", "", False)]
    assert open_after(*signals) == {"turn-1" if first == "turn_started" else "turn-2"}
    answered = [("turn_stopped", "it is."), ("thinking_started",), ("speaking_started",)]
    assert open_after(*signals, *answered) == {"reply-2"}


def open_after(*signals: tuple[Any, ...]) -> set[str]:
    """The responses that are not done."""
    words = [word.split() for word in told(*signals)]
    return {word[1] for word in words if word[0] == "created"} - {word[1] for word in words if len(word) == 3}


# --- one at a time ---------------------------------------------------------------------------------------


def test_one_server_runs_and_the_others_stand_still() -> None:
    sent: list[tuple[int, int]] = []
    turnstile = Turnstile({"a": 1, "b": 2, "elsewhere": None}, lambda pid, number: sent.append((pid, number)))
    turnstile.let("a")
    turnstile.let("a")
    assert sent == [(2, signal.SIGSTOP)]
    turnstile.let("b")
    assert sent[1:] == [(1, signal.SIGSTOP), (2, signal.SIGCONT)]
    turnstile.open()
    assert sent[3:] == [(1, signal.SIGCONT)]


def test_each_goes_first_as_often_as_the_others() -> None:
    firsts = [order_of(["a", "b"], block)[0] for block in range(6)]
    assert firsts == ["a", "b", "a", "b", "a", "b"]
    assert sorted(order_of(["a", "b", "c"], 1)) == ["a", "b", "c"]


def test_blocks_go_through_every_part_and_end_with_the_last_trial() -> None:
    parts = (Part(1, "turns", 7, 2, 3), Part(7, "interruptions", 4, 2, 3))
    planned = blocks(parts, {"turns": 7, "interruptions": 4})
    assert [(b.part.name, b.first, b.size) for b in planned] == [
        ("turns", 0, 3), ("interruptions", 0, 3), ("turns", 3, 3), ("interruptions", 3, 1), ("turns", 6, 1),
    ]  # fmt: skip
    assert [b.number for b in planned] == [0, 1, 2, 3, 4]


def test_a_block_goes_on_where_the_one_before_left_off() -> None:
    material = Material("reporting", [])
    for name in COUNTED:
        assert list(inspect.signature(getattr(material, name)).parameters) == ["k"]
    asked: list[int] = []
    material.backchannel = asked.append  # type: ignore[method-assign, assignment]
    Continued(material, 5).backchannel(2)
    assert asked == [7]
    assert Continued(material, 5).split == "reporting"


def test_the_parts_and_rows_are_of_scenarios_there_are() -> None:
    known = {scenario.number for scenario in SCENARIOS}
    assert {part.scenario for part in PARTS} <= known
    assert {row.scenario for row in ROWS} == {part.scenario for part in PARTS}
    assert all(part.trials >= 30 for part in PARTS if part.name == "turns")


# --- the environment -------------------------------------------------------------------------------------


def test_every_dependency_is_pinned_and_none_is_a_giant() -> None:
    lines = [line for line in pipecat_env.REQUIREMENTS.read_text("utf-8").splitlines() if not line.startswith("#")]
    assert all("==" in line for line in lines if line)
    names = {name.lower() for name in pipecat_env.required()}
    assert {"pipecat-ai", "aiortc", "moonshine-voice", "piper-tts", "onnxruntime", "xllamacpp"} <= names
    assert not names & {"torch", "transformers", "tensorflow"}
    assert f"pipecat-ai=={pipecat_env.VERSION}" in lines


def test_a_finished_environment_is_left_alone_and_a_half_finished_one_is_not(tmp_path: Path) -> None:
    python = pipecat_env.python_of(tmp_path)
    python.parent.mkdir(parents=True)
    python.write_text("")
    assert not pipecat_env.is_ready(tmp_path)
    (tmp_path / "duplex-stamp").write_text(pipecat_env.stamp(), "utf-8")
    said: list[str] = []
    assert pipecat_env.ensure(tmp_path, said.append) == python
    assert not said
    (tmp_path / "duplex-stamp").write_text("made from other pins", "utf-8")
    assert not pipecat_env.is_ready(tmp_path)


def test_a_full_disk_is_named_before_anything_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipecat_env, "_NEEDS_BYTES", 10**18)
    with pytest.raises(DuplexError, match="Make room there"):
        pipecat_env.ensure(tmp_path / "env", lambda _line: None)
    assert not (tmp_path / "env").exists()


# --- the comparison --------------------------------------------------------------------------------------


def trial(values: Mapping[str, float], valid: bool = True) -> TrialResult:
    return TrialResult(seed=1, stimulus="a sentence", valid=valid, values=values)


def block(scenario: int, *trials: TrialResult) -> ScenarioResult:
    return ScenarioResult(scenario, "a scenario", "pass", (), {}, trials)


def compared(waits: Sequence[float], cuts: Sequence[bool], ours: float = 400.0) -> Comparison:
    """Ours waits ``ours`` every time and takes over in 1 of 4 pauses; the other as given."""
    us, them = Contender("duplex", "1"), Contender("Pipecat", "2")
    for value in waits:
        us.take(block(1, trial({WAIT.measure: ours})))
        them.take(block(1, trial({WAIT.measure: value})))
    us.take(block(3, *(trial({CUTS.measure: number == 0}) for number in range(4))))
    them.take(block(3, *(trial({CUTS.measure: cut}) for cut in cuts)))
    return Comparison((us, them), (WAIT, CUTS), {"cpu": "test"}, (0.1, 0.1, 0.1), {}, 1.0)


def test_blocks_add_up_and_invalid_trials_are_left_out() -> None:
    side = Contender("duplex", "1")
    side.take(block(1, trial({WAIT.measure: 100.0}), trial({WAIT.measure: 9000.0}, valid=False)))
    side.take(block(1, trial({WAIT.measure: 300.0}), trial({})))
    found = side.summary(WAIT)
    assert found is not None
    assert found.values == (100.0, 300.0)
    assert len(side.valid(1)) == 3
    assert side.summary(CUTS) is None


def test_the_ratio_is_theirs_over_ours() -> None:
    comparison = compared([1200.0, 1600.0, 2000.0], [True, True, False, False])
    assert comparison.ratio(WAIT, comparison.contenders[1], "p50") == pytest.approx(4.0)
    assert comparison.ratio(CUTS, comparison.contenders[1], "p50") is None


@pytest.mark.parametrize(
    ("waits", "cuts", "held"),
    [
        ([1600.0, 1600.0], [True, True, False, False], [True, True, True]),
        ([1100.0, 1600.0, 1100.0], [True, False, False, False], [False, True, True]),
        ([1600.0, 1600.0], [False, False, False, False], [True, True, False]),
    ],
)
def test_the_claims_can_fail(waits: Sequence[float], cuts: Sequence[bool], held: Sequence[bool]) -> None:
    assert [claim.held for claim in compared(waits, cuts).claims(WAIT, (CUTS,))] == held


def test_a_claim_about_nothing_does_not_hold() -> None:
    claims = list(compared([], []).claims(WAIT, (CUTS,)))
    assert [claim.held for claim in claims] == [None, None, None]


def test_the_table_the_file_and_the_picture_tell_the_same(tmp_path: Path) -> None:
    comparison = compared([1200.0, 1600.0, 2000.0], [True, True, False, False])
    console = Console(record=True, width=160, file=(tmp_path / "said.txt").open("w"))
    comparison.print_to(console)
    text = console.export_text()
    assert "p50 1600  p95 2000 ms" in text
    assert "2 of 4" in text
    assert "4.0 / 5.0" in text
    written = json.loads(json.dumps(comparison.to_json()))
    assert written["rows"][0]["sides"]["Pipecat"]["values"] == [1200.0, 1600.0, 2000.0]
    assert written["rows"][0]["ratio"]["Pipecat"]["p95"] == pytest.approx(5.0)
    save_plot(comparison, tmp_path / "peers.png", title="Side by side", subtitle="a test")
    assert (tmp_path / "peers.png").stat().st_size > 10_000


@pytest.mark.models
def test_pipecat_is_given_the_models_and_the_words_that_ours_has(models: Any) -> None:
    settings = settings_for(1234, "defaults", 1)
    assert Path(settings["gguf"]).is_file()
    assert Path(settings["piper_onnx"]).is_file()
    assert (Path(settings["moonshine_dir"]) / "encoder_model.ort").is_file()
    assert settings["instructions"]
    assert [role for role, _ in settings["examples"][:2]] == ["user", "assistant"]
    json.dumps(settings)
