"""Voice activity: Silero VAD v5/v6, one probability for every 32 ms of 16 kHz audio.

The network is recurrent and looks 64 samples back: each call takes the last 64 samples of the window
before, then the 512 new ones, and a state of float32[2, 1, 128] that it returns renewed. Leaving the
64 samples out runs without an error and hears nothing (a mean of 0.0007 over a reading that scores 0.47),
which is why the state lives here, in one typed object, and not with the caller.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .onnx_session import open_session

SILERO_RATE_HZ = 16_000
WINDOW_SAMPLES = 512
CONTEXT_SAMPLES = 64

_RATE = np.array(SILERO_RATE_HZ, dtype=np.int64)


@dataclass(slots=True)
class SileroState:
    """What one stream remembers between windows. ``context``: float32[1, 64]; ``hidden``: float32[2, 1, 128]."""

    context: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((1, CONTEXT_SAMPLES), dtype=np.float32))
    hidden: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((2, 1, 128), dtype=np.float32))


class SileroModel:
    """The weights, loaded once and shared by every stream of the process. Safe from any thread."""

    def __init__(self, path: Path) -> None:
        self._session = open_session(path, threads=1)

    def probability(self, window: npt.NDArray[np.float32], state: SileroState) -> float:
        """Speech probability of ``window`` (float32[512] at 16 kHz); renews ``state``. About 0.25 ms."""
        samples = np.concatenate((state.context, window.reshape(1, WINDOW_SAMPLES)), axis=1)
        output, hidden = self._session.run(None, {"input": samples, "state": state.hidden, "sr": _RATE})
        state.context = samples[:, -CONTEXT_SAMPLES:]
        state.hidden = hidden
        return float(output[0, 0])

    def open(self) -> SileroStream:
        return SileroStream(self)

    def warm_up(self) -> None:
        """Runs the network once, so that the first caller does not pay for its allocations."""
        self.probability(np.zeros(WINDOW_SAMPLES, dtype=np.float32), SileroState())


class SileroStream:
    """One person's audio, in pieces of any length. The answer does not depend on how it was cut up."""

    def __init__(self, model: SileroModel) -> None:
        self._model = model
        self._state = SileroState()
        self._pending = np.zeros(0, dtype=np.float32)  # shorter than a window

    def push(self, samples_16k: npt.NDArray[np.float32]) -> list[float]:
        """Speech probability, in order, for each window that ``samples_16k`` (float32[n]) completes."""
        if samples_16k.ndim != 1 or samples_16k.dtype != np.float32:
            raise ValueError(f"expected float32[n] at 16 kHz, got {samples_16k.dtype}{list(samples_16k.shape)}")
        pending = np.concatenate((self._pending, samples_16k))
        whole = len(pending) - len(pending) % WINDOW_SAMPLES
        self._pending = pending[whole:]
        return [
            self._model.probability(pending[start : start + WINDOW_SAMPLES], self._state)
            for start in range(0, whole, WINDOW_SAMPLES)
        ]

    @property
    def pending_samples(self) -> int:
        """Samples pushed that no probability covers yet (0 to 511)."""
        return len(self._pending)

    def reset(self) -> None:
        """Forgets everything heard, as if newly opened."""
        self._state = SileroState()
        self._pending = np.zeros(0, dtype=np.float32)
