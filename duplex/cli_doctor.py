"""``duplex doctor``: what is here, what is missing, the line to run for it, and whether the machine keeps up.

``duplex doctor --url`` looks at a running server instead: :mod:`duplex.cli_doctor_server`.

The exit status is 0 when a default ``duplex serve`` would work, else 1. A slow machine is told so and is not an
error: the same machine may be fast when it is less busy. Part of the composition root.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import re
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from typing import Any

from rich.console import Console
from rich.text import Text

from duplex import registry
from duplex.cli_doctor_report import Finding, State, print_finding
from duplex.cli_doctor_speed import Outcome, judge, measure
from duplex.cli_models import megabytes, short_path
from duplex.config import AgentConfig, ServerConfig
from duplex.errors import DuplexError
from duplex.weights import ModelStore

DISTRIBUTION = "duplex-runtime"
INSTALL_LOCAL = f"pip install '{DISTRIBUTION}[local]'"
RUNS_ON = {  # which library a model needs
    "silero-vad": "onnxruntime",
    "smart-turn": "onnxruntime",
    "moonshine-tiny-en": "onnxruntime",
    "smollm2-135m": "xllamacpp",
    "piper-joe": "piper-tts",
}
MIN_FREE_BYTES = 1_500_000_000  # what one default server is allowed to use


def add_parser(subparsers: Any) -> None:
    """Add ``doctor`` to the ``duplex`` command."""
    parser = subparsers.add_parser(
        "doctor",
        help="what is installed, what is missing, does the machine keep up",
        description="Looks at this machine and says what to run for each thing that is missing. "
        "Exit status 0: a default 'duplex serve' would work. With --url: whether callers reach a running server from "
        "here, and what to do where they do not.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the report")
    parser.add_argument("--quick", action="store_true", help="do not run the models")
    parser.add_argument("--url", help="look at a running server instead, from here: http://host:8998")
    parser.add_argument("--key", help="with --url: a key of that server; DUPLEX_API_KEY is seen by fewer")
    parser.add_argument("--port", type=int, default=ServerConfig().port, help="port to look at (%(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.url is not None:
        from duplex.cli_doctor_server import run_for_server

        return run_for_server(args.url, args.key, as_json=args.json)
    store = ModelStore()
    console = Console(stderr=args.json)
    findings: list[Finding] = []

    def section(found: Iterable[Finding]) -> None:
        for finding in found:
            if not args.json:
                print_finding(console, finding, heading=not any(f.section == finding.section for f in findings))
            findings.append(finding)

    section(check_machine())
    section(check_libraries())
    section(check_models(store))
    section(check_plugins(AgentConfig().name))
    section([check_port(ServerConfig().host, args.port)])
    if not args.quick:
        whole = [f.name for f in findings if f.section == "models" and f.state == "ok"]
        waiting = nullcontext() if args.json else console.status("running each model …", spinner="dots")
        with waiting:
            section(judged(outcome) for outcome in measure(store.root, whole))
    ready = not any(finding.state == "fail" for finding in findings)
    if args.json:
        print(json.dumps({"ready": ready, "findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        _summary(console, findings, ready)
    return 0 if ready else 1


# -- the checks ---------------------------------------------------------------------------------------------


def check_machine() -> list[Finding]:
    def line(name: str, good: bool, text: str, mend: str = "") -> Finding:
        return Finding("machine", name, "ok" if good else "warn", text, "" if good else mend)

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = [
        line("python", True, f"{platform.python_version()} ({sys.executable})"),
        line("platform", True, f"{platform.system()} {platform.release()}, {platform.machine()}"),
        line("cores", cores >= 2, str(cores), "one core is shared by all models; expect slow answers"),
    ]
    if hasattr(os, "getloadavg"):
        load = os.getloadavg()[0]
        text = f"{load:.1f} in the last minute"
        found.append(line("load", load <= cores, text, "other programs are busy; the speeds below suffer"))
    total_bytes, free_bytes = _memory_bytes()
    if total_bytes:
        enough = free_bytes >= MIN_FREE_BYTES
        text = f"{total_bytes / 1e9:.1f} GB, {free_bytes / 1e9:.1f} GB free"
        found.append(line("memory", enough, text, f"a server may need {MIN_FREE_BYTES / 1e9:.1f} GB; close something"))
    return found


def check_libraries() -> list[Finding]:
    """Each requirement of the distribution and of its ``local`` extra; then torch, if it is there."""
    try:
        wanted = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return [Finding("libraries", DISTRIBUTION, "fail", "not installed as a package", "pip install -e '.[local]'")]
    base = [_project(line) for line in wanted if "extra ==" not in line]
    missing = [name for name in base if _version(name) is None]
    if missing:
        text = f"missing: {', '.join(missing)}"
        found = [Finding("libraries", "runtime", "fail", text, f"pip install {DISTRIBUTION}")]
    else:
        shown = ", ".join(f"{name} {_version(name)}" for name in ("aiortc", "fastapi", "uvicorn", "websockets"))
        found = [Finding("libraries", "runtime", "ok", shown)]
    local = [_project(line) for line in wanted if re.search(r"extra == ['\"]local['\"]", line)]
    found += [_local_library(name) for name in local]
    if importlib.util.find_spec("torch") is not None:
        found.append(_guarded("torch", _torch))
    return found


def _local_library(name: str) -> Finding:
    found_version = _version(name)
    if found_version is None and name == "onnxruntime":  # the GPU build is another distribution, same import
        found_version = _version("onnxruntime-gpu")
    if found_version is None:
        return Finding("libraries", name, "fail", "not installed", INSTALL_LOCAL)
    if name == "onnxruntime":
        return _guarded(name, _onnxruntime)
    return Finding("libraries", name, "ok", found_version)


def _onnxruntime() -> str:
    ort: Any = importlib.import_module("onnxruntime")
    providers = [provider.removesuffix("ExecutionProvider") for provider in ort.get_available_providers()]
    return f"{ort.__version__}, providers: {', '.join(providers)}"


def _torch() -> str:
    torch: Any = importlib.import_module("torch")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    return f"{torch.__version__}, {gpu}"


def _guarded(name: str, describe: Callable[[], str]) -> Finding:
    """A library that is installed and does not import is a line like any other."""
    try:
        return Finding("libraries", name, "ok", describe())
    except Exception as error:  # an extension module may raise anything
        needed: State = "warn" if name == "torch" else "fail"
        mend = f"pip install --force-reinstall {name}"
        return Finding("libraries", name, needed, f"does not import: {_one_line(error)}", mend)


def check_models(store: ModelStore) -> list[Finding]:
    """The default models, every byte of them."""
    found: list[Finding] = []
    for name in store.manifest.default:
        mend = f"duplex models pull {name}"
        try:
            problems = store.check(name, deep=True)
        except DuplexError as error:
            found.append(Finding("models", name, "fail", _one_line(error), mend))
            continue
        if not problems:
            text = f"verified, {megabytes(store.manifest.entry(name).size_bytes)}"
            found.append(Finding("models", name, "ok", text))
        elif all(problem.kind == "missing" for problem in problems):
            found.append(Finding("models", name, "fail", f"not in {short_path(store.root)}", mend))
        else:
            found.append(Finding("models", name, "fail", "; ".join(p.detail for p in problems), mend))
    return found


def check_plugins(agent: str) -> list[Finding]:
    """What the entry points offer; the default agent must import."""
    found: list[Finding] = []
    for group in registry.GROUPS:
        kind = group.removeprefix("duplex.")
        try:
            names = registry.names(group)
            if kind == "agents":
                registry.lookup(group, agent)
            found.append(Finding("plug-ins", kind, "ok", ", ".join(names) or "none added"))
        except Exception as error:  # a third party's module may raise anything at import
            found.append(Finding("plug-ins", kind, "fail", f"{agent}: {_one_line(error)}", _reinstall()))
    return found


def check_port(host: str, port: int) -> Finding:
    with socket.socket() as probe:
        # As the server does: a port that only waits out old connections counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            text = f"{host}:{port} cannot be used ({error.strerror or error})"
            return Finding("server", "port", "fail", text, f"duplex serve --port {port + 1 if port < 65535 else 0}")
    return Finding("server", "port", "ok", f"{host}:{port} is free")


def judged(outcome: Outcome) -> Finding:
    """A model's speed as a line of the report."""
    if outcome.figures is None:
        _, _, advice = outcome.error.partition("Run: ")  # our own errors say what to run
        mend = advice or f"pip install --force-reinstall --no-deps {RUNS_ON[outcome.name]}"
        return Finding("speed", outcome.name, "fail", outcome.error, mend)
    level, said, aim = judge(outcome.name, outcome.figures)
    if level == "ok":
        return Finding("speed", outcome.name, "ok", said)
    verdict = "slower than a good conversation needs" if level == "slow" else "does not keep up with real time"
    return Finding("speed", outcome.name, "warn", said, f"{verdict} ({aim})")


def _memory_bytes() -> tuple[int, int]:
    """Total and available memory; zeros where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            table = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if " kB" in line}
        return table["MemTotal"], table["MemAvailable"]
    except (OSError, KeyError, ValueError):
        pass
    try:
        page_bytes = os.sysconf("SC_PAGE_SIZE")
        total_bytes = page_bytes * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0, 0
    return total_bytes, total_bytes


def _project(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _reinstall() -> str:
    """How to install this distribution again, the way it was installed: entry points are read at installation."""
    try:
        origin = distribution(DISTRIBUTION).read_text("direct_url.json") or ""
    except PackageNotFoundError:
        origin = ""
    here = '"editable": true' in origin
    return "pip install -e ." if here else f"pip install --force-reinstall --no-deps {DISTRIBUTION}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# -- the report ---------------------------------------------------------------------------------------------


def _summary(console: Console, findings: Sequence[Finding], ready: bool) -> None:
    console.print()
    if ready:
        slow = any(finding.section == "speed" and finding.state == "warn" for finding in findings)
        verdict = "Ready, on a machine that is slow at this now." if slow else "Ready."
        console.print(Text(f"{verdict} Run: duplex serve", style="yellow" if slow else "bold green"), soft_wrap=True)
        return
    console.print(Text("Not ready yet. Run:", style="bold red"))
    for mend in _commands(findings):
        console.print(Text(f"  {mend}"), soft_wrap=True)


def _commands(findings: Sequence[Finding]) -> list[str]:
    """What to run for everything that failed: each line once, all models in one pull."""
    failed = [finding for finding in findings if finding.state == "fail"]
    models = [finding.name for finding in failed if finding.section == "models"]
    others = list(dict.fromkeys(finding.mend for finding in failed if finding.section != "models"))
    pull = [f"duplex models pull {' '.join(models)}"] if models else []
    port = [mend for mend in others if mend.startswith("duplex serve")]
    return [mend for mend in others if mend not in port] + pull + port
