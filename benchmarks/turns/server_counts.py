"""What a server weighs and counts: its process as the system sees it, its metrics as it tells them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from duplex.benchmarks.turns.contract import Bench
from duplex.benchmarks.turns.sizes import SuiteBench


@dataclass(frozen=True, slots=True)
class ProcessWeight:
    """Of one process now: resident memory in units of 10**6 bytes, threads, and open files and sockets."""

    memory_mb: float
    threads: int
    files: int


def weigh(pid: int | None) -> ProcessWeight | None:
    """None where ``/proc`` does not say (another system, another user, a process that is gone)."""
    try:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        return ProcessWeight(
            memory_mb=int(status["VmRSS"].split()[0]) * 1024 / 1e6,
            threads=int(status["Threads"]),
            files=len(os.listdir(f"/proc/{pid}/fd")),
        )
    except (OSError, KeyError, ValueError):
        return None


async def counted(bench: Bench, *names: str) -> dict[str, float]:
    """The server's metrics of these names, labels added up; those it does not tell are left out."""
    url = bench.server_url if isinstance(bench, SuiteBench) else None
    if url is None:
        return {}
    try:
        async with httpx.AsyncClient(timeout=5.0, trust_env=False) as http:
            response = await http.get(metrics_url(url))
    except httpx.HTTPError:
        return {}
    return read_metrics(response.text, names) if response.status_code == httpx.codes.OK else {}


def metrics_url(url: str) -> str:
    """Where the server at ``url`` (any of its addresses, HTTP or WebSocket) tells its metrics."""
    parts = urlsplit(url)
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    return f"{scheme}://{parts.netloc}/metrics"


def read_metrics(text: str, names: tuple[str, ...]) -> dict[str, float]:
    """Sums by name from Prometheus' text format."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        name = name.partition("{")[0]
        if name in names:
            found[name] = found.get(name, 0.0) + float(value)
    return found
