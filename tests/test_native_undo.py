"""A tick that fails halfway is taken back, over the tiny Moshi and Mimi: what comes next is as if it had not been."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from test_native_engine_moshi import joined, make_parts, same, started, voice

from duplex.scheduler.contract import SlotFrame, SlotResult, Undoing
from duplex.scheduler.isolation import step_in_halves
from duplex.thinker_talker.native.device.device_engine import DeviceEngine
from duplex.thinker_talker.native.device.part_times import PartTimes

PARTS = ("encode", "temporal", "depth", "decode")
SHORT = {"context": 9, "sinks": 2}  # so that the ring is overwritten many times, and Mimi's (50) as well
N_FRAMES = 40


class BreaksError(Exception):
    pass


def breaking(engine: DeviceEngine, when: Callable[[int], str | None]) -> None:
    """From now on a tick raises after the part that ``when`` names for its batch size, if it names one."""
    lane = engine._tick
    assert lane is not None

    def run(size: int, times: PartTimes) -> None:
        last = when(size)
        for runner in lane._runners:
            runner.run(size)
            part = runner.name.rpartition(".")[2]
            times.end_of(part)
            if part == last:
                raise BreaksError(f"after {part}")

    lane.run = run  # type: ignore[method-assign]


def tick(engine: DeviceEngine, keys: Sequence[int], sounds: Sequence[np.ndarray], k: int) -> list[SlotResult]:
    return list(engine.step([SlotFrame(key, sound[k]) for key, sound in zip(keys, sounds, strict=True)])[0])


@pytest.fixture(scope="module")
def undisturbed() -> list[list[SlotResult]]:
    """Three calls, tick by tick."""
    torch.set_num_threads(1)
    engine = started(make_parts(**SHORT), 4)
    keys, sounds = [joined(engine, seed) for seed in (1, 2, 3)], [voice(call, N_FRAMES) for call in (1, 2, 3)]
    return [tick(engine, keys, sounds, k) for k in range(N_FRAMES)]


@pytest.mark.parametrize("recorded", [False, True], ids=["eager", "recorded graphs"])
def test_whatever_part_fails_and_with_whatever_sound_nothing_of_it_is_left(
    undisturbed: list[list[SlotResult]], recorded: bool
) -> None:
    engine = started(make_parts(**SHORT), 4, recorded=recorded)
    assert isinstance(engine, Undoing)
    keys, sounds = [joined(engine, seed) for seed in (1, 2, 3)], [voice(call, N_FRAMES) for call in (1, 2, 3)]
    other = [voice(call, N_FRAMES) for call in (7, 8, 9)]
    last: list[str | None] = [None]
    breaking(engine, lambda size: last[0])
    for k in range(N_FRAMES):
        last[0] = PARTS[k % len(PARTS)]
        with pytest.raises(BreaksError, match=f"after {last[0]}"):
            tick(engine, keys[k % 3 :], other[k % 3 :], k)
        engine.undo()
        last[0] = None
        same(tick(engine, keys, sounds, k), undisturbed[k])
        engine.undo()  # the tick ended, so this does nothing


def test_one_slot_makes_the_tick_fail_and_the_others_tokens_are_what_they_would_have_been(
    undisturbed: list[list[SlotResult]],
) -> None:
    engine = started(make_parts(**SHORT), 4)
    keys, sounds = [joined(engine, seed) for seed in (1, 2, 3)], [voice(call, N_FRAMES) for call in (1, 2, 3)]
    lane = engine._tick
    assert lane is not None
    guilty: list[int] = []
    active = lane.given.host["active"]
    breaking(engine, lambda size: "depth" if any(active[row] for row in guilty if row < size) else None)
    for k in range(20):
        same(tick(engine, keys, sounds, k), undisturbed[k])
    guilty.append(engine._placement.row(keys[1]))
    frames = [SlotFrame(key, sound[20]) for key, sound in zip(keys, sounds, strict=True)]
    with pytest.raises(BreaksError) as raised:
        engine.step(frames)
    engine.undo()
    first, second, third = step_in_halves(lambda some: engine.step(some)[0], engine.undo, frames, raised.value)
    assert isinstance(second, BreaksError)
    assert isinstance(first, SlotResult)
    assert isinstance(third, SlotResult)
    same([first, third], [undisturbed[20][0], undisturbed[20][2]])
    guilty.clear()
    engine.reset(keys[1])
    engine.prefill(keys[1], 10)
    for k in range(21, N_FRAMES):
        results = tick(engine, keys, [sounds[0], np.roll(sounds[1], -21 * 1920), sounds[2]], k)
        same([results[0], results[2]], [undisturbed[k][0], undisturbed[k][2]])


def test_what_is_kept_for_it_is_small() -> None:
    engine = started(make_parts(**SHORT), 4)
    assert engine._undo is not None
    assert engine._undo.bytes_per_slot < 0.5 * engine.memory().per_slot
