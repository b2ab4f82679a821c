"""All targets by name, and the structured inputs that some of them have."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from . import structured, targets_calls, targets_events, targets_files, targets_media
from .target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (targets_events, targets_calls, targets_media, targets_files)
    for target in module.TARGETS
}


def strategy(name: str) -> st.SearchStrategy[bytes] | None:
    """Structured inputs of a target; None where it has none."""
    match name:
        case "events" | "channel":
            return structured.json_lines(targets_events.EVENTS)
        case "twilio":
            return structured.json_lines(targets_events.TWILIO)
        case "asterisk":
            return structured.edited(targets_events.ASTERISK).map(structured.dump)
        case "keys":
            return structured.edited([json.loads(targets_files.KEYS_TARGET.seeds()[0])]).map(structured.dump)
        case "archive":
            return structured.edited([json.loads(targets_files.ARCHIVE_TARGET.seeds()[0])]).map(structured.dump)
        case "recording":
            return _recordings()
        case "sdp" | "negotiation":
            return _offers()
        case "http":
            return _sessions()
    return None


@st.composite
def _recordings(draw: st.DrawFn) -> bytes:
    """A recording with the manifest or a few lines of the journal edited."""
    seed = draw(st.sampled_from(targets_files.RECORDING_TARGET.seeds()))
    manifest, _, journal = seed[1:].partition(b"\0")
    if draw(st.integers(0, 3)) == 0:
        manifest = structured.dump(draw(structured.edited([json.loads(manifest)])))
    else:
        lines: list[Any] = journal.splitlines()
        for at in draw(st.lists(st.integers(0, len(lines) - 1), min_size=1, max_size=3)):
            lines[at] = structured.dump(draw(structured.edited([json.loads(lines[at])])))
        journal = b"\n".join(lines) + b"\n"
    return seed[:1] + manifest + b"\0" + journal


_VALUES = st.sampled_from(
    ["", " ", "-1", "0", "255", "65536", "99999999999999999999", "9" * 5000, "x", "é", "\0", "*", "a b c", "1 1 1",
     ":::", "host", "::1", "sha-256", "AA:BB", "IN IP4 x", "UDP/TLS/RTP/SAVPF", "opus/48000/2", "/", "x/0/0", "=", ";"]
)  # fmt: skip


@st.composite
def _offers(draw: st.DrawFn) -> bytes:
    """An offer with lines removed, doubled, moved, or with a word of theirs replaced."""
    lines = draw(st.sampled_from(targets_calls.offers())).decode().split("\r\n")
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(["remove", "double", "move", "word", "word", "many"])):
            case "remove" if len(lines) > 2:
                del lines[at]
            case "double":
                lines.insert(draw(st.integers(0, len(lines))), lines[at])
            case "move":
                lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
            case "many":
                lines[at:at] = [lines[at]] * draw(st.sampled_from([7, 60, 250]))
            case _:
                words = lines[at].replace(":", " : ").split(" ")
                words[draw(st.integers(0, len(words) - 1))] = draw(_VALUES)
                lines[at] = " ".join(words).replace(" : ", ":")
    return "\r\n".join(lines).encode()


def _sessions() -> st.SearchStrategy[bytes]:
    """A form with an edited session, and a request for a client secret with one."""
    configured = [event["session"] for event in targets_events.EVENTS if event["type"] == "session.update"]
    secrets = [{"expires_after": {"anchor": "created_at", "seconds": 600}, "session": each} for each in configured]
    offer = targets_calls.offers()[0]
    return st.one_of(
        structured.edited(configured)
        .map(structured.dump)
        .map(lambda session: targets_calls.form_request(offer, session)),
        structured.edited(secrets).map(structured.dump).map(targets_calls.secret_request),
    )
