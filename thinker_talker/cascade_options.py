"""Every threshold of the embedded cascade, named and validated. The table ``[agent.options]`` of the configuration."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from duplex.config import Settings

# Chosen by questions asked of the default thinker; the table is at the end of llama.py.
DEFAULT_INSTRUCTIONS = "You answer questions correctly and briefly, in plain spoken English."
DEFAULT_THINKER = "smollm2-135m"


class TurnOptions(Settings):
    """When a turn begins, pauses and is over. Seconds of silence count from the last voiced sample.

    The silence that ends a turn falls from ``silence_unlikely_s`` to ``silence_likely_s`` as the evidence
    for its end grows; without evidence it is ``silence_unknown_s``, a plain silence timer, which always works.
    (A turn that is over stays open until the reply can be heard: ``session.commit_wait_s``.)
    """

    speech_threshold: float = Field(0.5, gt=0, lt=1, description="voice begins at this probability")
    silence_threshold: float = Field(0.35, gt=0, lt=1, description="voice ends below this one")
    silence_drop_db: float = Field(26.0, gt=0, description="or this far below the loudest window of the turn")
    onset_s: float = Field(0.064, gt=0, description="voice needed before it counts as speech")
    overlap_threshold: float = Field(0.6, gt=0, lt=1, description="the same over our own voice, where echo may be")
    overlap_onset_s: float = Field(0.064, gt=0)
    pause_s: float = Field(0.064, gt=0, description="silence that starts speculation")
    complete_threshold: float = Field(0.4, gt=0, lt=1, description="end-of-turn model: likely over from here")
    silence_likely_s: float = Field(0.3, gt=0)
    silence_unknown_s: float = Field(0.5, gt=0)
    silence_unlikely_s: float = Field(0.9, gt=0)
    hanging_extra_s: float = Field(0.5, ge=0, description="added when the words stop in mid-sentence ('and the')")
    prosody_again_s: float = Field(0.22, gt=0, description="ask the end-of-turn model a second time after this pause")
    min_turn_s: float = Field(0.12, ge=0, description="less voice than this is a click, not a turn")
    partial_every_s: float = Field(0.4, gt=0)
    overlap_partial_s: float = Field(0.3, gt=0, description="voice over ours until its words are looked at")
    interrupt_s: float = Field(0.8, gt=0, description="voice over ours that interrupts whatever it says")
    interrupt_words: int = Field(2, ge=1, description="words of content over ours that interrupt")
    decide_s: float = Field(0.25, gt=0, description="quiet after an overlap until it is judged")
    decide_limit_s: float = Field(0.7, gt=0, description="judged by its length if its words are not there by then")
    backchannel_s: float = Field(0.6, gt=0, description="wordless overlap up to this long was encouragement")


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
    context_tokens: int = Field(2048, ge=256)
    max_reply_tokens: int = Field(120, ge=1)
    temperature: float = Field(0.3, ge=0, le=2, description="at 0 a small model repeats its last answer")
    images_per_prompt: int = Field(1, ge=0, le=8)
    turn: TurnOptions = TurnOptions()
