"""Fifty hang-ups in mid-reply leave the cascade as they found it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from voices import Voice

from duplex.weights import ModelStore

pytestmark = [pytest.mark.models, pytest.mark.timeout(400)]


def test_fifty_hang_ups_in_mid_reply_leave_nothing_behind(models: ModelStore, tmp_path: Path) -> None:
    spoken = tmp_path / "hello.npy"
    np.save(spoken, Voice(models).say("Hello."))
    script = Path(__file__).with_name("hang_ups.py")
    # A process of its own: the memory of this one moves with every other test.
    done = subprocess.run(
        [sys.executable, str(script), str(models.root), str(spoken)],
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    before, after = result["before"], result["after"]
    assert after["tasks"] == before["tasks"]
    assert after["threads"] == before["threads"]
    assert after["native_threads"] <= before["native_threads"] + 2  # a pool that was not full yet
    assert after["sessions"] <= 1  # a waiting worker may still name the last one it worked for
    assert after["memory_mb"] - before["memory_mb"] < 15, result
