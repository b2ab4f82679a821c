"""The Realtime session object: what we report of it, and which of its fields a client may set.

The field table below is the whole policy. A value that asks for what this server does anyway (OpenAI's
documented default, ``null``, an empty list) is accepted; one that would have to change its behaviour and
cannot is refused with the field's name and what works instead. Nothing is ignored silently, and an update
with one refused field changes nothing at all. Three values are read as "this server's own" and shown as
such in ``session.updated``: ``model``, ``audio.input.transcription.model`` and OpenAI's voice names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from duplex.agent import AgentSettings
from duplex.errors import InvalidEventError
from duplex.transport.realtime_fields import (
    OPENAI_VOICES,
    Elsewhere,
    Language,
    Number,
    Only,
    SessionDefaults,
    Settings,
    Table,
    Text,
    Voice,
    as_table,
    check,
)
from duplex.transport.realtime_sound import PCM, format_object, read_format
from duplex.transport.realtime_tools import read_tool_choice, read_tools, tool_choice_object, tools_object
from duplex.transport.realtime_turns import read_turns, turn_detection

MAX_OUTPUT_TOKENS = 4096
"""The most that the published API lets a client ask for."""


@dataclass(frozen=True, slots=True)
class SessionChange:
    """A client's wish, checked. ``None`` leaves a thing as it is; ``reset`` names settings to go back to the default.

    ``input_format``, ``output_format``: of the sound in events.
    """

    settings: AgentSettings
    reset: tuple[str, ...] = ()
    input_format: str | None = None
    output_format: str | None = None


@dataclass(frozen=True, slots=True)
class Formats:
    """What sound in events looks like now."""

    input: str = PCM
    output: str = PCM


_TRANSCRIPTION = Table(
    {
        "model": Text(),
        "language": Language(),
        "prompt": Only((None, ""), "The listener takes no prompt."),
        "delay": Only((None,), "Partial transcripts are always sent as early as they are known."),
        "keywords": Only((None, []), "The listener takes no keywords."),
        "languages": Only((None, []), "The listener knows one language."),
    }
)
MODALITIES = Only((["audio"], ["text"], None), 'Use ["audio"] (its transcript comes too) or ["text"].')
PARALLEL = Only((True, None), "How many tools one reply calls is the thinker's affair.")
SESSION = Table(
    {
        "type": Only(("realtime",), 'Use "realtime"; its transcripts arrive as events.'),
        "id": Text(),
        "object": Text(),
        "model": Text(),
        "expires_at": Elsewhere(),
        "instructions": Text(),
        "output_modalities": MODALITIES,
        "audio": Table(
            {
                "input": Table(
                    {
                        "format": Elsewhere(),
                        "transcription": _TRANSCRIPTION,
                        "turn_detection": Elsewhere(),
                        "noise_reduction": Only((None,), "Audio is taken as it comes; reduce noise before sending it."),
                    }
                ),
                "output": Table(
                    {
                        "format": Elsewhere(),
                        "voice": Voice(),
                        "speed": Only((1.0, None), "Voices speak at their own speed, 1.0."),
                    }
                ),
            }
        ),
        "duplex": Table(
            {
                "turn_taking": Settings(),
                "native": Elsewhere(),
                "takes_images": Elsewhere(),
                "resume_token": Elsewhere(),
            }
        ),
        "tools": Elsewhere(),
        "tool_choice": Elsewhere(),
        "parallel_tool_calls": PARALLEL,
        "max_output_tokens": Elsewhere(),
        "truncation": Only(("auto", None), 'The oldest turns leave first: "auto".'),
        "include": Only((None, []), "There are no extra fields to include."),
        "prompt": Only((None,), "Put the text into instructions."),
        "reasoning": Only((None,), "The thinker has no such setting."),
        "tracing": Only((None, "auto"), "Traces arrive as duplex.trace events, and carry no names of a client's."),
    },
    nullable=False,
)


# --- reading --------------------------------------------------------------------------------------


def read_session(session: Any, defaults: SessionDefaults, path: str = "session") -> SessionChange:
    """Checks a client's session object against the table. Raises as ``check`` does."""
    check(SESSION, session, path, defaults)
    audio = session.get("audio") or {}
    heard, spoken = audio.get("input") or {}, audio.get("output") or {}
    given: dict[str, Any] = {}
    reset: list[str] = []

    def choose(name: str, value: Any) -> None:
        if value is None:
            reset.append(name)
        else:
            given[name] = value

    if "instructions" in session:
        choose("instructions", session["instructions"])
    if (modalities := session.get("output_modalities")) is not None:
        given["silent"] = modalities == ["text"]
    if "max_output_tokens" in session:
        choose("max_output_tokens", read_longest(session["max_output_tokens"], f"{path}.max_output_tokens", defaults))
    if "tools" in session:
        choose("tools", read_tools(session["tools"], f"{path}.tools", defaults))
    if "tool_choice" in session:
        choose("tool_choice", read_tool_choice(session["tool_choice"], f"{path}.tool_choice"))
    if "transcription" in heard:
        given["captions"] = heard["transcription"] is not None
    voice = spoken.get("voice")
    if voice is not None and (voice not in OPENAI_VOICES or voice in defaults.voices):
        given["voice"] = voice
    _choose_turns(session, heard, path, defaults, choose)
    return SessionChange(
        AgentSettings(**given),
        tuple(reset),
        read_format(heard.get("format"), f"{path}.audio.input.format"),
        read_format(spoken.get("format"), f"{path}.audio.output.format"),
    )


def _choose_turns(
    session: Mapping[str, Any], heard: Mapping[str, Any], path: str, defaults: SessionDefaults, choose: Any
) -> None:
    """Our own table if there is one, on top of what the standard field stands for."""
    own = (session.get("duplex") or {}).get("turn_taking")
    meant: dict[str, Any] = {}
    if "turn_detection" in heard:
        rules, meant = read_turns(heard["turn_detection"], f"{path}.audio.input.turn_detection", defaults)
        choose("turns", rules)
    elif own is None:
        return
    choose("turn_taking", {**meant, **(own or {})} or None)


def read_longest(value: Any, path: str, defaults: SessionDefaults) -> int | None:
    """``max_output_tokens``; None for "inf"."""
    if value is None or value == "inf":
        return None
    check(Number(1, MAX_OUTPUT_TOKENS, whole=True), value, path, defaults)
    return int(value)


def read_metadata(value: Any, path: str) -> dict[str, str] | None:
    """At most 16 pairs of texts, 64 and 512 characters long, as published."""
    if value is None:
        return None
    table = as_table(value, path)
    if len(table) > 16:
        raise InvalidEventError(f"{path} has {len(table)} pairs; at most 16 are taken.", param=path)
    for name, text in table.items():
        if len(name) > 64 or not isinstance(text, str) or len(text) > 512:
            raise InvalidEventError(
                f"{path} must hold texts: names of at most 64 characters, values of at most 512.",
                param=f"{path}.{name[:64]}",
            )
    return dict(table)


# --- reporting ------------------------------------------------------------------------------------


def session_object(
    defaults: SessionDefaults, session_id: str, settings: AgentSettings, formats: Formats
) -> dict[str, Any]:
    """The effective configuration, as ``session.created`` and ``session.updated`` carry it.

    ``instructions`` null: the agent's configured ones.
    """
    transcribe = settings.captions is not False
    return {
        "type": "realtime",
        "object": "realtime.session",
        "id": session_id,
        "model": defaults.model,
        "instructions": settings.instructions,
        "output_modalities": ["text" if settings.silent else "audio"],
        "audio": {
            "input": {
                "format": format_object(formats.input),
                "transcription": {"model": defaults.model, "language": defaults.language} if transcribe else None,
                "noise_reduction": None,
                "turn_detection": turn_detection(settings),
            },
            "output": {
                "format": format_object(formats.output),
                "voice": voice_of(settings, defaults),
                "speed": 1.0,
            },
        },
        "duplex": {
            "turn_taking": dict(settings.turn_taking or {}),
            "native": defaults.native,
            "takes_images": defaults.takes_images,
        },
        "tools": tools_object(settings.tools),
        "tool_choice": tool_choice_object(settings.tool_choice),
        "max_output_tokens": "inf" if settings.max_output_tokens is None else settings.max_output_tokens,
        "truncation": "auto",
        "tracing": None,
        "include": None,
    }


def voice_of(settings: AgentSettings, defaults: SessionDefaults) -> str:
    return settings.voice or (defaults.voices[0] if defaults.voices else "default")
