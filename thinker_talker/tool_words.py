"""What the words of the user say about a tool: whether they speak of it, and which values for it they hold.

For a model too small to be trusted alone. Nothing in here guesses: a tool is spoken of where a word of its declaration
occurs (its name, its description, the names, descriptions and choices of its parameters), and a value is one that was
said, as digits, as number words, as one of the choices, or as a run of words that are nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from duplex.agent import Tool

from .spoken_numbers import NUMBER_WORDS, Number, digit_runs, numbers
from .tool_schema import properties_of, required_of

_T = TypeVar("_T")

# Words that say nothing of what somebody wants, with those that wishes and questions are made of.
_EMPTY = frozenset(
    "a an the of to in on at by for from with and or but as is are was were be been am my your his her its our their "
    "this that these those i you he she it we they me him us them can could will would shall should may might must do "
    "does did have has had what how who whom whose when where why which please some any after before when many much "
    "more most here there now then so too also just only want wants need needs like tell tells say says know knows get "
    "gets let lets make makes give gives take takes go goes yes no not up out off about if than very one caller user "
    "person somebody something okay oh hey hi well i'd i'm i'll it's that's what's where's how's don't thanks thank "
    "minute's today's look looks check checks".split()
)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_NAMES = re.compile(r"(?<=[^.?!\s]\s)[A-Z]\w+")  # a capital that does not begin a sentence
_SUFFIXES = ("ing", "ed", "es", "s")
_NUMBER_LIKE = re.compile(r"number|code|\bid\b|pin|digits|phone", re.I)
_LONGEST_RUN = 5


def stem(word: str) -> str:
    """A word without its ending, roughly: "orders", "ordered" and "ordering" are "order"."""
    word = re.split("['’]", word.lower())[0]
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            return word[: -len(suffix)]
    return word


def stems(text: str) -> set[str]:
    return {stem(w) for w in _WORD.findall(text) if len(w) > 1 and w.lower().replace("’", "'") not in _EMPTY}


def declared_stems(tool: Tool) -> set[str]:
    parts = [tool.name.replace("_", " ").replace("-", " "), tool.description]
    for name, schema in properties_of(tool).items():
        parts += [name.replace("_", " "), str(schema.get("description", "")), *map(str, schema.get("enum", ()))]
    return stems(" ".join(parts))


def overlap(tool: Tool, said: str) -> int:
    """How many different words of the declaration were said."""
    return len(declared_stems(tool) & stems(said))


def share(tool: Tool, said: str) -> float:
    """Of the words that say something, how many are of the declaration, or a name that might be a value; 0 to 1."""
    words = stems(" ".join(word for word in _WORD.findall(said) if word.lower() not in NUMBER_WORDS))
    known = declared_stems(tool)
    if any(_may_be_any_words(schema) for schema in properties_of(tool).values()):
        known |= {stem(name) for name in _NAMES.findall(said)}
    return len(words & known) / len(words) if words else 1.0


def values(tool: Tool, said: str) -> dict[str, list[Any]]:
    """For each property, the values for it that were said, best guess first; none is an empty list."""
    found = numbers(said)
    return {name: _values(tool, name, schema, said, found) for name, schema in properties_of(tool).items()}


def missing(tool: Tool, held: Mapping[str, Sequence[Any]]) -> list[str]:
    """The required properties without a value among those ``held``."""
    return [name for name in required_of(tool) if not held.get(name)]


def sure(tool: Tool, held: Mapping[str, Sequence[Any]], said: str) -> bool:
    """Whether there is a value for all that is required, and each is surely one: a name if it could be any words."""
    required = required_of(tool)
    return bool(required) and not missing(tool, held) and all(_is_sure(tool, n, held[n], said) for n in required)


def _is_sure(tool: Tool, name: str, values: Sequence[Any], said: str) -> bool:
    if not _may_be_any_words(properties_of(tool).get(name, {})) or values[0][:1].isdigit():
        return True
    names = set(_NAMES.findall(said))
    return any(word in names for value in values for word in value.split())


def _may_be_any_words(schema: Mapping[str, Any]) -> bool:
    return "enum" not in schema and schema.get("type", "string") == "string"


def _values(tool: Tool, name: str, schema: Mapping[str, Any], said: str, found: Sequence[Number]) -> list[Any]:
    if isinstance(choices := schema.get("enum"), list):
        return [choice for choice in choices if _was_said(str(choice), said)]
    kind = schema.get("type", "string")
    if kind == "integer":
        return _unique([int(n.value) for n in found if float(n.value).is_integer()])
    if kind == "number":
        return _unique([n.value for n in found])
    if kind == "boolean":
        return [True, False]
    if kind != "string":
        return []  # lists and tables: nobody says them in a form that could be told apart
    if _NUMBER_LIKE.search(f"{name.replace('_', ' ')} {schema.get('description', '')}"):
        return list(digit_runs(said))
    return _runs(tool, said)


def _was_said(choice: str, said: str) -> bool:
    pattern = r"\s+".join(re.escape(part) for part in re.split(r"[\s_-]+", choice) if part)
    return bool(pattern) and re.search(rf"(?<!\w){pattern}s?(?!\w)", said, re.I) is not None


def _runs(tool: Tool, said: str) -> list[str]:
    """Runs of words that are neither empty nor of the declaration, the longest first: what is left may be a value."""
    known = declared_stems(tool)
    runs: list[list[str]] = [[]]
    for word in re.findall(r"\d[\d.,:]*\d|\d|[^\W\d_]+(?:['’-][^\W\d_]+)*|[.,!?;]", said):
        plain = word.lower().replace("’", "'")
        if plain in _EMPTY or stem(word) in known or not word[0].isalnum():
            runs.append([])
        else:
            runs[-1].append(word)
    kept = [" ".join(run[:_LONGEST_RUN]) for run in runs if run]
    return _unique(sorted(kept, key=lambda run: (-len(run.split()), -sum(c.isupper() for c in run))))


def _unique(items: Sequence[_T]) -> list[_T]:
    return list(dict.fromkeys(items))
