"""What a server tells of a call in its events, and sound cannot: which reply, which turn, which words.

Only names of the public vocabulary are asked for, and ``duplex.`` extensions where there are none; from a server
that sends neither comes nothing, and what is judged by it is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from duplex.recording import RecordedEvent, Recording

Events = Sequence[RecordedEvent]


@dataclass(frozen=True, slots=True)
class Reply:
    """One response of the server. ``audible_ms``: from when its sound was on its way; None if it never was.

    ``status``: as in ``response.done``, or "open". ``done_ms``: when that came.
    """

    reply_id: str
    created_ms: float
    audible_ms: float | None
    done_ms: float | None
    status: str

    @property
    def given_up(self) -> bool:
        return self.status in {"cancelled", "incomplete", "failed"}


def replies(events: Events) -> list[Reply]:
    """Every response there is an event of, in order of creation."""
    created: dict[str, float] = {}
    audible: dict[str, float] = {}
    done: dict[str, tuple[float, str]] = {}
    for recorded in events:
        event = recorded.event
        match recorded.type:
            case "response.created":
                created.setdefault(str(event["response"]["id"]), recorded.at_ms)
            case "output_audio_buffer.started" | "response.output_audio.delta" | "duplex.playout":
                audible.setdefault(str(event.get("response_id")), recorded.at_ms)
            case "response.done":
                response = event["response"]
                done.setdefault(str(response["id"]), (recorded.at_ms, _status(response)))
    return [
        Reply(reply_id, at_ms, audible.get(reply_id), *done.get(reply_id, (None, "open")))
        for reply_id, at_ms in created.items()
    ]


def _status(response: Mapping[str, Any]) -> str:
    """A reply that is as long as it may be has come to its end; nobody took the floor from it."""
    reason = (response.get("status_details") or {}).get("reason")
    return "completed" if reason == "max_output_tokens" else str(response.get("status", "completed"))


def reply_spoken_at(recording: Recording, at_ms: float) -> Reply | None:
    """The reply that was being spoken at ``at_ms``, as the server tells it; None if it does not."""
    found = [
        reply
        for reply in replies(recording.events)
        if reply.audible_ms is not None
        and reply.audible_ms <= at_ms
        and (reply.done_ms is None or reply.done_ms > at_ms - 500.0)  # its last words are still on their way
    ]
    return found[-1] if found else None


def turns_committed(recording: Recording, start_ms: float, until_ms: float) -> int:
    """How many turns of the user were committed in the stretch; one that was reopened and went on counts once."""
    return len(
        {
            recorded.event.get("item_id")
            for recorded in recording.events
            if recorded.type == "input_audio_buffer.committed" and start_ms <= recorded.at_ms < until_ms
        }
    )


def kept_text(recording: Recording, item_id: str) -> str | None:
    """What the conversation keeps of an assistant's item, by the newest event that says so."""
    kept: str | None = None
    for recorded in recording.events:
        event = recorded.event
        if recorded.type == "conversation.item.truncated" and event.get("item_id") == item_id:
            extension = event.get("duplex") or {}
            kept = extension.get("heard_text", kept)
        elif recorded.type in {"conversation.item.done", "conversation.item.retrieved"}:
            item = event.get("item") or {}
            if item.get("id") == item_id:
                kept = " ".join(str(part.get("transcript") or part.get("text") or "") for part in item["content"])
    return kept


def words_of(recording: Recording, reply_id: str) -> list[Mapping[str, Any]]:
    return [
        word
        for recorded in recording.events
        if recorded.type == "duplex.words" and recorded.event.get("response_id") == reply_id
        for word in recorded.event.get("words", ())
    ]


def traces(recording: Recording) -> list[dict[str, float]]:
    """The server's latency traces: each stage's duration in ms, by name, one dict per traced turn."""
    found = []
    for recorded in recording.events:
        if recorded.type == "duplex.trace":
            event = recorded.event
            stages = {str(span["name"]): float(span["end_ms"]) - float(span["start_ms"]) for span in event["spans"]}
            whole = {
                name: float(event[f"{name}_ms"])
                for name in ("voice_to_voice", "end_of_turn", "first_packet")
                if f"{name}_ms" in event
            }
            found.append(stages | whole)
    return found


def trace_marks(recording: Recording) -> list[dict[str, float]]:
    """The marks of each latency trace: ms after the user's last voiced sample, by name."""
    return [
        {str(mark["name"]): float(mark["at_ms"]) for mark in recorded.event.get("marks", ())}
        for recorded in recording.events
        if recorded.type == "duplex.trace"
    ]
