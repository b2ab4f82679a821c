"""Changing the number of codebooks in a call makes no click: measured where one would show, and where one is made."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from duplex.codecs.mimi import MimiCodec, load
from duplex.codecs.mimi_seam import Seams, measure

FRAME, RATE = 1920, 24_000
ROWS, FRAMES = 8, 24


@cache
def codec(smooth: bool) -> MimiCodec:
    """``smooth``: with decoder kernels that rise and fall like a window, so that neighbouring samples are close, as in
    speech, and a step stands out. Other random decoders make noise, in which each sample is a step."""
    torch.set_num_threads(1)
    loaded = load({"config": "tiny", "codebooks": 32, "seed": 1})
    if not smooth:
        return loaded
    random = torch.Generator().manual_seed(1)
    for module in loaded.model.decoder.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            n = module.kernel_size[0]
            window = torch.sin(torch.pi * (torch.arange(n) + 0.5) / n) ** 2
            mix = torch.randn(module.weight.shape[:2], generator=random) / module.in_channels**0.5
            sums_to = 1.0 if isinstance(module, nn.Conv1d) else float(module.stride[0])
            module.weight.data = mix[..., None] * window * sums_to / window.sum()
    return MimiCodec(loaded.model, 32)


@cache
def decoded(smooth: bool, *counts: int) -> np.ndarray:
    """[ROWS, FRAMES · FRAME] of the same codes, frame i with ``counts[i mod len]`` codebooks."""
    mimi = codec(smooth)
    noise = 0.1 * torch.randn(ROWS, FRAMES * FRAME, generator=torch.Generator().manual_seed(2))
    everyone = torch.ones(ROWS, dtype=torch.bool)
    codes = mimi.encode_frames(mimi.new_state(ROWS), noise, everyone)
    state = mimi.new_state(ROWS)
    frames = [
        mimi.decode(state, codes[:, i], everyone, torch.full((ROWS,), counts[i % len(counts)])) for i in range(FRAMES)
    ]
    return torch.cat(frames, 1).numpy()


def seams_of(samples: np.ndarray) -> Seams:
    return measure(samples, range(2 * FRAME, FRAMES * FRAME, FRAME), RATE)


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("counts", [(1, 32), (8, 32), (4, 8), (1, 2)])
def test_a_change_stands_out_no_more_than_a_frame_s_boundary_does_anyway(counts: tuple[int, int], smooth: bool) -> None:
    changing = decoded(smooth, *counts)
    steady = [decoded(smooth, count) for count in counts]
    assert all(np.abs(changing - constant).max() > 1e-3 for constant in steady), "the count changes nothing"
    seams = seams_of(changing)
    assert len(seams.to_jumps) == ROWS * (FRAMES - 2)
    assert min(seams.excess(seams_of(constant)) for constant in steady) < 1.25
    if smooth:
        assert np.percentile(seams.to_jumps, 99) < 3.0
        assert seams.to_level.max() < 0.05


def test_the_measure_sees_the_click_of_two_decodings_spliced() -> None:
    spliced = decoded(True, 1).copy().reshape(ROWS, FRAMES, FRAME)
    spliced[:, ::2] = decoded(True, 32).reshape(ROWS, FRAMES, FRAME)[:, ::2]
    seams = seams_of(spliced.reshape(ROWS, -1))
    assert np.median(seams.to_jumps) > 100
    assert np.median(seams.to_level) > 0.1


def test_a_step_in_a_tone_is_measured_as_one() -> None:
    t = np.arange(RATE) / RATE
    tone = 0.5 * np.sin(2 * np.pi * 200 * t)
    assert measure(tone, [12_000], RATE).to_jumps[0] < 1.5
    stepped = tone.copy()
    stepped[12_000:] += 0.2
    seam = measure(stepped, [12_000], RATE)
    assert seam.to_jumps[0] > 5
    assert seam.to_level[0] == pytest.approx((0.2 + 0.026) / np.sqrt(np.mean(stepped[11_760:12_240] ** 2)), rel=0.02)
    assert measure(np.zeros(RATE), [12_000], RATE).to_jumps[0] == 0
    with pytest.raises(ValueError, match="10 ms"):
        measure(tone, [10], RATE)
