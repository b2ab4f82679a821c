"""The ear: what was heard and what we played stay beside each other, to the sample."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from duplex.frames import PACKET_SAMPLES, Samples
from duplex.thinker_talker.ear import Ear, EarWorker, Window
from duplex.thinker_talker.echo_score import EchoEstimate
from duplex.thinker_talker.gain import VoiceGain
from duplex.thinker_talker.silero import SileroModel


class NoVoice:
    def open(self) -> NoVoice:
        return self

    def push(self, window: Samples) -> list[float]:
        return [0.0]


class Beside:
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[Samples, Samples]] = []

    def push(self, heard: Samples, played: Samples, *, voice: bool) -> EchoEstimate:
        self.shown.append((heard, played))
        return EchoEstimate(0.0, None, -120.0)


def test_our_own_voice_lies_beside_its_echo_also_after_we_were_silent() -> None:
    rng = np.random.default_rng(0)
    ear = Ear(cast(EarWorker, None), cast(SileroModel, NoVoice()), lambda window: None)
    beside = Beside()
    ear._echo = cast(Any, beside)
    pts = 0
    for packets, speaks in ((7, False), (30, True), (25, False), (11, True), (1, False), (20, True)):
        for _ in range(packets):
            played = rng.normal(0, 0.1 * speaks, PACKET_SAMPLES).astype(np.float32)
            ear._work(pts, played, played if speaks else None)
            pts += PACKET_SAMPLES
    assert len(beside.shown) > 50
    for heard, played in beside.shown:
        np.testing.assert_allclose(played, heard, atol=1e-6)
    assert sum(bool(played.any()) for _, played in beside.shown) > 30


class Loudness:
    """A detector that finds a voice in everything, and keeps how loud it was shown it."""

    def __init__(self) -> None:
        self.peaks: list[float] = []

    def open(self) -> Loudness:
        return self

    def push(self, window: Samples) -> list[float]:
        self.peaks.append(float(np.abs(window).max()))
        return [0.9]


def test_a_quiet_line_is_louder_for_the_detector_and_for_nothing_else() -> None:
    detector, told = Loudness(), list[Window]()
    ear = Ear(cast(EarWorker, None), cast(SileroModel, detector), cast(Any, told.append), VoiceGain())
    quiet = np.full(PACKET_SAMPLES, 0.01, dtype=np.float32)  # -40 dBFS
    for packet in range(150):
        ear._work(packet * PACKET_SAMPLES, quiet, None)
    assert detector.peaks[-1] > 5 * detector.peaks[0]
    assert {round(window.level_dbfs) for window in told[2:]} == {-40}
    assert np.abs(told[-1].samples_16k).max() < 0.011
