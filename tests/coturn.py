"""A TURN server of our own, for tests: coturn on 127.0.0.1, with a secret, for as long as a test takes."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SECRET = "a-secret-of-the-test-only"
_UP_WITHIN_S = 20.0


@dataclass(frozen=True)
class Coturn:
    """``log``: what it has written so far."""

    port: int
    log: Path

    @property
    def stun(self) -> str:
        return f"stun:127.0.0.1:{self.port}"

    @property
    def turn(self) -> str:
        return f"turn:127.0.0.1:{self.port}"


@contextmanager
def coturn(tmp_path: Path) -> Iterator[Coturn]:
    """Relays to anybody on this machine, for those whose credentials come of ``SECRET``."""
    program = shutil.which("turnserver")
    assert program, "Install coturn (make turnserver) to run this test."
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "coturn.log"
    flags = [
        "-n",  # no configuration of this machine's
        "--listening-ip=127.0.0.1",
        f"--listening-port={port}",
        "--relay-ip=127.0.0.1",
        "--allow-loopback-peers",
        "--realm=duplex.test",
        "--use-auth-secret",
        f"--static-auth-secret={SECRET}",
        "--no-tls",
        "--no-dtls",
        "--no-cli",
        "--verbose",
        f"--userdb={tmp_path / 'turn.db'}",
        f"--pidfile={tmp_path / 'turn.pid'}",
        "--log-file=stdout",
    ]
    with log.open("w") as out:
        process = subprocess.Popen([program, *flags], stdout=out, stderr=subprocess.STDOUT, cwd=tmp_path)
    try:
        _wait_up(process, port, log)
        yield Coturn(port, log)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_up(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline_s = time.monotonic() + _UP_WITHIN_S
    while time.monotonic() < deadline_s:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("coturn did not come up:\n" + log.read_text())
