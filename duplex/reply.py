"""One reply of the agent, from the first speculative word to what is remembered of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from duplex.agent import Word
from duplex.trace import TurnTrace


@dataclass(slots=True)
class Reply:
    """State of the reply at hand. ``public``: the client was told it exists (a speculation is not)."""

    reply_id: str
    item_id: str
    trace: TurnTrace
    public: bool = False
    started: bool = False  # its first packet went out
    ended: bool = False  # the agent has no more of it
    sent_all_at_s: float | None = None  # its last packet went out; it may still be on its way to the ear
    dead_air_told: bool = False
    error: str | None = None
    text: str = ""
    unannounced_text: list[str] = field(default_factory=list)
    unannounced_words: list[Word] = field(default_factory=list)


@dataclass(slots=True)
class Turn:
    """The user's open turn: it gets its item when speech begins and grows until it is committed."""

    turn_id: str
    last_voiced_s: float | None = None
    marks: dict[str, float] = field(default_factory=dict)  # of its last pause; the latest of a name counts
    committed: bool = False
