"""``duplex doctor``: each thing that is missing is a line with what to run, and never a traceback."""

from __future__ import annotations

import argparse
import json
import socket
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from duplex import cli_doctor, cli_doctor_speed, registry
from duplex.cli_doctor import Finding, check_libraries, check_models, check_plugins, check_port, judged
from duplex.cli_doctor_speed import BUDGETS, ORDER, Outcome, judge, measure
from duplex.weights import ModelStore, load_manifest


def run_doctor(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    cli_doctor.add_parser(parser.add_subparsers())
    args = parser.parse_args(["doctor", *argv])
    return int(args.run(args))


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


@pytest.mark.models
@pytest.mark.timeout(400)  # loads and runs all five models; a busy two-core machine takes its time
def test_a_complete_installation_is_ready_and_every_model_was_run(
    models: ModelStore, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run_doctor("--json", "--port", "0")
    report = json.loads(capsys.readouterr().out)
    wrong = [finding for finding in report["findings"] if finding["state"] == "fail"]
    assert wrong == []
    assert status == 0
    assert report["ready"] is True
    speeds = {finding["name"]: finding["text"] for finding in report["findings"] if finding["section"] == "speed"}
    assert tuple(speeds) == ORDER
    assert "× real time" in speeds["piper-joe"]
    assert "tokens/s" in speeds["smollm2-135m"]


def test_without_models_it_is_not_ready_and_says_the_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DUPLEX_MODELS_DIR", str(tmp_path))
    assert run_doctor("--port", "0") == 1
    said = capsys.readouterr().out
    assert "✗ smollm2-135m" in said
    assert f"\n  duplex models pull {' '.join(load_manifest().default)}\n" in said
    assert "Speed" not in said, "no model to run"


def test_a_damaged_model_is_named_with_its_damage(tmp_path: Path) -> None:
    (tmp_path / "silero-vad").mkdir()
    (tmp_path / "silero-vad" / "silero_vad.onnx").write_bytes(b"half")
    finding = by_name(check_models(ModelStore(tmp_path)))["silero-vad"]
    assert (finding.state, finding.mend) == ("fail", "duplex models pull silero-vad")
    assert "has 4 bytes, expected 2327524" in finding.text


def test_a_missing_library_brings_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = cli_doctor.version

    def version(name: str) -> str:
        if name in {"xllamacpp", "httpx"}:
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(cli_doctor, "version", version)
    found = by_name(check_libraries())
    assert (found["xllamacpp"].state, found["xllamacpp"].mend) == ("fail", "pip install 'duplex-runtime[local]'")
    assert found["runtime"].text == "missing: httpx"
    assert found["onnxruntime"].state == "ok"
    assert "CPU" in found["onnxruntime"].text


def test_the_gpu_build_of_onnxruntime_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    real = cli_doctor.version

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise PackageNotFoundError(name)
        return "1.99" if name == "onnxruntime-gpu" else real(name)

    monkeypatch.setattr(cli_doctor, "version", version)
    assert by_name(check_libraries())["onnxruntime"].state == "ok"


def test_a_library_that_does_not_import_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise OSError("libgomp.so.1: cannot open\nshared object file")

    monkeypatch.setattr(cli_doctor.importlib, "import_module", broken)
    finding = by_name(check_libraries())["onnxruntime"]
    assert finding.state == "fail"
    assert finding.text == "does not import: libgomp.so.1: cannot open shared object file"


def test_an_agent_that_does_not_import_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(group: str, name: str) -> None:
        raise RuntimeError("no such symbol")

    assert by_name(check_plugins("echo"))["agents"].state == "ok"
    monkeypatch.setattr(registry, "lookup", broken)
    finding = by_name(check_plugins("echo"))["agents"]
    assert (finding.state, finding.text) == ("fail", "echo: no such symbol")
    assert finding.mend.startswith("pip install")


def test_a_taken_port_names_another() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        finding = check_port("127.0.0.1", port)
    assert finding.state == "fail"
    assert finding.mend == f"duplex serve --port {port + 1}"
    assert check_port("127.0.0.1", 0).state == "ok"


# -- speed --------------------------------------------------------------------------------------------------

CHILD = """
import json, os, signal, sys
for name in sys.argv[1:]:
    print("some library says hello", flush=True)
    print("@doctor " + json.dumps({"name": name, "begin": True}), flush=True)
    if name == "smart-turn":
        os.kill(os.getpid(), signal.SIGILL)
    if name == "moonshine-tiny-en":
        print("@doctor " + json.dumps({"name": name, "error": "out of ink"}), flush=True)
        continue
    print("@doctor " + json.dumps({"name": name, "figures": {"n": 1}}), flush=True)
"""


def test_a_model_that_kills_its_process_does_not_stop_the_others(tmp_path: Path) -> None:
    outcomes = list(measure(tmp_path, ORDER, lambda left: [sys.executable, "-c", CHILD, *left]))
    assert tuple(outcome.name for outcome in outcomes) == ORDER
    told = {outcome.name: outcome for outcome in outcomes}
    assert "SIGILL: this processor lacks an instruction" in told["smart-turn"].error
    assert told["moonshine-tiny-en"].error == "out of ink"
    assert [name for name in ORDER if told[name].figures == {"n": 1}] == ["piper-joe", "silero-vad", "smollm2-135m"]


def test_a_child_that_says_nothing_is_not_asked_for_ever(tmp_path: Path) -> None:
    outcomes = list(measure(tmp_path, ["silero-vad"], lambda left: [sys.executable, "-c", ""]))
    assert outcomes == [Outcome("silero-vad", None, "the process ended without a word")]


def test_a_child_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_doctor_speed, "STALL_S", 0.1)
    hang = "import threading; threading.Event().wait()"
    (outcome,) = measure(tmp_path, ["silero-vad"], lambda left: [sys.executable, "-c", hang])
    assert outcome.error == "no answer in 0.1 s"


def test_a_model_file_that_does_not_load_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "silero-vad").mkdir()
    (tmp_path / "silero-vad" / "silero_vad.onnx").write_bytes(b"not a network")
    (outcome,) = measure(tmp_path, ["silero-vad"])
    assert "silero_vad.onnx could not be loaded" in outcome.error
    assert "duplex models pull" in judged(outcome).mend


@pytest.mark.parametrize(
    ("name", "figures", "level", "said"),
    [
        ("silero-vad", {"window_ms": 0.25}, "ok", "0.25 ms per 32 ms window"),
        ("silero-vad", {"window_ms": 40.0}, "behind", "40.00 ms per 32 ms window"),
        ("smart-turn", {"call_ms": 151.0}, "slow", "151 ms per call"),
        ("moonshine-tiny-en", {"three_s_ms": 150.0}, "ok", "150 ms for 3 s of speech"),
        ("smollm2-135m", {"first_token_ms": 90, "tokens_per_s": 4.9}, "behind", "first token 90 ms, 5 tokens/s"),
        ("smollm2-135m", {"first_token_ms": 300, "tokens_per_s": 70}, "slow", "first token 300 ms, 70 tokens/s"),
        ("piper-joe", {"times_real_time": 0.9, "first_sound_ms": 9}, "behind", "0.9 × real time, first sound 9 ms"),
    ],
)
def test_figures_are_judged_against_their_budget(name: str, figures: dict[str, float], level: str, said: str) -> None:
    got_level, got_said, aim = judge(name, figures)
    assert (got_level, got_said) == (level, said)
    assert aim.startswith("aim ")


def test_a_slow_machine_is_told_and_is_not_an_error() -> None:
    finding = judged(Outcome("silero-vad", {"window_ms": 40.0}))
    assert finding.state == "warn"
    assert "does not keep up with real time" in finding.mend


def test_every_default_model_has_a_budget_and_a_library() -> None:
    assert set(load_manifest().default) == set(ORDER) == set(BUDGETS) == set(cli_doctor.RUNS_ON)
