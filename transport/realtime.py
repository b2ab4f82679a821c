"""The public vocabulary: OpenAI Realtime (GA) events on the wire, the session's own events and requests inside.

``realtime_encode``   our events → server events
``realtime_replies``  replies → responses, and the items they are made of
``realtime_decode``   client events → requests, read strictly
``realtime_session``  the session object: the table of what a client may set
``realtime_turns``    its ``turn_detection``
``realtime_tools``    its tools
``realtime_items``    conversation items, both ways
``realtime_sound``    the formats of sound in events
``realtime_fields``   how fields are read

A codec belongs to one session. It does no I/O; a door feeds it text and puts what it returns on the wire.
"""

from __future__ import annotations

from typing import Any

from duplex.agent import AgentSettings
from duplex.errors import InvalidEventError, ProtocolError, UnsupportedError
from duplex.events import At, ErrorRaised, Event
from duplex.line import OutPacket
from duplex.requests import CancelReply, ClearInput, ClearOutput, RemoveMessage, Request, UpdateSettings
from duplex.transport.realtime_decode import InputAudio, RetrieveMessage, parse, read_event
from duplex.transport.realtime_encode import DROPPABLE, Encoder
from duplex.transport.realtime_fields import SessionDefaults, is_text
from duplex.transport.realtime_items import Wire
from duplex.transport.realtime_session import SessionChange, read_session
from duplex.transport.realtime_sound import LAWS, PCM, SoundIn, law

__all__ = ["DROPPABLE", "RealtimeCodec", "SessionDefaults", "Wire", "read_call_session"]


class RealtimeCodec:
    """Both directions for one session. Implements ``EventCodec``.

    ``audio_deltas``: sound travels as events (WebSocket). Otherwise it has a track of its own (WebRTC), and
    ``output_audio_buffer.*`` events say when it is playing.
    """

    def __init__(self, defaults: SessionDefaults, *, audio_deltas: bool, resume_token: str | None = None) -> None:
        self._defaults = defaults
        self._encoder = Encoder(defaults, audio_deltas, resume_token=resume_token)
        self.resume_token = resume_token
        """Told with ``session.created``: with it a client may go on after its connection was lost."""
        self._hearing = SoundIn()
        self._audio: bytes | None = None
        self._answers: list[Wire] = []
        self.client_event_id: str | None = None
        """``event_id`` of the client event decoded last, for errors it turns out to cause."""

    def encode(self, event: Event) -> list[dict[str, Any]]:
        """The server events that tell a client of ``event``, in order."""
        return self._encoder.encode(event)

    def encode_audio(self, packet: OutPacket) -> list[dict[str, Any]]:
        """``response.output_audio.delta`` for a packet of a reply, after what has to be told before it; nothing for one
        that carries no reply. The last event is the sound."""
        return self._encoder.audio(packet)

    def told(self, kind: str, **fields: Any) -> dict[str, Any]:
        """An event of the door's own, in its place among the others."""
        return self._encoder.event(kind, **fields)

    def refusal(self, error: ProtocolError, at: At) -> list[dict[str, Any]]:
        """The ``error`` event for the client event decoded last."""
        return self.encode(ErrorRaised(at, error.code, str(error), error.param, self.client_event_id))

    def decode(self, text: str | bytes) -> Request | None:
        """What the client asks the session for; None if there is nothing for the session to do.

        After None, ``take_audio`` may have sound and ``answers`` a direct reply. Raises ``ProtocolError``.
        """
        self.client_event_id, self._audio, self._answers = None, None, []
        event = parse(text, self._defaults.max_event_bytes)
        event_id = event.get("event_id")
        if event_id is not None and not (isinstance(event_id, str) and len(event_id) <= 512 and is_text(event_id)):
            raise InvalidEventError("event_id must be a text of at most 512 characters.", param="event_id")
        self.client_event_id = event_id
        match read_event(event, self._defaults):
            case SessionChange() as change:
                if not self._encoder.audio_deltas:
                    _check_track(change)
                for kind in (change.input_format, change.output_format):
                    if kind in LAWS:
                        law(kind)  # it is here, or the client is told now
                self._encoder.wished = change
                return UpdateSettings(change.settings, change.reset)
            case InputAudio(data=data):
                if not self._encoder.audio_deltas:
                    raise UnsupportedError("This connection hears through its audio track; send sound there.")
                if self._hearing.kind != self._encoder.formats.input:
                    self._hearing = SoundIn(self._encoder.formats.input)
                self._audio = self._hearing.read(data)
                return None
            case RetrieveMessage(item_id=item_id):
                if (item := self._encoder.item(item_id)) is None:
                    raise InvalidEventError(f"There is no item {item_id!r}.", param="item_id", code="item_not_found")
                self._answers = [self._encoder.event("conversation.item.retrieved", item=item)]
                return None
            case CancelReply(reply_id=reply_id) as request:
                self._encoder.cancelling(reply_id)
                return request
            case ClearOutput() as request:
                self._encoder.cancelling(None)
                return request
            case ClearInput() as request:
                self._answers = [self._encoder.event("input_audio_buffer.cleared")]
                return request
            case RemoveMessage(item_id=item_id) as request:
                self._answers = [self._encoder.event("conversation.item.deleted", item_id=item_id)]
                self._encoder.forget(item_id)
                return request
            case request:
                return request

    def take_audio(self) -> bytes | None:
        """PCM16LE at 24 kHz of the ``input_audio_buffer.append`` just decoded, once."""
        audio, self._audio = self._audio, None
        return audio

    def answers(self) -> list[dict[str, Any]]:
        """What answers the client event just decoded (``….cleared``, ``….deleted``, ``….retrieved``), once.

        Ask for it after the session accepted the request.
        """
        answers, self._answers = self._answers, []
        return answers


def _check_track(change: SessionChange) -> None:
    for where, kind in (("input", change.input_format), ("output", change.output_format)):
        if kind not in (None, PCM):
            raise UnsupportedError(
                f"session.audio.{where}.format = {kind!r} cannot be honoured on a connection with an audio track: its "
                "codec is the one agreed on in the offer. Leave the field out, or connect by WebSocket.",
                param=f"session.audio.{where}.format.type",
            )


def read_call_session(session: Any, defaults: SessionDefaults) -> AgentSettings:
    """The ``session`` part of a WebRTC offer: all that a session may choose. Raises ``ProtocolError``'s kinds."""
    change = read_session(session, defaults)
    _check_track(change)
    return change.settings
