"""What a target is, and how one input is held against what the target promises.

A parser promises four things of any input at all: it returns, or raises an error that its documentation names; the
error is short and can be sent; CPU time is bounded; memory is bounded. Everything else is a :class:`Finding`.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from duplex.errors import ProtocolError

MAX_MESSAGE_CHARS = 4_000
MAX_PARAM_CHARS = 400


@dataclass(frozen=True)
class Target:
    """``run``: reads one input and says in a word what came of it. It raises ``refuses``, and nothing else.

    ``seeds``: inputs to begin with. ``words``: what the format is made of. ``mend``: puts checksums right, so that a
    changed input gets past them. ``cpu_s``, ``peak_mb``: the most that one input may cost.
    """

    name: str
    run: Callable[[bytes], str]
    refuses: tuple[type[Exception], ...]
    seeds: Callable[[], Sequence[bytes]]
    words: tuple[bytes, ...] = ()
    mend: Callable[[bytes], bytes] | None = None
    cpu_s: float = 0.5
    peak_mb: float = 64.0
    max_bytes: int = 64 * 1024
    close: Callable[[], None] = field(default=lambda: None)


class Finding(Exception):  # noqa: N818 (not an error of the program under test)
    """A broken promise. ``signature`` is alike for what is probably one fault."""

    def __init__(self, target: str, data: bytes, what: str, signature: str) -> None:
        self.target, self.data, self.what, self.signature = target, data, what, signature
        super().__init__(f"{target}: {what}\n  input ({len(data)} bytes): {data[:200]!r}")


def attempt(target: Target, data: bytes, *, measured: bool = True) -> str:
    """Runs ``data``; returns what came of it, an error's kind or a word. Raises ``Finding``."""
    before_mb = _reset_peak() if measured else 0.0
    began_s = time.process_time()
    try:
        outcome = target.run(data)
    except target.refuses as error:
        outcome = _refused(target, data, error)
    except Finding:
        raise
    except Exception as error:
        kind, place = type(error).__name__, _place(error)
        raise Finding(target.name, data, f"{kind}: {str(error)[:300]} ({place})", f"{kind} {place}") from error
    cpu_s = time.process_time() - began_s
    if cpu_s > target.cpu_s:
        raise Finding(target.name, data, f"took {cpu_s:.2f} s of CPU; {target.cpu_s:g} are allowed", "cpu")
    if measured and (peak_mb := _peak_mb() - before_mb) > target.peak_mb:
        raise Finding(target.name, data, f"took {peak_mb:.0f} MB; {target.peak_mb:g} are allowed", "memory")
    return outcome


def _refused(target: Target, data: bytes, error: Exception) -> str:
    """An error is sent to whoever caused it and may be logged: it has to be short, and text."""
    message, param = str(error), str(getattr(error, "param", None) or "")
    if len(message) > MAX_MESSAGE_CHARS or len(param) > MAX_PARAM_CHARS:
        what = f"its error has {len(message)} characters, its param {len(param)}: {message[:200]!r}"
        raise Finding(target.name, data, what, f"long {_place(error)}")
    try:
        (message + param).encode()
    except UnicodeEncodeError as wrong:
        raise Finding(
            target.name, data, f"its error cannot be sent as text: {message[:200]!r}", f"text {_place(error)}"
        ) from wrong
    code = error.code if isinstance(error, ProtocolError) else ""
    return f"{type(error).__name__} {code} {_place(error)}"


def _place(error: BaseException) -> str:
    """Where in our code it came from: the innermost line of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "site-packages" not in frame.filename and "lib/python" not in frame.filename]
    frame = (ours or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


# --- memory: the resident set's high-water mark, which counts what libraries take as well ----------------------


def _reset_peak() -> float:
    """Begins a new high-water mark; what is resident now, in MB. 0 where the system keeps none."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status_mb("VmRSS")
    except OSError:
        return 0.0


def _peak_mb() -> float:
    try:
        return _status_mb("VmHWM")
    except OSError:
        return 0.0


def _status_mb(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    return 0.0
