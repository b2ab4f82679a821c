"""Positions of the transformers: rotary (Su et al., arXiv:2104.09864) or sinusoidal, as the ``moshi`` package defines
them, with what depends on the position alone computed once per step for all layers."""

from __future__ import annotations

import math

import torch


class Rope:
    """Rotation of heads of ``dim`` by a position. ``interleave``: pairs are (0, 1), (2, 3) …; else halves.

    Frequencies are float32, as models were trained with them; angles float64, so that a position of a day's call turns
    as exactly as an early one.
    """

    def __init__(self, dim: int, max_period: float, interleave: bool, device: torch.device) -> None:
        exponents = torch.arange(dim // 2, dtype=torch.float32, device=device)
        self._frequencies = torch.exp(exponents * (-math.log(max_period) * 2 / dim)).double()
        self._one = torch.ones((), dtype=torch.float64, device=device)
        self._interleave = interleave

    def turn(self, positions: torch.Tensor) -> torch.Tensor:
        """int64[n] to unit numbers, complex64[n, dim / 2]."""
        angles = positions[:, None] * self._frequencies
        return torch.polar(self._one.expand_as(angles), angles).to(torch.complex64)

    def pairs(self, heads: torch.Tensor) -> torch.Tensor:
        """``[..., dim]`` to complex64 ``[..., dim / 2]``."""
        if self._interleave:
            return torch.view_as_complex(heads.float().view(*heads.shape[:-1], -1, 2))
        return torch.complex(*heads.float().chunk(2, dim=-1))

    def heads(self, pairs: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`pairs`; float32."""
        if self._interleave:
            return torch.view_as_real(pairs).flatten(-2)
        return torch.cat([pairs.real, pairs.imag], dim=-1)


def sinusoid(positions: torch.Tensor, dim: int, max_period: float, dtype: torch.dtype) -> torch.Tensor:
    """int64[n] to embeddings ``[n, dim]``: cosines, then sines."""
    half = dim // 2
    exponents = torch.arange(half, dtype=dtype, device=positions.device) / (half - 1)
    periods = torch.pow(torch.full((), max_period, dtype=dtype, device=positions.device), exponents)
    phase = positions[:, None].to(dtype) / periods
    return torch.cat([phase.cos(), phase.sin()], dim=-1)
