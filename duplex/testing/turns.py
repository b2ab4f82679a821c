"""What came of a turn in a test, and assertions about it that say where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from duplex.baseline import p95
from duplex.conversation import Role
from duplex.errors import ConfigError
from duplex.recording import Span
from duplex.stages import OWN, TOTALS, own_stages, totals, waterfall_text


class UnansweredError(AssertionError):
    """A figure was asked for that there is none of: nothing answered, nothing stopped, nothing resumed."""


class Stages(dict[str, float]):
    """Stage → milliseconds. Asking for one that was not measured says which were."""

    def __missing__(self, stage: str) -> float:
        known = ", ".join(self) or "none"
        raise KeyError(
            f"No stage {stage!r} was measured in this turn (measured: {known}). "
            "An agent reports its stages with Mark events; docs/testing.md has their names."
        )


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the conversation as the agent remembers it. ``cut_off``: it was interrupted there."""

    role: Role
    text: str
    cut_off: bool = False

    def __str__(self) -> str:
        return f"{self.role.value}: {self.text}{' —' if self.cut_off else ''}"


@dataclass(frozen=True)
class Turn:
    """One turn of the user and what answered it.

    From the sound, by the rules of ``duplex/recording.py``: ``user`` (first to last voiced sample), ``reply_ms``
    (when the agent could be heard, both on the call's time line), ``took_over`` (it spoke before the user had
    finished). From the session's trace: ``marks`` in milliseconds after the user's last voiced sample.
    ``text`` and ``reply_text`` are the words, ``errors`` what the session reported meanwhile.
    """

    user: Span
    reply_ms: float | None
    took_over: bool = False
    marks: Mapping[str, float] = field(default_factory=dict)
    lead_in_ms: float | None = None
    speculative: bool = False
    text: str = ""
    reply_text: str = ""
    waited_ms: float = 0.0
    errors: tuple[str, ...] = ()

    @property
    def answered(self) -> bool:
        """The agent could be heard, and not before the user had finished."""
        return self.reply_ms is not None and not self.took_over

    @property
    def voice_to_voice_ms(self) -> float:
        """The user's last voiced sample → the agent can be heard, both in the sound."""
        if self.reply_ms is None or self.took_over:
            raise UnansweredError(self._why_not())
        return self.reply_ms - self.user.end_ms

    @property
    def first_packet_ms(self) -> float:
        """The turn is committed → the first audible packet leaves."""
        return self._total("first_packet")

    @property
    def end_of_turn_ms(self) -> float:
        """The user's last voiced sample → the turn is committed."""
        return self._total("end_of_turn")

    @property
    def stages(self) -> Stages:
        """Milliseconds of each own stage (``duplex/stages.py``): none contains another."""
        own = Stages(own_stages(self.marks))
        if self.lead_in_ms is not None:
            own["lead_in"] = self.lead_in_ms
        return own

    @property
    def measures(self) -> Stages:
        """The own stages and the totals that contain them."""
        measured = Stages(self.stages)
        if self.answered:
            measured |= totals(self.marks) | {"voice_to_voice": self.voice_to_voice_ms}
        return measured

    @property
    def waterfall(self) -> str:
        """Where the time went, as text."""
        return waterfall_text(self.marks, {} if self.lead_in_ms is None else {"lead_in": self.lead_in_ms})

    def _total(self, name: str) -> float:
        found = totals(self.marks)
        if name not in found:
            raise UnansweredError(self._why_not())
        return found[name]

    def _why_not(self) -> str:
        if self.took_over:
            return "The agent spoke before the user had finished, so there is no latency to speak of."
        told = "".join(f" The session said: {error}" for error in self.errors)
        return f"Nothing answered the turn within {self.waited_ms / 1000:.1f} s.{told}"

    def __repr__(self) -> str:
        if not self.answered:
            return f"<Turn {'taken over' if self.took_over else 'not answered'}>"
        return f"<Turn answered after {self.voice_to_voice_ms:.0f} ms, {self.reply_text!r}>"


@dataclass(frozen=True)
class Overlap:
    """The user spoke over the agent: an interruption, or an encouragement.

    From the sound: ``user`` is what was said over the agent; ``valid`` that there was something to stop;
    ``yielded`` that the agent fell silent for it and did not go on with the same reply. ``resumed`` that it paused
    and went on with it, ``resume_gap_ms`` later. ``heard_text`` is what the agent remembers of the reply that was
    talked over. ``turn`` is the answer, if there was one: the user's words over the agent as a turn of their own.
    """

    user: Span
    valid: bool
    yielded: bool
    resumed: bool
    stopped_ms: float | None
    resume_gap_ms: float | None
    reply_text: str
    heard_text: str
    turn: Turn

    @property
    def stop_ms(self) -> float:
        """First voiced sample of the interruption → the agent has fallen silent for at least 300 ms."""
        if self.stopped_ms is None:
            raise UnansweredError("The agent never fell silent for 300 ms.")
        return self.stopped_ms

    @property
    def measures(self) -> Stages:
        measured = Stages()
        if self.yielded and self.stopped_ms is not None:
            measured["barge_in_stop"] = self.stopped_ms
        if self.resumed and self.resume_gap_ms is not None:
            measured["resume_gap"] = self.resume_gap_ms
        return measured

    def __repr__(self) -> str:
        if self.yielded:
            return f"<Overlap yielded after {self.stop_ms:.0f} ms, remembered {self.heard_text!r}>"
        return f"<Overlap resumed after {self.resume_gap_ms:.0f} ms>" if self.resumed else "<Overlap not yielded to>"


def budget(turns: Turn | Sequence[Turn], **limits_ms: float) -> None:
    """Asserts that stages took no longer than allowed: ``budget(turn, first_packet_ms=200, thinker_ms=300)``.

    A name is a stage or a total with ``_ms`` behind it. Given several turns, their p95 is judged. The
    ``AssertionError`` names each stage that is over, by how much, and shows the (worst) turn's waterfall.
    Raises ``ConfigError`` for a name that is no stage.
    """
    __tracebackhide__ = True
    each = [turns] if isinstance(turns, Turn) else list(turns)
    if not each:
        raise ConfigError("budget() was given no turns.")
    over: list[str] = []
    worst = each[0]
    for keyword, limit in limits_ms.items():
        stage = keyword.removesuffix("_ms")
        if not keyword.endswith("_ms") or stage not in (*OWN, *TOTALS):
            known = ", ".join(f"{name}_ms" for name in (*OWN, *TOTALS))
            raise ConfigError(f"budget() knows no {keyword!r}. Known: {known}.")
        values = [_measured(turn, stage) for turn in each]
        found = p95(values)
        if found > limit:
            worst = each[int(np.argmax(values))] if not over else worst
            figure = f"{found:.0f} ms" if len(each) == 1 else f"{found:.0f} ms at p95 of {len(each)} turns"
            over.append(f"{stage} took {figure}; the budget is {limit:g} ms ({found - limit:.0f} ms over)")
    if over:
        raise AssertionError("\n".join([*over, "", worst.waterfall]))


def _measured(turn: Turn, stage: str) -> float:
    __tracebackhide__ = True
    if not turn.answered:
        raise UnansweredError(turn._why_not())
    if stage not in (measured := turn.measures):
        raise ConfigError(
            f"budget() cannot judge {stage!r}: it was not measured in this turn. Measured: {', '.join(measured)}."
        )
    return measured[stage]
