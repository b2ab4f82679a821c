"""How much of each codebook is used: the first thing to look at when a quantiser trains badly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class CodebookUsage:
    """``used_share``: of the entries, those that occurred. ``perplexity``: exp of the codes' entropy in nats, 1 (always
    the same entry) to the codebook's size (all equally often); ``bits``: the entropy in bits, what a frame's code is
    worth after ideal entropy coding."""

    n_codes: int
    used_share: float
    perplexity: float
    bits: float


class UsageCounter:
    """Counts codes on the codes' device, without waiting for it until :meth:`usage`."""

    def __init__(self, codebooks: int, codebook_size: int, device: torch.device | str = "cpu") -> None:
        self._counts = torch.zeros(codebooks, codebook_size + 1, dtype=torch.int64, device=device)

    def add(self, codes: Tensor) -> None:
        """int64[B, K, T], K up to the number of codebooks; −1 (not used) does not count."""
        flat = codes.transpose(0, 1).reshape(codes.shape[1], -1)
        # The last column takes what does not count, so that nothing has to be filtered by value.
        unused = self._counts.shape[1] - 1
        where = flat.masked_fill(flat < 0, unused)
        self._counts[: len(flat)].scatter_add_(1, where, torch.ones_like(where))

    def usage(self) -> tuple[CodebookUsage, ...]:
        """One for each codebook; perplexity 1 for one that was never used."""
        return tuple(_usage(counts[:-1]) for counts in self._counts.cpu())

    def reset(self) -> None:
        self._counts.zero_()


def _usage(counts: Tensor) -> CodebookUsage:
    total = int(counts.sum())
    if total == 0:
        return CodebookUsage(0, 0.0, 1.0, 0.0)
    share = counts[counts > 0].double() / total
    nats = float(-(share * share.log()).sum())
    return CodebookUsage(total, len(share) / len(counts), math.exp(nats), nats / math.log(2.0))
