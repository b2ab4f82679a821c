"""The work behind one reply: thinker → clauses → talker, started together and cancelled together.

The thinker's text is cut into clauses as it streams, and each goes to the talker at once, so the first
words are spoken while the rest is still being thought. Callbacks come from the thinker's and the
talker's threads; each hands finished agent events to ``post`` and returns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from duplex.agent import AgentEvent, Mark, ReplyAudio, ReplyEnd, ReplyText
from duplex.clock import Clock
from duplex.errors import DuplexError

from .clauses import ClauseSplitter, split
from .talker import Speech, Talker, Utterance
from .thinker import FinishReason, ThinkerSession, ThinkRequest, Thought, Usage


class ReplyWork:
    """One reply being made. Ends with exactly one ``ReplyEnd`` unless it is cancelled."""

    def __init__(self, reply_id: str, clock: Clock, post: Callable[[AgentEvent], None]) -> None:
        self.reply_id = reply_id
        self._clock, self._post = clock, post
        self._splitter = ClauseSplitter()
        self._thought: Thought | None = None
        self._utterance: Utterance | None = None
        self._said_clause = self._heard_token = self._spoke = False
        self._lock = threading.Lock()
        self._withdrawn = self._over = False
        self._error: DuplexError | None = None

    def start(self, thinker: ThinkerSession, talker: Talker, request: ThinkRequest) -> None:
        self._mark("thinker_asked")
        self._utterance = talker.begin(_Speaking(self))
        self._thought = thinker.think(request, self)

    def say(self, talker: Talker, text: str) -> None:
        """The same without a thinker: this text, word for word."""
        self._utterance = talker.begin(_Speaking(self))
        for clause in split(text):
            if self._error is None:  # too long a text is said as far as it fits
                self._say(clause)
        self._end_utterance()

    def withdraw(self) -> bool:
        """Cancels it, unless something of it was said already. True: nothing was and will be posted but marks."""
        with self._lock:
            if self._said_clause or self._over:
                return False
            self._withdrawn = True
        self.cancel()
        return True

    def cancel(self) -> None:
        """Stops both. After this returns nothing more is posted."""
        if self._thought is not None:
            self._thought.cancel()
        if self._utterance is not None:
            self._utterance.cancel()

    # --- the thinker's thread --------------------------------------------------------------------

    def on_text(self, delta: str) -> None:
        if not self._heard_token:
            self._heard_token = True
            self._mark("thinker_first_token")
        for clause in self._splitter.feed(delta):
            self._say(clause)

    def on_done(self, reason: FinishReason, usage: Usage) -> None:
        for clause in self._splitter.flush():
            self._say(clause)
        self._end_utterance()

    def on_error(self, error: DuplexError) -> None:
        self._error = error
        self._end_utterance()

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
        assert self._utterance is not None
        self._utterance.end()

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
        self._post(ReplyEnd(self.reply_id, error or self._error))

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
