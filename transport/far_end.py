"""Watches over the far end of one WebRTC connection: tells the line when it is out of reach, and when it is back."""

from __future__ import annotations

import asyncio
from typing import Protocol

from aiortc import RTCPeerConnection

from duplex.clock import Clock
from duplex.transport.data_channel import unread_limit_passed
from duplex.transport.liveness import Signs, answers, ice_of, packets_received

LOOK_S = 0.1
LOOK_LOST_S = 0.02  # it goes on with the first packets
_LATE_S = 0.1  # later than this, what came meanwhile may still wait to be read: look again before judging
_MAX_QUESTIONS = 8  # open at a time


class Watched(Protocol):
    """What is told."""

    closed: bool

    @property
    def speaking(self) -> bool:
        """Something is being said to the far end."""
        ...

    def out_of_touch(self, silent_s: float) -> None: ...

    def in_touch(self) -> None: ...

    def lose(self, reason: str) -> None: ...


async def watch(peer: RTCPeerConnection, line: Watched, gone: asyncio.Event, clock: Clock, limit_s: float) -> None:
    """Returns when ``gone`` or closed, at the latest when there was no sign of the far end for ``limit_s``."""
    receiver, ice = peer.getReceivers()[0], ice_of(peer)
    began_s = looked_s = clock.now()
    signs, received = Signs(began_s), packets_received(receiver)
    questions: set[asyncio.Task[None]] = set()

    async def ask(asked_s: float) -> None:
        if await answers(ice):
            signs.answered(asked_s, clock.now())

    def question(now_s: float) -> None:
        if len(questions) < _MAX_QUESTIONS:
            signs.asked(now_s)
            task = asyncio.create_task(ask(now_s), name="far end")
            questions.add(task)
            task.add_done_callback(questions.discard)

    late = False
    question(began_s)  # to know the round trip before it counts
    try:
        while not gone.is_set() and not line.closed:
            pause_s = LOOK_LOST_S if signs.lost or late else LOOK_S
            try:
                async with asyncio.timeout(pause_s):
                    await gone.wait()
            except TimeoutError:
                pass
            now_s = clock.now()
            late, looked_s = not late and now_s - looked_s > pause_s + _LATE_S, now_s
            if unread_limit_passed(peer.sctp):
                line.lose("the client sends parts of events, and never the rest")
            if (count := packets_received(receiver)) != received:
                received = count
                signs.packet(now_s)
            elif signs.should_ask(now_s, speaking=line.speaking):
                question(now_s)
            if not late and signs.look(now_s):
                if signs.lost:
                    line.out_of_touch(signs.silent_s(now_s))
                else:
                    line.in_touch()
            if signs.lost and signs.silent_s(now_s) > limit_s:
                line.lose("the far end is gone: it sends nothing and does not answer")
    finally:
        for task in questions:
            task.cancel()
