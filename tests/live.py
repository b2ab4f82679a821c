"""A real server in a process of its own, the way a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

READY_WITHIN_S = 150  # on a machine that does many things at once


@contextmanager
def duplex_serve(*flags: str, models_dir: Path) -> Iterator[str]:
    """Runs ``duplex serve`` on a free port until it is ready; yields its address; stops it with SIGTERM."""
    command = Path(sys.executable).with_name("duplex")
    process = subprocess.Popen(
        [str(command), "serve", "--port", "0", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"DUPLEX_MODELS_DIR": str(models_dir), "NO_COLOR": "1"},
    )
    lines: list[str] = []
    found: list[str] = []
    ready = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if match := re.search(r"Open (http://\S+)", line):
                found.append(match[1])
                ready.set()
        ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        ready.wait(READY_WITHIN_S)
        assert found, "the server did not become ready:\n" + "".join(lines)
        yield found[0]
    finally:
        process.terminate()
        began_s = time.monotonic()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError("the server did not stop within 20 s of SIGTERM:\n" + "".join(lines)) from None
        reader.join(5)
        stopped_s = time.monotonic() - began_s
        assert process.returncode == 0, f"exit status {process.returncode} after {stopped_s:.0f} s:\n" + "".join(lines)
        assert "Traceback" not in "".join(lines), "".join(lines)
