"""Whether the user is speaking, from the level of what is heard. Pure, causal, and cheap: 20 ms at a time.

A native model hears the sound itself and needs no such thing; this is for those who watch it. Background noise is
followed slowly upwards and quickly downwards, so a fan is soon no voice, and a voice is not soon a fan. What is far
below what we play meanwhile is taken for our own voice come back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Samples

from .options import WatchOptions

BLOCK_S = PACKET_SAMPLES / SAMPLE_RATE_HZ
_RISE_DB_PER_BLOCK = 0.03  # 1.5 dB a second: ten seconds of talk without a breath are still talk
_FALL = 0.3
_QUIETEST_DBFS, _LOUDEST_NOISE_DBFS = -90.0, -35.0
SILENT_DBFS = -120.0


@dataclass(frozen=True, slots=True)
class Hearing:
    """What one frame of the user held.

    ``voiced_s``: voice in it (with the onset's, once that is sure). ``quiet_s``: since the last voice, at its end.
    ``speaking``: within a stretch of speech. ``started_pts``: first voiced sample of one that began here;
    ``stopped_pts``: end of the last voiced sample of one that is known here to have ended.
    """

    voiced_s: float = 0.0
    quiet_s: float = math.inf
    speaking: bool = False
    started_pts: int | None = None
    stopped_pts: int | None = None


class UserVoice:
    """One user's voice, frame by frame."""

    def __init__(self, options: WatchOptions) -> None:
        self.options = options
        self.reset()

    def reset(self) -> None:
        self._noise_dbfs = -60.0
        self._speaking = False
        self._run = 0  # voiced blocks in a row, before they are speech
        self._quiet_s = math.inf
        self._last_voiced_pts = 0

    def push(self, pts: int, samples: Samples, reference: Samples | None = None) -> Hearing:
        """``samples``: float32[n] from ``pts``, n whole packets; ``reference``: as long, what we played meanwhile."""
        levels = block_levels_dbfs(samples)
        played = [SILENT_DBFS] * len(levels) if reference is None else block_levels_dbfs(reference)
        voiced_s, started, stopped = 0.0, None, None
        onset_blocks = max(1, round(self.options.onset_s / BLOCK_S))
        for k, (level, ours) in enumerate(zip(levels, played, strict=True)):
            end_pts = pts + (k + 1) * PACKET_SAMPLES
            if not self._is_voice(level, ours):
                self._run = 0
                self._quiet_s += BLOCK_S
                if self._speaking and self._quiet_s >= self.options.stopped_s - 1e-9:
                    self._speaking, stopped = False, self._last_voiced_pts
                continue
            self._run += 1
            if self._speaking:
                voiced_s += BLOCK_S
            elif self._run >= onset_blocks:
                self._speaking, started = True, end_pts - self._run * PACKET_SAMPLES
                voiced_s += self._run * BLOCK_S
            if self._speaking:
                self._quiet_s, self._last_voiced_pts = 0.0, end_pts
        return Hearing(voiced_s, self._quiet_s, self._speaking, started, stopped)

    def _is_voice(self, level_dbfs: float, ours_dbfs: float) -> bool:
        options = self.options
        bar_dbfs = max(options.voice_dbfs, self._noise_dbfs + options.voice_above_noise_db)
        if self._speaking:
            bar_dbfs -= options.voice_hysteresis_db
        if level_dbfs < self._noise_dbfs:
            self._noise_dbfs += _FALL * (max(level_dbfs, _QUIETEST_DBFS) - self._noise_dbfs)
        else:
            self._noise_dbfs = min(self._noise_dbfs + _RISE_DB_PER_BLOCK, _LOUDEST_NOISE_DBFS)
        return level_dbfs >= max(bar_dbfs, ours_dbfs - options.echo_below_db)


def block_levels_dbfs(samples: Samples) -> list[float]:
    """RMS of each 20 ms of float32[n] (n whole packets), dBFS."""
    blocks = samples.reshape(-1, PACKET_SAMPLES)
    power = np.einsum("ij,ij->i", blocks, blocks, dtype=np.float64) / PACKET_SAMPLES
    return [10.0 * math.log10(value) if value > 1e-12 else SILENT_DBFS for value in power.tolist()]
