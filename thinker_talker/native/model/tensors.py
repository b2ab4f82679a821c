"""The tensors a backbone's step reads and writes, one row a slot.

All live on the device at fixed addresses for the engine's life, so that a captured graph can be replayed on them:
they are filled in place before a step and read after it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import torch

CHOOSE = -1  # in place of a forced token: the model chooses
UNGENERATED = -2  # in place of a code the delays have not produced yet


@dataclass(slots=True)
class _Rows:
    def first(self, n_slots: int) -> Self:
        """The first ``n_slots`` rows, as views."""
        return type(self)(**{f.name: getattr(self, f.name)[:n_slots] for f in fields(self)})


@dataclass(slots=True)
class StepInputs(_Rows):
    """``active`` bool[n]. ``user_codes`` int64[n, n_user]: the frame that begins at this step. ``forced_text``
    int64[n]: this step's token or :data:`CHOOSE`. ``forced_audio`` int64[n, dep_q]: of the agent's frame that begins
    at this step, each codebook a token or :data:`CHOOSE` (delayed codebooks are made, so forced, in later steps)."""

    active: torch.Tensor
    user_codes: torch.Tensor
    forced_text: torch.Tensor
    forced_audio: torch.Tensor


@dataclass(slots=True)
class StepOutputs(_Rows):
    """``text`` int64[n]: this step's token; ``codes`` int64[n, dep_q]: the agent's frame with the delays undone, or
    :data:`UNGENERATED`; ``ready`` bool[n]: the codes are there; ``finite`` bool[n]: no NaN or infinity on the way."""

    text: torch.Tensor
    codes: torch.Tensor
    ready: torch.Tensor
    finite: torch.Tensor
