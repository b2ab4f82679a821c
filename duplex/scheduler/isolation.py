"""Which slot makes a tick fail? A tick that raised is undone and stepped again in halves, and those in halves, until
what fails is one slot. The others' frames are stepped once, as if nothing had been.

One slot costs some 2 log₂ n further steps of ever smaller batches, once. An engine is not asked more often than two
such slots take: whatever is undecided then counts as failed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .contract import SlotFrame, SlotResult

Step = Callable[[Sequence[SlotFrame]], Sequence[SlotResult]]


def step_in_halves(
    step: Step, undo: Callable[[], None], frames: Sequence[SlotFrame], error: Exception
) -> list[SlotResult | Exception]:
    """A result or what went wrong for each of ``frames``, whose common step raised ``error`` and was undone. ``undo``
    is called after each ``step`` that raises; what it raises itself comes through."""
    found: dict[int, SlotResult | Exception] = {}
    failing = [(list(frames), error)]
    attempts = 4 * len(frames).bit_length()
    while failing:
        group, why = failing.pop()
        if len(group) == 1 or attempts <= 0:
            found |= {frame.key: why for frame in group}
            continue
        for half in (group[: len(group) // 2], group[len(group) // 2 :]):
            attempts -= 1
            try:
                found |= {result.key: result for result in step(half)}
            except Exception as again:
                undo()
                failing.append((half, again))
    return [found[frame.key] for frame in frames]
