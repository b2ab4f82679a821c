"""Reading a prompt many positions at a time leaves what single steps leave."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_tiny import CARD, DEP_Q, TEXT_CARD, USER_Q, tiny_lm

from duplex.errors import ConfigError
from duplex.thinker_talker.native.model import prompt
from duplex.thinker_talker.native.model.backbone import Backbone, BackboneOptions
from duplex.thinker_talker.native.model.backbone_state import BackboneState
from duplex.thinker_talker.native.model.sampling import Sampling

STREAMS = 1 + DEP_Q + USER_Q


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lm() -> Any:
    return tiny_lm(3)


def some_tokens(seed: int, steps: int) -> torch.Tensor:
    """int64[STREAMS, steps]"""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(0, TEXT_CARD, (1, steps), generator=generator)
    return torch.cat([text, torch.randint(0, CARD, (DEP_Q + USER_Q, steps), generator=generator)])


def stepped(
    backbone: Backbone, state: BackboneState, slot: int, tokens: torch.Tensor, forced: bool = True
) -> list[int]:
    """The slot's text. Without ``forced`` it makes its own; it hears the tokens' user all the same."""
    inputs = backbone.new_inputs(state.n_slots)
    inputs.active.copy_(torch.arange(state.n_slots) == slot)
    said = []
    for step in tokens.T:
        if forced:
            inputs.forced_text[slot], inputs.forced_audio[slot] = step[0], step[1 : 1 + DEP_Q]
        inputs.user_codes[slot] = step[1 + DEP_Q :]
        said.append(int(backbone.step(state, inputs).text[slot]))
    return said


def same(one: BackboneState, other: BackboneState, atol: float) -> None:
    """Whole numbers alike, others within ``atol``."""
    for name, tensor in one.tensors().items():
        assert tensor.dtype == other.tensors()[name].dtype
        tolerance = atol if tensor.is_floating_point() else (1.0 if tensor.dtype == torch.int8 else 0.0)
        torch.testing.assert_close(
            tensor, other.tensors()[name], rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("block", [3, 128])
@pytest.mark.parametrize(
    "options",
    [
        BackboneOptions(),
        BackboneOptions(context=30),
        BackboneOptions(context=30, sinks=4),
        BackboneOptions(context=30, sinks=4, kv_dtype="int8"),
        BackboneOptions(context=30, sinks=27, kv_dtype="bfloat16"),
    ],
    ids=["whole", "window", "sinks", "int8", "short ring"],
)
def test_a_prompt_read_at_once_leaves_what_steps_leave(
    lm: Any, options: BackboneOptions, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32: differences are those of the order of adding, 2e-5 on keys and values of size 1 to 4."""
    monkeypatch.setattr(prompt, "BLOCK", block)
    backbone = Backbone(lm, options)
    one, other = backbone.new_state(3), backbone.new_state(3)
    for state in (one, other):
        state.set_sampling(1, Sampling(seed=4))
    before = some_tokens(1, 9)
    for state in (one, other):
        stepped(backbone, state, 1, before, forced=False)  # something it chose is still on its way
    tokens = some_tokens(2, 70)
    stepped(backbone, one, 1, tokens)
    for part in tokens.split([1, 40, 29], dim=1):
        assert bool(backbone.prefill(other, 1, part))
    coarse = options.kv_dtype == "bfloat16"  # a rounding may fall to the other side
    same(one, other, 0.02 if coarse else 2e-5)
    after = some_tokens(3, 25)
    assert stepped(backbone, one, 1, after, forced=False) == stepped(backbone, other, 1, after, forced=False)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=4), st.integers(0, 3))
def test_any_chunks_of_any_delays_are_one_prompt(chunks: list[int], seed: int) -> None:
    backbone = DELAYED
    one, other = backbone.new_state(1), backbone.new_state(1)
    tokens = some_tokens(seed, sum(chunks))
    stepped(backbone, one, 0, tokens)
    for part in tokens.split(chunks, dim=1):
        backbone.prefill(other, 0, part)
    same(one, other, 2e-5)


DELAYED = Backbone(
    tiny_lm(2, delays=[0, 0, 2, 1, 3, 0, 1, 2, 0], dim=32, num_heads=2, num_layers=1),
    BackboneOptions(context=12, sinks=2),
)


def test_a_prompt_leaves_other_slots_alone_and_says_when_something_was_not_finite(lm: Any) -> None:
    backbone = Backbone(lm)
    state = backbone.new_state(3)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    assert bool(backbone.prefill(state, 1, some_tokens(0, 20)))
    for name, tensor in state.tensors().items():
        assert torch.equal(tensor[[0, 2]], before[name][[0, 2]]), name
    state.tensors()["layer0.values"][1, 0, 3, 0] = torch.inf
    assert not bool(backbone.prefill(state, 1, some_tokens(0, 20)))


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (torch.zeros(STREAMS - 1, 5, dtype=torch.int64), rf"int64 \[{STREAMS}, steps\]"),
        (torch.zeros(STREAMS, 5), "int64"),
        (torch.full((STREAMS, 5), -1), "text must be between 0"),
        (torch.full((STREAMS, 5), CARD), "the agent's codes must be between 0 and 63"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(lm: Any, tokens: torch.Tensor, says: str) -> None:
    backbone = Backbone(lm)
    with pytest.raises(ConfigError, match=says):
        backbone.prefill(backbone.new_state(1), 0, tokens)
