"""Ticks measured before the first call, so that admission knows what it promises."""

from __future__ import annotations

import logging

import numpy as np

from duplex.clock import Clock
from duplex.errors import AgentFullError

from .admission import TickTimes
from .contract import Engine, SlotFrame, SlotSettings
from .prefill import SliceTimes

log = logging.getLogger("duplex.scheduler")


def calibrate(engine: Engine, times: TickTimes, slices: SliceTimes, clock: Clock, ticks: int) -> None:
    """Steps silence at every batch size, ``ticks`` times after one that is not counted, until a size takes longer than
    a frame: larger ones would too. The slots are copies of one, so that a default prompt is read once (in slices that
    grow, which measures them), and are gone afterwards."""
    keys: list[int] = []
    nothing = np.zeros(engine.frame_samples, np.float32)
    try:
        keys.append(engine.join(SlotSettings()))
        left, steps = engine.prefill(keys[0], 0), 1
        while left:
            began_s, steps = clock.now(), min(steps, left)
            left = engine.prefill(keys[0], steps)
            slices.observe(steps, clock.now() - began_s)
            steps *= 2
        fresh = engine.snapshot(keys[0])
        for size in engine.batch_sizes:
            while len(keys) < size:
                keys.append(engine.restore(fresh))
            frames = [SlotFrame(key, nothing) for key in keys]
            took_s = []
            for _ in range(ticks + 1):
                began_s = clock.now()
                engine.step(frames)
                took_s.append(clock.now() - began_s)
            times.calibrate(size, took_s[1:])
            log.info("a tick of %d takes %.1f ms", size, min(took_s[1:]) * 1e3)
            if min(took_s[1:]) > engine.frame_s:
                break
    except AgentFullError as full:
        log.warning("the device holds %d calls: %s", len(keys), full)
    finally:
        for key in reversed(keys):
            engine.leave(key)
