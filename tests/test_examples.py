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

pytestmark = [pytest.mark.models, pytest.mark.timeout(300)]

EXAMPLES = Path(__file__).parents[1] / "examples"


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
