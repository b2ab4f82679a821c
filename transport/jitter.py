"""The jitter buffer: what comes off the network at its own pace, played out at ours.

Theory of operation
-------------------
Each packet says when it was spoken (its RTP timestamp), so ``arrival - timestamp`` is its transit time
up to a constant. The least transit of the last seconds is the *base*; what a packet took beyond it is
its jitter. ``pop`` plays the sample at ``position`` at time ``now``; ``now - position - base`` is the
*delay* of playout. A packet is in time if its jitter is below the delay, so the delay wanted
(*target*) is a high percentile of the jitter, and nothing else: neither losses nor how many packets
happen to be queued enter into it.

The delay changes in three ways only:

*Up*, when a packet is not there and nothing later is either. Then the position stays, a fill is
played, and the wait is noted (``held``). If the packet comes, it is played late and the delay has
grown by exactly the lateness. If something later comes instead, the packet was lost: the fill
stood for it, and the position moves on by what was held. So a lost packet leaves the delay as it was.

*Down*, when it exceeds the target: pauses are shortened, voiced sound loses a pitch period at a time,
and beyond ``max_delay_ms`` packets are discarded.

*Slightly up*, when the target has risen or the clocks drift: pauses and periods are stretched.

It does no I/O and asks nobody for the time. Decoding is passed in, so a payload can be anything that
turns into samples.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from duplex.concealment import HISTORY, Concealer, compress, expand
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Origin, Packet, Samples, ms_to_samples, samples_to_ms, silence

RTP_CLOCK_HZ = 48_000  # Opus over RTP always counts at 48 kHz (RFC 7587)
_UNITS = RTP_CLOCK_HZ // SAMPLE_RATE_HZ

Decode = Callable[[bytes], Samples]
"""A payload to float32[n] at 24 kHz. Called once per payload played, in order; any exception is a lost packet."""


@dataclass(frozen=True, slots=True)
class JitterSettings:
    """``start_delay_ms`` applies while nothing is known about the network yet."""

    start_delay_ms: float = 20.0
    min_delay_ms: float = 10.0
    max_delay_ms: float = 200.0
    percentile: float = 0.98
    slack_ms: float = 15.0  # above the target by this much before time is taken out
    window_s: float = 4.0
    window_packets: int = 200
    max_packets: int = 64


@dataclass(slots=True)
class JitterStats:
    """Counters since the beginning. ``late`` came too late to be used; ``lost`` never came (known a second later)."""

    received: int = 0
    lost: int = 0
    late: int = 0
    duplicate: int = 0
    discarded: int = 0  # dropped to get the delay down, undecodable, or out of any order
    concealed: int = 0  # packets of ours that are mostly fill
    restarts: int = 0
    removed_samples: int = 0  # taken out to get the delay down
    added_samples: int = 0  # put in to get it up


class Transits:
    """The transit times of the last seconds: their minimum, and how far above it the slow ones are. In samples."""

    def __init__(self, window_s: float, window_packets: int) -> None:
        self._window_s, self._window_packets = window_s, window_packets
        self._by_age: deque[tuple[float, float]] = deque()
        self._sorted: list[float] = []

    def add(self, arrival_s: float, transit: float) -> None:
        self._by_age.append((arrival_s, transit))
        insort(self._sorted, transit)
        while len(self._by_age) > self._window_packets or self._by_age[0][0] < arrival_s - self._window_s:
            _, old = self._by_age.popleft()
            del self._sorted[bisect_left(self._sorted, old)]

    @property
    def base(self) -> float:
        return self._sorted[0]

    def jitter(self, percentile: float) -> float:
        return self._sorted[int(percentile * (len(self._sorted) - 1))] - self._sorted[0]

    def reset(self) -> None:
        self._by_age.clear()
        self._sorted.clear()


@dataclass(frozen=True, slots=True)
class _Waiting:
    seq: int
    at: int  # samples
    payload: bytes


@dataclass(frozen=True, slots=True)
class _Stranger:
    """A packet that fits nothing; if the next one fits *it*, the stream has begun anew."""

    seq: int
    timestamp: int
    arrival_s: float


def signed_difference(a: int, b: int, bits: int) -> int:
    """``a - b`` for counters that wrap at ``bits`` bits, taken the short way round."""
    half = 1 << (bits - 1)
    return ((a - b + half) & ((1 << bits) - 1)) - half


class JitterBuffer:
    """``push`` what arrives, ``pop`` once per 20 ms; every pop gives one packet, the first at ``pts`` 0.

    ``decode``: see :data:`Decode`. Times are seconds of any one clock; ``pop`` wants the instant the
    packet is due rather than when the caller got round to it. Memory is bounded by ``max_packets``.
    """

    RESTART_S = 1.0  # a timestamp this far from where it should be belongs to another timeline
    FILL_PACKETS = 5  # a gap counts as concealed for so long, then as silence
    LOST_AFTER_S = 1.0
    _REMEMBERED = 1024  # sequence numbers

    def __init__(self, decode: Decode, settings: JitterSettings = JitterSettings()) -> None:
        self.settings = settings
        self.stats = JitterStats()
        self._decode = decode
        self._concealer = Concealer()
        self._transits = Transits(settings.window_s, settings.window_packets)
        self._pts = 0
        self._delay = 0.0
        self._missing: OrderedDict[int, int] = OrderedDict()  # sequence number: pts from which it counts as lost
        self._forget()

    def _forget(self) -> None:
        self._packets: dict[int, _Waiting] = {}  # by where they begin
        self._pcm = silence(0)  # decoded, not played
        self._next: int | None = None  # where the next packet should begin, in samples
        self._start_s = 0.0
        self._playing = False
        self._held = 0  # samples of fill played while the position stood still
        self._gap_packets = 0
        self._known = 0  # samples of the packet being made that the concealer has been told of
        self._broken = False  # what comes next does not follow what was played
        self._newest_seq = self._newest_timestamp = 0
        self._played_seq: int | None = None
        self._quiet_since_dtx = False
        self._seen: OrderedDict[int, None] = OrderedDict()
        self._stranger: _Stranger | None = None
        self._transits.reset()

    # --- what the outside may know ------------------------------------------------------------------

    @property
    def started(self) -> bool:
        """Something has arrived."""
        return self._next is not None

    @property
    def delay_ms(self) -> float:
        """Delay of playout behind the fastest arrival, at the last pop."""
        return self._delay * 1000.0 / SAMPLE_RATE_HZ

    @property
    def target_ms(self) -> float:
        return self._target() * 1000.0 / SAMPLE_RATE_HZ

    @property
    def depth_ms(self) -> float:
        """How much sound is waiting here."""
        waiting = max(self._packets) - min(self._packets) + PACKET_SAMPLES if self._packets else 0
        return samples_to_ms(len(self._pcm) + waiting)

    # --- in -----------------------------------------------------------------------------------------

    def push(self, seq: int, timestamp: int, payload: bytes, arrival_s: float) -> None:
        """Takes one packet. ``seq``: 16 bits; ``timestamp``: 32 bits at 48 kHz; both may wrap."""
        self.stats.received += 1
        if self._next is None:
            self._begin(seq, timestamp, arrival_s)
        elif self._is_strange(timestamp, arrival_s):
            if not self._follows_stranger(seq, timestamp, arrival_s):
                self._stranger = _Stranger(seq, timestamp, arrival_s)
                self.stats.discarded += 1
                return
            self.stats.restarts += 1
            self._broken = True
            self._begin(seq, timestamp, arrival_s)
        self._stranger = None
        assert self._next is not None

        seq = self._newest_seq + signed_difference(seq, self._newest_seq, 16)
        if seq in self._seen:
            self.stats.duplicate += 1
            return
        self._see(seq)
        timestamp = self._unwrapped(timestamp)
        at = timestamp // _UNITS
        self._transits.add(arrival_s, arrival_s * SAMPLE_RATE_HZ - at)
        if seq > self._newest_seq:
            self._newest_seq, self._newest_timestamp = seq, timestamp
        if not self._playing:
            self._next = min(self._next, at)
        if at < self._next or at in self._packets:
            self._missing.pop(seq, None)
            self.stats.late += 1
            return
        self._packets[at] = _Waiting(seq, at, payload)
        if len(self._packets) > self.settings.max_packets:
            del self._packets[min(self._packets)]
            self.stats.discarded += 1

    def _begin(self, seq: int, timestamp: int, arrival_s: float) -> None:
        broken = self._broken
        self._forget()
        self._broken = broken
        self._newest_seq, self._newest_timestamp = seq, timestamp
        self._next = timestamp // _UNITS
        self._start_s = arrival_s + self.settings.start_delay_ms / 1000.0

    def _unwrapped(self, timestamp: int) -> int:
        return self._newest_timestamp + signed_difference(timestamp, self._newest_timestamp, 32)

    def _is_strange(self, timestamp: int, arrival_s: float) -> bool:
        transit = arrival_s * SAMPLE_RATE_HZ - self._unwrapped(timestamp) // _UNITS
        return abs(transit - self._transits.base) > self.RESTART_S * SAMPLE_RATE_HZ

    def _follows_stranger(self, seq: int, timestamp: int, arrival_s: float) -> bool:
        """Whether it and the stranger before it agree with each other, so that the world must have changed."""
        last = self._stranger
        if last is None:
            return False
        spoken_s = signed_difference(timestamp, last.timestamp, 32) / RTP_CLOCK_HZ
        near = abs(arrival_s - last.arrival_s - spoken_s) < self.RESTART_S
        return near and 0 < signed_difference(seq, last.seq, 16) <= self.settings.max_packets

    def _see(self, seq: int) -> None:
        self._seen[seq] = None
        if len(self._seen) > self._REMEMBERED:
            self._seen.popitem(last=False)

    # --- out ----------------------------------------------------------------------------------------

    def pop(self, now_s: float) -> Packet:
        """The 20 ms that are due at ``now_s``. Never waits and never fails."""
        while self._missing and next(iter(self._missing.values())) <= self._pts:
            self._missing.popitem(last=False)
            self.stats.lost += 1
        filled, cause = PACKET_SAMPLES, Origin.SILENCE
        if self._next is not None and now_s >= self._start_s:
            self._playing = True
            self._delay = now_s * SAMPLE_RATE_HZ - (self._next - len(self._pcm)) - self._transits.base
            self._adapt()
            filled, cause = self._fill()
            samples, self._pcm = self._pcm[:PACKET_SAMPLES], self._pcm[PACKET_SAMPLES:]
        else:
            samples = self._concealer.extend(PACKET_SAMPLES) if self._broken else silence()
            self._known = PACKET_SAMPLES
        if self._known < PACKET_SAMPLES and not self._concealer.concealing:
            self._concealer.remember(samples[self._known :])
        self._known = 0
        packet = Packet(self._pts, samples, self._origin(filled, cause))
        self._pts += PACKET_SAMPLES
        return packet

    def _origin(self, filled: int, cause: Origin) -> Origin:
        if filled <= PACKET_SAMPLES // 2:
            self._gap_packets = 0
            return Origin.WIRE
        self._gap_packets += 1
        if cause is Origin.SILENCE or self._gap_packets > self.FILL_PACKETS:
            return Origin.SILENCE
        self.stats.concealed += 1
        return Origin.CONCEALED

    def _fill(self) -> tuple[int, Origin]:
        """Makes ``_pcm`` at least a packet long; returns how much of that is fill, and what kind."""
        filled, cause = 0, Origin.CONCEALED
        assert self._next is not None
        while (need := PACKET_SAMPLES - len(self._pcm)) > 0:
            waiting = self._earliest()
            if waiting is None:
                cause = Origin.SILENCE if self._quiet_since_dtx else cause
                if self._delay + need <= self._max_delay:
                    self._held += need
                else:
                    self._next += need
            elif waiting.at == self._next:
                self._play(waiting)
                continue
            else:
                gap = waiting.at - self._next
                if self._held:  # it was lost, and the fill that was played meanwhile stood for it
                    stood_in = min(self._held, gap)
                    self._held -= stood_in
                    self._move_on(stood_in)
                    continue
                if waiting.seq - 1 == self._played_seq:  # nothing is missing: the sender had nothing to say
                    cause = Origin.SILENCE
                    if (cut := min(gap, int(self._delay - self._target()))) > 0:
                        self._move_on(cut)
                        continue
                need = min(need, gap)
                self._next += need
            self._append_fill(need)
            filled += need
        return filled, cause

    def _move_on(self, n_samples: int) -> None:
        """Leaves out a stretch in which nothing is to be heard."""
        assert self._next is not None
        self._next += n_samples
        self._delay -= n_samples

    def _append_fill(self, n_samples: int) -> None:
        if not self._concealer.concealing:
            self._concealer.remember(self._pcm[self._known :])
            self._known = len(self._pcm)
        self._pcm = np.concatenate([self._pcm, self._concealer.extend(n_samples)])

    def _earliest(self) -> _Waiting | None:
        return self._packets[min(self._packets)] if self._packets else None

    def _play(self, waiting: _Waiting) -> None:
        """Decodes one packet onto the end of ``_pcm``; the position moves on by its length."""
        assert self._next is not None
        del self._packets[waiting.at]
        self._quiet_since_dtx = len(waiting.payload) <= 2  # Opus says "nothing from now on" in 1 or 2 bytes
        try:
            samples = self._decode(waiting.payload)
        except Exception:  # whatever the decoder dislikes is a lost packet to us
            self.stats.discarded += 1
            return
        self._account(waiting.seq)
        self._next += len(samples)
        self._held = 0  # it was late, not lost: the delay has grown by what was held
        for at in [at for at in self._packets if at < self._next]:  # a sender whose packets overlap
            del self._packets[at]
            self.stats.discarded += 1
        if (self._concealer.concealing or self._broken) and len(samples):
            samples = self._concealer.rejoin(samples)
            self._broken = False
        self._pcm = np.concatenate([self._pcm, samples])

    def _account(self, seq: int) -> None:
        """Notes which packets before ``seq`` have not been seen."""
        if self._played_seq is not None:
            lost_at = self._pts + ms_to_samples(self.LOST_AFTER_S * 1000.0)
            for missing in range(max(self._played_seq + 1, seq - self._REMEMBERED), seq):
                if missing not in self._seen:
                    self._missing[missing] = lost_at
        self._played_seq = seq if self._played_seq is None else max(seq, self._played_seq)

    # --- the delay ----------------------------------------------------------------------------------

    @property
    def _max_delay(self) -> int:
        return ms_to_samples(self.settings.max_delay_ms)

    def _target(self) -> float:
        least = ms_to_samples(self.settings.min_delay_ms)
        if self._next is None:
            return least
        return min(max(least, self._transits.jitter(self.settings.percentile)), self._max_delay)

    def _adapt(self) -> None:
        """Takes time out, or puts a little in, so that the delay approaches the target."""
        excess = int(self._delay - self._target())
        slack = ms_to_samples(self.settings.slack_ms)
        if excess > self._max_delay:
            self._skip(excess)
        elif excess > slack:
            self._decode_ahead()
            self._stretch(compress(self._pcm, min(excess, len(self._pcm) - PACKET_SAMPLES)))
        elif excess < -slack // 4:
            self._decode_ahead()
            self._stretch(expand(self._pcm, -excess))

    def _stretch(self, stretched: Samples) -> None:
        added = len(stretched) - len(self._pcm)
        if added > 0:
            self.stats.added_samples += added
        else:
            self.stats.removed_samples -= added
        self._delay += added
        self._pcm = stretched

    def _decode_ahead(self) -> None:
        """Decodes what follows without a gap, as far as a cut needs to look."""
        while len(self._pcm) < PACKET_SAMPLES + HISTORY:
            waiting = self._earliest()
            if waiting is None or waiting.at != self._next:
                return
            self._play(waiting)

    def _skip(self, excess: int) -> None:
        """Discards packets until playout is where the target wants it."""
        assert self._next is not None
        wanted = self._next - len(self._pcm) + excess
        keep = [at for at in self._packets if at >= wanted] or list(self._packets)[-1:]
        if not keep:
            return
        for at in [at for at in self._packets if at < min(keep)]:
            self._played_seq = max(self._played_seq or 0, self._packets.pop(at).seq)
            self.stats.discarded += 1
        self._delay -= min(keep) - (self._next - len(self._pcm))
        self._next = min(keep)
        self._pcm = silence(0)
        self._held = 0
        self._broken = True
