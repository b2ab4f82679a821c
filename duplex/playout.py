"""The audio of one reply on its way to the wire, where it can still be taken back.

Sans-I/O: the session asks for 20 ms at a time and says hold, resume or drop in between. A hold fades
the packet that would have come next and then goes silent *without moving on*, so that a resume starts
at that very sample, faded in: a listener who heard the fade hears the same syllable again, whole. Only a
pause of the reply's own passes meanwhile: somebody who waited for us is not made to wait for it as well.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

import numpy as np

from duplex.errors import AgentFaultError
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Samples, ms_to_samples, silence

MAX_REWIND_S = 15.0
_QUIET_RMS = 10 ** (-50 / 20)  # −50 dBFS: the reply itself is silent there ...
_FAINT_RMS = 10 ** (-40 / 20)  # ... and here, if it stays so: breath and room, not the weak beginning of a word
_FAINT_PACKETS = 10


class State(Enum):
    EMPTY = "empty"  # no reply
    HELD_BACK = "held-back"  # a reply is filling up, not released yet
    PLAYING = "playing"
    FADING = "fading"  # one faded packet is still to go
    HOLDING = "holding"


@dataclass(frozen=True, slots=True)
class Taken:
    """One packet for the wire: float32[480]. ``[start, end)`` are the reply's samples it plays (empty if none)."""

    samples: Samples
    start_samples: int
    end_samples: int
    underrun: bool = False


class Playout:
    """Holds one reply at a time. ``max_reply_s`` bounds what a runaway talker can queue, ``max_rewind_s`` how much of
    what was played is kept, to be played again."""

    def __init__(
        self,
        *,
        fade_out_ms: int = 20,
        fade_in_ms: int = 20,
        max_reply_s: float = 120.0,
        max_rewind_s: float = MAX_REWIND_S,
    ) -> None:
        self._fade_out = ramp(ms_to_samples(fade_out_ms))[::-1]
        self._fade_in = ramp(ms_to_samples(fade_in_ms))
        self._max_samples = round(max_reply_s * SAMPLE_RATE_HZ)
        self._played: deque[Samples] = deque(maxlen=round(max_rewind_s * SAMPLE_RATE_HZ / PACKET_SAMPLES))
        self.reset()

    def reset(self) -> None:
        self.state = State.EMPTY
        self.position_samples = 0  # next sample to play
        self.queued_samples = 0
        self._chunks: deque[Samples] = deque()
        self._played.clear()
        self._total = 0
        self._complete = False
        self._fade_next_in = False
        self._last: Samples | None = None  # a packet still to go of a reply that was cut

    @property
    def drained(self) -> bool:
        """Everything there will ever be was played."""
        return self._complete and self.queued_samples == 0

    @property
    def audible(self) -> bool:
        """There is enough to begin with."""
        return self.queued_samples >= PACKET_SAMPLES or (self._complete and self.queued_samples > 0)

    def begin(self) -> None:
        self.reset()
        self.state = State.HELD_BACK

    def append(self, samples: Samples) -> None:
        """Queues float32[n]. Raises ``AgentFaultError`` past the bound."""
        self._total += len(samples)
        if self._total > self._max_samples:
            raise AgentFaultError(
                f"The reply grew past {self._max_samples / SAMPLE_RATE_HZ:.0f} s of audio and was cut there "
                "(setting session.playout.max_reply_s)."
            )
        if len(samples):
            self._chunks.append(samples)
            self.queued_samples += len(samples)

    def complete(self) -> None:
        """No more will be appended."""
        self._complete = True

    def release(self) -> None:
        if self.state is State.HELD_BACK:
            self.state = State.PLAYING

    def hold(self) -> None:
        if self.state is State.PLAYING:
            self.state = State.FADING

    def resume(self) -> None:
        if self.state is State.HOLDING:
            self._fade_next_in = True
        if self.state in (State.FADING, State.HOLDING):
            self.state = State.PLAYING

    def cut(self) -> None:
        """Ends the reply here and now, with a fade where it was playing."""
        last = self._faded().samples if self.state is State.PLAYING and self.queued_samples else None
        self.reset()
        self._last = last

    def rewind(self, samples: Samples) -> None:
        """Takes back the packet handed over last, which was never played; it will be played again."""
        if self._played:
            self._played.pop()
        self._chunks.appendleft(samples)
        self.queued_samples += len(samples)
        self.position_samples -= len(samples)

    def rewind_to(self, position_samples: int) -> int:
        """Goes back to that sample, faded in, as far as what was played is still known. Returns by how many."""
        before = self.position_samples
        while self._played and self.position_samples > position_samples:
            packet = self._played.pop()
            keep = max(0, len(packet) - (self.position_samples - position_samples))
            if keep:
                self._played.append(packet[:keep])
            self._chunks.appendleft(packet[keep:])
            self.queued_samples += len(packet) - keep
            self.position_samples -= len(packet) - keep
        self._fade_next_in = self._fade_next_in or 0 < self.position_samples < before
        return before - self.position_samples

    def take(self) -> Taken:
        """The next 20 ms. Always a whole packet; silence where there is nothing to play."""
        if self._last is not None:
            last, self._last = self._last, None
            return Taken(last, self.position_samples, self.position_samples)
        if self.state is State.FADING:
            self.state = State.HOLDING
            return self._faded()
        pausing = self.state is State.HOLDING and self._pauses_here()
        if (self.state is not State.PLAYING and not pausing) or self.drained:
            return Taken(silence(), self.position_samples, self.position_samples)
        if self.queued_samples < PACKET_SAMPLES and not self._complete:
            return Taken(silence(), self.position_samples, self.position_samples, underrun=True)
        start = self.position_samples
        packet = self._pop(PACKET_SAMPLES)
        self.position_samples += len(packet)
        self._played.append(packet)
        if pausing:
            return Taken(silence(), start, self.position_samples)
        if len(packet) < PACKET_SAMPLES:
            packet = np.pad(packet, (0, PACKET_SAMPLES - len(packet)))
        if self._fade_next_in:
            self._fade_next_in = False
            packet = packet.copy()
            packet[: len(self._fade_in)] *= self._fade_in
        return Taken(packet, start, self.position_samples)

    def _pauses_here(self) -> bool:
        """The next packet is of a pause, and not near the end: a reply that is held does not end."""
        if self.queued_samples < 2 * PACKET_SAMPLES:
            return False
        ahead = self._peek(_FAINT_PACKETS * PACKET_SAMPLES)
        if _loudest(ahead[:PACKET_SAMPLES]) < _QUIET_RMS:
            return True
        return len(ahead) == _FAINT_PACKETS * PACKET_SAMPLES and _loudest(ahead) < _FAINT_RMS

    def _faded(self) -> Taken:
        packet = np.zeros(PACKET_SAMPLES, dtype=np.float32)
        ahead = self._peek(len(self._fade_out))
        packet[: len(ahead)] = ahead * self._fade_out[: len(ahead)]
        return Taken(packet, self.position_samples, self.position_samples)

    def _peek(self, n: int) -> Samples:
        parts, have = [], 0
        for chunk in self._chunks:
            if have >= n:
                break
            parts.append(chunk[: n - have])
            have += len(parts[-1])
        return np.concatenate(parts) if parts else silence(0)

    def _pop(self, n: int) -> Samples:
        packet = self._peek(n)
        left = len(packet)
        while left:
            head = self._chunks.popleft()
            if len(head) > left:
                self._chunks.appendleft(head[left:])
                break
            left -= len(head)
        self.queued_samples -= len(packet)
        return packet


def _loudest(packets: Samples) -> float:
    """RMS of the loudest of whole packets."""
    by_packet = packets.reshape(-1, PACKET_SAMPLES)
    return float(np.sqrt(np.einsum("ij,ij->i", by_packet, by_packet).max() / PACKET_SAMPLES))


def ramp(n: int) -> Samples:
    """Raised cosine from 0 to 1 over n samples: no corner at either end, so no click."""
    return (0.5 - 0.5 * np.cos(np.pi * (np.arange(n) + 0.5) / max(n, 1))).astype(np.float32)
