"""The way out: every 20 ms a packet for the line, from the playout if a reply is playing, else silence or an aside.

Keeps the wire's own timeline (samples sent, silence included), enters every packet in the ledger, and
remembers the last packets so that what the line has not put on the wire yet can be taken back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from duplex.agent import Aside, AsideKind
from duplex.asides import AsideQueue
from duplex.config import PlayoutConfig
from duplex.echo import Tape
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Frame, Samples, ms_to_samples, silence
from duplex.ledger import Ledger
from duplex.line import Line, OutPacket
from duplex.metrics import Metrics
from duplex.playout import Playout, State
from duplex.reply import Reply

PACKET_S = PACKET_SAMPLES / SAMPLE_RATE_HZ
AUDIBLE_RMS = 10 ** (-40 / 20)  # −40 dBFS: what a listener notices
_RESYNC_S = 0.5  # a machine that slept this long starts counting afresh


@dataclass(frozen=True, slots=True)
class Sent:
    """One packet that went to the line. ``samples``: float32[480]; ``real``: how many are the reply's own."""

    reply_id: str | None
    samples: Samples
    real: int
    audible: bool


class Outgoing:
    """One session's outgoing stream. ``fill`` is called at every tick and whenever audio became ready."""

    def __init__(self, line: Line, playout: Playout, ledger: Ledger, config: PlayoutConfig, metrics: Metrics) -> None:
        self._line, self._playout, self._ledger, self._metrics = line, playout, ledger, metrics
        self._lead = min(line.lead_packets, ms_to_samples(config.max_ahead_ms) // PACKET_SAMPLES) - 1
        self._packets = 0
        self._epoch_s = 0.0
        self._recent: deque[Sent] = deque(maxlen=64)
        self._asides = AsideQueue()
        self._tape = Tape()
        self._lost = False  # nobody is there to hear it
        self.last_audible_s = 0.0

    def start(self, now_s: float) -> None:
        self._epoch_s = now_s

    def fill(self, now_s: float, reply: Reply | None) -> Iterator[Sent]:
        """Sends what is due now; a line with lead gets that much more while a reply plays.

        A generator, so that the caller may react to a packet (the reply ended) before the next is taken.
        """
        elapsed = int((now_s - self._epoch_s) / PACKET_S + 1e-6) + 1
        if elapsed - self._packets > _RESYNC_S / PACKET_S:
            self._epoch_s = now_s - self._packets * PACKET_S
            elapsed = self._packets + 1
        while True:
            playing = self._playout.state is State.PLAYING and self._playout.audible and not self._lost
            ahead = self._lead if playing else 0
            if self._packets >= elapsed + ahead:
                return
            yield self._send_one(now_s, reply)

    def speak_aside(self, aside: Aside) -> bool:
        """Begins to speak it, if nothing is being said."""
        return not self._talking and not self._lost and self._asides.begin(aside)

    def cut_aside(self, kind: AsideKind) -> None:
        """Fades an aside of that kind, if one is being spoken."""
        if self._asides.playing is kind:
            self._asides.cut()

    @property
    def _talking(self) -> bool:
        return self._playout.state in (State.PLAYING, State.FADING) and not self._playout.drained

    def _send_one(self, now_s: float, reply: Reply | None) -> Sent:
        if self._lost:
            return self._send_nothing()
        if self._asides.playing is AsideKind.BACKCHANNEL and self._talking:
            self._asides.cut()  # the reply has come; the fade lies over its first packet
        elif self._asides.playing is not None:
            return self._send_aside(now_s)
        taken = self._playout.take()
        if (tail := self._asides.take()) is not None:
            taken = replace(taken, samples=taken.samples + tail)
        if taken.underrun:
            self._metrics.underruns.inc()
        real = taken.end_samples - taken.start_samples
        audible = bool(np.dot(taken.samples, taken.samples) > AUDIBLE_RMS**2 * PACKET_SAMPLES)
        pts = self._packets * PACKET_SAMPLES
        owner = reply if reply is not None and (real or audible) else None
        self._line.send(
            OutPacket(pts, taken.samples, owner.reply_id if owner else None, owner.item_id if owner else None)
        )
        self._tape.put(pts, taken.samples)
        self._packets += 1
        sent = Sent(owner.reply_id if owner else None, taken.samples, real, audible)
        self._recent.append(sent)
        if audible:
            self.last_audible_s = now_s
        if reply is not None and real:
            self._ledger.send(reply.reply_id, pts + PACKET_SAMPLES, taken.end_samples, real, now_s)
        return sent

    def _send_aside(self, now_s: float) -> Sent:
        samples = self._asides.take()
        assert samples is not None
        pts = self._packets * PACKET_SAMPLES
        self._line.send(OutPacket(pts, samples, aside=True))
        self._tape.put(pts, samples)
        self._packets += 1
        sent = Sent(None, samples, 0, audible=False)  # not of a reply, so no one waits for it
        self._recent.append(sent)
        self.last_audible_s = now_s
        return sent

    def _send_nothing(self) -> Sent:
        """Silence, so that the wire's time line goes on; the reply does not."""
        pts = self._packets * PACKET_SAMPLES
        self._line.send(OutPacket(pts, silence()))
        self._tape.put(pts, silence())
        self._packets += 1
        sent = Sent(None, silence(), 0, audible=False)
        self._recent.append(sent)
        return sent

    def lose(self, reply: Reply | None) -> None:
        """The far end is out of reach: what it does not have yet waits, and so does the rest."""
        self._lost = True
        if reply is not None:
            self.take_back(reply)
        self._asides = AsideQueue()  # a word of encouragement is nothing to be made up for

    def regain(self, reply: Reply | None, heard_samples: int = 0) -> None:
        """It is there again. ``reply`` goes on from ``heard_samples``."""
        self._lost = False
        if reply is not None and (samples := self._playout.rewind_to(heard_samples)):
            self._ledger.unsend(reply.reply_id, samples)

    def take_back(self, reply: Reply) -> None:
        """Recalls packets of ``reply`` that the line still has, so that they can be played later or dropped."""
        samples = self._line.flush()
        while samples >= PACKET_SAMPLES and self._recent:
            sent = self._recent.pop()
            samples -= PACKET_SAMPLES
            self._packets -= 1
            if sent.reply_id == reply.reply_id and sent.real:
                self._ledger.unsend(reply.reply_id, sent.real)
                self._playout.rewind(sent.samples[: sent.real])
        self._tape.take_back(self._packets * PACKET_SAMPLES)

    def reference(self, frame: Frame, now_s: float) -> Samples:
        """What we played while ``frame`` was recorded: what an echo in it would be made of. float32, as long."""
        due_packets = int((now_s - self._epoch_s) / PACKET_S + 1e-6)
        return self._tape.beside(frame, due_packets * PACKET_SAMPLES)
