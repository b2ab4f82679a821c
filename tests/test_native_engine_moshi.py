"""The engine over the tiny Moshi and Mimi: many calls at once against single runs and against the package's loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from native_tiny import tiny_lm, tiny_mimi

from duplex.codecs.mimi import MimiCodec
from duplex.errors import AgentFaultError
from duplex.scheduler.contract import SlotFrame, SlotResult, SlotSettings
from duplex.thinker_talker.native.device.device_engine import DeviceEngine
from duplex.thinker_talker.native.device.engine_parts import EngineParts, opening
from duplex.thinker_talker.native.device.graph_recorder import RecordedGraphs
from duplex.thinker_talker.native.model.backbone import Backbone, BackboneOptions
from duplex.thinker_talker.native.model.sampling import Sampling

FRAME = 1920
PADDING = 3
GREEDY = Sampling(temperature_text=0.0, temperature_audio=0.0)


@pytest.fixture(scope="module")
def parts() -> EngineParts:
    torch.set_num_threads(1)
    return make_parts()


def make_parts(greedy: bool = False, **options: object) -> EngineParts:
    backbone = Backbone(tiny_lm(), BackboneOptions(**options))  # type: ignore[arg-type]
    return EngineParts(
        device=torch.device("cpu"),
        codec=MimiCodec(tiny_mimi(), 4),
        backbone=backbone,
        weight_bytes=0,
        text_padding=PADDING,
        prompt=lambda settings, silence: opening(1, backbone.dep_q, silence[: backbone.n_user]),
        sampling=lambda settings, seed: GREEDY if greedy else Sampling(seed=seed),
        seed=7,
    )


def started(parts: EngineParts, max_slots: int, *, recorded: bool = False) -> DeviceEngine:
    engine = DeviceEngine(parts, max_slots, backend=RecordedGraphs() if recorded else None)
    engine.start()
    return engine


def voice(call: int, frames: int) -> np.ndarray:
    """Something like speech, different for each call: float32[frames, 1920]."""
    rng = np.random.default_rng(call)
    t = np.arange(frames * FRAME) / 24_000
    tone = np.sin(2 * np.pi * (110 + 37 * call) * t) * (np.sin(2 * np.pi * (2 + call) * t) > 0)
    return (0.2 * tone + 0.02 * rng.standard_normal(len(t))).astype(np.float32).reshape(frames, FRAME)


def joined(engine: DeviceEngine, seed: int) -> int:
    key = engine.join(SlotSettings(seed=seed))
    assert engine.prefill(key, 10) == 0
    return key


def run(engine: DeviceEngine, key: int, frames: np.ndarray, **forced: object) -> list[SlotResult]:
    return [engine.step([SlotFrame(key, samples, **forced)])[0][0] for samples in frames]  # type: ignore[arg-type]


def same(a: list[SlotResult], b: list[SlotResult], tolerance: float = 0.0) -> None:
    assert [r.text_token for r in a] == [r.text_token for r in b]
    for one, other in zip(a, b, strict=True):
        assert (one.codes is None) == (other.codes is None)
        if one.codes is not None and other.codes is not None:
            assert one.codes.tolist() == other.codes.tolist()
            assert one.samples is not None
            assert other.samples is not None
            np.testing.assert_allclose(one.samples, other.samples, rtol=0, atol=tolerance)


@pytest.mark.parametrize("recorded", [False, True], ids=["eager", "recorded graphs"])
def test_four_calls_joining_leaving_and_reset_equal_four_single_runs(parts: EngineParts, recorded: bool) -> None:
    shared = started(parts, 4, recorded=recorded)
    lives = {1: (0, 14), 2: (2, 12), 3: (4, 5), 4: (6, 10)}  # tick it joins, frames it has
    reset_at = 8
    sound = {call: voice(call, length) for call, (_, length) in lives.items()}
    keys: dict[int, int] = {}
    heard: dict[int, list[SlotResult]] = {call: [] for call in lives}
    for tick in range(18):
        for call, (first, _) in lives.items():
            if tick == first:
                keys[call] = joined(shared, call)
            if call in keys and len(heard[call]) == lives[call][1]:
                shared.leave(keys.pop(call))
        if tick == reset_at:
            shared.reset(keys[2])
            shared.prefill(keys[2], 10)
        due = [call for call in keys if not (call == 4 and tick % 3 == 0)]  # the fourth is late now and then
        results, _ = shared.step([SlotFrame(keys[call], sound[call][len(heard[call])]) for call in due])
        for call, result in zip(due, results, strict=True):
            heard[call].append(result)
    assert {call: len(results) for call, results in heard.items()} == {1: 14, 2: 12, 3: 5, 4: 8}
    single = started(parts, 1)
    for call, results in heard.items():
        n = len(results)
        key = joined(single, call)
        if call == 2:
            alone = run(single, key, sound[2][:6])
            single.reset(key)
            single.prefill(key, 10)
            alone += run(single, key, sound[2][6:n])
        else:
            alone = run(single, key, sound[call][:n])
        single.leave(key)
        same(results, alone, tolerance=1e-5)
    assert len({tuple(r.text_token for r in heard[call][:5]) for call in lives}) == 4, "the calls differ"


def test_a_fork_goes_on_bit_identically_at_another_batch_size(parts: EngineParts) -> None:
    first = started(parts, 1)
    key = joined(first, 5)
    sound = voice(5, 12)
    run(first, key, sound[:5])
    kept = first.snapshot(key)
    straight = run(first, key, sound[5:])
    first.leave(key)
    same(run(first, first.restore(kept), sound[5:]), straight)
    bigger = started(parts, 4)
    others = [joined(bigger, seed) for seed in (1, 2)]
    fork = bigger.restore(kept)
    forked = []
    for samples in sound[5:]:
        results, _ = bigger.step([SlotFrame(k, samples) for k in (*others, fork)])
        forked.append(results[-1])
    same(forked, straight, tolerance=1e-5)


def test_nan_in_one_call_leaves_the_others_unharmed(parts: EngineParts) -> None:
    shared = started(parts, 3)
    keys = [joined(shared, seed) for seed in (1, 2, 3)]
    sound = [voice(call, 8) for call in (1, 2, 3)]
    heard: list[list[SlotResult]] = [[], [], []]
    for tick in range(8):
        if tick == 4:
            assert shared._tick is not None
            shared._tick.model_state.tensors()["layer0.values"][1, 0, 0] = float("nan")
        if tick == 5:
            assert shared.prefill(keys[1], 10) == 0
        results, _ = shared.step([SlotFrame(key, sound[i][tick]) for i, key in enumerate(keys)])
        for i, result in enumerate(results):
            heard[i].append(result)
    assert isinstance(heard[1][4].error, AgentFaultError)
    single = started(parts, 1)
    for i in (0, 2):
        key = joined(single, i + 1)
        same(heard[i], run(single, key, sound[i]), tolerance=1e-5)
        single.leave(key)
    key = joined(single, 2)
    same(heard[1][5:], run(single, key, sound[1][5:]), tolerance=1e-5)


def test_forced_text_and_forced_silence(parts: EngineParts) -> None:
    engine = started(parts, 1)
    key = joined(engine, 3)
    sound = voice(3, 12)
    assert [r.text_token for r in run(engine, key, sound[:3], forced_text=42)] == [42, 42, 42]
    silent = run(engine, key, sound[3:9], silent=True)
    assert [r.text_token for r in silent] == [PADDING] * 6
    codes = [r.codes.tolist() for r in silent if r.codes is not None]
    assert codes[1:] == [engine._silence.tolist()] * 5, "from its second frame on: acoustic codebooks come a step late"
    free = run(engine, key, sound[9:])
    assert any(r.codes is not None and r.codes.tolist() != codes[-1] for r in free)


def test_greedy_tokens_equal_the_packages_own_loop() -> None:
    """``moshi.run_inference``: encode, step (the first frame twice), decode."""
    from moshi.models import LMGen

    made = make_parts(greedy=True)
    engine = started(made, 2)
    key = joined(engine, 1)
    sound = voice(9, 10)
    ours = run(engine, key, sound)

    mimi = tiny_mimi()
    lm_gen = LMGen(tiny_lm(), use_sampling=False)
    theirs: list[tuple[int, list[int], np.ndarray]] = []
    with torch.no_grad(), mimi.streaming(1), lm_gen.streaming(1):
        for i, samples in enumerate(sound):
            codes = mimi.encode(torch.from_numpy(samples)[None, None])
            if i == 0:
                assert lm_gen.step(codes) is None
            tokens = lm_gen.step(codes)
            assert tokens is not None
            out = mimi.decode(tokens[:, 1:])
            theirs.append((int(tokens[0, 0, 0]), tokens[0, 1:, 0].tolist(), out[0, 0].numpy()))
    # LMGen hands a text token out with the frame whose sound goes with it, one step after it was made.
    assert [r.codes.tolist() for r in ours if r.codes is not None] == [codes for _, codes, _ in theirs]
    assert [r.text_token for r in ours][:-1] == [text for text, _, _ in theirs][1:]
    for result, (_, _, out) in zip(ours, theirs, strict=True):
        assert result.samples is not None
        np.testing.assert_allclose(result.samples, out, rtol=0, atol=2e-5)


def test_greedy_tokens_of_replayed_graphs_equal_those_of_calls() -> None:
    made = make_parts(greedy=True, kv_dtype="int8", sinks=2, context=12)
    sound = voice(4, 16)
    told = []
    for recorded in (False, True):
        engine = started(made, 2, recorded=recorded)
        keys = [joined(engine, seed) for seed in (1, 2)]
        told.append(
            [engine.step([SlotFrame(k, s) for k, s in zip(keys, (a, b), strict=True)])[0]
             for a, b in zip(sound, sound[::-1], strict=True)]
        )  # fmt: skip
    for calls, replays in zip(*told, strict=True):
        same(list(calls), list(replays))
