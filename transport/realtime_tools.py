"""Tools on the wire: what a client declares, which of them a reply may or must call."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from duplex.agent import Tool, ToolChoice
from duplex.errors import InvalidEventError, UnsupportedError
from duplex.transport.realtime_fields import SessionDefaults, as_list, as_table, as_text, shown, suggest

MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_FIELDS = ("type", "name", "description", "parameters", "strict")


def read_tools(value: Any, path: str, defaults: SessionDefaults) -> tuple[Tool, ...] | None:
    """None for null. Raises ``ProtocolError``'s kinds, with the field at fault."""
    if value is None:
        return None
    tools: list[Tool] = []
    for index, given in enumerate(as_list(value, path, MAX_TOOLS)):
        tool = _read_tool(as_table(given, f"{path}[{index}]"), f"{path}[{index}]", defaults)
        if any(tool.name == other.name for other in tools):
            raise InvalidEventError(f"{path} has {tool.name!r} twice.", param=f"{path}[{index}].name")
        tools.append(tool)
    return tuple(tools)


def _read_tool(given: dict[str, Any], path: str, defaults: SessionDefaults) -> Tool:
    if given.get("type") != "function":
        raise UnsupportedError(
            f'{path}.type = {shown(given.get("type"))} cannot be honoured. This server calls "function" tools; a call '
            "to an MCP server is made by the client.",
            param=f"{path}.type",
        )
    for name in given:
        if name not in _FIELDS:
            raise InvalidEventError(f"{path} has no field {name!r}.{suggest(name, _FIELDS)}", param=f"{path}.{name}")
    name = as_text(given.get("name"), f"{path}.name", 64)
    if not _NAME.fullmatch(name):
        raise InvalidEventError(
            f"{path}.name must be 1 to 64 letters, digits, dots, dashes or underscores, got {shown(name)}.",
            param=f"{path}.name",
        )
    description = given.get("description")
    parameters = given.get("parameters")
    return Tool(
        name,
        "" if description is None else as_text(description, f"{path}.description", defaults.max_text_chars),
        {} if parameters is None else as_table(parameters, f"{path}.parameters"),
    )


def read_tool_choice(value: Any, path: str) -> ToolChoice | None:
    """None for null."""
    if value is None:
        return None
    if value in ("auto", "none", "required"):
        return ToolChoice(value)
    if isinstance(value, dict) and value.get("type") == "function":
        return ToolChoice("required", as_text(value.get("name"), f"{path}.name", 64))
    if isinstance(value, dict) and value.get("type") == "mcp":
        raise UnsupportedError(f"{path} names an MCP server; this server calls functions only.", param=path)
    raise InvalidEventError(
        f'{path} must be "auto", "none", "required" or {{"type": "function", "name": ...}}, got {shown(value)}.',
        param=path,
    )


def tools_object(tools: Sequence[Tool] | None) -> list[dict[str, Any]]:
    return [
        {"type": "function", "name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
        for tool in tools or ()
    ]


def tool_choice_object(choice: ToolChoice | None) -> str | dict[str, Any]:
    if choice is None:
        return "auto"
    return choice.mode if choice.name is None else {"type": "function", "name": choice.name}
