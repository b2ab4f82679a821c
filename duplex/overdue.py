"""A reply that does not come, or stops coming: how long the floor is kept for it. Pure; every tick asks."""

from __future__ import annotations

from duplex.config import SessionConfig
from duplex.reply import Reply
from duplex.turn import Floor, TurnMachine

Fault = tuple[str, str]
"""A code and a sentence."""


class Overdue:
    """One session's. The limits are the configuration's: ``think_limit_s``, ``stall_limit_s``, ``dead_air_s``."""

    def __init__(self, config: SessionConfig) -> None:
        self._config = config
        self._starved_since_s: float | None = None  # the reply plays, and there is nothing of it to play

    def stood_still(self) -> None:
        """Nothing could happen for a while: nobody waited."""
        self._starved_since_s = None

    def fault(self, machine: TurnMachine, reply: Reply | None, audible: bool, now_s: float) -> Fault | None:
        """Why the floor is kept no longer. ``audible``: there is something to play."""
        return self.no_reply(machine, reply, now_s) or self.stalled(self._starved_s(machine, reply, audible, now_s))

    def no_reply(self, machine: TurnMachine, reply: Reply | None, now_s: float) -> Fault | None:
        limit_s = self._config.think_limit_s
        if self._thought_s(machine, reply, now_s) <= limit_s:
            return None
        return "reply_timeout", f"No reply came within {limit_s:g} s; the floor is yours again."

    def stalled(self, for_s: float) -> Fault | None:
        """``for_s``: how long nothing more of the reply came."""
        limit_s = self._config.stall_limit_s
        if for_s <= limit_s:
            return None
        self._starved_since_s = None
        return "reply_stalled", f"The reply stopped coming for {limit_s:g} s; the floor is yours again."

    def is_dead_air(self, machine: TurnMachine, reply: Reply | None, now_s: float) -> bool:
        """Whether it is time to say that it takes long; said once for a reply, and of none that is text."""
        if reply is None or reply.silent or reply.dead_air_told:
            return False
        return 0 < self._config.dead_air_s < self._thought_s(machine, reply, now_s)

    @staticmethod
    def _thought_s(machine: TurnMachine, reply: Reply | None, now_s: float) -> float:
        """Since thinking began, or something of the reply came that makes no sound."""
        if machine.floor is not Floor.THINKING:
            return 0.0
        return now_s - max(machine.since_s, reply.came_s if reply is not None else 0.0)

    def _starved_s(self, machine: TurnMachine, reply: Reply | None, audible: bool, now_s: float) -> float:
        """A reply that stops in mid-sentence."""
        if reply is None or reply.ended or audible or machine.floor is not Floor.SPEAKING:
            self._starved_since_s = None
            return 0.0
        if self._starved_since_s is None:
            self._starved_since_s = now_s
        return now_s - self._starved_since_s
