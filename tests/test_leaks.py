"""Fifty hang-ups in mid-reply leave the cascade as they found it."""

from __future__ import annotations

import asyncio
import gc
import threading
from pathlib import Path

import numpy as np
import pytest
from voices import Voice

from duplex.agent import AgentSettings
from duplex.clock import MonotonicClock
from duplex.config import SessionConfig
from duplex.events import ReplyStarted
from duplex.hub import SessionHub
from duplex.pcm_line import PcmLine
from duplex.registry import create_agent
from duplex.session import Session
from duplex.weights import ModelStore

pytestmark = [pytest.mark.models, pytest.mark.timeout(400)]


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


async def test_fifty_hang_ups_in_mid_reply_leave_nothing_behind(models: ModelStore) -> None:
    question = Voice(models).say("Hello.")
    hub = SessionHub(
        create_agent("cascade", {"models_dir": str(models.root)}), MonotonicClock(), SessionConfig(), max_sessions=4
    )
    await hub.start()

    opened: set[str] = set()

    async def call() -> None:
        replying = asyncio.Event()
        line = PcmLine(lambda samples: None, lambda event: replying.set() if isinstance(event, ReplyStarted) else None)
        session = hub.open(line, AgentSettings())
        opened.add(session.id)
        line.hear(question.astype(np.float32))
        await asyncio.wait_for(replying.wait(), 60)
        line.hang_up()
        await asyncio.gather(*[task for task in asyncio.all_tasks() if task.get_name() == session.id])

    try:
        await call()
        tasks, threads = len(asyncio.all_tasks()), threading.active_count()
        for _ in range(25):  # allocators and caches fill up
            await call()
        gc.collect()
        memory_mb = resident_mb()
        for _ in range(25):
            await call()
        gc.collect()
        await asyncio.sleep(0.1)
        assert len(asyncio.all_tasks()) == tasks
        assert threading.active_count() <= threads
        # A waiting worker may still name the last session it worked for.
        assert sum(isinstance(thing, Session) and thing.id in opened for thing in gc.get_objects()) <= 1
        assert resident_mb() - memory_mb < 15
    finally:
        await hub.close()
