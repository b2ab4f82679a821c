"""The scheduler's settings. Every default is what docs/scheduler.md explains."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field, model_validator

from duplex.config import Settings


class ShedOptions(Settings):
    """What is given up, in this order, while ticks miss their deadlines: codebooks, then new calls."""

    miss_share: float = Field(0.1, gt=0, lt=1, description="of the window's ticks; more than that is overload")
    window_ticks: int = Field(50, ge=1, description="the last ticks, over which misses are counted")
    codebook_shares: tuple[float, ...] = Field(
        (0.75, 0.5), description="of the codebooks that are decoded, level by level; after the last, calls are refused"
    )
    recover_s: float = Field(5.0, gt=0, description="without a miss, before one level is taken back")
    recover_limit_s: float = Field(
        80.0,
        gt=0,
        description="that wait doubles whenever it proved too short, up to this; it halves with every quiet one",
    )

    @model_validator(mode="after")
    def _descending(self) -> ShedOptions:
        shares = (1.0, *self.codebook_shares)
        if any(not 0 < b < a for a, b in pairwise(shares)):
            raise ValueError("codebook_shares must fall from level to level, between 1 and 0")
        return self


class SchedulerOptions(Settings):
    """The table ``scheduler`` of a native agent's options."""

    gather_ms: float = Field(
        4.0, ge=0, description="at most so long a tick waits for frames that are expected; never over half its own time"
    )
    queue_frames: int = Field(4, ge=1, le=1000, description="of one call that may wait; a client may send 10 s at once")
    when_full: Literal["drop-oldest", "refuse"] = Field(
        "drop-oldest", description="what happens to a frame too many: the oldest goes, or the new one is not taken"
    )
    stale_frames: float = Field(
        2.0, ge=1, description="a frame that waited for longer than so many frames is dropped if a newer one is there"
    )
    max_utilisation: float = Field(
        0.85,
        gt=0,
        le=100,
        description="of a frame's duration that a tick may be predicted to take; the rest is for joining calls. Over 1:"
        " calls are taken although the device cannot keep up with them",
    )
    memory_reserve_mb: float = Field(
        0.0, ge=0, description="of the device's memory that no call gets, beside what the engine keeps for itself"
    )
    calibrate_ticks: int = Field(
        3, ge=0, description="ticks measured at every batch size before the first call; 0: learn while serving"
    )
    prefill_slice_ms: float = Field(
        10.0,
        gt=0,
        description="a joining call's prompt is read in slices of that length; at least one step each",
    )
    command_budget_ms: float = Field(5.0, gt=0, description="of joins, leaves, snapshots … in a row while frames wait")
    stall_limit_s: float = Field(5.0, gt=0, description="one tick that takes longer: no new calls until it ends")
    max_failures: int = Field(3, ge=1, description="ticks in a row that fail and end every call")
    retry_after_s: float = Field(5.0, gt=0, description="what a refused caller is told")
    shed: ShedOptions = ShedOptions()
