"""What a session or one reply may choose, checked against what the agent can do."""

from __future__ import annotations

from dataclasses import fields, replace

from duplex.agent import AgentInfo, AgentSettings
from duplex.errors import InvalidEventError, UnsupportedError
from duplex.requests import CreateReply, UpdateSettings


def changed(settings: AgentSettings, request: UpdateSettings) -> AgentSettings:
    """Settings that are None in the request stay as they are, unless it names them to be reset."""
    given = {f.name: value for f in fields(AgentSettings) if (value := getattr(request.settings, f.name)) is not None}
    return replace(settings, **{**dict.fromkeys(request.reset), **given})


def check_choices(settings: AgentSettings, info: AgentInfo, asked: CreateReply | None = None) -> None:
    """Raises ``ProtocolError``'s kinds, with the field of the session, or of the reply ``asked`` for."""
    where, choice, tools = "session", settings.tool_choice, settings.tools
    if asked is not None:
        where = "response"
        choice, tools = asked.tool_choice, settings.tools if asked.tools is None else asked.tools
        if choice is None and asked.tools is None:
            tools = None  # nothing of it is this reply's own
        if info.native and (asked.input is not None or not asked.in_conversation):
            field = "input" if asked.input is not None else "conversation"
            raise UnsupportedError(
                f"The agent {info.name!r} hears and speaks in one stream; it has no other conversation to reply to.",
                param=f"response.{field}",
            )
    if tools and not info.calls_tools:
        raise UnsupportedError(
            f"The agent {info.name!r} calls no tools. Leave tools out, or serve one that does.", param=f"{where}.tools"
        )
    names = {tool.name for tool in tools or ()}
    if choice is not None and choice.name is not None and choice.name not in names:
        raise InvalidEventError(
            f"tool_choice names {choice.name!r}, which is not among the tools ({', '.join(sorted(names)) or 'none'}).",
            param=f"{where}.tool_choice",
        )
    if choice is not None and choice.mode == "required" and not names:
        raise InvalidEventError("tool_choice requires a tool, and there is none.", param=f"{where}.tool_choice")
    if info.native and settings.turns is not None and not settings.turns.ordinary:
        raise UnsupportedError(
            f"The agent {info.name!r} hears and speaks all the time and takes turns by itself; nobody else can decide "
            "when it replies, or that it is not interrupted.",
            param="session.audio.input.turn_detection",
        )
