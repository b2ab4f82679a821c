"""What a reply is asked to be: the command's own wishes first, then the session's, then the cascade's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from duplex.agent import AgentSettings, BeginReply, Tool, ToolChoice
from duplex.errors import ConfigError

from . import thinker as th
from .cascade_options import CascadeOptions
from .tool_schema import check_tools


@dataclass(frozen=True, slots=True)
class Wishes:
    """``silent``: no sound is made of it."""

    tools: tuple[Tool, ...]
    tool_choice: ToolChoice
    silent: bool
    max_tokens: int


def wishes(
    settings: AgentSettings, options: CascadeOptions, thinker: th.Thinker, command: BeginReply | None = None
) -> Wishes:
    """Raises ``ConfigError`` for tools, a choice among them or a length that cannot be."""
    tools, choice, silent, longest = settings.tools, settings.tool_choice, settings.silent, settings.max_output_tokens
    if command is not None:
        if command.tools is not None:
            tools, choice = command.tools, None  # the session's choice was among the session's tools
        choice = choice if command.tool_choice is None else command.tool_choice
        silent = silent if command.silent is None else command.silent
        longest = longest if command.max_output_tokens is None else command.max_output_tokens
    check_tools(tools or (), choice)
    if tools and not thinker.calls_tools:
        raise ConfigError(f"tools: the thinker {options.thinker!r} cannot call any. Leave them out.")
    if longest is not None and longest < 1:
        raise ConfigError(f"max_output_tokens is {longest}. It must be at least 1.")
    return Wishes(tools or (), choice or ToolChoice(), bool(silent), longest or options.max_reply_tokens)


def request(wished: Wishes, messages: Sequence[th.Message], options: CascadeOptions) -> th.ThinkRequest:
    return th.ThinkRequest(
        tuple(messages),
        max_tokens=wished.max_tokens,
        temperature=options.temperature,
        tools=wished.tools,
        tool_choice=wished.tool_choice,
    )
