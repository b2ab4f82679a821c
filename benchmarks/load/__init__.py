"""How many calls a server holds, what each costs, what it does with too many, and whether it ages.

    duplex bench load                       everything but the half hour, against servers that are started here
    duplex bench load --only transport      echo agent: sessions without an underrun, and percent of a core for each
    duplex bench load --only cascade,overload,mixed --minutes 30 --json FILE --out DIR

``docs/measuring.md`` has the rules.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    from duplex.benchmarks.load.command import main as run

    return run(argv)
