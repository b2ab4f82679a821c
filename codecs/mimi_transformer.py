"""Mimi's transformers by slots: causal attention over a window of the past, kept in a ring.

Every slot is at its own position. Keys and values of the steps at hand are written to the ring, then attended to with
everything in it that lies in the window. The ring is larger than the window by at least the steps of a frame less one:
were it not, the last step of a frame would overwrite what its first one still looks at. (In the package's streaming
mode ring and window are one size, so from 250 steps, 10 s, on it departs from its own result over the whole. This one
does not, and so gives the codes that models are trained on.)

Positions, masks and rotations are the same for all layers and computed once a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from duplex.errors import ConfigError

from .mimi_state import Half

RING_MULTIPLE = 8  # attention kernels want masks whose rows are aligned


@dataclass(frozen=True, slots=True)
class _Steps:
    """``ring_index`` int64[n, 1, 1, T, 1]; ``bias`` [n, 1, T, ring]: 0 or -infinity; ``cos``, ``sin``
    float32[n, 1, 1, T, half a head], ``None`` where nothing is rotated; ``active`` bool[n, 1, 1, 1, 1]."""

    ring_index: torch.Tensor
    bias: torch.Tensor
    cos: torch.Tensor | None
    sin: torch.Tensor | None
    active: torch.Tensor


class SlotTransformer:
    """Over the weights of the package's ``ProjectedTransformer`` (convolution layout, self-attention only).

    Raises ``ConfigError`` for a variety of it that Mimi has never had.
    """

    def __init__(self, module: Any, steps_per_frame: int) -> None:
        inner = module.transformer
        attention = inner.layers[0].self_attn
        refusals = {
            "conv_layout must be true": not module.conv_layout,
            "causal must be true": not attention.causal,
            "context must be a number of steps": attention.context is None,
            "positional_embedding must be rope, rope_concat or none": "sin" in inner.positional_embedding,
            "kv_repeat must be 1": attention.kv_repeat != 1,
            "output_dimensions must have one entry": len(module.output_projs) != 1,
            "cross_attention must be false": inner.layers[0].cross_attention is not None,
        }
        for wanted, refused in refusals.items():
            if refused:
                raise ConfigError(f"Mimi's transformer cannot be run by slots: {wanted}.")
        self._module = module
        self._layers = list(inner.layers)
        self._rope = inner.rope
        self._context: int = attention.context
        self.n_layers = len(self._layers)
        self.n_heads: int = attention.num_heads
        self.head_dim: int = attention.embed_dim // attention.num_heads
        self.ring: int = -(-(self._context + steps_per_frame - 1) // RING_MULTIPLE) * RING_MULTIPLE
        self.max_steps: int = self.ring - self._context + 1

    def __call__(self, x: torch.Tensor, half: Half, active: torch.Tensor) -> torch.Tensor:
        """[n, channels, T] to the same, T at most ``max_steps``. ``active``: bool[n]; advances ``half.position``."""
        module = self._module
        n_steps = x.shape[-1]
        x = x.transpose(1, 2)
        if module.input_proj is not None:
            x = module.input_proj(x)
        steps = self._steps(half.position, n_steps, active, x.dtype)
        for layer, memory in zip(self._layers, half.layers, strict=True):
            x = x + layer.layer_scale_1(self._attention(layer.self_attn, layer.norm1(x), memory, steps))
            hidden = layer.norm2(x)
            if layer.gating is None:
                hidden = layer.linear2(layer.activation(layer.linear1(hidden)))
            else:
                hidden = layer.gating(hidden)
            x = x + layer.layer_scale_2(hidden)
        half.position.add_(active, alpha=n_steps)
        y: torch.Tensor = module.output_projs[0](x)
        return y.transpose(1, 2)

    def _steps(self, position: torch.Tensor, n_steps: int, active: torch.Tensor, dtype: torch.dtype) -> _Steps:
        device = position.device
        now = position[:, None] + torch.arange(n_steps, device=device)  # [n, T]
        last = now[:, -1:]
        held = last - torch.remainder(last - torch.arange(self.ring, device=device), self.ring)  # position by index
        age = now[:, :, None] - held[:, None, :]  # [n, T, ring]
        seen = (held[:, None, :] >= 0) & (age >= 0) & (age < self._context)
        bias = torch.zeros(seen.shape, device=device, dtype=dtype).masked_fill_(~seen, -math.inf)
        cos = sin = None
        if self._rope is not None:
            pairs = torch.arange(self.head_dim // 2, device=device, dtype=torch.float32)
            frequencies = torch.exp(pairs * (-math.log(self._rope.max_period) * 2 / self.head_dim))
            angle = (now.float()[..., None] * frequencies)[:, None, None]
            cos, sin = torch.cos(angle), torch.sin(angle)
        ring_index = torch.remainder(now, self.ring)[:, None, None, :, None]
        return _Steps(ring_index, bias[:, None], cos, sin, active[:, None, None, None, None])

    def _attention(self, attention: Any, x: torch.Tensor, memory: torch.Tensor, steps: _Steps) -> torch.Tensor:
        """[n, T, width] to the same. ``memory``: [n, 2, heads, ring, head dimension], written in place."""
        projected = torch.unflatten(attention.in_projs[0](x), -1, (3, self.n_heads, self.head_dim))
        projected = projected.permute(0, 2, 3, 1, 4)  # [n, query key value, heads, T, head dimension]
        query_key = self._rotated(projected[:, :2], steps)
        key_value = torch.cat([query_key[:, 1:], projected[:, 2:]], dim=1)
        index = steps.ring_index.expand_as(key_value)
        memory.scatter_(3, index, torch.where(steps.active, key_value, memory.gather(3, index)))
        y = functional.scaled_dot_product_attention(query_key[:, 0], memory[:, 0], memory[:, 1], steps.bias)
        out: torch.Tensor = attention.out_projs[0](y.transpose(1, 2).flatten(2))
        return out

    def _rotated(self, x: torch.Tensor, steps: _Steps) -> torch.Tensor:
        """Rotary positions (Su et al. 2021, RoFormer), in float32 whatever the dtype, as in training."""
        if steps.cos is None or steps.sin is None:
            return x
        pairs = (-1, 2) if self._rope.interleave else (2, -1)
        real, imaginary = torch.unflatten(x, -1, pairs).float().unbind(-1 if self._rope.interleave else -2)
        rotated = (real * steps.cos - imaginary * steps.sin, real * steps.sin + imaginary * steps.cos)
        return torch.stack(rotated, dim=-1 if self._rope.interleave else -2).to(x.dtype).flatten(-2)
