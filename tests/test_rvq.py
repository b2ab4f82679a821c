"""The residual quantiser: the package's codes on its codebooks, training that trains, files that come back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from duplex.codecs import rvq_checkpoint
from duplex.codecs.rvq import Rvq, RvqConfig
from duplex.codecs.rvq_training import RvqTrainer, TrainingOptions, initialise
from duplex.codecs.rvq_usage import UsageCounter
from duplex.errors import ConfigError, WeightsCorruptError, WeightsMissingError

os.environ.setdefault("NO_TORCH_COMPILE", "1")  # the package compiles at import otherwise
import itertools

from moshi.quantization import ResidualVectorQuantizer, SplitResidualVectorQuantizer

DIM = 8


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def clusters(n: int, seed: int = 0, spread: float = 0.05, centres: int = 24) -> Tensor:
    """float32[1, DIM, n]: points around a few centres."""
    of_centres, of_points = torch.Generator().manual_seed(1), torch.Generator().manual_seed(100 + seed)
    means = torch.randn(centres, DIM, generator=of_centres)
    points = means[torch.randint(0, centres, (n,), generator=of_points)]
    return (points + spread * torch.randn(n, DIM, generator=of_points)).t()[None]


def rows(latents: Tensor, batch: int) -> Tensor:
    """The same points as ``batch`` rows."""
    return latents[0].t().reshape(batch, -1, DIM).transpose(1, 2)


def error(rvq: Rvq, latents: Tensor, n_codebooks: int | None = None) -> float:
    return float((rvq.decode(rvq.encode(latents, n_codebooks)) - latents).square().mean())


def small(codebooks: int = 4, size: int = 16, semantic: int = 0, dim: int = DIM) -> Rvq:
    torch.manual_seed(0)
    return Rvq(RvqConfig(input_dim=DIM, dim=dim, codebooks=codebooks, codebook_size=size, semantic_codebooks=semantic))


def filled(semantic: int = 0) -> Rvq:
    rvq = small(semantic=semantic)
    initialise(rvq, clusters(600))
    return rvq


# -- against the package ------------------------------------------------------------------------------------


def package_quantiser(split: bool) -> nn.Module:
    """As Mimi's, at 32 codebooks of 2048 (split), or without projections; filled as a trained one would be: each
    codebook on the scale of what the ones before it leave."""
    torch.manual_seed(5)
    theirs: nn.Module = (
        SplitResidualVectorQuantizer(
            dimension=32, n_q=32, n_q_semantic=1, bins=2048, input_dimension=64, output_dimension=64
        )
        if split
        else ResidualVectorQuantizer(dimension=64, n_q=8, bins=512)
    )
    scale = 1.0
    for name, buffer in theirs.named_buffers():
        if name.endswith("embedding_sum"):
            usage = theirs.get_buffer(name.replace("embedding_sum", "cluster_usage"))
            usage.copy_(torch.rand_like(usage) * 20 + 0.1)
            buffer.copy_(torch.randn_like(buffer) * usage[:, None] * scale)
            scale *= 0.85
    return theirs.eval()


@pytest.mark.parametrize("split", [True, False])
def test_codes_and_latents_are_the_packages_on_its_codebooks(split: bool) -> None:
    theirs = package_quantiser(split)
    state = (
        {f"quantizer.{name}": tensor for name, tensor in theirs.state_dict().items()} if split else theirs.state_dict()
    )
    ours = rvq_checkpoint.from_moshi(state)
    assert (ours.config.semantic_codebooks, ours.config.projected) == ((1, True) if split else (0, False))
    latents = torch.randn(3, 64, 100)
    codes = theirs.encode(latents)
    assert torch.equal(ours.encode(latents), codes)
    for k in (1, 2, ours.config.codebooks):
        torch.testing.assert_close(ours.decode(codes[:, :k]), theirs.decode(codes[:, :k]), rtol=1e-5, atol=1e-5)
        assert torch.equal(ours.encode(latents, k), codes[:, :k]), "a shorter code is the start of the longer one"


def test_weights_without_a_quantiser_are_refused() -> None:
    with pytest.raises(WeightsCorruptError, match="no residual quantiser"):
        rvq_checkpoint.from_moshi({"encoder.weight": torch.zeros(3)})


# -- codes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("semantic", [0, 1, 2])
def test_each_row_is_decoded_with_its_own_number_of_codebooks(semantic: int) -> None:
    rvq = filled(semantic)
    codes = rvq.encode(rows(clusters(60), 4))
    counts = torch.tensor([1, 2, 3, 4])
    for row, k in enumerate(counts.tolist()):
        codes[row, k:] = -7  # never sent, so there may be anything
    mixed = rvq.decode(codes, counts)
    for row, k in enumerate(counts.tolist()):
        torch.testing.assert_close(mixed[row], rvq.decode(codes[row : row + 1, :k])[0])


@pytest.mark.parametrize("count", [0, 5, -1])
def test_a_number_of_codebooks_that_is_not_there_is_refused(count: int) -> None:
    with pytest.raises(ConfigError, match="1 to 4"):
        filled().encode(clusters(10), count)
    with pytest.raises(ConfigError, match="4 codebooks"):
        filled().decode(torch.zeros(1, 5, 2, dtype=torch.int64))


def test_all_codebooks_semantic_is_refused() -> None:
    with pytest.raises(ValueError, match="leave none"):
        RvqConfig(input_dim=8, dim=8, codebooks=2, codebook_size=4, semantic_codebooks=2)


# -- training -----------------------------------------------------------------------------------------------


def trained(rvq: Rvq, steps: int, options: TrainingOptions | None = None, spread: float = 0.3) -> RvqTrainer:
    trainer = RvqTrainer(rvq, options or TrainingOptions(decay=0.9))
    for step in range(steps):
        trainer.step(rows(clusters(256, seed=step, spread=spread), 8))
    return trainer


def test_the_error_falls_with_training_and_with_codebooks() -> None:
    unseen = clusters(1000, seed=999, spread=0.3)
    rvq = small()
    initialise(rvq, clusters(200, spread=0.3), iterations=1)
    before = error(rvq, unseen)
    trained(rvq, 60)
    by_codebooks = [error(rvq, unseen, k) for k in (1, 2, 3, 4)]
    assert by_codebooks[-1] < 0.85 * before
    assert all(more < 0.9 * fewer for fewer, more in itertools.pairwise(by_codebooks))


def test_kmeans_beats_random_vectors_and_random_numbers() -> None:
    sample, unseen = clusters(1000), clusters(1000, seed=7)
    errors = {}
    for name, iterations in (("k-means", 20), ("vectors", 0)):
        rvq = small(size=32)
        initialise(rvq, sample, iterations=iterations)
        errors[name] = error(rvq, unseen)
    rvq = small(size=32)
    for codebook in rvq.codebooks:
        codebook.fill(torch.randn_like(codebook.sums), torch.ones_like(codebook.usage))
    errors["numbers"] = error(rvq, unseen)
    assert errors["k-means"] < 0.7 * errors["vectors"] < 0.7 * errors["numbers"], errors


def test_dead_entries_come_back_to_life() -> None:
    def one_codebook() -> Rvq:
        rvq = small(codebooks=1, size=32)
        initialise(rvq, clusters(500, spread=0.3))
        codebook = rvq.codebooks[0]
        codebook.sums[8:] += 1e3 * codebook.usage[8:, None]  # far from everything
        codebook.refresh()
        return rvq

    def used_share(rvq: Rvq) -> float:
        counter = UsageCounter(1, 32)
        counter.add(rvq.encode(clusters(2000, seed=3, spread=0.3)))
        return counter.usage()[0].used_share

    never = one_codebook()
    assert used_share(never) <= 0.25
    trained(never, 60, TrainingOptions(decay=0.9, dead_below=0.0))
    assert used_share(never) <= 0.25
    revived = one_codebook()
    trainer = RvqTrainer(revived, TrainingOptions(decay=0.9))
    replaced = [sum(trainer.step(rows(clusters(256, seed=s, spread=0.3), 8)).replaced) for s in range(60)]
    assert used_share(revived) > 0.9
    assert error(revived, clusters(500, seed=8)) < 0.5 * error(never, clusters(500, seed=8))
    assert sum(replaced) >= 24
    assert sum(replaced[-20:]) <= 4, "and they stay"


def test_dropout_leaves_codebooks_out_row_by_row_and_never_semantic_ones() -> None:
    rvq = filled(semantic=2)
    trainer = RvqTrainer(rvq, TrainingOptions(dropout_share=0.5), seed=1)
    seen = []
    for step in range(40):
        result = trainer.step(rows(clusters(160, seed=step), 16))
        assert torch.equal((result.codes >= 0).sum(dim=1), result.n_codebooks[:, None].expand(-1, 10))
        seen += result.n_codebooks.tolist()
    assert set(seen) == {2, 3, 4}
    assert 0.55 < seen.count(4) / len(seen) < 0.78, "half, and a third of the others"
    off = RvqTrainer(rvq, TrainingOptions(dropout_share=0.0)).step(rows(clusters(160), 16))
    assert off.n_codebooks.tolist() == [4] * 16


def test_what_a_decoder_sees_under_dropout_is_what_it_will_get() -> None:
    rvq = filled(semantic=1)
    latents = rows(clusters(160, seed=6), 16)
    codes = rvq.encode(latents)
    expected = {k: rvq.decode(codes[:, :k]) for k in (1, 2, 3, 4)}
    step = RvqTrainer(rvq, TrainingOptions(dropout_share=1.0), seed=2).step(latents)
    assert len(set(step.n_codebooks.tolist())) > 1
    for row, k in enumerate(step.n_codebooks.tolist()):
        torch.testing.assert_close(step.quantised[row], expected[k][row])


def test_under_dropout_the_later_codebooks_are_trained_too() -> None:
    rvq = small()
    initialise(rvq, clusters(200, spread=0.3), iterations=1)
    before = error(rvq, clusters(1000, seed=999, spread=0.3))
    trained(rvq, 120, TrainingOptions(decay=0.9, dropout_share=0.75))
    assert error(rvq, clusters(1000, seed=999, spread=0.3)) < 0.85 * before


def test_gradients_pass_straight_through_and_commitment_pulls_to_the_entries() -> None:
    rvq = filled()
    latents = rows(clusters(40, seed=2), 4).requires_grad_()
    step = RvqTrainer(rvq, TrainingOptions(dropout_share=0.0)).step(latents)
    weights = torch.randn_like(latents)
    (through,) = torch.autograd.grad((step.quantised * weights).sum(), latents, retain_graph=True)
    torch.testing.assert_close(through, weights)
    (pull,) = torch.autograd.grad(step.commitment, latents)
    moved = (latents - 0.5 * pull / pull.norm() * step.commitment.sqrt()).detach()
    assert error(rvq, moved) < error(rvq, latents.detach())
    assert all(parameter.grad is None for parameter in rvq.parameters())


def test_a_step_gives_what_encode_and_decode_give() -> None:
    rvq = filled(semantic=1)
    latents = rows(clusters(40, seed=2), 4)
    codes, quantised = rvq.encode(latents), rvq.decode(rvq.encode(latents))
    step = RvqTrainer(rvq, TrainingOptions(dropout_share=0.0)).step(latents)
    assert torch.equal(step.codes, codes)
    torch.testing.assert_close(step.quantised, quantised)


def test_a_codebook_that_everyone_dropped_forgets_nothing_and_nan_does_no_harm() -> None:
    rvq = filled()
    last = rvq.codebooks[-1]
    before = last.entries.clone()
    trainer = RvqTrainer(rvq, TrainingOptions(dropout_share=1.0, decay=0.5), seed=0)
    while (step := trainer.step(clusters(64))).n_codebooks.item() == 4:
        before = last.entries.clone()
    assert torch.equal(last.entries, before)
    broken = rows(clusters(64), 4).clone()
    broken[2, :, 3] = torch.nan
    for _ in range(10):
        trainer.step(broken)
    assert all(torch.isfinite(codebook.entries).all() for codebook in rvq.codebooks)
    assert step.codes.shape == (1, 4, 64)


def test_training_needs_filled_codebooks_and_filling_needs_enough_vectors() -> None:
    rvq = small()
    with pytest.raises(ConfigError, match="initialise"):
        RvqTrainer(rvq).step(clusters(64))
    with pytest.raises(ConfigError, match="15 latent vectors cannot fill codebooks of 16"):
        initialise(rvq, clusters(15))
    with pytest.raises(ConfigError, match="not finite"):
        initialise(rvq, clusters(64) / 0.0)


# -- usage --------------------------------------------------------------------------------------------------


def test_usage_counts_codes_by_codebook() -> None:
    counter = UsageCounter(3, 8)
    counter.add(torch.tensor([[[0, 1, 2, 3], [5, 5, 5, -1]]]))
    counter.add(torch.tensor([[[0, 1, 2, 3]]]))  # a frame with fewer codebooks
    even, one, none = counter.usage()
    assert (even.n_codes, even.used_share) == (8, 0.5)
    assert (even.perplexity, even.bits) == pytest.approx((4.0, 2.0))
    assert (one.n_codes, one.used_share) == (3, 0.125)
    assert (one.perplexity, one.bits) == pytest.approx((1.0, 0.0))
    assert (none.n_codes, none.used_share, none.perplexity) == (0, 0.0, 1.0)
    counter.reset()
    assert counter.usage()[0].n_codes == 0


# -- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("semantic", [0, 1])
def test_a_saved_run_goes_on_bit_by_bit(tmp_path: Path, semantic: int) -> None:
    def go_on(trainer: RvqTrainer) -> Tensor:
        for seed in range(20, 30):
            trainer.step(rows(clusters(64, seed=seed), 8))
        return torch.stack([codebook.sums for codebook in trainer.rvq.codebooks])

    rvq = filled(semantic)
    trainer = trained(rvq, 7, TrainingOptions(decay=0.8, dropout_share=0.9))
    rvq_checkpoint.save(tmp_path / "run" / "rvq.safetensors", rvq, trainer)
    again = rvq_checkpoint.load_trainer(tmp_path / "run" / "rvq.safetensors")
    assert again.options == trainer.options
    assert torch.equal(go_on(again), go_on(trainer))


def test_a_quantiser_comes_back_as_it_was(tmp_path: Path) -> None:
    rvq = filled(semantic=1)
    rvq_checkpoint.save(tmp_path / "rvq.safetensors", rvq)
    again = rvq_checkpoint.load(tmp_path / "rvq.safetensors")
    assert again.config == rvq.config
    latents = clusters(50, seed=4)
    assert torch.equal(again.encode(latents), rvq.encode(latents))
    assert torch.equal(again.decode(again.encode(latents)), rvq.decode(rvq.encode(latents)))
    assert [path.name for path in tmp_path.iterdir()] == ["rvq.safetensors"]
    with pytest.raises(WeightsCorruptError, match="no training state"):
        rvq_checkpoint.load_trainer(tmp_path / "rvq.safetensors")


def test_files_that_are_something_else_are_refused_with_their_name(tmp_path: Path) -> None:
    path = tmp_path / "rvq.safetensors"
    with pytest.raises(WeightsMissingError, match="There is no file"):
        rvq_checkpoint.load(path)
    torch.save({"entries": torch.zeros(3)}, path)
    with pytest.raises(WeightsCorruptError, match="not a safetensors file"):
        rvq_checkpoint.load(path)
    rvq_checkpoint.write_tensors(path, "another", {"entries": torch.zeros(3)}, {})
    with pytest.raises(WeightsCorruptError, match="another file, not a duplex-rvq one"):
        rvq_checkpoint.load(path)
    config = small().config.model_dump_json()
    rvq_checkpoint.write_tensors(path, rvq_checkpoint.FORMAT, {"entries": torch.zeros(3)}, {"config": config})
    with pytest.raises(WeightsCorruptError, match="has nothing where"):
        rvq_checkpoint.load(path)
    for bad in ("{", "[]", '{"input_dim": 0}'):
        rvq_checkpoint.write_tensors(path, rvq_checkpoint.FORMAT, {"entries": torch.zeros(3)}, {"config": bad})
        with pytest.raises(WeightsCorruptError, match="configuration inside"):
            rvq_checkpoint.load(path)
    rvq_checkpoint.save(path, filled())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsCorruptError, match="not a safetensors file"):
        rvq_checkpoint.load(path)
