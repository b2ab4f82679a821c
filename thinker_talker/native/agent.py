"""The native agent: a full-duplex model behind the contract of :mod:`duplex.agent`, many calls to a device.

``start`` loads the engine on the scheduler's thread; ``open`` takes a slot or says at once that there is none; each
call is a :class:`~.native_session.NativeSession`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry

from duplex.agent import Agent, AgentInfo, AgentSession, AgentSettings
from duplex.clock import Clock
from duplex.config import validated
from duplex.errors import AgentFullError
from duplex.frames import PACKET_SAMPLES
from duplex.thinker_talker.native.checkpoints.voices import VoiceFolder

from .native_session import NativeSession, check_voice
from .options import NativeOptions
from .serving import EngineServing, Served, Serving, load_native

FRAME_PACKETS = 4
FRAME_SAMPLES = FRAME_PACKETS * PACKET_SAMPLES  # 1920: the family's frame at 24 kHz


class NativeAgent:
    """Implements ``Agent``. ``serving`` runs the model; ``voices``: the names it knows."""

    def __init__(self, options: NativeOptions, serving: Serving, voices: tuple[str, ...] = ()) -> None:
        self.options, self.voices = options, voices
        self._serving = serving
        self._served: Served | None = None
        self._open = 0

    @property
    def info(self) -> AgentInfo:
        return AgentInfo(
            "moshi",
            packets_per_frame=FRAME_PACKETS,
            native=True,
            voices=self.voices,
            deterministic=self.options.seed is not None,
            places=self.options.max_sessions,
        )

    @property
    def registry(self) -> CollectorRegistry | None:
        """What its scheduler counts."""
        return self._serving.registry

    async def start(self) -> None:
        if self._served is None:
            self._served = await self._serving.start()

    def admit(self) -> None:
        """Whether a call would be taken now, by places, memory and measured headroom. Raises ``AgentFullError``."""
        self._with_a_place().admit()

    def _with_a_place(self) -> Served:
        served, most = self._served, self.options.max_sessions
        if served is None:
            raise AgentFullError("The model is still loading. Try again in a moment.")
        if most is not None and self._open >= most:
            raise AgentFullError(f"All {most} places of the model are taken.")
        return served

    def open(self, settings: AgentSettings, clock: Clock, wake: Callable[[], None]) -> AgentSession:
        served = self._with_a_place()
        session = NativeSession(
            served,
            self.options,
            settings,
            wake,
            frame_samples=FRAME_SAMPLES,
            voices=self.voices,
            closed=self._left,
        )
        self._open += 1
        return session

    def _left(self) -> None:
        self._open -= 1

    async def close(self) -> None:
        self._served = None
        await self._serving.close()


def load(options: Mapping[str, Any]) -> Agent:
    """Entry point ``moshi`` of ``duplex.agents``. Raises ``ConfigError`` for options it does not know."""
    checked = validated(NativeOptions, options, "agent.options")
    voices = VoiceFolder(checked.voices_dir).names
    check_voice(checked.voice, voices)  # now, rather than at every call
    serving = EngineServing(lambda: load_native(checked), checked.scheduler)
    return NativeAgent(checked, serving, voices)
