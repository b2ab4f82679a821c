"""What an engine is built from, validated: which model, on which device, how precise, for how many slots."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from duplex.config import Settings


class EngineOptions(Settings):
    """``weights``: a directory with the family's ``config.json``, or a hub repository of the weights manifest. Without
    any, ``preset`` names a configuration that is filled with random weights drawn from ``weights_seed``.

    ``max_slots``: ``None`` takes as many as fit the device's memory, at most 64. ``seed``: of the slots that choose
    none; ``None`` draws one for each. ``context`` (steps) and ``sinks`` (steps kept from the beginning): of the
    temporal transformer's keys and values; ``None``: the model's own, and none. Temperatures (0: the likeliest token)
    and top-k (0: every token): of calls that say nothing else; ``None``: the authors'.
    """

    preset: str = "tiny"
    weights: str | None = None
    weights_seed: int = Field(0, ge=0)
    codec: str = Field("mimi", description="entry point of duplex.codecs")
    voices_dir: Path | None = None

    device: str = Field("auto", description='"cpu", "cuda", "cuda:1"; auto: CUDA where there is one')
    precision: str = Field("auto", description="of the model's parts; auto: what the device is good at")
    graphs: bool = Field(True, description="replay CUDA graphs; without CUDA there are none")
    max_slots: int | None = Field(None, ge=1, le=64)
    context: int | None = Field(None, ge=2)
    sinks: int | None = Field(None, ge=0)

    seed: int | None = Field(None, ge=0, lt=2**63)
    temperature_text: float | None = Field(None, ge=0, le=2)
    temperature_audio: float | None = Field(None, ge=0, le=2)
    top_k_text: int | None = Field(None, ge=0)
    top_k_audio: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _one_model(self) -> EngineOptions:
        if self.weights is not None and "preset" in self.model_fields_set:
            raise ValueError("give weights or a preset (random weights), not both")
        return self
