"""The talker's contract: clauses in, speech out piece by piece, with the place of every word.

A :class:`Talker` is an engine loaded once per process. Each reply is one :class:`Utterance` on it:
``say`` its clauses in order as the thinker finishes them, then ``end``. Synthesis happens on the
engine's own thread; no method here blocks unless its docstring says so. Utterances of different
sessions take turns piece by piece, the one with the least speech so far first, so that a long reply
never delays another's first word.

All positions are samples at 24 kHz on the utterance's own axis: 0 is the reply's first sample.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from duplex.agent import Word
from duplex.errors import DuplexError
from duplex.frames import Samples


@dataclass(frozen=True, slots=True)
class Speech:
    """The next stretch of an utterance; it begins where the one before ended.

    ``samples``: float32[n] at 24 kHz, in [-1, 1]. ``words``: those that begin in this stretch (a word
    may end in the next one). ``clause``: the text of the clause that begins here, "" inside one.
    """

    samples: Samples
    pts: int
    words: tuple[Word, ...] = ()
    clause: str = ""

    @property
    def end_pts(self) -> int:
        return self.pts + len(self.samples)


class TalkSink(Protocol):
    """Receives one utterance, on the engine's thread; must not block. Ends with one done or error."""

    def on_speech(self, speech: Speech) -> None: ...

    def on_done(self) -> None: ...

    def on_error(self, error: DuplexError) -> None: ...


class Utterance(Protocol):
    """One reply being spoken."""

    def say(self, clause: str) -> None:
        """Queue the next clause. Raises AgentFaultError when far too many are waiting or after ``end``."""
        ...

    def end(self) -> None:
        """No more clauses: ``on_done`` follows the last speech. Idempotent."""
        ...

    def cancel(self) -> None:
        """Drop what is waiting and stop within a piece. After this returns the sink receives nothing
        more. Idempotent."""
        ...


class Talker(Protocol):
    """An engine, loaded and shared."""

    def begin(self, sink: TalkSink) -> Utterance: ...

    def warm_up(self) -> None:
        """Block until the engine has spoken once (to nobody)."""
        ...

    def close(self) -> None:
        """Cancel everything and end the engine's thread. Blocks until it has ended."""
        ...


class TalkGate:
    """Passes speech on while the utterance is live; cancelling is a line in time, as for a Thought."""

    def __init__(self, sink: TalkSink) -> None:
        self._sink = sink
        self._lock = threading.RLock()
        self._live = True
        self._over = threading.Event()

    @property
    def live(self) -> bool:
        return self._live

    def wait_over(self, timeout_s: float | None = None) -> bool:
        return self._over.wait(timeout_s)

    def speech(self, speech: Speech) -> bool:
        """Pass on; returns False when synthesis should stop."""
        with self._lock:
            if self._live and len(speech.samples):
                self._sink.on_speech(speech)
            return self._live

    def close(self, report: Callable[[TalkSink], None] | None = None) -> None:
        """End the utterance once, telling the sink through ``report`` if there is anything to tell."""
        with self._lock:
            if not self._live:
                return
            self._live = False
            if report is not None:
                report(self._sink)
        self._over.set()


@dataclass
class CollectingTalkSink:
    """A sink that keeps everything; for scripts, tests and benchmarks."""

    speeches: list[Speech] = field(default_factory=list)
    done: bool = False
    error: DuplexError | None = None

    @property
    def samples(self) -> Samples:
        parts = [s.samples for s in self.speeches]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    @property
    def words(self) -> tuple[Word, ...]:
        return tuple(w for s in self.speeches for w in s.words)

    def on_speech(self, speech: Speech) -> None:
        self.speeches.append(speech)

    def on_done(self) -> None:
        self.done = True

    def on_error(self, error: DuplexError) -> None:
        self.error = error
