"""The ear: every session's voice activity on one worker thread.

``hear`` is called from the session's step and only queues; the worker resamples 24 kHz to 16 kHz, runs
Silero on each 32 ms window, asks how much of it is our own echo, and calls back. One thread serves all
sessions: a window costs 0.25 ms, and as much again while our voice echoes in it, so a core hears about a
hundred people.
"""

from __future__ import annotations

import logging
import math
import queue
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from duplex.errors import AgentFaultError
from duplex.frames import SAMPLE_RATE_HZ, Samples
from duplex.rates import StreamResampler

from .echo_score import EchoScore
from .gain import VoiceGain
from .silero import SILERO_RATE_HZ, WINDOW_SAMPLES, SileroModel
from .supervised import SupervisedThread

log = logging.getLogger("duplex.ear")

WINDOW_PTS = WINDOW_SAMPLES * SAMPLE_RATE_HZ // SILERO_RATE_HZ  # 768 samples at 24 kHz
_QUEUE_LIMIT = 4096  # frames waiting over all sessions; more means the machine does not keep up
_OURS = 0.4  # a window that our own voice explains to this share says nothing about theirs
_MOST_FAULTS = 3  # of one ear; then the fault is in it, and its session cannot go on
_MAYBE_VOICE = 0.3  # quieter hints of a voice than this are not worth explaining as echo


@dataclass(frozen=True, slots=True)
class Window:
    """32 ms that were listened to, ending at ``end_pts`` (24 kHz samples).

    ``samples_16k``: float32[512]; ``probability`` of voice; ``level_dbfs``: RMS. ``echo``: the share of the last
    256 ms' energy that is our own voice come back, 0 to 1; ``line_echoes``: it does, or may, on this line.
    """

    end_pts: int
    samples_16k: Samples
    probability: float
    level_dbfs: float
    echo: float = 0.0
    line_echoes: bool = False


OnWindow = Callable[[Window | AgentFaultError], None]


class Ear:
    """One session's place at the worker. Not for use after ``close``."""

    def __init__(
        self, worker: EarWorker, model: SileroModel, on_window: OnWindow, gain: VoiceGain | None = None
    ) -> None:
        self._worker, self._model, self._on_window = worker, model, on_window
        self._gain = gain
        self.closed = False
        self.dropped_frames = 0
        self._faults = 0
        self._begin()

    def _begin(self) -> None:
        """Listens from here, and knows of nothing before."""
        self._resampler, self._reference_resampler = _to_16k(), _to_16k()
        self._stream = self._model.open()
        self._echo = EchoScore()
        self._pending = np.zeros(0, dtype=np.float32)
        self._reference = np.zeros(0, dtype=np.float32)
        self._reference_silent = False
        self._end_pts: int | None = None

    def hear(self, pts: int, samples: Samples, reference: Samples | None = None) -> None:
        """Queues float32[n] at 24 kHz, and ``reference``, as long: what we played meanwhile (None: nothing).

        When the worker is hopelessly behind, the frame is dropped and counted.
        """
        if not self._worker.put(self, pts, samples, reference):
            self.dropped_frames += 1

    def close(self) -> None:
        self.closed = True

    def _failed(self, error: Exception) -> None:
        """On the worker: tells it, and begins anew; an ear that fails again and again is ``closed`` when it tells."""
        self._faults += 1
        if self._faults >= _MOST_FAULTS:
            self.closed = True
        else:
            self._begin()
        self._on_window(AgentFaultError(f"Voice activity detection failed: {error}"))

    def _work(self, pts: int, samples: Samples, reference: Samples | None) -> None:
        """On the worker: everything that these samples complete."""
        if self._end_pts is None:
            self._end_pts = pts
        heard = self._resampler.push(samples)
        self._pending = np.concatenate((self._pending, heard))
        self._reference = np.concatenate((self._reference, self._referred(reference, len(samples), len(heard))))
        while len(self._pending) >= WINDOW_SAMPLES:
            window, self._pending = self._pending[:WINDOW_SAMPLES], self._pending[WINDOW_SAMPLES:]
            played, self._reference = self._reference[:WINDOW_SAMPLES], self._reference[WINDOW_SAMPLES:]
            [probability] = self._stream.push(window if self._gain is None else self._gain.apply(window))
            echo = self._echo.push(window, played, voice=probability >= _MAYBE_VOICE)
            self._end_pts += WINDOW_PTS
            power = float(np.dot(window, window)) / WINDOW_SAMPLES
            level_dbfs = 10.0 * math.log10(power + 1e-12)
            if self._gain is not None and echo.score < _OURS:
                self._gain.learn(level_dbfs, probability)
            self._on_window(Window(self._end_pts, window, probability, level_dbfs, echo.score, echo.line_echoes))

    def _referred(self, reference: Samples | None, n_samples: int, n_heard: int) -> Samples:
        """What we played, beside what was heard to the sample: through the same filter at the same time.

        While we are silent, and the filter has nothing left of us, it is not run: that would give zeros.
        """
        if reference is not None and reference.any():
            self._reference_silent = False
        elif self._reference_silent:
            return np.zeros(n_heard, dtype=np.float32)
        else:
            self._reference_silent = True  # this packet flushes the filter, which is far shorter
        return self._reference_resampler.push(np.zeros(n_samples, np.float32) if reference is None else reference)


def _to_16k() -> StreamResampler:
    return StreamResampler(SAMPLE_RATE_HZ, SILERO_RATE_HZ)


class EarWorker:
    """The thread. Create once per process; ``close`` joins it. ``gain``: ears that hear a quiet line louder."""

    def __init__(self, model: SileroModel, *, gain: bool = False) -> None:
        self._model, self._with_gain = model, gain
        self._queue: queue.Queue[tuple[Ear, int, Samples, Samples | None] | None] = queue.Queue(_QUEUE_LIMIT)
        self._thread = SupervisedThread(self._run, "duplex-ear")
        self._thread.start()

    def open(self, on_window: OnWindow) -> Ear:
        """A new ear; ``on_window`` is called on the worker's thread and must return quickly."""
        return Ear(self, self._model, on_window, VoiceGain() if self._with_gain else None)

    def put(self, ear: Ear, pts: int, samples: Samples, reference: Samples | None = None) -> bool:
        try:
            self._queue.put_nowait((ear, pts, samples, reference))
        except queue.Full:
            return False
        return True

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            ear, pts, samples, reference = job
            try:
                if not ear.closed:
                    ear._work(pts, samples, reference)
            except Exception as error:
                log.exception("voice activity failed")
                ear._failed(error)
            del job, ear, samples, reference  # while waiting, keep no session alive
