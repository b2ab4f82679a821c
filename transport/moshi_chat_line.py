"""The session's side of one Moshi connection: sound in and out in real time, words as they are spoken.

The protocol has no acknowledgements, and what has left cannot be taken back. So nothing is sent ahead: one packet
every 20 ms, silence too (a stock page takes ten quiet seconds for a dead server), and what was heard is known by the
clock. A packet is encoded at the moment it leaves, so that one taken back before leaves no trace in the stream.

A client that falls behind loses silence first. When sound it must not lose piles up, the connection ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from duplex import events as ev
from duplex.clock import Clock
from duplex.errors import DuplexError
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Packet, Samples
from duplex.line import OutPacket
from duplex.metrics import Metrics
from duplex.transport import moshi_chat_wire as wire
from duplex.transport.moshi_chat_text import SpokenText
from duplex.transport.pcm import to_pcm16
from duplex.transport.session_socket import SessionSocket
from duplex.transport.socket_line import STALL_LIMIT_S

MAX_MESSAGE_S = 30.0
AHEAD_S = 2.0
"""Sound may be sent this far ahead of being heard (at up to sixteen times real time); then reading waits."""
BEHIND_PACKETS = 16
"""A client this far behind (320 ms) is sent no more silence until it has caught up."""


class SoundWriter(Protocol):
    def write(self, samples: Samples) -> bytes:
        """The next bytes of the outgoing stream for float32[n] at 24 kHz."""
        ...


@dataclass(frozen=True, slots=True)
class _Rest:
    """Stands in the queue behind a reply's last packet."""

    reply_id: str


class MoshiLine(SessionSocket[OutPacket | _Rest | bytes]):
    """Implements ``duplex.line.Line``. ``writer``: of the outgoing stream. ``native``: the agent writes its words as
    it says them. ``max_message_s``: the most sound one message may hold.
    """

    lead_packets = 1

    def __init__(
        self,
        clock: Clock,
        metrics: Metrics,
        writer: SoundWriter,
        *,
        native: bool = False,
        max_unsent: int = 512,
        stall_limit_s: float = STALL_LIMIT_S,
        max_message_s: float = MAX_MESSAGE_S,
    ) -> None:
        # One message fits on top of what is there when it is read; the decoder may go over by one packet.
        max_input_s = max_message_s + AHEAD_S + 1.0
        super().__init__(clock, metrics, max_unsent=max_unsent, stall_limit_s=stall_limit_s, max_input_s=max_input_s)
        self.can_hear = asyncio.Event()  # what was sent ahead of being heard is little enough to read on
        self._writer = writer
        self._answered = False
        self._complaint: str | None = None  # told last, and not to be told again for the same trouble
        self._spoken = SpokenText(by_words=not native)
        self.can_hear.set()

    # --- what the session calls -------------------------------------------------------------------

    def receive(self) -> Sequence[Packet]:
        packets = super().receive()
        if len(self._input) < AHEAD_S * SAMPLE_RATE_HZ:
            self.can_hear.set()
        return packets

    def send(self, packet: OutPacket) -> None:
        if len(self._queue) >= BEHIND_PACKETS and not (packet.reply_id or packet.aside):
            self._metrics.queue_drops.labels("moshi_silence").inc()
            return
        self.put(packet)

    def emit(self, event: ev.Event) -> None:
        match event:
            case ev.SessionStarted():
                self._answered = True
                self.put(wire.HANDSHAKE)
            case ev.ReplyTextAdded(reply_id=reply_id, delta=delta):
                self._spoken.add_text(reply_id, delta)
            case ev.ReplyWords(reply_id=reply_id, words=words):
                self._spoken.add_words(reply_id, words)
            case ev.ReplyFinished(reply_id=reply_id, status="completed"):
                self.put(_Rest(reply_id))
            case ev.ReplyTruncated(reply_id=reply_id) | ev.ReplyFinished(reply_id=reply_id):
                self._spoken.forget(reply_id)
            case ev.AsideStarted(text=text):
                self.put(wire.text(" " + text.strip()))
            case ev.ErrorRaised(message=message):
                self.put(wire.error(message))
            case _:
                pass  # the protocol has no words for it

    # --- what the connection calls ------------------------------------------------------------------

    def hear(self, samples: Samples) -> None:
        """Takes float32[n] at 24 kHz. What comes before the handshake is nobody's to hear: live sound does not wait."""
        if not self._answered or not len(samples):
            return
        self._complaint = None
        self.drained.clear()
        self._input.push(to_pcm16(samples), self._clock.now())
        if len(self._input) >= AHEAD_S * SAMPLE_RATE_HZ:
            self.can_hear.clear()

    def complain(self, trouble: DuplexError) -> None:
        """Tells the client what was wrong with what it sent; once, until it has sent sound that can be heard."""
        message = str(trouble)
        if message != self._complaint:
            self._complaint = message
            self.put(wire.error(message))

    # --- the queue ----------------------------------------------------------------------------------

    def _sound_in(self, waiting: OutPacket | _Rest | bytes) -> int:
        return PACKET_SAMPLES if isinstance(waiting, OutPacket) else 0

    def _messages(self, waiting: OutPacket | _Rest | bytes) -> Iterator[bytes]:
        match waiting:
            case OutPacket(samples=samples, reply_id=reply_id):
                if reply_id is not None and (words := self._spoken.passing(reply_id)):
                    yield wire.text(words)
                yield wire.audio(self._writer.write(samples))
            case _Rest(reply_id=reply_id):
                if words := self._spoken.rest(reply_id):
                    yield wire.text(words)
            case bytes():
                yield waiting

    def _too_slow(self) -> str:
        seconds = self._max_unsent * PACKET_SAMPLES / SAMPLE_RATE_HZ
        return f"The client did not keep up: {seconds:.0f} s of sound were waiting for it."
