"""How a well-written client plays a reply that arrives as events: back to back, and it can be stopped.

Sans-I/O and exact to the sample: everything happens at a sample of the client's sound clock, ``at``, which never
goes back. ``render`` says what the loudspeaker did until then.

Theory of operation
-------------------
Sound arrives ahead of its time (a server sends up to 200 ms more than has been played) and in order. A stretch
begins ``playout`` after its first piece arrived; what follows plays back to back. Where the next piece is late,
the listener hears a gap, and the stretch begins anew with that piece.

``hold`` fades out and stops *without moving on*, as the server does with what it has not sent: the rest waits, and
``resume`` goes on at the same sample, faded in. What arrives for a held reply is the server's own fade, a copy of
what will come again, so it is not kept. ``drop`` fades out what plays and forgets the rest.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

import numpy as np

from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Samples
from duplex.recording import AUDIBLE_DBFS, WireStats, level_dbfs

MAX_AHEAD_S = 300.0
_MAX_REPLIES = 64


@dataclass(slots=True)
class _Piece:
    reply_id: str
    samples: Samples
    begins: int | None  # earliest sample it may play at; None follows what is before it


class DeltaPlayer:
    """One listener's loudspeaker at 24 kHz. ``playout_samples``: the delay at the start of each stretch."""

    def __init__(self, playout_samples: int) -> None:
        self._playout = playout_samples
        ramp = 0.5 + 0.5 * np.cos(np.pi * (np.arange(PACKET_SAMPLES) + 0.5) / PACKET_SAMPLES)
        self._fade_out: Samples = ramp.astype(np.float32)
        self._queue: deque[_Piece] = deque()
        self._waiting = 0  # samples in the queue
        self._segments: list[tuple[int, Samples]] = []
        self._cursor = 0
        self._held: str | None = None
        self._fade_in = 0  # samples of the fade-in that are still to come
        self._open: set[str] = set()  # begun, and more may come
        self._played: OrderedDict[str, int] = OrderedDict()
        self._received = self._late = self._stalled = 0
        self.last_audible: int | None = None
        """Where the last audible stretch ends, in samples; None before the first."""

    @property
    def stats(self) -> WireStats:
        """``received`` counts pieces, ``late`` those that came after their moment."""
        return WireStats(received=self._received, late=self._late, stalled_ms=self._stalled * 1000.0 / SAMPLE_RATE_HZ)

    @property
    def playing(self) -> str | None:
        """The reply whose sound is in the loudspeaker or waits for it."""
        return self._queue[0].reply_id if self._queue else None

    @property
    def latest(self) -> str | None:
        """The reply of which something was played last."""
        return next(reversed(self._played), None)

    def played_samples(self, reply_id: str) -> int:
        """How much of a reply has left the loudspeaker, as of the last ``render``."""
        return self._played.get(reply_id, 0)

    # --- what happens ------------------------------------------------------------------------------

    def add(self, reply_id: str, samples: Samples, at: int) -> bool:
        """float32[n] of a reply arrived. False: more than ``MAX_AHEAD_S`` would be waiting, so it was not taken."""
        self.render(at)
        if reply_id == self._held or not len(samples):
            return True
        if self._waiting + len(samples) > MAX_AHEAD_S * SAMPLE_RATE_HZ:
            return False
        self._received += 1
        begins = None
        if not self._queue:
            begins = max(at + self._playout, self._cursor)
            if reply_id in self._open:
                self._late, self._stalled = self._late + 1, self._stalled + begins - self._cursor
        self._open.add(reply_id)
        self._queue.append(_Piece(reply_id, samples, begins))
        self._waiting += len(samples)
        return True

    def finish(self, reply_id: str) -> None:
        """Nothing more will come of a reply; what there is plays to its end."""
        self._open.discard(reply_id)

    def hold(self, reply_id: str, at: int) -> None:
        """Stops a reply where it is."""
        self.render(at)
        if self._held is None:
            self._fade()
            self._held = reply_id

    def resume(self, reply_id: str, at: int) -> None:
        """Goes on where ``hold`` stopped."""
        self.render(at)
        if self._held == reply_id:
            self._held = None
            self._fade_in = PACKET_SAMPLES

    def drop(self, reply_id: str, at: int) -> None:
        """Stops a reply and forgets the rest of it."""
        self.render(at)
        self.finish(reply_id)
        if self._held == reply_id:
            self._held = None
        elif self.playing == reply_id:
            self._fade()
        self._queue = deque(piece for piece in self._queue if piece.reply_id != reply_id)
        self._waiting = sum(len(piece.samples) for piece in self._queue)

    def forget_waiting(self, reply_id: str, at: int) -> None:
        """Forgets what has not left the loudspeaker of a reply; it will come again."""
        self.render(at)
        self._queue = deque(piece for piece in self._queue if piece.reply_id != reply_id)
        self._waiting = sum(len(piece.samples) for piece in self._queue)

    # --- the loudspeaker ---------------------------------------------------------------------------

    def render(self, until: int) -> None:
        """Lets time pass."""
        while self._cursor < until:
            if not self._queue or self._held is not None:
                self._cursor = until
                return
            piece = self._queue[0]
            if piece.begins is not None and piece.begins > self._cursor:
                self._cursor = min(until, piece.begins)
                continue
            piece.begins = None
            n = min(len(piece.samples), until - self._cursor, PACKET_SAMPLES)
            samples = piece.samples[:n]
            if self._fade_in:
                n = min(n, self._fade_in)
                gains = self._fade_out[::-1][PACKET_SAMPLES - self._fade_in :][:n]
                samples, self._fade_in = samples[:n] * gains, self._fade_in - n
            self._write(samples)
            self._waiting -= n
            self._played[piece.reply_id] = self._played.get(piece.reply_id, 0) + n
            self._played.move_to_end(piece.reply_id)
            while len(self._played) > _MAX_REPLIES:
                self._played.popitem(last=False)
            if n == len(piece.samples):
                self._queue.popleft()
            else:
                piece.samples = piece.samples[n:]

    def _fade(self) -> None:
        """The loudspeaker's last 20 ms: a fading copy of what would have come."""
        if not self._queue or self._queue[0].begins is not None:
            return
        ahead = np.concatenate([piece.samples for piece in self._queue if piece.begins is None])[:PACKET_SAMPLES]
        self._write(ahead * self._fade_out[: len(ahead)])

    def _write(self, samples: Samples) -> None:
        self._segments.append((self._cursor, samples))
        self._cursor += len(samples)
        if level_dbfs(samples) >= AUDIBLE_DBFS:
            self.last_audible = self._cursor

    def heard(self, start: int, n_samples: int) -> Samples:
        """What left the loudspeaker from sample ``start``: float32[n_samples], silence where nothing did."""
        out = np.zeros(n_samples, dtype=np.float32)
        for at, samples in reversed(self._segments):
            if at + len(samples) <= start:
                break
            first, last = max(at, start), min(at + len(samples), start + n_samples)
            if first < last:
                out[first - start : last - start] = samples[first - at : last - at]
        return out
