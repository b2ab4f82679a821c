"""Which model files an agent's options stand for, and their sha256: what a recording says of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from duplex.weights.manifest import Manifest, load_manifest


def model_facts(options: Mapping[str, Any], manifest: Manifest | None = None) -> list[dict[str, Any]]:
    """One table per model: the default set, what ``options`` name besides, and files they point to.

    Models of the manifest have the sha256 they were verified against when they were loaded; other files are
    hashed now, which takes a second per gigabyte or so.
    """
    known = manifest if manifest is not None else load_manifest()
    named = list(dict.fromkeys([*known.default, *(text for text in _texts(options) if text in known.names)]))
    facts: list[dict[str, Any]] = [
        {"name": entry.name, "files": {spec.name: spec.sha256 for spec in entry.files}}
        for entry in (known.entry(name) for name in named)
    ]
    for text in _texts(options):
        path = Path(text).expanduser()
        if text not in known.names and len(text) < 1024 and path.is_file():
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            facts.append({"name": path.name, "files": {path.name: digest}})
    return facts


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case Mapping():
            for inner in value.values():
                yield from _texts(inner)
        case list() | tuple():
            for inner in value:
                yield from _texts(inner)
