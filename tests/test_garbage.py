"""Calls that ended are looked for soon, once, and only they."""

from __future__ import annotations

import asyncio
import gc
import weakref

from duplex.events import At, SessionClosed, UserTurnReopened
from duplex.garbage import AfterCalls
from duplex.testing import run_virtual


class Ring:
    def __init__(self) -> None:
        self.me = self


def test_what_a_call_left_in_cycles_is_gone_a_second_after_it() -> None:
    async def main() -> None:
        gc.disable()
        try:
            after = AfterCalls()
            left = weakref.ref(Ring())
            after("sess_1", 0.0, UserTurnReopened(At(0, 0.0), "item"))
            await asyncio.sleep(5.0)
            assert left() is not None
            after("sess_1", 0.0, SessionClosed(At(0, 0.0), "over"))
            after("sess_2", 0.0, SessionClosed(At(0, 0.0), "over"))
            await asyncio.sleep(0.5)
            assert left() is not None
            await asyncio.sleep(1.0)
            assert left() is None
            assert after.collections == 1
        finally:
            gc.enable()

    run_virtual(main())
