"""What an error tells a person to do next."""

from __future__ import annotations

from duplex.errors import MissingDependencyError


def test_a_missing_library_names_every_line_that_brings_it() -> None:
    assert str(MissingDependencyError("livekit", "echo")).endswith("Run: pip install 'duplex-runtime[echo]'")
    native = str(MissingDependencyError("torch", "moshi"))
    assert "pip install 'duplex-runtime[moshi]' and: pip install --no-deps moshi==" in native
