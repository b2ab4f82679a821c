"""Nobody speaks: how long ago the last reply was heard, and whether that is too long. Sans-I/O."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class IdleWatch:
    """``timeout_s`` None: nobody waits. It begins to count when a reply was heard, and speech begins it anew."""

    timeout_s: float | None = None
    _since: tuple[float, int] | None = None  # (wall time, media time)
    _busy: bool = False

    def tick(self, now_s: float, pts: int, *, listening: bool, quiet: bool) -> int | None:
        """Since where in media time nobody has spoken, once that is too long ago; then it has to begin anew.

        ``listening``: the floor is the user's, or nobody's. ``quiet``: no turn is being spoken, nor paused in.
        ``pts``: media time now.
        """
        if not listening:
            self._busy, self._since = True, None
            return None
        if self._busy or (self._since is not None and not quiet):
            self._busy, self._since = False, (now_s, pts)
        if self.timeout_s is None or self._since is None:
            return None
        since_s, since_pts = self._since
        if now_s - since_s < self.timeout_s - 1e-9:
            return None
        self._since = None
        return since_pts
