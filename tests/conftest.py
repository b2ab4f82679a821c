"""Fixtures shared by all tests."""

from __future__ import annotations

import pytest

from duplex.weights import ModelStore


@pytest.fixture(scope="session")
def models() -> ModelStore:
    """The default models on disk: ``models.path("silero-vad")`` is a directory ready to load.

    Pulled first where they are not there yet, so that a test which needs them runs rather than is skipped.
    """
    store = ModelStore()
    store.pull()
    return store
