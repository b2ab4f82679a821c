"""How late the event loop is: by how much a sleep overruns. What blocks the loop for longer is heard by every call."""

from __future__ import annotations

from collections.abc import Callable

from duplex.clock import Clock

EVERY_S = 0.02
"""As often as a packet: what is late for this is late for one."""

BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0)


async def watch_loop_lag(clock: Clock, observe: Callable[[float], None], every_s: float = EVERY_S) -> None:
    """Tells ``observe`` by how many seconds each of its sleeps was overrun. Runs until it is cancelled.

    After a stall it does not catch up: one long wait is one observation, as long as it was.
    """
    while True:
        due_s = clock.now() + every_s
        await clock.sleep_until(due_s)
        observe(max(0.0, clock.now() - due_s))
