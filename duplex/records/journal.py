"""The journal of a session: everything it was given and everything it did, in order, as JSON lines.

Theory of operation
-------------------
A session is deterministic: it reads the clock, its line and its agent, and nothing else. Between two of its
sleeps everything is synchronous, so its life is a sequence of *entries*, each begun by one cause: it woke
to tick, a worker had something ready, a client asked for something. An :class:`Entry` keeps what was read
meanwhile (every reading of the clock, the packets, the agent's events) beside what was done about it (events
told, commands to the agent, packets sent). Feed the inputs to another session and the outputs come again.

Sound and pictures are not in the lines: an array stands there as its place in a sound file (see
:class:`SoundSink`). Everything else is our own frozen dataclasses, written field by field and read back by
their type hints, so a new event needs no code here.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

from duplex import agent, conversation, errors, events, requests
from duplex.agent import AgentCommand, AgentEvent
from duplex.errors import AgentFaultError, DuplexError
from duplex.events import Event
from duplex.frames import PACKET_SAMPLES, Image, Origin, Packet, Samples
from duplex.line import OutPacket, PlayoutReport
from duplex.requests import Request

_MOST = 2**63  # of a whole number: microseconds or samples of three hundred thousand years
_MAX_HEARD = 10_000  # packets of one entry; a line holds a minute ahead at most, which is 3000

START, TICK, WAKE, REQUEST, STOP, CANCEL = "start", "tick", "wake", "request", "stop", "cancel"
KINDS = (START, TICK, WAKE, REQUEST, STOP, CANCEL)


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception that came out of the agent: ``where`` is the method, ``call`` its count within the entry."""

    where: str
    call: int
    error: str
    message: str

    def exception(self) -> Exception:
        """The error again; anything that is not ours comes back as ``RuntimeError``."""
        kind = _ERRORS.get(self.error)
        return RuntimeError(self.message) if kind is None else _error(self.error, self.message)


@dataclass(slots=True)
class Entry:
    """One stretch of a session's life. Times are whole microseconds of the session's clock.

    Inputs: ``readings_us`` (every ``now``), ``heard``, ``images`` (one per ``take_image``), ``collected`` (one list
    per ``collect``), ``flushed`` (samples, one per ``flush``), ``reports`` (of playout), ``closed``
    (the line was found closed), ``raised``, ``request`` with ``event_id``, ``stop`` (why it was asked to end).
    Outputs: ``told``, ``commands``, ``sent``, ``refused`` (the answer to a request that could not be met).
    """

    kind: str
    readings_us: list[int] = field(default_factory=list)
    heard: list[Packet] = field(default_factory=list)
    images: list[Image | None] = field(default_factory=list)
    collected: list[Sequence[AgentEvent]] = field(default_factory=list)
    flushed: list[int] = field(default_factory=list)
    reports: list[PlayoutReport | None] = field(default_factory=list)
    closed: bool = False
    raised: Raised | None = None
    request: Request | None = None
    event_id: str | None = None
    stop: str | None = None
    told: list[Event] = field(default_factory=list)
    commands: list[AgentCommand] = field(default_factory=list)
    sent: list[OutPacket] = field(default_factory=list)
    refused: str | None = None


# --- sound ------------------------------------------------------------------------------------------

_SCALE = np.float32(32768.0)

Pcm = npt.NDArray[np.int16]


def to_pcm(samples: Samples) -> Pcm:
    """float32[n] in [-1, 1] (clipped) to int16[n]."""
    pcm: Pcm = np.clip(np.rint(samples * _SCALE), -32768, 32767).astype(np.int16)
    return pcm


def from_pcm(pcm: Pcm) -> Samples:
    """int16[n] to float32[n]; exact."""
    return pcm.astype(np.float32) / _SCALE


def on_grid(samples: Samples) -> Samples:
    """Rounded to 16 bits (−96 dB), so that what is stored is exactly what was used: float32[n]."""
    return from_pcm(to_pcm(samples))


class SoundSink(Protocol):
    """Where the arrays in agent events go, and the pictures. Both return what stands for them in the line."""

    def put_sound(self, samples: Samples) -> Any: ...

    def put_image(self, image: Image) -> Any: ...


class SoundSource(Protocol):
    """Where they come back from."""

    def get_sound(self, reference: Any) -> Samples: ...

    def get_image(self, reference: Any) -> Image: ...

    def next_heard(self, n_packets: int) -> Samples:
        """The next ``n_packets`` of what was heard: float32[n_packets * 480]."""
        ...


# --- writing ----------------------------------------------------------------------------------------

Mask = Callable[[str], str]

# Text that is never anybody's words. Any other text is masked in a recording without text, also a new field's.
_NAMES = frozenset(
    "name agent voice status evidence grade code param kind error where user floor role client_event_id event_id "
    "item_id reply_id turn_id previous_item_id session_id state preset mode".split()
)
_NEVER_WORDS = frozenset({"turn_taking"})  # tables of settings


def mask(text: str) -> str:
    """Each word as "x": how many there were and where the spaces are is all that stays."""
    parts, in_word = [], False
    for char in text:
        if char.isspace():
            parts.append(char)
        elif not in_word:
            parts.append("x")
        in_word = not char.isspace()
    return "".join(parts)


class Writer:
    """Entries to plain JSON values. ``mask_text``: a recording without anybody's words."""

    def __init__(self, sink: SoundSink, *, mask_text: bool = False) -> None:
        self._sink = sink
        self._mask: Mask | None = mask if mask_text else None
        self._report: PlayoutReport | None = None  # as last written
        self._known: dict[str, Any] = {}  # messages as last written, so that a growing history is not repeated

    def entry(self, entry: Entry) -> dict[str, Any]:
        first = entry.readings_us[0] if entry.readings_us else 0
        line: dict[str, Any] = {"kind": entry.kind}
        if entry.readings_us:
            line["us"] = [first, *(reading - first for reading in entry.readings_us[1:])]
        if entry.heard:
            line["heard"] = [entry.heard[0].pts, "".join(packet.origin.value[0] for packet in entry.heard)]
        if any(image is not None for image in entry.images):
            line["images"] = [None if image is None else self._sink.put_image(image) for image in entry.images]
        if any(entry.collected):
            line["collected"] = [[self.value(event) for event in events] for events in entry.collected]
        elif len(entry.collected) > 1:
            line["collected"] = [[] for _ in entry.collected]
        if any(entry.flushed):
            line["flushed"] = entry.flushed
        fresh = [report for report in entry.reports if report != self._report]
        if fresh:
            self._report = fresh[-1]
            line["reports"] = [self.value(report) for report in fresh]
        if entry.closed:
            line["closed"] = True
        for name in ("raised", "request", "event_id", "stop", "refused"):
            if (value := getattr(entry, name)) is not None:
                line[name] = self.value(value, name)
        if entry.told:
            line["told"] = [self.value(event) for event in entry.told]
        if entry.commands:
            line["commands"] = [self._command(command) for command in entry.commands]
        if entry.sent:
            line["sent"] = len(entry.sent)
        return line

    def _command(self, command: AgentCommand) -> Any:
        """A history is written as ids; a message's content only when it is new or has changed."""
        written = self.value(command)
        if (history := written.get("history")) is not None:
            fresh = [message for message in history if self._known.get(message["item_id"]) != message]
            self._known = {message["item_id"]: message for message in history}
            written["history"] = [message["item_id"] for message in history]
            if fresh:
                written["messages"] = fresh
        return written

    def value(self, value: Any, name: str = "") -> Any:
        match value:
            case None | bool() | int() | float():
                return value
            case np.generic():
                return value.item()
            case str():
                return value if self._mask is None or name in _NAMES else self._mask(value)
            case Enum():
                return value.value
            case np.ndarray():
                return self._sink.put_sound(value)
            case Image():
                return self._sink.put_image(value)
            case DuplexError():
                return {"is": type(value).__name__, "message": self.value(str(value))}
            case Mapping():
                if name in _NEVER_WORDS:
                    return dict(value)
                return {str(self.value(key, "name")): self.value(inner, str(key)) for key, inner in value.items()}
            case list() | tuple():
                return [self.value(inner, name) for inner in value]
            case _ if is_dataclass(value) and not isinstance(value, type):
                line = {"is": type(value).__name__}
                line.update((f.name, self.value(getattr(value, f.name), f.name)) for f in fields(value))
                return line
        raise TypeError(f"a journal cannot hold {type(value).__name__}")


# --- reading ----------------------------------------------------------------------------------------


class Reader:
    """JSON values back to what they were. Raises ``ValueError`` for what cannot have been written so."""

    def __init__(self, source: SoundSource) -> None:
        self._source = source

    def entry(self, line: Any) -> Entry:
        """The inputs of an entry. Its outputs stay as they were written; they are only compared."""
        _expect(dict, isinstance(line, dict) and line.get("kind") in KINDS, line)
        hints = hints_of(Entry)
        entry = Entry(line["kind"])
        if readings := line.get("us"):
            first = self.value(int, readings[0])
            entry.readings_us = [first, *(first + self.value(int, offset) for offset in readings[1:])]
        if "heard" in line:
            pts, origins = self.value(int, line["heard"][0]), line["heard"][1]
            _expect(str, isinstance(origins, str) and len(origins) <= _MAX_HEARD, origins)
            samples = self._source.next_heard(len(origins)).reshape(len(origins), PACKET_SAMPLES)
            for k, origin in enumerate(origins):
                entry.heard.append(Packet(pts + k * PACKET_SAMPLES, samples[k], _ORIGINS[origin]))
        for name in ("images", "collected", "flushed", "reports", "closed", "raised", "request", "event_id", "stop"):
            if name in line:
                setattr(entry, name, self.value(hints[name], line[name]))
        return entry

    def event(self, written: Any) -> AgentEvent:
        """One agent event."""
        event: AgentEvent = self.value(AgentEvent, written)
        return event

    def value(self, hint: Any, written: Any) -> Any:
        """``written`` as the type ``hint`` says."""
        if hint is Any:
            return written
        if hint is type(None):
            return _expect(None, written is None, written)
        origin = get_origin(hint)
        if origin is Union or origin is types.UnionType:
            return self._union(get_args(hint), written)
        if hint is Image:
            return self._source.get_image(written)
        if origin is np.ndarray:
            return self._source.get_sound(written)
        if origin is list or origin is Sequence:
            return [self.value(get_args(hint)[0], inner) for inner in _list(written)]
        if origin is Literal:
            return _expect(hint, written in get_args(hint), written)
        if origin is tuple:
            return tuple(self.value(get_args(hint)[0], inner) for inner in _list(written))
        if isinstance(origin, type) and issubclass(origin, Mapping):
            key, inner = get_args(hint)
            _expect(dict, isinstance(written, dict), written)
            return {self.value(key, k): self.value(inner, v) for k, v in written.items()}
        if isinstance(hint, type):
            if issubclass(hint, Enum):
                return hint(written)
            if issubclass(hint, DuplexError):
                _expect(dict, isinstance(written, dict), written)
                return _error(str(written.get("is")), str(written.get("message")))
            if is_dataclass(hint):
                return self.dataclass(hint, written)
            if hint is float:
                return float(written if isinstance(written, float) else self.value(int, written))
            if hint is int:
                return _expect(int, isinstance(written, int) and -_MOST < written < _MOST, written)
            return _expect(hint, isinstance(written, hint), written)
        raise ValueError(f"cannot read a {hint}")

    def _union(self, hints: tuple[Any, ...], written: Any) -> Any:
        if written is None and type(None) in hints:
            return None
        tagged = (hint for hint in hints if is_dataclass(hint) and isinstance(hint, type) and hint is not Image)
        named = {hint.__name__: hint for hint in tagged}
        if isinstance(written, dict) and (hint := named.get(str(written.get("is")))) is not None:
            return self.dataclass(hint, written)
        others = [hint for hint in hints if hint is not type(None) and hint not in named.values()]
        if not others:
            raise ValueError(f"there is no {written.get('is') if isinstance(written, dict) else written!r} here")
        return self.value(others[0], written)

    def dataclass(self, kind: Any, written: Any) -> Any:
        """Fields that are missing take their defaults; fields nobody knows any more are left out."""
        if not isinstance(written, dict) or written.get("is") != kind.__name__:
            raise ValueError(f"expected a {kind.__name__}, found {str(written)[:80]}")
        hints = hints_of(kind)
        try:
            return kind(**{name: self.value(hints[name], v) for name, v in written.items() if name in hints})
        except TypeError as error:
            raise ValueError(f"{kind.__name__}: {error}") from error


@lru_cache(maxsize=256)
def hints_of(kind: type) -> dict[str, Any]:
    """A dataclass's fields with their types."""
    namespace = {**vars(agent), **vars(events), **vars(requests), **vars(conversation)}
    return {name: hint for name, hint in get_type_hints(kind, None, namespace).items() if name != "return"}


def _list(written: Any) -> list[Any]:
    return list(_expect(list, isinstance(written, list), written))


def _expect(kind: Any, holds: bool, written: Any) -> Any:
    if not holds:
        raise ValueError(f"expected {getattr(kind, '__name__', kind)}, found {str(written)[:80]}")
    return written


_ORIGINS = {origin.value[0]: origin for origin in Origin}

_ERRORS: dict[str, type[DuplexError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, DuplexError)
}


def _error(name: str, message: str) -> DuplexError:
    kind = _ERRORS.get(name, AgentFaultError)
    error = kind.__new__(kind)  # some take more than a message; that is not what a replay needs of them
    Exception.__init__(error, message)
    return error
