"""The Moshi protocol's bytes: a kind, then its payload, one WebSocket message each; and what the address may ask for.

As the stock server and its clients write them. Its own note on the protocol gives the handshake two u32 (version,
model); the Python server sends none and its page two bytes, so all three lengths are read, and the server's is sent.
Kinds nobody knows are passed over, as the note asks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from duplex.agent import AgentSettings
from duplex.errors import InvalidEventError, TooLargeError, UnsupportedError


class Kind(IntEnum):
    HANDSHAKE = 0
    AUDIO = 1  # Ogg-Opus, 24 kHz mono: a stretch of one byte stream
    TEXT = 2  # UTF-8
    CONTROL = 3  # one byte, a ``Control``
    METADATA = 4  # JSON in UTF-8
    ERROR = 5  # a sentence in UTF-8
    PING = 6


class Control(IntEnum):
    START = 0
    END_TURN = 1
    PAUSE = 2
    RESTART = 3


HANDSHAKE = bytes([Kind.HANDSHAKE])
PROTOCOL_VERSION = 0


def audio(pages: bytes) -> bytes:
    return bytes([Kind.AUDIO]) + pages


def text(words: str) -> bytes:
    return bytes([Kind.TEXT]) + words.encode("utf-8", "replace")


def error(message: str) -> bytes:
    return bytes([Kind.ERROR]) + message.encode("utf-8", "replace")


def read(message: bytes) -> tuple[Kind | None, bytes]:
    """A message's kind and payload; None for a kind that is not known, and for no bytes at all."""
    if not message or message[0] not in Kind.__members__.values():
        return None, b""
    return Kind(message[0]), message[1:]


def check_handshake(payload: bytes) -> None:
    """Raises ``UnsupportedError`` for a protocol version that is not 0, ``InvalidEventError`` for another length."""
    if len(payload) not in (0, 2, 8):
        raise InvalidEventError(f"A handshake has 1, 3 or 9 bytes; this one has {1 + len(payload)}.", param="handshake")
    version = int.from_bytes(payload[: len(payload) // 2], "little")
    if version != PROTOCOL_VERSION:
        raise UnsupportedError(
            f"Protocol version {version} is not spoken here; {PROTOCOL_VERSION} is.", param="version"
        )


# --- the address --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Number:
    """A number that the stock server samples with. It has no meaning for every agent, but has to be one."""

    whole: bool
    least: float

    def check(self, name: str, value: str) -> None:
        try:
            number = int(value) if self.whole else float(value)
            right = math.isfinite(number) and number >= self.least
        except (ValueError, OverflowError):  # a whole number may have any length
            right = False
        if not right:
            kind = "a whole number" if self.whole else "a number"
            raise InvalidEventError(
                f"{name} must be {kind} of at least {self.least:g}, got {value[:80]!r}.", param=name
            )


_SEED = _Number(whole=True, least=-1)  # -1: any
SAMPLING = {
    "seed": _SEED,
    "text_seed": _SEED,
    "audio_seed": _SEED,
    "text_temperature": _Number(whole=False, least=0),
    "audio_temperature": _Number(whole=False, least=0),
    "text_topk": _Number(whole=True, least=0),
    "audio_topk": _Number(whole=True, least=0),
    "pad_mult": _Number(whole=False, least=-math.inf),
    "repetition_penalty": _Number(whole=False, least=0),
    "repetition_penalty_context": _Number(whole=True, least=0),
    "max_steps": _Number(whole=True, least=0),
}
"""What the stock pages send along on every call, their defaults included. Checked; a session cannot choose it."""

PERSONAPLEX_VOICES = frozenset(f"{style}{n}" for style in ("NATF", "NATM", "VARF", "VARM") for n in range(5))
"""Its page always names one of them. An agent that has none of them speaks with its own voice."""

_VOICE_ENDINGS = (".pt", ".wav", ".safetensors")


def read_query(query: Mapping[str, str], voices: tuple[str, ...], max_text_chars: int) -> AgentSettings:
    """What a client asks for in the address. ``voices`` empty: the agent does not list them, and checks by itself.

    ``text_prompt`` is the instructions, ``voice_prompt`` the voice (with or without a file's ending). Names that are
    not known are passed over, as every stock server does. Raises ``ProtocolError``'s kinds, naming the parameter.
    """
    for name, number in SAMPLING.items():
        if name in query:
            number.check(name, query[name])
    instructions = query.get("text_prompt", "").strip()
    if len(instructions) > max_text_chars:
        raise TooLargeError(
            f"text_prompt has {len(instructions)} characters; at most {max_text_chars} are taken.", param="text_prompt"
        )
    return AgentSettings(instructions=instructions or None, voice=_voice(query.get("voice_prompt", ""), voices))


def _voice(asked: str, voices: tuple[str, ...]) -> str | None:
    if not asked or asked in voices:
        return asked or None
    name, by_name = _without_ending(asked), {_without_ending(voice): voice for voice in voices}
    if name in by_name or name in PERSONAPLEX_VOICES:
        return by_name.get(name)
    if any(character in asked for character in "/\\\0") or asked.startswith("."):
        raise InvalidEventError("voice_prompt is the name of a voice, not a path.", param="voice_prompt")
    if not voices:
        return asked
    raise UnsupportedError(
        f"voice_prompt = {asked[:80]!r} is not a voice of this agent. It has: {', '.join(voices)}.",
        param="voice_prompt",
    )


def _without_ending(file_name: str) -> str:
    ending = next((ending for ending in _VOICE_ENDINGS if file_name.endswith(ending)), "")
    return file_name.removesuffix(ending)
