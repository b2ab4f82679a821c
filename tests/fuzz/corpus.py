"""Inputs that are kept: what found something once, and what is worth beginning with but is not made in code."""

from __future__ import annotations

from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


def kept(target: str) -> dict[str, bytes]:
    """By file name."""
    folder = CORPUS / target
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.is_dir() else {}


def folders() -> list[str]:
    return sorted(path.name for path in CORPUS.iterdir() if path.is_dir())
