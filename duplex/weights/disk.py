"""Model files on a disk: is a file whole, what is known about it from last time, and who may write now.

The stamp (``.verified.json`` in a model's directory) remembers the fingerprint of each file that was hashed
and found right; ``store.py`` explains when it is believed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from duplex.errors import WeightsError
from duplex.weights.manifest import FileSpec

STAMP = ".verified.json"


@dataclass(frozen=True)
class FileProblem:
    """What is wrong with one file: ``missing``, ``truncated`` (wrong length) or ``altered`` (wrong bytes)."""

    file: str
    kind: Literal["missing", "truncated", "altered"]
    detail: str


def check_file(directory: Path, spec: FileSpec, stamped: object) -> FileProblem | None:
    """What is wrong with ``spec`` in ``directory``. Hashed unless ``stamped`` is its fingerprint of now."""
    path = directory / spec.name
    try:
        size_bytes = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return FileProblem(spec.name, "missing", f"{spec.name} is missing")
    if size_bytes != spec.size_bytes:
        detail = f"{spec.name} has {size_bytes} bytes, expected {spec.size_bytes}"
        return FileProblem(spec.name, "truncated", detail)
    if stamped == fingerprint(path, spec):
        return None
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != spec.sha256:
        detail = f"{spec.name} is altered (sha256 {digest[:12]}…, expected {spec.sha256[:12]}…)"
        return FileProblem(spec.name, "altered", detail)
    return None


def fingerprint(path: Path, spec: FileSpec) -> dict[str, object]:
    """What must all be unchanged for a file to be believed without hashing it again."""
    stat = path.stat()
    return {
        "sha256": spec.sha256,
        "size_bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
    }


def read_stamp(directory: Path) -> dict[str, object]:
    try:
        stamp = json.loads((directory / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(directory: Path, stamp: Mapping[str, object]) -> None:
    # Only a shortcut: a read-only store works without it, and is hashed at each start.
    part = directory / f"{STAMP}.{os.getpid()}.part"
    with suppress(OSError):
        if directory.is_dir():
            try:
                part.write_text(json.dumps(stamp, indent=1), encoding="utf-8")
                os.replace(part, directory / STAMP)
            finally:
                part.unlink(missing_ok=True)


@contextmanager
def storage_errors(root: Path) -> Iterator[None]:
    """Map the file system's errors to sentences."""
    elsewhere = "set DUPLEX_MODELS_DIR to a directory"
    try:
        yield
    except OSError as error:
        where = error.filename or root
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            message = f"The disk with {root} is full. Free some space, or {elsewhere} on another disk."
        elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            message = f"No permission for {where}. Mend its owner, or {elsewhere} you may write to."
        elif error.errno in {errno.ENOTDIR, errno.EEXIST}:
            message = f"{where} is in the way: a directory is needed there. Move it, or {elsewhere} elsewhere."
        else:
            message = f"{where}: {error.strerror or error}. Mend that, or {elsewhere} elsewhere."
        raise WeightsError(message) from error


@contextmanager
def exclusive_lock(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold an exclusive lock between processes; the system drops it if this process dies."""
    with path.open("a+b") as handle:
        if sys.platform == "win32":
            import msvcrt

            handle.seek(0)
            msvcrt.locking(handle.fileno(), msvcrt.LK_LOCK, 1)
            try:
                yield
            finally:
                handle.seek(0)
                msvcrt.locking(handle.fileno(), msvcrt.LK_UNLCK, 1)
        else:
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
