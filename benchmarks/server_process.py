"""The server under test as a process of its own: started, waited for, weighed and stopped.

CPU and memory are read from ``/proc`` (Linux); elsewhere they are None.
"""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from duplex.errors import DuplexError

_POLL_S = 0.02
_TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """``pid`` is None for a server that was not started here. ``ready_s``: from start to ready."""

    url: str
    pid: int | None
    ready_s: float | None = None


@contextmanager
def started_server(arguments: Sequence[str] = (), *, ready_timeout_s: float = 120.0) -> Iterator[ServerProcess]:
    """``duplex serve`` on a free port of this machine, until the block ends.

    Raises ``DuplexError`` with the end of the server's output if it does not get ready.
    """
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    serve = "import sys; from duplex.cli import main; sys.exit(main(sys.argv[1:]))"
    # -P: the current directory may hold folders that shadow the packages of the same name.
    command = [sys.executable, "-P", "-c", serve, "serve", "--host", "127.0.0.1", "--port", str(port), *arguments]
    with tempfile.TemporaryFile() as output:
        began_s = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            while not is_ready(url):
                if process.poll() is not None or time.perf_counter() - began_s > ready_timeout_s:
                    output.seek(0)
                    tail = output.read().decode(errors="replace").strip()[-2000:]
                    how = "ended" if process.poll() is not None else f"was not ready within {ready_timeout_s:g} s"
                    raise DuplexError(f"The server {how}. It said:\n{tail}")
                time.sleep(_POLL_S)
            yield ServerProcess(url, process.pid, time.perf_counter() - began_s)
        finally:
            end(process)


def is_ready(url: str) -> bool:
    """Whether ``/readyz`` says so."""
    try:
        return httpx.get(f"{url}/readyz", timeout=2.0, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def cpu_s(pid: int | None) -> float | None:
    """Processor time used so far by a process and its threads, seconds."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    except (OSError, IndexError, ValueError):
        return None


def peak_memory_mb(pid: int | None) -> float | None:
    """The most memory a process has had resident, in units of 10**6 bytes."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except (OSError, IndexError, ValueError):
        pass
    return None


class CpuMeter:
    """Share of one core used between two looks, in percent."""

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._since = (time.perf_counter(), cpu_s(pid))

    def percent(self) -> float | None:
        began_s, began_cpu_s = self._since
        now_s, now_cpu_s = time.perf_counter(), cpu_s(self._pid)
        if began_cpu_s is None or now_cpu_s is None or now_s <= began_s:
            return None
        return 100.0 * (now_cpu_s - began_cpu_s) / (now_s - began_s)


def machine() -> Mapping[str, Any]:
    """What the figures were measured on, and how busy it was."""
    model = platform.processor() or platform.machine()
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip()
    except (OSError, IndexError):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": model,
        "cores": cores,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def end(process: subprocess.Popen[bytes]) -> None:
    """Asks a process that was started here to end, and after 10 s makes it."""
    process.terminate()
    try:
        process.wait(10.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
