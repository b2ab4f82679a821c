"""Configuration: small validated value objects, filled from a TOML file, the environment and flags, in that order.

Later sources win. The environment names a setting by its path: ``DUPLEX_SERVER__PORT=9000``;
a flag by ``--set server.port=9000``. Every default is the value the README's figures were measured with.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from duplex.errors import ConfigError

T = TypeVar("T", bound="Settings")

ENV_PREFIX = "DUPLEX_"
_SECRET_NAME = re.compile(r"token|secret|password|credential|api_key", re.IGNORECASE)
_NOT_SETTINGS = {"DUPLEX_MODELS_DIR", "DUPLEX_API_KEY"}  # names of our own that are not paths into the configuration


class Settings(BaseModel):
    """Base of every settings object: frozen, and an unknown name is an error rather than ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerConfig(Settings):
    host: str = "127.0.0.1"
    port: int = Field(8998, ge=0, le=65535)
    max_sessions: int | None = Field(
        None, ge=1, le=10_000, description="calls at a time; without it what the agent takes, 4 if it does not say"
    )
    max_sdp_bytes: int = Field(64 * 1024, ge=1024)
    max_event_bytes: int = Field(16 * 1024 * 1024, ge=1024)
    max_text_chars: int = Field(32_000, ge=1)
    retry_after_s: float = Field(5.0, gt=0)
    drain_s: float = Field(30.0, ge=0, description="what calls may still take when the server is told to stop")
    doors: tuple[Literal["twilio", "asterisk"], ...] = Field(
        (), description="which doors to the telephone network are open; AudioSocket is, where it has a port"
    )


class SecurityConfig(Settings):
    """The table ``[security]``: who may come in. ``docs/security.md`` says how the parts work together."""

    keys_file: Path | None = Field(
        None, description="keys are asked for everywhere; without it only beyond loopback, from the user's own file"
    )
    insecure: bool = Field(False, description="listen beyond loopback and ask nobody for a key")
    tls_certificate: Path | None = Field(None, description="PEM, the chain; read again when it changes")
    tls_key: Path | None = None
    origins: tuple[str, ...] = Field((), description='pages of other origins that may call, as "https://app.example"')
    trusted_proxies: tuple[str, ...] = Field((), description="addresses or networks whose X-Forwarded-For is believed")
    max_client_secrets: int = Field(10_000, ge=1)


class LimitsConfig(Settings):
    """The table ``[limits]``. 0 is no limit. What is left out has none on loopback, and ``BEYOND_LOOPBACK`` elsewhere.

    A key's own limits, set with ``duplex keys add``, go before ``sessions_per_key`` and ``calls_per_minute_per_key``.
    """

    sessions_per_key: int | None = Field(None, ge=0)
    sessions_per_address: int | None = Field(None, ge=0, description="of callers without a key of the server")
    calls_per_minute_per_key: float | None = Field(None, ge=0)
    calls_per_minute_per_address: float | None = Field(None, ge=0)
    bytes_per_minute: float | None = Field(None, ge=0, description="a key or address may send, sound and pictures too")
    failures_per_minute: float | None = Field(None, ge=0, description="wrong keys from one address")
    session_s: float | None = Field(None, ge=0, description="how long a session may last")
    idle_s: float | None = Field(None, ge=0, description="nobody says or does anything for so long")
    connection_bytes_per_s: float = Field(1024 * 1024, ge=1024, description="more is slowed down, or dropped by WebRTC")
    connection_events_per_s: float = Field(200.0, ge=1, description="more is slowed down, or refused by WebRTC")


class PlayoutConfig(Settings):
    """``max_ahead_ms`` bounds what is beyond recall; the fades are what make a pause sound like one."""

    max_ahead_ms: int = Field(320, ge=20, le=320)
    fade_out_ms: int = Field(20, ge=0, le=20)
    fade_in_ms: int = Field(20, ge=0, le=20)
    max_reply_s: float = Field(120.0, gt=0)
    progress_interval_s: float = Field(0.2, gt=0)
    assumed_delay_ms: float = Field(100.0, ge=0, description="wire to ear, when nothing measures it")


class SessionConfig(Settings):
    hold_limit_s: float = Field(2.0, gt=0)
    commit_wait_s: float = Field(
        0.5, ge=0, description="how long a finished turn may stay open while the reply to it is not ready to be heard"
    )
    yield_limit_s: float = Field(
        0.4, ge=0, description="a native agent that speaks on under an interruption is silenced after that; 0: never"
    )
    think_limit_s: float = Field(15.0, gt=0, description="a committed turn without a packet gives the floor back")
    stall_limit_s: float = Field(2.0, gt=0, description="a reply that stops coming in mid-sentence ends after that")
    dead_air_s: float = Field(3.0, ge=0, description="thinking that takes longer is admitted once, aloud; 0: never")
    echo_canceller: Literal["off", "webrtc"] = Field(
        "off", description="for lines that do not cancel echo themselves; needs: pip install 'duplex-runtime[echo]'"
    )
    resume_s: float = Field(
        30.0, ge=0, description="a call whose far end is out of reach waits so long for it to come back"
    )
    max_messages: int = Field(400, ge=2)
    max_unsent_events: int = Field(512, ge=16)
    playout: PlayoutConfig = PlayoutConfig()


class CameraConfig(Settings):
    frames_per_s: float = Field(2.0, gt=0, le=30)
    max_width: int = Field(640, ge=16)
    jpeg_quality: int = Field(80, ge=10, le=95)


class RecordConfig(Settings):
    """The table ``[record]``: whether sessions are written down, how, and for how long they are kept.

    ``redact``: "audio" stores no sound and no pictures, "text" none of the words said or written, "all" neither.
    The oldest recordings go first when one of the limits is passed; one that is being written never goes.
    """

    dir: Path | None = Field(None, description="where to; nothing is recorded without it")
    audio: Literal["flac", "opus"] = "flac"
    redact: Literal["none", "audio", "text", "all"] = "none"
    images: bool = True
    max_sessions: int = Field(1000, ge=1)
    max_total_mb: float = Field(10_000.0, gt=0)
    max_age_days: float = Field(30.0, gt=0)
    queue_entries: int = Field(4096, ge=64, description="what the disk may lag behind before recording stops")

    @property
    def keeps_sound(self) -> bool:
        return self.redact in ("none", "text")

    @property
    def keeps_text(self) -> bool:
        return self.redact in ("none", "audio")


class AgentConfig(Settings):
    """``name``: an entry point of ``duplex.agents``. ``options``: that agent's own table, validated by it."""

    name: str = "cascade"
    options: dict[str, Any] = Field(default_factory=dict)


class BotConfig(Settings):
    """The table ``[bot]``: the program that answers calls, and what becomes of one that misbehaves.

    ``name``: an entry point of ``duplex.bots``, ``"path/to/file.py:function"`` or ``"package.module:function"``.
    A door may name another for its calls.
    """

    name: str | None = Field(None, description="which bot answers calls; without one the agent does, by itself")
    apology: str = Field(
        "I am sorry, something went wrong on our side. Please call again later.",
        min_length=1,
        description="what a caller hears when the bot failed, before the call ends",
    )
    hand_over: str | None = Field(
        None, description='who passes calls on where a line cannot: "file.py:function", called with (call, to)'
    )
    hang_limit_s: float = Field(30.0, gt=0, description="a bot that asks nothing of the call for so long has failed")
    tool_limit_s: float = Field(10.0, gt=0, description="a tool that takes longer has failed")
    hand_over_limit_s: float = Field(10.0, gt=0)
    end_limit_s: float = Field(1.0, ge=0, description="what a bot may still do after the call, before it is cancelled")


class TwilioConfig(Settings):
    """The table ``[twilio]``: calls that come as Twilio Media Streams. ``docs/telephony.md`` says how to set it up."""

    public_url: str | None = Field(
        None, pattern="^https?://[^/?#]+(/[^?#]*)?$", description="how Twilio reaches this server, behind a proxy"
    )
    auth_token: SecretStr | None = Field(
        None, min_length=1, description="of the account; what it did not sign is refused then"
    )


class AudioSocketConfig(Settings):
    """The table ``[audiosocket]``: calls from Asterisk over TCP. ``docs/telephony.md`` says how to set it up.

    The protocol has no keys and no encryption: keep it on this machine, or on a network that is yours alone.
    """

    port: int | None = Field(None, ge=0, le=65535, description="9019 by custom; without it nothing listens")
    host: str = "127.0.0.1"
    callers: tuple[str, ...] = Field((), description="addresses or networks that may connect, besides this machine")
    max_connections: int = Field(64, ge=1)
    call_id_limit_s: float = Field(5.0, gt=0, description="who connects and does not say which call it is goes then")


class IceServer(Settings):
    """A STUN or TURN server, as ``RTCIceServer`` of WebRTC. TURN has username and credential, or the shared secret."""

    urls: tuple[Annotated[str, Field(pattern=r"^(stun|turn|turns):[^/\s?@]+(\?transport=(udp|tcp))?$")], ...]
    username: str | None = None
    credential: SecretStr | None = None

    @property
    def relays(self) -> bool:
        return any(not url.startswith("stun:") for url in self.urls)


class WebRtcConfig(Settings):
    """The table ``[webrtc]``: how callers find a way through their network. ``docs/operations.md`` has an example."""

    ice_servers: tuple[IceServer, ...] = ()
    turn_secret: SecretStr | None = Field(
        None, min_length=16, description="coturn's static-auth-secret: each caller gets credentials that run out"
    )
    turn_credentials_s: int = Field(7200, ge=60, description="how long; a call that is up goes on")
    server_uses: Literal["nothing", "stun", "all"] = Field(
        "stun", description="of these for its own side: stun where it is behind NAT, all where nothing reaches it"
    )

    @model_validator(mode="after")
    def _turn_has_credentials(self) -> WebRtcConfig:
        for server in self.ice_servers:
            whole = server.username is not None and server.credential is not None
            if server.relays and not whole and self.turn_secret is None:
                raise ValueError(f"{server.urls[0]} needs username and credential, or webrtc.turn_secret")
        return self


class LogConfig(Settings):
    """The table ``[log]``: what is written to standard error, a line an event. ``docs/operations.md`` says more."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"
    queue_lines: int = Field(10_000, ge=16, description="how far the reader of the log may lag behind before it loses")


class TelemetryConfig(Settings):
    """The table ``[telemetry]``: traces of turns. Needs: pip install 'duplex-runtime[otel]'"""

    otlp_endpoint: str | None = Field(
        None, pattern="^https?://[^/?#]+", description='a collector, as "http://127.0.0.1:4318"; without it, no traces'
    )
    otlp_headers: dict[str, SecretStr] = Field(default_factory=dict, description="what the collector asks for")
    service_name: str = Field("duplex", min_length=1)
    queue_spans: int = Field(4096, ge=16, description="what the collector may lag behind before spans are dropped")
    send_every_s: float = Field(2.0, gt=0)


class Config(Settings):
    server: ServerConfig = ServerConfig()
    security: SecurityConfig = SecurityConfig()
    limits: LimitsConfig = LimitsConfig()
    session: SessionConfig = SessionConfig()
    camera: CameraConfig = CameraConfig()
    record: RecordConfig = RecordConfig()
    agent: AgentConfig = AgentConfig()
    bot: BotConfig = BotConfig()
    twilio: TwilioConfig = TwilioConfig()
    audiosocket: AudioSocketConfig = AudioSocketConfig()
    webrtc: WebRtcConfig = WebRtcConfig()
    log: LogConfig = LogConfig()
    telemetry: TelemetryConfig = TelemetryConfig()


def load_config(
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    assignments: Sequence[str] = (),
) -> Config:
    """Reads the TOML file at ``path``, then ``environ``, then ``assignments`` ("server.port=9000").

    Raises ``ConfigError`` naming the setting, where it came from, and what is accepted.
    """
    merged: dict[str, Any] = {}
    if path is not None:
        try:
            merged = tomllib.loads(path.read_text("utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"There is no configuration file at {path}.") from error
        except OSError as error:
            raise ConfigError(f"The configuration file {path} cannot be read: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, of numbers too long, nested too deeply
            raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for name, text in sorted((os.environ if environ is None else environ).items()):
        if name.startswith(ENV_PREFIX) and name not in _NOT_SETTINGS:
            _assign(merged, name.removeprefix(ENV_PREFIX).lower().split("__"), _value(text), name)
    assign(merged, assignments)
    return validated(Config, merged)


def assign(table: dict[str, Any], assignments: Sequence[str]) -> None:
    """Puts ``assignments`` ("server.port=9000") into a nested table. Raises ``ConfigError``."""
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(f"--set takes NAME=VALUE, got {assignment!r}.")
        _assign(table, key.strip().split("."), _value(text), f"--set {key.strip()}")


def validated(kind: type[T], table: Mapping[str, Any], where: str = "") -> T:
    """``kind`` from a table, or a ``ConfigError`` that names the first wrong setting."""
    try:
        return kind.model_validate(dict(table))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join([*filter(None, [where]), *(str(part) for part in first["loc"])])
        if first["type"] == "extra_forbidden":
            known = ", ".join(sorted(_fields_at(kind, first["loc"][:-1])))
            raise ConfigError(f"There is no setting {name!r}. Known here: {known}.") from error
        shown = repr(first["input"])
        shown = "(hidden)" if _SECRET_NAME.search(name) or _SECRET_NAME.search(shown) else shown
        shown = shown if len(shown) <= 200 else shown[:199] + "…"
        raise ConfigError(f"Setting {name[:200]!r} = {shown}: {first['msg']}.") from error


def _fields_at(kind: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    for part in path:
        annotation = kind.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        kind = annotation
    return list(kind.model_fields)


def _value(text: str) -> Any:
    """A number, boolean, list or table as JSON spells it; any other text is itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _assign(table: dict[str, Any], path: Sequence[str], value: Any, source: str) -> None:
    for part in path[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{source}: {part!r} is a value, not a table.")
    table[path[-1]] = value
