"""The loop of the ``moshi`` package's own server: ``MimiModel.encode`` → ``LMGen.step`` → ``MimiModel.decode``.

As ``moshi.server`` runs it, frame by frame, results fetched to the host each step; with its own CUDA graphs where
there is CUDA. Its batch size is fixed when streaming starts, and its server starts it at 1.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from duplex.thinker_talker.native.device.part_times import ClockPartTimes, CudaPartTimes, PartTimes


class StockLoop:
    """``mimi`` and ``lm``: the package's models, used as they are and left as they were (:meth:`close`)."""

    def __init__(self, mimi: Any, lm: Any, batch_size: int, device: torch.device) -> None:
        from moshi.models.lm import LMGen

        self._mimi = mimi
        self._lm_gen = LMGen(lm)
        self._device = device
        self._times: PartTimes = CudaPartTimes() if device.type == "cuda" else ClockPartTimes(time.perf_counter)
        self._streaming = ExitStack()
        self._streaming.enter_context(mimi.streaming(batch_size))
        self._streaming.enter_context(self._lm_gen.streaming(batch_size))

    def step(self, samples: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32] | None, dict[str, float]]:
        """float32[batch, frame] in; float32[batch, frame] out, ``None`` while the delays fill; seconds by part."""
        with torch.no_grad():
            self._times.begin()
            given = torch.from_numpy(samples).to(self._device)[:, None]
            self._times.end_of("copy")
            codes = self._mimi.encode(given)
            self._times.end_of("encode")
            tokens = self._lm_gen.step(codes)
            self._times.end_of("model")
            if tokens is None:
                return None, {}
            sound = self._mimi.decode(tokens[:, 1:])
            self._times.end_of("decode")
            out = sound.cpu().numpy()[:, 0]
            tokens[:, 0, 0].cpu()
            self._times.end_of("copy")
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return out, self._times.read()

    def close(self) -> None:
        self._streaming.close()
