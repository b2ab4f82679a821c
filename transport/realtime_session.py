"""The Realtime session object: what we report of it, and which of its fields a client may set.

The field table below is the whole policy. A value that asks for what this server does anyway (OpenAI's
documented default, ``null``, an empty list) is accepted; one that would have to change its behaviour and
cannot is refused with the field's name and what works instead. Nothing is ignored silently, and an update
with one refused field changes nothing at all. Three values are read as "this server's own" and shown as
such in ``session.updated``: ``model``, ``audio.input.transcription.model`` and OpenAI's voice names.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from duplex.agent import AgentSettings
from duplex.errors import InvalidEventError, TooLargeError, UnsupportedError
from duplex.frames import SAMPLE_RATE_HZ

OPENAI_VOICES = ("alloy", "ash", "ballad", "cedar", "coral", "echo", "marin", "sage", "shimmer", "verse")


@dataclass(frozen=True, slots=True)
class SessionDefaults:
    """What the wire vocabulary needs to know of the server. ``voices`` empty: the agent does not list them."""

    model: str = "duplex"
    voices: tuple[str, ...] = ()
    language: str = "en"
    max_text_chars: int = 32_000
    max_event_bytes: int = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SessionChange:
    """A client's wish, checked. ``None`` leaves a thing as it is."""

    settings: AgentSettings
    modality: str | None = None
    transcribe: bool | None = None


# --- the table ------------------------------------------------------------------------------------


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
class Table:
    fields: Mapping[str, Rule]
    nullable: bool = True
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice of the agent's."""


@dataclass(frozen=True, slots=True)
class Settings:
    """A flat table of numbers, texts, yes and no, that the agent itself validates; at most 64 of them."""


@dataclass(frozen=True, slots=True)
class Language:
    """The language the listener understands."""


Rule = Only | Text | Table | Voice | Settings | Language

PRESET_OF_EAGERNESS = {"low": "patient", "medium": "balanced", "high": "eager"}
_PCM_ADVICE = f'Use {{"type": "audio/pcm", "rate": {SAMPLE_RATE_HZ}}}: 16-bit little-endian mono.'
_FORMAT = Table(
    {"type": Only(("audio/pcm",), _PCM_ADVICE), "rate": Only((SAMPLE_RATE_HZ,), _PCM_ADVICE)}, advice=_PCM_ADVICE
)
_TURNS_ADVICE = (
    "Turns are decided from voice, prosody and words, with the server's own thresholds; leave this field out."
)
_TURN_DETECTION = Table(
    {
        "type": Only(("server_vad", "semantic_vad"), 'Use "server_vad" or "semantic_vad".'),
        "create_response": Only((True, None), _TURNS_ADVICE),
        "interrupt_response": Only((True, None), _TURNS_ADVICE),
        "eagerness": Only(("auto", *PRESET_OF_EAGERNESS, None), 'Use "low", "medium", "high" or "auto".'),
        "threshold": Only((0.5, None), _TURNS_ADVICE),
        "prefix_padding_ms": Only((300, None), _TURNS_ADVICE),
        "silence_duration_ms": Only((500, None), _TURNS_ADVICE),
        "idle_timeout_ms": Only((None,), _TURNS_ADVICE),
    },
    nullable=False,
    advice="Turn detection is always on; input_audio_buffer.commit ends a turn earlier.",
)
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
NO_TOOLS = Only((None, []), "This server calls no tools yet; leave tools out.")
SESSION = Table(
    {
        "type": Only(("realtime",), 'Use "realtime"; its transcripts arrive as events.'),
        "id": Text(),
        "object": Text(),
        "model": Text(),
        "instructions": Text(),
        "output_modalities": Only((["audio"], ["text"], None), 'Use ["audio"] (its transcript comes too) or ["text"].'),
        "audio": Table(
            {
                "input": Table(
                    {
                        "format": _FORMAT,
                        "transcription": _TRANSCRIPTION,
                        "turn_detection": _TURN_DETECTION,
                        "noise_reduction": Only((None,), "Audio is taken as it comes; reduce noise before sending it."),
                    }
                ),
                "output": Table(
                    {
                        "format": _FORMAT,
                        "voice": Voice(),
                        "speed": Only((1.0, None), "Voices speak at their own speed, 1.0."),
                    }
                ),
            }
        ),
        "duplex": Table({"turn_taking": Settings()}),
        "tools": NO_TOOLS,
        "tool_choice": Only(("auto", "none", None), "This server calls no tools yet."),
        "parallel_tool_calls": Only((True, False, None), "true, false or null."),
        "max_output_tokens": Only(("inf", None), 'Replies end where they end: "inf".'),
        "truncation": Only(("auto", None), 'The oldest turns leave first: "auto".'),
        "include": Only((None, []), "There are no extra fields to include."),
        "prompt": Only((None,), "Put the text into instructions."),
        "reasoning": Only((None,), "The thinker has no such setting."),
        "tracing": Only((None,), "Traces arrive as duplex.trace events."),
    },
    nullable=False,
)


# --- reading --------------------------------------------------------------------------------------


def read_session(session: Any, defaults: SessionDefaults, path: str = "session") -> SessionChange:
    """Checks a client's session object against the table.

    Raises ``InvalidEventError`` (unknown field, wrong kind), ``UnsupportedError`` or ``TooLargeError``, each
    with the dotted path of the field.
    """
    check(SESSION, session, path, defaults)
    audio = session.get("audio") or {}
    heard = audio.get("input") or {}
    modalities = session.get("output_modalities")
    voice = (audio.get("output") or {}).get("voice")
    return SessionChange(
        settings=AgentSettings(
            instructions=session.get("instructions"),
            voice=None if voice in OPENAI_VOICES and voice not in defaults.voices else voice,
            turn_taking=_turn_taking(session, heard),
        ),
        modality=modalities[0] if modalities else None,
        transcribe=heard["transcription"] is not None if "transcription" in heard else None,
    )


def _turn_taking(session: Mapping[str, Any], heard: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Our own table if there is one, on top of the preset that the standard field stands for; None for neither."""
    preset = PRESET_OF_EAGERNESS.get(str((heard.get("turn_detection") or {}).get("eagerness")))
    own = (session.get("duplex") or {}).get("turn_taking") or {}
    return {**({} if preset is None else {"preset": preset}), **own} or None


def check(rule: Rule, value: Any, path: str, defaults: SessionDefaults) -> None:
    """Holds ``value`` against ``rule``; raises as ``read_session`` does."""
    match rule:
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
        case Voice():
            known = (*defaults.voices, *OPENAI_VOICES)
            if value is not None and as_text(value, path, 200) not in known and defaults.voices:
                raise UnsupportedError(
                    f"{path} = {shown(value)} is not a voice of this agent. It has: {', '.join(defaults.voices)}.",
                    param=path,
                )
        case Settings():
            if value is None:
                return
            table = as_table(value, path)
            if len(table) > 64:
                raise TooLargeError(f"{path} has {len(table)} settings; at most 64 are taken.", param=path)
            for name, inner in table.items():
                if not isinstance(inner, str | int | float | bool):
                    raise InvalidEventError(
                        f"{path}.{name} must be a text, a number, true or false; got {shown(inner)}.",
                        param=f"{path}.{name}",
                    )
        case Language():
            if value is not None and as_text(value, path, 200).split("-")[0] != defaults.language:
                raise UnsupportedError(
                    f"{path} = {shown(value)} cannot be honoured. The listener understands {defaults.language!r}.",
                    param=path,
                )


def as_table(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidEventError(f"{path} must be an object, got {shown(value)}.", param=path)
    return value


def as_text(value: Any, path: str, max_chars: int) -> str:
    if not isinstance(value, str):
        raise InvalidEventError(f"{path} must be a text, got {shown(value)}.", param=path)
    if len(value) > max_chars:
        raise TooLargeError(f"{path} has {len(value)} characters; at most {max_chars} are taken.", param=path)
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise InvalidEventError(f"{path} holds half a surrogate pair, which is not text.", param=path)
    return value


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


# --- reporting ------------------------------------------------------------------------------------


def session_object(
    defaults: SessionDefaults, session_id: str, settings: AgentSettings, modality: str, transcribe: bool
) -> dict[str, Any]:
    """The effective configuration, as ``session.created`` and ``session.updated`` carry it.

    ``instructions`` null: the agent's configured ones.
    """
    pcm = {"type": "audio/pcm", "rate": SAMPLE_RATE_HZ}
    return {
        "type": "realtime",
        "object": "realtime.session",
        "id": session_id,
        "model": defaults.model,
        "instructions": settings.instructions,
        "output_modalities": [modality],
        "audio": {
            "input": {
                "format": pcm,
                "transcription": {"model": defaults.model, "language": defaults.language} if transcribe else None,
                "noise_reduction": None,
                "turn_detection": {
                    "type": "semantic_vad",
                    "eagerness": _eagerness(settings.turn_taking),
                    "create_response": True,
                    "interrupt_response": True,
                },
            },
            "output": {
                "format": pcm,
                "voice": settings.voice or (defaults.voices[0] if defaults.voices else "default"),
                "speed": 1.0,
            },
        },
        "duplex": {"turn_taking": dict(settings.turn_taking or {})},
        "tools": [],
        "tool_choice": "auto",
        "max_output_tokens": "inf",
        "truncation": "auto",
        "tracing": None,
        "include": None,
    }


def _eagerness(turn_taking: Mapping[str, Any] | None) -> str:
    preset = (turn_taking or {}).get("preset")
    return next((name for name, known in PRESET_OF_EAGERNESS.items() if known == preset), "auto")
