"""What model files exist: the manifest as values. No I/O except reading the manifest itself.

The data is ``manifest.toml`` beside this module. An entry names its files with size and sha256, its role and
licence, and the sources its files can come from, in the order they are tried.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from duplex.errors import ConfigError

# A name becomes a directory or file name on disk, so it cannot hold a separator or climb out with "..".
PlainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileSpec(_Value):
    """One file: its name on disk, its length in bytes and its sha256 (64 lower-case hex digits)."""

    name: PlainName
    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class HubSource(_Value):
    """Files of a Hugging Face repository at one revision. ``paths``: file name → path in the repository."""

    kind: Literal["hub"]
    repo: str = Field(pattern=r"^[^/]+/[^/]+$")
    revision: str
    paths: dict[str, str]

    @property
    def label(self) -> str:
        return f"hub {self.repo}"


class WheelSource(_Value):
    """Members of one wheel on the package index. ``members``: file name → path in the wheel.

    ``size_bytes`` is the wheel's length (for the progress bar only). ``platform`` is set when the wheel has a
    platform tag: we want its data and not its code, so that one wheel is asked for on every machine.
    """

    kind: Literal["wheel"]
    distribution: str
    version: str
    size_bytes: int = Field(ge=0)
    members: dict[str, str]
    platform: str | None = None

    @property
    def label(self) -> str:
        return f"wheel {self.distribution}=={self.version}"


Source = Annotated[HubSource | WheelSource, Field(discriminator="kind")]


class ModelEntry(_Value):
    """One model: a directory of files in the store."""

    name: PlainName
    title: str
    role: str
    licence: str
    files: tuple[FileSpec, ...] = Field(min_length=1)
    sources: tuple[Source, ...]

    @property
    def size_bytes(self) -> int:
        return sum(spec.size_bytes for spec in self.files)

    @model_validator(mode="after")
    def _sources_name_known_files(self) -> ModelEntry:
        known = {spec.name for spec in self.files}
        for source in self.sources:
            offered = source.paths if isinstance(source, HubSource) else source.members
            if stray := sorted(set(offered) - known):
                raise ValueError(f"{self.name}: {source.label} offers unknown files {stray}")
        return self


class Manifest(_Value):
    """All models duplex can fetch. ``default`` lists the ones the embedded agent needs."""

    default: tuple[str, ...]
    model: tuple[ModelEntry, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.model)

    def entry(self, name: str) -> ModelEntry:
        """The entry called ``name``; ConfigError with the nearest known name if there is none."""
        for entry in self.model:
            if entry.name == name:
                return entry
        near = difflib.get_close_matches(name, self.names, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(self.names)}."
        raise ConfigError(f"There is no model called {name!r}. {hint} See: duplex models list")

    def find(self, name_or_repo: str) -> ModelEntry | None:
        """The entry of that name, or the one that comes from that hub repository; ``None`` if there is none."""
        for entry in self.model:
            repos = [source.repo for source in entry.sources if isinstance(source, HubSource)]
            if entry.name == name_or_repo or name_or_repo in repos:
                return entry
        return None

    def select(self, names: Iterable[str]) -> tuple[ModelEntry, ...]:
        """Entries for ``names``, in order and once each; the default set for no names or ``"default"``."""
        expanded: list[str] = []
        for name in tuple(names) or ("default",):
            expanded.extend(self.default if name == "default" else (name,))
        return tuple(self.entry(name) for name in dict.fromkeys(expanded))

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if len(set(self.names)) != len(self.names):
            raise ValueError("two models share a name")
        if stray := sorted(set(self.default) - set(self.names)):
            raise ValueError(f"the default set names unknown models {stray}")
        return self


def load_manifest(path: Path | None = None) -> Manifest:
    """The shipped manifest, or the one at ``path``. ConfigError when it is not a valid manifest."""
    source = path if path is not None else resources.files("duplex.weights").joinpath("manifest.toml")
    try:
        return Manifest.model_validate(tomllib.loads(source.read_text(encoding="utf-8")))
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise ConfigError(f"The model manifest {source} cannot be used: {error}") from error
