"""A call over a worse line than the door's own: what the user says goes through it before it leaves.

The recording keeps what the person said, as it keeps it without a simulated echo: every verdict is by the moments at
which somebody spoke, and a quiet line is no reason to hear less of them. What the agent says is not changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import soxr

from duplex.benchmarks.narrowband import Line
from duplex.benchmarks.turns.contract import Call, CallOptions, Door
from duplex.benchmarks.turns.trials import PLAIN
from duplex.frames import Samples
from duplex.recording import RecordedEvent, Recording, Span


@dataclass(frozen=True, slots=True)
class LineDoor:
    """A door whose calls go over ``line``."""

    inner: Door
    line: Line

    @property
    def name(self) -> str:
        return self.inner.name

    def call(self, options: CallOptions = PLAIN) -> AbstractAsyncContextManager[Call]:
        return self.inner.call(options) if self.line.transparent else self._call(options)

    @asynccontextmanager
    async def _call(self, options: CallOptions) -> AsyncIterator[Call]:
        async with self.inner.call(options) as call:
            # In this process the clock may be a virtual one, which does not wait for threads.
            yield LineCall(call, self.line, in_thread=self.inner.name != "in-process")


class LineCall:
    """A call whose sound goes through ``line``. Implements :class:`duplex.benchmarks.turns.contract.Call`."""

    def __init__(self, inner: Call, line: Line, *, in_thread: bool = True) -> None:
        self._inner, self._line, self._in_thread = inner, line, in_thread
        self._said: list[tuple[Span, Samples]] = []

    # --- what is different ------------------------------------------------------------------------------

    async def play(self, samples: Samples) -> Span:
        through = self._line.through
        wire = await asyncio.to_thread(through, samples) if self._in_thread else through(samples)
        span = await self._inner.play(wire)
        self._said.append((span, samples))
        return span

    def recording(self) -> Recording:
        """As it is at the client, with what was said on the left instead of what the line made of it."""
        recording = self._inner.recording()
        stereo = recording.stereo.copy()
        for span, samples in self._said:
            _put(stereo[:, 0], span, samples, recording.sample_rate_hz)
        return replace(recording, stereo=stereo)

    # --- what is the same -------------------------------------------------------------------------------

    @property
    def now_ms(self) -> float:
        return self._inner.now_ms

    @property
    def events(self) -> Sequence[RecordedEvent]:
        return self._inner.events

    @property
    def last_audible_ms(self) -> float | None:
        return self._inner.last_audible_ms

    def send(self, event: Mapping[str, Any]) -> None:
        self._inner.send(event)

    async def wait_for(
        self, kind: str, *, timeout_s: float, where: Callable[[Mapping[str, Any]], bool] = lambda _event: True
    ) -> RecordedEvent:
        return await self._inner.wait_for(kind, timeout_s=timeout_s, where=where)

    async def wait_audible(self, *, timeout_s: float) -> float:
        return await self._inner.wait_audible(timeout_s=timeout_s)

    async def wait_quiet(self, quiet_ms: float, *, timeout_s: float) -> None:
        await self._inner.wait_quiet(quiet_ms, timeout_s=timeout_s)

    async def wait_settled(self, after_ms: float, *, answer_timeout_s: float, quiet_ms: float = 800.0) -> bool:
        return await self._inner.wait_settled(after_ms, answer_timeout_s=answer_timeout_s, quiet_ms=quiet_ms)

    async def wait_ms(self, duration_ms: float) -> None:
        await self._inner.wait_ms(duration_ms)

    async def outage(self, duration_s: float) -> None:
        await self._inner.outage(duration_s)


def _put(left: Samples, span: Span, samples: Samples, rate_hz: int) -> None:
    """Lays ``samples`` where ``span`` is; on a skewed sound clock it is not as long as they are."""
    n = round((span.end_ms - span.start_ms) * rate_hz / 1000.0)
    if n != len(samples):
        samples = soxr.resample(samples, len(samples), n).astype(np.float32)
    start = round(span.start_ms * rate_hz / 1000.0)
    until = min(start + n, start + len(samples), len(left))
    if until > start:
        left[start:until] = samples[: until - start]
