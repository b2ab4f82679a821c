"""The scheduler's settings. Every default is what docs/scheduler.md explains."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from duplex.bitrate import DeadlineOptions, LinkOptions
from duplex.config import Settings


class ShedOptions(Settings):
    """What is given up, in this order, while ticks miss their deadlines: codebooks, then new calls.

    ``deadline`` and ``link`` are thresholds of :mod:`duplex.bitrate`. A device is used up to ``max_utilisation`` of a
    frame, so what is left of a tick counts as ample from the rest of it on. A link has to be bad before a call is
    decoded with less, since what leaves is Opus: it gets no smaller by that.
    """

    miss_share: float = Field(0.1, gt=0, lt=1, description="of the window's ticks; more than that is overload")
    window_ticks: int = Field(50, ge=1, description="the last ticks, over which misses are counted")
    fewest_share: float = Field(0.5, gt=0, le=1, description="of the codebooks, that a call is always decoded with")
    deadline: DeadlineOptions = DeadlineOptions(short_below=0.05, ample_above=0.15, short_ticks=12)
    link: LinkOptions = LinkOptions(
        loss_short=0.1,
        loss_severe=0.25,
        loss_ample=0.05,
        queueing_short_ms=500.0,
        queueing_severe_ms=1500.0,
        queueing_ample_ms=200.0,
    )
    follow_link: bool = Field(True, description="a call's own link may take codebooks from it")
    recover_s: float = Field(5.0, gt=0, description="without a miss, before calls are taken again")
    recover_limit_s: float = Field(
        80.0,
        gt=0,
        description="that wait doubles whenever it proved too short, up to this; it halves with every quiet one",
    )


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
    restarts: int = Field(
        3, ge=0, description="of an engine that ended, in a row; a minute that went well ends the row"
    )
    restart_pause_s: float = Field(
        0.5, gt=0, description="before the first of them; each further one waits twice as long"
    )
    retry_after_s: float = Field(5.0, gt=0, description="what a refused caller is told")
    shed: ShedOptions = ShedOptions()
