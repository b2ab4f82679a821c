"""Voice prompts by name: a few seconds of somebody speaking, in a folder of the server's owner.

``NAME.wav`` is sound; ``NAME.safetensors`` holds a tensor ``codes`` int64[codebooks, frames] that the model's codec
made of one. A client names a voice; it never names a path. What lies outside the folder, by ``..``, as an absolute path
or through a link, is not opened. PersonaPlex's own voices are pickles of embeddings (``.pt``), and are not opened
either: record ten seconds of a voice as WAV instead.
"""

from __future__ import annotations

import io
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from duplex.errors import ConfigError, MissingDependencyError
from duplex.frames import SAMPLE_RATE_HZ, Samples

Codes = npt.NDArray[np.int64]

ENDINGS = (".safetensors", ".wav")
MOST_BYTES = 16 << 20  # a minute of 48 kHz stereo in 16 bits is 11.5 MB
SHORTEST_S, LONGEST_S = 0.5, 60.0
SPEECH_DBFS = -24.0  # PersonaPlex reads voices at -24 LUFS; for speech that is the level of its louder blocks
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,63}")
# Links are not followed, and a pipe is not waited for.
_OPEN_PLAIN = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_BLOCK_S, _VOICED_DB = 0.02, 25.0


@dataclass(frozen=True, slots=True)
class Voice:
    """Either ``samples``, 24 kHz mono at :data:`SPEECH_DBFS`, or ``codes`` int64[frames, codebooks]."""

    name: str
    samples: Samples | None = None
    codes: Codes | None = None


class VoiceFolder:
    """The voices in ``folder``; without one there are none."""

    def __init__(self, folder: Path | None) -> None:
        if folder is not None and not folder.is_dir():
            raise ConfigError(f"voices_dir = {str(folder)!r} is no directory.")
        self._folder = folder

    @property
    def names(self) -> tuple[str, ...]:
        """What can be asked for, sorted."""
        if self._folder is None:
            return ()
        found = {
            path.stem
            for path in self._folder.iterdir()
            if path.suffix in ENDINGS and _NAME.fullmatch(path.stem) and path.is_file() and not path.is_symlink()
        }
        return tuple(sorted(found))

    def load(self, name: str) -> Voice:
        """Raises ``ConfigError``: there is no such voice, or its file cannot be used."""
        known = ", ".join(self.names) or "none"
        if not _NAME.fullmatch(name) or ".." in name:
            raise ConfigError(f"A voice is called by its name, not {name!r}. Known here: {known}.")
        stem, ending = (name[: -len(e)], e) if (e := Path(name).suffix) in ENDINGS else (name, "")
        for candidate in (ending,) if ending else ENDINGS:
            data = self._read(stem + candidate)
            if data is not None:
                where = f"The voice {stem!r}"
                if candidate == ".wav":
                    return Voice(stem, samples=_sound(data, where))
                return Voice(stem, codes=_codes(data, where))
        if Path(name).suffix in {".pt", ".pth", ".bin", ".pkl"} or self._read(f"{stem}.pt") is not None:
            raise ConfigError(
                f"The voice {stem!r} is a pickle, which is not opened. Give ten seconds of it as {stem}.wav."
            )
        raise ConfigError(f"There is no voice {name!r}. Known here: {known}.")

    def _read(self, file_name: str) -> bytes | None:
        """The file's content, ``None`` if it is not there. Raises ``ConfigError`` if it is no plain, small file of the
        folder. One handle for looking and reading, so that nothing can be put in its place between the two."""
        if self._folder is None:
            return None
        try:
            handle = os.open(self._folder / file_name, _OPEN_PLAIN)
        except FileNotFoundError:
            return None
        except OSError as error:  # ELOOP: a link
            raise ConfigError(f"The voice file {file_name!r} is no plain file of the voices folder.") from error
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"The voice file {file_name!r} is no plain file of the voices folder.")
            if status.st_size > MOST_BYTES:
                raise ConfigError(
                    f"The voice file {file_name!r} is over {MOST_BYTES >> 20} MiB. Ten seconds are enough."
                )
            with os.fdopen(os.dup(handle), "rb") as file:
                return file.read(MOST_BYTES)
        finally:
            os.close(handle)


def _sound(data: bytes, where: str) -> Samples:
    import soundfile
    import soxr

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.format not in {"WAV", "WAVEX"}:
                raise ConfigError(f"{where} is called .wav, and is {file.format}.")
            seconds = file.frames / file.samplerate
            if not SHORTEST_S <= seconds <= LONGEST_S:
                raise ConfigError(f"{where} is {seconds:.1f} s long; {SHORTEST_S:g} to {LONGEST_S:g} s can be used.")
            rate, sound = file.samplerate, file.read(dtype="float32", always_2d=True).mean(axis=1)
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{where} is no WAV file that can be read: {error}.") from error
    if rate != SAMPLE_RATE_HZ:
        sound = soxr.resample(sound, rate, SAMPLE_RATE_HZ)
    return levelled(np.asarray(sound, np.float32), where)


def levelled(samples: Samples, where: str = "The sound") -> Samples:
    """``samples`` (24 kHz) with their speech at :data:`SPEECH_DBFS`: the power of blocks of 20 ms that are within 25 dB
    of the loudest. Raises ``ConfigError`` for silence, and for what is no number."""
    block = round(_BLOCK_S * SAMPLE_RATE_HZ)
    blocks = samples[: len(samples) // block * block].reshape(-1, block).astype(np.float64)
    power = (blocks**2).mean(axis=1)
    peak = power.max(initial=0.0)
    if not np.isfinite(peak) or not np.isfinite(samples).all():
        raise ConfigError(f"{where} has samples that are no numbers.")
    if peak < 1e-8:
        raise ConfigError(f"{where} is silent.")
    speech = power[power >= peak * 10 ** (-_VOICED_DB / 10)].mean()
    gain = np.sqrt(10 ** (SPEECH_DBFS / 10) / speech)
    level: Samples = np.clip(samples * gain, -1.0, 1.0).astype(np.float32)
    return level


def _codes(data: bytes, where: str) -> Codes:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load
    except ImportError as error:
        raise MissingDependencyError("safetensors", "moshi") from error
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{where} is no whole safetensors file: {error}.") from error
    codes = tensors.get("codes")
    if codes is None or codes.ndim != 2 or codes.dtype.kind not in "iu" or not codes.size:
        there = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in list(tensors.items())[:3])
        raise ConfigError(f"{where} needs a tensor 'codes' int64[codebooks, frames]; there: {there or 'nothing'}.")
    return np.ascontiguousarray(codes.T.astype(np.int64))
