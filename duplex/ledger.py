"""The playout ledger: what became of every sample of the agent's voice, and so, which words were heard.

Theory of operation
-------------------
The wire's own timeline counts samples sent, silence included (``pts``). Each packet that carries part
of a reply is entered with where in the reply it lies and when it went out. Evidence then says how far
along that timeline the person's ear is. From best to worst:

``ack``    the client's playout clock told us, in milliseconds of the reply
``mark``   a telephone far end returned a mark placed in the stream
``rtp``    the far end's receiver reports: it has it, and plays it within its jitter buffer
``clock``  it went out that long ago; an assumed delay stands in for the network and the far end

Between two pieces of evidence playout is taken to go on in real time, never past what was sent. A word
counts as heard when its middle was: less than half a word is no word. Offsets are samples from the
start of the reply's audio.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from duplex.agent import Word
from duplex.errors import InvalidEventError
from duplex.frames import SAMPLE_RATE_HZ, ms_to_samples, samples_to_ms
from duplex.line import PlayoutReport


class Evidence(Enum):
    ACK = "ack"
    MARK = "mark"
    RTP = "rtp"
    CLOCK = "clock"


@dataclass(frozen=True, slots=True)
class HeardUpTo:
    """``samples`` of the reply were heard, give or take ``error_ms``, on this evidence."""

    samples: int
    evidence: Evidence
    error_ms: float

    @property
    def ms(self) -> float:
        return samples_to_ms(self.samples)


@dataclass(slots=True)
class _Reply:
    item_id: str
    words: list[Word] = field(default_factory=list)
    queued_samples: int = 0  # all audio made so far
    sent_samples: int = 0
    most_sent_samples: int = 0  # before anything was taken back; an acknowledgement may still be on its way
    dropped: bool = False
    acked: tuple[int, float] | None = None  # (samples, at_s)
    held_since_s: float | None = None
    dead_since_s: float | None = None  # the line is; nothing sent after that was heard
    # Packets sent lately: (out_pts after it, at_s, reply offset after it, samples). Older ones were heard long ago.
    recent: deque[tuple[int, float, int, int]] = field(default_factory=lambda: deque(maxlen=250))


@dataclass(frozen=True, slots=True)
class Fate:
    """A reply's samples by what became of them; they add up to what was queued."""

    queued: int
    sent: int
    heard: int
    dropped: int


class Ledger:
    """One session's account. Keeps the last ``max_replies`` replies.

    ``assumed_delay_ms``: wire to ear when nothing measures it; also the error bound of that guess.
    """

    def __init__(self, *, assumed_delay_ms: float = 100.0, max_replies: int = 32) -> None:
        self._delay_ms = assumed_delay_ms
        self._max_replies = max_replies
        self._replies: dict[str, _Reply] = {}
        self._report: PlayoutReport | None = None

    def begin(self, reply_id: str, item_id: str) -> None:
        self._replies[reply_id] = _Reply(item_id)
        while len(self._replies) > self._max_replies:
            del self._replies[next(iter(self._replies))]

    def queue(self, reply_id: str, n_samples: int, words: tuple[Word, ...]) -> None:
        reply = self._replies[reply_id]
        reply.queued_samples += n_samples
        reply.words.extend(words)

    def send(self, reply_id: str, out_pts: int, end_samples: int, n_samples: int, at_s: float) -> None:
        """A packet went out: the wire's timeline stands at ``out_pts`` after it, the reply at ``end_samples``."""
        reply = self._replies[reply_id]
        reply.sent_samples = max(reply.sent_samples, end_samples)
        reply.most_sent_samples = max(reply.most_sent_samples, reply.sent_samples)
        reply.recent.append((out_pts, at_s, end_samples, n_samples))

    def unsend(self, reply_id: str, n_samples: int) -> None:
        """The last ``n_samples`` never reached the wire after all."""
        reply = self._replies[reply_id]
        reply.sent_samples -= n_samples
        while reply.recent and reply.recent[-1][2] > reply.sent_samples:
            reply.recent.pop()

    def drop(self, reply_id: str) -> None:
        """What was not sent never will be."""
        if reply := self._replies.get(reply_id):
            reply.dropped = True

    def hold(self, reply_id: str, at_s: float) -> None:
        """The reply is paused: a client that says after this how far it played has stopped there."""
        self._replies[reply_id].held_since_s = at_s

    def resume(self, reply_id: str) -> None:
        self._replies[reply_id].held_since_s = None

    def lose(self, reply_id: str, since_s: float) -> None:
        """The line is dead: what was not heard by then was not heard at all, unless a client says so."""
        self._replies[reply_id].dead_since_s = since_s

    def regain(self, reply_id: str) -> None:
        """The line is back. What was not heard has been taken back by now (``unsend``)."""
        self._replies[reply_id].dead_since_s = None

    def report(self, report: PlayoutReport) -> None:
        """Evidence about the wire's timeline."""
        self._report = report

    def acknowledge(self, reply_id: str, played_ms: float, at_s: float) -> None:
        """Evidence from the client's playout clock. Raises ``InvalidEventError`` for audio never sent."""
        reply = self._replies.get(reply_id)
        if reply is None:
            raise InvalidEventError(f"There is no response {reply_id!r} to acknowledge.", param="response_id")
        played = ms_to_samples(played_ms)
        # One packet of grace: clients count in their own clock.
        if played < 0 or played > reply.most_sent_samples + ms_to_samples(20):
            raise InvalidEventError(
                f"played_ms is {played_ms:.0f}, but only {samples_to_ms(reply.most_sent_samples):.0f} ms "
                f"of {reply_id} were sent.",
                param="played_ms",
            )
        reply.acked = (min(played, reply.sent_samples), at_s)

    def item(self, reply_id: str) -> str | None:
        reply = self._replies.get(reply_id)
        return reply.item_id if reply else None

    def reply_of_item(self, item_id: str) -> str | None:
        return next((rid for rid, reply in self._replies.items() if reply.item_id == item_id), None)

    def sent_samples(self, reply_id: str) -> int:
        return self._replies[reply_id].sent_samples

    def sent_ms(self, reply_id: str) -> float:
        return samples_to_ms(self._replies[reply_id].sent_samples)

    def heard(self, reply_id: str, now_s: float) -> HeardUpTo:
        """How much of the reply the person had heard at ``now_s``, on the best evidence there is."""
        reply = self._replies[reply_id]
        if reply.dead_since_s is not None:
            now_s = min(now_s, reply.dead_since_s)
        if reply.acked is not None:
            played, at_s = reply.acked
            stopped_s = reply.held_since_s if reply.dead_since_s is None else reply.dead_since_s
            if stopped_s is not None and at_s >= stopped_s:
                return HeardUpTo(played, Evidence.ACK, 60.0)
            ahead = min(round((now_s - at_s) * SAMPLE_RATE_HZ), ms_to_samples(1000))
            # Playout goes on between acknowledgements, but only as far as the clock allows too.
            limit = max(played, self._by_clock(reply, now_s, self._delay_ms / 2))
            return HeardUpTo(min(played + ahead, limit, reply.sent_samples), Evidence.ACK, 60.0)
        if self._report is not None and reply.recent:
            pts = self._report.pts + round((now_s - self._report.at_s) * SAMPLE_RATE_HZ)
            by_pts = max((end - max(0, out - pts) for out, _, end, n in reply.recent if out - n <= pts), default=0)
            by_clock = self._by_clock(reply, now_s, 0.0)
            grade = Evidence(self._report.grade)
            return HeardUpTo(max(0, min(by_pts, by_clock)), grade, self._report.error_ms)
        return HeardUpTo(self._by_clock(reply, now_s, self._delay_ms), Evidence.CLOCK, self._delay_ms)

    def heard_text(self, reply_id: str, now_s: float) -> str:
        """The words heard by ``now_s``, joined with spaces."""
        return self.text_until(reply_id, self.heard(reply_id, now_s).samples)

    def text_until(self, reply_id: str, samples: int) -> str:
        """The words whose middle lies before ``samples``."""
        reply = self._replies[reply_id]
        return " ".join(word.text for word in reply.words if (word.start_samples + word.end_samples) // 2 < samples)

    def fate(self, reply_id: str, now_s: float) -> Fate:
        reply = self._replies[reply_id]
        heard = min(self.heard(reply_id, now_s).samples, reply.sent_samples)
        rest = reply.queued_samples - reply.sent_samples
        return Fate(
            queued=0 if reply.dropped else rest,
            sent=reply.sent_samples - heard,
            heard=heard,
            dropped=rest if reply.dropped else 0,
        )

    @staticmethod
    def _by_clock(reply: _Reply, now_s: float, delay_ms: float) -> int:
        heard = 0
        for _, at_s, end, n in reversed(reply.recent):
            since = round((now_s - at_s) * SAMPLE_RATE_HZ) - ms_to_samples(delay_ms)
            if since >= 0:
                heard = max(heard, end - n + min(since, n))
                if since >= n:
                    break
        return heard
