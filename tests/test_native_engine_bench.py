"""The engine benchmark: its arithmetic, its verdicts, and one short run of everything."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from native_tiny import tiny_lm, tiny_mimi

from duplex.benchmarks.engine import main
from duplex.benchmarks.engine.limits import TickBytes, measured_bandwidth_bytes_per_s
from duplex.benchmarks.engine.measures import IN_TURNS, Row, Spread, one_after_the_other, sessions_held
from duplex.benchmarks.engine.report import as_json, verdicts
from duplex.benchmarks.engine.stock import StockLoop


def test_percentiles_are_observations_and_never_interpolated() -> None:
    spread = Spread.of([float(value) for value in range(1, 101)])
    assert (spread.p50, spread.p95, spread.p99, spread.max, spread.n) == (50.0, 95.0, 99.0, 100.0, 100)
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0, 3.0, 1)
    with pytest.raises(ValueError, match="nothing was measured"):
        Spread.of([])


def test_the_limit_is_bytes_over_bandwidth() -> None:
    moshi = TickBytes(weights=14 << 30, kv_per_session=1 << 30)
    assert moshi.total(4) == 18 << 30
    assert moshi.limit_s(4, float(36 << 30)) == 0.5
    assert measured_bandwidth_bytes_per_s(torch.device("cpu")) > 1e8


def row(who: str, sessions: int, p99_s: float, precision: str = "auto", **more: object) -> Row:
    return Row(who, precision, sessions, Spread(p99_s / 2, p99_s, p99_s, p99_s, 50), **more)  # type: ignore[arg-type]


def test_sessions_held_are_the_most_that_met_the_deadline() -> None:
    rows = [row("duplex", 1, 0.01), row("duplex", 8, 0.079), row("duplex", 16, 0.081), row("stock", 32, 0.01)]
    assert sessions_held(rows, "duplex", "auto") == 8
    assert sessions_held(rows, "duplex", "int8") == 0
    assert one_after_the_other(Spread(0.01, 0.02, 0.025, 0.1, 9)) == 3
    assert rows[1].of_limit is None
    assert row("duplex", 1, 0.02, limit_s=0.004).of_limit == 2.5


def test_verdicts_compare_what_was_measured_in_turns() -> None:
    rows = [
        row("duplex", 1, 0.010, note=IN_TURNS),
        row("stock", 1, 0.020),
        row("stock", 8, 0.070),
        row("duplex", 1, 0.016),
        row("duplex", 8, 0.030, overhead=Spread(0.0001, 0.0007, 0.001, 0.001, 50)),
        Row("duplex", "auto", 64, note="does not fit"),
    ]
    told = "\n".join(verdicts(rows))
    assert "p50 5.0 ms, the package's loop 10.0 ms: 2.00 times its throughput" in told
    assert "1 as its server runs it, 4 if its loop were run for each in turn, 8 batched" in told
    assert "duplex, auto: 8 (of those measured)" in told
    assert "Overhead with 8 sessions, auto: p95 0.70 ms" in told
    assert json.loads(json.dumps(as_json(rows, {"model": "x"})))["rows"][5]["note"] == "does not fit"


def test_the_packages_loop_is_run_as_its_server_does() -> None:
    mimi, lm = tiny_mimi(), tiny_lm()
    loop = StockLoop(mimi, lm, 2, torch.device("cpu"))
    silence = np.zeros((2, 1920), np.float32)
    first, _ = loop.step(silence)
    second, parts_s = loop.step(silence)
    loop.close()
    assert first is None, "its delays fill"
    assert second is not None
    assert second.shape == (2, 1920)
    assert set(parts_s) == {"copy", "encode", "model", "decode"}
    assert not mimi.is_streaming, "the models are left as they were"
    assert not lm.is_streaming


def test_a_short_run_of_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    files = {"--json": tmp_path / "engine.json", "--plot": tmp_path / "engine.png"}
    arguments = ["--device", "cpu", "--sessions", "1,2", "--stock", "1,2", "--steps", "5", "--paced", "3"]
    arguments += ["--call-minutes", "1"]
    try:
        assert main([*arguments, *(str(word) for pair in files.items() for word in pair)]) == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "times its throughput" in printed
    assert "GB/s by copying" in printed
    found = json.loads(files["--json"].read_text())
    kinds = [(r["who"], r["sessions"], r["note"]) for r in found["rows"]]
    assert kinds[:3] == [("duplex", 1, IN_TURNS), ("stock", 1, ""), ("stock", 2, "")]
    ours = found["rows"][3:]
    assert [r["sessions"] for r in ours] == [1, 2]
    for r in ours:
        assert set(r["parts_s"]) == {"copy", "encode", "temporal", "depth", "decode"}
        assert r["of_limit"] > 1.0
        assert r["memory_bytes"] > 0
    assert found["long_call"]["steps"] == 750
    assert "A call of 1 minutes, 750 steps" in printed
    assert files["--plot"].read_bytes().startswith(b"\x89PNG")


def test_a_preset_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--preset", "moshi-70b", "--sessions", "1"]) == 1
    assert "Known: tiny, 1b, moshi-7b, personaplex" in capsys.readouterr().out.replace("\n", " ")
