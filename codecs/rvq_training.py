"""Training a residual quantiser: initialisation, and a step that moves codebooks and passes gradients through.

The codebooks are not trained by gradient: each entry is the moving mean of the vectors that fall to it. The encoder in
front gets its gradient straight through (as if nothing had been quantised), and a commitment loss that pulls it
towards the entries. A step::

    trainer = RvqTrainer(rvq, TrainingOptions(), seed=0)
    initialise(rvq, latents, seed=0)              # once, on a representative sample
    step = trainer.step(encoder(sound))           # moves the codebooks
    loss = distance(decoder(step.quantised), sound) + 0.25 * step.commitment
    loss.backward(); optimiser.step()             # the optimiser holds rvq.parameters() too: the projections

What a step depends on besides its input is in :class:`TrainingState`, so a run that is saved and loaded goes on bit by
bit as if it had not stopped. One process: statistics are not shared between workers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from duplex.codecs.rvq import Chain, Codebook, Rvq
from duplex.config import Settings
from duplex.errors import ConfigError


class TrainingOptions(Settings):
    """How codebooks move. ``decay`` and the rule for dead entries are those of the package ``moshi``."""

    decay: float = Field(0.99, gt=0, lt=1, description="of the moving means, per step")
    dropout_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="of the rows that use only a random number of codebooks, 1 to all",
    )
    dead_below: float = Field(
        0.1, ge=0, lt=1, description="an entry used less than this share of the mean usage is replaced"
    )
    dead_check_steps: int = Field(
        5, ge=1, description="steps between looks for dead entries: each waits for the device"
    )


@dataclass(slots=True)
class TrainingState:
    """What a trainer remembers. ``generator``: uint8[n], the state of its random numbers."""

    step: int
    generator: Tensor


@dataclass(frozen=True, slots=True)
class RvqStep:
    """One training step's results.

    ``quantised`` float32[B, input_dim, T], with the gradient straight through. ``codes`` int64[B, K, T], −1 where a
    row did not use a codebook. ``n_codebooks`` int64[B], on the CPU. ``commitment``: scalar, the mean squared distance
    of the encoder's vectors to the entries, over what was used. ``replaced``: dead entries replaced, per codebook.
    """

    quantised: Tensor
    codes: Tensor
    n_codebooks: Tensor
    commitment: Tensor
    replaced: tuple[int, ...]


class RvqTrainer:
    """Moves the codebooks of one quantiser. ``seed`` decides the dropout and which vectors replace dead entries."""

    def __init__(self, rvq: Rvq, options: TrainingOptions | None = None, *, seed: int = 0) -> None:
        self.rvq = rvq
        self.options = options or TrainingOptions()
        self._step = 0
        self._generator = torch.Generator().manual_seed(seed)

    def state(self) -> TrainingState:
        return TrainingState(self._step, self._generator.get_state())

    def restore(self, state: TrainingState) -> None:
        self._step = state.step
        self._generator.set_state(state.generator)

    def step(self, latents: Tensor) -> RvqStep:
        """float32[B, input_dim, T], with or without a gradient. Raises ``ConfigError`` before initialisation."""
        if self._step == 0 and not self.rvq.initialised:
            raise ConfigError(
                "The codebooks are empty. Call initialise(rvq, latents) with a sample of the latents first."
            )
        counts = self._draw(latents.shape[0])
        look_for_dead = self._step % self.options.dead_check_steps == self.options.dead_check_steps - 1
        vectors = latents.transpose(1, 2)
        total = torch.zeros_like(vectors)
        codes: list[Tensor] = []
        losses: list[Tensor] = []
        replaced: list[int] = []
        for chain in self.rvq.chains:
            total = total + self._through(chain, vectors, counts, look_for_dead, codes, losses, replaced)
        self._step += 1
        # A level's loss is a sum over the rows that used it: divided by all of them, every use weighs the same.
        commitment = torch.stack(losses).sum() / counts.sum()
        return RvqStep(total.transpose(1, 2), torch.stack(codes, dim=1), counts, commitment, tuple(replaced))

    def _draw(self, batch: int) -> Tensor:
        """int64[batch] on the CPU: how many codebooks each row uses."""
        config = self.rvq.config
        fewest = max(1, config.semantic_codebooks)
        dropped = torch.rand(batch, generator=self._generator) < self.options.dropout_share
        drawn = torch.randint(fewest, config.codebooks + 1, (batch,), generator=self._generator)
        return torch.where(dropped, drawn, config.codebooks)

    def _through(
        self,
        chain: Chain,
        vectors: Tensor,
        counts: Tensor,
        look_for_dead: bool,
        codes: list[Tensor],
        losses: list[Tensor],
        replaced: list[int],
    ) -> Tensor:
        """One chain's part of the output, float32[B, T, input_dim]; appends what its codebooks did to the lists."""
        projected: Tensor = chain.project_in(vectors)
        residual, total = projected, torch.zeros_like(projected)
        for codebook in chain.codebooks:
            rows = torch.nonzero(counts > len(codes))[:, 0].to(vectors.device)
            these = residual[rows]
            used = codebook.nearest(these.detach())
            quantised = codebook.lookup(used)
            losses.append((these - quantised).square().mean(dim=(1, 2)).sum())
            codes.append(torch.full(vectors.shape[:2], -1, device=vectors.device).index_copy(0, rows, used))
            step = torch.zeros_like(total).index_copy(0, rows, quantised)
            residual, total = residual - step, total + step
            flat = these.detach().reshape(-1, these.shape[-1])
            replaced.append(self._move(codebook, flat, used.reshape(-1), look_for_dead))
        out: Tensor = chain.project_out(projected + (total - projected).detach())
        return out

    @torch.no_grad()
    def _move(self, codebook: Codebook, vectors: Tensor, codes: Tensor, look_for_dead: bool) -> int:
        """Moves the means after ``vectors`` float32[N, dim] fell to ``codes`` int64[N]; how many dead were replaced."""
        if len(vectors) == 0:  # every row dropped this codebook: it has seen nothing, so it forgets nothing
            return 0
        # One vector that is not finite would stay in a moving mean for ever.
        finite = torch.isfinite(vectors).all(dim=1)
        vectors = vectors.to(codebook.sums.dtype).masked_fill(~finite[:, None], 0.0)
        usage = torch.zeros_like(codebook.usage).index_add_(0, codes, finite.to(codebook.usage.dtype))
        sums = torch.zeros_like(codebook.sums).index_add_(0, codes, vectors)
        codebook.usage.lerp_(usage, 1.0 - self.options.decay)
        codebook.sums.lerp_(sums, 1.0 - self.options.decay)
        n_dead = 0
        if look_for_dead:
            mean_usage = codebook.usage.mean()
            dead = torch.nonzero(codebook.usage < self.options.dead_below * mean_usage)[:, 0]
            if n_dead := len(dead):
                # As new entries count as used as much as the average, they get time to find vectors of their own.
                codebook.sums[dead] = _sample(vectors, n_dead, self._generator) * mean_usage
                codebook.usage[dead] = mean_usage
        codebook.refresh()
        return n_dead


@torch.no_grad()
def initialise(rvq: Rvq, latents: Tensor, *, seed: int = 0, iterations: int = 20) -> None:
    """Fills the codebooks by k-means on ``latents`` (float32[B, input_dim, T]), each on what the ones before it leave.

    Best are ten vectors or more for each entry: with as many vectors as entries the first codebook would hold the
    sample itself, and leave nothing to the others. ``iterations`` 0 takes random vectors of the sample instead.
    Raises ``ConfigError`` for fewer vectors than entries, or if they are not finite.
    """
    size = rvq.config.codebook_size
    vectors = latents.transpose(1, 2).reshape(-1, rvq.config.input_dim)
    if len(vectors) < size:
        raise ConfigError(f"{len(vectors)} latent vectors cannot fill codebooks of {size}; give {10 * size} or more.")
    if not bool(torch.isfinite(vectors).all()):
        raise ConfigError("The latents to initialise codebooks from are not finite.")
    generator = torch.Generator().manual_seed(seed)
    for chain in rvq.chains:
        residual: Tensor = chain.project_in(vectors)
        for codebook in chain.codebooks:
            means, counts = kmeans(residual, size, generator, iterations)
            codebook.fill(means * counts[:, None], counts)
            residual = residual - codebook.lookup(codebook.nearest(residual))


def kmeans(vectors: Tensor, size: int, generator: torch.Generator, iterations: int) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from random vectors: means float32[size, dim], and how many fall to each, at least 1.

    ``vectors`` float32[N, dim], N ≥ size. A mean that nothing falls to moves to one of the vectors served worst.
    """
    scratch = Codebook(size, vectors.shape[1]).to(vectors.device)
    scratch.fill(_sample(vectors, size, generator), torch.ones_like(scratch.usage))
    counts = torch.ones_like(scratch.usage)
    for _ in range(iterations):
        codes = scratch.nearest(vectors)
        counts = torch.zeros_like(counts).index_add_(0, codes, torch.ones_like(vectors[:, 0]))
        sums = torch.zeros_like(scratch.sums).index_add_(0, codes, vectors)
        empty = torch.nonzero(counts == 0)[:, 0]
        if len(empty):
            error = (vectors - scratch.lookup(codes)).square().sum(dim=1)
            sums[empty] = vectors[error.topk(len(empty)).indices]
            counts[empty] = 1.0
        scratch.fill(sums, counts)
    return scratch.entries, counts


def _sample(vectors: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """``n`` of the vectors at random: each at most once where there are enough."""
    if n <= len(vectors):
        chosen = torch.randperm(len(vectors), generator=generator)[:n]
    else:
        chosen = torch.randint(0, len(vectors), (n,), generator=generator)
    return vectors[chosen.to(vectors.device)]
