"""The same conversation with duplex and with Pipecat: same models, same client, one run."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """``duplex bench peers``; see :mod:`duplex.benchmarks.peers.side_by_side`."""
    from duplex.benchmarks.peers.side_by_side import main as run

    return run(argv)
