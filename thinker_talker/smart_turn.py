"""End of turn from how it sounds: Smart Turn v3, a small Whisper encoder with one output.

It hears up to 8 s that *end now* (padded with silence on the left, so the end is always at the same
place) and says how likely the speaker has finished. Ask when the voice has paused, not per frame.

The features are Whisper's: waveform normalised to zero mean and unit variance, 25 ms Hann windows
every 10 ms, 80 Slaney mel bands, log10, the top 8 decades, scaled to about [-1, 1]. They follow
``WhisperFeatureExtractor(chunk_length=8)(…, do_normalize=True)`` of Hugging Face transformers, in
float32 and without that dependency.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .onnx_session import open_session

SMART_TURN_RATE_HZ = 16_000
HEARD_SAMPLES = 8 * SMART_TURN_RATE_HZ

_FFT = 400
_HOP = 160
_MELS = 80
_FRAMES = HEARD_SAMPLES // _HOP  # 800
# In one piece the product with the mel bands is large enough for OpenBLAS to wake its other threads, which then spin
# for 100 ms on the cores that the answer needs just then. That begins at 262,144 multiplications; this is half of them.
_ROWS = 8

Floats = npt.NDArray[np.float32]


class SmartTurn:
    """The end-of-turn model, loaded once and shared. Safe from any thread; the call blocks, so not on a loop."""

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        self._session = open_session(path, threads=threads)

    def probability_complete(self, samples_16k: Floats) -> float:
        """How likely (0 to 1) the speaker of ``samples_16k`` (float32[n] at 16 kHz, n ≥ 1) has finished.

        Only the last 8 s count. Give it the turn up to now, its pauses included.
        """
        features = log_mel(left_padded(samples_16k))
        (probability,) = self._session.run(None, {"input_features": features[np.newaxis]})
        return float(probability[0, 0])

    def warm_up(self) -> None:
        """Runs the network once on silence, so that the first turn does not pay for its allocations."""
        self.probability_complete(np.zeros(_HOP, dtype=np.float32))


def left_padded(samples_16k: Floats) -> Floats:
    """The last 8 s of ``samples_16k``, with silence before it if it is shorter: float32[128000]."""
    if samples_16k.ndim != 1 or not len(samples_16k):
        raise ValueError(f"expected float32[n] at 16 kHz with n >= 1, got shape {list(samples_16k.shape)}")
    heard = np.zeros(HEARD_SAMPLES, dtype=np.float32)
    last = samples_16k[-HEARD_SAMPLES:]
    heard[-len(last) :] = last
    return heard


def log_mel(samples_16k: Floats) -> Floats:
    """Whisper's features of float32[128000]: float32[80, 800]."""
    assert samples_16k.shape == (HEARD_SAMPLES,)
    normal = (samples_16k - samples_16k.mean()) / np.sqrt(samples_16k.var() + 1e-7)
    padded = np.pad(normal, _FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::_HOP][:_FRAMES]  # the 801st is not used
    spectrum = np.fft.rfft(frames * _hann(), axis=-1)  # complex64[800, 201]
    power = spectrum.real**2 + spectrum.imag**2
    bands = (power.reshape(-1, _ROWS, power.shape[-1]) @ _mel_filters()).reshape(_FRAMES, _MELS)
    logs = np.log10(np.maximum(bands, 1e-10)).T  # [80, 800]
    logs = np.maximum(logs, logs.max() - 8.0)
    return np.ascontiguousarray((logs + 4.0) / 4.0, dtype=np.float32)


@cache
def _hann() -> Floats:
    return np.hanning(_FFT + 1)[:-1].astype(np.float32)


@cache
def _mel_filters() -> Floats:
    """Slaney's mel bands (Auditory Toolbox, 1998), each of unit area: float32[201, 80].

    The scale is linear below 1 kHz (200/3 Hz a mel) and logarithmic above (27 mels for a factor 6.4).
    """
    log_step = np.log(6.4) / 27.0
    top_mel = 15.0 + np.log(SMART_TURN_RATE_HZ / 2 / 1000.0) / log_step
    mels = np.linspace(0.0, top_mel, _MELS + 2)
    edges_hz = np.where(mels < 15.0, mels * 200.0 / 3.0, 1000.0 * np.exp(log_step * (mels - 15.0)))
    bins_hz = np.linspace(0.0, SMART_TURN_RATE_HZ / 2, _FFT // 2 + 1)
    rising = (bins_hz[:, None] - edges_hz[:-2]) / (edges_hz[1:-1] - edges_hz[:-2])
    falling = (edges_hz[2:] - bins_hz[:, None]) / (edges_hz[2:] - edges_hz[1:-1])
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return np.asarray(triangles * 2.0 / (edges_hz[2:] - edges_hz[:-2]), dtype=np.float32)
