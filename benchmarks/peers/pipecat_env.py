"""An environment of its own for Pipecat: made once, pinned, checked; duplex never imports from it.

    python -m duplex.benchmarks.peers.pipecat_env [--remove]

It lies beside the models (``~/.cache/duplex/peers/pipecat-1.14.0``, about 1 GB) and is made again when the
pins or the Python version change, or when it is not whole. Deleting the folder is always safe.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from duplex.errors import DuplexError
from duplex.weights import default_root

VERSION = "1.14.0"
REQUIREMENTS = Path(__file__).with_name("pipecat-requirements.txt")
_NEEDS_BYTES = 2_500_000_000  # 1.0 GB installed, and pip's downloads while it works
_UNWANTED = ("torch", "transformers", "tensorflow")  # gigabytes, and no part of this bot needs them


def default_directory() -> Path:
    return default_root().parent / "peers" / f"pipecat-{VERSION}"


def python_of(directory: Path) -> Path:
    return directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def stamp() -> str:
    """What a finished environment was made from; another stamp means it has to be made again."""
    pins = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    return f"{platform.python_implementation()} {platform.python_version()} {platform.machine()} {pins}"


def is_ready(directory: Path) -> bool:
    """Whether the environment is whole and up to date. Reads one small file."""
    try:
        return python_of(directory).exists() and (directory / "duplex-stamp").read_text("utf-8") == stamp()
    except OSError:
        return False


def ensure(directory: Path | None = None, tell: Callable[[str], None] = print) -> Path:
    """Makes the environment unless it is there; returns its Python. Blocks for a minute or more the first time.

    Raises ``DuplexError`` with what failed and what to do. A failed attempt leaves nothing that looks whole.
    """
    directory = directory or default_directory()
    if is_ready(directory):
        return python_of(directory)
    names = required()
    directory.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory.parent).free
    if free < _NEEDS_BYTES:
        raise DuplexError(
            f"Pipecat's environment needs {_NEEDS_BYTES / 1e9:.1f} GB while it is made, and {directory.parent} has "
            f"{free / 1e9:.1f} GB free. Make room there, or set DUPLEX_MODELS_DIR to a folder on another disk."
        )
    tell(f"Installing Pipecat {VERSION} and its {len(names) - 1} dependencies into {directory} (about 1 GB, once)")
    if directory.exists():
        shutil.rmtree(directory)
    _make_venv(directory)
    _install(python_of(directory), names, tell)
    _check(python_of(directory))
    (directory / "duplex-stamp").write_text(stamp(), "utf-8")
    tell(f"Pipecat {VERSION} is ready: {_size_mb(directory):.0f} MB in {directory}")
    return python_of(directory)


def required() -> list[str]:
    """The pinned names, without versions and markers."""
    lines = REQUIREMENTS.read_text("utf-8").splitlines()
    return [line.partition("==")[0] for line in lines if line and not line.startswith("#")]


def _make_venv(directory: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "venv", str(directory)], capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).split())[-300:]
        raise DuplexError(
            f"No virtual environment could be made (on Debian: apt install python3-venv). It said: {said}"
        )


def _install(python: Path, names: Sequence[str], tell: Callable[[str], None]) -> None:
    """pip, one line of progress for every ten packages it has collected."""
    command = [
        str(python),
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-input",
        "--progress-bar",
        "off",
    ]
    command += ["--no-deps", "-r", str(REQUIREMENTS)]  # every dependency is pinned, so nothing is left to resolve
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        assert pip.stdout is not None
        collected, last = 0, [""] * 5
        for line in pip.stdout:
            last = [*last[1:], line.strip()]
            if line.startswith(("Collecting ", "Processing ")):
                collected += 1
                if collected % 10 == 0:
                    tell(f"  {collected} of {len(names)} packages")
            elif line.startswith("Installing collected"):
                tell("  unpacking")
    if pip.returncode:
        raise DuplexError("pip could not install Pipecat:\n  " + "\n  ".join(filter(None, last)))


def _check(python: Path) -> None:
    """That it imports, is the version asked for, and brought none of the giants along."""
    script = (
        "import importlib.metadata as m, importlib.util as u, json\n"
        "import pipecat.services.moonshine.stt, pipecat.services.piper.tts, pipecat.transports.smallwebrtc.transport\n"
        f"print(m.version('pipecat-ai'), *[n for n in {_UNWANTED!r} if u.find_spec(n)])"
    )
    done = subprocess.run([str(python), "-c", script], capture_output=True, text=True, check=False)
    if done.returncode:
        raise DuplexError(f"Pipecat was installed but does not import: {done.stderr.strip()[-400:]}")
    version, *unwanted = done.stdout.split("\n")[-2].split()
    if version != VERSION or unwanted:
        raise DuplexError(f"The environment holds pipecat-ai {version} {unwanted}, wanted {VERSION} without those.")


def _size_mb(directory: Path) -> float:
    return sum(path.lstat().st_size for path in directory.rglob("*") if not path.is_symlink()) / 1e6


def main(argv: Sequence[str] | None = None) -> int:
    """Installs, or removes, from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--remove", action="store_true", help="delete the environment")
    args = parser.parse_args(argv)
    directory = default_directory()
    if args.remove:
        shutil.rmtree(directory, ignore_errors=True)
        print(f"{directory} is gone.")
        return 0
    try:
        print(ensure(directory))
    except DuplexError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
