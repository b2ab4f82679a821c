"""Functions as tools: their schema from their type hints, their arguments checked, their answers put into words.

A tool is an ``async`` function with a type hint for every parameter; its docstring says what it is for, and
``Annotated[str, Field(description="…")]`` what a parameter is. A parameter of type ``Call`` is given the call and is
not part of the schema. What it returns is told to the agent: text as it is, anything else as JSON.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError, to_json

from duplex.agent import Tool
from duplex.errors import ConfigError, ToolError

MAX_ANSWER_CHARS = 16_000
_NAME_CHARS = 64  # what endpoints take


@dataclass(frozen=True, slots=True)
class BotTool:
    """A function the agent may ask for. ``call_parameter``: which of its parameters is given the call."""

    name: str
    function: Callable[..., Awaitable[Any]]
    arguments: type[BaseModel]
    tool: Tool
    call_parameter: str | None = None

    def bound(self, arguments: str, call: object) -> Callable[[], Awaitable[Any]]:
        """The call with these arguments, JSON text. Raises ``ToolError`` that says which argument is wrong."""
        try:
            checked = self.arguments.model_validate_json(arguments or "{}")
        except ValidationError as error:
            raise ToolError(f"The arguments of {self.name} are wrong: {_what_is_wrong(error)}") from error
        given = {name: getattr(checked, name) for name in type(checked).model_fields}
        if self.call_parameter is not None:
            given[self.call_parameter] = call
        return lambda: self.function(**given)


def tool_of(function: Callable[..., Any]) -> BotTool:
    """The tool that a function is. Raises ``ConfigError`` for one that cannot be a tool, and says why."""
    from duplex.bots.call import Call  # it imports this module

    name = getattr(function, "__name__", "")
    if not inspect.iscoroutinefunction(function):
        raise ConfigError(
            f"The tool {name or function!r} is not async. Write 'async def', and put what blocks into "
            "'await asyncio.to_thread(…)': a call must not wait for it."
        )
    if not name.isidentifier() or len(name) > _NAME_CHARS:
        raise ConfigError(f"{name!r} cannot be the name of a tool: a Python name of at most {_NAME_CHARS} letters.")
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ConfigError(f"The tool {name} has a type hint that cannot be found: {error}.") from error
    fields: dict[str, Any] = {}
    call_parameter = None
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ConfigError(f"The tool {name} has the parameter {parameter}; only named ones can be described.")
        if parameter.name not in hints:
            raise ConfigError(f"The tool {name} does not say of what type its parameter {parameter.name!r} is.")
        if hints[parameter.name] is Call:
            call_parameter = parameter.name
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hints[parameter.name], default)
    try:
        model = cast(type[BaseModel], create_model(name, __config__=ConfigDict(extra="forbid"), **fields))
        schema = _without_titles(model.model_json_schema())
    except (PydanticUserError, NameError) as error:  # a type that has no schema; a field name pydantic keeps for itself
        raise ConfigError(f"The tool {name} cannot be described: {str(error).splitlines()[0]}") from error
    description = inspect.cleandoc(function.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    return BotTool(name, function, model, Tool(name, description, schema), call_parameter)


def answer_text(name: str, answer: object) -> str:
    """What a tool returned, as the agent is told. Raises ``ToolError`` for what has no text, or too much."""
    try:
        text = answer if isinstance(answer, str) else to_json(answer).decode()
    except PydanticSerializationError as error:
        raise ToolError(f"{name} returned a {type(answer).__name__}, which cannot be told.") from error
    if len(text) > MAX_ANSWER_CHARS:
        raise ToolError(f"{name} returned {len(text)} characters; at most {MAX_ANSWER_CHARS} can be told.")
    return text


def _what_is_wrong(error: ValidationError) -> str:
    each = [f"{'.'.join(map(str, e['loc'])) or 'all of it'}: {e['msg']}" for e in error.errors(include_url=False)[:3]]
    return "; ".join(each) + "."


def _without_titles(schema: Any, *, names: bool = False) -> Any:
    """A schema without the titles pydantic makes from names: tokens that say nothing. ``names``: of properties."""
    if isinstance(schema, list):
        return [_without_titles(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    kept = {key: value for key, value in schema.items() if names or key != "title"}
    named = () if names else ("properties", "$defs")
    return {key: _without_titles(value, names=key in named) for key, value in kept.items()}
