"""What of a session's events is a line of the log: its beginning, each answered turn with its latencies, and trouble.

No words of anybody: a log is kept longer, and read by more people, than a call.
"""

from __future__ import annotations

import logging
from typing import Any

from duplex import events as ev

log = logging.getLogger("duplex.calls")

Line = tuple[int, str, dict[str, Any]]
"""Level, message, fields."""


def line_of(event: ev.Event) -> Line | None:
    """Pure. None: an event that is no line."""
    match event:
        case ev.SessionStarted(agent=agent):
            return logging.INFO, "session began", {"agent": agent}
        case ev.TurnTraced():
            return (
                logging.INFO,
                "turn answered",
                {
                    "item": event.item_id,
                    "response": event.reply_id,
                    "end_of_turn_ms": round(event.end_of_turn_ms, 1),
                    "first_packet_ms": round(event.first_packet_ms, 1),
                    "voice_to_voice_ms": round(event.voice_to_voice_ms, 1),
                    "speculative": event.speculative,
                },
            )
        case ev.ReplyTruncated():
            return logging.INFO, "reply cut off", {"response": event.reply_id, "heard_ms": round(event.heard_ms)}
        case ev.ReplyFinished(status="failed"):
            return logging.WARNING, "reply failed", {"response": event.reply_id, "why": event.error or "unknown"}
        case ev.ErrorRaised():
            fields = {"code": event.code, **({} if event.param is None else {"param": event.param})}
            return logging.WARNING, f"the client was told: {event.message}", fields
    return None


def log_event(session_id: str, at_unix_s: float, event: ev.Event) -> None:
    """An observer of :mod:`duplex.telemetry_line`. The session's name is in the context already."""
    if (line := line_of(event)) is not None:
        level, message, fields = line
        log.log(level, "%s", message, extra=fields)
