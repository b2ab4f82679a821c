"""Which of the agent's words go out with which packet, so that a client reads them as they are heard.

A cascade knows its whole sentence, and where in the sound each word lies, long before it is spoken; some of it may
never be. So words wait for their packet. A native model writes its words, in pieces, while it says them: those go out
as they come, and so does the text of a reply whose words have no times.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from duplex.agent import Word
from duplex.frames import PACKET_SAMPLES, ms_to_samples

_MAX_REPLIES = 8
_NO_WORDS_AFTER_SAMPLES = ms_to_samples(500)  # a reply that sounds so long without a timed word has none


@dataclass(slots=True)
class _Reply:
    sent_samples: int = 0
    text: str = ""  # not yet out
    words: deque[Word] = field(default_factory=deque)  # not yet out
    timed: bool | None = None  # whether its words go by their times; None: not known yet
    begun: bool = False  # something of it was handed out


class SpokenText:
    """The pending text of one session's replies. ``by_words`` False: as it comes, never by the words' times.

    What is handed out is to be put behind what was there: words come with the space before them.
    """

    def __init__(self, *, by_words: bool = True) -> None:
        self._by_words = by_words
        self._replies: dict[str, _Reply] = {}

    def add_text(self, reply_id: str, delta: str) -> None:
        self._reply(reply_id).text += delta

    def add_words(self, reply_id: str, words: Iterable[Word]) -> None:
        self._reply(reply_id).words += words

    def passing(self, reply_id: str) -> str:
        """The text that belongs to the next packet of a reply, which is on its way to the client now."""
        reply = self._reply(reply_id)
        reply.sent_samples += PACKET_SAMPLES
        return self._due(reply, reply.sent_samples)

    def rest(self, reply_id: str) -> str:
        """What is left of a reply that was spoken to its end, which is then forgotten."""
        reply = self._reply(reply_id)
        left = self._due(reply, None)
        self.forget(reply_id)
        return left

    def forget(self, reply_id: str) -> None:
        """The reply was cut off: nothing more of it is heard."""
        self._replies.pop(reply_id, None)

    def _reply(self, reply_id: str) -> _Reply:
        reply = self._replies.setdefault(reply_id, _Reply(timed=None if self._by_words else False))
        while len(self._replies) > _MAX_REPLIES:
            del self._replies[next(iter(self._replies))]
        return reply

    @staticmethod
    def _due(reply: _Reply, before_samples: int | None) -> str:
        """What of it is due before that sample; with None, everything."""
        if reply.timed is None:
            if reply.words:
                reply.timed = True
            elif before_samples is None or before_samples > _NO_WORDS_AFTER_SAMPLES:
                reply.timed = False
        if reply.timed is False:
            due, reply.text = reply.text, ""
            if due and not reply.begun:
                due = " " + due.lstrip()
            reply.begun |= bool(due)
            return due
        words = []
        while reply.words and (before_samples is None or reply.words[0].start_samples < before_samples):
            words.append(" " + reply.words.popleft().text.strip())
        return "".join(words)
