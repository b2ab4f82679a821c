"""The public vocabulary: OpenAI Realtime (GA) events on the wire, the session's own events and requests inside.

``realtime_encode``   our events → server events, and the items and responses they tell of
``realtime_decode``   client events → requests, read strictly
``realtime_session``  the session object: the table of what a client may set

A codec belongs to one session. It does no I/O; a door feeds it text and puts what it returns on the wire.
"""

from __future__ import annotations

from typing import Any

from duplex.agent import AgentSettings
from duplex.errors import InvalidEventError, ProtocolError, UnsupportedError
from duplex.events import At, ErrorRaised, Event
from duplex.line import OutPacket
from duplex.requests import CancelReply, ClearInput, RemoveMessage, Request, UpdateSettings
from duplex.transport.realtime_decode import InputAudio, RetrieveMessage, parse, read_event
from duplex.transport.realtime_encode import DROPPABLE, Encoder, Wire
from duplex.transport.realtime_session import SessionChange, SessionDefaults, read_session

__all__ = ["DROPPABLE", "RealtimeCodec", "SessionDefaults", "Wire", "read_call_session"]


class RealtimeCodec:
    """Both directions for one session. Implements ``EventCodec``.

    ``audio_deltas``: sound travels as events (WebSocket). Otherwise it has a track of its own (WebRTC), and
    ``output_audio_buffer.*`` events say when it is playing.
    """

    def __init__(self, defaults: SessionDefaults, *, audio_deltas: bool) -> None:
        self._defaults = defaults
        self._encoder = Encoder(defaults, audio_deltas)
        self._audio: bytes | None = None
        self._answers: list[Wire] = []
        self.client_event_id: str | None = None
        """``event_id`` of the client event decoded last, for errors it turns out to cause."""

    def encode(self, event: Event) -> list[dict[str, Any]]:
        """The server events that tell a client of ``event``, in order."""
        return self._encoder.encode(event)

    def encode_audio(self, packet: OutPacket) -> dict[str, Any] | None:
        """``response.output_audio.delta`` for a packet of a reply; None for one that carries no reply."""
        return self._encoder.audio(packet)

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
        if event_id is not None and not (isinstance(event_id, str) and len(event_id) <= 512):
            raise InvalidEventError("event_id must be a text of at most 512 characters.", param="event_id")
        self.client_event_id = event_id
        match read_event(event, self._defaults):
            case SessionChange() as change:
                self._allow(change)
                self._encoder.wished = change
                return UpdateSettings(change.settings)
            case InputAudio(pcm=pcm):
                if not self._encoder.audio_deltas:
                    raise UnsupportedError("This connection hears through its audio track; send sound there.")
                self._audio = pcm
                return None
            case RetrieveMessage(item_id=item_id):
                if (item := self._encoder.item(item_id)) is None:
                    raise InvalidEventError(f"There is no item {item_id!r}.", param="item_id", code="item_not_found")
                self._answers = [self._encoder.event("conversation.item.retrieved", item=item)]
                return None
            case CancelReply() as request:
                self._encoder.cancelling()
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
        """PCM16LE of the ``input_audio_buffer.append`` just decoded, once."""
        audio, self._audio = self._audio, None
        return audio

    def answers(self) -> list[dict[str, Any]]:
        """What answers the client event just decoded (``….cleared``, ``….deleted``, ``….retrieved``), once.

        Ask for it after the session accepted the request.
        """
        answers, self._answers = self._answers, []
        return answers

    def _allow(self, change: SessionChange) -> None:
        if change.modality == "text" and not self._encoder.audio_deltas:
            raise UnsupportedError(
                'session.output_modalities = ["text"] cannot be honoured on a connection with an audio track. '
                "Mute the track, or connect by WebSocket.",
                param="session.output_modalities",
            )


def read_call_session(session: Any, defaults: SessionDefaults) -> AgentSettings:
    """The ``session`` part of a WebRTC offer. Raises ``ProtocolError``'s kinds naming the field."""
    change = read_session(session, defaults)
    if change.modality == "text" or change.transcribe is False:
        raise UnsupportedError(
            "A call carries sound and captions: leave session.output_modalities and a null transcription out.",
            param="session",
        )
    return change.settings
