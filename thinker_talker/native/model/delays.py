"""The streams' delays: where each token of a step is kept until it is read or handed out.

A step has one token of each stream: text, the agent's codebooks, the user's codebooks. A stream with delay d carries
its frame d steps late. Tokens lie in a short ring of positions; at step t

 * the user's frame is written to position t + d,
 * position t is what the model reads; at t <= d the stream's initial token is read instead,
 * what the model makes is written to position t + 1,
 * the agent's frame whose last codebook just came is read from positions t + 1 - max_delay + d.

So the codes made at step t belong, codebook by codebook, to the frame that began at step t - d. These are the rules of
``LMGen`` in the ``moshi`` package; forcing is in addition to them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .tensors import CHOOSE, UNGENERATED


class Delays:
    """``delays``: of text, ``dep_q`` agent streams, and the users' streams, in this order. ``initial``: their first
    tokens. The ring of a slot is int64[K, ring]; every method works on n slots, in place, by masks."""

    def __init__(self, delays: Sequence[int], dep_q: int, initial: Sequence[int], device: torch.device) -> None:
        self.n_streams = len(delays)
        self.dep_q = dep_q
        self.max_delay = max(delays)
        self.ring = self.max_delay + 2
        self._all = torch.tensor(delays, dtype=torch.int64, device=device)
        self._made = self._all[: 1 + dep_q]
        self._agent = self._all[1 : 1 + dep_q]
        self._user = self._all[1 + dep_q :]
        self._initial = torch.tensor(initial, dtype=torch.int64, device=device)
        self._positions = torch.arange(self.ring, dtype=torch.int64, device=device)

    def _put(self, ring: torch.Tensor, position: torch.Tensor, values: torch.Tensor, active: torch.Tensor) -> None:
        """``ring`` [n, k, ring], ``position`` [n, k] or [n, 1], ``values`` [n, k]."""
        here = (self._positions == torch.remainder(position, self.ring)[:, :, None]) & active[:, None, None]
        ring.copy_(torch.where(here, values[:, :, None], ring))

    def _get(self, ring: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        index = torch.remainder(position, self.ring)[:, :, None].expand(-1, ring.shape[1], 1)
        return ring.gather(2, index)[:, :, 0]

    def put_user(self, tokens: torch.Tensor, step: torch.Tensor, codes: torch.Tensor, active: torch.Tensor) -> None:
        """``tokens`` int64[n, K, ring]; ``codes`` int64[n, n_user]: the frame that begins at ``step`` int64[n]."""
        self._put(tokens[:, 1 + self.dep_q :], step[:, None] + self._user, codes, active)

    def read(self, tokens: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """int64[n, K]: what the model reads at ``step``."""
        return torch.where(step[:, None] <= self._all, self._initial, self._get(tokens, step[:, None]))

    def put_made(
        self, tokens: torch.Tensor, step: torch.Tensor, text: torch.Tensor, audio: torch.Tensor, active: torch.Tensor
    ) -> None:
        """``text`` int64[n] and ``audio`` int64[n, dep_q]: what was made, or forced, at ``step``."""
        made = torch.cat([text[:, None], audio], dim=1)
        self._put(tokens[:, : 1 + self.dep_q], step[:, None] + 1, made, active)

    def frame(self, tokens: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """After :meth:`put_made` of ``step``: the agent's frame int64[n, dep_q] and whether it is there, bool[n]."""
        ready = step >= self.max_delay
        codes = self._get(tokens[:, 1 : 1 + self.dep_q], step[:, None] + 1 - self.max_delay + self._agent)
        return codes.masked_fill(~ready[:, None], UNGENERATED), ready

    def put_forced(
        self, forced: torch.Tensor, step: torch.Tensor, codes: torch.Tensor, active: torch.Tensor
    ) -> torch.Tensor:
        """``forced`` int64[n, dep_q, ring] takes a frame's ``codes`` int64[n, dep_q] (or :data:`CHOOSE`), to be made
        from ``step`` on, each codebook at its delay. What is forced at ``step`` comes back, int64[n, dep_q]."""
        self._put(forced, step[:, None] + self._agent, codes, active)
        return self._get(forced, step[:, None])

    def clear(self, tokens: torch.Tensor, forced: torch.Tensor) -> None:
        """Any rows, made as new."""
        tokens.fill_(UNGENERATED)
        forced.fill_(CHOOSE)
