"""Scenario 24: half an hour of turns of every kind, in three calls that say the same things in the same order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial

from duplex.benchmarks.turns.contract import Bench, Call, CallOptions, Trial
from duplex.benchmarks.turns.material import Material
from duplex.benchmarks.turns.play import Build, Said, Sayable, in_mid_speech, let_it_answer, say, several
from duplex.benchmarks.turns.scenarios_turns import judge_turn
from duplex.benchmarks.turns.server_counts import weigh
from duplex.benchmarks.turns.sizes import sizes_of
from duplex.benchmarks.turns.statistics import percentile
from duplex.benchmarks.turns.trials import called, recording_of, rng_of, seed_of

PARTS = 3
_ROUND = 48
_EVERY = 4  # one turn in so many has something said over its answer


async def mixed_turns(bench: Bench, trials: int) -> AsyncIterator[Trial]:
    """24: three calls of a third of the time each. ``trials`` is only what is hoped for; time decides.

    Saying the same three times makes the thirds comparable: what differs is the server's age.
    """
    part_s = sizes_of(bench).mixed_s / PARTS
    waits: list[list[float]] = []
    memory_mb: list[float] = []
    turns = await several(partial(_turn_of, bench.material), _ROUND)
    for part in range(PARTS):
        found: list[float] = []
        said: list[Said] = []
        rng = rng_of(bench, 24, 0)  # the same in each part
        async with called(bench, CallOptions(max_call_s=part_s + 120.0)) as call:
            while call.now_ms < part_s * 1000.0:
                await call.wait_ms(rng.uniform(600.0, 1200.0))
                said.append(await _turn(call, turns, len(said)))
        recording = await recording_of(call)
        ends = [turn.start_ms for turn in said[1:]] + [recording.duration_ms]
        for turn, until_ms in zip(said, ends, strict=True):
            placed = replace(turn, number=part * 1000 + turn.number, until_ms=min(turn.until_ms, until_ms))
            trial = judge_turn(24, bench, recording, placed)
            found += [trial.values["voice_to_voice_ms"]] if "voice_to_voice_ms" in trial.values else []
            yield trial
        waits.append(found)
        weight = weigh(bench.server_pid)
        memory_mb += [weight.memory_mb] if weight is not None else []
    yield Trial(24, seed_of(bench, 24, 9999), "the last third against the first", _compared(waits, memory_mb))


Turn = tuple[Sayable, Sayable | None]
"""What is said, and what is said over the answer, if anything."""


def _turn_of(material: Material, number: int) -> Turn:
    """One of the round of turns that is repeated until the time is over."""
    said: tuple[Build, ...] = (material.question, material.follow_up, material.paused, material.digits)
    over: tuple[Build, ...] = (material.backchannel, material.interruption)
    with_over = number % _EVERY == _EVERY - 1
    return said[(number + number // len(said)) % len(said)](number // len(said)), over[number // _EVERY % 2](
        number
    ) if with_over else None


async def _turn(call: Call, turns: Sequence[Turn], number: int) -> Said:
    """One turn: a plain question, one with a pause, digits; now and then with something said over the answer."""
    what, over = turns[number % len(turns)]
    start_ms = call.now_ms
    voiced = await say(call, what)
    until_ms = float("inf")
    if over is not None:
        try:
            await call.wait_audible(timeout_s=8.0)
            if await in_mid_speech(call, 700.0):
                until_ms = call.now_ms  # what is said from here on is not part of the turn
                await let_it_answer(call, (await say(call, over)).end_ms)
        except TimeoutError:
            pass  # not answered; the verdict says so
    await let_it_answer(call, voiced.end_ms)
    return Said(number, what, start_ms, voiced, until_ms)


def _compared(waits: Sequence[Sequence[float]], memory_mb: Sequence[float]) -> dict[str, float]:
    """``p95_drift``: by what share the p95 of voice-to-voice grew; ``memory_growth_mb``: since the first third."""
    values: dict[str, float] = {}
    if all(len(found) >= 5 for found in waits):
        values["p95_drift"] = percentile(waits[-1], 95) / percentile(waits[0], 95) - 1.0
    if len(memory_mb) == PARTS:
        values["memory_growth_mb"] = memory_mb[-1] - memory_mb[0]
    return values
