"""The agent's own voice in the user's microphone, as a loudspeaker in the room makes it, in real time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from duplex.frames import Samples
from duplex.recording import AUDIBLE_DBFS, Arrival, level_dbfs

_DECAY_MS = 2.0
_TAIL_MS = 8.0
_TAIL_DB = -15.0  # the room's reflections in all, against the direct way
_SPEECH_HZ = (100.0, 500.0)  # long-term speech: nothing below, falling by 6 dB an octave above
_FRESH_START_S = 0.1
_KEPT_S = 2.0

Played = Callable[[int, int], Samples]
"""(start, n) → float32[n] of what the listener heard from sample ``start`` of the sound clock."""


class EchoPath:
    """Loudspeaker to microphone: ``level_db`` below what was played (the sign does not matter), ``delay_ms`` later.

    A direct way and a few milliseconds of decaying reflections drawn from ``seed``. Together they pass sound with the
    long-term spectrum of speech at exactly that level; a single tone may come out up to 2 dB off.
    """

    def __init__(self, level_db: float, delay_ms: float, *, rate_hz: int, seed: int = 0) -> None:
        self._delay = round(delay_ms * rate_hz / 1000.0)
        n = round(_TAIL_MS * rate_hz / 1000.0)
        decay = np.exp(-np.arange(1, n) * 1000.0 / (_DECAY_MS * rate_hz))
        tail = np.random.default_rng((seed, 2)).standard_normal(n - 1) * decay
        tail *= np.sqrt(10.0 ** (_TAIL_DB / 10.0) / np.sum(tail**2))
        response = np.concatenate([[1.0], tail])
        hz = np.fft.rfftfreq(4096, 1.0 / rate_hz)
        weight = (hz >= _SPEECH_HZ[0]) / (1.0 + (hz / _SPEECH_HZ[1]) ** 2)
        power = np.sum(weight * np.abs(np.fft.rfft(response, 4096)) ** 2) / np.sum(weight)
        response *= 10.0 ** (-abs(level_db) / 20.0) / np.sqrt(power)
        self._response: Samples = response.astype(np.float32)

    def over(self, start: int, n_samples: int, played: Played) -> Samples:
        """The echo during ``n_samples`` from sample ``start`` of the sound clock: float32[n_samples]."""
        before = len(self._response) - 1
        sound = played(start - self._delay - before, n_samples + before)
        if not sound.any():
            return np.zeros(n_samples, dtype=np.float32)
        return np.convolve(sound, self._response, "valid").astype(np.float32)


class Listener:
    """:func:`duplex.recording.play_out` as it happens: packets in as they arrive, what was heard out, to the sample.

    Packets come in the order of their sequence numbers. Nothing plays before it arrived, so what was heard until
    now never changes. Keeps the last two seconds.
    """

    def __init__(self, *, rate_hz: int, playout_s: float) -> None:
        self._rate = rate_hz
        self._playout, self._fresh_start = round(playout_s * rate_hz), round(_FRESH_START_S * rate_hz)
        self._kept: deque[tuple[int, Samples]] = deque()
        self._offset: int | None = None
        self._next: tuple[int, int] | None = None  # sequence and timestamp
        self._cursor = 0

    def add(self, packet: Arrival, at_s: float) -> None:
        """``at_s``: when it arrived, in seconds of the sound clock since the origin."""
        if self._next is not None and packet.sequence < self._next[0]:
            return
        arrived = round(at_s * self._rate)
        paused = self._next is not None and packet.sequence == self._next[0] and packet.timestamp != self._next[1]
        self._next = (packet.sequence + 1, packet.timestamp + len(packet.samples))
        if self._offset is None or paused:
            self._offset = arrived + self._playout - packet.timestamp
        lateness = arrived - (self._offset + packet.timestamp)
        samples: Samples = packet.samples.astype(np.float32) / 32768.0
        if lateness > self._fresh_start:
            self._offset = arrived + self._playout - packet.timestamp
        elif lateness > 0:
            self._offset = arrived - packet.timestamp
        elif -lateness > self._playout and level_dbfs(samples) < AUDIBLE_DBFS:
            self._offset -= min(-lateness - self._playout, len(samples))
        start = self._offset + packet.timestamp
        kept = samples[max(0, self._cursor - start) :]
        if not len(kept):
            return
        self._cursor = start + len(samples)
        self._kept.append((self._cursor - len(kept), kept))
        while self._kept[0][0] < self._cursor - _KEPT_S * self._rate:
            self._kept.popleft()

    def played(self, start: int, n_samples: int) -> Samples:
        """What was heard from sample ``start``: float32[n_samples], silence where nothing was."""
        out = np.zeros(n_samples, dtype=np.float32)
        for at, samples in self._kept:
            first, last = max(at, start), min(at + len(samples), start + n_samples)
            if first < last:
                out[first - start : last - start] = samples[first - at : last - at]
        return out
