"""What the benchmarks say: people's voices from public packages, and synthetic questions with known answers.

Recordings come from packages anyone can install: the source distribution of ``pocketsphinx`` (LibriVox
readings, public domain, and CMU's own test sentences, BSD), the sounds inside ``moonshine-voice`` (MIT),
and, if it is there, Debian's ``asterisk-core-sounds-en-wav`` (CC-BY-SA-3.0). Only sentences that end where
the speaker ended them are used, since an agent is right to wait after half of one.

Rumble below 100 Hz is taken out of each (breath on a microphone goes on for up to half a second after the
last word, as loud as speech, and would count as voice). Then it is cut to its voice by the rule of
:mod:`duplex.recording` (60 ms kept before, 120 ms after, faded), and set to −20 dBFS; so its last voiced sample
is known: :attr:`Stimulus.voiced`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from duplex.errors import DuplexError
from duplex.frames import SAMPLE_RATE_HZ, Samples, ms_to_samples
from duplex.recording import Span, normalised, voiced_extent
from duplex.weights import default_root

LEVEL_DBFS = -20.0
POCKETSPHINX = "pocketsphinx==5.1.1"
POCKETSPHINX_SHA256 = "675778b309a22dfc9b7d37f7621976bba491d2a5f8c59696bd77fd6d07271355"
ASTERISK = Path("/usr/share/asterisk/sounds/en")
_BEFORE_MS, _AFTER_MS, _FADE_MS = 60.0, 120.0, 10.0


@dataclass(frozen=True, slots=True)
class Stimulus:
    """One utterance: float32[n] at 24 kHz, −20 dBFS. ``voiced``: its first to its last voiced sample, ms."""

    name: str
    source: str
    text: str
    samples: Samples
    voiced: Span


@dataclass(frozen=True, slots=True)
class _Cut:
    file: str
    text: str
    start_s: float = 0.0
    end_s: float | None = None


_POCKETSPHINX = (
    _Cut("test/data/goforward.raw", "Go forward ten meters."),
    _Cut("test/data/something.raw", "Go somewhere and do something."),
    _Cut(
        "test/data/librivox/sense_and_sensibility_01_austen_64kb-0870.wav",
        "And Mr. John Dashwood had then leisure to consider how much there might be prudently in his power "
        "to do for them.",
    ),
    _Cut(
        "test/data/librivox/sense_and_sensibility_01_austen_64kb-0920.wav",
        "Had he married a more amiable woman, he might have been made still more respectable than he was.",
    ),
    _Cut(
        "test/data/librivox/sense_and_sensibility_01_austen_64kb-0930.wav",
        "He might even have been made amiable himself.",
    ),
    _Cut("test/data/cards/001.wav", "Ten of clubs."),
    _Cut("test/data/cards/003.wav", "Seven of clubs."),
    _Cut("test/data/cards/005.wav", "Eight of spades, four of clubs, seven of hearts."),
    _Cut(
        "test/regression/chan3.wav", "How much, how easy we want to make it for people to bleep things out.", 2.6, 6.5
    ),
    _Cut("test/regression/chan3.wav", "Morgan wants to make it hard.", 8.1, 10.2),
)
_MOONSHINE = (
    _Cut("endgame_nagg_nell.wav", "Do you hear me?", 0.0, 1.3),
    _Cut("endgame_nagg_nell.wav", "Laugh less heartily so, we have still that resource.", 8.5, 11.6),
    _Cut("endgame_nagg_nell.wav", "No, not heartily, just less heartily.", 11.8, 14.3),
    _Cut("endgame_nagg_nell.wav", "Ah, that's a good story.", 14.4, 15.77),
    _Cut("endgame_nagg_nell.wav", "What are you talking about?", 17.4, 19.0),
    _Cut("endgame_nagg_nell.wav", "Not now.", 22.3, 23.4),
    _Cut("endgame_nagg_nell.wav", "Do you remember the day I went and fetched you from that ditch?", 23.5, 27.8),
    _Cut("beckett.wav", "Ever tried. Ever failed.", 0.1, 3.0),
    _Cut("beckett.wav", "No matter. Try again.", 3.4, 5.8),
    _Cut("beckett.wav", "Fail again.", 6.4, 7.7),
    _Cut("beckett.wav", "Fail better.", 7.8, 9.5),
    _Cut(
        "two_cities.wav",
        "That some of its noisiest authorities insisted on its being received, for good or for evil, in the "
        "superlative degree of comparison only.",
        32.5,
        42.3,
    ),
)
_ASTERISK = (
    _Cut("vm-savefolder.wav", "Which folder should I save the message to?"),
    _Cut("hello-world.wav", "Hello world."),
    _Cut("tt-monkeysintro.wav", "They have been carried away by monkeys."),
    _Cut("tt-somethingwrong.wav", "Something is terribly wrong."),
    _Cut("tt-weasels.wav", "Weasels have eaten our phone system."),
    _Cut("please-try-call-later.wav", "Please try your call again later."),
    _Cut("pls-hold-while-try.wav", "Please hold while we try to connect you."),
    _Cut("conf-onlyperson.wav", "You are currently the only person in this conference."),
    _Cut("conf-waitforleader.wav", "The conference will begin when the leader arrives."),
    _Cut("check-number-dial-again.wav", "Please check the number and dial again."),
    _Cut("cannot-complete-as-dialed.wav", "Your call cannot be completed as dialed."),
    _Cut("feature-not-avail-line.wav", "That feature is not available on this line."),
    _Cut("speed-dial-empty.wav", "The speed dial entry you've accessed is empty."),
    _Cut("vm-nobodyavail.wav", "Nobody is available to take your call at the moment."),
    _Cut("vm-nonumber.wav", "I'm afraid I don't know who sent this message."),
    _Cut("vm-whichbox.wav", "To leave a message, please enter a mailbox number."),
    _Cut("vm-msgforwarded.wav", "Your message has been successfully forwarded."),
    _Cut("vm-mailboxfull.wav", "Sorry, but the user's mail box can't accept more messages."),
    _Cut("vm-tempremoved.wav", "Your temporary greeting has been removed."),
    _Cut("dir-nomore.wav", "There are no more compatible entries in the directory."),
    _Cut("demo-echodone.wav", "The echo test has been completed."),
    _Cut("demo-nomatch.wav", "I'm sorry, there are no matches for those keywords."),
    _Cut("privacy-unident.wav", "The party you are trying to reach does not accept unidentified calls."),
    _Cut("agent-pass.wav", "Please enter your password followed by the pound key."),
)

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
    """The recordings of a set, always in the same order.

    ``packages``: from the package index, the same on every machine. ``asterisk``: Debian's package.
    ``all``: both, as far as they are there. ``note`` gets a line about what is fetched or missing. Raises
    ``DuplexError`` if nothing at all could be had.
    """
    found: list[Stimulus] = []
    if which in {"packages", "all"}:
        found += _from_pocketsphinx(note)
        found += _from_moonshine(note)
    if which in {"asterisk", "all"}:
        if ASTERISK.is_dir():
            found += [_cut(ASTERISK / cut.file, cut, "asterisk") for cut in _ASTERISK if (ASTERISK / cut.file).exists()]
        else:
            note(f"No {ASTERISK}. Run: sudo apt-get install asterisk-core-sounds-en-wav")
    if not found:
        raise DuplexError(
            "No recordings of human speech could be had. Run: pip install 'duplex-runtime[local]' (they come with "
            "moonshine-voice), or sudo apt-get install asterisk-core-sounds-en-wav and use --stimuli asterisk"
        )
    return found


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
    """Any sound file libsndfile reads (WAV, FLAC, OGG …), as mono float32 at 24 kHz.

    Raises ``DuplexError`` that names the file and what is wrong with it.
    """
    import soundfile
    import soxr

    try:
        if path.suffix == ".raw":
            samples, rate_hz = soundfile.read(
                path, dtype="float32", format="RAW", subtype="PCM_16", endian="LITTLE", channels=1, samplerate=16_000
            )
        else:
            samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
            samples = samples.mean(axis=1)
    except FileNotFoundError as error:
        raise DuplexError(f"There is no file {path}.") from error
    except (soundfile.SoundFileError, OSError) as error:
        raise DuplexError(f"{path} cannot be read as sound: {error}") from error
    if rate_hz != SAMPLE_RATE_HZ:
        samples = soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ)
    return np.ascontiguousarray(samples, dtype=np.float32)


# --- where they come from ---------------------------------------------------------------------------


def _from_pocketsphinx(note: Callable[[str], None]) -> Iterator[Stimulus]:
    directory = default_root().parent / "recordings" / POCKETSPHINX.replace("==", "-")
    missing = [cut for cut in _POCKETSPHINX if not (directory / Path(cut.file).name).exists()]
    if missing:
        note(f"Fetching recordings: pip download {POCKETSPHINX} (34 MB, once)")
        try:
            _fetch_pocketsphinx(directory)
        except DuplexError as error:
            note(str(error))
            return
    for cut in _POCKETSPHINX:
        yield _cut(directory / Path(cut.file).name, cut, "pocketsphinx")


def _fetch_pocketsphinx(directory: Path) -> None:
    """Takes the recordings out of the source distribution, by pip, so that the user's mirrors are respected."""
    with tempfile.TemporaryDirectory(prefix="duplex-recordings-") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "pocketsphinx"]
        command += ["--disable-pip-version-check", "--no-input", "--dest", scratch, POCKETSPHINX]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        archive = next(iter(Path(scratch).glob("*.tar.gz")), None)
        if done.returncode != 0 or archive is None:
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise DuplexError(f"pip could not download {POCKETSPHINX}: {reason}")
        if hashlib.sha256(archive.read_bytes()).hexdigest() != POCKETSPHINX_SHA256:
            raise DuplexError(f"{archive.name} is not the file its recordings were taken from; they are left out.")
        directory.mkdir(parents=True, exist_ok=True)
        wanted = {cut.file for cut in _POCKETSPHINX}
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.name.partition("/")[2] in wanted and (content := tar.extractfile(member)) is not None:
                    part = directory / f".{Path(member.name).name}.part"
                    part.write_bytes(content.read())
                    part.replace(directory / Path(member.name).name)


def _from_moonshine(note: Callable[[str], None]) -> Iterator[Stimulus]:
    spec = importlib.util.find_spec("moonshine_voice")
    if spec is None or spec.origin is None:
        note("moonshine-voice is not installed, and its recordings with it. Run: pip install 'duplex-runtime[local]'")
        return
    assets = Path(spec.origin).parent / "assets"
    for cut in _MOONSHINE:
        if (assets / cut.file).exists():
            yield _cut(assets / cut.file, cut, "moonshine-voice")


def _without_rumble(samples: Samples) -> Samples:
    """A high pass without phase, from −∞ at 80 Hz to 0 dB at 130 Hz; a telephone does more."""
    spectrum = np.fft.rfft(samples)
    hz = np.fft.rfftfreq(len(samples), 1.0 / SAMPLE_RATE_HZ)
    rise = np.clip((hz - 80.0) / 50.0, 0.0, 1.0)
    return np.fft.irfft(spectrum * np.sin(rise * np.pi / 2.0) ** 2, len(samples)).astype(np.float32)


def _cut(path: Path, cut: _Cut, source: str) -> Stimulus:
    """The part of a file that ``cut`` names, cut to its voice, at −20 dBFS."""
    samples = _without_rumble(read_audio(path))
    end = None if cut.end_s is None else round(cut.end_s * SAMPLE_RATE_HZ)
    samples = normalised(samples[round(cut.start_s * SAMPLE_RATE_HZ) : end], LEVEL_DBFS)
    voiced = voiced_extent(samples)
    if voiced is None:
        raise DuplexError(f"There is no voice in {path} where there should be.")
    first = max(0, ms_to_samples(voiced.start_ms - _BEFORE_MS))
    samples = samples[first : ms_to_samples(voiced.end_ms + _AFTER_MS)].copy()
    fade = np.linspace(0.0, 1.0, ms_to_samples(_FADE_MS), dtype=np.float32)
    samples[: len(fade)] *= fade
    samples[-len(fade) :] *= fade[::-1]
    samples = normalised(samples, LEVEL_DBFS)
    again = voiced_extent(samples)
    assert again is not None
    return Stimulus(f"{path.stem}@{cut.start_s:g}", source, cut.text, samples, again)
