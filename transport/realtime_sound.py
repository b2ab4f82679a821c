"""The formats in which sound travels inside events: 16-bit PCM at 24 kHz, and the telephone's µ-law and A-law at 8 kHz.

Both directions remember the last samples of what went before, so that a stream in pieces sounds like the whole.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol, cast

from duplex.errors import InvalidEventError, UnsupportedError
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Samples
from duplex.rates import PacketResampler, StreamResampler
from duplex.registry import lookup
from duplex.transport.pcm import to_pcm16
from duplex.transport.realtime_fields import as_table, shown

PCM = "audio/pcm"
LAWS = {"audio/pcmu": "pcmu", "audio/pcma": "pcma"}
"""By the wire's name, the codec's entry point."""
LAW_RATE_HZ = 8_000
_ADVICE = (
    f'Use {{"type": "audio/pcm", "rate": {SAMPLE_RATE_HZ}}} (16-bit little-endian mono), {{"type": "audio/pcmu"}} or '
    '{"type": "audio/pcma"} (8 kHz).'
)


class Law(Protocol):
    """What the entry points ``pcmu`` and ``pcma`` of ``duplex.codecs`` make."""

    def decode(self, code: bytes) -> Samples: ...

    def encode(self, samples: Samples) -> bytes: ...


@cache
def law(kind: str) -> Law:
    """``kind``: of :data:`LAWS`. Raises ``ConfigError`` if it is not installed."""
    return cast(Law, lookup("duplex.codecs", LAWS[kind])({}))


def read_format(value: Any, path: str) -> str | None:
    """The name of the format; None for null. Raises ``ProtocolError``'s kinds."""
    if value is None:
        return None
    given = as_table(value, path)
    kind, rate_hz = given.get("type", PCM), given.get("rate")
    if kind not in (PCM, *LAWS):
        raise UnsupportedError(f"{path}.type = {shown(kind)} cannot be honoured. {_ADVICE}", param=f"{path}.type")
    if rate_hz not in (None, SAMPLE_RATE_HZ if kind == PCM else LAW_RATE_HZ) or isinstance(rate_hz, bool):
        raise UnsupportedError(f"{path}.rate = {shown(rate_hz)} cannot be honoured. {_ADVICE}", param=f"{path}.rate")
    for name in given:
        if name not in ("type", "rate"):
            raise InvalidEventError(f"{path} has no field {name!r}. {_ADVICE}", param=f"{path}.{name}")
    return str(kind)


def format_object(kind: str) -> dict[str, Any]:
    return {"type": kind, "rate": SAMPLE_RATE_HZ} if kind == PCM else {"type": kind}


class SoundIn:
    """What a client appends, as PCM16LE at 24 kHz."""

    def __init__(self, kind: str = PCM) -> None:
        self.kind = kind
        self._law = None if kind == PCM else law(kind)
        self._resampler = None if kind == PCM else StreamResampler(LAW_RATE_HZ, SAMPLE_RATE_HZ)

    def read(self, data: bytes) -> bytes:
        """Raises ``InvalidEventError`` for half a sample; nothing is used then."""
        if self._law is not None and self._resampler is not None:
            return to_pcm16(self._resampler.push(self._law.decode(data)))
        if len(data) % 2:
            raise InvalidEventError(
                f"audio has {len(data)} bytes, an odd number. It must be whole samples of 16-bit little-endian PCM, "
                "24 kHz mono; nothing of it was used.",
                param="audio",
            )
        return data


class SoundOut:
    """Packets of a reply, in a client's format."""

    def __init__(self, kind: str = PCM) -> None:
        self.kind = kind
        self._law = None if kind == PCM else law(kind)
        self._resampler = None if kind == PCM else PacketResampler(SAMPLE_RATE_HZ, LAW_RATE_HZ, PACKET_SAMPLES)

    def write(self, samples: Samples) -> bytes:
        """float32[480] to 960 bytes of PCM16LE, or 160 of µ-law or A-law."""
        if self._law is None or self._resampler is None:
            return to_pcm16(samples)
        return self._law.encode(self._resampler.push(samples))
