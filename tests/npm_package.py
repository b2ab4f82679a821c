"""A package of the npm registry, for tests: fetched by npm, checked against its integrity, kept.

npm does the fetching, so a user's mirrors and proxies are respected; nothing of the package is run by it.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from duplex.weights import default_root


def npm_package(name: str, version: str, integrity: str, folder: str) -> Path:
    """The files of ``folder`` inside the package. ``integrity``: as npm writes it, ``sha512-…``."""
    kept = default_root().parent / "npm" / f"{name.replace('/', '-').removeprefix('@')}-{version}"
    if kept.is_dir():
        return kept
    npm = shutil.which("npm")
    assert npm, "Install npm (package 'npm' on Debian and Ubuntu) to run this test."
    with tempfile.TemporaryDirectory() as scratch:
        command = [npm, "pack", "--silent", "--ignore-scripts", f"{name}@{version}", "--pack-destination", scratch]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        archive = next(Path(scratch).glob("*.tgz"), None)
        assert archive is not None, f"npm could not fetch {name}@{version}:\n{done.stderr[-2000:]}"
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        assert f"sha512-{digest}" == integrity, f"{archive.name} is not the file that is pinned"
        unpacked = Path(scratch) / "files"
        unpacked.mkdir()
        with tarfile.open(archive) as tar:
            for member in tar:
                inside = Path(member.name).relative_to("package")
                if member.isfile() and inside.parent.as_posix() == folder:
                    content = tar.extractfile(member)
                    assert content is not None
                    (unpacked / inside.name).write_bytes(content.read())
        assert any(unpacked.iterdir()), f"{name}@{version} has no files in {folder}"
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(unpacked, kept, dirs_exist_ok=True)
    return kept
