"""A linear layer whose weights are int8: half the memory of bfloat16, and half of what a step has to read.

A step of a big model on few rows is as slow as reading its weights, so the point is to read int8 from memory and
nothing else. Each output row has a scale of its own (symmetric: ``weight = int8 * scale``, scale = largest magnitude /
127); the activations stay as they are, so nothing is calibrated. The family's published q8 files hold the same.

On CUDA a Triton kernel turns int8 into the activations' dtype in registers (``int8_triton.py``): of what torch has,
``_int_mm`` needs more than 16 rows and int8 activations, ``_weight_int8pack_mm`` is private and made for CPUs, and a
plain cast writes the weights out again, which is slower than bfloat16. The kernel proves itself on a small product when
the first layer is made on a device; where it cannot, and on the CPU, the plain cast is used, which is exact but slow.

:class:`Int8Linear` stands in for an ``nn.Linear`` that is *called*; code that takes ``linear.weight`` and multiplies by
itself must call the module instead. It is no subclass, so that ``isinstance(module, nn.Linear)`` tells the two apart.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional

_log = logging.getLogger(__name__)

Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""``x`` [rows, in], ``weight`` int8[out, in], ``scale`` float32[out] to [rows, out] in ``x``'s dtype."""


def quantise_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``weight`` [..., n] to int8[..., n] and float32[...]: symmetric, a scale for each last dimension.

    A row of zeros has scale 0. The error of an entry is at most half a scale.
    """
    wide = weight.float()
    scale = wide.abs().amax(-1) / 127.0
    # A scale can be so small that its reciprocal overflows; a division cannot go wrong so.
    steps = wide / torch.where(scale > 0, scale, torch.ones_like(scale)).unsqueeze(-1)
    return steps.round_().clamp_(-127, 127).to(torch.int8), scale


def dequantise_rows(steps: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Undoes :func:`quantise_rows`, up to rounding."""
    return (steps.float() * scale.unsqueeze(-1)).to(dtype)


class Int8Linear(nn.Module):
    """``weight`` int8[out, in], ``scale`` float32[out], ``bias`` [out] or None; all without gradients.

    ``forward``: [..., in] of any floating dtype to [..., out] of the same. No data-dependent shapes, no
    synchronisation: it can be captured in a CUDA graph. The sum over ``in`` is kept in float32 where the hardware does.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        if weight.dtype != torch.int8 or weight.dim() != 2 or scale.shape != weight.shape[:1]:
            raise ValueError(f"int8[out, in] and [out] are needed, not {weight.dtype}{tuple(weight.shape)}")
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        self.scale = nn.Parameter(scale.float().contiguous(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self._product = product_on(weight.device)

    @classmethod
    def of(cls, linear: nn.Linear) -> Int8Linear:
        """The same layer, rounded to int8."""
        return cls(*quantise_rows(linear.weight.detach()), linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self._product(x.reshape(-1, self.in_features), self.weight, self.scale)
        y = y.view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Int8Linear:
        scale = self.scale.data
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # `model.to(torch.bfloat16)` means the activations: rounding the scales would shift whole rows.
        self.scale.data = scale.to(self.weight.device)
        self._product = product_on(self.weight.device)
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def plain_product(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The product by casting the weights: right everywhere, and on a GPU slower than not quantising at all."""
    return (functional.linear(x, weight.to(x.dtype)).float() * scale).to(x.dtype)


@cache
def product_on(device: torch.device) -> Product:
    """The fastest product that is right on ``device``. The first call for a CUDA device runs and checks its kernel,
    so make the first layer outside of a graph's capture."""
    if device.type != "cuda":
        return plain_product
    try:
        from .int8_triton import int8_product

        product: Product = int8_product
        _check(product, device)
    except Exception as error:  # whatever keeps a compiler from making a kernel: we can do without
        _log.warning(
            "int8 weights will be slow on %s: no kernel for them (%s: %s)", device, type(error).__name__, error
        )
        return plain_product
    return product


def _check(product: Any, device: torch.device) -> None:
    """Raises ``ArithmeticError`` unless ``product`` agrees with the plain one, for few and many rows and odd shapes."""
    for rows, n_in, n_out in ((1, 512, 192), (5, 1000, 130), (40, 256, 64), (100, 64, 96)):
        x = torch.randn(rows, n_in, device=device, dtype=torch.bfloat16)
        weight = torch.randint(-127, 128, (n_out, n_in), device=device, dtype=torch.int8)
        scale = torch.rand(n_out, device=device) + 0.5
        wanted, got = plain_product(x.float(), weight, scale), product(x, weight, scale).float()
        error = float((got - wanted).abs().max() / wanted.abs().max())
        if not error < 0.01:  # bfloat16 rounds the result by at most 0.004; NaN fails, too
            raise ArithmeticError(f"the kernel is off by {error:.2g} for {rows} rows of {n_in} to {n_out}")
