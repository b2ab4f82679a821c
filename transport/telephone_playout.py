"""What the far end of a telephone line has of ours, and how far along it is. Sans-I/O: the time comes in.

Theory of operation
-------------------
A telephone gateway buffers what it is sent and plays it in real time. We cannot look into it, but it can be reckoned:
what arrives at an empty buffer is played at once, what arrives at a full one after what is there. Take the network
away, and the buffer runs dry at ``end_s``; every packet put in moves that on by its length, *exactly*, so nothing
drifts however long we speak. The network shifts everything by one way's delay, and since it shifts a ``clear`` as
well, what that will find in the buffer is what the reckoning without a network says.

Two things are measured. The *round trip* is how long a mark takes that finds nothing to play: the one behind a
``clear``, or for a buffer that is empty. How much later than that plus the reckoning a mark of the running
sound returns is how *late* the far end is, because the way there was slow for once, its clock is, or it plays
on a beat of its own. The smallest of the last few counts, as the way back only ever adds.

A mark returns when its sound was played, and also when it was cleared. Each carries the epoch of its stretch of sound
in its name; every ``clear`` begins a new one. So a mark of this epoch was played. Of an older epoch it was played if it
lies before what the ``clear`` was reckoned to find, or returns well before the mark that was put behind the ``clear``.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from enum import Enum

from duplex.frames import PACKET_SAMPLES, Samples
from duplex.line import PlayoutReport

PACKET_S = 0.02
EARLY_S = 0.001  # a packet may leave this much before its time, so that two clocks that agree do not miss each other
MARK_EVERY_PACKETS = 5
MAX_MARKS = 256
_HISTORY = 128
_LATENESSES = 4
_ROUND_TRIPS = 8
_MEASURE_EVERY_S = 1.0
_OVERDUE_S = 1.0  # marks that are this late are no evidence any more
_BURST_S = 0.015  # what a clear sends back comes together


class Fate(Enum):
    """Of the sound before a mark."""

    PLAYED = "played"
    CLEARED = "cleared"
    UNKNOWN = "unknown"  # no mark of ours, or one that came before


@dataclass(frozen=True, slots=True)
class _Stretch:
    """What one packet of ours became. ``samples``: None for silence that is not sent. ``end_s``: as reckoned."""

    end_pts: int
    duration_s: float
    end_s: float
    samples: Samples | None


@dataclass(slots=True)
class _Mark:
    pts: int
    due_s: float  # when it will have been played, as reckoned
    measures_trip: bool
    old: bool = False  # of an epoch before
    taken_back: bool = False  # its sound was cleared, as reckoned
    cleared_at_s: float | None = None  # when it returned, if so


@dataclass(frozen=True, slots=True)
class Cut:
    """What a ``clear`` finds. ``packets``: how many, the newest, were not begun, unsent silence among them.

    ``before``: the last sound that stays, float32[480] at 24 kHz; a gateway plays a packet to its end once begun.
    """

    packets: int
    before: Samples | None


class FarEnd:
    """One far end's buffer. ``lead_packets``: how much of ours it may hold.

    ``assumed_delay_s``: one way, until marks have measured it.
    """

    def __init__(self, *, lead_packets: int, assumed_delay_s: float = 0.1) -> None:
        self._lead_s = lead_packets * PACKET_S
        self._assumed_delay_s = assumed_delay_s
        self.reset()

    def reset(self) -> None:
        self.marks_ignored = 0  # returned, and no mark of ours that was out
        self.marks_lost = 0  # never returned
        self.beyond_recall_packets = 0  # were played although they were counted as taken back
        self.epoch = 0
        self._end_s = 0.0
        self._late_s = 0.0
        self._history: deque[_Stretch] = deque(maxlen=_HISTORY)
        self._pts = 0  # end of what was put in
        self._latenesses: deque[float] = deque(maxlen=_LATENESSES)
        self._trips: deque[float] = deque(maxlen=_ROUND_TRIPS)
        self._marks: dict[str, _Mark] = {}
        self._unmarked = 0  # packets of sound since the last mark
        self._marked_s = 0.0  # when that left
        self._returned_s: float | None = None
        self._cut_pts = 0  # of the last clear
        self._to_clear = False  # sound was put in since then
        self._sure = False  # what is in the buffer is known for certain

    # --- what goes in -----------------------------------------------------------------------------

    def remaining_s(self, now_s: float) -> float:
        """How much sound it still has to play."""
        return max(0.0, self._end_s + self._late_s - now_s)

    def room_at_s(self, now_s: float) -> float:
        """From when on it may be sent the next 20 ms (``now_s`` or before: at once)."""
        return now_s + self.remaining_s(now_s) + PACKET_S - self._lead_s - EARLY_S

    def put(self, end_pts: int, samples: Samples, now_s: float) -> None:
        """20 ms of sound leave now. ``end_pts``: where our own time line stands after it."""
        self._look(now_s)
        self._end_s += PACKET_S
        self._unmarked += 1
        self._to_clear, self._sure = True, False
        self._add(_Stretch(end_pts, PACKET_S, self._end_s, samples))

    def put_silence(self, end_pts: int, now_s: float) -> None:
        """20 ms in which there is nothing to hear: not sent, but it has its place behind what was."""
        self._look(now_s)
        self._add(_Stretch(end_pts, 0.0, self._end_s, None))

    def _look(self, now_s: float) -> None:
        """A buffer that ran dry is where the reckoning starts anew."""
        if not self.remaining_s(now_s):
            self._settle()
            self._end_s, self._sure = now_s, True

    def _settle(self) -> None:
        """How late what was put in so far is, is known now; what comes next need not be."""
        if self._late_s:
            self._history = deque(
                (replace(each, end_s=each.end_s + self._late_s) for each in self._history), maxlen=_HISTORY
            )
        self._end_s, self._late_s = self._end_s + self._late_s, 0.0
        self._latenesses.clear()

    def _add(self, stretch: _Stretch) -> None:
        self._history.append(stretch)
        self._pts = stretch.end_pts

    def mark_due(self, now_s: float, *, quiet: bool = False) -> bool:
        """Whether to send a mark now: every so often, where sound ends, and now and then to measure the way."""
        if not quiet:
            return self._unmarked >= MARK_EVERY_PACKETS
        return self._unmarked > 0 or now_s - self._marked_s >= _MEASURE_EVERY_S

    def mark(self, now_s: float) -> str:
        """Names a mark that leaves now, behind all there is."""
        self._look(now_s)
        self._unmarked, self._marked_s = 0, now_s
        name = f"{self.epoch}-{self._pts}"
        while name in self._marks:  # nothing was put in since the last one
            name += "+"
        self._marks[name] = _Mark(self._pts, now_s if self._sure else self._end_s, self._sure)
        while len(self._marks) > MAX_MARKS:
            del self._marks[next(iter(self._marks))]
            self.marks_lost += 1
        return name

    def cut(self, now_s: float) -> Cut | None:
        """A ``clear`` leaves now. A new epoch begins.

        None where there was no sound since the last one, so that there is nothing to clear.
        """
        if not self._to_clear:
            return None
        self._settle()
        packets, end_s = 0, now_s
        while self._history and (last := self._history[-1]).end_s > now_s + 1e-9:
            if last.end_s - last.duration_s < now_s - 1e-9 and last.duration_s:
                end_s = last.end_s
                break  # it is being played
            packets += 1
            self._history.pop()
        if self._history:
            self._pts = self._history[-1].end_pts
        else:
            self._pts -= packets * PACKET_SAMPLES
        self._end_s, self._unmarked = end_s, 0
        self._cut_pts = self._pts
        self._to_clear, self._sure = False, True
        for mark in self._marks.values():
            mark.taken_back = mark.taken_back or (not mark.old and mark.pts > self._pts)
            mark.old = True
        self.epoch += 1
        before = next((each.samples for each in reversed(self._history) if each.samples is not None), None)
        return Cut(packets, before)

    # --- what comes back --------------------------------------------------------------------------

    def returned(self, name: str, now_s: float) -> Fate:
        """A mark came back."""
        mark = self._marks.get(name)
        if mark is None or mark.cleared_at_s is not None:
            self.marks_ignored += 1
            return Fate.UNKNOWN
        self._returned_s = now_s
        if mark.taken_back:
            mark.cleared_at_s = now_s
            return Fate.CLEARED
        if not mark.old:
            self._measure(mark, now_s)
        for earlier in list(self._marks):
            if earlier == name:
                break
            self._forget(self._marks.pop(earlier), now_s)
        del self._marks[name]
        return Fate.PLAYED

    def _forget(self, mark: _Mark, now_s: float) -> None:
        """A later mark came back as played: this one will not come any more, or was cleared."""
        if mark.cleared_at_s is None:
            self.marks_lost += not mark.taken_back  # some far ends do not return those
        elif now_s - mark.cleared_at_s > _BURST_S:
            self.beyond_recall_packets = max(self.beyond_recall_packets, (mark.pts - self._cut_pts) // PACKET_SAMPLES)

    def _measure(self, mark: _Mark, now_s: float) -> None:
        took_s = max(0.0, now_s - mark.due_s)
        if mark.measures_trip:
            self._trips.append(took_s)
        elif self._trips:
            self._latenesses.append(max(0.0, took_s - min(self._trips)))
            self._late_s = min(self._latenesses)

    # --- what is known ----------------------------------------------------------------------------

    @property
    def round_trip_s(self) -> float | None:
        return min(self._trips) if self._trips else None

    def report(self, now_s: float) -> PlayoutReport:
        """How far it is, by now. Its grade is "mark" while marks come back, and "clock" until then and after."""
        overdue = any(not mark.taken_back and now_s - mark.due_s > _OVERDUE_S for mark in self._marks.values())
        if self._returned_s is None or overdue:
            delay_s = self._assumed_delay_s
            return PlayoutReport(self._played_pts(now_s - delay_s), now_s, delay_s * 1000.0, "clock")
        trip_s = min(self._trips) if self._trips else 2 * self._assumed_delay_s
        error_ms = (trip_s / 2 + PACKET_S) * 1000.0  # how the trip is split is not known, nor the far end's beat
        return PlayoutReport(self._played_pts(now_s - trip_s / 2), now_s, error_ms, "mark")

    def _played_pts(self, at_s: float) -> int:
        """Where it stood at ``at_s``, without a network. Before the oldest that is known, the beginning of that."""
        for stretch in reversed(self._history):
            left_s = stretch.end_s + self._late_s - at_s
            if left_s <= 0:
                return stretch.end_pts
            if left_s < stretch.duration_s:
                return stretch.end_pts - round(left_s / PACKET_S * PACKET_SAMPLES)
        return self._history[0].end_pts - PACKET_SAMPLES if self._history else self._pts
