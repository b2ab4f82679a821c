"""What a call under test needs to know beyond its events: a line that keeps the sound, an agent that is watched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from duplex.agent import Agent, AgentInfo, AgentSession, AgentSettings
from duplex.clock import Clock
from duplex.frames import PACKET_MS, PACKET_SAMPLES, Packet, Samples
from duplex.line import OutPacket
from duplex.recording import AUDIBLE_DBFS, Recording, level_dbfs
from duplex.testing.line import LoopbackLine


@dataclass(slots=True)
class RecordedLine(LoopbackLine):
    """A loopback line that keeps both sides. Times are those of ``duplex/recording.py``, in packets of 20 ms.

    The packet heard at a tick was spoken before it and the one sent at that tick plays after it, so what is
    ``played[i]`` lies one packet later than what is ``heard[i]``.
    """

    heard: list[Samples] = field(default_factory=list)
    _audible: list[tuple[int, str]] = field(default_factory=list)  # (packet of the time line, reply), in order

    def receive(self) -> Sequence[Packet]:
        # Not super(): with slots, the decorated class is not the one the name __class__ stands for.
        packets = LoopbackLine.receive(self)
        self.heard += [packet.samples for packet in packets]
        return packets

    def send(self, packet: OutPacket) -> None:
        self.played.append(packet)
        if packet.reply_id is not None and level_dbfs(packet.samples) >= AUDIBLE_DBFS:
            self._audible.append((len(self.played), packet.reply_id))

    @property
    def waiting(self) -> bool:
        """Some of what was said has not been heard yet."""
        return bool(self._mic)

    @property
    def speaking(self) -> str | None:
        """The reply that was audible last."""
        return self._audible[-1][1] if self._audible else None

    @property
    def last_audible_ms(self) -> float:
        """Until when the agent was audible; 0 if it never was."""
        return (self._audible[-1][0] + 1.0) * PACKET_MS if self._audible else 0.0

    def began_ms(self, reply_id: str | None) -> float:
        """When that reply was first audible; 0 if it never was."""
        return float(next((at for at, reply in self._audible if reply == reply_id), 0) * PACKET_MS)

    def audible_since(self, start_ms: float, other_than: str | None = None) -> float | None:
        """When a reply (``other_than`` that one) was first audible at or after ``start_ms``."""
        found = None
        for at, reply in reversed(self._audible):  # the call may be long, and what is looked for is at its end
            if at * PACKET_MS < start_ms:
                break
            if reply != other_than:
                found = float(at * PACKET_MS)
        return found

    def audible_of(self, reply_id: str) -> list[int]:
        """The packets of the time line in which that reply was audible, in order."""
        return [at for at, reply in self._audible if reply == reply_id]

    def item_of(self, reply_id: str) -> str | None:
        return next((packet.item_id for packet in self.played if packet.reply_id == reply_id), None)

    def recording(self, start_ms: float, *, only_replies: bool = False, other_than: str | None = None) -> Recording:
        """The call from ``start_ms`` (a multiple of 20) on: float32[n, 2].

        ``only_replies`` leaves out sounds of the agent that belong to no reply, ``other_than`` one reply.
        """
        first = round(start_ms / PACKET_MS)
        user = self.heard[first:]
        stereo = np.zeros((len(user) * PACKET_SAMPLES, 2), dtype=np.float32)
        for n, samples in enumerate(user):
            stereo[n * PACKET_SAMPLES : (n + 1) * PACKET_SAMPLES, 0] = samples
        for n, packet in enumerate(self.played[max(0, first - 1) :], start=max(0, 1 - first)):
            if (n + 1) * PACKET_SAMPLES > len(stereo):
                break
            if not (only_replies and packet.reply_id is None) and (other_than is None or packet.reply_id != other_than):
                stereo[n * PACKET_SAMPLES : (n + 1) * PACKET_SAMPLES, 1] = packet.samples
        return Recording(stereo, playout_ms=0.0)


class ObservedAgent:
    """An agent whose last session can be looked at."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.session: AgentSession | None = None
        """The session opened last, as the agent made it."""

    @property
    def info(self) -> AgentInfo:
        return self._agent.info

    async def start(self) -> None:
        await self._agent.start()

    def open(self, settings: AgentSettings, clock: Clock, wake: Callable[[], None]) -> AgentSession:
        self.session = self._agent.open(settings, clock, wake)
        return self.session

    async def close(self) -> None:
        await self._agent.close()
