"""Workers that a fault does not end: the thread by itself, and the ear with faults put in."""

from __future__ import annotations

import queue
from typing import Any, cast

import numpy as np

from duplex.errors import AgentFaultError
from duplex.frames import PACKET_SAMPLES
from duplex.thinker_talker.ear import EarWorker, Window
from duplex.thinker_talker.silero import SileroModel
from duplex.thinker_talker.supervised import SupervisedThread

WAIT_S = 10.0


def test_a_loop_that_raises_is_run_again_until_it_returns() -> None:
    left = [ValueError("one"), ValueError("two")]
    told: list[Exception] = []
    pauses: list[float] = []

    def work() -> None:
        if left:
            raise left.pop(0)

    thread = SupervisedThread(work, "worker", crashed=told.append, pause=pauses.append)
    thread.start()
    thread.join(WAIT_S)
    assert [str(error) for error in told] == ["one", "two"]
    assert thread.restarts == 2
    assert pauses[1] == 2 * pauses[0]


def test_who_is_told_may_fail_too() -> None:
    left = [ValueError()]

    def work() -> None:
        if left:
            raise left.pop()

    def crashed(error: Exception) -> None:
        raise RuntimeError("nobody there")

    thread = SupervisedThread(work, "worker", crashed=crashed)
    thread.start()
    thread.join(WAIT_S)
    assert not thread.is_alive()


class Voice:
    """A detector with a fault in the ``faulty`` calls."""

    def __init__(self, *faulty: int) -> None:
        self.calls, self.faulty = 0, faulty

    def open(self) -> Voice:
        return self

    def push(self, window: Any) -> list[float]:
        self.calls += 1
        if self.calls in self.faulty:
            raise RuntimeError("the model is gone")
        return [0.0]


def hear(ear: Any, packets: range) -> None:
    for packet in packets:
        ear.hear(packet * PACKET_SAMPLES, np.zeros(PACKET_SAMPLES, dtype=np.float32))


def test_an_ear_that_failed_hears_on_from_there() -> None:
    worker = EarWorker(cast(SileroModel, Voice(3)))
    heard: queue.Queue[Window | AgentFaultError] = queue.Queue()
    ear = worker.open(heard.put)
    hear(ear, range(50))
    worker.close()
    got = list(heard.queue)
    (fault,) = [one for one in got if isinstance(one, AgentFaultError)]
    assert "the model is gone" in str(fault)
    assert not ear.closed
    ends = [one.end_pts for one in got if isinstance(one, Window)]
    assert ends == sorted(ends)
    assert len(ends) >= 25


def test_an_ear_that_fails_again_and_again_is_given_up() -> None:
    worker = EarWorker(cast(SileroModel, Voice(*range(100))))
    heard: queue.Queue[Window | AgentFaultError] = queue.Queue()
    ear = worker.open(heard.put)
    hear(ear, range(50))
    worker.close()
    assert ear.closed
    assert heard.qsize() == 3


def test_a_session_that_cannot_be_told_costs_no_other_its_ear() -> None:
    worker = EarWorker(cast(SileroModel, Voice()))

    def broken(window: Window | AgentFaultError) -> None:
        raise RuntimeError("its session is gone")

    heard: queue.Queue[Window | AgentFaultError] = queue.Queue()
    bad, good = worker.open(broken), worker.open(heard.put)
    for packet in range(20):
        hear(bad, range(packet, packet + 1))
        hear(good, range(packet, packet + 1))
    worker.close()
    assert heard.qsize() >= 10
