"""Speech made or changed here: synthetic sentences, pauses of a known length, people in the next room."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soxr

from duplex.benchmarks.stimuli import LEVEL_DBFS, Stimulus, filtered, pauses_in, to_voice
from duplex.benchmarks.turns import espeak_process
from duplex.errors import DuplexError
from duplex.frames import SAMPLE_RATE_HZ, Samples, ms_to_samples
from duplex.recording import normalised, voiced_extent, window_levels_dbfs

_FADE_MS = 12.0


def espeak(text: str, voice: str, words_per_minute: int = 165, pitch: int = 50) -> Samples:
    """``text`` as eSpeak NG says it, in a process of its own: float32[n] at 24 kHz, −20 dBFS, cut to its voice.

    The library and its data come with ``espeakng-loader``. Raises ``DuplexError`` with what to install, or with
    what eSpeak NG says about the voice.
    """
    try:
        loader = importlib.import_module("espeakng_loader")
    except ImportError as error:
        raise DuplexError("eSpeak NG is not installed. Run: pip install 'duplex-runtime[bench]'") from error
    command = [sys.executable, "-I", "-S", str(Path(espeak_process.__file__))]
    command += [loader.get_library_path(), loader.get_data_path(), voice, str(words_per_minute), str(pitch)]
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=False, timeout=60)
    if done.returncode != 0 or not done.stdout:
        reason = done.stderr.decode(errors="replace").strip() or f"exit status {done.returncode}"
        raise DuplexError(f"eSpeak NG could not say {text!r}: {reason}")
    pcm = np.frombuffer(done.stdout, dtype="<i2").astype(np.float32) / 32768.0
    return to_voice(soxr.resample(pcm, espeak_process.RATE_HZ, SAMPLE_RATE_HZ))[0]


def room_tone(rng: np.random.Generator, n_samples: int, level_dbfs: float) -> Samples:
    """The sound of a quiet room: low-passed noise, float32[n_samples]. Zeros for a level below −100."""
    if n_samples <= 0 or level_dbfs < -100.0:
        return np.zeros(max(0, n_samples), dtype=np.float32)
    noise = rng.standard_normal(n_samples).astype(np.float32)
    tone = filtered(noise, lambda hz: (hz > 60.0) / np.sqrt(1.0 + (hz / 500.0) ** 2))
    rms = float(np.sqrt(np.mean(np.square(tone)))) or 1.0
    scaled: Samples = (tone * (10.0 ** (level_dbfs / 20.0) / rms)).astype(np.float32)
    return scaled


def with_pause(said: Stimulus, at_ms: float, length_ms: float, rng: np.random.Generator) -> Stimulus:
    """The same sentence with a pause of ``length_ms`` at ``at_ms`` of its samples: a gap in voice that long.

    What is inserted is noise as loud as the recording's own floor, so that nothing but the pause is heard. If
    there is a gap already, it is made longer (or shorter). ``length_ms`` is met to two windows, 20 ms.
    """
    floor_dbfs = float(np.clip(np.percentile(window_levels_dbfs(said.samples), 3.0), -80.0, -50.0))
    gap = next((g for g in pauses_in(said.samples, 1.0) if g.start_ms - 15.0 <= at_ms <= g.end_ms + 15.0), None)
    left_end = ms_to_samples(gap.start_ms if gap else at_ms)
    right_start = ms_to_samples(gap.end_ms if gap else at_ms)
    tail, onset = (ms_to_samples(60.0), ms_to_samples(40.0)) if gap else (0, 0)
    tail = min(tail, (right_start - left_end) // 2)
    onset = min(onset, (right_start - left_end) // 2)
    left = said.samples[: left_end + tail].copy()
    right = said.samples[right_start - onset :].copy()
    fade = np.linspace(0.0, 1.0, ms_to_samples(_FADE_MS), dtype=np.float32)
    left[-len(fade) :] *= fade[::-1]
    right[: len(fade)] *= fade
    inserted_ms = length_ms - (tail + onset) * 1000.0 / SAMPLE_RATE_HZ
    samples, pauses = said.samples, said.pauses
    for _attempt in range(3):
        tone = room_tone(rng, ms_to_samples(inserted_ms), floor_dbfs)
        samples = np.concatenate([left, tone, right]).astype(np.float32)
        pauses = pauses_in(samples)
        middle_ms = (len(left) + len(tone) / 2.0) * 1000.0 / SAMPLE_RATE_HZ
        made = next((pause for pause in pauses if pause.start_ms <= middle_ms <= pause.end_ms), None)
        got_ms = made.end_ms - made.start_ms if made else 0.0
        if abs(got_ms - length_ms) <= 10.0:
            break
        inserted_ms += length_ms - got_ms
    voiced = voiced_extent(samples)
    assert voiced is not None
    return replace(said, name=f"{said.name}+{length_ms:.0f}ms", samples=samples, voiced=voiced, pauses=pauses)


def joined(
    parts: Sequence[Samples], gaps_ms: Sequence[float] | npt.NDArray[np.float64], rng: np.random.Generator
) -> Samples:
    """Utterances one after the other with room tone between them: the gap in voice is ``gaps_ms`` long."""
    out: list[Samples] = []
    for index, part in enumerate(parts):
        extent = voiced_extent(part)
        assert extent is not None
        before = extent.start_ms
        if index:
            previous = voiced_extent(parts[index - 1])
            assert previous is not None
            after = len(parts[index - 1]) * 1000.0 / SAMPLE_RATE_HZ - previous.end_ms
            out.append(room_tone(rng, ms_to_samples(gaps_ms[index - 1] - after - before), -70.0))
        out.append(part)
    return np.concatenate(out).astype(np.float32)


def from_next_room(samples: Samples, level_db: float, cutoff_hz: float = 3000.0) -> Samples:
    """A voice as through a wall: low-passed at ``cutoff_hz``, ``level_db`` relative to the user's −20 dBFS."""
    muffled = filtered(samples, lambda hz: 1.0 / np.sqrt(1.0 + (hz / cutoff_hz) ** 8))
    return normalised(muffled, LEVEL_DBFS + level_db)
