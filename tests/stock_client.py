"""The client of the ``moshi`` package, unchanged, for tests that call with it.

Replaced is the sound card alone: ``sounddevice``, which the package imports and which needs PortAudio, is a
module of ours. It calls back from a thread of its own every 80 ms, as PortAudio does, with a microphone that plays
what the test says, and a speaker that keeps what it is given. Connecting, the WebSocket (aiohttp), Ogg-Opus (sphn),
the client's queues and its printer are the package's.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import io
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pytest

from duplex.frames import SAMPLE_RATE_HZ, Samples, silence

Block = npt.NDArray[np.float32]


class SoundCard:
    """The two streams of one client. ``say`` queues speech for the microphone; ``played`` is what the speaker got."""

    def __init__(self) -> None:
        self.played: list[Samples] = []
        self.stopped = False
        self._voice = silence(0)
        self._lock = threading.Lock()

    def say(self, samples: Samples) -> None:
        with self._lock:
            self._voice = np.concatenate([self._voice, samples])

    def record(self, block: Block) -> None:
        with self._lock:
            said, self._voice = self._voice[: len(block)], self._voice[len(block) :]
        block[: len(said), 0] = said

    def play(self, block: Block) -> None:
        self.played.append(block[:, 0].copy())

    @property
    def heard(self) -> Samples:
        return np.concatenate([silence(0), *self.played])


class _Stream:
    """``sounddevice.InputStream`` and ``OutputStream``, as far as the client uses them."""

    exchange: Callable[[SoundCard, Block], None]
    cards: Iterator[SoundCard]
    calls_first: bool

    def __init__(self, *, samplerate: float, channels: int, blocksize: int, callback: Callable[..., None]) -> None:
        assert (samplerate, channels, blocksize) == (SAMPLE_RATE_HZ, 1, 1920)
        self._blocksize, self._callback = blocksize, callback
        self.card = next(type(self).cards)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.card.stopped = True

    def _run(self) -> None:
        period_s = self._blocksize / SAMPLE_RATE_HZ
        due_s = time.monotonic()
        while not self._ended.wait(max(0.0, due_s - time.monotonic())):
            block = np.zeros((self._blocksize, 1), dtype=np.float32)
            if self.calls_first:
                self._callback(block, self._blocksize, None, None)
            type(self).exchange(self.card, block)
            if not self.calls_first:
                self._callback(block, self._blocksize, None, None)
            due_s += period_s


def sound_card_module(cards: list[SoundCard]) -> ModuleType:
    """A ``sounddevice`` whose streams are those of ``cards``, one client after the other."""
    module: Any = ModuleType("sounddevice")
    inputs, outputs = iter(cards), iter(cards)
    module.InputStream = type(
        "InputStream", (_Stream,), {"exchange": SoundCard.record, "calls_first": False, "cards": inputs}
    )
    module.OutputStream = type(
        "OutputStream", (_Stream,), {"exchange": SoundCard.play, "calls_first": True, "cards": outputs}
    )
    return module  # type: ignore[no-any-return]


class Client:
    """One run of ``python -m moshi.client``, printing into memory."""

    def __init__(self, package: Any, url: str, card: SoundCard) -> None:
        self.card = card
        self.printed, self.logged = io.StringIO(), io.StringIO()
        printer = package.RawPrinter(self.printed, self.logged)
        address = urlsplit(url)
        args = argparse.Namespace(host=address.hostname, port=address.port, https=False, url=None)
        self.task = asyncio.create_task(package.run(printer, args))

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not done():
                assert not self.task.done(), self.logged.getvalue()
                await asyncio.sleep(0.02)  # the card's threads have the pace of sound

    async def until_answered(self, text: str) -> None:
        """Until the client has printed that text and played the sound that goes with it to its end."""
        await self.until(lambda: self.printed.getvalue().endswith(text) and loud_s(self.card.heard) > 0)
        await self.until(lambda: not np.abs(self.card.heard[-SAMPLE_RATE_HZ // 3 :]).max() > 0.05)

    async def hang_up(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        assert self.card.stopped


def loud_s(samples: Samples) -> float:
    """From the first to the last loud sample."""
    loud = np.flatnonzero(np.abs(samples) > 0.05)
    return float(loud[-1] - loud[0]) / SAMPLE_RATE_HZ if len(loud) else 0.0


def stock_client(cards: list[SoundCard], monkeypatch: pytest.MonkeyPatch) -> Any:
    """``moshi.client``, imported with these sound cards, one a client."""
    monkeypatch.setenv("NO_TORCH_COMPILE", "1")
    monkeypatch.setitem(sys.modules, "sounddevice", sound_card_module(cards))
    monkeypatch.delitem(sys.modules, "moshi.client", raising=False)
    return importlib.import_module("moshi.client")
