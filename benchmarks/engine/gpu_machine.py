"""What ``make bench-gpu`` runs: the tests that need a GPU, then the engine's table for a 7B. Under nine minutes.

    python benchmarks/engine/gpu_machine.py [--wheels DIR] [--out DIR] [BENCH ARGUMENT …]

Needs no network and installs nothing into the interpreter it is run with, which must have PyTorch with CUDA, numpy,
pytest and rich. What it lacks of the rest is taken from a folder of wheels. To fill that where there is a network, for
a Python 3.12 that has the usual company of PyTorch, but not these:

    PIP="pip download --only-binary=:all: --python-version 3.12 --platform manylinux_2_17_x86_64 -d .whl"
    $PIP pydantic && $PIP --no-deps moshi==0.2.13

The project's folders are linked into ``build/bench-gpu``, since they are not called what they are imported as.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TREE = ROOT / "build" / "bench-gpu"
LIMIT_S = 530.0
TESTS_LIMIT_S = 150.0
REPORT_S = 70.0  # a measurement that began in time may take so long, and the report
LEAVES = ("benchmarks", "codecs", "thinker_talker", "transport", "web_demo")
NEEDED = (
    "torch", "numpy", "pytest", "rich", "moshi", "einops", "safetensors", "sentencepiece", "huggingface_hub",
    "pydantic", "matplotlib", "httpx", "prometheus_client",
)  # fmt: skip
BENCH = (
    *("--preset", "moshi-7b", "--sessions", "1,2,8,16,32,64", "--stock", "1,8,32"),
    *("--precision", "bfloat16,codec=float32,kv=int8", "--precision", "bfloat16,codec=float32"),
    *("--steps", "150", "--paced", "40"),
)


def main() -> int:
    began_s = time.monotonic()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--wheels", type=Path, default=ROOT / ".whl")
    parser.add_argument("--out", type=Path, default=TREE, help="where the JSON and the PNG go")
    parser.add_argument("--without-gpu", action="store_true", help="leave the tests out, and go on where there is none")
    args, bench = parser.parse_known_args()
    _link()
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "NO_TORCH_COMPILE": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join((str(TREE), str(_wheels(args.wheels))))
    missing = _missing(environment)
    if missing:
        print(f"Missing: {', '.join(missing)}. Put their wheels into {args.wheels} (see {__file__}).")
        return 2
    if not (args.without_gpu or _has_gpu(environment)):
        print(f"The torch of {sys.executable} sees no GPU here.")
        return 2
    tests = [
        *(sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", "-c", "tests/gpu/pytest.ini"),
        *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "gpu").glob("gpu_*.py")),
    ]
    tested = 0 if args.without_gpu else _run(tests, environment, TESTS_LIMIT_S)
    args.out.mkdir(parents=True, exist_ok=True)
    left_s = LIMIT_S - (time.monotonic() - began_s)
    files = ["--json", str(args.out / "engine.json"), "--plot", str(args.out / "engine.png")]
    call = "import sys; from duplex.benchmarks.engine import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", call, *(bench or BENCH), *files, "--limit-s", f"{max(1.0, left_s - REPORT_S):.0f}"]
    benched = _run(command, environment, left_s)
    took_s = time.monotonic() - began_s
    print(f"tests: {'passed' if tested == 0 else f'exit {tested}'}; table: exit {benched}; {took_s:.0f} s in all")
    return tested or benched


def _link() -> None:
    """``build/bench-gpu/duplex``: the core's modules and the leaves beside each other."""
    package = TREE / "duplex"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for path in (ROOT / "duplex").iterdir():
        if path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    for name in LEAVES:
        (package / name).symlink_to(ROOT / name)


def _wheels(folder: Path) -> Path:
    site = TREE / "site"
    wheels = sorted(str(path) for path in folder.glob("*.whl")) if folder.is_dir() else []
    if wheels and not site.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run([*pip, "--target", str(site), *wheels], check=True)
    return site


def _missing(environment: dict[str, str]) -> list[str]:
    """Of the modules needed, those the interpreter does not find with ``environment``."""
    code = f"import importlib.util as u; print(*[n for n in {NEEDED!r} if u.find_spec(n) is None])"
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return found.stdout.split()


def _has_gpu(environment: dict[str, str]) -> bool:
    code = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def _run(command: list[str], environment: dict[str, str], limit_s: float) -> int:
    try:
        return subprocess.run(command, env=environment, cwd=ROOT, timeout=limit_s).returncode
    except subprocess.TimeoutExpired:
        print(f"stopped after {limit_s:.0f} s: {' '.join(command[:6])} …")
        return 124


if __name__ == "__main__":
    sys.exit(main())
