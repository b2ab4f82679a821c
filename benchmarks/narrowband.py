"""A telephone line between the speaker and the agent: quieter, 300 to 3400 Hz, 8 kHz, µ-law.

    from duplex.benchmarks.narrowband import TELEPHONE

    heard = TELEPHONE.through(said)    # float32[n] at 24 kHz → float32[n] at 24 kHz

Pure, and without delay: what comes out lies where what went in lay, so that the moments at which somebody spoke
stay what they were, and a difference between two lines is a difference in what was understood. (A real line adds
its own delay, the same to every figure.)

Levels are dBFS as everywhere here: RMS over the speech alone (:func:`duplex.recording.voiced_level_dbfs`), 0 being a
square wave at ±1, which telephony calls dBov. Speech on a telephone network is planned for −26 dBov (ITU-T P.56 and
G.191); −30 is a quiet line, −40 a bad one. On µ-law 0 dBm0 is −6.18 dBov (G.100.1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import soxr

from duplex.benchmarks.stimuli import LEVEL_DBFS, filtered
from duplex.codecs import g711
from duplex.errors import ConfigError
from duplex.frames import SAMPLE_RATE_HZ, Samples

LINE_DBFS = -30.0
"""The level of speech on the telephone line, before its filter takes off what lies outside the band."""

_BAND: tuple[tuple[float, float], ...] = (
    (0.0, -60.0),
    (60.0, -40.0),
    (200.0, -12.0),
    (300.0, -0.5),
    (400.0, 0.0),
    (3000.0, 0.0),
    (3400.0, -1.5),
    (3700.0, -20.0),
    (4000.0, -60.0),
)
"""(Hz, dB) of the filters at both ends together, in the manner of ITU-T G.712: flat to half a decibel from 300 to
3000 Hz, not 2 dB down at 3400 Hz, mains hum gone, nothing left to fold at 4 kHz. On straight lines in dB between."""


@dataclass(frozen=True, slots=True)
class Line:
    """What lies between a person and the agent. ``gain_db``: what it adds to the level; below 0 it takes away.

    ``telephone``: the band, the rate and the code of a telephone. Without it everything else passes.
    """

    name: str
    gain_db: float = 0.0
    telephone: bool = False

    @property
    def label(self) -> str:
        """``wide``, ``telephone -30 dBFS``."""
        return f"{self.name} {LEVEL_DBFS + self.gain_db:.0f} dBFS" if self.telephone or self.gain_db else self.name

    @property
    def transparent(self) -> bool:
        """Whether what goes in comes out."""
        return not self.telephone and self.gain_db == 0.0

    def with_speech_at(self, dbfs: float) -> Line:
        """The same line, on which the material's speech (−20 dBFS) has this level."""
        return replace(self, gain_db=dbfs - LEVEL_DBFS)

    def through(self, samples: Samples) -> Samples:
        """float32[n] at 24 kHz as it is at the other end: float32[n] at 24 kHz. About 3 ms of work a second."""
        if self.transparent or not len(samples):
            return samples
        sent = (samples * np.float32(10.0 ** (self.gain_db / 20.0))).astype(np.float32)
        return _telephoned(sent) if self.telephone else sent


def _telephoned(sent: Samples) -> Samples:
    n = len(sent)
    narrow = soxr.resample(filtered(sent, _band_gain), SAMPLE_RATE_HZ, g711.RATE_HZ).astype(np.float32)
    decoded = g711.decode_ulaw(g711.encode_ulaw(narrow))
    wide = soxr.resample(decoded, g711.RATE_HZ, SAMPLE_RATE_HZ).astype(np.float32)[:n]
    return np.pad(wide, (0, n - len(wide)))  # a rounding's worth


def _band_gain(hz: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    at_hz, db = zip(*_BAND, strict=True)
    gain: npt.NDArray[np.float64] = 10.0 ** (np.interp(hz, at_hz, db) / 20.0)
    return np.where(hz < _BAND[-1][0], gain, 0.0)


WIDE = Line("wide")
TELEPHONE = Line("telephone", LINE_DBFS - LEVEL_DBFS, telephone=True)
LINES = {line.name: line for line in (WIDE, TELEPHONE)}


def line_named(name: str) -> Line:
    """One of ``LINES``. Raises ``ConfigError`` that names them."""
    try:
        return LINES[name]
    except KeyError:
        raise ConfigError(f"There is no line {name!r}. There are: {', '.join(LINES)}.") from None


def parsed_levels(text: str) -> list[float]:
    """``-20,-30`` → [-20.0, -30.0]. Raises ``ConfigError`` for anything that is no level of speech."""
    try:
        levels = [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--levels are numbers with commas between them, such as -20,-30; not {text!r}.") from None
    if any(not -60.0 <= level <= -10.0 for level in levels):
        raise ConfigError("--levels lie between -60 and -10 dBFS.")
    return levels
