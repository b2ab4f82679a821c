"""How many codebooks a call gets in each frame: fewer at once when time or the link runs short, more again slowly.

Pure: numbers in, a number out; no clock, no I/O. Two ceilings, the lower one holds:

- the *deadline* ceiling, one for all calls of a device: what is left of each tick's budget, and whether it was missed;
- the *link* ceiling, one for each call: reports of loss, round trip and bandwidth, as they arrive (RTCP: about one a
  second, and one report is judged once, however many frames it lasts).

::

    state of the signal        deadline ceiling                    link ceiling
    missed / severe            halves at once                      halves at once
    short                      a quarter less after a few ticks    a quarter less at once
    in between                 stays                               stays
    ample, for long enough     one more                            one more

Between "short" and "ample" lies the hysteresis. When a ceiling falls soon after it rose, the value it rose to is tried
again after twice as long, then four times, up to a limit: what cannot be carried is tried less and less often. A
bandwidth estimate is not a sign of more or less: it caps the link ceiling at what fits into it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, Protocol, runtime_checkable

from pydantic import Field, model_validator

from duplex.config import Settings

FRAME_RATE_HZ = 12.5
CODEBOOK_BITS = 11.0
"""Mimi's: 2048 entries, 12.5 frames a second, so 137.5 bit/s for each codebook."""


def bits_per_second(
    n_codebooks: int, frame_rate_hz: float = FRAME_RATE_HZ, codebook_bits: float = CODEBOOK_BITS
) -> float:
    """What that many codebooks take without any framing: 1100 bit/s for the 8 that Moshi uses."""
    return n_codebooks * frame_rate_hz * codebook_bits


class DeadlineOptions(Settings):
    """Thresholds of the deadline ceiling. Headroom is the share of a tick's budget that was left, 1 − time / budget."""

    short_below: float = Field(0.10, ge=0, lt=1, description="headroom under which a tick was short")
    ample_above: float = Field(0.35, gt=0, le=1, description="headroom over which a tick had time to spare")
    short_ticks: int = Field(3, ge=1, description="so many short ticks in a row, and the ceiling falls")
    rise_after_ticks: int = Field(25, ge=1, description="so many ample ticks in a row for one codebook more (2 s)")
    rise_after_most_ticks: int = Field(750, ge=1, description="what that may grow to by doubling (60 s)")

    @model_validator(mode="after")
    def _has_a_band(self) -> DeadlineOptions:
        if self.ample_above <= self.short_below:
            raise ValueError("ample_above must be more than short_below: the band between them is the hysteresis")
        return self


class LinkOptions(Settings):
    """Thresholds of a call's link ceiling. ``queueing`` is a round trip's excess over the least that was seen."""

    loss_short: float = Field(0.03, ge=0, le=1, description="share of packets lost from which a report is short")
    loss_severe: float = Field(0.12, ge=0, le=1)
    loss_ample: float = Field(0.01, ge=0, le=1, description="share lost up to which a report may count as ample")
    queueing_short_ms: float = Field(120.0, ge=0, description="round trip over the least seen, from which it is short")
    queueing_severe_ms: float = Field(400.0, ge=0)
    queueing_ample_ms: float = Field(50.0, ge=0)
    least_rtt_drift: float = Field(0.01, ge=0, lt=1, description="by which the least seen grows with each report")
    bandwidth_share: float = Field(0.8, gt=0, le=1, description="of the estimate that may be used at all")
    bandwidth_share_to_rise: float = Field(0.65, gt=0, le=1, description="of the estimate that a rise has to fit into")
    overhead_bps: float = Field(0.0, ge=0, description="headers and other streams of the same call")
    rise_after_reports: int = Field(3, ge=1, description="so many ample reports in a row for one codebook more (3 s)")
    rise_after_most_reports: int = Field(60, ge=1, description="what that may grow to by doubling (60 s)")

    @model_validator(mode="after")
    def _is_ordered(self) -> LinkOptions:
        for name, values in (
            ("loss", (self.loss_ample, self.loss_short, self.loss_severe)),
            ("queueing", (self.queueing_ample_ms, self.queueing_short_ms, self.queueing_severe_ms)),
            ("bandwidth", (self.bandwidth_share_to_rise, self.bandwidth_share)),
        ):
            if not all(low < high for low, high in pairwise(values)):
                raise ValueError(f"the thresholds of {name} must rise: {values}")
        return self


class BitrateOptions(Settings):
    """``fewest`` is what a call is worth having with: a Moshi reply needs its semantic codebook and a few more."""

    fewest: int = Field(2, ge=1, le=32)
    most: int = Field(8, ge=1, le=32)
    frame_rate_hz: float = Field(FRAME_RATE_HZ, gt=0)
    codebook_bits: float = Field(CODEBOOK_BITS, gt=0)
    deadline: DeadlineOptions = DeadlineOptions()
    link: LinkOptions = LinkOptions()

    @model_validator(mode="after")
    def _is_ordered(self) -> BitrateOptions:
        if self.fewest > self.most:
            raise ValueError(f"fewest = {self.fewest} is more than most = {self.most}")
        return self


@dataclass(frozen=True, slots=True)
class LinkReport:
    """What is known of a call's link now; ``None`` for what is not measured. ``loss``: a share, 0 to 1."""

    loss: float | None = None
    rtt_ms: float | None = None
    bandwidth_bps: float | None = None


@runtime_checkable
class LinkReporting(Protocol):
    """What a line has too that knows how its link is doing."""

    def take_link(self) -> LinkReport | None:
        """A report that came since this was last asked; None: nothing new is known."""
        ...


Limit = Literal["nothing", "deadline", "link"]


@dataclass(frozen=True, slots=True)
class Bitrate:
    """A frame's number of codebooks, what holds it down, and its bit rate."""

    n_codebooks: int
    limited_by: Limit
    bits_per_second: float


@dataclass(slots=True)
class _Ceiling:
    """A number that falls when told, and rises by itself after enough good signs in a row."""

    fewest: int
    most: int
    rise_after: int
    rise_after_most: int
    value: int = field(init=False)
    _good: int = field(init=False, default=0)  # signs in a row
    _since_rise: int | None = field(init=False, default=None)  # signs, while it is not known whether the rise holds
    _failed_at: int | None = field(init=False, default=None)  # the value that the last rise did not hold at …
    _wait: int = field(init=False)  # … and how many good signs it takes to try that again

    def __post_init__(self) -> None:
        self.value = self.most
        self._wait = self.rise_after

    def fall(self, severe: bool) -> None:
        """Half, or a quarter less; at least one less, if that is allowed."""
        if self._since_rise is not None:
            again = self._failed_at is not None and self.value >= self._failed_at
            self._wait = min(2 * (self._wait if again else self.rise_after), self.rise_after_most)
            self._failed_at = self.value
        self.cap(self.value // 2 if severe else min(self.value - 1, self.value * 3 // 4))

    def cap(self, most: int) -> None:
        """Not more than that, for now."""
        self.value = max(self.fewest, min(self.value, most))
        self._good, self._since_rise = 0, None

    def stay(self) -> None:
        self._good = 0
        self._hold()

    def good(self, may_reach: int) -> None:
        """A good sign, for anything up to ``may_reach``."""
        self._good += 1
        self._hold()
        retries = self._failed_at is not None and self.value + 1 >= self._failed_at
        if self._good >= (self._wait if retries else self.rise_after) and self.value < min(self.most, may_reach):
            self.value += 1
            self._good, self._since_rise = 0, 0

    def _hold(self) -> None:
        if self._since_rise is None:
            return
        self._since_rise += 1
        if self._since_rise > self._wait:
            if self._failed_at is not None and self.value >= self._failed_at:
                self._failed_at, self._wait = None, self.rise_after  # it holds after all
            self._since_rise = None


class BitratePolicy:
    """The deadline ceiling of one device; :meth:`tick` is for each tick of the scheduler, once."""

    def __init__(self, options: BitrateOptions | None = None) -> None:
        self.options = options or BitrateOptions()
        self.reset()

    def reset(self) -> None:
        o = self.options
        self._ceiling = _Ceiling(o.fewest, o.most, o.deadline.rise_after_ticks, o.deadline.rise_after_most_ticks)
        self._short_ticks = 0

    @property
    def ceiling(self) -> int:
        return self._ceiling.value

    @property
    def exhausted(self) -> bool:
        """Nothing is left to take away, and the device is still short of time: refuse new calls."""
        return self._ceiling.value == self.options.fewest and self._short_ticks >= self.options.deadline.short_ticks

    def tick(self, headroom: float, missed: bool = False) -> int:
        """Takes in one tick and gives the ceiling. ``headroom``: 1 − time / budget, below 0 when it was overrun;
        ``missed``: a deadline was, for whatever reason."""
        options = self.options.deadline
        if missed or headroom < options.short_below:
            self._short_ticks += 1
            if missed or headroom < 0.0:
                self._ceiling.fall(severe=True)
            elif self._short_ticks % options.short_ticks == 0:
                self._ceiling.fall(severe=False)
            else:
                self._ceiling.stay()
        else:
            self._short_ticks = 0
            if headroom > options.ample_above:
                self._ceiling.good(self.options.most)
            else:
                self._ceiling.stay()
        return self.ceiling

    def call(self) -> CallBitrate:
        """What decides for one call from now on."""
        return CallBitrate(self)


class CallBitrate:
    """The link ceiling of one call, and the decision."""

    def __init__(self, policy: BitratePolicy) -> None:
        self._policy = policy
        self.reset()

    def reset(self) -> None:
        o = self._policy.options
        self._ceiling = _Ceiling(o.fewest, o.most, o.link.rise_after_reports, o.link.rise_after_most_reports)
        self._least_rtt_ms: float | None = None

    @property
    def ceiling(self) -> int:
        return self._ceiling.value

    def report(self, link: LinkReport) -> int:
        """Takes in one report about the link, once, when it arrives, and gives the ceiling."""
        options = self._policy.options.link
        loss = 0.0 if link.loss is None else link.loss
        queueing_ms = self._queueing_ms(link.rtt_ms)
        fits = self._fits(link.bandwidth_bps, options.bandwidth_share)
        if loss >= options.loss_severe or queueing_ms >= options.queueing_severe_ms:
            self._ceiling.fall(severe=True)
        elif loss >= options.loss_short or queueing_ms >= options.queueing_short_ms:
            self._ceiling.fall(severe=False)
        elif loss <= options.loss_ample and queueing_ms <= options.queueing_ample_ms:
            self._ceiling.good(self._fits(link.bandwidth_bps, options.bandwidth_share_to_rise))
        else:
            self._ceiling.stay()
        if fits < self._ceiling.value:
            self._ceiling.cap(fits)
        return self.ceiling

    def frame(self) -> Bitrate:
        """For the next frame. Changes nothing."""
        options, deadline, link = self._policy.options, self._policy.ceiling, self._ceiling.value
        n = min(deadline, link)
        limited_by: Limit = "nothing" if n == options.most else "deadline" if deadline <= link else "link"
        return Bitrate(n, limited_by, bits_per_second(n, options.frame_rate_hz, options.codebook_bits))

    def _queueing_ms(self, rtt_ms: float | None) -> float:
        if rtt_ms is None:
            return 0.0
        # The least seen drifts up, so that a call that moves to a longer path is not held down for good.
        least = rtt_ms if self._least_rtt_ms is None else self._least_rtt_ms
        drift = 1.0 + self._policy.options.link.least_rtt_drift
        self._least_rtt_ms = min(rtt_ms, least * drift)
        return rtt_ms - self._least_rtt_ms

    def _fits(self, bandwidth_bps: float | None, share: float) -> int:
        """How many codebooks fit into that share of the bandwidth; all of them if it is not known."""
        options = self._policy.options
        if bandwidth_bps is None:
            return options.most
        each = bits_per_second(1, options.frame_rate_hz, options.codebook_bits)
        return int(max(0.0, bandwidth_bps * share - options.link.overhead_bps) // each)
