"""Settings of turn-taking that start from a named set, and that one session may override."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from duplex.config import Settings, validated

Preset = Literal["eager", "balanced", "patient"]


class TurnPresets(Settings):
    """Base of what an agent lets a session choose. ``presets``: by name, what differs from the defaults."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    preset: Preset = Field("balanced", description="where every setting that is not given comes from")

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            return {**cls.presets.get(str(given.get("preset", "balanced")), {}), **given}
        return given

    def with_overrides(self, table: Mapping[str, Any] | None) -> Self:
        """These options with a session's own on top; a ``preset`` among them starts from that preset instead.

        Raises ``ConfigError`` that names the setting.
        """
        if not table:
            return self
        base = {} if "preset" in table else self.model_dump(exclude_unset=True)
        return validated(type(self), {**base, **table}, "turn_taking")
