"""Which frames wait, when the next tick begins, and what goes into it. Pure: every function is told the time.

A tick is not on a grid. It begins with the frame that waited longest: at once if the others' frames are there too, or
are not expected; otherwise up to a short window later, so that calls whose phases lie close together share a tick. So
a lone call never waits, a crowd needs few ticks, and while a tick runs, what arrives meanwhile gathers for the next.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from duplex.frames import Samples


@dataclass(slots=True)
class WaitingFrame:
    """One frame of one call: what ``SlotFrame`` holds but the key, its number, and when it came."""

    seq: int
    samples: Samples
    arrived_s: float
    forced_text: int | None = None
    silent: bool = False
    codebooks: int | None = None


@dataclass(slots=True, eq=False)
class Lane:
    """One call's waiting frames, bounded, oldest first.

    ``expected_s``: when the next one should come, by the cadence of the last. ``held``: not to be stepped (not ready,
    a reset is under way, gone). ``awaited``: the tick being gathered waits for it.
    """

    limit: int
    frame_s: float
    held: bool = True
    expected_s: float = -math.inf
    awaited: bool = False
    frames: deque[WaitingFrame] = field(default_factory=deque)
    next_seq: int = 0
    dropped: list[tuple[int, int, str]] = field(default_factory=list)
    """(first seq, count, reason) of what was dropped and not told yet; at most one entry a reason in a row."""

    @property
    def full(self) -> bool:
        return len(self.frames) >= self.limit

    def put(self, frame: WaitingFrame) -> int:
        """Takes a frame in; returns how many of the oldest it pushed out."""
        pushed = 0
        while len(self.frames) >= self.limit:
            self.drop_oldest("full")
            pushed += 1
        self.frames.append(frame)
        self.next_seq = frame.seq + 1
        self.expected_s = frame.arrived_s + self.frame_s
        return pushed

    def drop_oldest(self, reason: str) -> None:
        seq = self.frames.popleft().seq
        if self.dropped and self.dropped[-1][2] == reason and sum(self.dropped[-1][:2]) == seq:
            first, count, _ = self.dropped[-1]
            self.dropped[-1] = (first, count + 1, reason)
        else:
            self.dropped.append((seq, 1, reason))

    def drop_all(self, reason: str) -> int:
        """How many there were."""
        count = len(self.frames)
        for _ in range(count):
            self.drop_oldest(reason)
        return count

    def drop_stale(self, now_s: float, stale_s: float) -> int:
        """Drops frames older than ``stale_s`` behind which newer ones wait: so a slow time leaves no lasting delay."""
        count = 0
        while len(self.frames) > 1 and now_s - self.frames[0].arrived_s > stale_s:
            self.drop_oldest("stale")
            count += 1
        return count

    def take(self) -> WaitingFrame:
        return self.frames.popleft()


def tick_at(lanes: Iterable[Lane], now_s: float, window_s: float) -> tuple[float, int]:
    """When the next tick begins, and for how many lanes it waits until then (marked ``awaited``).

    ``inf``: no frame waits. ``window_s`` is the longest the first frame may wait for others; a lane is worth waiting
    for if its next frame is due within the window, or overdue by no more than that.
    """
    first_s = math.inf
    empty: list[Lane] = []
    for lane in lanes:
        lane.awaited = False
        if lane.held:
            continue
        if not lane.frames:
            empty.append(lane)
        elif lane.frames[0].arrived_s < first_s:
            first_s = lane.frames[0].arrived_s
    if first_s == math.inf:
        return math.inf, 0
    until_s = first_s + window_s
    if now_s >= until_s:
        return now_s, 0
    awaited = 0
    for lane in empty:
        lane.awaited = now_s - window_s <= lane.expected_s <= until_s
        awaited += lane.awaited
    return (until_s, awaited) if awaited else (now_s, 0)


def next_arrival_s(lanes: Iterable[Lane], now_s: float, slack_s: float) -> float:
    """When the next frame is expected; ``inf`` if none is. One overdue by more than ``slack_s`` is not expected."""
    soonest_s = math.inf
    for lane in lanes:
        if lane.held:
            continue
        if lane.frames:
            return now_s
        if now_s - slack_s <= lane.expected_s < soonest_s:
            soonest_s = lane.expected_s
    return soonest_s


def window_s(gather_s: float, tick_s: float) -> float:
    """How long it pays to wait for an expected frame: it would wait for what is left of this tick, half of it on
    average, if the tick began without it."""
    return min(gather_s, tick_s / 2)


def due_s(began_s: float, arrived_s: float, frame_s: float) -> float:
    """A frame's deadline: one frame after its tick began (a slower tick cannot keep up), and in any case two after it
    arrived: one to wait for a tick at a foreign phase, one for the tick."""
    return min(began_s + frame_s, arrived_s + 2 * frame_s)


def prefill_budget_s(
    now_s: float, *, next_s: float, starves_at_s: float, slice_s: float, frame_s: float, tick_s: float
) -> float:
    """How long a joining call's prompt may be read now; 0 or less: not now.

    ``next_s``: when the next frame is expected (now, if one waits). Spare time is what lies before that. Where there
    was none for a whole frame (``starves_at_s``), reading goes on at the others' expense for as long as a tick leaves
    of a frame's duration: they are late by that much once a frame, and none misses its turn.
    """
    spare_s = next_s - now_s
    if now_s >= starves_at_s:
        spare_s = max(spare_s, frame_s - tick_s)
    return min(slice_s, spare_s)
