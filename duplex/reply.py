"""One reply of the agent, from the first speculative word to what is remembered of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from duplex.agent import BeginReply, ToolCallArguments, ToolCallBegan, ToolCallEnd, Word
from duplex.conversation import Item
from duplex.events import At, ReplyStarted, TurnTraced, Usage
from duplex.requests import CreateReply
from duplex.trace import TurnTrace

CallEvent = ToolCallBegan | ToolCallArguments | ToolCallEnd


@dataclass(slots=True)
class Call:
    """A tool that a reply asks for. ``arguments``: as far as they came."""

    item_id: str
    name: str
    arguments: str = ""
    done: bool = False


@dataclass(slots=True)
class Reply:
    """State of the reply at hand. ``public``: the client was told it exists (a speculation is not).

    ``to_turn``: it answers the user's last turn. ``silent``: text alone. ``in_conversation``: it is to be remembered.
    """

    reply_id: str
    item_id: str
    trace: TurnTrace
    public: bool = False
    to_turn: bool = False
    silent: bool = False
    in_conversation: bool = True
    labels: Mapping[str, str] | None = None
    max_output_tokens: int | None = None
    started: bool = False  # its first packet went out
    ended: bool = False  # the agent has no more of it
    cut_short: bool = False  # ... because it reached its longest
    sent_all_at_s: float | None = None  # its last packet went out; it may still be on its way to the ear
    came_s: float = 0.0  # when something of it that needs no sound came last
    dead_air_told: bool = False
    error: str | None = None
    usage: Usage | None = None
    text: str = ""
    unannounced_text: list[str] = field(default_factory=list)
    unannounced_words: list[Word] = field(default_factory=list)
    calls: dict[str, Call] = field(default_factory=dict)  # by call_id, once told
    unannounced_calls: list[CallEvent] = field(default_factory=list)

    @classmethod
    def asked_for(
        cls, asked: CreateReply, reply_id: str, item_id: str, *, silent: bool, to_turn: bool = False, speculative: bool
    ) -> Reply:
        """As a client asked for it. ``silent``: unless it asked for that or for sound."""
        return cls(
            reply_id,
            item_id,
            TurnTrace(speculative=speculative),
            to_turn=to_turn,
            silent=silent if asked.silent is None else asked.silent,
            in_conversation=asked.in_conversation,
            labels=asked.labels,
            max_output_tokens=asked.max_output_tokens,
        )

    def begin(self, asked: CreateReply, history: tuple[Item, ...]) -> BeginReply:
        """What the agent is told."""
        return BeginReply(
            self.reply_id,
            history,
            self.to_turn,
            self.trace.speculative,
            asked.instructions,
            asked.say,
            asked.tools,
            asked.tool_choice,
            asked.silent,
            asked.max_output_tokens,
        )

    def told(self, at: At, after_id: str | None) -> ReplyStarted:
        """What the client is told: it begins, after the item ``after_id`` if it is part of the conversation."""
        return ReplyStarted(
            at,
            self.reply_id,
            self.item_id,
            after_id if self.in_conversation else None,
            self.silent,
            self.in_conversation,
            self.labels,
            self.max_output_tokens,
        )

    @property
    def left_a_trace(self) -> bool:
        """The client has something of it that cannot be taken back: text to read, or a call it may be working on."""
        return self.public and bool(self.calls or (self.silent and self.text))

    @property
    def status(self) -> str:
        """Of a reply that came to its end by itself."""
        return "failed" if self.error else "incomplete" if self.cut_short else "completed"


@dataclass(slots=True)
class Turn:
    """The user's open turn: it gets its item when speech begins and grows until it is committed."""

    turn_id: str
    last_voiced_s: float | None = None
    marks: dict[str, float] = field(default_factory=dict)  # of its last pause; the latest of a name counts
    committed: bool = False


def traced(at: At, turn: Turn | None, reply: Reply) -> TurnTraced | None:
    """The latency of a turn whose reply just became audible; None for a reply that nobody's turn asked for."""
    trace = reply.trace
    first_packet_ms = trace.between_ms("commit", "first_packet")
    voice_to_voice_ms = trace.since_last_voiced_ms("first_packet")
    if first_packet_ms is None or voice_to_voice_ms is None or turn is None:
        return None
    for name, at_s in turn.marks.items():
        trace.mark(name, at_s)
    return TurnTraced(
        at,
        turn.turn_id,
        reply.reply_id,
        trace.marks_ms(),
        trace.waterfall(),
        first_packet_ms,
        voice_to_voice_ms,
        trace.since_last_voiced_ms("commit") or 0.0,
        trace.speculative,
    )
