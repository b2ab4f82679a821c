"""The depth transformer: the codebooks of one step, one after the other, each with its own weights.

Its context is the step: keys and values of ``dep_q`` positions, made and forgotten within it. Codebooks are unrolled,
so every shape is known when a graph is recorded, and a codebook looks only at those before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from . import layers as parts
from .rope import Rope, sinusoid


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer's weights for one codebook."""

    norm1: parts.Function
    in_proj: parts.Function
    out_proj: parts.Function
    scale1: parts.Function
    norm2: parts.Function
    feed_forward: parts.Function
    scale2: parts.Function


@dataclass(frozen=True, slots=True)
class _Codebook:
    from_hidden: parts.Function
    embedding: parts.Function  # of the token before: text, or the codebook before
    layers: tuple[_Layer, ...]
    norm: parts.Function
    logits: parts.Function
    position: torch.Tensor | None  # [1, d]: a sinusoid
    turn: torch.Tensor | None  # complex64 [1, 1, dim / 2]


class Depth:
    """Over the ``depformer`` of an ``LMModel``, with weights per codebook, shared ones, or a schedule of both."""

    def __init__(self, model: Any, device: torch.device) -> None:
        transformer = model.depformer
        attention = transformer.layers[0].self_attn
        self.dep_q: int = model.dep_q
        self.dtype: torch.dtype = model.depformer_text_emb.weight.dtype
        self._n_layers = len(transformer.layers)
        self._query_heads = attention.num_heads
        self._heads = attention.num_heads // attention.kv_repeat
        self._dim = attention.embed_dim // attention.num_heads
        rope = transformer.rope
        self._rope = None if rope is None else Rope(self._dim, rope.max_period, rope.interleave, device)
        self._codebooks = [self._codebook(model, k, device) for k in range(self.dep_q)]

    def _codebook(self, model: Any, k: int, device: torch.device) -> _Codebook:
        transformer, schedule = model.depformer, model.depformer_weights_per_step_schedule
        weights = k if schedule is None else schedule[k]

        def of_step(modules: Any) -> Any:
            return modules[weights if len(modules) > 1 else 0]

        position = torch.full((1,), k, dtype=torch.int64, device=device)
        embedding = None
        if transformer.positional_embedding in {"sin", "sin_rope"}:
            width = transformer.layers[0].self_attn.embed_dim
            embedding = transformer.positional_scale * sinusoid(position, width, transformer.max_period, self.dtype)
        return _Codebook(
            from_hidden=parts.linear(of_step(model.depformer_in)),  # one, unless multi_linear
            embedding=parts.embedding(model.depformer_text_emb if k == 0 else model.depformer_emb[k - 1]),
            layers=tuple(
                _Layer(
                    norm1=parts.norm(layer.norm1),
                    in_proj=parts.linear(of_step(layer.self_attn.in_projs)),
                    out_proj=parts.linear(of_step(layer.self_attn.out_projs)),
                    scale1=parts.layer_scale(layer.layer_scale_1),
                    norm2=parts.norm(layer.norm2),
                    feed_forward=parts.feed_forward(
                        layer, of_step(layer.gating) if isinstance(layer.gating, torch.nn.ModuleList) else layer.gating
                    ),
                    scale2=parts.layer_scale(layer.layer_scale_2),
                )
                for layer in transformer.layers
            ),
            norm=parts.norm(model.depformer_norms[k]),
            logits=parts.linear(model.linears[k]),
            position=embedding,
            turn=None if self._rope is None else self._rope.turn(position)[:, None],
        )

    def new_cache(self, n: int, device: torch.device) -> torch.Tensor:
        """Keys and values of one step: ``[layers, 2, n, heads, dep_q, dim]``, not initialised."""
        shape = (self._n_layers, 2, n, self._heads, self.dep_q, self._dim)
        return torch.empty(shape, dtype=self.dtype, device=device)

    def logits(self, k: int, hidden: torch.Tensor, token: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        """Of codebook ``k``, float32 ``[n, card]``. ``hidden`` ``[n, d]``: the temporal transformer's output, in
        :attr:`dtype`; ``token`` int64[n]: the text for k = 0, else codebook k - 1's. To be called for k = 0, 1, … on
        one cache."""
        codebook = self._codebooks[k]
        x = codebook.from_hidden(hidden) + codebook.embedding(token)
        if codebook.position is not None:
            x = x + codebook.position
        for layer, (keys, values) in zip(codebook.layers, cache, strict=True):
            heads = layer.in_proj(layer.norm1(x)).view(x.shape[0], -1, self._dim)
            n_turned = self._query_heads + self._heads
            if self._rope is not None and codebook.turn is not None:
                turned = self._rope.heads(self._rope.pairs(heads[:, :n_turned]) * codebook.turn).to(heads.dtype)
                heads = torch.cat([turned, heads[:, n_turned:]], dim=1)
            queries = heads[:, : self._query_heads]
            keys[:, :, k], values[:, :, k] = heads[:, self._query_heads : n_turned], heads[:, n_turned:]
            # Query heads that share a key head stand in the place of query positions: none is masked.
            grouped = queries.reshape(x.shape[0], self._heads, -1, self._dim)
            seen = functional.scaled_dot_product_attention(grouped, keys[:, :, : k + 1], values[:, :, : k + 1])
            x = x + layer.scale1(layer.out_proj(seen.reshape(x.shape[0], -1)))
            x = x + layer.scale2(layer.feed_forward(layer.norm2(x)))
        out: torch.Tensor = codebook.logits(codebook.norm(x))
        return out.float()
