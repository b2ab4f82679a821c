"""The examples do what they say, run the way a reader would run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from voices import Voice

from duplex.weights import ModelStore

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.models
@pytest.mark.timeout(300)
@pytest.mark.parametrize("suffix", [".wav", ".pcm"])
def test_embed_hears_a_question_and_writes_a_spoken_answer(models: ModelStore, tmp_path: Path, suffix: str) -> None:
    voice = Voice(models)
    question, answer = tmp_path / f"question{suffix}", tmp_path / f"answer{suffix}"
    sound = voice.say("What is the capital of France?")
    if suffix == ".pcm":
        question.write_bytes((sound * 32767).astype("<i2").tobytes())
    else:
        stereo_44k = np.repeat(soxr.resample(sound, 24_000, 44_100)[:, None], 2, axis=1)
        soundfile.write(question, stereo_44k, 44_100)
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "embed.py"), str(question), str(answer)],
        env=os.environ | {"DUPLEX_MODELS_DIR": str(models.root)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "capital of france" in done.stdout.lower()
    raw = np.frombuffer(answer.read_bytes(), "<i2") / 32768.0 if suffix == ".pcm" else soundfile.read(answer)[0]
    assert "paris" in voice.write_down(raw.astype(np.float32)).lower()


def run_bot_tests(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The bot's tests in ``folder``, in a process of their own, with no plugin but the one they are about."""
    plugin = ["-p", "duplex.pytest_plugin", "-p", "no:cacheprovider"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *plugin, "--rootdir", str(folder), "test_bot.py", *arguments],
        cwd=folder,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture
def bot(tmp_path: Path) -> Path:
    """The bot and its tests, copied the way a reader would copy them."""
    for name in ("bot.py", "test_bot.py"):
        (tmp_path / name).write_text((EXAMPLES / name).read_text("utf-8"), "utf-8")
    return tmp_path


def test_the_bots_tests_pass_and_guard_its_latency(bot: Path) -> None:
    made = run_bot_tests(bot, "--duplex-baseline", "bot.json", "--duplex-update-baseline")
    assert made.returncode == 0, made.stdout
    assert "6 passed" in made.stdout
    kept = run_bot_tests(bot, "--duplex-baseline", "bot.json")
    assert kept.returncode == 0, kept.stdout
    text = (bot / "test_bot.py").read_text("utf-8")
    (bot / "test_bot.py").write_text(text.replace("talker_ms=70", "talker_ms=150"), "utf-8")
    slower = run_bot_tests(bot, "--duplex-baseline", "bot.json")
    assert slower.returncode == 1
    assert "6 passed" in slower.stdout
    assert [line.split()[0] for line in slower.stdout.splitlines() if "got slower" in line] == ["talker"]


@pytest.mark.parametrize(
    ("right", "wrong", "test"),
    [
        ("MENU.split()[len(told[-1].text.split()) :]", "MENU.split()", "test_remembers_only_what_was_heard"),
        ("return MENU if", 'return "No." if', "test_answers_within_its_budget"),
    ],
)
def test_the_bots_tests_notice_a_bot_that_misbehaves(bot: Path, right: str, wrong: str, test: str) -> None:
    text = (bot / "bot.py").read_text("utf-8")
    assert right in text
    (bot / "bot.py").write_text(text.replace(right, wrong), "utf-8")
    done = run_bot_tests(bot)
    assert done.returncode == 1
    assert f"FAILED test_bot.py::{test}" in done.stdout
