"""The work behind one reply: thinker → clauses → talker, started together and cancelled together.

The thinker's text is cut into clauses as it streams, and each goes to the talker at once, so the first
words are spoken while the rest is still being thought. Callbacks come from the thinker's and the
talker's threads; each hands finished agent events to ``post`` and returns. A silent reply has no talker, and its
text goes out as it comes.

A tool that was called cannot be uncalled, and the words a reply answers can still turn out to be others. So the calls
of a reply to an open turn are kept back until its words are settled (``release``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from duplex.agent import (
    AgentEvent,
    Mark,
    ReplyAudio,
    ReplyEnd,
    ReplyText,
    ReplyUsage,
    ToolCallArguments,
    ToolCallBegan,
    ToolCallEnd,
)
from duplex.clock import Clock
from duplex.errors import DuplexError

from .clauses import ClauseSplitter, split
from .talker import Speech, Talker, Utterance
from .thinker import FinishReason, ThinkerSession, ThinkRequest, Thought, Usage


class ReplyWork:
    """One reply being made. Ends with exactly one ``ReplyEnd`` unless it is cancelled."""

    def __init__(
        self, reply_id: str, clock: Clock, post: Callable[[AgentEvent], None], *, hold_calls: bool = False
    ) -> None:
        self.reply_id = reply_id
        self._clock, self._post = clock, post
        self._splitter = ClauseSplitter()
        self._thought: Thought | None = None
        self._utterance: Utterance | None = None
        self._said_clause = self._heard_token = self._spoke = False
        self._lock = threading.Lock()
        self._withdrawn = self._over = self._cut_short = False
        self._error: DuplexError | None = None
        self._hold_calls = hold_calls
        self._held: list[AgentEvent] = []  # from the first call on, until the turn's words are settled

    @property
    def thinking(self) -> bool:
        return self._thought is not None and self._thought.live

    def start(self, thinker: ThinkerSession, talker: Talker | None, request: ThinkRequest) -> None:
        self._mark("thinker_asked")
        self._utterance = talker.begin(_Speaking(self)) if talker is not None else None
        self._thought = thinker.think(request, self)

    def say(self, talker: Talker | None, text: str) -> None:
        """The same without a thinker: this text, word for word."""
        self._post(ReplyUsage(self.reply_id, 0, 0, 0))
        if talker is None:
            self._post(ReplyText(self.reply_id, text))
            self.finished()
            return
        self._utterance = talker.begin(_Speaking(self))
        for clause in split(text):
            if self._error is None:  # too long a text is said as far as it fits
                self._say(clause)
        self._end_utterance()

    def withdraw(self) -> bool:
        """Cancels it, unless something of it was said already. True: nothing was and will be posted but marks."""
        with self._lock:
            if self._said_clause or (self._over and not self._held):
                return False
            self._withdrawn = True
            self._held.clear()
        self.cancel()
        return True

    def release(self) -> None:
        """The words it answers are settled: its calls may be known, now and later."""
        with self._lock:
            self._hold_calls = False
            held, self._held = self._held, []
            for event in held:
                self._post(event)

    def cancel(self) -> None:
        """Stops both. After this returns nothing more is posted."""
        if self._thought is not None:
            self._thought.cancel()
        if self._utterance is not None:
            self._utterance.cancel()
        with self._lock:
            self._held.clear()

    # --- the thinker's thread --------------------------------------------------------------------

    def on_text(self, delta: str) -> None:
        if not self._heard_token:
            self._heard_token = True
            self._mark("thinker_first_token")
        if self._utterance is None:
            self._tell(delta if self._said_clause else delta.lstrip())
            return
        for clause in self._splitter.feed(delta):
            self._say(clause)

    def on_call_began(self, call_id: str, name: str) -> None:
        self._flush()  # what is said before a call does not wait for what comes after it
        self._post_call(ToolCallBegan(self.reply_id, call_id, name))

    def on_call_arguments(self, call_id: str, delta: str) -> None:
        self._post_call(ToolCallArguments(self.reply_id, call_id, delta))

    def on_call_end(self, call_id: str, arguments: str) -> None:
        self._post_call(ToolCallEnd(self.reply_id, call_id, arguments))

    def on_done(self, reason: FinishReason, usage: Usage) -> None:
        self._flush()
        self._cut_short = reason == "length"
        if usage != Usage():  # an endpoint that does not count says nothing
            counted = (usage.prompt_tokens, usage.cached_tokens, usage.reply_tokens)
            self._post_late(ReplyUsage(self.reply_id, *counted))
        self._end_utterance()

    def on_error(self, error: DuplexError) -> None:
        self._error = error
        self._end_utterance()

    def _flush(self) -> None:
        if self._utterance is not None:
            for clause in self._splitter.flush():
                self._say(clause)
            self._splitter = ClauseSplitter()

    def _tell(self, text: str) -> None:
        with self._lock:
            if self._withdrawn or not text:
                return
            self._said_clause = True
        self._post(ReplyText(self.reply_id, text))

    def _say(self, clause: str) -> None:
        assert self._utterance is not None
        with self._lock:
            if self._withdrawn:
                return
            first, self._said_clause = not self._said_clause, True
        if first:
            self._mark("thinker_first_clause")
            self._mark("talker_asked")
        self._post(ReplyText(self.reply_id, clause))
        try:
            self._utterance.say(clause)
        except DuplexError as error:
            self._error = error
            if self._thought is not None:
                self._thought.cancel()
            self._end_utterance()

    def _end_utterance(self) -> None:
        if self._utterance is None:
            self.finished()
        else:
            self._utterance.end()

    def _post_call(self, event: AgentEvent) -> None:
        self._post_late(event, begins=True)

    def _post_late(self, event: AgentEvent, *, begins: bool = False) -> None:
        """Posts what must not overtake a call that is kept back. ``begins``: it is itself to be kept back."""
        with self._lock:
            if self._withdrawn:
                return
            if self._hold_calls and (begins or self._held):
                self._held.append(event)
            else:
                self._post(event)

    # --- the talker's thread ---------------------------------------------------------------------

    def spoke(self, speech: Speech) -> None:
        if not self._spoke:
            self._spoke = True
            self._mark("talker_first_audio")
        self._post(ReplyAudio(self.reply_id, speech.samples, speech.words))

    def finished(self, error: DuplexError | None = None) -> None:
        if error is not None and self._thought is not None:
            self._thought.cancel()
        with self._lock:
            if self._withdrawn:
                return
            self._over = True
        self._post_late(ReplyEnd(self.reply_id, error or self._error, self._cut_short))

    def _mark(self, name: str) -> None:
        self._post(Mark(name, self._clock.now(), self.reply_id))


class _Speaking:
    """The talker's view of a reply: a :class:`~.talker.TalkSink`."""

    def __init__(self, work: ReplyWork) -> None:
        self._work = work

    def on_speech(self, speech: Speech) -> None:
        self._work.spoke(speech)

    def on_done(self) -> None:
        self._work.finished()

    def on_error(self, error: DuplexError) -> None:
        self._work.finished(error)
