"""The listener's contract: speech in, text out, on threads of its own.

An engine (:class:`Listener`) is loaded once per process and opens one :class:`ListenerStream` per
session. ``push`` and ``request`` return at once; each answer is a call of ``on_result`` from a worker
thread. :mod:`.listening` implements the contract for any model that can be interrupted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from duplex.errors import AgentFaultError

LISTENER_RATE_HZ = 16_000

Kind = Literal["partial", "final"]

Samples16k = npt.NDArray[np.float32]
"""Mono float32 in [-1, 1] at 16 kHz, shape [n]."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """One answer to one :meth:`ListenerStream.request`.

    ``text`` is empty when nothing was said. ``confidence`` is the geometric mean of the model's token
    probabilities, 0 to 1: read speech scores above 0.8, isolated words often 0.5, noise 0.2 to 0.8; it
    helps to reject noise together with voice activity, not alone. ``audio_samples`` are the samples
    (16 kHz) of this utterance that the text covers, ``elapsed_ms`` the time since the request. ``ended``: probability
    that a sentence ends after the last word, as the model hears it; None where it does not say.

    When ``error`` is set the worker failed on this request and ``text`` is what had been settled before.
    """

    request_id: int
    kind: Kind
    text: str
    audio_samples: int
    elapsed_ms: float
    confidence: float = 0.0
    ended: float | None = None
    error: AgentFaultError | None = None


OnResult = Callable[[Transcript], None]
"""Called on a worker thread, one call at a time per stream. Must return quickly and not raise."""


class ListenerStream(Protocol):
    """One session's ear. Every method returns at once and may be called from any thread."""

    def push(self, samples_16k: Samples16k) -> None:
        """Appends audio (float32[n], copied) to the current utterance."""
        ...

    def request(self, kind: Kind, request_id: int, *, commands: bool = False) -> None:
        """Asks for a transcript of everything pushed so far.

        ``commands``: a command to stop is to be expected, and what is nearly one is taken for it.

        A final is answered before any partial of any session. A partial gives way to a newer request of the
        same stream, a final that has not begun to a newer final, and is then not answered.
        """
        ...

    def reset(self) -> None:
        """Begins a new utterance. Once this returns, no answer about the old one will begin to arrive."""
        ...

    def close(self) -> None:
        """Ends the stream; like :meth:`reset`, and nothing can be asked any more."""
        ...


class Listener(Protocol):
    """Speech recognition for the whole process."""

    def open(self, on_result: OnResult) -> ListenerStream: ...

    def warm_up(self) -> None:
        """Runs the model until it is at full speed. Blocks, typically for a few hundred milliseconds."""
        ...

    def close(self) -> None:
        """Closes every stream and ends the workers. Blocks until they have stopped."""
        ...
