"""Nothing that a call computes wakes a pool of threads: OpenBLAS's spin for 100 ms on the cores that others need."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_OTHERS_MS = """
import os, threading, time
import numpy as np
def others_ms():
    own = threading.get_native_id()
    spent = 0
    for task in os.listdir("/proc/self/task"):
        if int(task) != own:
            with open(f"/proc/self/task/{task}/schedstat") as file:
                spent += int(file.read().split()[0])
    return spent / 1e6
noise = np.random.default_rng(1).normal(0.0, 0.1, 160_000).astype(np.float32)
time.sleep(0.3)  # what the import woke
before = others_ms()
"""

_WORK = {
    "end of turn": "from duplex.thinker_talker.smart_turn import log_mel\nlog_mel(noise[:128_000])",
    "echo": """
from duplex.thinker_talker.echo_score import EchoScore
score = EchoScore()
for at in range(1024, 100_000, 512):
    score.push(noise[at - 800 : at - 288], noise[at : at + 512])
assert score.delay_ms is not None
""",
    "concealment": "from duplex.concealment import pitch_lag\nfor at in range(0, 9000, 900): pitch_lag(noise[at:])",
}


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="needs Linux's count of a thread's time")
@pytest.mark.parametrize("work", _WORK)
def test_no_other_thread_has_worked(work: str) -> None:
    script = f"{_OTHERS_MS}\n{_WORK[work]}\ntime.sleep(0.3)\nprint(others_ms() - before)"
    several = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    told = subprocess.run([sys.executable, "-c", script], env=several, capture_output=True, text=True, check=True)
    assert float(told.stdout) < 5.0
