"""Virtual time, a line in memory, and speech-like sound: what a test needs around an agent."""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from duplex.events import Event
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Image, Origin, Packet, Samples, silence
from duplex.line import OutPacket, PlayoutReport

T = TypeVar("T")
E = TypeVar("E")


class _JumpingSelector(selectors.DefaultSelector):
    """Never sleeps: tells the loop by how much time would have passed."""

    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            # Only another thread or a socket could go on from here. Give it a moment of real time.
            ready = super().select(5.0)
            if not ready:
                raise RuntimeError("Virtual time stands still: nothing is scheduled and nothing arrived for 5 s.")
            return ready
        self._jump(timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time: an hour of timers takes as long as the work in it."""

    def __init__(self) -> None:
        self._virtual_s = 0.0
        super().__init__(_JumpingSelector(self._advance))

    def _advance(self, seconds: float) -> None:
        self._virtual_s += seconds

    def time(self) -> float:
        return self._virtual_s


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` on virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


@dataclass(slots=True)
class LoopbackLine:
    """A line in memory. ``say`` queues what the person says; ``played`` and ``events`` are what came of it.

    ``endless``: after what was queued comes silence (a microphone), otherwise nothing (a file).
    """

    lead_packets: int = 1
    closed: bool = False
    endless: bool = True
    played: list[OutPacket] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    image: Image | None = None
    report: PlayoutReport | None = None
    closed_because: str | None = None
    _mic: deque[Samples] = field(default_factory=deque)
    _pts: int = 0

    def say(self, samples: Samples) -> None:
        """Queues float32[n] at 24 kHz; n is padded to whole packets."""
        padded = np.pad(samples.astype(np.float32), (0, -len(samples) % PACKET_SAMPLES))
        self._mic.extend(padded.reshape(-1, PACKET_SAMPLES))

    def receive(self) -> Sequence[Packet]:
        if self._mic:
            packet = Packet(self._pts, self._mic.popleft())
        elif self.endless:
            packet = Packet(self._pts, silence(), Origin.SILENCE)
        else:
            return ()
        self._pts += PACKET_SAMPLES
        return (packet,)

    def take_image(self) -> Image | None:
        image, self.image = self.image, None
        return image

    def send(self, packet: OutPacket) -> None:
        self.played.append(packet)

    def flush(self) -> int:
        return 0

    def playout(self) -> PlayoutReport | None:
        return self.report

    def emit(self, event: Event) -> None:
        self.events.append(event)

    async def close(self, reason: str) -> None:
        self.closed = True
        self.closed_because = reason

    def audio(self) -> Samples:
        """Everything played, float32[n] at 24 kHz."""
        return np.concatenate([packet.samples for packet in self.played]) if self.played else silence(0)

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]


def tone(duration_s: float, hz: float = 220.0, level_dbfs: float = -20.0) -> Samples:
    """A sine at an RMS of ``level_dbfs``: float32[duration_s * 24000]."""
    t = np.arange(round(duration_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    amplitude = 10 ** (level_dbfs / 20) * np.sqrt(2.0)
    return np.asarray(amplitude * np.sin(2 * np.pi * hz * t), dtype=np.float32)


@dataclass(slots=True)
class ScriptedUser:
    """What the person does, as (start_s, duration_s) stretches of speech on an otherwise silent line."""

    speech: Sequence[tuple[float, float]]
    hz: float = 220.0

    def samples(self, total_s: float) -> Samples:
        audio = np.zeros(round(total_s * SAMPLE_RATE_HZ), dtype=np.float32)
        for start_s, duration_s in self.speech:
            start = round(start_s * SAMPLE_RATE_HZ)
            stretch = tone(duration_s, self.hz)[: max(0, len(audio) - start)]
            audio[start : start + len(stretch)] = stretch
        return audio
