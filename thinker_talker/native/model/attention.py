"""Attention of one new position a slot over its cache, and of many new positions of one slot (a prompt).

Scores and softmax are float32. Sinks have a query of their own (:mod:`.kv_cache`).
"""

from __future__ import annotations

import torch

from . import attention_kernel
from .kv_cache import KvLayer, unpack


def products(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """``[b, h, r, dim]`` and ``[b, h, t, dim]`` to float32 ``[b, h, r, t]``, summed in float32."""
    if queries.dtype == torch.float32:
        return torch.matmul(queries, keys.to(torch.float32).mT)
    keys = keys.to(queries.dtype)
    if queries.is_cuda:
        b, h, r, _ = queries.shape
        flat = torch.bmm(queries.flatten(0, 1), keys.flatten(0, 1).mT, out_dtype=torch.float32)
        return flat.view(b, h, r, -1)
    return torch.matmul(queries.float(), keys.float().mT)


def attend_step(
    queries: torch.Tensor, sink_queries: torch.Tensor | None, cache: KvLayer, bias: torch.Tensor
) -> torch.Tensor:
    """``queries`` ``[n, query_heads, dim]``, rotated and scaled; ``bias`` float32 ``[n, 1, 1, span]``: 0 where a place
    is valid, else -inf; only the first ``span`` places are read. Returns ``[n, query_heads, dim]``."""
    if attention_kernel.available(queries):
        return attention_kernel.attend_step(queries, sink_queries, cache, bias)
    return plain_step(queries, sink_queries, cache, bias)


def plain_step(
    queries: torch.Tensor, sink_queries: torch.Tensor | None, cache: KvLayer, bias: torch.Tensor
) -> torch.Tensor:
    """:func:`attend_step` in torch's own operations."""
    n, _, dim = queries.shape
    heads, span, sinks = cache.layout.heads, bias.shape[-1], cache.layout.sinks
    keys, values = cache.keys[:, :, :span], cache.values[:, :, :span]
    scores = products(queries.view(n, heads, -1, dim), keys)  # query heads that share a key head side by side
    if sink_queries is not None and sinks:
        scores[..., :sinks] = products(sink_queries.view(n, heads, -1, dim), keys[:, :, :sinks])
    if cache.key_scales is not None:
        scores = scores * cache.key_scales[:, :, None, :span]
    weights = torch.softmax(scores + bias, dim=-1)
    if cache.value_scales is not None:
        weights = weights * cache.value_scales[:, :, None, :span]
    out = torch.matmul(weights.to(queries.dtype), values.to(queries.dtype))
    return out.reshape(n, -1, dim)


def attend_prompt(
    queries: torch.Tensor,
    sink_queries: torch.Tensor | None,
    cache: KvLayer,
    new: tuple[torch.Tensor, torch.Tensor],
    bias: torch.Tensor,
) -> torch.Tensor:
    """``queries`` ``[t, query_heads, dim]``: new positions of the one slot of ``cache``, which does not hold them yet;
    ``new``: their keys and values ``[t, heads, dim]``, as the cache will give them back. ``bias`` float32
    ``[t, capacity + t]``: 0 where a query may look. Returns ``[t, query_heads, dim]``."""
    t, _, dim = queries.shape
    layout, dtype = cache.layout, queries.dtype
    capacity, sinks = layout.capacity, layout.sinks
    held = [
        unpack(stored[0, :, :capacity], None if scales is None else scales[0, :, :capacity], dtype)
        for stored, scales in ((cache.keys, cache.key_scales), (cache.values, cache.value_scales))
    ]
    keys, values = (torch.cat([old, n.transpose(0, 1).to(dtype)], dim=1) for old, n in zip(held, new, strict=True))

    def grouped(heads: torch.Tensor) -> torch.Tensor:  # [t, query heads, dim] to [1, heads, shared * t, dim]
        return heads.view(t, layout.heads, -1, dim).permute(1, 2, 0, 3).reshape(1, layout.heads, -1, dim)

    scores = products(grouped(queries), keys[None])
    if sink_queries is not None and sinks:
        scores[..., :sinks] = products(grouped(sink_queries), keys[None, :, :sinks])
    scores = scores.view(layout.heads, -1, t, capacity + t) + bias
    weights = torch.softmax(scores, dim=-1).to(dtype)
    out = torch.matmul(weights, values[:, None])  # [heads, shared, t, dim]
    return out.permute(2, 0, 1, 3).reshape(t, -1, dim)
