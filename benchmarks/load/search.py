"""How many sessions are held: doubled until they are not, then halved between, as few tries as it takes. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Search:
    """``first``: what is tried first. ``most``: more is not tried. ``fineness``: how close is close enough, as a share.

    Assumes that what holds n holds fewer. Ask for :attr:`next`, try that, and tell :meth:`found`.
    """

    first: int = 1
    most: int = 256
    fineness: float = 0.15
    held: int = 0
    failed: int | None = None
    tried: list[tuple[int, bool]] = field(default_factory=list)

    @property
    def next(self) -> int | None:
        """How many to try now; None when the answer is :attr:`held`."""
        if self.failed is None:
            if self.held >= self.most:
                return None
            return min(self.most, max(self.first, 2 * self.held))
        if self.failed - self.held <= max(1, round(self.fineness * self.failed)):
            return None
        return (self.held + self.failed) // 2

    def found(self, sessions: int, holds: bool) -> None:
        """What became of a try."""
        self.tried.append((sessions, holds))
        if holds:
            self.held = max(self.held, sessions)
        elif self.failed is None or sessions < self.failed:
            self.failed = sessions
