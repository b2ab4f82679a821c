"""Offers a load: starts the callers' processes, watches the server meanwhile, and collects what both say."""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx

from duplex.benchmarks.load.client import Plan
from duplex.benchmarks.load.figures import Load, Look
from duplex.benchmarks.server_process import ServerProcess, cpu_s
from duplex.benchmarks.turns.server_counts import metrics_url, read_metrics, weigh
from duplex.errors import DuplexError

CALLERS_A_PROCESS = 8
LOOK_EVERY_S = 1.0
_PATIENCE_S = 60.0  # after the load's own time, for the last calls to end and be judged
_LAG = "duplex_loop_lag_seconds_bucket"
_NAMES = ("duplex_underruns_total", "duplex_sessions_live")

Progress = Callable[[float, Sequence[Mapping[str, Any]], Look], None]
"""Is told every second: how long the load has gone on, what clients have told so far, the last look."""


async def offer(
    server: ServerProcess,
    plan: Plan,
    progress: Progress = lambda _s, _told, _look: None,
    *,
    per_process: int | None = None,
) -> Load:
    """``plan`` with its callers divided among processes; returns when the last has ended.

    Raises ``DuplexError`` if a client process fails: then this machine, not the server, is at its end.
    """
    told: list[Mapping[str, Any]] = []
    size = per_process or CALLERS_A_PROCESS
    began_s = time.perf_counter()
    async with httpx.AsyncClient(timeout=10.0, trust_env=False) as http:
        looks = [await look_at(server, http, 0.0)]
        used_before_s = _children_cpu_s()
        clients = [
            asyncio.create_task(_client(replace(plan, callers=min(size, plan.callers - first), first=first), told))
            for first in range(0, plan.callers, size)
        ]
        try:
            running = asyncio.gather(*clients)
            while not running.done():
                await asyncio.wait([running], timeout=LOOK_EVERY_S)
                looks.append(await look_at(server, http, time.perf_counter() - began_s))
                progress(looks[-1].at_s, told, looks[-1])
            await running
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
    clients_cpu_s = None if used_before_s is None else (_children_cpu_s() or 0.0) - used_before_s
    return Load(plan.callers, plan.doors, plan.hold_s, tuple(told), tuple(looks), clients_cpu_s)


async def _client(plan: Plan, told: list[Mapping[str, Any]]) -> None:
    """One process of callers; what it writes is appended to ``told``."""
    code = "from duplex.benchmarks.load.client import main; main()"
    # -P: the current directory may hold folders that shadow the packages of the same name.
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-c",
        code,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    said = asyncio.create_task(process.stderr.read())
    try:
        process.stdin.write(plan.to_json().encode() + b"\n")
        await process.stdin.drain()
        async with asyncio.timeout(plan.hold_s + plan.stagger_s + _PATIENCE_S):
            async for line in process.stdout:
                told.append(json.loads(line))
            status = await process.wait()
    except TimeoutError as error:
        raise DuplexError("A process of callers did not come to its end; this machine has too much to do.") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        errors = (await said).decode(errors="replace").strip()
    if status != 0:
        raise DuplexError(f"A process of callers ended with {status}. It said:\n{errors[-2000:]}")


async def look_at(server: ServerProcess, http: httpx.AsyncClient, at_s: float) -> Look:
    """The server now, as the system and its own metrics see it."""
    text = ""
    try:
        response = await http.get(metrics_url(server.url))
        text = response.text if response.status_code == httpx.codes.OK else ""
    except httpx.HTTPError:
        pass  # too busy to say: the next look counts from the last one that was answered
    counts = read_metrics(text, _NAMES)
    weight = weigh(server.pid)
    return Look(
        at_s,
        cpu_s(server.pid),
        None if weight is None else weight.memory_mb,
        counts.get("duplex_sessions_live"),
        counts.get("duplex_underruns_total"),
        read_buckets(text, _LAG),
    )


def read_buckets(text: str, name: str) -> dict[float, float] | None:
    """Cumulative counts by upper bound, of a histogram in Prometheus' text format; None if it is not there."""
    found: dict[float, float] = {}
    for line in text.splitlines():
        if line.startswith(f"{name}{{"):
            bound = line.partition('le="')[2].partition('"')[0]
            found[math.inf if bound == "+Inf" else float(bound)] = float(line.rpartition(" ")[2])
    return found or None


def _children_cpu_s() -> float | None:
    """Of the processes that have ended and were waited for."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
