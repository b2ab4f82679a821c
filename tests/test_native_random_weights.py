"""Random weights: seeded, shaped like real ones, and alive: what is heard changes what is said."""

from __future__ import annotations

import pytest
import torch
from native_tiny import CARD, DEP_Q, TEXT_CARD, USER_Q, tiny_lm, tiny_mimi

STEPS = 80


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def greedy(lm: object, user_seed: int, steps: int = STEPS) -> torch.Tensor:
    """int64[1 + dep_q, steps - 1]"""
    from moshi.models import LMGen

    generator = torch.Generator().manual_seed(user_seed)
    said = []
    stock = LMGen(lm, use_sampling=False)
    with stock.streaming(1):
        for _ in range(steps):
            out = stock.step(torch.randint(0, CARD, (1, USER_Q, 1), generator=generator))
            if out is not None:
                said.append(out[0, :, 0])
    return torch.stack(said, 1)


def test_the_tiny_model_says_many_things_and_hears_what_it_is_told() -> None:
    one, same, other = greedy(tiny_lm(), 1), greedy(tiny_lm(), 1), greedy(tiny_lm(), 2)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == (1 + DEP_Q, STEPS - 1)
    for stream in one:
        assert len(stream.unique()) > 20
        assert stream.bincount().max() < STEPS / 3
    assert one[0].max() < TEXT_CARD
    assert one[1:].max() < CARD


def test_seeds_differ_and_the_same_seed_is_the_same_model() -> None:
    a, b, c = (tiny_lm(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[name], b[name]) for name in a)
    matrices = [name for name, tensor in a.items() if tensor.dim() == 2]
    assert len(matrices) > 40
    assert not any(torch.equal(a[name], c[name]) for name in matrices)
    assert len({a[name].flatten()[0].item() for name in matrices}) == len(matrices)  # no two tensors drawn alike


def test_the_tiny_codec_hears_and_sounds() -> None:
    mimi = tiny_mimi()
    sound = 0.1 * torch.randn(1, 1, 20 * mimi.frame_size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        codes = mimi.encode(sound)
        heard = mimi.decode(codes)
    assert codes.shape == (1, DEP_Q, 20)
    assert all(len(book.unique()) > 5 for book in codes[0])
    assert heard.shape == sound.shape
    assert 0.01 < heard.std() < 1.0
