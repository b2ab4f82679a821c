"""The measurements themselves: our engine back to back and paced by the scheduler, and the package's loop."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from duplex.benchmarks.engine.measures import DEADLINE_S, Spread
from duplex.benchmarks.engine.stock import StockLoop
from duplex.errors import AgentError, DuplexError
from duplex.scheduler import Delivery, Ended, Engine, Scheduler, SchedulerOptions, SlotFrame, SlotSettings, Stepped
from duplex.thinker_talker.native.device.device_engine import DeviceEngine

MODEL_PARTS = ("encode", "temporal", "depth", "decode")
_WARM_UP_STEPS = 6
_PROMPT_STEPS = 64
_EMPTY_LIMIT_S = 10.0
_OPEN_EVERY_S = 1.3 * DEADLINE_S  # no multiple of a frame, so that calls do not talk in step


@dataclass(slots=True)
class Steps:
    """Wall time of each step, and of its parts."""

    took_s: list[float] = field(default_factory=list)
    parts_s: list[dict[str, float]] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        names = self.parts_s[0] if self.parts_s else {}
        return {name: statistics.median(parts.get(name, 0.0) for parts in self.parts_s) for name in names}


def speech(sessions: int, frames: int, frame_samples: int, seed: int = 1) -> npt.NDArray[np.float32]:
    """Noise in bursts, float32[frames, sessions, samples]: time does not depend on what is said."""
    rng = np.random.default_rng(seed)
    loud = rng.random((frames, sessions, 1)) < 0.5
    return (0.1 * rng.standard_normal((frames, sessions, frame_samples)) * loud).astype(np.float32)


@contextmanager
def no_collection() -> Iterator[None]:
    """Without the garbage collector's pauses, as a server has it once it is up (``gc.freeze``)."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class EngineRun:
    """``sessions`` calls on a started engine, stepped back to back. ``full_context``: each as after minutes, with all
    its keys and values valid; a fresh call reads fewer."""

    def __init__(self, engine: DeviceEngine, sessions: int, *, full_context: bool = True) -> None:
        self.engine = engine
        self.keys = []
        try:
            for _ in range(sessions):
                self.keys.append(joined(engine))
        except BaseException:
            self.close()
            raise
        if full_context:
            memory = engine.states[0].tensors()
            with torch.inference_mode():
                # Rotary positions and the ring follow from the step alone; what the places hold costs nothing to say.
                memory["step"][:sessions].fill_(engine.parts.backbone.kv_layout.capacity)  # type: ignore[attr-defined]
        self._sound = speech(sessions, 16, engine.frame_samples)
        self._at = 0
        self.step(_WARM_UP_STEPS)

    def step(self, n_steps: int) -> Steps:
        steps = Steps()
        for _ in range(n_steps):
            frames = [SlotFrame(key, samples) for key, samples in zip(self.keys, self._next(), strict=True)]
            began_s = time.perf_counter()
            results, times = self.engine.step(frames)
            steps.took_s.append(time.perf_counter() - began_s)
            steps.parts_s.append(dict(times.parts_s))
            for result in results:
                if result.error is not None:
                    raise result.error
        return steps

    def _next(self) -> npt.NDArray[np.float32]:
        self._at += 1
        found: npt.NDArray[np.float32] = self._sound[self._at % len(self._sound)]
        return found

    def close(self) -> None:
        for key in reversed(self.keys):
            self.engine.leave(key)
        self.keys = []


def joined(engine: DeviceEngine) -> int:
    key = engine.join(SlotSettings())
    while engine.prefill(key, _PROMPT_STEPS):
        pass
    return key


class StockRun:
    """The package's loop at a batch size, back to back."""

    def __init__(self, loop: StockLoop, batch_size: int, frame_samples: int) -> None:
        self._loop = loop
        self._sound = speech(batch_size, 16, frame_samples)
        self._at = 0
        self.step(_WARM_UP_STEPS)

    def step(self, n_steps: int) -> Steps:
        steps = Steps()
        for _ in range(n_steps):
            self._at += 1
            samples = self._sound[self._at % len(self._sound)]
            began_s = time.perf_counter()
            _, parts_s = self._loop.step(samples)
            steps.took_s.append(time.perf_counter() - began_s)
            if parts_s:
                steps.parts_s.append(parts_s)
        return steps

    def close(self) -> None:
        self._loop.close()


@dataclass(frozen=True, slots=True)
class Paced:
    """Through the scheduler, a frame each 80 ms. ``overhead``: a tick less the model's parts; ``tick``: all of it;
    ``missed``: share of results past their deadline; ``first_packet_s``: for each call that was opened."""

    overhead: Spread
    tick: Spread
    missed: float
    first_packet_s: Sequence[float]


class _AlreadyStarted:
    """An engine whose start and end are somebody else's."""

    def __init__(self, engine: DeviceEngine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def start(self) -> None: ...

    def close(self) -> None: ...


class PacedRun:
    """A scheduler over a started engine without calls; they are opened, fed and ended by :meth:`run`."""

    def __init__(self, engine: DeviceEngine) -> None:
        options = SchedulerOptions(calibrate_ticks=3, max_utilisation=1.0, memory_reserve_mb=0.0)
        self._scheduler = Scheduler(cast(Engine, _AlreadyStarted(engine)), options)
        self._engine = engine
        self._frame_samples = engine.frame_samples
        self._scheduler.start()

    def run(self, sessions: int, frames: int) -> Paced:
        """Calls are opened one after the other while those that are in go on. Then all talk for ``frames`` frames.
        Raises the error of a call that ended."""
        calls: list[_Caller] = []
        sound = speech(1, 16, self._frame_samples)[:, 0]
        try:
            opening_until_s = time.perf_counter()
            while len(calls) < sessions:
                calls.append(_Caller(self._scheduler, sound))
                opening_until_s += _OPEN_EVERY_S
                _talk(calls, opening_until_s)
            _talk(calls, time.perf_counter() + 3 * DEADLINE_S)
            log = self._scheduler.deadlines
            last_s = max((record.began_s for record in log.records()), default=0.0)
            results, late = log.results, log.late_results
            _talk(calls, time.perf_counter() + frames * DEADLINE_S)
            records = [record for record in log.records() if record.began_s > last_s and record.frames]
            done, lates = log.results - results, log.late_results - late
        finally:
            for call in calls:
                call.session.leave()
            _wait_until_empty(self._engine)
        for call in calls:
            if call.error is not None:
                raise call.error
        overhead = [r.total_s - sum(r.parts_s.get(part, 0.0) for part in MODEL_PARTS) for r in records]
        return Paced(
            Spread.of(overhead),
            Spread.of([r.total_s for r in records]),
            lates / max(1, done),
            [call.first_packet_s for call in calls if call.first_packet_s is not None],
        )

    def close(self) -> None:
        self._scheduler.close()


class _Caller:
    """Sends a frame each 80 ms, from 80 ms after it connected on; notes when the first sound comes back."""

    def __init__(self, scheduler: Scheduler, sound: npt.NDArray[np.float32]) -> None:
        self._sound = sound
        self.sent = 0
        self.error: DuplexError | None = None
        self.first_packet_s: float | None = None
        self._connected_s = time.perf_counter()
        self.session = scheduler.open(SlotSettings(), self._told)

    @property
    def due_s(self) -> float:
        return self._connected_s + (self.sent + 1) * DEADLINE_S

    def send(self) -> None:
        self.session.submit(self._sound[self.sent % len(self._sound)])
        self.sent += 1

    def _told(self, delivery: Delivery) -> None:
        if isinstance(delivery, Ended):
            self.error = delivery.error
        elif isinstance(delivery, Stepped):
            self.error = self.error or delivery.result.error
            if self.first_packet_s is None and delivery.result.samples is not None:
                self.first_packet_s = time.perf_counter() - self._connected_s


def _wait_until_empty(engine: DeviceEngine) -> None:
    """Slots are freed on the scheduler's thread, soon after they are left; until then the engine is not ours."""
    until_s = time.perf_counter() + _EMPTY_LIMIT_S
    while engine.live:
        if time.perf_counter() > until_s:
            raise AgentError("The scheduler did not free the slots of calls that left.")
        time.sleep(0.001)


def _talk(calls: Sequence[_Caller], until_s: float) -> None:
    """Sends every caller's frames when they are due."""
    while True:
        first = min(calls, key=lambda call: call.due_s)
        wait_s = min(first.due_s, until_s) - time.perf_counter()
        if wait_s > 0:
            time.sleep(wait_s)
        if first.due_s > until_s:
            return
        first.send()
