"""Recording live sessions: a tap on each, and one thread that writes them all down.

The event loop only hands entries over; encoding, compressing and the disk are the thread's. When the disk is
full or too slow, recording of that session stops with a warning and a count, and the call goes on.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import Counter

from duplex.agent import Agent, AgentSettings
from duplex.clock import Clock
from duplex.config import RecordConfig, SessionConfig
from duplex.errors import ConfigError
from duplex.line import Line
from duplex.line_around import LineAround
from duplex.metrics import Metrics
from duplex.records.archive import Manifest, without_secrets
from duplex.records.archive_writer import SessionWriter
from duplex.records.journal import Entry, Writer
from duplex.records.retention import sweep
from duplex.records.tap import Tap, TappedSession
from duplex.session import Session

log = logging.getLogger("duplex.recorder")

_SWEEP_BYTES = 16_000_000  # look at the limits this often while sessions grow
_NEARLY_FULL = 0.95  # of the limit: stop there, or what was just recorded would be the next to go
_FULL_BYTES = 1_000_000  # no more than this is free
_TOO_SLOW = "the disk did not keep up"


class _Recording:
    """One session being recorded. ``stopped`` is set by whoever gives up first; the rest is the thread's."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.stopped: str | None = None
        self.writer: SessionWriter | None = None
        self.bytes_since_sweep = 0
        self.done = False


class Recorder:
    """Makes sessions that are written to ``config.dir``. Close it after the last of them has ended.

    ``configuration``: the whole effective configuration, for the manifest; ``models``: what is known of the
    models' files. ``wall``: the date. Raises ``ConfigError`` if nothing can be written there.
    """

    def __init__(
        self,
        config: RecordConfig,
        metrics: Metrics,
        *,
        configuration: Mapping[str, Any] | None = None,
        models: Sequence[Mapping[str, Any]] = (),
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if config.dir is None:
            raise ConfigError("record.dir names no directory to record to.")
        self.config, self.root = config, config.dir
        self._metrics, self._wall = metrics, wall
        self._configuration = without_secrets(configuration or {})
        self._models = [dict(model) for model in models]
        self._outcomes = Counter(
            "duplex_recordings", "Recorded sessions, by how recording ended", ["outcome"], registry=metrics.registry
        )
        _make_root(self.root)
        # An entry, or None for a session's end; None alone ends the thread.
        self._queue: queue.Queue[tuple[_Recording, Entry | None] | None] = queue.Queue(config.queue_entries)
        self._live: list[_Recording] = []
        self._thread = threading.Thread(target=self._run, name="duplex-recorder", daemon=True)
        self._thread.start()

    # --- the event loop's side ----------------------------------------------------------------------

    def session(
        self,
        *,
        session_id: str,
        line: Line,
        agent: Agent,
        clock: Clock,
        config: SessionConfig,
        settings: AgentSettings,
        metrics: Metrics,
    ) -> Session:
        """A session like any other, and its recording."""
        recording = _Recording(self._manifest(session_id, line, agent, config, settings))
        self._live.append(recording)
        return TappedSession(
            Tap(lambda entry: self._put(recording, entry)),
            session_id=session_id,
            line=line,
            agent=agent,
            clock=clock,
            config=config,
            settings=settings,
            metrics=metrics,
            ended=lambda: self._put(recording, None),
        )

    def _manifest(
        self, session_id: str, line: Line, agent: Agent, config: SessionConfig, settings: AgentSettings
    ) -> Manifest:
        keeps_text = self.config.keeps_text
        plain = Writer(_NOTHING, mask_text=not keeps_text)
        configuration = self._configuration
        if not keeps_text:
            configuration = _without_instructions(configuration)
        return Manifest(
            session_id=session_id,
            started_at=self._now(),
            agent=asdict(agent.info),
            line={"kind": _kind(line), "lead_packets": line.lead_packets},
            settings=plain.value(settings),
            session=config.model_dump(mode="json"),
            config=configuration,
            models=self._models,
            audio=self.config.audio,
            redact=self.config.redact,
        )

    def _now(self) -> str:
        return self._wall().astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _put(self, recording: _Recording, entry: Entry | None) -> None:
        if recording.stopped is not None and entry is not None:
            return
        try:
            self._queue.put_nowait((recording, entry))
        except queue.Full:
            self._metrics.queue_drops.labels("recorder").inc()
            self._give_up(recording, _TOO_SLOW)

    def close(self, limit_s: float = 10.0) -> None:
        """Waits until all is written, but no longer than ``limit_s``. Blocks: call it on a thread."""
        try:
            self._queue.put(None, timeout=limit_s)
        except queue.Full:
            pass
        self._thread.join(limit_s)
        if self._thread.is_alive():
            log.warning("the disk with %s does not answer: recordings there are incomplete", self.root)

    # --- the thread's side --------------------------------------------------------------------------

    def _give_up(self, recording: _Recording, why: str) -> None:
        if recording.stopped is None:
            recording.stopped = why
            log.warning("recording of %s stopped: %s. The call goes on.", recording.manifest.session_id, why)

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            recording, entry = job
            if recording.stopped is None:
                self._guarded(recording, entry)
            elif entry is None:
                self._finish(recording)
            for other in [live for live in self._live if live.stopped is not None and not live.done]:
                self._finish(other)
            del job, recording, entry
        for recording in list(self._live):
            self._give_up(recording, "the server stopped")
            self._finish(recording)

    def _guarded(self, recording: _Recording, entry: Entry | None) -> None:
        try:
            if entry is None:
                self._finish(recording)
            else:
                self._write(recording, entry)
        except Exception as error:  # a full disk, a library's own error, a fault of ours: never the call's
            if not isinstance(error, OSError):
                log.debug("recording failed", exc_info=True)
            self._give_up(recording, self._why(error))

    def _write(self, recording: _Recording, entry: Entry) -> None:
        if recording.writer is None:
            self._sweep()
            recording.writer = SessionWriter(self.root, recording.manifest, images=self.config.images)
        recording.bytes_since_sweep += recording.writer.entry(entry)
        limit_bytes = self.config.max_total_mb * 1e6
        if recording.bytes_since_sweep > min(_SWEEP_BYTES, 0.04 * limit_bytes):
            recording.bytes_since_sweep = 0
            if self._sweep(_NEARLY_FULL) > _NEARLY_FULL * limit_bytes:
                self._give_up(recording, "record.max_total_mb is used up by sessions that are still going on")

    def _why(self, error: Exception) -> str:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        with contextlib.suppress(OSError):  # libsndfile only says that the system had an error
            if shutil.disk_usage(self.root).free < _FULL_BYTES:
                return os.strerror(errno.ENOSPC)
        return f"{type(error).__name__}: {str(error).rstrip('.')}"

    def _sweep(self, share: float = 1.0) -> int:
        keep = {live.writer.directory for live in self._live if live.writer is not None}
        limits = self.config.model_copy(update={"max_total_mb": share * self.config.max_total_mb})
        return sweep(self.root, limits, self._wall().astimezone(UTC), keep)

    def _finish(self, recording: _Recording) -> None:
        if recording.done:
            return
        recording.done = True
        if recording in self._live:
            self._live.remove(recording)
        try:
            if recording.writer is not None:
                recording.writer.finish(self._now(), recording.stopped)
        except Exception as error:
            self._give_up(recording, self._why(error))
        finally:
            if recording.writer is not None:
                recording.writer.release()
                recording.writer = None
        self._outcomes.labels("complete" if recording.stopped is None else "stopped").inc()
        self._sweep()


def _make_root(root: Path) -> None:
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(root, os.W_OK | os.X_OK):
            raise PermissionError(13, "no permission to write there")
    except OSError as error:
        raise ConfigError(
            f"Cannot record to {root}: {error.strerror or error}. Choose another directory with --record."
        ) from error


def _without_instructions(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: "x" if k == "instructions" and v else _without_instructions(v) for k, v in value.items()}
    return value


class _Nothing:
    """A sink for what holds neither sound nor pictures."""

    def put_sound(self, samples: Any) -> Any:
        raise TypeError("no sound here")

    def put_image(self, image: Any) -> Any:
        raise TypeError("no pictures here")


_NOTHING = _Nothing()


def _kind(line: Line) -> str:
    """Of the door's own line, whatever is around it."""
    while isinstance(line, LineAround):
        line = line.inner
    return type(line).__name__
