"""One trace a turn: the user's last voiced sample at its root's start, the end of the answer at its end. Pure.

Children are the spans of the turn's waterfall (``duplex/trace.py``: end_of_turn, listener, thinker, talker,
first_packet) and *playout*, from the first packet to the last, or to where somebody talked over it. They may begin
before the turn was committed: that is speculation, and the point of it.

A trace is handed on once, when its answer is over; until then it is here, one a session at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from duplex import events as ev


@dataclass(slots=True)
class Span:
    """Times in seconds since 1970. ``notes``: (name, when) of what happened within it."""

    name: str
    start_unix_s: float
    end_unix_s: float
    attributes: dict[str, Any] = field(default_factory=dict)
    notes: list[tuple[str, float]] = field(default_factory=list)


@dataclass(slots=True)
class TracedTurn:
    """``root`` covers its ``children``. ``failed``: why there is no whole answer, if something went wrong."""

    root: Span
    children: list[Span]
    failed: str | None = None


class TurnTraces:
    """An observer of :mod:`duplex.telemetry_line`. ``finish`` is called with each trace once it is whole."""

    def __init__(self, finish: Callable[[TracedTurn], None]) -> None:
        self._finish = finish
        self._open: dict[str, TracedTurn] = {}  # by session
        self._agents: dict[str, str] = {}

    def __call__(self, session_id: str, at_unix_s: float, event: ev.Event) -> None:
        match event:
            case ev.SessionStarted(agent=agent):
                self._agents[session_id] = agent
            case ev.TurnTraced():
                self._close(session_id, at_unix_s, {"duplex.status": "replaced"})
                self._open[session_id] = begun(session_id, self._agents.get(session_id, ""), at_unix_s, event)
            case ev.ReplyHeld(reply_id=reply_id):
                self._note(session_id, reply_id, "held", at_unix_s)
            case ev.ReplyResumed(reply_id=reply_id):
                self._note(session_id, reply_id, "resumed", at_unix_s)
            case ev.ReplyTruncated(reply_id=reply_id):
                if (turn := self._of(session_id, reply_id)) is not None:
                    turn.root.attributes["duplex.heard_ms"] = event.heard_ms
            case ev.ReplyFinished(reply_id=reply_id):
                if (turn := self._of(session_id, reply_id)) is not None:
                    if event.status == "failed":
                        turn.failed = event.error or "the reply failed"
                    self._close(session_id, at_unix_s, _ending(event))
            case ev.SessionClosed():
                self._close(session_id, at_unix_s, {"duplex.status": "hung_up"})
                self._agents.pop(session_id, None)

    def _of(self, session_id: str, reply_id: str) -> TracedTurn | None:
        turn = self._open.get(session_id)
        return turn if turn is not None and turn.root.attributes["duplex.response_id"] == reply_id else None

    def _note(self, session_id: str, reply_id: str, name: str, at_unix_s: float) -> None:
        if (turn := self._of(session_id, reply_id)) is not None and len(turn.children[-1].notes) < 64:
            turn.children[-1].notes.append((name, at_unix_s))

    def _close(self, session_id: str, at_unix_s: float, attributes: Mapping[str, Any]) -> None:
        if (turn := self._open.pop(session_id, None)) is not None:
            turn.root.attributes.update(attributes)
            playout = turn.children[-1]
            playout.end_unix_s = max(at_unix_s, playout.start_unix_s)
            turn.root.end_unix_s = max(span.end_unix_s for span in turn.children)
            self._finish(turn)


def begun(session_id: str, agent: str, at_unix_s: float, event: ev.TurnTraced) -> TracedTurn:
    """The trace of a turn whose answer has just become audible, its playout open. ``at_unix_s``: the event's time."""
    zero_unix_s = at_unix_s - event.voice_to_voice_ms / 1000.0  # the event comes with the first packet
    children = [
        Span(name, zero_unix_s + start_ms / 1000.0, zero_unix_s + end_ms / 1000.0)
        for name, start_ms, end_ms in event.spans
    ]
    children.append(Span("playout", at_unix_s, at_unix_s))
    attributes = {
        "session.id": session_id,
        "duplex.agent": agent,
        "duplex.item_id": event.item_id,
        "duplex.response_id": event.reply_id,
        "duplex.end_of_turn_ms": event.end_of_turn_ms,
        "duplex.first_packet_ms": event.first_packet_ms,
        "duplex.voice_to_voice_ms": event.voice_to_voice_ms,
        "duplex.speculative": event.speculative,
    }
    first_unix_s = min(zero_unix_s, *(span.start_unix_s for span in children))
    return TracedTurn(Span("turn", first_unix_s, at_unix_s, attributes), children)


def _ending(event: ev.ReplyFinished) -> dict[str, Any]:
    said: dict[str, Any] = {"duplex.status": event.status, "duplex.audio_ms": event.audio_ms}
    if event.usage is not None:  # named as OpenTelemetry's conventions for generative AI name them
        said["gen_ai.usage.input_tokens"] = event.usage.input_tokens
        said["gen_ai.usage.output_tokens"] = event.usage.output_tokens
    return said
