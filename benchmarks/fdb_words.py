"""Words and voiced stretches of an agent's output, for scores that need them.

``output.json`` as Full-Duplex-Bench's ``get_transcript/asr.py`` writes it is taken as it is. Where there is none, the
local models make one: Silero finds the voiced stretches, Moonshine their text, and the words are spread over their
stretch by their length, since Moonshine gives no times. So the first word begins where the voice begins and the last
one ends where it ends, which is what the turn rule and the latency use; what lies between is an estimate.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from duplex.benchmarks.fdb_layout import WORD_EDGE_S, Sample, SampleError, duration_s, read_json, read_sound
from duplex.benchmarks.fdb_metrics import SpokenWord, Stretch
from duplex.frames import Samples
from duplex.weights import ModelStore

RATE_HZ = 16_000
_THRESHOLD, _RELEASE = 0.5, 0.35
_MIN_SPEECH_S, _MIN_SILENCE_S, _PAD_S = 0.25, 0.1, 0.03
_WINDOW = 512
_JOIN_S, _MOST_S = 0.6, 12.0  # what is recognised in one piece: Moonshine is at its best between 1 and 15 s
MADE_BY = "duplex: voiced stretches by Silero, text by Moonshine Tiny, words spread over their stretch"


def speech_stretches(probabilities: Sequence[float], n_samples: int) -> list[Stretch]:
    """Silero's stretches of speech from its probability for each 512 samples at 16 kHz; seconds.

    The rule of ``silero_vad.get_speech_timestamps`` with its defaults, which is what Full-Duplex-Bench uses: speech
    from 0.5 on, until 100 ms below 0.35; nothing under 250 ms; 30 ms added at both ends, or half the gap.
    """
    length_s, step_s = n_samples / RATE_HZ, _WINDOW / RATE_HZ
    found: list[Stretch] = []
    start: float | None = None
    quiet_since: float | None = None
    for index, probability in enumerate(probabilities):
        at_s = index * step_s
        if probability >= _THRESHOLD:
            quiet_since = None
            start = at_s if start is None else start
        elif probability < _RELEASE and start is not None:
            quiet_since = at_s if quiet_since is None else quiet_since
            if at_s - quiet_since >= _MIN_SILENCE_S:
                if quiet_since - start > _MIN_SPEECH_S:
                    found.append((start, quiet_since))
                start = quiet_since = None
    if start is not None and length_s - start > _MIN_SPEECH_S:
        found.append((start, length_s))
    return _padded(found, length_s)


def _padded(found: Sequence[Stretch], length_s: float) -> list[Stretch]:
    padded = []
    for index, (start, end) in enumerate(found):
        before = start - found[index - 1][1] if index else 2 * start
        after = found[index + 1][0] - end if index + 1 < len(found) else 2 * (length_s - end)
        padded.append((start - min(_PAD_S, before / 2), end + min(_PAD_S, after / 2)))
    return padded


class LocalEar:
    """The embedded default's voice detector and listener, loaded at first use. Raises ``WeightsError`` without them."""

    def __init__(self, store: ModelStore | None = None) -> None:
        self._store = store or ModelStore()
        self._silero: Any = None
        self._moonshine: Any = None

    def stretches(self, samples: Samples, rate_hz: int) -> list[Stretch]:
        """Voiced stretches of float32[n], seconds."""
        from duplex.thinker_talker.silero import SileroModel

        if self._silero is None:
            self._silero = SileroModel(self._store.path("silero-vad") / "silero_vad.onnx")
        sound = _at_16k(samples, rate_hz)
        stream = self._silero.open()
        return speech_stretches([*stream.push(sound), *stream.push(_rest(len(sound)))], len(sound))

    def words(self, samples: Samples, rate_hz: int, from_s: float = 0.0) -> list[SpokenWord]:
        """Words of float32[n] with estimated times; of what comes after ``from_s`` only, if that is given."""
        from duplex.thinker_talker.moonshine import MoonshineModel

        if self._moonshine is None:
            self._moonshine = MoonshineModel(self._store.path("moonshine-tiny-en"))
        sound = _at_16k(samples, rate_hz)[round(from_s * RATE_HZ) :]
        found: list[SpokenWord] = []
        for group in grouped(self.stretches(sound, RATE_HZ)):
            first, last = round(group[0][0] * RATE_HZ), round(group[-1][1] * RATE_HZ)
            text = self._moonshine.recognize(sound[first:last]).text
            found += spread(text, [(start + from_s, end + from_s) for start, end in group])
        return found


def grouped(stretches: Sequence[Stretch]) -> list[list[Stretch]]:
    """Neighbours that are best recognised in one piece; a stretch that is too long for one is cut evenly."""
    groups: list[list[Stretch]] = []
    for start, end in stretches:
        parts = max(1, -int(-(end - start) // _MOST_S))
        edges = [start + (end - start) * k / parts for k in range(parts + 1)]
        for piece in itertools.pairwise(edges):
            near = bool(groups) and parts == 1 and piece[0] - groups[-1][-1][1] <= _JOIN_S
            if near and piece[1] - groups[-1][0][0] <= _MOST_S:
                groups[-1].append(piece)
            else:
                groups.append([piece])
    return groups


def spread(text: str, stretches: Sequence[Stretch]) -> list[SpokenWord]:
    """The words of ``text`` over the voiced time of ``stretches``, each as long as its letters; times as estimates."""
    words = text.split()
    voiced_s = sum(end - start for start, end in stretches)
    letters = sum(len(word) for word in words)
    found, done = [], 0
    for word in words:
        begin, done = done, done + len(word)
        start = _place(voiced_s * begin / letters, stretches, beginning=True)
        found.append(SpokenWord(word, start, _place(voiced_s * done / letters, stretches, beginning=False)))
    return found


def _place(offset_s: float, stretches: Sequence[Stretch], *, beginning: bool) -> float:
    """Where ``offset_s`` of voiced time lies; at an edge, a beginning is after the pause and an end before it."""
    for start, end in stretches[:-1]:
        length = end - start
        if offset_s < length - 1e-9 or (not beginning and offset_s <= length + 1e-9):
            return start + min(offset_s, length)
        offset_s -= length
    start, end = stretches[-1]
    return min(start + max(0.0, offset_s), end)


# --- output.json ----------------------------------------------------------------------------------------------


def read_words(sample: Sample) -> list[SpokenWord]:
    """The chunks of ``output.json``, checked against the output. Raises :class:`SampleError`."""
    found = read_json(sample.words)
    chunks = found.get("chunks") if isinstance(found, dict) else None
    if not isinstance(chunks, list):
        raise SampleError(sample.words, "is missing; it should be a list of words", "chunks")
    length_s = duration_s(sample.output)
    return [_word(sample, index, chunk, length_s) for index, chunk in enumerate(chunks)]


def _word(sample: Sample, index: int, chunk: Any, length_s: float) -> SpokenWord:
    field = f"chunks[{index}].timestamp"
    edges = chunk.get("timestamp") if isinstance(chunk, dict) else None
    if not isinstance(edges, list) or len(edges) != 2 or not isinstance(edges[0], (int, float)):
        raise SampleError(sample.words, "should be [start, end] in seconds", field)
    if edges[1] is not None and not isinstance(edges[1], (int, float)):
        raise SampleError(sample.words, f"ends at {edges[1]!r}, which is not a number", field)
    last = float(edges[0] if edges[1] is None else edges[1])
    if last > length_s + WORD_EDGE_S:
        raise SampleError(sample.words, f"ends at {last:g} s, but {sample.output.name} is {length_s:.2f} s long", field)
    return SpokenWord(str(chunk.get("text", "")), float(edges[0]), None if edges[1] is None else float(edges[1]))


def make_words(sample: Sample, ear: LocalEar, from_s: float = 0.0) -> list[SpokenWord]:
    """Listens to the output and writes ``output.json`` in the original's format, with a note of who made it."""
    words = ear.words(*read_sound(sample.output), from_s)
    chunks = [{"text": word.text, "timestamp": [round(word.start_s, 3), round(word.end_s or 0.0, 3)]} for word in words]
    whole = {"text": " ".join(word.text for word in words), "chunks": chunks, "made_by": MADE_BY}
    write_text(sample.words, json.dumps(whole, indent=4, ensure_ascii=False) + "\n")
    return words


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or none."""
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(text, "utf-8")
    os.replace(partial, path)


def _at_16k(samples: Samples, rate_hz: int) -> Samples:
    if rate_hz == RATE_HZ:
        return samples
    resampled: Samples = soxr.resample(samples, rate_hz, RATE_HZ).astype(np.float32)
    return resampled


def _rest(n_samples: int) -> Samples:
    """Silence that completes the last window."""
    return np.zeros(-n_samples % _WINDOW, dtype=np.float32)
