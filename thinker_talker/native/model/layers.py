"""The parts of a ``moshi`` transformer layer as plain functions over its weights.

The modules hold the weights; what lies around them (streaming states, checks, a norm in eight operations) does not
belong in a step. A module that is not what is expected here, such as a quantised linear, is called as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

Function = Callable[[torch.Tensor], torch.Tensor]


def linear(module: Any) -> Function:
    if type(module) is not nn.Linear:
        called: Function = module
        return called
    weight, bias = module.weight, module.bias
    return lambda x: functional.linear(x, weight, bias)


def norm(module: Any) -> Function:
    """Normalises the last dimension. Root-mean-square norms are computed in float32 whatever they were made for, which
    is what a fused kernel does anyway."""
    if type(module).__name__ != "RMSNorm":
        called: Function = module
        return called
    weight, eps = module.alpha.view(-1), module.eps
    shape = tuple(weight.shape)

    def rms(x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, shape, weight.to(x.dtype), eps)

    return rms


def layer_scale(module: Any) -> Function:
    if isinstance(module, nn.Identity):
        return lambda x: x
    scale = module.scale
    return lambda x: x * scale


def feed_forward(layer: Any, module: Any) -> Function:
    """``module``: the gating of this step, or ``None``: the layer's two linears."""
    if module is None:
        first, second, plain = linear(layer.linear1), linear(layer.linear2), layer.activation
        return lambda x: second(plain(first(x)))
    into, out, activation = linear(module.linear_in), linear(module.linear_out), module.activation

    def gated(x: torch.Tensor) -> torch.Tensor:
        opened, passed = into(x).chunk(2, dim=-1)
        return out(activation(opened) * passed)

    return gated


def embedding(module: Any) -> Function:
    """A ``ScaledEmbedding``: tokens int64 of any shape to ``[..., dim]``; a token of -1 is a zero vector."""
    if module.norm is not None or module.demux_second_stream:
        called: Function = module
        return called
    weight, low_rank = module.weight, None if module.low_rank is None else linear(module.low_rank)

    def look_up(tokens: torch.Tensor) -> torch.Tensor:
        y = functional.embedding(tokens.clamp(min=0), weight).masked_fill(tokens[..., None] == -1, 0.0)
        return y if low_rank is None else low_rank(y)

    return look_up


def embedding_sum(modules: Any) -> Function:
    """Tokens int64[..., K] to the sum of K ``ScaledEmbedding``, ``[..., dim]``: one look-up in one table.

    The modules' weights become views of that table, so that it takes no memory of its own.
    """
    modules = list(modules)
    if any(m.norm is not None or m.demux_second_stream or m.low_rank is not None for m in modules) or not modules:
        looked_up = [embedding(m) for m in modules]
        return lambda tokens: torch.stack([f(tokens[..., k]) for k, f in enumerate(looked_up)]).sum(0)
    sizes = [m.weight.shape[0] for m in modules]
    begins = [sum(sizes[:k]) for k in range(len(sizes))]
    with torch.no_grad():
        table = torch.cat([m.weight.detach() for m in modules])
        for m, begin, size in zip(modules, begins, sizes, strict=True):
            m.weight = nn.Parameter(table[begin : begin + size], requires_grad=False)
    starts = torch.tensor(begins, dtype=torch.int64, device=table.device)

    def look_up(tokens: torch.Tensor) -> torch.Tensor:
        y = functional.embedding(tokens.clamp(min=0) + starts, table).masked_fill(tokens[..., None] == -1, 0.0)
        return y.sum(dim=-2)

    return look_up
