"""Choosing tokens with counted random numbers: the same seed and step give the same token, whoever else is there.

Numbers are a hash of (slot's seed, step, stream, vocabulary index), in integer operations that a CPU and a GPU do
alike and a CUDA graph can record; no generator has a state. The hash is SplitMix64's finaliser (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", OOPSLA 2014, variant 13 of Stafford). A token is drawn by Gumbel-max:
argmax(logits + temperature * Gumbel noise) has the probabilities of softmax(logits / temperature).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from duplex.errors import ConfigError

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15
_MULTIPLY_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MULTIPLY_2 = -7723592293110705685  # 0x94D049BB133111EB
_STREAMS = 64  # numbers of streams one step has room for
_UNIFORM_BITS = 40
_UNIFORM_STEP = 2.0**-40
_BELOW_ONE = 1.0 - 2.0**-24  # the largest float32 below 1


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one slot chooses. A temperature of 0 takes the likeliest token; ``top_k`` of 0 lets every token take part.
    ``seed``: any integer, taken modulo 2**64."""

    seed: int = 0
    temperature_text: float = 0.7
    temperature_audio: float = 0.8
    top_k_text: int = 25
    top_k_audio: int = 250

    def check(self, max_top_k: int) -> None:
        """Raises ``ConfigError``."""
        for name in ("temperature_text", "temperature_audio"):
            value = getattr(self, name)
            if not 0.0 <= value < float("inf"):
                raise ConfigError(f"{name} must be 0 (the likeliest token) or more, not {value}.")
        for name in ("top_k_text", "top_k_audio"):
            value = getattr(self, name)
            if not 0 <= value <= max_top_k:
                raise ConfigError(f"{name} must be between 0 (every token) and {max_top_k}, not {value}.")


def signed_64(value: int) -> int:
    """Any integer modulo 2**64, as an int64 holds it."""
    return (value + 2**63) % 2**64 - 2**63


def _mix(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finaliser; int64 of any shape. Masks undo the sign that int64's right shift carries in."""
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _MULTIPLY_1
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _MULTIPLY_2
    return x ^ ((x >> 31) & (2**33 - 1))


def index_table(size: int, device: torch.device) -> torch.Tensor:
    """int64[size]: a hash of each vocabulary index, computed once."""
    return _mix((torch.arange(size, dtype=torch.int64, device=device) + 1) * _GOLDEN)


def stream_table(n_streams: int, device: torch.device) -> torch.Tensor:
    """int64[n_streams], for :func:`stream_keys`."""
    if n_streams > _STREAMS:
        raise ConfigError(f"At most {_STREAMS} streams can be sampled, not {n_streams}.")
    return torch.arange(n_streams, dtype=torch.int64, device=device)


def stream_keys(seed: torch.Tensor, step: torch.Tensor, streams: torch.Tensor) -> torch.Tensor:
    """``seed`` and ``step`` int64[n] and a :func:`stream_table` to int64[n, n_streams]: what the random numbers of one
    step are drawn from."""
    counter = step[:, None] * _STREAMS + streams
    return _mix(_mix(seed * _GOLDEN)[:, None] ^ _mix(counter * _GOLDEN + _GOLDEN))


def gumbel(keys: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """``keys`` int64 of any shape and an :func:`index_table` int64[V] to standard Gumbel noise, float32[..., V].

    -log(-log(1 - u)) of a uniform u with 40 bits: what makes a token win is a small u, where float32 is fine enough
    for probabilities down to 2**-40.
    """
    bits = (_mix(table ^ keys[..., None]) >> (64 - _UNIFORM_BITS)) & ((1 << _UNIFORM_BITS) - 1)
    uniform = (bits.to(torch.float32) * _UNIFORM_STEP + _UNIFORM_STEP / 2).clamp_(max=_BELOW_ONE)
    return uniform.neg_().log1p_().neg_().log_().neg_()


@dataclass(frozen=True, slots=True)
class TopK:
    """How many tokens may take part, worked out once for all the codebooks of a step. ``rank`` int64[n, 1]: of the last
    that may; ``every`` bool[n, 1]: all may; ``most``: the largest rank and one, for all slots."""

    rank: torch.Tensor
    every: torch.Tensor
    most: int

    @classmethod
    def of(cls, top_k: torch.Tensor, max_top_k: int, vocabulary: int) -> TopK:
        """``top_k`` int64[n], 0: all."""
        most = min(max_top_k, vocabulary)
        return cls((top_k - 1).clamp(0, most - 1)[:, None], (top_k <= 0)[:, None], most)

    def floor(self, logits: torch.Tensor) -> torch.Tensor:
        """float32[n, 1]: the smallest logit that takes part. Tokens that tie with it take part too, so what takes part
        depends on the logits alone."""
        best = torch.topk(logits, self.most, dim=-1).values
        return best.gather(1, self.rank).masked_fill_(self.every, -torch.inf)


def pick(logits: torch.Tensor, noise: torch.Tensor, top_k: TopK) -> torch.Tensor:
    """Tokens, int64[n], from ``logits`` float32[n, V] and ``noise`` float32[n, V]: Gumbel noise times the slot's
    temperature. Adding it so, instead of dividing the logits, makes a temperature of 0 the likeliest token."""
    return (logits + noise).masked_fill_(logits < top_k.floor(logits), -torch.inf).argmax(dim=-1)


def choose(
    logits: torch.Tensor,
    keys: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    table: torch.Tensor,
    max_top_k: int,
) -> torch.Tensor:
    """:func:`pick` for one stream: ``keys`` int64[n] are its column of :func:`stream_keys`, ``temperature`` float32[n]
    (0: greedy), ``top_k`` int64[n] (0: all; at most ``max_top_k``), ``table`` the vocabulary's :func:`index_table`."""
    noise = gumbel(keys, table) * temperature[:, None]
    return pick(logits, noise, TopK.of(top_k, max_top_k, logits.shape[-1]))
