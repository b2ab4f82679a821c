"""The errors duplex raises, in one tree.

::

    DuplexError                     everything below; catch this at an outermost edge
    ├── ConfigError                 a setting is wrong; names the setting and what is accepted
    ├── MissingDependencyError      an optional library is absent; carries the exact pip line
    ├── WeightsError                a model file is the problem; carries the command that mends it
    │   ├── WeightsMissingError     not on disk yet
    │   ├── WeightsCorruptError     truncated or altered (size or sha256 differs)
    │   └── WeightsUnreachableError none of its sources answered; lists what was tried
    ├── AgentError                  the agent, or a model behind it, is the problem
    │   ├── AgentFullError          no room for another session now; carries ``retry_after_s``
    │   ├── AgentFaultError         a worker failed inside one session; the others go on
    │   │   └── AgentBehindError    its models were too slow for a moment; the session goes on by itself
    │   └── ThinkerUnavailableError an endpoint is down, slow, or refused us
    ├── BotError                    a bot, the program of one call, is the problem
    │   ├── CallEndedError          told to a bot: the call is over, nobody is there to talk to
    │   ├── HandOverError           the call cannot be passed on; says why
    │   └── ToolError               a tool did not do what it was asked; the message is for the caller's ears
    ├── ProtocolError               a client sent something the protocol does not allow
    │   ├── InvalidEventError       unknown type, bad field, not JSON; names the field
    │   ├── UnsupportedError        understood, and not something this server does
    │   └── TooLargeError           over a stated limit
    ├── LimitError                  too much, too often or too many; carries ``retry_after_s``
    ├── RecordingError              a recorded session cannot be read, or cannot be replayed
    └── TransportError              the connection failed or closed underneath us

Foreign exceptions (onnxruntime, aiortc, httpx, pydantic …) are mapped onto these where they enter;
nothing outside the module that uses a library sees the library's own errors.
"""

from __future__ import annotations


class DuplexError(Exception):
    """Base of every error raised on purpose. ``str(error)`` is a sentence a person can act on."""


class ConfigError(DuplexError):
    """A setting has a value that cannot work."""


# Its own pins are narrower than what it runs on, so no extra can bring it.
_BESIDE = {"moshi": "pip install --no-deps moshi==0.2.13"}


class MissingDependencyError(DuplexError, ImportError):
    """An optional library is not installed.

    ``library`` is the import name, ``extra`` the extra of this distribution that brings it.
    """

    def __init__(self, library: str, extra: str) -> None:
        self.library = library
        self.extra = extra
        run = "".join(f" and: {also}" for name, also in _BESIDE.items() if name == extra)
        super().__init__(f"{library} is not installed. Run: pip install 'duplex-runtime[{extra}]'{run}")


class WeightsError(DuplexError):
    """A model file is missing, wrong or unreachable."""


class WeightsMissingError(WeightsError):
    """A model file is not on disk."""


class WeightsCorruptError(WeightsError):
    """A model file is there, but its size or sha256 is not the manifest's."""


class WeightsUnreachableError(WeightsError):
    """No source delivered a model file. The message lists every source tried and why it failed."""


class AgentError(DuplexError):
    """The agent cannot do what was asked."""


class AgentFullError(AgentError):
    """The agent has no room for another session. Try again after ``retry_after_s`` seconds."""

    def __init__(self, message: str, retry_after_s: float = 5.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class AgentFaultError(AgentError):
    """A worker failed inside one session."""


class AgentBehindError(AgentFaultError):
    """The models were too slow for a moment: something was not heard, or was heard late. Nothing is to be done."""


class ThinkerUnavailableError(AgentError):
    """The thinker's endpoint is down, too slow, or refused the request."""


class BotError(DuplexError):
    """The program of one call failed, or did nothing for too long."""


class CallEndedError(BotError):
    """The call is over: the caller hung up, or the bot did. A bot may catch it to tidy up; it need not."""


class HandOverError(BotError):
    """The call cannot be passed on to somebody else."""


class ToolError(BotError):
    """A tool did not do what it was asked. Tools raise it with a sentence that a caller may hear."""


class ProtocolError(DuplexError):
    """A client sent something the protocol does not allow.

    ``code`` is a short machine-readable word, ``param`` the offending field (dotted path) if there is one. Both this
    and the message may quote the client, and are sent back and logged: they are cut short and hold what can be
    printed.
    """

    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        self.param = None if param is None else _printable(param, 200)
        if code is not None:
            self.code = code
        super().__init__(_printable(message, 2000))


def _printable(text: str, max_chars: int) -> str:
    cut = text if len(text) <= max_chars else text[: max_chars - 1] + "…"
    return cut if cut.isprintable() else "".join(char if char.isprintable() else "?" for char in cut)


class InvalidEventError(ProtocolError):
    """Not JSON, an unknown event, or a field of the wrong kind."""

    code = "invalid_event"


class UnsupportedError(ProtocolError):
    """Well formed, but not something this server does; the message says what it does instead."""

    code = "unsupported"


class TooLargeError(ProtocolError):
    """Over a stated limit; the message gives the limit."""

    code = "too_large"


class LimitError(DuplexError):
    """Too much, too often or too many. Try again after ``retry_after_s`` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class RecordingError(DuplexError):
    """A recording cannot be read, or not be replayed. The message says which file, and what can be done."""


class TransportError(DuplexError):
    """The connection failed or closed underneath the session."""
