"""Filling gaps and bending time is the core's (:mod:`duplex.concealment`): a late frame of an agent is a gap, too."""

from __future__ import annotations

from duplex.concealment import FADE_END_MS, HISTORY, Concealer, compress, expand

__all__ = ["FADE_END_MS", "HISTORY", "Concealer", "compress", "expand"]
