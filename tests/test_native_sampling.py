"""Counted random numbers: the right distribution, the same token wherever a slot lies."""

from __future__ import annotations

import pytest
import torch

from duplex.errors import ConfigError
from duplex.thinker_talker.native.model.sampling import (
    Sampling,
    TopK,
    choose,
    gumbel,
    index_table,
    signed_64,
    stream_keys,
    stream_table,
)

CPU = torch.device("cpu")
STREAMS = stream_table(9, CPU)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def keys(seeds: torch.Tensor | int, steps: torch.Tensor | int, n: int = 1) -> torch.Tensor:
    def full(value: torch.Tensor | int) -> torch.Tensor:
        return value if isinstance(value, torch.Tensor) else torch.full((n,), value, dtype=torch.int64)

    return stream_keys(full(seeds), full(steps), STREAMS)


def draw(logits: torch.Tensor, drawn_from: torch.Tensor, temperature: float, top_k: int) -> torch.Tensor:
    """``logits`` float32[V] for every key."""
    n, size = len(drawn_from), len(logits)
    temperatures, top_ks = torch.full((n,), temperature), torch.full((n,), top_k, dtype=torch.int64)
    return choose(logits.expand(n, -1), drawn_from, temperatures, top_ks, index_table(size, CPU), 256)


def chi_square(tokens: torch.Tensor, probabilities: torch.Tensor) -> float:
    """In standard deviations of the statistic from its mean."""
    expected = probabilities * len(tokens)
    seen = torch.bincount(tokens, minlength=len(probabilities)).float()
    kept = expected > 0
    assert seen[~kept].sum() == 0
    statistic = ((seen - expected)[kept] ** 2 / expected[kept]).sum().item()
    freedom = int(kept.sum()) - 1
    return (statistic - freedom) / (2 * freedom) ** 0.5


@pytest.mark.parametrize("vary", ["step", "seed", "stream"])
def test_tokens_have_the_softmax_s_probabilities(vary: str) -> None:
    logits = torch.linspace(-2.0, 2.0, 24)
    n, numbers = 90_000, torch.arange(90_000)
    drawn_from = {
        "step": keys(torch.full((n,), 7), numbers)[:, 3],
        "seed": keys(numbers, torch.full((n,), 5))[:, 0],
        "stream": keys(torch.full((n // 9,), 3), numbers[: n // 9]).flatten(),
    }[vary]
    assert len(drawn_from) == n
    tokens = draw(logits, drawn_from, temperature=0.8, top_k=0)
    assert abs(chi_square(tokens, torch.softmax(logits / 0.8, 0))) < 4.0
    # The same numbers do not fit another temperature: the test can tell.
    assert chi_square(tokens, torch.softmax(logits / 0.75, 0)) > 8.0


@pytest.mark.parametrize("top_k", [1, 2, 5, 24])
def test_only_the_k_likeliest_are_drawn_and_in_their_proportions(top_k: int) -> None:
    logits = torch.linspace(2.0, -2.0, 24)[torch.randperm(24, generator=torch.Generator().manual_seed(0))]
    best = torch.topk(logits, top_k).indices
    tokens = draw(logits, keys(torch.full((40_000,), 11), torch.arange(40_000))[:, 1], 1.0, top_k)
    assert set(tokens.tolist()) == set(best.tolist())
    if top_k > 1:
        probabilities = torch.zeros(24).index_copy(0, best, torch.softmax(logits[best], 0))
        assert abs(chi_square(tokens, probabilities)) < 4.0


def test_a_temperature_of_zero_takes_the_likeliest_token() -> None:
    logits = torch.randn(32, generator=torch.Generator().manual_seed(0))
    assert (draw(logits, keys(0, torch.arange(64), 64)[:, 0], 0.0, 5) == logits.argmax()).all()


def test_every_slot_has_its_own_temperature_and_top_k() -> None:
    logits = torch.linspace(0.0, 1.0, 16).expand(3, -1)
    table, seen = index_table(16, CPU), [set(), set(), set()]
    for step in range(300):
        drawn_from = keys(torch.arange(3), step, 3)[:, 0]
        tokens = choose(logits, drawn_from, torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0, 4, 0]), table, 256)
        for row, token in zip(seen, tokens.tolist(), strict=True):
            row.add(token)
    assert seen[0] == {15}
    assert seen[1] == {12, 13, 14, 15}
    assert seen[2] == set(range(16))


def test_a_token_depends_on_seed_step_and_stream_not_on_the_row() -> None:
    logits = torch.zeros(512)
    steps = torch.arange(40)
    alone = torch.stack([draw(logits, keys(9, int(step))[0], 1.0, 0) for step in steps])
    together = draw(logits, keys(torch.full((40,), 9), steps).flatten(), 1.0, 0).view(40, 9)
    assert torch.equal(alone, together)
    # Nothing repeats but by chance (360 draws of 512 tokens).
    assert len(together.flatten().unique()) > 230
    assert (together[:, 0] == together[:, 1]).sum() < 5
    assert (together[1:] == together[:-1]).sum() < 8


def test_noise_of_neighbouring_seeds_and_steps_is_uncorrelated() -> None:
    table = index_table(4096, CPU)
    noise = gumbel(keys(torch.tensor([1, 2, 1, -1, 2**62]), torch.tensor([5, 5, 6, 5, 5]))[:, 0], table)
    correlation = torch.corrcoef(noise) - torch.eye(5)
    assert correlation.abs().max() < 4 / 4096**0.5
    assert abs(noise.mean().item() - 0.5772) < 0.03
    assert abs(noise.std().item() - 1.2825) < 0.03


def test_noise_is_finite_at_both_ends_of_the_uniform() -> None:
    noise = gumbel(keys(torch.arange(400), torch.zeros(400, dtype=torch.int64))[:, 0], index_table(4000, CPU))
    assert torch.isfinite(noise).all()
    assert noise.max() > 13  # 1.6 million draws: the tail is there
    assert noise.min() < -2.4


def test_the_floor_is_the_kth_largest_and_none_for_zero() -> None:
    logits = torch.tensor([[1.0, 4.0, 3.0, 2.0], [1.0, 4.0, 4.0, 2.0], [0.0, 1.0, 2.0, 3.0]])
    floor = TopK.of(torch.tensor([3, 1, 0]), 256, 4).floor(logits)[:, 0]
    assert floor.tolist() == [2.0, 4.0, float("-inf")]


def test_seeds_of_any_size_are_taken_modulo_two_to_the_64() -> None:
    for seed in (0, 5, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**63), 2**70 + 5):
        held = torch.tensor(signed_64(seed))
        assert int(held) % 2**64 == seed % 2**64


@pytest.mark.parametrize(
    "wrong", [{"temperature_text": -0.1}, {"temperature_audio": float("nan")}, {"top_k_text": -1}, {"top_k_audio": 257}]
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong).check(256)
    Sampling(top_k_audio=256, temperature_text=0.0).check(256)
