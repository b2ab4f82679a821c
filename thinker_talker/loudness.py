"""How loud this user usually is, so that somebody in the background is not taken for them."""

from __future__ import annotations

from dataclasses import dataclass

_FOLLOW = 0.3  # how much of a new turn's level is believed: people lean back, but not by 10 dB at once
_FORGIVE_DB = 1.5  # what each ignored turn lowers the bar by, so that nobody who moved away is ignored for long


_FAINTEST_DBFS = -65.0  # digital silence is no floor: what comes after it would always be a sound
_LOUDEST_FLOOR_DBFS = -45.0
_SOUND_DB = 10.0


@dataclass(slots=True)
class UsualLevel:
    """The level of the user's committed turns, dBFS, smoothed. Knows nothing before the first."""

    dbfs: float | None = None

    @property
    def known(self) -> bool:
        return self.dbfs is not None

    def below_db(self, level_dbfs: float) -> float:
        """How far ``level_dbfs`` is below the usual one; 0 while that is unknown, negative if louder."""
        return 0.0 if self.dbfs is None else self.dbfs - level_dbfs

    def learn(self, level_dbfs: float) -> None:
        """A turn that was the user's had this level."""
        self.dbfs = level_dbfs if self.dbfs is None else self.dbfs + _FOLLOW * (level_dbfs - self.dbfs)

    def ignored(self) -> None:
        """A stretch was ignored for its level."""
        if self.dbfs is not None:
            self.dbfs -= _FORGIVE_DB

    def reset(self) -> None:
        self.dbfs = None


@dataclass(slots=True)
class NoiseFloor:
    """The level of the quiet around speech: falls at once, rises by 1 dB in ten windows (a third of a second)."""

    dbfs: float = _LOUDEST_FLOOR_DBFS

    def hear(self, level_dbfs: float) -> None:
        self.dbfs = max(_FAINTEST_DBFS, min(level_dbfs, self.dbfs + 0.1))

    def sounds(self, level_dbfs: float) -> bool:
        """Whether something is to be heard over it: the faint end of a word, after its voice."""
        return level_dbfs >= self.dbfs + _SOUND_DB

    def reset(self) -> None:
        self.dbfs = _LOUDEST_FLOOR_DBFS
