"""The public fakes keep their promises."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from duplex.clock import VirtualClock
from duplex.frames import SAMPLE_RATE_HZ
from duplex.testing import LoopbackLine, ScriptedUser, run_virtual, tone


def test_an_hour_of_virtual_time_takes_no_time_and_keeps_its_order() -> None:
    async def main() -> list[tuple[str, float]]:
        clock, log = VirtualClock(), []

        async def worker(name: str, every_s: float, times: int) -> None:
            for n in range(1, times + 1):
                await clock.sleep_until(n * every_s)
                log.append((name, clock.now()))

        await asyncio.gather(worker("a", 1200.0, 3), worker("b", 1800.0, 2))
        return log

    began = time.perf_counter()
    log = run_virtual(main())
    assert time.perf_counter() - began < 60
    assert log == [("a", 1200.0), ("b", 1800.0), ("a", 2400.0), ("b", 3600.0), ("a", 3600.0)]


def test_timers_fire_at_their_deadline() -> None:
    async def main() -> float:
        clock, fired = VirtualClock(), asyncio.Event()
        clock.call_at(7.5, fired.set)
        await fired.wait()
        return clock.now()

    assert run_virtual(main()) == 7.5


def test_a_loop_on_which_nothing_can_happen_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import selectors

    real = selectors.DefaultSelector.select
    monkeypatch.setattr(selectors.DefaultSelector, "select", lambda self, timeout=None: real(self, 0))

    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="stands still"):
        run_virtual(main())


def test_a_line_hears_what_was_said_and_then_silence() -> None:
    line = LoopbackLine()
    line.say(tone(0.03))
    packets = [packet for _ in range(4) for packet in line.receive()]
    assert [packet.pts for packet in packets] == [0, 480, 960, 1440]
    assert packets[0].samples.any()
    assert packets[1].samples[:240].any()
    assert not packets[1].samples[240:].any()
    assert not packets[3].samples.any()


def test_a_scripted_user_speaks_when_told() -> None:
    audio = ScriptedUser([(0.5, 0.25)]).samples(1.0)
    loud = np.flatnonzero(np.abs(audio) > 0.01) / SAMPLE_RATE_HZ
    assert loud[0] == pytest.approx(0.5, abs=0.001)
    assert loud[-1] == pytest.approx(0.75, abs=0.001)


def test_a_tone_has_the_level_it_is_asked_for() -> None:
    assert 20 * np.log10(np.sqrt(np.mean(tone(1.0, level_dbfs=-26.0) ** 2))) == pytest.approx(-26.0, abs=0.1)
