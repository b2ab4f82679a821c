"""Two runs of one session, compared entry by entry, and each told in a few numbers. Pure.

A *decision* is what a session did, without when to the microsecond and without measurements: floor changes,
commits, holds, resumes, truncations, text, commands to the agent. Two runs with the same decisions may still
differ in a measured millisecond; ``exact`` says that they do not.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Line = Mapping[str, Any]

_MEASURED = frozenset(
    "at heard_ms sent_ms audio_ms error_ms marks spans first_packet_ms voice_to_voice_ms end_of_turn_ms file".split()
)
_NO_DECISION = frozenset({"PlayoutProgress"})


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two runs part. ``entry`` counts from 1; ``at_s``: seconds into the session, where known.

    ``floor``: who had it in the recording until then.
    """

    entry: int
    at_s: float | None
    kind: str
    floor: str
    recorded: tuple[str, ...]
    replayed: tuple[str, ...]

    def __str__(self) -> str:
        when = "at its end" if self.at_s is None else f"at {self.at_s:.3f} s"
        then, now = ("; ".join(side) or "nothing" for side in (self.recorded, self.replayed))
        return f"{when} (entry {self.entry}, {self.kind}; {self.floor}): recorded {then}; replayed {now}"


@dataclass(slots=True)
class Outcome:
    """One run in numbers. Latencies are milliseconds, one per traced turn."""

    counts: Counter[str] = field(default_factory=Counter)
    latencies_ms: dict[str, list[float]] = field(default_factory=dict)

    def take(self, event: Line) -> None:
        """Counts one told event, as written."""
        match event["is"]:
            case "UserTurnCommitted":
                self.counts["commits"] += 1
            case "UserTurnReopened":
                self.counts["reopened"] += 1
            case "ReplyHeld":
                self.counts["holds"] += 1
            case "ReplyResumed":
                self.counts["resumes"] += 1
            case "ReplyTruncated":
                self.counts["yields"] += 1
            case "ReplyFinished":
                self.counts[f"replies {event['status']}"] += 1
            case "ErrorRaised":
                self.counts["errors"] += 1
            case "TurnTraced":
                for name in ("end_of_turn", "first_packet", "voice_to_voice"):
                    self.latencies_ms.setdefault(name, []).append(float(event[f"{name}_ms"]))

    def rows(self) -> Iterator[tuple[str, str]]:
        """(name, value) for a table."""
        names = ("commits", "reopened", "holds", "resumes", "yields")
        for name in (*names, *sorted(set(self.counts) - {*names, "errors"}), "errors"):
            yield name, str(self.counts[name])
        for name, values in self.latencies_ms.items():
            yield f"{name} p50 / max, ms", f"{statistics.median(values):.0f} / {max(values):.0f}"


@dataclass(slots=True)
class Comparison:
    """Takes pairs of entries in order; keeps the first ``keep`` differences and counts all.

    ``within_ids``: what stands in the middle of every id, and is left out where differences are shown.
    """

    keep: int = 50
    within_ids: str = ""
    floor: str = "listening"
    differences: list[Difference] = field(default_factory=list)
    count: int = 0
    entries: int = 0
    exact: bool = True
    recorded: Outcome = field(default_factory=Outcome)
    replayed: Outcome = field(default_factory=Outcome)

    @property
    def same(self) -> bool:
        return self.count == 0

    def take(self, entry: int, at_s: float | None, recorded: Line, replayed: Line) -> None:
        """One entry of each, as written."""
        self.entries += 1
        for outcome, line in ((self.recorded, recorded), (self.replayed, replayed)):
            for event in line.get("told", ()):
                outcome.take(event)
        if _outputs(recorded) != _outputs(replayed) or recorded.get("sent") != replayed.get("sent"):
            self.exact = False
        then, now = decisions(recorded), decisions(replayed)
        if recorded["kind"] != replayed["kind"]:
            self._differ(entry, at_s, recorded, (f"a {recorded['kind']}",), (f"a {replayed['kind']}",))
        elif then != now:
            self._differ(entry, at_s, recorded, *_without_common(then, now))
        for event in recorded.get("told", ()):
            self.floor = event["floor"] if event["is"] == "FloorChanged" else self.floor

    def missing(self, entry: int, recorded: Line) -> None:
        """An entry that the replay never came to: its session had ended. One without any output is no loss."""
        self.exact = self.exact and not recorded.get("sent") and _outputs(recorded) == _outputs({})
        for event in recorded.get("told", ()):
            self.recorded.take(event)
        if then := decisions(recorded):
            self._differ(entry, None, recorded, then, ("nothing more: the session had ended",))

    def _differ(
        self, entry: int, at_s: float | None, recorded: Line, then: tuple[str, ...], now: tuple[str, ...]
    ) -> None:
        self.count += 1
        if len(self.differences) < self.keep:
            sides = (tuple(self._short(text) for text in side) for side in (then, now))
            self.differences.append(Difference(entry, at_s, recorded["kind"], self.floor, *sides))

    def _short(self, text: str) -> str:
        return text.replace(self.within_ids, "_") if self.within_ids else text


def _outputs(line: Line) -> Any:
    return [_without_files(line.get(name)) for name in ("told", "commands", "refused")]


def _without_files(value: Any) -> Any:
    """The same without the names of picture files, which only one of the two has."""
    if isinstance(value, Mapping):
        return {name: _without_files(inner) for name, inner in value.items() if name != "file"}
    return [_without_files(inner) for inner in value] if isinstance(value, list) else value


def decisions(line: Line) -> tuple[str, ...]:
    """What an entry decided, each in a line of text."""
    made = [_shown(event) for event in line.get("told", ()) if event["is"] not in _NO_DECISION]
    made += [_shown(command) for command in line.get("commands", ())]
    if "refused" in line:
        made.append(f"refused ({line['refused']})")
    return tuple(made)


def _shown(written: Line) -> str:
    return f"{written['is']}({_fields(written)})"


def _fields(written: Line) -> str:
    shown = [f"{name}={_brief(value)}" for name, value in written.items() if name != "is" and _kept(name, value)]
    return ", ".join(shown)


def _kept(name: str, value: Any) -> bool:
    return name not in _MEASURED and value not in (None, "", [], {})


def _brief(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{_fields(value)}}}"
    if isinstance(value, list):
        return f"[{', '.join(_brief(inner) for inner in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _without_common(then: tuple[str, ...], now: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What only one of them has; if that is a matter of order alone, all of both."""
    only_then = tuple((Counter(then) - Counter(now)).elements())
    only_now = tuple((Counter(now) - Counter(then)).elements())
    return (only_then, only_now) if only_then or only_now else (then, now)
