"""Latency traces: one turn's work as named instants, and the waterfall drawn from them.

All instants are wall times of the session's clock; the trace is told in milliseconds after the user's
last voiced sample, which is where a person starts to wait.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SPANS: tuple[tuple[str, str, str], ...] = (
    # span, from mark, to mark
    ("end_of_turn", "last_voiced", "commit"),
    ("listener", "listener_asked", "listener_done"),
    ("thinker", "thinker_asked", "thinker_first_clause"),
    ("talker", "talker_asked", "talker_first_audio"),
    ("first_packet", "commit", "first_packet"),
)


@dataclass(slots=True)
class TurnTrace:
    """Marks of one turn and its reply. The first mark of a name counts; later ones are ignored."""

    marks: dict[str, float] = field(default_factory=dict)
    speculative: bool = False

    def mark(self, name: str, at_s: float) -> None:
        self.marks.setdefault(name, at_s)

    def since_last_voiced_ms(self, name: str) -> float | None:
        if name not in self.marks or "last_voiced" not in self.marks:
            return None
        return (self.marks[name] - self.marks["last_voiced"]) * 1000.0

    def between_ms(self, start: str, end: str) -> float | None:
        if start not in self.marks or end not in self.marks:
            return None
        return (self.marks[end] - self.marks[start]) * 1000.0

    def waterfall(self) -> tuple[tuple[str, float, float], ...]:
        """(span, start_ms, end_ms) for every span whose marks are there, in pipeline order."""
        zero = self.marks.get("last_voiced")
        if zero is None:
            return ()
        return tuple(
            (name, (self.marks[start] - zero) * 1000.0, (self.marks[end] - zero) * 1000.0)
            for name, start, end in SPANS
            if start in self.marks and end in self.marks
        )

    def marks_ms(self) -> tuple[tuple[str, float], ...]:
        zero = self.marks.get("last_voiced")
        if zero is None:
            return ()
        return tuple(sorted(((n, (at - zero) * 1000.0) for n, at in self.marks.items()), key=lambda pair: pair[1]))
