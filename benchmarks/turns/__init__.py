"""Turn-taking, scenario by scenario: who speaks when, judged from stereo recordings made at the client.

``duplex bench turns`` runs it (``command.py``). Read along the data path: ``material.py`` (what is said),
``doors.py`` (how a call is made), ``play.py`` and ``overlap.py`` (what a caller does), ``scenarios*.py`` (the rows
of the table), ``verdicts.py`` (what is made of a recording), ``statistics.py``, ``results.py``, ``report.py``.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """The command, imported when it is run: it needs more than its description does."""
    from duplex.benchmarks.turns.command import main as run

    return run(argv)
