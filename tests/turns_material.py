"""Sounds for tests of the suite: tones instead of voices, made at once, with the names of the real material."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from duplex.benchmarks.turns.material import Material, Noise
from duplex.benchmarks.turns.play import Sound
from duplex.benchmarks.turns.sizes import QUICK, SuiteBench
from duplex.frames import SAMPLE_RATE_HZ, Samples
from duplex.recording import Span
from duplex.testing import tone


def said(name: str, *parts_ms: float) -> Sound:
    """A tone and a gap in turn, the lengths in ms; 60 ms before and 120 ms after, as the real ones have."""
    sound = [np.zeros(60 * SAMPLE_RATE_HZ // 1000, np.float32)]
    for index, length_ms in enumerate(parts_ms):
        n = round(length_ms * SAMPLE_RATE_HZ / 1000)
        sound.append(np.zeros(n, np.float32) if index % 2 else tone(length_ms / 1000.0)[:n])
    sound.append(np.zeros(120 * SAMPLE_RATE_HZ // 1000, np.float32))
    return Sound(name, np.concatenate(sound), Span(60.0, 60.0 + sum(parts_ms)), text=name)


class Tones:
    """Implements what the scenarios use of :class:`duplex.benchmarks.turns.material.Material`."""

    def question(self, k: int) -> Sound:
        return said(f"question {k}", 800.0 + 20.0 * (k % 5))

    def questions(self) -> tuple[Sound, ...]:
        return tuple(self.question(k) for k in range(5))

    follow_up = question

    def paused(self, k: int) -> Sound:
        return said(f"paused {k}", 600.0, 700.0, 600.0)

    um_pause = digits = paused

    def interruption(self, k: int) -> Sound:
        return said(f"interruption {k}", 1200.0 + 40.0 * (k % 3))

    def stop(self, k: int) -> Sound:
        return said(f"stop {k}", 700.0)

    def backchannel(self, k: int) -> Sound:
        return said(f"uh-huh {k}", 300.0)

    def monologue(self, k: int = 0) -> Sound:
        return said(f"monologue {k}", *([1500.0, 200.0] * 6), 1000.0)

    def noise_event(self, k: int) -> Noise:
        return Noise(f"cough {k}", "cough", tone(0.2, 400.0))

    def noise_bed(self, k: int, seconds: float = 60.0, snr_db: float = 7.5) -> Noise:
        return Noise(f"bed {k}", "bed", 0.0001 * np.ones(round(seconds * SAMPLE_RATE_HZ), np.float32))

    def room_tone(self, k: int, seconds: float, level_dbfs: float = -60.0) -> Samples:
        return 0.0005 * np.ones(round(seconds * SAMPLE_RATE_HZ), np.float32)

    def background_talker(self, k: int, seconds: float, level_db: float = -15.0) -> Samples:
        return tone(0.3, level_dbfs=-35.0)


def bench(door: Any, **changes: Any) -> SuiteBench:
    """A bench with tones, for quick runs."""
    return SuiteBench(door, cast(Material, Tones()), **{"seed": 1, "sizes": QUICK, **changes})
