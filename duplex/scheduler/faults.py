"""Foreign errors of an engine, mapped where they enter."""

from __future__ import annotations

from duplex.errors import AgentFaultError, DuplexError


def out_of_memory(error: BaseException) -> bool:
    """Told by name, since a device's own error type belongs to its library."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "out of memory" in str(error).lower()
    )


def typed_error(error: Exception, when: str) -> DuplexError:
    """``error`` as one of ours."""
    if isinstance(error, DuplexError):
        return error
    if out_of_memory(error):
        typed: DuplexError = AgentFaultError(
            f"The device ran out of memory {when}. Allow fewer calls, a shorter context, or smaller precision."
        )
    else:
        typed = AgentFaultError(f"The engine failed {when}: {type(error).__name__}: {error}")
    typed.__cause__ = error
    return typed
