"""What a client is told of a reply, and what is remembered of it, in the order in which it becomes true."""

from __future__ import annotations

from collections.abc import Callable

from duplex import events as ev
from duplex.clock import Clock
from duplex.conversation import Message, Role, words_after
from duplex.items import Items
from duplex.ledger import HeardUpTo, Ledger
from duplex.metrics import Metrics
from duplex.reply import Reply


class ReplyTeller:
    """One session's. A reply is told of once it is public; its message begins with the first of its text."""

    def __init__(
        self,
        items: Items,
        ledger: Ledger,
        clock: Clock,
        metrics: Metrics,
        emit: Callable[[ev.Event], None],
        at: Callable[[], ev.At],
    ) -> None:
        self._items, self._ledger, self._clock, self._metrics = items, ledger, clock, metrics
        self._emit, self._at = emit, at

    def publish(self, reply: Reply) -> None:
        """Tells that it exists, once."""
        if reply.public:
            return
        reply.public = True
        self._emit(reply.told(self._at(), self._items.conversation.last_id))
        self.announce(reply, released=False)
        self._items.announce_calls(reply)

    def announce(self, reply: Reply, *, released: bool) -> None:
        """Tells what may be known by now: text once the reply is public, words once it is released."""
        if reply.public and reply.unannounced_text:
            delta = "".join(reply.unannounced_text)
            reply.unannounced_text.clear()
            self._keep_place(reply)
            self._emit(ev.ReplyTextAdded(self._at(), reply.reply_id, reply.item_id, delta))
        if reply.public and reply.unannounced_words and released:
            words = tuple(reply.unannounced_words)
            reply.unannounced_words.clear()
            self._emit(ev.ReplyWords(self._at(), reply.reply_id, reply.item_id, words))

    def first_packet(self, reply: Reply) -> None:
        self._keep_place(reply)
        self._emit(ev.ReplyAudioStarted(self._at(), reply.reply_id, reply.item_id))

    def progress(self, reply: Reply) -> None:
        heard = self._ledger.heard(reply.reply_id, self._clock.now())
        sent_ms, grade = self._ledger.sent_ms(reply.reply_id), heard.evidence.value
        self._emit(ev.PlayoutProgress(self._at(), reply.reply_id, sent_ms, heard.ms, grade, heard.error_ms))

    def truncated(self, reply: Reply, heard: HeardUpTo, heard_text: str) -> None:
        """It was cut off there: the rest was not heard, and is not remembered as said."""
        if heard_text:
            unheard = words_after(reply.text, heard_text)
            self._remember(reply, Message(reply.item_id, Role.ASSISTANT, heard_text, cut_off=True, unheard=unheard))
        if reply.started:
            grade = heard.evidence.value
            self._emit(
                ev.ReplyTruncated(
                    self._at(), reply.reply_id, reply.item_id, heard_text, heard.ms, grade, heard.error_ms
                )
            )

    def said(self, reply: Reply) -> None:
        """It was heard, or can be read, to its end."""
        if reply.text.strip() and (reply.started or reply.silent):
            self._remember(reply, Message(reply.item_id, Role.ASSISTANT, reply.text.strip()))

    def finished(self, reply: Reply, status: str) -> None:
        if not reply.public:
            return
        if reply.started:
            self.progress(reply)
        self._metrics.replies.labels(status).inc()
        audio_ms = self._ledger.sent_ms(reply.reply_id)
        self._emit(
            ev.ReplyFinished(
                self._at(), reply.reply_id, reply.item_id, status, reply.text, audio_ms, reply.error, reply.usage
            )
        )

    def _keep_place(self, reply: Reply) -> None:
        """What it says is remembered where it was begun, whatever comes between."""
        if reply.in_conversation:
            self._items.conversation.keep_place(reply.item_id)

    def _remember(self, reply: Reply, message: Message) -> None:
        if reply.in_conversation and reply.item_id in self._items.conversation:
            self._items.conversation.put(message)
