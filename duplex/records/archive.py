"""A recorded session on disk: what lies where, written as it happens and read back whole or cut off.

::

    DIR/                                      mode 0700, files 0600
      20260102T030405.678Z-sess_0123…/        one session; names sort by age
        manifest.json    versions, models, configuration, how it ended, size and sha256 of each file
        journal.jsonl    the session's life, an entry a line (duplex.records.journal)
        heard.flac       the microphone, from the first packet on (or .opus)
        spoken.flac      what went to the line, silence included (or .opus)
        made.flac        the agent's sound as it was made; the journal says where each piece lies
        images/          camera frames, by their sha256

The manifest is written first, with state "recording", and again at the end, each time by renaming a finished
file over the old one. Whatever is on disk in between can be read: a line that was not finished is left out,
and so is the end of the sound that had not been encoded yet. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from duplex import __version__
from duplex.errors import RecordingError
from duplex.frames import PACKET_SAMPLES, Image, Samples
from duplex.records.journal import Pcm, from_pcm

FORMAT = 1
MANIFEST, JOURNAL, LIVE = "manifest.json", "journal.jsonl", ".live"
HEARD, SPOKEN, MADE, IMAGES = "heard", "spoken", "made", "images"
BLOCK_SAMPLES = 4096
UNWRITTEN_SAMPLES = 3 * BLOCK_SAMPLES  # what an encoder may still hold when its process is killed: half a second
SOUND_FILES = {"flac": (".flac", "FLAC", "PCM_16"), "opus": (".opus", "OGG", "OPUS")}


class FileFacts(BaseModel):
    model_config = ConfigDict(frozen=True)

    size_bytes: int
    sha256: str


class Manifest(BaseModel):
    """What ``manifest.json`` says. Unknown names are left alone, so that a newer duplex can add some."""

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    session_id: str
    started_at: str
    state: Literal["recording", "complete", "stopped"] = "recording"
    stopped_because: str | None = None
    ended_at: str | None = None
    entries: int = 0
    duration_s: float = 0.0
    duplex: str = __version__
    python: str = Field(default_factory=lambda: sys.version.split()[0])
    platform: str = Field(default_factory=platform.platform)
    libraries: dict[str, str] = Field(default_factory=lambda: _library_versions())
    models: list[dict[str, Any]] = Field(default_factory=list)
    agent: dict[str, Any]
    line: dict[str, Any]
    settings: dict[str, Any]
    session: dict[str, Any]
    config: dict[str, Any] = Field(default_factory=dict)
    audio: Literal["flac", "opus"] = "flac"
    redact: Literal["none", "audio", "text", "all"] = "none"
    files: dict[str, FileFacts] = Field(default_factory=dict)

    @property
    def keeps_sound(self) -> bool:
        return self.redact in ("none", "text")

    @property
    def keeps_text(self) -> bool:
        return self.redact in ("none", "audio")


def _library_versions() -> dict[str, str]:
    found = {}
    for name in ("numpy", "soundfile", "soxr", "onnxruntime", "xllamacpp", "piper-tts", "aiortc", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found


_SECRET_NAME = re.compile(r"(^|[_-])(api[_-]?key|key|token|secret|password|passwd|authorization|credentials?)$", re.I)
_SECRET_TEXT = re.compile(
    r"(://)[^/@\s]+(?=@)|(\bsk-)[\w-]{8,}|(Bearer )\S+|([?&](?:api[_-]?)?(?:key|token)=)[^&#\s]+", re.I
)
_HIDDEN = "[redacted]"


def without_secrets(value: Any, name: str = "") -> Any:
    """A configuration for writing down: what is named like a key, or looks like one, is replaced."""
    if isinstance(value, Mapping):
        return {key: without_secrets(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(inner, name) for inner in value]
    if isinstance(value, str):
        return _HIDDEN if value and _SECRET_NAME.search(name) else _SECRET_TEXT.sub(_hidden, value)
    return value


def _hidden(match: re.Match[str]) -> str:
    return next(filter(None, match.groups()), "") + _HIDDEN


# --- reading ------------------------------------------------------------------------------------------


def is_live(directory: Path) -> bool:
    """Whether some process is still writing it."""
    try:
        import fcntl

        with (directory / LIVE).open("r+b") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    except (ImportError, OSError):
        pass
    return False


def sessions(root: Path) -> list[Path]:
    """The recorded sessions in ``root``, oldest first."""
    try:
        return sorted(path for path in root.iterdir() if (path / MANIFEST).is_file())
    except OSError:
        return []


def find(place: Path, name: str | None = None) -> Path:
    """One session: ``place`` itself, or the one in it whose id or folder begins with ``name``, or the newest.

    Raises ``RecordingError`` that lists what there is.
    """
    if (place / MANIFEST).is_file() and name is None:
        return place
    found = sessions(place)
    if not found:
        raise RecordingError(f"There are no recordings in {place}. Make some with: duplex-serve --record {place}")
    if name is None:
        return found[-1]
    matching = [path for path in found if path.name.startswith(name) or path.name.partition("-")[2].startswith(name)]
    if len(matching) == 1:
        return matching[0]
    listed = ", ".join(path.name for path in (matching or found)[-5:])
    raise RecordingError(
        f"{'Several recordings are' if matching else 'No recording is'} called {name!r} in {place}. "
        f"{'These match' if matching else 'The newest'}: {listed}."
    )


class Archive:
    """A recorded session, for reading. Raises ``RecordingError`` naming the file that is wrong.

    ``check``: hash every file first, which takes a second per gigabyte or so. ``notes``: what a reader should
    know, such as that it was cut off. Also the :class:`~duplex.records.journal.SoundSource` of a journal's reader.
    """

    def __init__(self, directory: Path, *, check: bool = True) -> None:
        self.directory = directory
        self.notes: list[str] = []
        self.manifest = self._read_manifest()
        self.whole = self.manifest.state == "complete"
        if self.manifest.state == "recording":
            live = is_live(directory)
            self.notes.append("This session is still being recorded." if live else "The recording was cut off.")
        elif not self.whole:
            self.notes.append(f"Recording stopped before the session did: {self.manifest.stopped_because}.")
        if check:
            self._check_files()
        self.padded: set[str] = set()  # sounds whose end was not written, with silence in its place
        self._heard_packets = 0
        self._sounds: dict[str, Pcm] = {}

    def _read_manifest(self) -> Manifest:
        path = self.directory / MANIFEST
        try:
            manifest = Manifest.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise RecordingError(f"{self.directory} is not a recorded session: it has no {MANIFEST}.") from error
        except OSError as error:
            raise RecordingError(f"Cannot read {path}: {error.strerror}.") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the whole file"
            raise RecordingError(f"{path} is damaged: {where}: {first['msg']}.") from error
        if manifest.format != FORMAT:
            raise RecordingError(
                f"{path} has format {manifest.format}, written by duplex {manifest.duplex}; "
                f"duplex {__version__} reads format {FORMAT}."
            )
        return manifest

    def _check_files(self) -> None:
        for name, facts in self.manifest.files.items():
            path = self.directory / name
            if ".." in path.parts or "\0" in name or Path(name).is_absolute() or len(name) > 255:
                raise RecordingError(f"{self.directory / MANIFEST} is damaged: {name[:80]!r} is no file of its own.")
            if not path.is_file():
                raise RecordingError(f"{path} is missing.")
            if (size := path.stat().st_size) != facts.size_bytes:
                raise RecordingError(f"{path} has {size} bytes, but {facts.size_bytes} were written. It is truncated.")
            if facts_of(path).sha256 != facts.sha256:
                raise RecordingError(f"{path} was altered since it was recorded (its sha256 differs).")

    def lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number, line) of the journal, from 1. A last line that was not finished is left out."""
        path = self.directory / JOURNAL
        try:
            with path.open("rb") as journal:
                for number, text in enumerate(journal, 1):
                    try:
                        line = json.loads(text)
                        if not isinstance(line, dict):
                            raise ValueError("not an object")
                    except (ValueError, RecursionError) as error:
                        if not self.whole and not text.endswith(b"\n"):
                            return
                        raise RecordingError(f"{path}, line {number} is damaged: {error}.") from error
                    yield number, line
        except OSError as error:
            raise RecordingError(f"Cannot read {path}: {error.strerror}.") from error

    def sound(self, name: str) -> Pcm:
        """``heard``, ``spoken`` or ``made``: int16[n] at 24 kHz; nothing if it was not kept."""
        if name not in self._sounds:
            audio = "flac" if name == MADE else self.manifest.audio
            self._sounds[name] = self._read_sound(self.directory / (name + SOUND_FILES[audio][0]))
        return self._sounds[name]

    def _read_sound(self, path: Path) -> Pcm:
        import soundfile

        blocks: list[Pcm] = []
        if path.is_file() and path.stat().st_size:
            try:
                with soundfile.SoundFile(path) as file:
                    while len(block := file.buffer_read(BLOCK_SAMPLES, "int16")):
                        blocks.append(np.frombuffer(block, dtype=np.int16))
            except soundfile.SoundFileError as error:
                if self.whole:  # otherwise that is how a file ends whose writer was stopped
                    raise RecordingError(
                        f"{path} is damaged after {len(blocks) * BLOCK_SAMPLES} samples: {error}"
                    ) from error
        return np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.int16)

    # The source of the journal's reader.

    def rewind(self) -> None:
        """Before the journal is read from its beginning again."""
        self._heard_packets = 0
        self.padded.clear()

    def next_heard(self, n_packets: int) -> Samples:
        first, self._heard_packets = self._heard_packets, self._heard_packets + n_packets
        if not self.manifest.keeps_sound:
            return np.zeros(n_packets * PACKET_SAMPLES, dtype=np.float32)
        return self._piece(HEARD, first * PACKET_SAMPLES, n_packets * PACKET_SAMPLES)

    def get_sound(self, reference: Any) -> Samples:
        if "levels" in reference:
            return sound_of(int(reference["n"]), reference["levels"])
        return self._piece(MADE, int(reference["at"]), int(reference["n"]))

    def _piece(self, name: str, start: int, n_samples: int) -> Samples:
        sound = self.sound(name)
        missing = start + n_samples - len(sound)
        if missing <= 0:
            return from_pcm(sound[start : start + n_samples])
        if self.whole:
            raise RecordingError(f"The journal speaks of {missing} samples in {name} that are not there.")
        if missing > UNWRITTEN_SAMPLES:
            raise EOFError(name)
        self.padded.add(name)
        return np.pad(from_pcm(sound[start:]), (0, n_samples - max(0, len(sound) - start)))

    def get_image(self, reference: Any) -> Image:
        jpeg = b""
        if name := reference.get("file"):
            try:
                jpeg = (self.directory / IMAGES / Path(str(name)).name).read_bytes()
            except OSError as error:
                raise RecordingError(f"Picture {name} is missing: {error.strerror}.") from error
        return Image(int(reference["pts"]), jpeg, int(reference["width"]), int(reference["height"]))


def sound_of(n_samples: int, loudness: list[int]) -> Samples:
    """A square wave as loud as ``levels`` said: stands in for sound that was not kept. float32[n_samples]."""
    if not 0 <= n_samples <= len(loudness) * PACKET_SAMPLES:
        raise ValueError(f"{n_samples} samples with {len(loudness)} levels")
    amplitude = np.repeat(np.asarray(loudness, dtype=np.int16), PACKET_SAMPLES)[:n_samples]
    return from_pcm(np.where(np.arange(n_samples) % 2 == 0, amplitude, -amplitude).astype(np.int16))


def facts_of(path: Path) -> FileFacts:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileFacts(size_bytes=path.stat().st_size, sha256=digest)
