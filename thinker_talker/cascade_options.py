"""The embedded cascade's settings, validated: the table ``[agent.options]`` of the configuration."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from duplex.config import Settings

from .turn_options import TurnOptions

# Chosen by questions asked of the default thinker; the table is at the end of llama.py.
DEFAULT_INSTRUCTIONS = "You answer questions correctly and briefly, in plain spoken English."
DEFAULT_THINKER = "smollm2-135m"


class CascadeOptions(Settings):
    """The cascade's configuration; a session may override ``instructions`` and ``voice``.

    ``thinker``: a manifest name, a path to a GGUF file, or ``openai:http://host:port/v1#model``.
    ``voice``, ``more_voices``: manifest names or paths to Piper ``.onnx`` files, by file name without its ending
    from then on; the first is the default, and each takes about 100 MB.
    """

    models_dir: Path | None = None
    instructions: str = DEFAULT_INSTRUCTIONS
    thinker: str = DEFAULT_THINKER
    voice: str = "piper-joe"
    more_voices: tuple[str, ...] = ()
    max_sessions: int = Field(4, ge=1)
    listener_threads: int = Field(1, ge=1, le=64)
    thinker_threads: int = Field(1, ge=1, le=64, description="two are faster alone, and far slower on a busy machine")
    talker_threads: int = Field(1, ge=1, le=64)
    repack: bool = Field(True, description="use a copy of the default thinker that this processor reads faster")
    context_tokens: int = Field(2048, ge=256)
    max_reply_tokens: int = Field(120, ge=1)
    temperature: float = Field(0.3, ge=0, le=2, description="at 0 a small model repeats its last answer")
    voice_gain: bool = Field(False, description="the voice detector hears quiet lines louder: for telephones")
    listener_limit_s: float = Field(1.5, gt=0, description="a turn whose words are not there by then has none")
    images_per_prompt: int = Field(1, ge=0, le=8)
    tell_unheard: bool = Field(True, description="whether the thinker is told what a cut-off reply would have said")
    dead_air: str = Field("One moment.", description="what is said, once, when thinking takes session.dead_air_s")
    turn: TurnOptions = TurnOptions()
