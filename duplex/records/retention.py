"""How long recordings are kept: the oldest go first, and one that is being written never goes.

Only what a recording consists of is removed, and only from folders that are named as recordings are: whatever
else lies in the same place stays there.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path

from duplex.config import RecordConfig
from duplex.records.archive import HEARD, IMAGES, JOURNAL, LIVE, MADE, MANIFEST, SPOKEN, is_live, sessions

log = logging.getLogger("duplex.recorder")

_NAME = re.compile(r"^(\d{8}T\d{6})\.\d{3}Z-")


def sweep(root: Path, config: RecordConfig, now: datetime, keep: Collection[Path] = ()) -> int:
    """Removes what is past the limits; returns how many bytes are left in ``root``.

    ``keep``: recordings of this process that are being written. Those of others are known by their locks.
    """
    found = [path for path in sessions(root) if _NAME.match(path.name) and not path.is_symlink()]
    sizes = {path: size_bytes(path) for path in found}
    total, count = sum(sizes.values()), len(found)
    oldest = now - timedelta(days=config.max_age_days)
    for path in found:
        too_many = count > config.max_sessions or total > config.max_total_mb * 1e6
        if not too_many and began(path) >= oldest:
            continue
        if path in keep or is_live(path):
            continue
        if remove(path):
            total, count = total - sizes[path], count - 1
            log.info("removed the recording %s", path.name)
    return total


def began(path: Path) -> datetime:
    """When the session in ``path`` began, by its name."""
    match = _NAME.match(path.name)
    assert match is not None
    return datetime.strptime(match[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)


def size_bytes(path: Path) -> int:
    return sum(_size(file) for file in (*path.glob("*"), *path.glob(f"{IMAGES}/*")))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except OSError:  # it went meanwhile
        return 0


def remove(path: Path) -> bool:
    """Deletes one recording. False, and a line in the log, if something of it could not be deleted."""
    sounds = [name + ending for name in (HEARD, SPOKEN, MADE) for ending in (".flac", ".opus")]
    try:
        for image in path.glob(f"{IMAGES}/*.jpg"):
            image.unlink()
        if (path / IMAGES).is_dir():
            (path / IMAGES).rmdir()
        # The manifest goes last: until then it is still known for what it is.
        for name in (JOURNAL, *sounds, LIVE, f"{MANIFEST}.part", MANIFEST):
            (path / name).unlink(missing_ok=True)
        path.rmdir()
    except OSError as error:
        log.warning("cannot remove the recording %s: %s", path, error)
        return False
    return True
