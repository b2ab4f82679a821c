"""What the benchmarks say: people's voices from public packages, and synthetic questions with known answers.

Recordings come from packages anyone can install; ``docs/stimuli.md`` lists them, with their licences and speakers.
Only sentences that end where the speaker ended them are used, since an agent is right to wait after half of one.

Rumble below 100 Hz is taken out of each (breath on a microphone goes on for up to half a second after the
last word, as loud as speech, and would count as voice). Then it is cut to its voice by the rule of
:mod:`duplex.recording` (60 ms kept before, 120 ms after, faded), and set to −20 dBFS; so its last voiced sample
is known: :attr:`Stimulus.voiced`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from duplex.benchmarks.stimuli_cuts import CUTS, Cut, Split, Use
from duplex.benchmarks.stimuli_packages import ASTERISK, PACKAGES, fetch, installed
from duplex.errors import DuplexError
from duplex.frames import SAMPLE_RATE_HZ, Samples, ms_to_samples
from duplex.recording import Span, normalised, voiced_extent, voiced_spans

_Hz = npt.NDArray[np.float64]

LEVEL_DBFS = -20.0
PAUSE_MS = 300.0
MAX_FILE_SAMPLES = 600 * 48_000
"""Of a sound file, ten minutes: a few kilobytes of FLAC can mean days of silence."""
_RATES_HZ = (4_000, 192_000)
_BLOCK_VALUES = 65_536
"""A gap in speech from here on is a pause; shorter ones are the closures and breaths of running speech."""

_BEFORE_MS, _AFTER_MS, _FADE_MS = 60.0, 120.0, 10.0


@dataclass(frozen=True, slots=True)
class Stimulus:
    """One utterance: float32[n] at 24 kHz, −20 dBFS. ``voiced``: its first to its last voiced sample, ms.

    ``speaker``: who it is, or the synthetic voice, as far as it is known. ``human``: a recording of a person.
    ``pauses``: gaps in the voice that are part of it, ms of ``samples``, each with an unfinished sentence before it.
    ``expects``: words of which one is in a sensible answer.
    """

    name: str
    source: str
    text: str
    samples: Samples
    voiced: Span
    speaker: str = ""
    human: bool = True
    use: Use = "turn"
    pauses: tuple[Span, ...] = ()
    expects: tuple[str, ...] = ()
    breaks_ms: tuple[float, ...] = ()
    """Word boundaries of ``samples`` where a pause may be put; see :class:`~.stimuli_cuts.Cut`."""


QUESTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("What is the capital of France?", ("paris",)),
    ("What color is the sky on a clear day?", ("blue",)),
    ("How many days are there in a week?", ("seven", "7")),
    ("What is the opposite of hot?", ("cold",)),
    ("Which planet do we live on?", ("earth",)),
    ("What do bees make?", ("honey",)),
)
"""Synthetic questions for content checks: what to ask, and words of which one must be in the answer."""

SETS = ("packages", "asterisk", "all")


def load_stimuli(which: str = "packages", note: Callable[[str], None] = lambda _line: None) -> list[Stimulus]:
    """The turns of a set of recordings, always in the same order.

    ``packages``: from the package index, the same on every machine. ``asterisk``: Debian's package.
    ``all``: both, as far as they are there. These are the ones that may be tuned on. ``note`` gets a line about what
    is fetched or missing. Raises ``DuplexError`` if nothing at all could be had.
    """
    found = [
        stimulus
        for source in CUTS["tuning"]
        if which == "all" or (source == ASTERISK) == (which == "asterisk")
        for stimulus in load_source("tuning", source, note)
        if stimulus.use == "turn"
    ]
    if not found:
        raise DuplexError(
            "No recordings of human speech could be had. Run: pip install moonshine-voice (they come with it), or "
            "sudo apt-get install asterisk-core-sounds-en-wav and use --stimuli asterisk"
        )
    return found


def load_source(split: Split, source: str, note: Callable[[str], None] = lambda _line: None) -> list[Stimulus]:
    """Everything that is cut from one source of a split; nothing, and a note why, if it cannot be had."""
    cuts = CUTS[split][source]
    files = {cut.file for cut in cuts}
    try:
        folder = fetch(PACKAGES[source], files, note) if source in PACKAGES else installed(source)
    except DuplexError as error:
        note(str(error))
        return []
    return [cut_out(path, cut, source) for cut in cuts if (path := folder / PurePosixPath(cut.file).name).exists()]


def load_interruptions(stimuli: list[Stimulus]) -> list[Stimulus]:
    """Those that a person would interrupt with: three words or more, between 1.0 and 3.5 s."""
    return [
        stimulus
        for stimulus in stimuli
        if len(stimulus.text.split()) >= 3 and 1000.0 <= stimulus.voiced.end_ms - stimulus.voiced.start_ms <= 3500.0
    ]


def speak(*texts: str, voice: str = "piper-joe") -> list[Samples]:
    """Each text spoken by the local Piper voice: float32[n] at 24 kHz, −20 dBFS. Blocks for a few seconds.

    Raises ``MissingDependencyError`` or ``WeightsError``, which say what to run.
    """
    from duplex.thinker_talker.piper import PiperTalker
    from duplex.thinker_talker.talker import CollectingTalkSink
    from duplex.weights import ModelStore

    spoken: list[Samples] = []
    talker = PiperTalker(min(ModelStore().path(voice).glob("*.onnx")))
    try:
        for text in texts:
            sink = CollectingTalkSink()
            utterance = talker.begin(sink)
            utterance.say(text)
            utterance.end()
            utterance.wait_over(60.0)
            if sink.error is not None:
                raise sink.error
            spoken.append(normalised(sink.samples, LEVEL_DBFS))
    finally:
        talker.close()
    return spoken


def read_audio(path: Path) -> Samples:
    """Any sound file libsndfile reads (WAV, FLAC, OGG …), as mono float32 at 24 kHz; ``MAX_FILE_SAMPLES`` at most.

    Raises ``DuplexError`` that names the file and what is wrong with it.
    """
    import soundfile
    import soxr

    raw = {"format": "RAW", "subtype": "PCM_16", "endian": "LITTLE", "channels": 1, "samplerate": 16_000}
    try:
        with soundfile.SoundFile(path, **(raw if path.suffix == ".raw" else {})) as file:
            rate_hz = file.samplerate
            if not _RATES_HZ[0] <= rate_hz <= _RATES_HZ[1]:
                raise DuplexError(f"{path} has {rate_hz} samples a second; {_RATES_HZ[0]} to {_RATES_HZ[1]} are taken.")
            # In pieces: what the header says of its length may be anything.
            blocks, n_samples = [], 0
            while len(block := file.read(max(1, _BLOCK_VALUES // file.channels), dtype="float32", always_2d=True)):
                blocks.append(block.mean(axis=1))
                n_samples += len(block)
                if n_samples > MAX_FILE_SAMPLES:
                    raise DuplexError(f"{path} is longer than ten minutes. Cut it into shorter files.")
        samples = np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32)
        if not np.isfinite(samples).all():
            raise DuplexError(f"{path} cannot be read as sound: it holds samples that are no numbers.")
    except FileNotFoundError as error:
        raise DuplexError(f"There is no file {path}.") from error
    except (soundfile.SoundFileError, OSError) as error:
        raise DuplexError(f"{path} cannot be read as sound: {error}") from error
    if rate_hz != SAMPLE_RATE_HZ:
        samples = soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ)
    return np.ascontiguousarray(samples, dtype=np.float32)


def cut_out(path: Path, cut: Cut, source: str) -> Stimulus:
    """The part of a file that ``cut`` names, cut to its voice, at −20 dBFS. Raises ``DuplexError`` if it is silent."""
    whole = _read(path)
    end = len(whole) if cut.end_s is None else round(cut.end_s * SAMPLE_RATE_HZ)
    part, first = to_voice(whole[round(cut.start_s * SAMPLE_RATE_HZ) : end])
    voiced = voiced_extent(part)
    if voiced is None:
        raise DuplexError(f"There is no voice in {path} where there should be.")
    begins_s = cut.start_s + first / SAMPLE_RATE_HZ
    return Stimulus(
        name=f"{path.stem}@{cut.start_s:g}",
        source=source,
        text=cut.text,
        samples=part,
        voiced=voiced,
        speaker=cut.speaker,
        use=cut.use,
        pauses=pauses_in(part),
        breaks_ms=tuple((at_s - begins_s) * 1000.0 for at_s in cut.breaks_s),
    )


def pauses_in(samples: Samples, at_least_ms: float = PAUSE_MS) -> tuple[Span, ...]:
    """The gaps between voiced stretches, by the rule of :mod:`duplex.recording`."""
    gaps = (Span(before.end_ms, after.start_ms) for before, after in pairwise(voiced_spans(samples)))
    return tuple(gap for gap in gaps if gap.end_ms - gap.start_ms >= at_least_ms)


def to_voice(samples: Samples) -> tuple[Samples, int]:
    """Speech cut to its voice, faded, at −20 dBFS, and the index in ``samples`` where it begins."""
    samples = normalised(samples, LEVEL_DBFS)
    voiced = voiced_extent(samples)
    if voiced is None:
        return samples, 0
    first = max(0, ms_to_samples(voiced.start_ms - _BEFORE_MS))
    samples = samples[first : ms_to_samples(voiced.end_ms + _AFTER_MS)].copy()
    fade = np.linspace(0.0, 1.0, ms_to_samples(_FADE_MS), dtype=np.float32)
    samples[: len(fade)] *= fade
    samples[-len(fade) :] *= fade[::-1]
    return normalised(samples, LEVEL_DBFS), first


def without_rumble(samples: Samples) -> Samples:
    """A high pass without phase, from −∞ at 80 Hz to 0 dB at 130 Hz; a telephone does more."""
    return filtered(samples, lambda hz: np.sin(np.clip((hz - 80.0) / 50.0, 0.0, 1.0) * np.pi / 2.0) ** 2)


def filtered(samples: Samples, gain: Callable[[_Hz], _Hz]) -> Samples:
    """The samples through a filter without phase, given by its ``gain`` at float64[m] frequencies: float32[n]."""
    n = -(-len(samples) // SAMPLE_RATE_HZ) * SAMPLE_RATE_HZ  # whole seconds: other lengths can take 50 times as long
    hz: _Hz = np.fft.rfftfreq(n, 1.0 / SAMPLE_RATE_HZ).astype(np.float64)
    spectrum = np.fft.rfft(samples, n) * gain(hz)
    return np.fft.irfft(spectrum, n)[: len(samples)].astype(np.float32)


@lru_cache(maxsize=4)
def _read(path: Path) -> Samples:
    return without_rumble(read_audio(path))
