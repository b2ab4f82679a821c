"""Residual vector quantisation: a latent as a sum of codebook entries, each one closer than the last.

A *chain* quantises a vector with its first codebook, what is left of it with the second, and so on (Algorithm 1 of
SoundStream, https://arxiv.org/abs/2107.03312). So any first K codes are a coarser version of the same latent: the bit
rate changes by leaving codes away, at any frame, for any row.

With ``semantic_codebooks`` there are two chains over the same latent, each between projections of its own, and their
outputs are added: the split of Mimi (https://arxiv.org/abs/2410.00037, 3.3), whose first codebook is trained to carry
words. The rule of the package ``moshi`` decides when there are projections: with a split always, without one only
where ``dim`` differs from ``input_dim``. The same codebooks give the same codes (:func:`.rvq_checkpoint.from_moshi`).

Nothing here synchronises with the device and no shape depends on data. Training is in :mod:`.rvq_training`.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, model_validator

from duplex.config import Settings
from duplex.errors import ConfigError, MissingDependencyError

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError as error:
    raise MissingDependencyError("torch", "moshi") from error

EPSILON = 1e-5
"""The least usage an entry's sum is divided by: the package's value."""


class RvqConfig(Settings):
    """The shape of a quantiser. ``codebooks`` counts the semantic ones too; they come first."""

    input_dim: int = Field(ge=1, description="of the latents that come in and go out")
    dim: int = Field(ge=1, description="of the codebooks' entries")
    codebooks: int = Field(ge=1, le=64)
    codebook_size: int = Field(ge=2)
    semantic_codebooks: int = Field(0, ge=0, description="0: one chain, no split")

    @model_validator(mode="after")
    def _leaves_acoustic_ones(self) -> RvqConfig:
        if self.semantic_codebooks >= self.codebooks:
            raise ValueError(f"{self.codebooks} codebooks leave none after {self.semantic_codebooks} semantic ones")
        return self

    @property
    def projected(self) -> bool:
        return self.semantic_codebooks > 0 or self.dim != self.input_dim


class Codebook(nn.Module):
    """``entries`` float32[size, dim], and the moving statistics they are made from.

    ``usage`` float32[size]: how many vectors of a batch fall to each entry; ``sums`` float32[size, dim]: their sum.
    ``entries`` is ``sums / usage``. All zero until :func:`.rvq_training.initialise` or a checkpoint fills it.
    """

    entries: Tensor
    usage: Tensor
    sums: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("entries", torch.zeros(size, dim))
        self.register_buffer("usage", torch.zeros(size))
        self.register_buffer("sums", torch.zeros(size, dim))

    @property
    def size(self) -> int:
        return self.entries.shape[0]

    @property
    def initialised(self) -> bool:
        """Whether it holds anything. Waits for the device."""
        return bool(self.usage.any())

    def fill(self, sums: Tensor, usage: Tensor) -> None:
        """Takes the statistics (shapes as above) and the entries that follow from them."""
        self.sums.copy_(sums)
        self.usage.copy_(usage)
        self.refresh()

    def refresh(self) -> None:
        """The entries, from the statistics."""
        self.entries.copy_(self.sums / self.usage.clamp(min=EPSILON)[:, None])

    def nearest(self, vectors: Tensor) -> Tensor:
        """float32[…, dim] to int64[…]: the entry at the least Euclidean distance, the first of equals."""
        flat = vectors.reshape(-1, vectors.shape[-1]).to(self.entries.dtype)
        # |v - e|² without |v|², which is the same for every entry, and without a root.
        distance = torch.addmm(self.entries.square().sum(dim=1), flat, self.entries.t(), alpha=-2.0)
        return distance.argmin(dim=1).view(vectors.shape[:-1])

    def lookup(self, codes: Tensor) -> Tensor:
        """int64[…] to float32[…, dim]."""
        return functional.embedding(codes, self.entries)


class Chain(nn.Module):
    """Codebooks over each other's residuals, between projections (identity where the shapes need none)."""

    def __init__(self, config: RvqConfig, n_codebooks: int) -> None:
        super().__init__()
        self.project_in: nn.Module = nn.Identity()
        self.project_out: nn.Module = nn.Identity()
        if config.projected:
            self.project_in = nn.Linear(config.input_dim, config.dim, bias=False)
            self.project_out = nn.Linear(config.dim, config.input_dim, bias=False)
        self._codebooks = nn.ModuleList(Codebook(config.codebook_size, config.dim) for _ in range(n_codebooks))

    @property
    def codebooks(self) -> Sequence[Codebook]:
        return list(self._codebooks)  # type: ignore[arg-type]  # a ModuleList forgets what it holds

    def encode(self, vectors: Tensor, n_codebooks: int) -> list[Tensor]:
        """float32[B, T, input_dim] to ``n_codebooks`` of int64[B, T]."""
        residual: Tensor = self.project_in(vectors)
        codes = []
        for codebook in self.codebooks[:n_codebooks]:
            codes.append(codebook.nearest(residual))
            residual = residual - codebook.lookup(codes[-1])
        return codes

    def decode(self, codes: Tensor, n_codebooks: Tensor) -> Tensor:
        """int64[B, K, T], int64[B] to float32[B, T, input_dim]; codes beyond a row's count are not looked at."""
        shape = (codes.shape[0], codes.shape[2], self.codebooks[0].entries.shape[1])
        total = self.codebooks[0].entries.new_zeros(shape)
        for level, codebook in zip(range(codes.shape[1]), self.codebooks, strict=False):
            used = (n_codebooks > level)[:, None]
            total = total + codebook.lookup(codes[:, level].masked_fill(~used, 0)).masked_fill(~used[..., None], 0.0)
        out: Tensor = self.project_out(total)
        return out


class Rvq(nn.Module):
    """The whole quantiser: one chain, or a semantic and an acoustic one."""

    def __init__(self, config: RvqConfig) -> None:
        super().__init__()
        self.config = config
        n_semantic = config.semantic_codebooks
        self.semantic: Chain | None = Chain(config, n_semantic) if n_semantic else None
        self.acoustic = Chain(config, config.codebooks - n_semantic)

    @property
    def chains(self) -> tuple[Chain, ...]:
        return (self.acoustic,) if self.semantic is None else (self.semantic, self.acoustic)

    @property
    def codebooks(self) -> tuple[Codebook, ...]:
        """All of them, in the order of the codes."""
        return tuple(codebook for chain in self.chains for codebook in chain.codebooks)

    @property
    def initialised(self) -> bool:
        """Whether every codebook holds something. Waits for the device."""
        return all(codebook.initialised for codebook in self.codebooks)

    @torch.no_grad()
    def encode(self, latents: Tensor, n_codebooks: int | None = None) -> Tensor:
        """float32[B, input_dim, T] to int64[B, K, T], K = ``n_codebooks`` or all of them.

        Raises ``ConfigError`` for a count out of range.
        """
        wanted = self._checked(n_codebooks)
        vectors = latents.transpose(1, 2)
        codes: list[Tensor] = []
        for chain in self.chains:
            codes += chain.encode(vectors, min(wanted - len(codes), len(chain.codebooks)))
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor, n_codebooks: Tensor | int | None = None) -> Tensor:
        """int64[B, K, T] to float32[B, input_dim, T].

        ``n_codebooks``: how many of each row's codes to use, one number or int64[B]; by default all K that are given.
        Codes that are not used may hold anything. Used ones must be inside the codebook; nothing checks, since that
        would wait for the device.
        """
        batch, given = codes.shape[0], codes.shape[1]
        if given > self.config.codebooks:
            raise ConfigError(f"{given} codes a frame, and this quantiser has {self.config.codebooks} codebooks.")
        if isinstance(n_codebooks, Tensor):
            counts = n_codebooks
        else:
            counts = torch.full((batch,), self._checked(n_codebooks), device=codes.device)
        total: Tensor | None = None
        first = 0
        for chain in self.chains:
            last = first + len(chain.codebooks)
            if first < given:
                part = chain.decode(codes[:, first:last], counts - first)
                total = part if total is None else total + part
            first = last
        assert total is not None, "a frame has at least one code"
        return total.transpose(1, 2)

    def _checked(self, n_codebooks: int | None) -> int:
        if n_codebooks is None:
            return self.config.codebooks
        if not 1 <= n_codebooks <= self.config.codebooks:
            raise ConfigError(
                f"{n_codebooks} codebooks were asked for; this quantiser has 1 to {self.config.codebooks}."
            )
        return n_codebooks
