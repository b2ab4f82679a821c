"""Keys and values: what lies where, sinks and the window, eight bits, a call that goes on for long."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from native_tiny import CARD, USER_Q, tiny_lm

from duplex.benchmarks.engine.long_call import TINY, LongCall, long_call
from duplex.thinker_talker.native.model.backbone import Backbone, BackboneOptions
from duplex.thinker_talker.native.model.kv_cache import KvLayer, KvLayout, pack, unpack
from duplex.thinker_talker.native.model.sampling import Sampling

GREEDY = Sampling(temperature_text=0.0, temperature_audio=0.0)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lm() -> Any:
    return tiny_lm(3)


def streams(seed: int, steps: int) -> torch.Tensor:
    """int64[steps, 1 + 2 * USER_Q]: tokens of every stream, to be read one after the other."""
    return torch.randint(0, CARD, (steps, 1 + 2 * USER_Q), generator=torch.Generator().manual_seed(seed))


def hidden(lm: Any, tokens: torch.Tensor, *, kv_span: int | None = None, **options: Any) -> torch.Tensor:
    """The temporal transformer's output at every step, all streams forced to ``tokens``: ``[steps, d]``."""
    backbone = Backbone(lm, BackboneOptions(sampling=GREEDY, **options))
    state, inputs, out = backbone.new_state(1), backbone.new_inputs(1), []
    for step in tokens:
        inputs.forced_text[0], inputs.forced_audio[0], inputs.user_codes[0] = step[0], step[1:5], step[5:]
        backbone.temporal(state, inputs, kv_span=kv_span)
        out.append(state.work.hidden[0].clone())
        backbone.depth(state, inputs, backbone.new_outputs(1))
    return torch.stack(out)


@torch.no_grad()
def streaming_llm(lm: Any, embedded: torch.Tensor, capacity: int, sinks: int) -> torch.Tensor:
    """The paper's way, with the package's modules: keys kept unrotated, and rotated at every step by where they stand
    in the cache. ``embedded`` ``[steps, d]`` to ``[steps, d]``."""
    from moshi.modules.rope import apply_rope

    layers = lm.transformer.layers
    kept: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in layers]
    out = []
    for x in embedded[:, None, None]:  # [1, 1, d]
        for layer, cache in zip(layers, kept, strict=True):
            attention = layer.self_attn
            q, k, v = attention.in_projs[0](layer.norm1(x)).view(1, 1, 3, attention.num_heads, -1).unbind(2)
            cache.append((k[0, 0], v[0, 0]))
            if len(cache) > capacity:
                del cache[sinks]
            keys = torch.stack([k for k, _ in cache], 1)[None]  # [1, heads, length, dim]
            values = torch.stack([v for _, v in cache], 1)[None]
            length = len(cache)
            _, keys = apply_rope(keys, keys, torch.zeros(1), lm.transformer.max_period, True)
            query = q.transpose(1, 2)
            query, _ = apply_rope(query, query, torch.tensor([length - 1]), lm.transformer.max_period, True)
            seen = torch.nn.functional.scaled_dot_product_attention(query, keys, values)
            x = x + attention.out_projs[0](seen.transpose(1, 2).reshape(1, 1, -1))
            x = layer._ff_block(x)
        out.append(lm.out_norm(x)[0, 0])
    return torch.stack(out)


# --- where things lie -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("capacity", "sinks"), [(7, 0), (7, 1), (8, 4), (5, 4), (2, 0)])
def test_places_keep_the_first_positions_and_the_last(capacity: int, sinks: int) -> None:
    layout = KvLayout(capacity, sinks, 1, 2, torch.float32)
    places: list[int] = [-1] * capacity
    for position in range(5 * capacity):
        places[int(layout.place(torch.tensor(position)))] = position
        held = sorted(p for p in places if p >= 0)
        first = max(position + 1 - (capacity - sinks), sinks)
        assert held == [*range(min(sinks, position + 1)), *range(first, position + 1)]
        assert layout.positions_after(torch.tensor([position]))[0].tolist() == places
        # Places fill in order and stay filled: the one mask a step needs.
        assert [p >= 0 for p in places] == [place <= position for place in range(capacity)]
    assert layout.positions_after(torch.tensor([-1]))[0].tolist() == [-1] * capacity


def test_what_a_slot_remembers_has_no_scratch_place() -> None:
    layout = KvLayout(6, 2, 3, 4, torch.int8)
    layer = KvLayer.empty(layout, 2, torch.device("cpu"))
    assert {name: tuple(t.shape) for name, t in layer.named()} == {
        "keys": (2, 3, 6, 4),
        "values": (2, 3, 6, 4),
        "key_scales": (2, 3, 6),
        "value_scales": (2, 3, 6),
    }
    assert layout.bytes_per_slot == 2 * 3 * 7 * (4 + 4)


# --- beyond the window --------------------------------------------------------------------------------------------


def test_sinks_are_full_attention_inside_the_window_and_tell_beyond_it(lm: Any) -> None:
    tokens = streams(1, 60)
    full, sinking = hidden(lm, tokens, context=60), hidden(lm, tokens, context=40, sinks=4)
    window = hidden(lm, tokens, context=40)
    torch.testing.assert_close(sinking[:40], full[:40], rtol=0, atol=2e-6)
    for beyond in range(40, 60):
        assert (sinking[beyond] - full[beyond]).abs().max() > 1e-3
        assert (sinking[beyond] - window[beyond]).abs().max() > 1e-3


@pytest.mark.parametrize("sinks", [0, 1, 4])
def test_sinks_and_window_are_the_paper_s(lm: Any, sinks: int) -> None:
    """Several windows long, though no key is ever rotated again. The window alone keeps its distances, too."""
    tokens, capacity = streams(2, 110), 32
    backbone = Backbone(lm, BackboneOptions(context=capacity, sinks=sinks, sampling=GREEDY))
    state, inputs = backbone.new_state(1), backbone.new_inputs(1)
    ours, embedded = [], []
    for step in tokens:
        inputs.forced_text[0], inputs.forced_audio[0], inputs.user_codes[0] = step[0], step[1:5], step[5:]
        backbone.temporal(state, inputs)
        read = backbone.delays.read(state.memory.tokens, state.memory.step)
        embedded.append(backbone.embed(read)[0])
        ours.append(state.work.hidden[0].clone())
        backbone.depth(state, inputs, backbone.new_outputs(1))
    want = streaming_llm(lm, torch.stack(embedded), capacity, sinks)
    torch.testing.assert_close(torch.stack(ours), want, rtol=0, atol=2e-5)


def test_far_into_a_call_rotations_are_as_exact_as_early_ones(lm: Any) -> None:
    """Positions after a day: with the same streams, keys and queries meet at the same distances."""
    backbone, tokens = Backbone(lm, BackboneOptions(context=24)), streams(3, 24)

    def settled(first: int) -> torch.Tensor:
        state = backbone.new_state(1)
        for start in range(first, first + 72, 24):
            out = backbone.read_positions(state, tokens, torch.tensor([start]))
        return out

    torch.testing.assert_close(settled(1_080_000), settled(0), rtol=0, atol=2e-5)


def test_a_span_of_places_gives_the_same_numbers_while_it_holds_the_call(lm: Any) -> None:
    tokens = streams(4, 30)
    torch.testing.assert_close(hidden(lm, tokens, kv_span=32), hidden(lm, tokens), rtol=0, atol=2e-6)


def test_a_long_call_stays_finite_alive_and_bounded() -> None:
    """A shortened hour, 25 windows long: the whole one is the benchmark itself."""
    small = {**TINY, "dim": 32, "num_heads": 2, "num_layers": 1, "context": 25}
    ticks = iter(range(10**6))
    call = long_call(625, lm_kwargs=small, now=lambda: float(next(ticks)))
    assert call.finite
    assert call.last_tokens > 100
    assert call.state_bytes[0] == call.state_bytes[1]
    assert (call.context, call.sinks, call.drift) == (25, 4, 0.0)


def test_drift_is_the_last_quarter_against_the_second() -> None:
    minutes = (9.0, 9.0, 2.0, 2.0, 1.0, 1.0, 3.0, 3.0)
    assert LongCall(8, 25, 4, minutes, (1, 1), (0, 0), True, 5).drift == 0.5


# --- eight bits -----------------------------------------------------------------------------------------------


def test_int8_is_within_half_a_step_and_keeps_zero_and_what_is_no_number() -> None:
    x = torch.randn(5, 3, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 5)[:, None, None]
    x[0, 0] = 0.0
    stored, scale = pack(x, torch.int8)
    assert scale is not None
    assert stored.dtype == torch.int8
    assert ((unpack(stored, scale, torch.float32) - x).abs() <= 0.5001 * x.abs().amax(-1, keepdim=True) / 127).all()
    x[1, 2, 7] = torch.nan
    stored, scale = pack(x, torch.int8)
    bad = torch.isnan(unpack(stored, scale, torch.float32)).all(-1)
    assert bad.nonzero().tolist() == [[1, 2]]


@pytest.fixture(scope="module")
def exact(lm: Any) -> torch.Tensor:
    return hidden(lm, streams(5, 80), context=40, sinks=4)


@pytest.mark.parametrize(
    ("kv_dtype", "most", "typical"), [("model", 0.0, 0.0), ("bfloat16", 0.01, 0.001), ("int8", 0.03, 0.003)]
)
def test_a_smaller_cache_has_a_bounded_error(
    lm: Any, exact: torch.Tensor, kv_dtype: str, most: float, typical: float
) -> None:
    """Of the temporal output, whose values have a standard deviation of 1; two windows long, with sinks. Measured:
    bfloat16 at most 0.0045, 0.0005 on average; int8 at most 0.012, 0.0014 on average."""
    error = (hidden(lm, streams(5, 80), context=40, sinks=4, kv_dtype=kv_dtype) - exact).abs()
    assert 0.5 < exact.std() < 2.0
    assert error.max() <= most
    assert error.mean() <= typical
    assert (error.max() > 0) == (kv_dtype != "model")
