"""Mimi's split residual vector quantiser by slots, each slot with its own number of codebooks.

The first codebooks (one, in Mimi) carry what is said, the others residually how it sounds; each group has projections
of its own, and their sum is the latent. Leaving out a slot's later codebooks is masking their entries before the sum.

The nearest entry is found by ``|e|² - 2 x·e``, the squared distance less ``|x|²``, which is the same for all entries.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from .mimi_layers import product


class _Group:
    """Some residual codebooks behind one pair of projections. ``first``: the number of codebooks before it."""

    def __init__(self, quantizer: Any, first: int, n_codebooks: int) -> None:
        self._project_in = quantizer.input_proj.weight[..., 0]
        self._project_out = quantizer.output_proj.weight[..., 0]
        self.first, self.n_codebooks = first, n_codebooks
        entries = torch.stack([layer.embedding for layer in quantizer.vq.layers[:n_codebooks]])
        self._entries = entries.contiguous()  # [K, entries, dimension]
        self._squares = entries.double().pow(2).sum(-1).to(entries.dtype)  # [K, entries]
        starts = torch.arange(n_codebooks, device=entries.device) * entries.shape[1]
        self._starts = starts[None, :, None]  # where each codebook begins among all entries

    def encode(self, latent: torch.Tensor) -> torch.Tensor:
        """[n, width, T] to int64[n, K, T]."""
        x = product(latent.transpose(1, 2), self._project_in)
        n, n_steps, width = x.shape
        residual = x.reshape(n * n_steps, width)
        codes = []
        for entries, squares in zip(self._entries, self._squares, strict=True):
            code = torch.add(squares, product(residual, entries), alpha=-2).argmin(-1)
            residual = residual - functional.embedding(code, entries)
            codes.append(code)
        return torch.stack(codes, dim=-1).view(n, n_steps, -1).transpose(1, 2)

    def decode(self, codes: torch.Tensor, n_used: torch.Tensor) -> torch.Tensor:
        """int64[n, K, T] and int64[n], of all groups' codebooks, to [n, width, T]."""
        entries = functional.embedding(codes + self._starts, self._entries.flatten(0, 1))  # [n, K, T, dimension]
        number = self._starts[0, :, 0] // self._entries.shape[1] + self.first
        used = number < n_used[:, None]
        total = (entries * used[:, :, None, None]).sum(1)
        return product(total, self._project_out).transpose(1, 2)


class SlotQuantizer:
    """Over the weights of the package's ``SplitResidualVectorQuantizer``, of which it uses ``n_codebooks``."""

    def __init__(self, quantizer: Any, n_codebooks: int) -> None:
        self.n_codebooks = n_codebooks
        self.n_entries: int = quantizer.cardinality
        self.dtype: torch.dtype = quantizer.rvq_first.vq.layers[0].embedding.dtype
        n_first = min(quantizer.n_q_semantic, n_codebooks)
        self._groups = [_Group(quantizer.rvq_first, 0, n_first)]
        if n_codebooks > n_first:
            self._groups.append(_Group(quantizer.rvq_rest, n_first, n_codebooks - n_first))

    def encode(self, latent: torch.Tensor) -> torch.Tensor:
        """[n, width, T] to int64[n, codebooks, T]."""
        return torch.cat([group.encode(latent) for group in self._groups], dim=1)

    def decode(self, codes: torch.Tensor, n_used: torch.Tensor) -> torch.Tensor:
        """int64[n, codebooks, T] to [n, width, T]: slot i's first ``n_used[i]`` codebooks, at least one.

        Codes that name no entry (one that is not generated yet is negative) stand for the nearest that do: on a GPU,
        a look-up outside the table would end every call on it.
        """
        codes = codes.clamp(0, self.n_entries - 1)
        n_used = n_used.clamp(min=1)
        parts = [
            group.decode(codes[:, group.first : group.first + group.n_codebooks], n_used) for group in self._groups
        ]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]
