"""How a client's fields are read: rules as values, held against what came, with errors that name the field."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from duplex.errors import InvalidEventError, TooLargeError, UnsupportedError

OPENAI_VOICES = ("alloy", "ash", "ballad", "cedar", "coral", "echo", "marin", "sage", "shimmer", "verse")
MAX_ID_CHARS = 128


@dataclass(frozen=True, slots=True)
class SessionDefaults:
    """What the wire vocabulary needs to know of the server. ``voices`` empty: the agent does not list them.

    ``native``: the agent takes turns by itself. ``takes_images``: it sees what the camera shows.
    """

    model: str = "duplex"
    voices: tuple[str, ...] = ()
    language: str = "en"
    max_text_chars: int = 32_000
    max_event_bytes: int = 16 * 1024 * 1024
    native: bool = False
    takes_images: bool = False


@dataclass(frozen=True, slots=True)
class Only:
    """A field of which some values can be honoured, and what to say about the others."""

    values: tuple[Any, ...]
    advice: str


@dataclass(frozen=True, slots=True)
class Text:
    """Any text up to the configured length."""

    nullable: bool = True


@dataclass(frozen=True, slots=True)
class Number:
    """A number from ``least`` to ``most``; ``whole``: an integer."""

    least: float
    most: float
    whole: bool = False
    nullable: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    fields: Mapping[str, Rule]
    nullable: bool = True
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Read elsewhere: ``check`` lets it pass."""


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice of the agent's."""


@dataclass(frozen=True, slots=True)
class Settings:
    """A flat table of numbers, texts, yes and no, that the agent itself validates; at most 64 of them."""


@dataclass(frozen=True, slots=True)
class Language:
    """The language the listener understands."""


Rule = Only | Text | Number | Table | Elsewhere | Voice | Settings | Language


def check(rule: Rule, value: Any, path: str, defaults: SessionDefaults) -> None:
    """Holds ``value`` against ``rule``.

    Raises ``InvalidEventError`` (unknown field, wrong kind), ``UnsupportedError`` or ``TooLargeError``, each with the
    dotted path of the field.
    """
    match rule:
        case Elsewhere():
            return
        case Table():
            if value is None and rule.nullable:
                return
            if value is None and rule.advice:
                raise UnsupportedError(f"{path} cannot be null. {rule.advice}", param=path)
            for name, inner in as_table(value, path).items():
                if name not in rule.fields:
                    raise InvalidEventError(
                        f"{path} has no field {name!r}.{suggest(name, rule.fields)}", param=f"{path}.{name}"
                    )
                check(rule.fields[name], inner, f"{path}.{name}", defaults)
        case Only():
            if not any(_same(value, allowed) for allowed in rule.values):
                raise UnsupportedError(f"{path} = {shown(value)} cannot be honoured. {rule.advice}", param=path)
        case Text():
            if not (value is None and rule.nullable):
                as_text(value, path, defaults.max_text_chars)
        case Number():
            if not (value is None and rule.nullable):
                _check_number(rule, value, path)
        case Voice():
            known = (*defaults.voices, *OPENAI_VOICES)
            if value is not None and as_text(value, path, 200) not in known and defaults.voices:
                raise UnsupportedError(
                    f"{path} = {shown(value)} is not a voice of this agent. It has: {', '.join(defaults.voices)}.",
                    param=path,
                )
        case Settings():
            _check_settings(value, path)
        case Language():
            if value is not None and as_text(value, path, 200).split("-")[0] != defaults.language:
                raise UnsupportedError(
                    f"{path} = {shown(value)} cannot be honoured. The listener understands {defaults.language!r}.",
                    param=path,
                )


def _check_number(rule: Number, value: Any, path: str) -> None:
    wrong = isinstance(value, bool) or not isinstance(value, int if rule.whole else int | float)
    if wrong or not rule.least <= value <= rule.most:
        kind = "a whole number" if rule.whole else "a number"
        raise InvalidEventError(
            f"{path} must be {kind} from {rule.least:g} to {rule.most:g}; got {shown(value)}.", param=path
        )


def _check_settings(value: Any, path: str) -> None:
    if value is None:
        return
    table = as_table(value, path)
    if len(table) > 64:
        raise TooLargeError(f"{path} has {len(table)} settings; at most 64 are taken.", param=path)
    for name, inner in table.items():
        if not isinstance(inner, str | int | float | bool):
            raise InvalidEventError(
                f"{path}.{name} must be a text, a number, true or false; got {shown(inner)}.", param=f"{path}.{name}"
            )


def as_table(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidEventError(f"{path} must be an object, got {shown(value)}.", param=path)
    return value


def as_list(value: Any, path: str, most: int) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidEventError(f"{path} must be a list, got {shown(value)}.", param=path)
    if len(value) > most:
        raise TooLargeError(f"{path} has {len(value)} entries; at most {most} are taken.", param=path)
    return value


def as_text(value: Any, path: str, max_chars: int) -> str:
    if not isinstance(value, str):
        raise InvalidEventError(f"{path} must be a text, got {shown(value)}.", param=path)
    if len(value) > max_chars:
        raise TooLargeError(f"{path} has {len(value)} characters; at most {max_chars} are taken.", param=path)
    if not is_text(value):
        raise InvalidEventError(f"{path} holds half a surrogate pair, which is not text.", param=path)
    return value


def is_text(value: str) -> bool:
    """JSON's escapes can spell half a surrogate pair, which no encoding holds."""
    return value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)


def as_id(value: Any, path: str) -> str:
    if not as_text(value, path, MAX_ID_CHARS):
        raise InvalidEventError(f"{path} must not be empty.", param=path)
    return str(value)


def as_ms(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise InvalidEventError(f"{path} must be a number of milliseconds, 0 or more; got {shown(value)}.", param=path)
    try:
        return float(value)
    except OverflowError as error:
        raise InvalidEventError(f"{path} is out of range.", param=path) from error


def suggest(name: str, known: Iterable[str]) -> str:
    """For the end of an error message: the name that was probably meant, and those there are."""
    names = list(known)
    near = difflib.get_close_matches(name[:100], names, n=1, cutoff=0.6)
    return (f" Did you mean {near[0]!r}?" if near else "") + f" Known: {', '.join(names)}."


def shown(value: Any) -> str:
    """A value for an error message, short."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _same(value: Any, allowed: Any) -> bool:
    return isinstance(value, bool) == isinstance(allowed, bool) and bool(value == allowed)
