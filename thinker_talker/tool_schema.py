"""Tools as a client declares them, and the arguments a thinker writes for them: are they in order?

A subset of JSON Schema is looked at: the arguments are an object, what is required is there, and the values of the
topmost properties have the declared type and are among the declared choices. What lies deeper is the tool's to judge.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from duplex.agent import Tool, ToolChoice
from duplex.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
MOST_TOOLS = 128
_LONGEST_DECLARATION = 32_768  # characters of one tool, as JSON


def new_call_id() -> str:
    return f"call_{secrets.token_hex(10)}"


def check_tools(tools: Sequence[Tool], choice: ToolChoice | None) -> None:
    """Raises ``ConfigError`` that names what is wrong with the declarations, or with the choice among them."""
    if len(tools) > MOST_TOOLS:
        raise ConfigError(f"tools: there are {len(tools)}, and at most {MOST_TOOLS} can be declared.")
    names = [tool.name for tool in tools]
    for index, tool in enumerate(tools):
        if not NAME.fullmatch(tool.name):
            raise ConfigError(
                f"tools[{index}].name is {tool.name!r}. A name has 1 to 64 letters, digits, underscores and dashes."
            )
        if names.index(tool.name) != index:
            raise ConfigError(f"tools[{index}].name: {tool.name!r} is declared twice.")
        _check_parameters(f"tools[{index}].parameters", tool.parameters)
    if choice is not None:
        if choice.mode == "required" and not tools:
            raise ConfigError("tool_choice asks for a tool, and none is declared.")
        if choice.name is not None and choice.name not in names:
            raise ConfigError(f"tool_choice names {choice.name!r}. Declared are: {', '.join(names) or 'none'}.")


def _check_parameters(where: str, schema: Mapping[str, Any]) -> None:
    try:
        length = len(json.dumps(dict(schema), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON: {error}.") from error
    if length > _LONGEST_DECLARATION:
        raise ConfigError(f"{where} has {length} characters, and may have {_LONGEST_DECLARATION}.")
    if schema and schema.get("type", "object") != "object":
        raise ConfigError(f"{where}.type is {schema['type']!r}. It must be 'object': arguments have names.")
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, Mapping) or not all(isinstance(p, Mapping | bool) for p in properties.values()):
        raise ConfigError(f"{where}.properties must be a table of schemas, by name.")
    if not isinstance(required, Sequence) or not all(isinstance(name, str) for name in required):
        raise ConfigError(f"{where}.required must be a list of names.")


def properties_of(tool: Tool) -> dict[str, Mapping[str, Any]]:
    """The declared properties and their schemas (an empty one where anything goes)."""
    return {
        name: schema if isinstance(schema, Mapping) else {}
        for name, schema in tool.parameters.get("properties", {}).items()
    }


def required_of(tool: Tool) -> tuple[str, ...]:
    return tuple(tool.parameters.get("required", ()))


_IS: Mapping[str, Callable[[Any], bool]] = {
    "string": lambda v: isinstance(v, str),
    "integer": lambda v: (isinstance(v, int) and not isinstance(v, bool)) or (isinstance(v, float) and v.is_integer()),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "boolean": lambda v: isinstance(v, bool),
    "array": lambda v: isinstance(v, list),
    "object": lambda v: isinstance(v, dict),
    "null": lambda v: v is None,
}


def complaint(tool: Tool, arguments: str) -> str | None:
    """What is wrong with a call's arguments, as half a sentence; None if nothing is."""
    try:
        values = json.loads(arguments)
    except (ValueError, RecursionError):
        return "the arguments are not JSON"
    if not isinstance(values, dict):
        return "the arguments are not a JSON object"
    if missing := [name for name in required_of(tool) if name not in values]:
        return f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    for name, schema in properties_of(tool).items():
        if name in values and (wrong := _wrong(values[name], schema)):
            return f"{name} {wrong}"
    return None


def _wrong(value: Any, schema: Mapping[str, Any]) -> str | None:
    kinds = schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if isinstance(kinds, list) and kinds and not any(_IS.get(str(kind), lambda _: True)(value) for kind in kinds):
        return f"is not of type {' or '.join(map(str, kinds))}"
    choices = schema.get("enum")
    if isinstance(choices, list) and value not in choices:
        return f"is none of {', '.join(map(str, choices))}"
    return None
