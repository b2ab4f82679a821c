"""Logs: one line an event, with the session it belongs to, written by a thread that may wait for whoever reads them.

Which session a line belongs to is a context variable. It is set where a session is made, so the session's task, what
that schedules on the loop, and the rest of the door's own task carry it; a worker's thread carries it through
:func:`within_this_session`. Nobody has to pass a name around, and a library's line has it too.

Two formats of the same facts:

 - text: ``2026-11-22 18:23:52,123 INFO    duplex.webrtc  sess_5f0c…  call rtc_… is connected``
 - json: ``{"time": "2026-11-22T18:23:52.123Z", "level": "info", "logger": "duplex.webrtc", "session": …}``

What was said in a call is never logged; ids, lengths and latencies are.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from datetime import UTC, datetime
from typing import Any, Literal, ParamSpec, TextIO

from duplex.config import LogConfig

P = ParamSpec("P")

_session: ContextVar[str | None] = ContextVar("duplex_session", default=None)

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
"""What every record has; anything else came by ``extra=`` and is a field of the event."""
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F, *range(0x80, 0xA0))} | {10: "\\n", 13: "\\r"}
_CLOSE_WITHIN_S = 2.0


def enter_session(session_id: str) -> None:
    """From here on, lines of this task and of what it starts belong to that session."""
    _session.set(session_id)


def current_session() -> str | None:
    return _session.get()


def within_this_session(callback: Callable[P, object]) -> Callable[P, None]:
    """``callback``, to be called from any thread, as a part of the session that is current now."""
    context = copy_context()

    def carried(*args: P.args, **kwargs: P.kwargs) -> None:
        context.copy().run(callback, *args, **kwargs)  # a copy: two threads may call at once

    return carried


def _unchanged(text: str) -> str:
    return text


class _Lines(logging.Formatter):
    """``clean`` takes secrets out of any text, traceback included."""

    def __init__(self, clean: Callable[[str], str] = _unchanged) -> None:
        super().__init__()
        self._clean = clean

    def _message(self, record: logging.LogRecord) -> str:
        try:
            return self._clean(record.getMessage())
        except Exception:  # a wrong number of arguments must not cost the line
            return self._clean(f"{record.msg} {record.args!r}")

    def _trace(self, record: logging.LogRecord) -> str:
        if not record.exc_info or record.exc_info[0] is None:
            return ""
        return self._clean("".join(traceback.format_exception(*record.exc_info)).rstrip())


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _PLAIN}


class TextLines(_Lines):
    """For people. A message stays on its line whatever it holds; a traceback follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        at = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(record.created))},{int(record.msecs):03d}"
        session = current_session()
        said = self._message(record).translate(_CONTROLS)
        fields = "".join(f" {name}={self._clean(str(value))}" for name, value in _fields(record).items())
        line = f"{at} {record.levelname:<7} {record.name}  {f'{session}  ' if session else ''}{said}"
        line += fields.translate(_CONTROLS)
        trace = self._trace(record)
        return line + "".join(f"\n    {part}" for part in trace.splitlines())


class JsonLines(_Lines):
    """For machines: an object a line. ``error`` has type, message and trace; fields of the event stand beside them."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, Any] = {"time": at, "level": record.levelname.lower(), "logger": record.name}
        if (session := current_session()) is not None:
            line["session"] = session
        line["message"] = self._message(record)
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line["error"] = {
                "type": type(error).__name__,
                "message": self._clean(str(error)),
                "trace": self._trace(record),
            }
        for name, value in _fields(record).items():
            line.setdefault(name, value if isinstance(value, (int, float, bool)) else self._clean(str(value)))
        return json.dumps(line, ensure_ascii=False)


_FORMATS: dict[Literal["text", "json"], type[_Lines]] = {"text": TextLines, "json": JsonLines}


class LineWriter(logging.Handler):
    """Formats where the line is made, and writes it on a thread of its own: a reader that stalls stops no call.

    ``max_lines`` wait at most. More are dropped, counted in ``dropped``, and their number is told in a line.
    """

    def __init__(self, stream: TextIO, max_lines: int) -> None:
        super().__init__()
        self._stream = stream
        self._queue: queue.Queue[str | None] = queue.Queue(max_lines)
        self.dropped = 0
        self._told = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="duplex-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if self._closed:
            return
        try:
            self._put(record)
        except Exception:
            self.handleError(record)

    def _put(self, record: logging.LogRecord) -> None:
        try:
            if self.dropped > self._told:
                said = f"{self.dropped - self._told} lines of this log were lost: nobody took them in time"
                lost = logging.LogRecord("duplex.logs", logging.WARNING, __file__, 0, said, None, None)
                self._queue.put_nowait(self.format(lost))
                self._told = self.dropped
            self._queue.put_nowait(self.format(record))
        except queue.Full:
            self.dropped += 1

    def _run(self) -> None:
        while (line := self._queue.get()) is not None:
            try:
                self._stream.write(line + "\n")
                if self._queue.empty():
                    self._stream.flush()
            except (OSError, ValueError):
                pass  # the reader is gone; the calls are not
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def close(self) -> None:
        """Writes what waits, for two seconds at most."""
        if not self._closed:
            self._closed = True
            try:
                self._queue.put(None, timeout=_CLOSE_WITHIN_S)
                self._thread.join(_CLOSE_WITHIN_S)
            except queue.Full:
                pass
        super().close()


@contextlib.contextmanager
def logging_as(
    config: LogConfig, *, clean: Callable[[str], str] = _unchanged, stream: TextIO | None = None
) -> Iterator[LineWriter]:
    """All of the process's logs are written as ``config`` says, meanwhile, in place of whatever wrote them before.

    ``clean`` takes secrets out of a text. ``stream``: standard error unless told otherwise. Python's warnings are logs.
    """
    writer = LineWriter(sys.stderr if stream is None else stream, config.queue_lines)
    writer.setFormatter(_FORMATS[config.format](clean))
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers[:] = [writer]
    root.setLevel(config.level.upper())
    logging.captureWarnings(True)
    try:
        yield writer
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = before
        root.setLevel(level)
        writer.close()


class AsLog:
    """A file whose lines become lines of the log, for what is printed for people where a machine reads."""

    def __init__(self, log: logging.Logger) -> None:
        self._log, self._rest = log, ""

    def write(self, text: str) -> int:
        *whole, self._rest = (self._rest + text).split("\n")
        for line in filter(None, (part.strip() for part in whole)):
            self._log.info("%s", line)
        return len(text)

    def flush(self) -> None: ...
