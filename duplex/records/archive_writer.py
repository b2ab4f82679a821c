"""Writing a recorded session to disk as it happens. The layout is in :mod:`duplex.records.archive`."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections import deque
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Image, Samples
from duplex.outgoing import AUDIBLE_RMS
from duplex.records.archive import HEARD, IMAGES, JOURNAL, LIVE, MADE, MANIFEST, SOUND_FILES, SPOKEN, Manifest, facts_of
from duplex.records.journal import Entry, Pcm, Writer, to_pcm

_RECALLABLE_PACKETS = 64  # the line may still give these back; as many as Outgoing remembers


class _SoundFile:
    """One growing sound file. Its blocks reach the operating system as they fill."""

    def __init__(self, directory: Path, name: str, audio: str) -> None:
        import soundfile

        ending, container, subtype = SOUND_FILES[audio]
        self.name = name + ending
        descriptor = os.open(directory / self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = soundfile.SoundFile(
            descriptor, "w", samplerate=SAMPLE_RATE_HZ, channels=1, format=container, subtype=subtype
        )
        self.samples = 0

    def write(self, pcm: Pcm) -> None:
        self._file.write(pcm)
        self.samples += len(pcm)

    def close(self) -> None:
        self._file.close()


class SessionWriter:
    """Writes one session. Blocks on the disk, so it lives on a thread of its own; raises ``OSError`` when it cannot.

    Made in ``root``; ``directory`` is its own. Also the :class:`~duplex.records.journal.SoundSink` of what it writes.
    """

    def __init__(self, root: Path, manifest: Manifest, *, images: bool = True) -> None:
        self.manifest = manifest
        stamp = re.sub(r"[:-]", "", manifest.started_at)
        self.directory = root / f"{stamp}-{re.sub(r'[^A-Za-z0-9_.-]', '_', manifest.session_id)}"
        self._images = images and manifest.redact == "none"
        self._writer = Writer(self, mask_text=not manifest.keeps_text)
        self._sounds: dict[str, _SoundFile] = {}
        self._recallable: deque[tuple[int, Pcm]] = deque()
        self._entries = 0
        self._first_us: int | None = None
        self._last_us = 0
        self.directory.mkdir(mode=0o700)
        self._lock = _hold(self.directory / LIVE)
        self._save_manifest()
        descriptor = os.open(self.directory / JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._journal: BinaryIO = os.fdopen(descriptor, "wb", buffering=0)

    def entry(self, entry: Entry) -> int:
        """Appends one entry; returns roughly how many bytes that took before compression."""
        for packet in entry.heard:
            self._sound(HEARD, to_pcm(packet.samples))
        for out in entry.sent:
            # A packet at a place that was filled before: the earlier one was taken back and never left.
            while self._recallable and self._recallable[-1][0] >= out.pts:
                self._recallable.pop()
            self._recallable.append((out.pts, to_pcm(out.samples)))
            if len(self._recallable) > _RECALLABLE_PACKETS:
                self._sound(SPOKEN, self._recallable.popleft()[1])
        line = json.dumps(self._writer.entry(entry), separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
        if self._journal.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._entries += 1
        if entry.readings_us:
            self._first_us = entry.readings_us[0] if self._first_us is None else self._first_us
            self._last_us = entry.readings_us[-1]
        return len(line) + PACKET_SAMPLES * (len(entry.heard) + len(entry.sent))

    def finish(self, ended_at: str, stopped_because: str | None = None) -> None:
        """Closes every file and says in the manifest how it went. ``stopped_because``: the session went on."""
        try:
            while self._recallable:
                self._sound(SPOKEN, self._recallable.popleft()[1])
        finally:
            self._close_files()
            self.manifest = self.manifest.model_copy(
                update={
                    "state": "complete" if stopped_because is None else "stopped",
                    "stopped_because": stopped_because,
                    "ended_at": ended_at,
                    "entries": self._entries,
                    "duration_s": (self._last_us - (self._first_us or self._last_us)) / 1e6,
                    "files": {name: facts_of(self.directory / name) for name in self._files()},
                }
            )
            self._save_manifest()

    def _files(self) -> list[str]:
        return [JOURNAL, *(sound.name for sound in self._sounds.values())]

    def _close_files(self) -> None:
        for sound in self._sounds.values():
            sound.close()
        self._journal.close()

    def release(self) -> None:
        """Lets go of the mark that says "being written"."""
        if self._lock is not None:
            (self.directory / LIVE).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def _save_manifest(self) -> None:
        body = json.dumps(self.manifest.model_dump(mode="json"), indent=1, ensure_ascii=False)
        part = self.directory / f"{MANIFEST}.part"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(body)
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, self.directory / MANIFEST)

    def _sound(self, name: str, pcm: Pcm) -> int:
        """Appends to a sound file; returns where in it that is. Nothing at all if sound is not kept."""
        if not self.manifest.keeps_sound:
            return 0
        if (sound := self._sounds.get(name)) is None:
            audio = "flac" if name == MADE else self.manifest.audio
            sound = self._sounds[name] = _SoundFile(self.directory, name, audio)
        at = sound.samples
        sound.write(pcm)
        return at

    # The sink of the journal's writer.

    def put_sound(self, samples: Samples) -> Any:
        if not self.manifest.keeps_sound:
            return {"n": len(samples), "levels": levels(samples)}
        return {"at": self._sound(MADE, to_pcm(samples)), "n": len(samples)}

    def put_image(self, image: Image) -> Any:
        reference = {"pts": image.pts, "width": image.width, "height": image.height}
        if not self._images:
            return reference
        name = f"{hashlib.sha256(image.jpeg).hexdigest()[:32]}.jpg"
        folder = self.directory / IMAGES
        if not (folder / name).exists():
            folder.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as out:
                out.write(image.jpeg)
        return {**reference, "file": name}


def levels(samples: Samples) -> list[int]:
    """RMS of each 20 ms on the 16-bit scale, so that what was loud enough to be noticed stays so."""
    padded = np.pad(samples, (0, -len(samples) % PACKET_SAMPLES)).reshape(-1, PACKET_SAMPLES)
    rms = np.sqrt(np.mean(np.square(padded, dtype=np.float64), axis=1))
    return [int(np.ceil(v * 32768.0) if v > AUDIBLE_RMS else np.floor(v * 32768.0)) for v in rms]


def _hold(path: Path) -> BinaryIO | None:
    """An open file that is locked for as long as this process lives; None where there are no such locks."""
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return handle
