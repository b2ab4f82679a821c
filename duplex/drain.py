"""A server on its way out: it takes no more calls, tells those it has, and gives them time to end.

``Farewell`` is what signals do: the first asks for a drain, the next for an end at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from duplex.errors import ProtocolError
from duplex.hub import SessionHub
from duplex.requests import AnnounceEnd

log = logging.getLogger("duplex.drain")

LOOK_S = 0.5


class Farewell:
    """``ask`` it from a signal's handler; for one event loop."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.at_once = asyncio.Event()

    def ask(self) -> None:
        """The first time: finish what is going on. Again: now."""
        if self.asked.is_set():
            self.at_once.set()
        self.asked.set()


async def drain(hub: SessionHub, deadline_s: float, at_once: asyncio.Event) -> bool:
    """Lets the calls of ``hub`` end by themselves, for ``deadline_s`` at most or until ``at_once``.

    From here on the hub is not ready and refuses calls with a time to try again. Each session is told
    (``SessionDraining``). Returns whether all of them ended; who is left is for ``hub.close``.
    """
    hub.drain(deadline_s)
    while hub.let_go("the server is stopping"):  # whoever may not come back keeps nobody waiting
        pass
    if not hub.live:
        return True
    log.info("draining: %d calls may go on for %g s", hub.live, deadline_s)
    for session in hub:
        with contextlib.suppress(ProtocolError):  # one that has not begun yet
            session.request(AnnounceEnd(deadline_s))
    empty = asyncio.ensure_future(hub.empty.wait())
    hurry = asyncio.ensure_future(at_once.wait())
    ends_s = hub.clock.now() + deadline_s
    try:
        while not (empty.done() or hurry.done()) and (left_s := ends_s - hub.clock.now()) > 0.0:
            await asyncio.wait((empty, hurry), timeout=min(left_s, LOOK_S), return_when=asyncio.FIRST_COMPLETED)
            hub.let_go("the server is stopping")  # whoever has gone meanwhile keeps nobody waiting either
    finally:
        empty.cancel()
        hurry.cancel()
    return not hub.live
