"""Voices for tests: what a person says, spoken by Piper; what the agent says, written down by Moonshine."""

from __future__ import annotations

from pathlib import Path

import soxr

from duplex.frames import SAMPLE_RATE_HZ, Samples
from duplex.thinker_talker.moonshine import MoonshineModel
from duplex.thinker_talker.piper import PiperTalker
from duplex.thinker_talker.talker import CollectingTalkSink
from duplex.weights import ModelStore


class Voice:
    def __init__(self, models: ModelStore) -> None:
        self._piper: Path = models.path("piper-joe") / "en_US-joe-medium.onnx"
        self._moonshine = MoonshineModel(models.path("moonshine-tiny-en"))

    def say(self, text: str) -> Samples:
        """``text`` as speech: float32[n] at 24 kHz."""
        talker, sink = PiperTalker(self._piper), CollectingTalkSink()
        try:
            utterance = talker.begin(sink)
            utterance.say(text)
            utterance.end()
            assert utterance.wait_over(60)
        finally:
            talker.close()
        return sink.samples

    def write_down(self, samples: Samples) -> str:
        """What Moonshine makes of float32[n] at 24 kHz."""
        return self._moonshine.recognize(soxr.resample(samples, SAMPLE_RATE_HZ, 16_000)).text
