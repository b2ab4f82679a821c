"""``duplex call`` and ``duplex bench``, as a person runs them."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from duplex import cli_bench, cli_call
from duplex.config import Config, load_config
from duplex.errors import DuplexError, TransportError
from duplex.recording import voiced_spans
from duplex.serve import running
from duplex.weights import ModelStore

RATE_HZ = 44_100


@pytest.fixture
async def echo() -> AsyncIterator[str]:
    """A real server whose agent says back what it heard; its address."""
    async with running(load_config(assignments=["server.port=0", "agent.name=echo"])) as server:
        yield server.url


def question(path: Path, said_s: float = 1.0, level: float = 0.3) -> Path:
    """A stereo file at 44.1 kHz in which somebody hums."""
    t = np.arange(int(said_s * RATE_HZ)) / RATE_HZ
    hum = (
        sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 12)) * level * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t))
    )
    soundfile.write(path, np.stack([hum, hum], axis=1).astype(np.float32), RATE_HZ)
    return path


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    cli_call.add_parser(commands)
    cli_bench.add_parser(commands)
    return parser.parse_args(argv)


async def run(*argv: str) -> int:
    """The command runs its own event loop, so it gets a thread."""
    args: Any = parsed(*argv)
    return int(await asyncio.to_thread(args.run, args))


async def test_a_call_leaves_a_recording_its_events_and_a_picture(
    echo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    assert await run("call", str(question(tmp_path / "q.flac")), "--url", echo, "--out", str(out)) == 0
    stereo, rate_hz = soundfile.read(out / "call.wav", dtype="float32")
    assert rate_hz == 24_000
    assert stereo.shape[1] == 2
    (said,) = voiced_spans(stereo[:, 0], bridge_ms=200)
    answered = voiced_spans(stereo[:, 1], bridge_ms=200)
    assert said.end_ms - said.start_ms == pytest.approx(1000, abs=50)
    assert answered[0].start_ms > said.end_ms
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text("utf-8").splitlines()]
    kinds = [line["event"]["type"] for line in lines]
    assert kinds[0] == "session.created"
    assert {"duplex.trace", "response.done", "output_audio_buffer.started"} <= set(kinds)
    assert [line["at_ms"] for line in lines] == sorted(line["at_ms"] for line in lines)
    assert (out / "timeline.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "Voice to voice" in shown
    assert str(out) in shown


async def test_a_call_that_nobody_answers_says_why(
    echo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = question(tmp_path / "silent.wav", level=0.0)
    assert await run("call", str(silent), "--url", echo, "--out", str(tmp_path), "--wait-s", "0.5") == 1
    assert "silent" in capsys.readouterr().out
    assert (tmp_path / "timeline.png").exists()


async def test_a_call_without_a_server_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="duplex serve"):
        await run("call", str(question(tmp_path / "q.wav")), "--url", "http://127.0.0.1:9", "--out", str(tmp_path))


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["call"], "Say what to ask"),
        (["call", "a.wav", "--say", "b"], "Say what to ask"),
        (["call", "no/such/file.wav"], "no/such/file.wav"),
        (["call", __file__], "cannot be read as sound"),
        (["bench", "nothing"], "There is no benchmark 'nothing'. There are: .*voice"),
    ],
)
async def test_what_cannot_work_is_said_in_a_sentence(argv: list[str], told: str) -> None:
    with pytest.raises(DuplexError, match=told):
        await run(*argv)


async def test_benchmarks_are_listed_with_what_they_measure(capsys: pytest.CaptureFixture[str]) -> None:
    assert await run("bench") == 0
    listed = capsys.readouterr().out
    assert "voice" in listed
    assert "Latency, interruptions" in listed
    assert "stimuli" not in listed


async def test_a_benchmark_gets_its_own_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        await run("bench", "voice", "--help")
    assert stopped.value.code == 0
    assert "--interruptions" in capsys.readouterr().out


@pytest.mark.models
async def test_a_spoken_question_gets_a_spoken_answer(
    models: ModelStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert models.path("piper-joe").is_dir()
    config: Config = load_config(assignments=["server.port=0"])
    async with running(config) as server:
        argv = ["--say", "What is the capital of France?", "--url", server.url, "--out", str(tmp_path)]
        assert await run("call", *argv, "--wait-s", "60") == 0
    shown = capsys.readouterr().out.lower()
    assert "capital of france" in shown
    assert "paris" in shown
