"""The backbone's step against the package's own, and what a slot may count on: nobody else's business is its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from native_tiny import CARD, DEP_Q, TEXT_CARD, USER_Q, tiny_lm
from torch.utils._python_dispatch import TorchDispatchMode

from duplex.errors import ConfigError
from duplex.thinker_talker.native.checkpoints.precision import Precision, apply_precision
from duplex.thinker_talker.native.model.backbone import Backbone, BackboneOptions
from duplex.thinker_talker.native.model.backbone_state import BackboneState
from duplex.thinker_talker.native.model.sampling import Sampling
from duplex.thinker_talker.native.model.slot_rows import copy_row, load_row, save_row
from duplex.thinker_talker.native.model.tensors import CHOOSE, UNGENERATED

GREEDY = Sampling(temperature_text=0.0, temperature_audio=0.0)
CONTEXT = 100  # of the tiny model


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lm() -> Any:
    return tiny_lm(3)


@pytest.fixture(scope="module")
def greedy(lm: Any) -> Backbone:
    return Backbone(lm, BackboneOptions(sampling=GREEDY))


@pytest.fixture(scope="module")
def sampling(lm: Any) -> Backbone:
    return Backbone(lm)


def heard(seed: int, steps: int) -> torch.Tensor:
    """int64[steps, USER_Q]: what one user says."""
    return torch.randint(0, CARD, (steps, USER_Q), generator=torch.Generator().manual_seed(seed))


def run(
    backbone: Backbone, state: BackboneState, users: torch.Tensor, slot: int = 0, **forced: torch.Tensor
) -> torch.Tensor:
    """One slot of ``state`` alone is active. ``users`` int64[steps, USER_Q]; int64[steps, 1 + DEP_Q]: text, codes."""
    n = state.n_slots
    inputs = backbone.new_inputs(n)
    inputs.active.copy_(torch.arange(n) == slot)
    made = []
    for step, codes in enumerate(users):
        inputs.user_codes[slot] = codes
        for name, values in forced.items():
            getattr(inputs, name)[slot] = values[step]
        out = backbone.step(state, inputs)
        assert bool(out.finite[slot])
        made.append(torch.cat([out.text[slot, None], out.codes[slot]]))
    return torch.stack(made)


def stock(lm: Any, users: torch.Tensor) -> torch.Tensor:
    """What the package's greedy LMGen makes, with the text of each step beside the frame handed out at it, as ours."""
    from moshi.models import LMGen

    texts: list[torch.Tensor] = []
    generator = LMGen(lm, use_sampling=False, support_out_of_sync=True, on_text_hook=lambda t: texts.append(t.clone()))
    with torch.no_grad(), generator.streaming(1):
        frames = [generator.step(codes[None, :, None])[0, 1:, 0] for codes in users]
    return torch.stack([torch.cat([text, frame]) for text, frame in zip(texts, frames, strict=True)])


def changed(state: BackboneState) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.tensors().items()}


# --- the package's own steps ---------------------------------------------------------------------------------


def test_greedy_tokens_are_the_package_s_past_the_end_of_the_context(lm: Any, greedy: Backbone) -> None:
    users = heard(1, 2 * CONTEXT + 30)
    ours = run(greedy, greedy.new_state(1), users)
    assert torch.equal(ours, stock(lm, users))
    assert ours[0, 1:].tolist() == [UNGENERATED] * DEP_Q
    assert len(ours[1:].unique()) > 40


@pytest.mark.parametrize(
    "changes",
    [
        {"depformer_weights_per_step_schedule": [0, 1, 1, 1], "depformer_low_rank_embeddings": 8},
        {
            "depformer_weights_per_step_schedule": [0, 0, 0, 0],
            "depformer_multi_linear": False,
            "depformer_pos_emb": "sin",
        },
        {"kv_repeat": 2, "norm": "layer_norm", "positional_embedding": "rope_concat", "layer_scale": 0.5},
        {"delays": [0, 0, 2, 1, 3, 0, 1, 2, 0], "depformer_pos_emb": "rope", "norm_emb": True},
        {"gating": "none", "depformer_gating": "silu", "hidden_scale": 2, "norm": "rms_norm"},
        {"positional_embedding": "sin_rope", "bias_proj": True, "demux_second_text_stream": True},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_every_kind_of_the_family_makes_the_package_s_tokens(changes: dict[str, Any]) -> None:
    lm = tiny_lm(5, **changes)
    users = heard(2, 40)
    backbone = Backbone(lm, BackboneOptions(sampling=GREEDY))
    assert torch.equal(run(backbone, backbone.new_state(1), users), stock(lm, users))


def test_a_model_without_codebooks_of_its_own_makes_text_and_extra_heads() -> None:
    lm = tiny_lm(5, dep_q=0, n_q=4, delays=[2, 0, 0, 0, 0], extra_heads_num_heads=2, extra_heads_dim=3)
    backbone = Backbone(lm, BackboneOptions(sampling=GREEDY))
    state, inputs, users = backbone.new_state(1), backbone.new_inputs(1), heard(3, 30)
    ours, heads = [], []
    for codes in users:
        inputs.user_codes[0] = codes
        ours.append(backbone.step(state, inputs).text.clone())
        extra = backbone.extra_heads(state)
        assert extra is not None
        heads.append(extra[0])

    from moshi.models import LMGen

    generator = LMGen(lm, use_sampling=False, support_out_of_sync=True)
    with torch.no_grad(), generator.streaming(1):
        for step, codes in enumerate(users):
            out = generator.step_with_extra_heads(codes[None, :, None])
            assert out is not None
            torch.testing.assert_close(heads[step], torch.stack(out[1], 2)[0, 0])
            if step >= 2:
                assert out[0][0, 0, 0] == ours[step][0]


# --- slots ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["greedy", "sampling"])
def test_desynchronised_slots_with_a_reset_make_what_each_makes_alone(
    kind: str, request: pytest.FixtureRequest
) -> None:
    backbone: Backbone = request.getfixturevalue(kind)
    steps, reset_at = 110, 40
    users = [heard(10 + slot, steps) for slot in range(4)]
    how = [Sampling(seed=slot, top_k_audio=20 + slot, temperature_text=0.5 + slot / 4) for slot in range(4)]

    def new(state: BackboneState, slot: int, of: int) -> None:
        state.reset(slot)
        if kind == "sampling":
            state.set_sampling(slot, how[of])

    alone = []
    for slot in range(4):
        state = backbone.new_state(1)
        new(state, 0, slot)
        made = run(backbone, state, users[slot][:reset_at] if slot == 2 else users[slot])
        if slot == 2:
            new(state, 0, slot)
            made = torch.cat([made, run(backbone, state, users[slot][reset_at:])])
        alone.append(made)

    state, inputs = backbone.new_state(4), backbone.new_inputs(4)
    for slot in range(4):
        new(state, slot, slot)
    read, together = [0] * 4, [[] for _ in range(4)]
    turns = torch.Generator().manual_seed(0)
    while min(read) < steps:
        active = (torch.rand(4, generator=turns) < 0.8) & torch.tensor([at < steps for at in read])
        inputs.active.copy_(active)
        for slot in range(4):
            if active[slot]:
                if slot == 2 and read[2] == reset_at:
                    new(state, 2, 2)
                inputs.user_codes[slot] = users[slot][read[slot]]
        out = backbone.step(state, inputs)
        assert out.finite.all()
        for slot in range(4):
            if active[slot]:
                together[slot].append(torch.cat([out.text[slot, None], out.codes[slot]]))
                read[slot] += 1
            else:
                assert not out.ready[slot]
                assert (out.codes[slot] == UNGENERATED).all()
    for slot in range(4):
        assert torch.equal(torch.stack(together[slot]), alone[slot]), f"slot {slot}"


def test_tokens_do_not_depend_on_row_or_batch_size(sampling: Backbone) -> None:
    users = heard(4, 50)
    said = []
    for n, slot in ((1, 0), (2, 1), (8, 5)):
        whole = sampling.new_state(8)
        state = whole.first(n)
        whole.set_sampling(slot, Sampling(seed=77))
        said.append(run(sampling, state, users, slot))
    assert torch.equal(said[0], said[1])
    assert torch.equal(said[0], said[2])


def test_seeds_decide_and_differ(sampling: Backbone) -> None:
    users, state = heard(4, 30), sampling.new_state(1)
    said = []
    for seed in (1, 1, 2):
        state.reset(0)
        state.set_sampling(0, Sampling(seed=seed))
        said.append(run(sampling, state, users))
    assert torch.equal(said[0], said[1])
    assert (said[0] != said[2]).float().mean() > 0.5


def test_every_step_and_stream_draws_its_own_numbers(sampling: Backbone) -> None:
    state, drawn = sampling.new_state(2), []
    inputs = sampling.new_inputs(2)
    state.set_sampling(1, Sampling(seed=1))
    for _ in range(20):
        sampling.step(state, inputs)
        drawn.append(state.work.keys.flatten().clone())
    assert len(torch.cat(drawn).unique()) == 20 * 2 * (1 + DEP_Q)


def test_a_masked_slot_does_not_change_by_a_bit(sampling: Backbone) -> None:
    state = sampling.new_state(3)
    inputs = sampling.new_inputs(3)
    for codes in heard(5, 2 * CONTEXT // 3):
        inputs.user_codes.copy_(codes.expand(3, -1))
        sampling.step(state, inputs)
    before = changed(state)
    inputs.active[1] = False
    inputs.forced_text.fill_(9)
    inputs.forced_audio.fill_(9)
    for codes in heard(6, CONTEXT):
        inputs.user_codes.copy_(codes.expand(3, -1))
        sampling.step(state, inputs)
    for name, tensor in state.tensors().items():
        assert torch.equal(tensor[1], before[name][1]), name
    assert not torch.equal(state.tensors()["layer1.keys"][0], before["layer1.keys"][0])
    assert state.memory.step.tolist() == [66 + 100, 66, 66 + 100]


def test_first_gives_the_same_view_of_the_same_memory(greedy: Backbone) -> None:
    state = greedy.new_state(4)
    two = state.first(2)
    assert two is state.first(2)
    for name, tensor in two.tensors().items():
        whole = state.tensors()[name]
        assert tensor.shape == (2, *whole.shape[1:])
        assert tensor.data_ptr() == whole.data_ptr()


def test_a_reset_slot_is_as_new_and_the_others_stay(sampling: Backbone) -> None:
    state = sampling.new_state(2)
    inputs = sampling.new_inputs(2)
    for codes in heard(5, 20):
        inputs.user_codes.copy_(codes.expand(2, -1))
        sampling.step(state, inputs)
    before = changed(state)
    state.reset(0)
    fresh = sampling.new_state(1)
    for name, tensor in state.tensors().items():
        assert torch.equal(tensor[0], fresh.tensors()[name][0]), name
        assert torch.equal(tensor[1], before[name][1]), name


@pytest.mark.parametrize("options", [BackboneOptions(), BackboneOptions(context=40, sinks=4, kv_dtype="int8")])
def test_a_fork_goes_on_bit_identically(lm: Any, options: BackboneOptions) -> None:
    backbone = Backbone(lm, options)
    state, users = backbone.new_state(2), heard(7, 130)
    state.set_sampling(0, Sampling(seed=5))
    run(backbone, state, users[:70])
    saved = save_row(state, 0)
    copy_row(state, 0, 1)
    went_on = run(backbone, state, users[70:])
    after = changed(state)
    assert torch.equal(run(backbone, state, users[70:], slot=1), went_on)
    elsewhere = backbone.new_state(3)
    load_row(elsewhere, 2, saved)
    assert torch.equal(run(backbone, elsewhere, users[70:], slot=2), went_on)
    for name, tensor in elsewhere.tensors().items():
        assert torch.equal(tensor[2], after[name][0]), name


class Operations(TorchDispatchMode):
    """Writes down every operation and the shapes it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = tuple(tuple(a.shape) if isinstance(a, torch.Tensor) else None for a in args)
        self.seen.append((str(func), shapes))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [BackboneOptions(), BackboneOptions(sinks=4, kv_dtype="int8")])
def test_a_step_is_the_same_operations_whatever_the_data_and_asks_the_host_nothing(
    lm: Any, options: BackboneOptions
) -> None:
    backbone = Backbone(lm, options)
    state, inputs, outputs = backbone.new_state(3), backbone.new_inputs(3), backbone.new_outputs(3)
    recorded = []
    for active, forced, users in ((False, CHOOSE, heard(0, 1)), (True, 5, heard(1, 1)), (True, CHOOSE, heard(2, 1))):
        inputs.active.copy_(torch.tensor([True, active, False]))
        inputs.forced_text[0] = inputs.forced_audio[0] = forced
        inputs.user_codes.copy_(users)
        with Operations() as operations:
            backbone.step(state, inputs, outputs)
        recorded.append(operations.seen)
        for name in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "equal.default"):
            assert not [seen for seen, _ in operations.seen if f"aten.{name}" in seen]
        assert len(operations.seen) > 100
        state.memory.step.add_(60)  # the third step is past the end of the context
    assert recorded[0] == recorded[1] == recorded[2]


def test_halves_in_different_precisions_stay_near_single_precision(lm: Any) -> None:
    """bfloat16 has 8 bits: with the same tokens, hidden states (standard deviation 1) are within 0.06."""
    users, forced, hidden = heard(3, 60), torch.arange(60) % TEXT_CARD, []
    for temporal, depth in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
        model = tiny_lm(3)
        apply_precision(model, Precision(temporal=str(temporal)[6:], depth=str(depth)[6:]))
        backbone = Backbone(model, BackboneOptions(sampling=GREEDY))
        state, inputs, made = backbone.new_state(1), backbone.new_inputs(1), []
        for text, codes in zip(forced, users, strict=True):
            inputs.forced_text[0], inputs.forced_audio[0], inputs.user_codes[0] = text, codes, codes
            assert backbone.step(state, inputs).finite
            made.append(state.work.hidden[0].to(torch.float32, copy=True))
        assert state.caches[0].keys.dtype == temporal
        hidden.append(torch.stack(made))
    assert 0.8 < hidden[0].std() < 1.2
    assert 0.0 < (hidden[0] - hidden[1]).abs().max() < 0.06


# --- what a slot may be told -----------------------------------------------------------------------------------


def test_forced_text_is_made_and_remembered_like_text_it_chose(greedy: Backbone) -> None:
    users = heard(8, 60)
    state = greedy.new_state(1)
    free = run(greedy, state, users)
    state.reset(0)
    assert torch.equal(run(greedy, state, users, forced_text=free[:, 0]), free)
    state.reset(0)
    text = torch.full((60,), CHOOSE)
    text[20:25] = torch.tensor([7, 0, TEXT_CARD - 1, 3, 3])
    forced = run(greedy, state, users, forced_text=text)
    assert torch.equal(forced[:20], free[:20])
    assert torch.equal(forced[20:25, 0], text[20:25])
    assert not torch.equal(forced[25:], free[25:])


def test_forced_frames_come_out_as_they_went_in(greedy: Backbone) -> None:
    users, state = heard(8, 60), greedy.new_state(1)
    frames = torch.full((60, DEP_Q), CHOOSE)
    frames[20:30] = torch.randint(0, CARD, (10, DEP_Q), generator=torch.Generator().manual_seed(2))
    frames[40, 1] = 5  # one codebook alone
    out = run(greedy, state, users, forced_audio=frames)[:, 1:]
    delay = greedy.delays.max_delay
    assert torch.equal(out[20 + delay : 30 + delay], frames[20:30])
    assert out[40 + delay, 1] == 5


def test_forcing_what_was_chosen_changes_nothing(sampling: Backbone) -> None:
    users, state = heard(8, 80), sampling.new_state(1)
    free = run(sampling, state, users)
    state.reset(0)
    frames = torch.full((80, DEP_Q), CHOOSE)
    frames[:-1] = free[1:, 1:]  # the frame handed out at step t + 1 began at t
    again = run(sampling, state, users, forced_text=free[:, 0], forced_audio=frames)
    assert torch.equal(again, free)


def test_forced_codes_are_read_as_the_package_reads_replaced_ones(lm: Any, greedy: Backbone) -> None:
    users, generator = heard(9, 60), torch.Generator().manual_seed(3)
    raw = torch.randint(0, CARD, (60, DEP_Q), generator=generator)  # by step, not by frame
    frames = raw.clone()
    frames[:-1, 1:] = raw[1:, 1:]  # codebooks 1 … have a delay of 1
    ours = run(greedy, greedy.new_state(1), users, forced_audio=frames)

    from moshi.models import LMGen

    texts: list[int] = []
    stock_gen = LMGen(lm, use_sampling=False, support_out_of_sync=True, on_text_hook=lambda t: texts.append(int(t)))
    with torch.no_grad(), stock_gen.streaming(1):
        for codes, replaced in zip(users, raw, strict=True):
            stock_gen.step(codes[None, :, None], depformer_replace_tokens=replaced[None, :, None])
    assert ours[:, 0].tolist() == texts


def test_tokens_that_do_not_exist_are_taken_as_ones_that_do(greedy: Backbone) -> None:
    state, inputs = greedy.new_state(1), greedy.new_inputs(1)
    inputs.user_codes.fill_(10**9)
    inputs.forced_text.fill_(10**9)
    inputs.forced_audio.fill_(10**9)
    for _ in range(3):
        out = greedy.step(state, inputs)
    assert out.finite.all()
    assert out.text.item() == TEXT_CARD - 1
    assert out.codes[0].tolist() == [CARD - 1] * DEP_Q


# --- what goes wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["layer0.keys", "layer1.values"])
def test_a_number_that_is_none_is_flagged_and_stays_in_its_slot(sampling: Backbone, where: str) -> None:
    users = [heard(20 + slot, 60) for slot in range(3)]

    def go(state: BackboneState, start: int, stop: int) -> Sequence[torch.Tensor]:
        inputs, made = sampling.new_inputs(3), []
        for step in range(start, stop):
            for slot in range(3):
                inputs.user_codes[slot] = users[slot][step]
            out = sampling.step(state, inputs)
            made.append(torch.cat([out.text[:, None], out.codes, out.finite[:, None]], dim=1))
        return made

    unharmed, harmed = sampling.new_state(3), sampling.new_state(3)
    go(unharmed, 0, 30)
    go(harmed, 0, 30)
    harmed.tensors()[where][1, 0, 7, 0] = torch.nan
    want, got = go(unharmed, 30, 60), go(harmed, 30, 60)
    for one, other in zip(want, got, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[2], other[2])
        assert not other[1, -1]
        assert one[:, -1].all()
    harmed.reset(1)
    assert all(row[1, -1] for row in go(harmed, 0, 20))


@pytest.mark.parametrize("changes", [{"cross_attention": True}, {"context": None}])
def test_models_that_cannot_be_served_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Backbone(tiny_lm(**changes))


@pytest.mark.parametrize("wrong", [{"context": 1}, {"sinks": 100}, {"sinks": -1}, {"kv_dtype": "int3"}])
def test_options_that_cannot_work_are_refused(lm: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Backbone(lm, BackboneOptions(**wrong))
