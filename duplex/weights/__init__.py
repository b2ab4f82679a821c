"""Model files: which ones (``manifest.toml``), from where, and known to be whole on disk before anything loads them."""

from __future__ import annotations

from duplex.weights.disk import FileProblem
from duplex.weights.manifest import Manifest, ModelEntry, load_manifest
from duplex.weights.store import QUIET, ModelStore, PullProgress, default_root

__all__ = [
    "QUIET",
    "FileProblem",
    "Manifest",
    "ModelEntry",
    "ModelStore",
    "PullProgress",
    "default_root",
    "load_manifest",
]
