"""Hangs up in mid-reply again and again, in a process of its own, and prints what is left: a JSON line.

python tests/hang_ups.py MODELS_DIR SPOKEN.npy
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import threading
from pathlib import Path

import numpy as np

from duplex.agent import AgentSettings
from duplex.allocator import steady_heap
from duplex.clock import MonotonicClock
from duplex.config import SessionConfig
from duplex.events import ReplyStarted
from duplex.frames import Samples
from duplex.hub import SessionHub
from duplex.pcm_line import PcmLine
from duplex.registry import create_agent
from duplex.session import Session


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def native_threads() -> int:
    """Those of libraries too."""
    return len(list(Path("/proc/self/task").iterdir()))


async def left() -> dict[str, float]:
    """What there is now, once the thinkers of calls that are over had the moment they need to end."""
    for thread in [thread for thread in threading.enumerate() if thread.name.startswith("thinker-")]:
        await asyncio.to_thread(thread.join, 20)
    gc.collect()
    return {
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "native_threads": native_threads(),
        "sessions": sum(isinstance(thing, Session) for thing in gc.get_objects()),
        "memory_mb": resident_mb(),
    }


async def call(hub: SessionHub, spoken: Samples) -> None:
    replying = asyncio.Event()
    line = PcmLine(lambda samples: None, lambda event: replying.set() if isinstance(event, ReplyStarted) else None)
    session = hub.open(line, AgentSettings())
    line.hear(spoken)
    await asyncio.wait_for(replying.wait(), 60)
    line.hang_up()
    await asyncio.gather(*[task for task in asyncio.all_tasks() if task.get_name() == session.id])


async def main(models_dir: str, spoken: Samples) -> None:
    steady_heap()  # as a server has them
    agent = create_agent("cascade", {"models_dir": models_dir})
    async with SessionHub(agent, MonotonicClock(), SessionConfig(), max_sessions=4) as hub:
        for _ in range(25):  # allocators and caches fill up: measured, flat from about there
            await call(hub, spoken)
        before = await left()
        for _ in range(50):
            await call(hub, spoken)
        after = await left()
        sys.stdout.write(json.dumps({"before": before, "after": after}) + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], np.load(sys.argv[2])))
