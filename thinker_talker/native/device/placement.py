"""Where each slot lies in the batch: always in a prefix without holes, so that a tick runs on the first n rows.

Sans-I/O: it says which row moves where; whoever owns the tensors copies them.

    join   A B C          the next free row
    leave  A D C  (B left; D, the last, moves into its row)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from duplex.errors import AgentFullError


@dataclass(frozen=True, slots=True)
class Move:
    """Row ``source`` is to be copied to row ``target``; afterwards ``source`` is free."""

    source: int
    target: int


class Placement:
    """Keys of slots in rows ``0 .. live-1``. Keys are never used again, rows are."""

    def __init__(self, max_slots: int) -> None:
        if max_slots < 1:
            raise ValueError(f"max_slots must be at least 1, not {max_slots}")
        self.max_slots = max_slots
        self._keys: list[int] = []  # by row
        self._rows: dict[int, int] = {}
        self._next_key = 1

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    @property
    def keys(self) -> tuple[int, ...]:
        """Keys in the order of their rows."""
        return tuple(self._keys)

    def row(self, key: int) -> int:
        """Raises ``KeyError`` for a key that never was, or has left."""
        return self._rows[key]

    def key(self, row: int) -> int:
        return self._keys[row]

    def join(self) -> int:
        """A fresh key, in the row after the last. Raises ``AgentFullError``."""
        if len(self._keys) >= self.max_slots:
            raise AgentFullError(f"All {self.max_slots} slots are taken; try again when a call has ended.")
        key = self._next_key
        self._next_key += 1
        self._rows[key] = len(self._keys)
        self._keys.append(key)
        return key

    def leave(self, key: int) -> Move | None:
        """Frees the key's row. A move to carry out, if a later row has to fill the hole."""
        target = self._rows.pop(key)
        source = len(self._keys) - 1
        last = self._keys.pop()
        if last == key:
            return None
        self._keys[target] = last
        self._rows[last] = target
        return Move(source, target)

    def rows_needed(self, keys: Iterable[int]) -> int:
        """Length of the shortest prefix that holds all ``keys``; 0 for none."""
        return 1 + max((self._rows[key] for key in keys), default=-1)


def batch_sizes(max_slots: int) -> tuple[int, ...]:
    """1, 2, 4, … and ``max_slots``: the sizes worth capturing, ascending."""
    sizes = [1 << power for power in range(max_slots.bit_length()) if 1 << power < max_slots]
    return (*sizes, max_slots)


def smallest_that_fits(sizes: tuple[int, ...], n_rows: int) -> int:
    """The first of ascending ``sizes`` that is at least ``n_rows``. Raises ``ValueError`` beyond the last."""
    for size in sizes:
        if size >= n_rows:
            return size
    raise ValueError(f"{n_rows} rows do not fit the largest batch size, {sizes[-1]}")
