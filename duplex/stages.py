"""Where a turn's time went: its latency trace as stages of which none contains another.

The figures a person feels are totals: a slower thinker makes *end of turn* longer (a finished turn waits for
its reply), and *voice-to-voice* too. Who wants to know what to mend needs the stage that grew by itself.
So a trace is cut into *own* stages:

===========  ==========================================================================================
endpointing  the user's last voiced sample → the predictor calls the turn complete
speculation  the user's last voiced sample → work on a reply begins, if it began before the commit
listener     the listener is asked → the words are settled
thinker      the thinker is asked → its first clause
talker       the talker is asked → its first audio
reply        work on the reply begins → its first audio, less what listener, thinker and talker take of it:
             handing over, or all of it for an agent that marks no stages
release      the turn is committed and there is audio → the first packet leaves
lead_in      the first packet leaves → the agent can be heard (only where the sound was measured)
===========  ==========================================================================================

and the totals, which contain them, are kept beside them: *end_of_turn*, *first_packet*, *voice_to_voice*
(their definitions are in ``duplex/trace.py``).

Everything here is pure. Marks are milliseconds on any one time line, named as in ``duplex/trace.py``; three
more make the cut exact: ``turn_complete`` (the predictor's call), ``reply_asked`` and ``reply_first_audio``.
Without them the next best marks are used, as said at :func:`stage_spans`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from duplex.recording import Span

OWN: tuple[str, ...] = (
    "endpointing",
    "speculation",
    "listener",
    "thinker",
    "talker",
    "reply",
    "release",
    "lead_in",
)
TOTALS: tuple[str, ...] = ("end_of_turn", "first_packet", "voice_to_voice")

TURN_COMPLETE, REPLY_ASKED, REPLY_FIRST_AUDIO = "turn_complete", "reply_asked", "reply_first_audio"

STAGE_MARKS: Mapping[str, tuple[str, str]] = {
    "listener": ("listener_asked", "listener_done"),
    "thinker": ("thinker_asked", "thinker_first_clause"),
    "talker": ("talker_asked", "talker_first_audio"),
}
"""The stages an agent reports by itself, by the marks around them."""

_WAITED_MS = 25.0  # a commit this soon after the first audio (a packet and a bit) was waiting for it


def stage_spans(marks: Mapping[str, float]) -> dict[str, Span]:
    """Where each own stage lies, in the marks' milliseconds and pipeline order; absent where marks are.

    Without ``reply_asked`` the first of listener, thinker or talker being asked begins the reply; without
    ``reply_first_audio`` it is the talker's. Without ``turn_complete``, *endpointing* is taken from the commit,
    and left out where the commit was waiting for the reply and says nothing about the predictor.
    """
    spans: dict[str, Span] = {}
    voiced, commit, packet = marks.get("last_voiced"), marks.get("commit"), marks.get("first_packet")
    asked = _first(marks, REPLY_ASKED, *(start for start, _ in STAGE_MARKS.values()))
    audio = marks.get(REPLY_FIRST_AUDIO, marks.get("talker_first_audio"))
    speculative = asked is not None and commit is not None and asked < commit
    if voiced is not None:
        complete = marks.get(TURN_COMPLETE)
        if complete is None and commit is not None and not (speculative and _waiting(commit, audio)):
            complete = commit
        if complete is not None:
            spans["endpointing"] = Span(voiced, complete)
        if asked is not None and speculative:
            spans["speculation"] = Span(voiced, asked)
    for name, (start, end) in STAGE_MARKS.items():
        if start in marks and end in marks:
            spans[name] = Span(marks[start], marks[end])
    if asked is not None and audio is not None:
        spans["reply"] = Span(asked, audio)
    if packet is not None and (ready := [at for at in (commit, audio) if at is not None]):
        spans["release"] = Span(max(ready), packet)
    return spans


def _first(marks: Mapping[str, float], *names: str) -> float | None:
    return min((marks[name] for name in names if name in marks), default=None)


def _waiting(commit: float, audio: float | None) -> bool:
    """Whether the commit of a turn with a speculation may have come when it did because of the reply."""
    return audio is not None and commit - audio < _WAITED_MS


def own_stages(marks: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds of each own stage whose marks are there, to the microsecond. Never negative."""
    spans = stage_spans(marks)
    inner = [spans[name] for name in STAGE_MARKS if name in spans]
    return {
        name: max(0.0, round(span.end_ms - span.start_ms - (_covered(span, inner) if name == "reply" else 0.0), 3))
        for name, span in spans.items()
    }


def totals(marks: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds of each total whose marks are there."""
    pairs = {
        "end_of_turn": ("last_voiced", "commit"),
        "first_packet": ("commit", "first_packet"),
        "voice_to_voice": ("last_voiced", "first_packet"),
    }
    return {
        name: round(marks[end] - marks[start], 3)
        for name, (start, end) in pairs.items()
        if start in marks and end in marks
    }


def _covered(whole: Span, parts: Sequence[Span]) -> float:
    """How much of ``whole`` lies in at least one of ``parts``."""
    covered, cursor = 0.0, whole.start_ms
    for part in sorted(parts, key=lambda span: span.start_ms):
        start, end = max(part.start_ms, cursor), min(part.end_ms, whole.end_ms)
        if end > start:
            covered, cursor = covered + end - start, end
    return covered


def waterfall_text(marks: Mapping[str, float], extra: Mapping[str, float] | None = None, width: int = 48) -> str:
    """The trace as text, one line a stage: its own milliseconds, and a bar where it lies.

    ``marks`` in milliseconds after the user's last voiced sample. ``extra``: stages known only by their length.
    """
    spans, own = stage_spans(marks), own_stages(marks)
    if not spans:
        return "(no latency trace: nothing was answered)"
    low = min(0.0, *(span.start_ms for span in spans.values()))
    scale = width / max(1.0, max(span.end_ms for span in spans.values()) - low)
    axis = f"{low:.0f}".ljust(width - 6) + f"{low + width / scale:.0f} ms".rjust(6)
    lines = [f"  {'ms after the last voiced sample':<32}{axis}"]
    for name in OWN:
        if name in spans:
            first = round((spans[name].start_ms - low) * scale)
            length = max(1, round((spans[name].end_ms - low) * scale) - first)
            # The whole of "reply" contains its stages, so only they are drawn solid.
            bar = " " * min(first, width - 1) + ("-" if name == "reply" else "#") * length
            lines.append(f"  {name:<16}{own[name]:>9.0f} ms    {bar}")
    lines += [f"  {name:<16}{ms:>9.0f} ms" for name, ms in (extra or {}).items()]
    lines += [f"  {name:<16}{ms:>9.0f} ms  (total)" for name, ms in totals(marks).items()]
    return "\n".join(lines)
