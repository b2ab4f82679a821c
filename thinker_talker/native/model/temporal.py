"""The temporal transformer over cached keys and values: one position of n slots, or many positions of one.

What depends on positions alone (places in the cache, the mask, rotations) is worked out once a step, in a plan, and
used by every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from duplex.errors import ConfigError

from . import layers as parts
from .attention import attend_prompt, attend_step
from .kv_cache import KvLayer, KvLayout, pack, unpack
from .rope import Rope, sinusoid


@dataclass(frozen=True, slots=True)
class Plan:
    """For m new positions: m slots, or m positions of one. ``rows`` and ``places`` int64[m]: where their keys go.
    ``turn`` complex64 ``[m, query heads + heads, dim / 2]``, with the queries' scale in it; ``sink_turn``
    ``[m, 1, dim / 2]``: what more turns a sink's query. ``bias``: see :mod:`.attention`. ``embedding`` ``[m, d]``."""

    rows: torch.Tensor
    places: torch.Tensor
    bias: torch.Tensor
    turn: torch.Tensor | None
    sink_turn: torch.Tensor | None
    embedding: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class _Layer:
    norm1: parts.Function
    in_proj: parts.Function
    out_proj: parts.Function
    scale1: parts.Function
    norm2: parts.Function
    feed_forward: parts.Function
    scale2: parts.Function


class Temporal:
    """Over a ``StreamingTransformer`` with one set of weights. Raises ``ConfigError`` for kinds it does not do."""

    def __init__(self, transformer: Any, layout: KvLayout, device: torch.device) -> None:
        first = transformer.layers[0]
        if first.cross_attention is not None or first.skip_self_attn:
            raise ConfigError("Models with cross attention, such as the conditioned TTS ones, cannot be served.")
        attention = first.self_attn
        self._dim = attention.embed_dim
        self._query_heads, self._heads = attention.num_heads, attention.num_heads // attention.kv_repeat
        self._scale = layout.dim**-0.5
        self._layout = layout
        rope = transformer.rope
        self._rope = None if rope is None else Rope(layout.dim, rope.max_period, rope.interleave, device)
        self._sinusoid = transformer.positional_embedding in {"sin", "sin_rope"}
        self._max_period, self._positional_scale = transformer.max_period, transformer.positional_scale
        self._places = torch.arange(layout.capacity, dtype=torch.int64, device=device)
        self._layers = [
            _Layer(
                norm1=parts.norm(layer.norm1),
                in_proj=parts.linear(layer.self_attn.in_projs[0]),
                out_proj=parts.linear(layer.self_attn.out_projs[0]),
                scale1=parts.layer_scale(layer.layer_scale_1),
                norm2=parts.norm(layer.norm2),
                feed_forward=parts.feed_forward(layer, layer.gating),
                scale2=parts.layer_scale(layer.layer_scale_2),
            )
            for layer in transformer.layers
        ]

    def step_plan(self, step: torch.Tensor, active: torch.Tensor, span: int | None, dtype: torch.dtype) -> Plan:
        """``step`` int64[n], each slot's position; ``active`` bool[n]. ``span``: places to look at; every active slot's
        ``step`` must be below it, unless it is the capacity (``None``)."""
        span = self._layout.capacity if span is None else min(span, self._layout.capacity)
        unseen = self._places[:span] > step[:, None]
        return Plan(
            rows=torch.arange(step.shape[0], dtype=torch.int64, device=step.device),
            places=torch.where(active, self._layout.place(step), self._layout.capacity),
            bias=torch.zeros(unseen.shape, dtype=torch.float32, device=step.device)
            .masked_fill_(unseen, -torch.inf)
            .view(-1, 1, 1, span),
            **self._turns(step, dtype),
        )

    def prompt_plan(self, positions: torch.Tensor, dtype: torch.dtype) -> Plan:
        """``positions`` int64[t]: consecutive ones of one slot; at most as many as the ring has places."""
        layout = self._layout
        held = layout.positions_after(positions[:1] - 1)[0]
        keys, queries = torch.cat([held, positions]), positions[:, None]
        seen = (keys >= 0) & (keys <= queries) & ((queries - keys < layout.ring) | (keys < layout.sinks))
        return Plan(
            rows=torch.zeros_like(positions),
            places=layout.place(positions),
            bias=torch.zeros(seen.shape, dtype=torch.float32, device=seen.device).masked_fill_(~seen, -torch.inf),
            **self._turns(positions, dtype),
        )

    def _turns(self, positions: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor | None]:
        turn = sink_turn = embedding = None
        if self._rope is not None:
            plain = self._rope.turn(positions)[:, None]
            turn = torch.cat(
                [(plain * self._scale).expand(-1, self._query_heads, -1), plain.expand(-1, self._heads, -1)], dim=1
            )
            if self._layout.sinks:
                back = (self._layout.capacity - 1 - positions).clamp(max=0)
                sink_turn = self._rope.turn(back)[:, None]
        if self._sinusoid:
            embedding = self._positional_scale * sinusoid(positions, self._dim, self._max_period, dtype)
        return {"turn": turn, "sink_turn": sink_turn, "embedding": embedding}

    def step(self, x: torch.Tensor, plan: Plan, caches: Sequence[KvLayer]) -> torch.Tensor:
        """``x`` ``[n, d]``, one position of each slot, to ``[n, d]``; writes to the caches first."""
        if plan.embedding is not None:
            x = x + plan.embedding
        for layer, cache in zip(self._layers, caches, strict=True):
            queries, sink_queries, keys, values = self._project(layer, x, plan)
            cache.write(plan.rows, plan.places, keys, values)
            x = self._rest(layer, x, attend_step(queries, sink_queries, cache, plan.bias))
        return x

    def prompt(self, x: torch.Tensor, plan: Plan, caches: Sequence[KvLayer]) -> torch.Tensor:
        """``x`` ``[t, d]``, consecutive positions of the one slot of ``caches``, to ``[t, d]``; writes to the caches
        last, since early positions may still see what late ones replace."""
        if plan.embedding is not None:
            x = x + plan.embedding
        for layer, cache in zip(self._layers, caches, strict=True):
            queries, sink_queries, keys, values = self._project(layer, x, plan)
            stored = self._layout.dtype
            new = unpack(*pack(keys, stored), queries.dtype), unpack(*pack(values, stored), queries.dtype)
            seen = attend_prompt(queries, sink_queries, cache, new, plan.bias)
            cache.write(plan.rows, plan.places, keys, values)
            x = self._rest(layer, x, seen)
        return x

    def _project(
        self, layer: _Layer, x: torch.Tensor, plan: Plan
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """Queries, the sinks' queries, keys, values: ``[m, heads, dim]`` each."""
        heads = layer.in_proj(layer.norm1(x)).view(x.shape[0], -1, self._layout.dim)
        n_queries = self._query_heads
        values = heads[:, n_queries + self._heads :]
        sink_queries = None
        if self._rope is None or plan.turn is None:
            return heads[:, :n_queries] * self._scale, None, heads[:, n_queries : n_queries + self._heads], values
        turned = self._rope.pairs(heads[:, : n_queries + self._heads]) * plan.turn
        if plan.sink_turn is not None:
            sink_queries = self._rope.heads(turned[:, :n_queries] * plan.sink_turn).to(heads.dtype)
        flat = self._rope.heads(turned).to(heads.dtype)
        return flat[:, :n_queries], sink_queries, flat[:, n_queries:], values

    def _rest(self, layer: _Layer, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        x = x + layer.scale1(layer.out_proj(seen.reshape(x.shape[0], -1)))
        return x + layer.scale2(layer.feed_forward(layer.norm2(x)))
