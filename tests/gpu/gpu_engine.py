"""On a GPU: captured graphs, the kernels, and an engine of the tiny model. Run by ``make bench-gpu``; not collected
elsewhere, since it fails without one."""

from __future__ import annotations

import os

os.environ.setdefault("NO_TORCH_COMPILE", "1")

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from duplex.codecs.mimi import load as load_mimi
from duplex.errors import AgentFaultError, ConfigError
from duplex.scheduler.contract import SlotFrame, SlotResult, SlotSettings
from duplex.thinker_talker.native.checkpoints.int8_linear import plain_product, product_on
from duplex.thinker_talker.native.device.device_engine import DeviceEngine
from duplex.thinker_talker.native.device.engine_loading import load_engine
from duplex.thinker_talker.native.device.engine_options import EngineOptions
from duplex.thinker_talker.native.device.graphs import CudaGraphs, GraphError, GraphRunner
from duplex.thinker_talker.native.model import attention_kernel
from duplex.thinker_talker.native.model.sampling import choose, index_table, stream_keys, stream_table

CUDA = torch.device("cuda", 0)
FRAME = 1920
PRECISIONS = ("float32", "bfloat16,codec=float32", "bfloat16,codec=float32,kv=int8", "int8")


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Single precision as it is written, so that results at different batch sizes can be compared."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before
    torch.cuda.empty_cache()


def engine(precision: str = "float32", *, graphs: bool = True, max_slots: int = 4, greedy: bool = True) -> DeviceEngine:
    chosen = {"temperature_text": 0.0, "temperature_audio": 0.0} if greedy else {}
    options = EngineOptions(device="cuda", precision=precision, graphs=graphs, max_slots=max_slots, seed=3, **chosen)
    made = load_engine(options, codec_factory=load_mimi)
    made.start()
    return made


def voice(call: int, frames: int) -> np.ndarray:
    rng = np.random.default_rng(call)
    return (0.1 * rng.standard_normal((frames, FRAME))).astype(np.float32)


def joined(made: DeviceEngine, seed: int = 3) -> int:
    key = made.join(SlotSettings(seed=seed))
    while made.prefill(key, 8):
        pass
    return key


def told(results: list[SlotResult]) -> list[object]:
    for result in results:
        assert result.error is None, result.error
    return [(r.text_token, None if r.codes is None else r.codes.tolist()) for r in results]


def conversation(made: DeviceEngine) -> list[list[object]]:
    """Calls join, stand still, leave and are reset; what each was told, in the order of joining."""
    keys = [joined(made, seed) for seed in (1, 2)]
    sound = [voice(call, 40) for call in range(4)]
    heard: list[list[SlotResult]] = [[], [], [], []]
    live = {0: keys[0], 1: keys[1]}
    for tick in range(24):
        if tick == 4:
            live |= {2: joined(made, 3), 3: joined(made, 4)}
        if tick == 12:
            made.leave(live.pop(0))
        if tick == 16:
            made.reset(live[2])
            while made.prefill(live[2], 8):
                pass
        due = [call for call in live if not (call == 3 and tick % 3 == 0)]
        results, _ = made.step([SlotFrame(live[call], sound[call][len(heard[call])]) for call in due])
        for call, result in zip(due, results, strict=True):
            heard[call].append(result)
    for key in live.values():
        made.leave(key)
    return [told(results) for results in heard]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_greedy_tokens_are_equal_with_and_without_graphs(precision: str) -> None:
    calls = conversation(engine(precision, graphs=False))
    replays = conversation(engine(precision, graphs=True))
    assert calls == replays
    assert len({str(call) for call in calls}) == 4


def test_four_calls_at_once_equal_four_single_runs() -> None:
    together = conversation(engine(greedy=False))
    single = engine(greedy=False, max_slots=1)
    for call in (0, 1, 3):
        key = joined(single, call + 1)
        alone = [single.step([SlotFrame(key, samples)])[0][0] for samples in voice(call, 40)[: len(together[call])]]
        single.leave(key)
        assert told(alone) == together[call], call


def test_a_fork_goes_on_bit_identically() -> None:
    made = engine("bfloat16,codec=float32,kv=int8", greedy=False)
    key = joined(made)
    sound = voice(1, 20)
    for samples in sound[:8]:
        made.step([SlotFrame(key, samples)])
    kept = made.snapshot(key)
    straight = [made.step([SlotFrame(key, samples)])[0][0] for samples in sound[8:]]
    made.leave(key)
    fork = made.restore(kept)
    forked = [made.step([SlotFrame(fork, samples)])[0][0] for samples in sound[8:]]
    assert told(forked) == told(straight)
    for a, b in zip(forked, straight, strict=True):
        assert (a.samples is None) == (b.samples is None)
        assert a.samples is None or b.samples is None or np.array_equal(a.samples, b.samples)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nothing_in_a_tick_synchronises(precision: str) -> None:
    made = engine(precision, graphs=False)
    for key in [joined(made, seed) for seed in (1, 2, 3)]:
        assert made.step([SlotFrame(key, voice(1, 1)[0])])[0][0].error is None
    lane = made._tick
    assert lane is not None
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.inference_mode():
            for size in made.batch_sizes:
                lane.given.upload(size)
                made._times.begin()
                lane.run(size, made._times)
                lane.made.download(size)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_nan_in_one_slot_leaves_the_others_unharmed() -> None:
    made, calm = engine(greedy=False), engine(greedy=False)
    keys, others = ([joined(e, seed) for seed in (1, 2, 3)] for e in (made, calm))
    sound = [voice(call, 8) for call in range(3)]
    for tick in range(8):
        if tick == 3:
            with torch.inference_mode():
                made.states[0].tensors()["layer0.values"][1, 0, 0] = float("nan")
        if tick == 4:
            made.prefill(keys[1], 8)
        results, _ = made.step([SlotFrame(key, sound[i][tick]) for i, key in enumerate(keys)])
        expected, _ = calm.step([SlotFrame(key, sound[i][tick]) for i, key in enumerate(others)])
        assert (tick == 3) == isinstance(results[1].error, AgentFaultError)
        assert told([results[0], results[2]]) == told([expected[0], expected[2]])


def test_the_parts_of_a_tick_add_up_to_less_than_the_tick() -> None:
    made = engine()
    key = joined(made)
    _, times = made.step([SlotFrame(key, voice(0, 1)[0])])
    assert set(times.parts_s) == {"copy", "encode", "temporal", "depth", "decode"}
    assert all(0.0 < part_s < 1.0 for part_s in times.parts_s.values())


def test_too_many_slots_for_the_memory_are_told_at_the_start() -> None:
    _, total = torch.cuda.mem_get_info(CUDA)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated(CUDA) + (64 << 20)) / total, CUDA)
    try:
        options = EngineOptions(device="cuda", precision="float32", max_slots=64, context=3000)
        with pytest.raises(ConfigError, match="slots do not fit the memory"):
            load_engine(options, codec_factory=load_mimi).start()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, CUDA)
        torch.cuda.empty_cache()
    engine()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("places", [100, 3000])
def test_the_attention_kernel_agrees_with_the_plain_functions(dtype: torch.dtype, places: int) -> None:
    attention_kernel.check(CUDA, dtype, places)
    assert attention_kernel.available(torch.zeros(1, 1, 64, device=CUDA))


def test_int8_weights_have_a_kernel() -> None:
    assert product_on(CUDA) is not plain_product


def test_tokens_are_drawn_alike_on_both_devices() -> None:
    logits = 3.0 * torch.randn(16, 2048, generator=torch.Generator().manual_seed(1))
    drawn = []
    for device in (torch.device("cpu"), CUDA):
        seed, step = (torch.arange(16, device=device) * factor for factor in (7919, 13))
        keys = stream_keys(seed, step, stream_table(2, device))[:, 1]
        temperature, top_k = torch.full((16,), 0.8, device=device), torch.full((16,), 250, device=device)
        chosen = choose(logits.to(device), keys, temperature, top_k, index_table(2048, device), 256)
        drawn.append(chosen.tolist())
    assert drawn[0] == drawn[1]


def test_graphs_replay_on_what_the_buffers_hold() -> None:
    given, out = torch.zeros(8, 64, device=CUDA), torch.zeros(8, 64, device=CUDA)
    weight = torch.randn(64, 64, device=CUDA)

    def layer(n: int) -> None:
        out[:n].copy_(torch.relu(given[:n] @ weight))

    runner = GraphRunner("layer", layer, sizes=(1, 2, 4, 8), buffers=lambda: {"given": given}, backend=CudaGraphs(CUDA))
    runner.warm_up_and_capture()
    assert runner.captured == (1, 2, 4, 8)
    for n in (8, 1, 4, 2):
        given.normal_()
        out.zero_()
        runner.run(n)
        replayed = out.clone()
        layer(n)
        assert torch.equal(replayed[:n], out[:n])
        assert not replayed[n:].any()


def test_zz_what_synchronises_cannot_be_captured() -> None:
    """The last: a capture that failed leaves its stream behind."""
    value = torch.ones(4, device=CUDA)

    def asks(n: int) -> None:
        value[:n].mul_(value.sum().item())

    runner = GraphRunner("asker", asks, sizes=(2,), buffers=dict, backend=CudaGraphs(CUDA))
    with pytest.raises(GraphError, match="asker cannot be captured at batch size 2"):
        runner.warm_up_and_capture()
