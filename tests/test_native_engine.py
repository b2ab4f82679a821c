"""The engine's own work, over a codec and a backbone that can be seen through: slots, masks, faults, snapshots."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_engine_fakes import CODEBOOKS, FRAME, PADDING, MixingBackbone, MixingState, parts

from duplex.errors import AgentFaultError, AgentFullError, ConfigError
from duplex.scheduler.contract import SlotFrame, SlotResult, SlotSettings
from duplex.thinker_talker.native.device.device_engine import DeviceEngine
from duplex.thinker_talker.native.device.graph_recorder import RecordedGraphs
from duplex.thinker_talker.native.device.graphs import GraphError


def engine(max_slots: int = 4, *, opened: bool = False, recorded: bool = False, seed: int | None = 11) -> DeviceEngine:
    made = DeviceEngine(parts(seed, opened=opened), max_slots, backend=RecordedGraphs() if recorded else None)
    made.start()
    return made


def sound(call: int, frame: int) -> np.ndarray:
    return np.full(FRAME, 0.25 * call + 0.5 * (frame % 5), np.float32)


def said(result: SlotResult) -> tuple[int | None, tuple[int, ...] | None, float | None]:
    codes = None if result.codes is None else tuple(result.codes.tolist())
    return result.text_token, codes, None if result.samples is None else float(result.samples[0])


def one(engine: DeviceEngine, frame: SlotFrame) -> SlotResult:
    (result,), _ = engine.step([frame])
    return result


def alone(call: int, frames: Sequence[int], seed: int) -> list[object]:
    single = engine(1)
    key = single.join(SlotSettings(seed=seed))
    return [said(one(single, SlotFrame(key, sound(call, frame)))) for frame in frames]


@pytest.mark.parametrize("recorded", [False, True], ids=["eager", "recorded graphs"])
def test_calls_that_join_leave_and_reset_say_what_they_would_alone(recorded: bool) -> None:
    shared = engine(4, recorded=recorded)
    # (tick it joins, ticks it lives); the second is reset after four frames.
    lives = {1: (0, 12), 2: (2, 9), 3: (3, 4), 4: (5, 9)}
    keys: dict[int, int] = {}
    heard: dict[int, list[object]] = {call: [] for call in lives}
    for tick in range(16):
        for call, (first, length) in lives.items():
            if tick == first:
                keys[call] = shared.join(SlotSettings(seed=call))
            if tick == first + length:
                shared.leave(keys.pop(call))
        if tick == 6:
            shared.reset(keys[2])
        # Every other tick the first call has no frame and stands still.
        due = [call for call in keys if not (call == 1 and tick % 2)]
        results, times = shared.step([SlotFrame(keys[call], sound(call, len(heard[call]))) for call in reversed(due)])
        assert times.batch_size in (0, *shared.batch_sizes)
        for call, result in zip(reversed(due), results, strict=True):
            assert result.key == keys[call]
            heard[call].append(said(result))
    assert heard[1] == alone(1, range(len(heard[1])), seed=1)
    assert heard[2] == alone(2, range(4), seed=2) + alone(2, range(4, 9), seed=2)
    assert heard[3] == alone(3, range(4), seed=3)
    assert heard[4] == alone(4, range(9), seed=4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["join", "leave", "tick", "tick", "reset", "fork"]), st.integers(0, 7))))
def test_whatever_happens_a_call_says_what_it_would_alone(events: list[tuple[str, int]]) -> None:
    shared = engine(3)
    seeds: dict[int, int] = {}
    frames: dict[int, list[object]] = {}
    for what, choice in events:
        live = sorted(seeds)
        key = live[choice % len(live)] if live else None
        if what == "join" and len(live) < 3:
            new = shared.join(SlotSettings(seed=choice))
            seeds[new], frames[new] = choice, []
        elif what == "fork" and key is not None and len(live) < 3:
            new = shared.restore(shared.snapshot(key))
            seeds[new], frames[new] = seeds[key], list(frames[key])
        elif what == "leave" and key is not None:
            shared.leave(key)
            del seeds[key], frames[key]
        elif what == "reset" and key is not None:
            shared.reset(key)
            frames[key] = []
        elif what == "tick" and live:
            due = live[: 1 + choice % len(live)]
            results, _ = shared.step([SlotFrame(k, sound(seeds[k], len(frames[k]))) for k in due])
            for k, result in zip(due, results, strict=True):
                frames[k].append(said(result))
    for key, got in frames.items():
        assert got == alone(seeds[key], range(len(got)), seeds[key])


@pytest.mark.parametrize("recorded", [False, True], ids=["eager", "recorded graphs"])
def test_an_engine_that_was_closed_starts_again_as_new(recorded: bool) -> None:
    twice = engine(2, recorded=recorded)
    before = twice.join(SlotSettings(seed=1))
    twice.step([SlotFrame(before, sound(1, 0))])
    twice.close()
    twice.start()
    key = twice.join(SlotSettings(seed=7))
    assert twice.live == 1
    assert [said(one(twice, SlotFrame(key, sound(1, i)))) for i in range(6)] == alone(1, range(6), seed=7)


def test_a_snapshot_goes_on_bit_identically_and_shares_nothing() -> None:
    first = engine(2)
    key = first.join(SlotSettings(seed=5))
    for i in range(3):
        one(first, SlotFrame(key, sound(1, i)))
    kept = first.snapshot(key)
    before = [said(one(first, SlotFrame(key, sound(1, i)))) for i in range(3, 8)]
    fork = first.restore(kept)
    assert [said(one(first, SlotFrame(fork, sound(1, i)))) for i in range(3, 8)] == before
    elsewhere = engine(4)
    elsewhere.join(SlotSettings(seed=9))
    moved = elsewhere.restore(kept)
    assert [said(one(elsewhere, SlotFrame(moved, sound(1, i)))) for i in range(3, 8)] == before


def test_a_snapshot_that_does_not_fit_is_refused_and_leaves_no_slot() -> None:
    one_engine = engine(1)
    key = one_engine.join(SlotSettings())
    kept = one_engine.snapshot(key)
    with pytest.raises(AgentFullError):
        one_engine.restore(kept)
    one_engine.leave(key)
    with pytest.raises(ConfigError, match="another model, context or precision"):
        one_engine.restore(dataclasses.replace(kept, rows=({**kept.rows[0], "mix": torch.zeros(3)}, kept.rows[1])))
    with pytest.raises(ConfigError, match="no snapshot"):
        one_engine.restore("nonsense")  # type: ignore[arg-type]
    assert one_engine.restore(kept) > key


def test_the_prompt_is_read_in_slices_while_others_tick() -> None:
    shared = engine(2, opened=True)
    talking = shared.join(SlotSettings(seed=1))
    assert shared.prefill(talking, 10) == 0
    joining, third = shared.join(SlotSettings(seed=2, prompt="hELLo")), None
    others = []
    left = []
    for tick in range(4):
        others.append(said(one(shared, SlotFrame(talking, sound(1, tick)))))
        left.append(shared.prefill(joining, 2))
    assert left == [4, 2, 0, 0]
    assert third is None
    first = one(shared, SlotFrame(joining, sound(2, 0)))
    assert first.samples is not None, "with the opening step read, the first frame is answered with sound"

    single = engine(1, opened=True)
    key = single.join(SlotSettings(seed=2, prompt="hELLo"))
    assert single.prefill(key, 100) == 0
    assert isinstance(single.parts.backbone, MixingBackbone)
    assert single.parts.backbone.prefilled == 3, "where nothing is chosen, many steps are read at a time"
    assert said(one(single, SlotFrame(key, sound(2, 0)))) == said(first)
    unprompted = engine(1, opened=True)
    key = unprompted.join(SlotSettings(seed=2))
    unprompted.prefill(key, 100)
    assert said(one(unprompted, SlotFrame(key, sound(2, 0)))) != said(first)


def test_two_prompts_may_be_read_in_turns_and_one_may_leave_meanwhile() -> None:
    shared = engine(3, opened=True)
    a = shared.join(SlotSettings(seed=1, prompt="abCD"))
    b = shared.join(SlotSettings(seed=2, prompt="eFGh"))
    c = shared.join(SlotSettings(seed=3, prompt="ij"))
    shared.prefill(a, 2)
    shared.prefill(b, 3)
    shared.prefill(c, 1)
    shared.leave(a)  # c moves into its row, its prompt half read
    assert shared.prefill(b, 9) == 0
    assert shared.prefill(c, 9) == 0
    got = [said(result) for result in shared.step([SlotFrame(b, sound(2, 0)), SlotFrame(c, sound(3, 0))])[0]]
    for seed, prompt, expected in ((2, "eFGh", got[0]), (3, "ij", got[1])):
        single = engine(1, opened=True)
        key = single.join(SlotSettings(seed=seed, prompt=prompt))
        single.prefill(key, 9)
        assert said(one(single, SlotFrame(key, sound(seed, 0)))) == expected


def test_a_reset_undoes_the_prompt() -> None:
    shared = engine(1, opened=True)
    key = shared.join(SlotSettings(seed=1, prompt="ab"))
    shared.prefill(key, 3)
    expected = said(one(shared, SlotFrame(key, sound(1, 0))))
    shared.reset(key)
    assert shared.prefill(key, 0) == 3
    assert shared.prefill(key, 3) == 0
    assert said(one(shared, SlotFrame(key, sound(1, 0)))) == expected


def test_text_is_forced_exactly() -> None:
    shared = engine(2)
    key, other = shared.join(SlotSettings(seed=1)), shared.join(SlotSettings(seed=2))
    for token in (7, 0, 999):
        results, _ = shared.step([SlotFrame(key, sound(1, 0), forced_text=token), SlotFrame(other, sound(2, 0))])
        assert results[0].text_token == token
        assert results[1].text_token != token


def test_silence_is_padding_and_the_codes_of_silence() -> None:
    shared = engine(1, opened=True)
    key = shared.join(SlotSettings())
    shared.prefill(key, 1)
    spoken = one(shared, SlotFrame(key, sound(1, 0)))
    silent = one(shared, SlotFrame(key, sound(1, 1), silent=True))
    assert silent.text_token == PADDING
    assert silent.codes is not None
    assert silent.codes.tolist() == [1, 2, 3, 4]  # what the codec makes of a silent frame, an odd number of them heard
    assert spoken.codes is not None
    assert spoken.codes.tolist() != silent.codes.tolist()
    read = one(shared, SlotFrame(key, sound(1, 2), forced_text=7, silent=True))
    assert read.text_token == 7  # it reads, and says nothing of it
    assert read.codes is not None
    assert read.codes.tolist() == silent.codes.tolist()


def test_fewer_codebooks_are_decoded_slot_by_slot() -> None:
    shared = engine(2, opened=True)
    keys = [shared.join(SlotSettings(seed=4)) for _ in range(2)]
    for key in keys:
        shared.prefill(key, 1)
    full, few = shared.step([SlotFrame(keys[0], sound(1, 0)), SlotFrame(keys[1], sound(1, 0), codebooks=2)])[0]
    assert full.codes is not None
    assert few.codes is not None
    assert full.samples is not None
    assert few.samples is not None
    assert full.codes.tolist() == few.codes.tolist()
    assert (full.samples[0], few.samples[0]) == (full.codes.sum(), few.codes[:2].sum())


@pytest.mark.parametrize(("state", "name"), [(0, "poison"), (1, "gain")], ids=["model", "decoder"])
def test_a_slot_with_nan_is_made_as_new_and_the_others_go_on(state: int, name: str) -> None:
    shared = engine(3, opened=True)
    keys = [shared.join(SlotSettings(seed=seed)) for seed in (1, 2, 3)]
    for key in keys:
        shared.prefill(key, 1)
    for i in range(3):
        shared.step([SlotFrame(key, sound(1, i)) for key in keys])
    assert shared._tick is not None
    shared.states[state].tensors()[name][1] = float("nan")
    results, _ = shared.step([SlotFrame(key, sound(1, 3)) for key in keys])
    assert isinstance(results[1].error, AgentFaultError)
    assert results[1].samples is None
    assert shared.prefill(keys[1], 5) == 0, "its prompt can be read again"
    after, _ = shared.step([SlotFrame(key, sound(1, i)) for key, i in zip(keys, (4, 0, 4), strict=True)])

    calm = engine(3, opened=True)
    for n, (mine, key) in enumerate(zip([calm.join(SlotSettings(seed=s)) for s in (1, 2, 3)], keys, strict=True)):
        calm.prefill(mine, 1)
        told = [said(one(calm, SlotFrame(mine, sound(1, i)))) for i in range(5)]
        if n == 1:
            assert said(after[1]) == told[0], "as new"
        else:
            assert said(results[n]) == told[3], key
            assert said(after[n]) == told[4], key


def test_bad_frames_are_refused_without_harm_to_their_slot() -> None:
    shared = engine(2)
    key, other = shared.join(SlotSettings(seed=1)), shared.join(SlotSettings(seed=2))
    bad = [
        SlotFrame(key, np.zeros(FRAME // 2, np.float32)),
        SlotFrame(key, np.full(FRAME, np.nan, np.float32)),
        SlotFrame(key, sound(1, 0), forced_text=1000),
        SlotFrame(key, sound(1, 0), codebooks=0),
    ]
    told = []
    for i, frame in enumerate(bad):
        results, _ = shared.step([frame, SlotFrame(other, sound(2, i))])
        assert isinstance(results[0].error, ConfigError)
        told.append(said(results[1]))
    assert told == alone(2, range(4), seed=2)
    assert said(one(shared, SlotFrame(key, sound(1, 0)))) == alone(1, [0], seed=1)[0]
    with pytest.raises(ValueError, match="two frames"):
        shared.step([SlotFrame(key, sound(1, 0)), SlotFrame(key, sound(1, 1))])


def test_no_memory_at_a_join_means_full_and_leaves_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = engine(2)
    first = shared.join(SlotSettings(seed=1))

    def full(self: MixingState, *args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore lines")

    with monkeypatch.context() as broken:
        broken.setattr(MixingState, "set_sampling", full)
        with pytest.raises(AgentFullError, match=r"no memory for another call: CUDA out of memory.*2 GiB\.$"):
            shared.join(SlotSettings(seed=2))
    assert [said(one(shared, SlotFrame(first, sound(1, i)))) for i in range(3)] == alone(1, range(3), seed=1)
    shared.join(SlotSettings(seed=2))
    with pytest.raises(AgentFullError, match="All 2 slots"):
        shared.join(SlotSettings())


def test_no_memory_in_a_tick_fails_those_in_it_and_no_others() -> None:
    shared = engine(3)
    still, *moving = (shared.join(SlotSettings(seed=seed)) for seed in (1, 2, 3))
    one(shared, SlotFrame(still, sound(1, 0)))
    backbone = shared.parts.backbone
    assert isinstance(backbone, MixingBackbone)
    backbone.out_of_memory = True
    results, _ = shared.step([SlotFrame(key, sound(1, 0)) for key in moving])
    assert all(isinstance(result.error, AgentFaultError) for result in results)
    backbone.out_of_memory = False
    assert said(one(shared, SlotFrame(still, sound(1, 1)))) == alone(1, range(2), seed=1)[1]
    assert said(one(shared, SlotFrame(moving[0], sound(2, 0)))) == alone(2, [0], seed=2)[0]


def test_no_memory_at_the_start_says_what_to_do() -> None:
    made = parts()
    assert isinstance(made.backbone, MixingBackbone)
    made.backbone.out_of_memory = True
    with pytest.raises(ConfigError, match=r"4 slots do not fit the memory of cpu.*Fewer slots"):
        DeviceEngine(made, 4).start()


def test_memory_counts_unused_rows_as_free() -> None:
    shared = engine(4)
    empty = shared.memory()
    assert empty.weights == 1 << 20
    assert empty.per_slot == (8 + 8 + 4) + (8 + 8 + 16 + 4)
    assert empty.kv >= 4 * empty.per_slot


def test_moved_buffers_are_noticed_at_the_next_join() -> None:
    shared = engine(2, recorded=True)
    shared.join(SlotSettings())
    assert shared._tick is not None
    state = shared._tick.model_state
    state._tensors["mix"] = state.tensors()["mix"].clone()  # type: ignore[attr-defined]
    with pytest.raises(GraphError, match=r"'state0\.mix' has address"):
        shared.join(SlotSettings())


def test_the_parts_of_a_tick_are_timed_by_the_clock_given() -> None:
    class Steps:
        def __init__(self) -> None:
            self.s = 0.0

        def now(self) -> float:
            self.s += 1.0
            return self.s

    timed = DeviceEngine(parts(), 2, clock=Steps())  # type: ignore[arg-type]
    timed.start()
    key = timed.join(SlotSettings())
    _, times = timed.step([SlotFrame(key, sound(1, 0))])
    assert times.batch_size == 1
    assert dict(times.parts_s) == {"copy": 2.0, "encode": 1.0, "temporal": 1.0, "depth": 1.0, "decode": 1.0}
    assert timed.step([])[0] == []


def test_seeds_of_calls_that_choose_none() -> None:
    fixed, drawn = engine(2), engine(2, seed=None)
    a, b = (fixed.join(SlotSettings()) for _ in range(2))
    results, _ = fixed.step([SlotFrame(a, sound(1, 0)), SlotFrame(b, sound(1, 0))])
    assert said(results[0]) == said(results[1])
    a, b = (drawn.join(SlotSettings()) for _ in range(2))
    results, _ = drawn.step([SlotFrame(a, sound(1, 0)), SlotFrame(b, sound(1, 0))])
    assert said(results[0]) != said(results[1])
    assert CODEBOOKS == 4
