"""The physical limit of a tick: every weight and every key and value read once, at the memory's speed.

A tick of one token a session does two multiplications for each weight it reads, times the sessions: far below what
the arithmetic units could do. So no implementation is faster than the bytes over the bandwidth, and the ratio to that
says what is left to gain. The bandwidth is measured, by a copy, on the same device in the same run.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

_COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 27}  # well beyond any cache
_COPIES = 12


@dataclass(frozen=True, slots=True)
class TickBytes:
    """``weights``: read once a tick, whatever the number of sessions; ``kv_per_session``: with its context full."""

    weights: int
    kv_per_session: int

    def total(self, sessions: int) -> int:
        return self.weights + sessions * self.kv_per_session

    def limit_s(self, sessions: int, bandwidth_bytes_per_s: float) -> float:
        """The shortest a tick can be."""
        return self.total(sessions) / bandwidth_bytes_per_s


def measured_bandwidth_bytes_per_s(device: torch.device) -> float:
    """Bytes read plus bytes written a second, by copies of a buffer beyond the caches: their median."""
    size = _COPY_BYTES["cuda" if device.type == "cuda" else "cpu"]
    source = torch.empty(size, dtype=torch.uint8, device=device)
    source.zero_()  # so that the pages are there
    target = torch.empty_like(source)
    target.copy_(source)
    took_s = []
    for _ in range(_COPIES):
        _finish(device)
        began_s = time.perf_counter()
        target.copy_(source)
        _finish(device)
        took_s.append(time.perf_counter() - began_s)
    return 2.0 * size / statistics.median(took_s)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
