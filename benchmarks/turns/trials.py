"""How trials are carried out: one by one, side by side, or several turns on one call; broken and invalid ones too.

A trial is a coroutine of its number. What goes wrong with the line becomes a failed trial with a sentence, so
one bad call never ends a scenario. A trial that cannot be judged is repeated, at most half as often again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from duplex.benchmarks.turns.contract import Bench, Call, CallOptions, Trial
from duplex.errors import AgentFullError, DuplexError
from duplex.recording import Recording

One = Callable[[Bench, int], Awaitable[Trial]]
"""A trial by its number: 0, 1, 2 … The same number with the same seed is the same trial."""

PLAIN = CallOptions()
"""A call as the server makes it when nothing is asked for."""

_FULL_PATIENCE_S = 90.0


class CannotRunError(DuplexError):
    """This scenario needs something that this door, server or machine does not have. The message says what."""


def seed_of(bench: Bench, scenario: int, number: int) -> int:
    """The trial's own seed: by scenario and number alone, so that ``--only`` changes nothing."""
    return (bench.seed * 1000 + scenario) * 10_000 + number


def rng_of(bench: Bench, scenario: int, number: int) -> random.Random:
    return random.Random(seed_of(bench, scenario, number))


@asynccontextmanager
async def called(bench: Bench, options: CallOptions = PLAIN) -> AsyncIterator[Call]:
    """A call through the bench's door; waits for a place when the server is full."""
    waited_s = 0.0
    while True:
        try:
            context = bench.door.call(options)
            call = await context.__aenter__()
            break
        except AgentFullError as error:
            if waited_s >= _FULL_PATIENCE_S:
                raise
            await asyncio.sleep(error.retry_after_s)
            waited_s += error.retry_after_s
    try:
        yield call
    finally:
        await context.__aexit__(None, None, None)


async def recording_of(call: Call) -> Recording:
    """The recording of a call that is over, made in a thread: a long one is work, and other calls go on meanwhile."""
    return await asyncio.to_thread(call.recording)


async def attempt(bench: Bench, scenario: int, number: int, one: One) -> Trial:
    """The trial, or what became of it when the line broke or nothing came of a wait."""
    try:
        return await one(bench, number)
    except CannotRunError:
        raise
    except NotImplementedError as error:
        raise CannotRunError(f"{bench.door.name}: {error}") from error
    except (DuplexError, TimeoutError) as error:
        why = str(error) or "something that was waited for did not come in time"
        return Trial(scenario, seed_of(bench, scenario, number), f"trial {number + 1}", {"broken": 1.0}, failed=why)


async def one_by_one(bench: Bench, scenario: int, trials: int, one: One) -> AsyncIterator[Trial]:
    """``trials`` valid trials, or as many as half as many attempts again give."""
    valid = 0
    for number in range(trials + _spare(trials)):
        trial = await attempt(bench, scenario, number, one)
        yield trial
        valid += trial.valid
        if valid >= trials:
            return


async def side_by_side(bench: Bench, scenario: int, trials: int, one: One, width: int) -> AsyncIterator[Trial]:
    """The same, ``width`` calls at a time; for calls on which latency is not what is judged."""
    gate = asyncio.Semaphore(max(1, width))

    async def gated(number: int) -> Trial:
        async with gate:
            return await attempt(bench, scenario, number, one)

    tasks = [asyncio.create_task(gated(number)) for number in range(trials)]
    valid = 0
    try:
        for task in tasks:
            trial = await task
            valid += trial.valid
            yield trial
        for number in range(trials, trials + _spare(trials)):
            if valid >= trials:
                return
            trial = await attempt(bench, scenario, number, one)
            valid += trial.valid
            yield trial
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _spare(trials: int) -> int:
    return max(2, trials // 2)


def invalid(trial: Trial, why: str) -> Trial:
    """The same trial, not to be judged; ``why`` is kept for the reader."""
    return replace(trial, valid=False, failed=None, details={**trial.details, "invalid": why})
