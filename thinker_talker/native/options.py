"""A native agent's settings, validated: the table ``[agent.options]`` of the configuration, and every threshold of
watching one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from duplex.config import Settings
from duplex.scheduler import SchedulerOptions
from duplex.thinker_talker.native.device.engine_options import EngineOptions
from duplex.thinker_talker.turn_presets import TurnPresets

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "eager": {"turn_end_s": 0.4, "interrupt_s": 0.56, "reply_end_s": 0.56},
    "balanced": {},
    "patient": {"turn_end_s": 1.0, "interrupt_s": 1.12, "reply_end_s": 1.2},
}


class WatchOptions(TurnPresets):
    """When a native agent counts as speaking, and what the user is doing meanwhile. A native model takes turns by
    itself, so these decide what is *reported*, and when a model that does not yield has been interrupted.
    """

    presets = PRESETS

    agent_audible_dbfs: float = Field(-50.0, le=0, description="the loudest 20 ms of a frame that count as its voice")
    reply_end_s: float = Field(0.8, gt=0, description="padding and silence that end a reply")
    reply_end_under_user_s: float = Field(0.24, gt=0, description="the same while the user speaks: the model yielded")
    longest_reply_s: float = Field(90.0, gt=1, description="longer ones become two, at the next rest")

    voice_dbfs: float = Field(-45.0, le=0, description="the user's 20 ms are voice from here on")
    voice_above_noise_db: float = Field(10.0, ge=0, description="and this far above the background")
    voice_hysteresis_db: float = Field(6.0, ge=0, description="a voice that began may fall so far below that")
    echo_below_db: float = Field(24.0, ge=0, description="this far below what we play meanwhile it is our own echo")
    onset_s: float = Field(0.06, gt=0, description="voice in a row before it counts as speech")
    stopped_s: float = Field(0.2, gt=0, description="quiet after which the user's speech has stopped")
    pause_s: float = Field(0.16, gt=0, description="quiet that counts as a pause of the turn")
    turn_end_s: float = Field(0.6, gt=0, description="quiet that ends the user's turn if the agent stays quiet too")

    interrupt_s: float = Field(0.8, gt=0, description="voice over ours that makes an interruption")
    backchannel_quiet_s: float = Field(0.32, gt=0, description="quiet after a shorter overlap: it was encouragement")


class SilenceOptions(Settings):
    """How long an agent that was made to yield stays silent: at least ``min_s``, then until the user has been quiet
    for ``after_user_s``; never longer than ``max_s``."""

    min_s: float = Field(0.8, ge=0)
    after_user_s: float = Field(0.24, ge=0)
    max_s: float = Field(20.0, gt=0)


class NativeOptions(EngineOptions):
    """The native agent's configuration: the engine's, and what a call is made of. A session may override
    ``instructions``, ``voice`` and ``turn``.

    ``instructions`` and ``voice`` are read before a call is answered. ``seed``: with one, every call samples alike
    for the same sound, and can be replayed; without, each has its own.
    """

    max_sessions: int | None = Field(None, ge=1, le=64, description="None: as many as the engine has slots")
    instructions: str | None = None
    voice: str | None = None

    scheduler: SchedulerOptions = SchedulerOptions()
    turn: WatchOptions = WatchOptions()
    silence: SilenceOptions = SilenceOptions()
    preroll_ms: int = Field(
        40, ge=0, le=80, description="of the stream before a reply begins; also what a late tick may take"
    )
    text_lead_frames: int = Field(1, ge=0, le=8, description="frames a text token comes before its sound")
    max_behind_frames: int = Field(25, ge=2, description="heard frames that may wait for the device; more are lost")
    inject_template: str | None = Field(
        None,
        description='how text is put before the model, e.g. "<system> {text} <system>"; None: as its family learnt',
    )
    max_inject_tokens: int = Field(200, ge=1, description="waiting to be read, one a frame")
    speak_within_s: float = Field(8.0, gt=0, description="until a reply asked for without words is given up")
    max_faults: int = Field(3, ge=1, description="slot failures in a row, within a second each, that end the session")

    def engine(self) -> EngineOptions:
        """What of this is the engine's."""
        given = self.model_dump(include=set(EngineOptions.model_fields), exclude_unset=True)
        if self.max_sessions is not None:
            given.setdefault("max_slots", self.max_sessions)
        return EngineOptions(**given)

    @model_validator(mode="after")
    def _template_has_text(self) -> NativeOptions:
        if self.inject_template is not None and self.inject_template.count("{text}") != 1:
            raise ValueError("inject_template must contain {text} once")
        return self
