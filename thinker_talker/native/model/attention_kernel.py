"""Attention of one new position a slot over its cache, as one pass over the keys and values as they are stored.

In plain torch an int8 cache is widened before it is multiplied: written and read again at twice its size, five times
the traffic of reading it once, and reading it is what a tick of many calls spends its time on. Here each block of
places is loaded once, widened in registers, and folded into a running softmax (FlashDecoding: Dao et al. 2023, "Flash-
Decoding for long-context inference"). Every place of a block has a running softmax of its own, and they are put
together at the end: so threads meet within a row of a block, and nowhere else in the loop. Places that a slot has not
reached are not read.

Written for Triton, which comes with torch where CUDA does; without it the plain functions are used.
"""

from __future__ import annotations

import importlib
import logging
from functools import cache
from typing import Any

import torch

from duplex.thinker_talker.native.model.kv_cache import KvLayer, KvLayout

BLOCK = 32  # places that one step of the loop reads
SPLITS = 8  # runs of places that are worked on side by side; the same for any number of slots, and so is the sum

try:
    triton: Any = importlib.import_module("triton")
    tl: Any = importlib.import_module("triton.language")
except ImportError:
    triton = tl = None

_log = logging.getLogger(__name__)


def available(queries: torch.Tensor) -> bool:
    """Whether the kernel can be used for queries ``[n, query_heads, dim]``: on CUDA, where it has proved itself right.

    The first call for a device compiles and tries it: before a capture, as warming up does.
    """
    dim = queries.shape[-1]
    if triton is None or not queries.is_cuda or dim < 16 or dim & (dim - 1):
        return False
    return _proved(queries.device)


# No annotations but constexpr: the compiler looks each of them up as a value.
def _attend_kernel(  # type: ignore[no-untyped-def]
    queries, sink_queries, keys, values, key_scales, value_scales, bias, out, maxima, sums,
    span, run_length, sinks,
    stride_slot, stride_head, stride_place, stride_scale_slot, stride_scale_head, stride_bias,
    n_heads: tl.constexpr, group: tl.constexpr, dim_: tl.constexpr, block: tl.constexpr, run_places: tl.constexpr,
    n_splits: tl.constexpr, quantised: tl.constexpr, has_sinks: tl.constexpr,
):  # fmt: skip
    """One program: one query head of one slot, over one of ``n_splits`` runs of places."""
    head_of_batch = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    slot = head_of_batch // (n_heads * group)
    head = (head_of_batch % (n_heads * group)) // group
    lanes = tl.arange(0, dim_)
    query = tl.load(queries + head_of_batch * dim_ + lanes).to(tl.float32)
    if has_sinks:
        sink_query = tl.load(sink_queries + head_of_batch * dim_ + lanes).to(tl.float32)
    cache = slot * stride_slot + head * stride_head
    scales = slot * stride_scale_slot + head * stride_scale_head

    # Valid places come first, so counting them says where to stop.
    first = split * run_length
    run = first + tl.arange(0, run_places)
    inside = (run < first + run_length) & (run < span)
    valid = tl.load(bias + slot * stride_bias + run, mask=inside, other=-float("inf")) > -float("inf")
    end = first + tl.sum(valid.to(tl.int32), axis=0)

    # Finite where nothing was seen yet: the difference of two infinities is no number.
    maximum = tl.full([block], -1.0e30, dtype=tl.float32)
    total = tl.zeros([block], dtype=tl.float32)
    gathered = tl.zeros([block, dim_], dtype=tl.float32)
    for start in range(first, end, block):
        places = start + tl.arange(0, block)
        seen = places < end
        where = cache + places[:, None].to(tl.int64) * stride_place + lanes[None, :]
        key = tl.load(keys + where, mask=seen[:, None], other=0).to(tl.float32)
        value = tl.load(values + where, mask=seen[:, None], other=0).to(tl.float32)
        scores = tl.sum(key * query[None, :], axis=1)
        if has_sinks:  # noqa: SIM102 (the outer one is decided when the kernel is compiled)
            if start < sinks:
                scores = tl.where(places < sinks, tl.sum(key * sink_query[None, :], axis=1), scores)
        if quantised:
            scores = scores * tl.load(key_scales + scales + places, mask=seen, other=0.0)
        highest = tl.where(seen, tl.maximum(maximum, scores), maximum)
        shrink = tl.exp(maximum - highest)
        weights = tl.where(seen, tl.exp(scores - highest), 0.0)
        total = total * shrink + weights
        if quantised:
            weights = weights * tl.load(value_scales + scales + places, mask=seen, other=0.0)
        gathered = gathered * shrink[:, None] + value * weights[:, None]
        maximum = highest
    highest_of_all = tl.max(maximum, axis=0)
    shares = tl.exp(maximum - highest_of_all)
    at = head_of_batch * n_splits + split
    tl.store(out + at * dim_ + lanes, tl.sum(gathered * shares[:, None], axis=0))
    tl.store(maxima + at, highest_of_all)
    tl.store(sums + at, tl.sum(total * shares, axis=0))


def _combine_kernel(  # type: ignore[no-untyped-def]
    parts, maxima, sums, out, dim_: tl.constexpr, n_splits: tl.constexpr
):
    """One program: one query head of one slot; its runs of places, put together."""
    head_of_batch = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, dim_)
    runs = head_of_batch * n_splits + tl.arange(0, n_splits)
    maximum = tl.load(maxima + runs)
    weight = tl.exp(maximum - tl.max(maximum, axis=0))
    total = tl.sum(tl.load(sums + runs) * weight, axis=0)
    gathered = tl.sum(tl.load(parts + runs[:, None] * dim_ + lanes[None, :]) * weight[:, None], axis=0)
    tl.store(out + head_of_batch * dim_ + lanes, (gathered / total).to(out.dtype.element_ty))


_attend: Any = None if triton is None else triton.jit(_attend_kernel)
_combine: Any = None if triton is None else triton.jit(_combine_kernel)


def attend_step(
    queries: torch.Tensor, sink_queries: torch.Tensor | None, cache: KvLayer, bias: torch.Tensor
) -> torch.Tensor:
    """As :func:`duplex.thinker_talker.native.model.attention.attend_step`, where a slot's valid places come first, as
    they do in a :class:`~duplex.thinker_talker.native.model.kv_cache.KvLayer`, and there is at least one.

    Scores, softmax and sums are float32, keys and values exactly as stored.
    """
    n, query_heads, dim = queries.shape
    layout, span = cache.layout, bias.shape[-1]
    blocks = -(-span // BLOCK)
    splits = SPLITS if blocks >= SPLITS else 1
    run_length = -(-blocks // splits) * BLOCK
    queries = queries.contiguous()
    has_sinks = sink_queries is not None and layout.sinks > 0
    sink_queries = queries if sink_queries is None else sink_queries.contiguous()
    key_scales = cache.keys if cache.key_scales is None else cache.key_scales
    value_scales = cache.values if cache.value_scales is None else cache.value_scales
    bias = bias.reshape(n, span)
    device = queries.device
    parts = torch.empty(n, query_heads, splits, dim, dtype=torch.float32, device=device)
    maxima = torch.empty(n, query_heads, splits, dtype=torch.float32, device=device)
    sums = torch.empty_like(maxima)
    out = torch.empty_like(queries)
    _attend[(n * query_heads, splits)](
        queries, sink_queries, cache.keys, cache.values, key_scales, value_scales, bias, parts, maxima, sums,
        span, run_length, layout.sinks,
        cache.keys.stride(0), cache.keys.stride(1), cache.keys.stride(2),
        key_scales.stride(0), key_scales.stride(1), bias.stride(0),
        n_heads=layout.heads, group=query_heads // layout.heads, dim_=dim, block=BLOCK,
        run_places=1 << (run_length - 1).bit_length(), n_splits=splits, quantised=layout.quantised,
        has_sinks=has_sinks, num_warps=4,
    )  # fmt: skip
    _combine[(n * query_heads,)](parts, maxima, sums, out, dim_=dim, n_splits=splits, num_warps=1)
    return out


@cache
def _proved(device: torch.device) -> bool:
    try:
        for dtype in (torch.bfloat16, torch.int8):
            check(device, dtype)
    except Exception as error:  # whatever keeps a compiler from making a kernel: we can do without
        _log.warning("attention will be slow on %s: no kernel for it (%s: %s)", device, type(error).__name__, error)
        return False
    return True


def check(device: torch.device, dtype: torch.dtype, places: int = 200) -> None:
    """Raises ``ArithmeticError`` unless the kernel agrees with the plain functions on slots of several lengths."""
    from duplex.thinker_talker.native.model import attention  # which imports this module

    layout = KvLayout(capacity=places, sinks=4, heads=2, dim=64, dtype=dtype)
    cache_ = KvLayer.empty(layout, 3, device)
    generator = torch.Generator(device).manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    for place in range(places):
        rows = torch.arange(3, device=device)
        cache_.write(rows, torch.full_like(rows, place), noise(3, 2, 64), noise(3, 2, 64))
    last = torch.tensor([0, 130, places - 1], device=device)
    unseen = torch.arange(places, device=device) > last[:, None]
    bias = torch.zeros(3, places, device=device).masked_fill_(unseen, -torch.inf)[:, None, None]
    queries, sink_queries = (0.2 * noise(3, 4, 64) for _ in range(2))
    got = attend_step(queries, sink_queries, cache_, bias)
    # On the CPU, in float32 and from what is stored: what the plain functions make of it.
    scales = [None if t is None else t.cpu() for t in (cache_.key_scales, cache_.value_scales)]
    on_cpu = KvLayer(layout, cache_.keys.cpu(), cache_.values.cpu(), *scales)
    wanted = attention.attend_step(queries.cpu(), sink_queries.cpu(), on_cpu, bias.cpu())
    error = float((got.cpu() - wanted).abs().max() / wanted.abs().max())
    if not error < 1e-3:
        raise ArithmeticError(f"the kernel is off by {error:.2g} with a cache in {dtype}")
