"""How much louder the voice detector hears a quiet line, so that it notices a voice as soon as on a loud one.

Silero needs longer to notice a voice the fainter it is; the listener writes down the same words at any level, if it is
given them (both measured with ``duplex bench listener --line telephone``). So only the detector hears with this gain:
levels, echo and words are judged on what came in.

The gain follows the level of *speech*, not of sound: it moves in windows with voice in them alone, a quarter of a
decibel each, so that it neither breathes in pauses nor jumps at a cough. It makes nothing quieter, and nothing more
than ``MOST_DB`` louder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from duplex.frames import Samples

TARGET_DBFS = -20.0
MOST_DB = 20.0
VOICE = 0.5
_STEP_DB = 0.25  # a window: 8 dB in a second of voice
_FOLLOW = 1.0 / 16.0  # of the level of speech: half a second of voice
_FAINTEST_DBFS = -60.0  # what is called a voice below that is no measure of one


@dataclass(slots=True)
class VoiceGain:
    """One session's. Apply it to a window before the detector hears it, then let it learn from the answer."""

    db: float = 0.0
    _speech_power: float | None = None

    def apply(self, window: Samples) -> Samples:
        """float32[n], louder by ``db``, within ±1."""
        if self.db == 0.0:
            return window
        louder: Samples = np.clip(window * np.float32(10.0 ** (self.db / 20.0)), -1.0, 1.0).astype(np.float32)
        return louder

    def learn(self, level_dbfs: float, probability: float) -> None:
        """Of the window as it came in: its level, and the probability of voice that the detector gave it.

        Not to be told of windows that are our own echo.
        """
        if probability < VOICE or level_dbfs < _FAINTEST_DBFS:
            return
        power = 10.0 ** (level_dbfs / 10.0)
        known = self._speech_power
        self._speech_power = power if known is None else known + _FOLLOW * (power - known)
        wanted_db = min(MOST_DB, max(0.0, TARGET_DBFS - 10.0 * float(np.log10(self._speech_power))))
        self.db += min(_STEP_DB, max(-_STEP_DB, wanted_db - self.db))

    def reset(self) -> None:
        """For another person on the line."""
        self.db, self._speech_power = 0.0, None
