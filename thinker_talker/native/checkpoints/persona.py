"""What a call reads before it is answered: a voice, then a role, as tokens that are forced step by step.

The order and the streams are those PersonaPlex was trained with (github.com/NVIDIA/personaplex, ``moshi/models/lm.py``:
``step_system_prompts``; the tags: ``moshi/server.py``: ``wrap_with_system_tags``):

==============  =======================  =====================  ====================
phase           text                     the agent's sound      the user's sound
==============  =======================  =====================  ====================
voice           padding                  the voice              a sine of 440 Hz
pause, 6 steps  padding                  silence                the sine
role            ``<system> … <system>``  silence                the sine
pause, 6 steps  padding                  silence                the sine
==============  =======================  =====================  ====================

Models that were not trained for it read a role in the same way, without the tags and with a silent user: it is
plain text in their stream, and what they make of it is theirs. Without a voice or role there is nothing to read but the
steps in which the streams' delays fill.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from duplex.errors import ConfigError
from duplex.frames import SAMPLE_RATE_HZ, Samples
from duplex.scheduler.contract import SlotSettings
from duplex.thinker_talker.native.device.engine_parts import Prompt, opening

from .config import ModelConfig
from .text_tokens import TextVocabulary
from .voices import Codes, Voice, VoiceFolder

_log = logging.getLogger(__name__)

PAUSE_S = 0.5
SINE_HZ, SINE_AMPLITUDE = 440.0, 0.5
# What the published codec makes of silence and of that sine in the steady state: SILENCE_TOKENS and SINE_TOKENS there.
MIMI_SILENCE = (948, 243, 1178, 546, 1736, 1030, 1978, 2008)
MIMI_SINE = (430, 1268, 381, 1611, 1095, 1495, 56, 472)

Encode = Callable[[Samples], Codes]
"""float32 samples at 24 kHz to int64[frames, codebooks], from a codec that heard nothing before; whole frames."""


def wrapped(text: str) -> str:
    """A role in PersonaPlex's tags, once."""
    cleaned = text.strip()
    if cleaned.startswith("<system>") and cleaned.endswith("<system>") and len(cleaned) > len("<system>"):
        return cleaned
    return f"<system> {cleaned} <system>"


@dataclass(slots=True)
class Prompts:
    """Prompts of one model. ``frame_s``: of a step; ``encode``: with its codec.

    ``most_steps``: a prompt that needs more is refused, so that the call itself has room in the model's memory.
    Voices are encoded once and kept, at most :data:`KEPT` of them.
    """

    config: ModelConfig
    tokens: TextVocabulary
    voices: VoiceFolder
    encode: Encode
    frame_s: float
    most_steps: int
    _voices: dict[str, Codes] = field(default_factory=dict)
    _sine: Codes | None = None

    KEPT = 32

    def prepare(self) -> tuple[str, ...]:
        """Encodes every voice of the folder (the first :data:`KEPT` by name), so that no call waits for that. Returns
        the names that can be asked for; a file that cannot be used is told in the log and left out."""
        usable: list[str] = []
        for name in self.voices.names:
            try:
                if len(usable) < self.KEPT:
                    self._voice(name)
                usable.append(name)
            except ConfigError as error:
                _log.warning("%s", error)
        if self.config.model_type == "personaplex":
            self._sine_codes()
        return tuple(usable)

    def of(self, settings: SlotSettings, silence: Codes) -> Prompt:
        """``silence``: int64[codebooks], what the codec makes of it. Raises ``ConfigError``: an unknown or unusable
        voice, a prompt that is too long."""
        config = self.config
        text = (settings.prompt or "").strip()
        if not text and settings.voice is None:
            return opening(max(config.delays), config.agent_q, silence[: config.user_q])
        user = silence[: config.user_q]
        if config.model_type == "personaplex":
            text, user, silence = (wrapped(text) if text else ""), self._sine_codes(), self._silence(silence)
        pad, pause = config.existing_text_padding_id, round(PAUSE_S / self.frame_s)
        quiet = silence[: config.agent_q]
        phases: list[tuple[list[int], Codes]] = []
        if settings.voice is not None:
            voice = self._voice(settings.voice)
            phases.append(([pad] * len(voice), voice))
        phases.append(_silent([pad] * pause, quiet))
        if text:
            phases += [_silent(self.tokens.encode(text), quiet), _silent([pad] * pause, quiet)]
        forced = np.array([token for tokens, _ in phases for token in tokens], np.int64)
        if len(forced) > self.most_steps:
            raise ConfigError(
                f"The prompt and voice take {len(forced)} steps of the model, and {self.most_steps} are allowed: "
                "shorten the text, or the voice."
            )
        return Prompt(forced, np.concatenate([audio for _, audio in phases]), np.tile(user, (len(forced), 1)))

    def _voice(self, name: str) -> Codes:
        if name not in self._voices:
            codes = self._codes_of(self.voices.load(name))
            while len(self._voices) >= self.KEPT:
                self._voices.pop(next(iter(self._voices)))
            self._voices[name] = codes
        return self._voices[name]

    def _codes_of(self, voice: Voice) -> Codes:
        config = self.config
        if voice.samples is not None:
            # A last frame that is not whole is filled with silence, as PersonaPlex does.
            frame = round(self.frame_s * SAMPLE_RATE_HZ)
            whole = np.pad(voice.samples, (0, -len(voice.samples) % frame))
            return self.encode(whole)[:, : config.agent_q]
        assert voice.codes is not None
        codes = voice.codes
        if codes.shape[1] < config.agent_q:
            raise ConfigError(
                f"The voice {voice.name!r} has {codes.shape[1]} codebooks, and the model speaks in {config.agent_q}."
            )
        if codes.min() < 0 or codes.max() >= config.card:
            raise ConfigError(f"The voice {voice.name!r} has codes beyond the {config.card} of the model's codec.")
        return codes[:, : config.agent_q]

    def _published(self) -> bool:
        return self.config.card == 2048 and max(self.config.agent_q, self.config.user_q) <= len(MIMI_SINE)

    def _silence(self, measured: Codes) -> Codes:
        return np.array(MIMI_SILENCE, np.int64) if self._published() else measured

    def _sine_codes(self) -> Codes:
        if self._sine is None:
            if self._published():
                steady = np.array(MIMI_SINE, np.int64)
            else:
                frame, frames = round(self.frame_s * SAMPLE_RATE_HZ), 8
                time_s = np.arange(frames * frame) / SAMPLE_RATE_HZ
                sine = SINE_AMPLITUDE * np.sin(2 * np.pi * SINE_HZ * time_s)
                steady = self.encode(sine.astype(np.float32))[-1]
            self._sine = steady[: self.config.user_q]
        return self._sine


def _silent(tokens: list[int], quiet: Codes) -> tuple[list[int], Codes]:
    return tokens, np.tile(quiet, (len(tokens), 1))
