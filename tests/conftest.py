"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from live import duplex_serve

from duplex.garbage import set_aside
from duplex.weights import ModelStore


@pytest.fixture(scope="module", autouse=True)
def _collector() -> None:
    """After a few thousand tests a look through everything takes a second, which a call in real time would hear."""
    set_aside()


@pytest.fixture(scope="session")
def models() -> ModelStore:
    """The default models on disk: ``models.path("silero-vad")`` is a directory ready to load.

    Pulled first where they are not there yet, so that a test which needs them runs rather than is skipped.
    """
    store = ModelStore()
    store.pull()
    return store


@pytest.fixture(scope="session")
def live_server(models: ModelStore) -> Iterator[str]:
    """Address of a server with the default models, started once for all tests that need one."""
    with duplex_serve(
        "--max-sessions",
        "2",
        "--set",
        "session.think_limit_s=90",
        "--set",
        "agent.options.temperature=0",
        models_dir=models.root,
    ) as url:
        yield url
