"""WebRTC's echo canceller (AEC3), for lines that do not cancel echo themselves.

The library is ``livekit`` (Apache-2.0), whose wheel carries WebRTC's AudioProcessingModule; nothing of its
rooms or network is used. The canceller finds the delay by itself, up to half a second, and drifts with it.
Noise suppression, gain control and its high pass stay off: they change a voice that is judged by models which
have learnt from voices as they are.

What it costs: 25 MB and 0.1 s once a process, and 1 % of a core a call. The library keeps a few idle threads
of its own, and ends the process with SIGTERM should its native code panic.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from duplex.errors import ConfigError, MissingDependencyError, TransportError
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Samples, ms_to_samples

_BLOCK_SAMPLES = SAMPLE_RATE_HZ // 100  # the module takes 10 ms at a time
_FULL_SCALE = 32767.0

Pcm = npt.NDArray[np.int16]


class WebRtcEchoCanceller:
    """Implements :class:`duplex.echo.EchoCanceller`. For one thread at a time; two calls need two of these.

    Raises ``MissingDependencyError`` when ``livekit`` is not installed, ``ConfigError`` when it does not run here.
    """

    latency_samples = ms_to_samples(9.0)  # of its filter banks; measured

    def __init__(self) -> None:
        self._rtc = _library()
        self._module: Any = None
        self.reset()

    def reset(self) -> None:
        """Starts afresh: the next echo's path has to be learnt again (a few 100 ms of our own voice)."""
        try:
            self._module = self._rtc.AudioProcessingModule(echo_cancellation=True)
        except ImportError as error:  # the wheel is there; its native part, loaded only now, does not run here
            raise ConfigError(f"The echo canceller cannot run here: {error}. Set echo_canceller to 'off'.") from error

    def process(self, heard: Samples, reference: Samples) -> Samples:
        """float32[n * 480] at 24 kHz, heard, and as much that was played meanwhile; returns float32[n * 480].

        About 0.2 ms a packet. Raises ``ValueError`` for other lengths, ``TransportError`` if the module fails.
        """
        if heard.shape != reference.shape or heard.ndim != 1 or len(heard) % PACKET_SAMPLES:
            raise ValueError(
                f"expected two of float32[n * {PACKET_SAMPLES}], got {list(heard.shape)} and {list(reference.shape)}"
            )
        near, far = _to_int16(heard), _to_int16(reference)
        try:
            for start in range(0, len(heard), _BLOCK_SAMPLES):
                block = slice(start, start + _BLOCK_SAMPLES)
                self._module.process_reverse_stream(self._frame(far[block]))
                frame = self._frame(near[block])
                self._module.process_stream(frame)
                near[block] = frame.data
        except RuntimeError as error:
            raise TransportError(f"The echo canceller failed: {error}") from error
        return near.astype(np.float32) / np.float32(_FULL_SCALE)

    def _frame(self, block: Pcm) -> Any:
        return self._rtc.AudioFrame(block.tobytes(), SAMPLE_RATE_HZ, 1, _BLOCK_SAMPLES)


def _to_int16(samples: Samples) -> Pcm:
    pcm: Pcm = np.rint(np.clip(samples, -1.0, 1.0) * _FULL_SCALE).astype(np.int16)
    return pcm


def _library() -> ModuleType:
    try:
        from livekit import rtc
    except ImportError as error:
        raise MissingDependencyError("livekit", "echo") from error
    return rtc
