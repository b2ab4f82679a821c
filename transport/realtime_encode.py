"""Session events to OpenAI Realtime server events, with the bookkeeping the public vocabulary asks for.

One internal event becomes one or several wire events; names and fields are those of the official client's
models. What they cannot express goes out under a ``duplex.`` prefix, each with both times: ``at_ms``, media
time of the heard stream, and ``at_s``, the session's clock.
"""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from duplex import errors
from duplex import events as ev
from duplex.agent import AgentSettings
from duplex.conversation import Role
from duplex.frames import samples_to_ms
from duplex.line import OutPacket
from duplex.transport.pcm import to_pcm16
from duplex.transport.realtime_session import SessionChange, SessionDefaults, session_object

Wire = dict[str, Any]

DROPPABLE = frozenset({"duplex.transcript.partial", "duplex.playout", "duplex.floor"})
"""Events whose successor says all they said: a client that does not keep up may lose them."""

_SERVER_CODES = frozenset({"reply_timeout", "reply_too_long"})
_MAX_ITEMS = 400


@dataclass(slots=True)
class _Reply:
    text: str = ""
    heard_text: str | None = None  # once truncated
    audible: bool = False
    modality: str = "audio"
    cancelled_by_client: bool = False


@dataclass(slots=True)
class _Speech:
    """One user item's speech: where its running stretch began, and how long the finished ones were."""

    started_pts: int | None = None
    samples: int = 0


@dataclass(slots=True)
class Encoder:
    """One session's side of the wire. ``audio_deltas``: the reply's sound goes out as events (no audio track)."""

    defaults: SessionDefaults
    audio_deltas: bool
    modality: str = "audio"
    transcribe: bool = True
    wished: SessionChange | None = None  # takes effect with the session's next SessionUpdated
    _session_id: str = ""
    _items: dict[str, Wire] = field(default_factory=dict)
    _replies: dict[str, _Reply] = field(default_factory=dict)
    _speech: dict[str, _Speech] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def encode(self, event: ev.Event) -> list[Wire]:
        """The wire events for ``event``, in order; empty if the client asked not to be told."""
        match event:
            case ev.SessionStarted(session_id=session_id, settings=settings):
                self._session_id = session_id
                return [self._session("session.created", settings)]
            case ev.SessionUpdated(settings=settings):
                if self.wished is not None:
                    self.modality = self.wished.modality or self.modality
                    self.transcribe = self.transcribe if self.wished.transcribe is None else self.wished.transcribe
                    self.wished = None
                return [self._session("session.updated", settings)]
            case ev.SessionClosed(reason=reason):
                return [self._extension("session.closed", event.at, reason=reason)]
            case ev.ErrorRaised():
                return [self._error(event)]
            case ev.FloorChanged(floor=floor, user=user):
                return [self._extension("floor", event.at, floor=floor.value, user=user.value)]
            case ev.ItemAdded(item_id=item_id, role=role, text=text, previous_item_id=previous):
                kind = "output_text" if role is Role.ASSISTANT else "input_text"
                item = self._keep(_message(item_id, role.value, {"type": kind, "text": text}))
                return [
                    self.event("conversation.item.added", previous_item_id=previous, item=item),
                    self.event("conversation.item.done", previous_item_id=previous, item=item),
                ]
            case ev.AsideStarted(kind=kind, text=text):
                return [self._extension("aside", event.at, purpose=kind.value, transcript=text)]
            case ev.TurnTraced():
                return [self._trace(event)]
            case (
                ev.UserSpeechStarted()
                | ev.UserSpeechStopped()
                | ev.UserTurnCommitted()
                | ev.UserTurnReopened()
                | ev.UserTranscriptPartial()
                | ev.UserTranscriptFinal()
            ):
                return self._user(event)
            case _:
                return self._assistant(event)

    def audio(self, packet: OutPacket) -> Wire | None:
        """A packet as an audio delta; None if it is silence or the client wants text only."""
        if not (packet.reply_id or packet.aside) or self.modality != "audio":
            return None
        delta = base64.b64encode(to_pcm16(packet.samples)).decode("ascii")
        if packet.reply_id is None:
            return self.event("duplex.aside.delta", delta=delta)
        return self.event("response.output_audio.delta", **_part(packet.reply_id, packet.item_id or ""), delta=delta)

    def item(self, item_id: str) -> Wire | None:
        """The conversation item as the client knows it."""
        return self._items.get(item_id)

    def forget(self, item_id: str) -> None:
        self._items.pop(item_id, None)

    def cancelling(self) -> None:
        """The client asked for the reply's end, so that is the reason to give."""
        for reply in self._replies.values():
            reply.cancelled_by_client = True

    def event(self, kind: str, **fields: Any) -> Wire:
        """One wire event with an id of its own."""
        return {"type": kind, "event_id": f"event_{next(self._numbers)}", **fields}

    # --- the user's side ----------------------------------------------------------------------------

    def _user(self, event: ev.Event) -> list[Wire]:
        match event:
            case ev.UserSpeechStarted(item_id=item_id, audio_pts=pts):
                speech = self._speech.setdefault(item_id, _Speech())
                speech.started_pts = pts
                _bound(self._speech, 16)
                return [self.event("input_audio_buffer.speech_started", audio_start_ms=_whole_ms(pts), item_id=item_id)]
            case ev.UserSpeechStopped(item_id=item_id, audio_pts=pts):
                speech = self._speech.setdefault(item_id, _Speech())
                if speech.started_pts is not None:
                    speech.samples += max(0, pts - speech.started_pts)
                    speech.started_pts = None
                return [self.event("input_audio_buffer.speech_stopped", audio_end_ms=_whole_ms(pts), item_id=item_id)]
            case ev.UserTurnCommitted(item_id=item_id, previous_item_id=previous):
                told = [self.event("input_audio_buffer.committed", previous_item_id=previous, item_id=item_id)]
                if item_id not in self._items:  # a reopened turn is committed again, but is the same item
                    item = self._keep(_message(item_id, "user", {"type": "input_audio", "transcript": None}))
                    told.append(self.event("conversation.item.added", previous_item_id=previous, item=item))
                return told
            case ev.UserTurnReopened(item_id=item_id):
                return [self._extension("turn.reopened", event.at, item_id=item_id)]
            case ev.UserTranscriptPartial(item_id=item_id, text=text):
                if not self.transcribe:
                    return []
                return [self._extension("transcript.partial", event.at, item_id=item_id, text=text)]
            case ev.UserTranscriptFinal(item_id=item_id, text=text):
                item = self._keep(_message(item_id, "user", {"type": "input_audio", "transcript": text}))
                if not self.transcribe:
                    return [self.event("conversation.item.done", item=item)]
                seconds = samples_to_ms(self._speech.get(item_id, _Speech()).samples) / 1000
                completed = self.event(
                    "conversation.item.input_audio_transcription.completed",
                    item_id=item_id,
                    content_index=0,
                    transcript=text,
                    usage={"type": "duration", "seconds": round(seconds, 3)},
                )
                return [completed, self.event("conversation.item.done", item=item)]
            case _:
                raise AssertionError(f"not a user's event: {event!r}")

    # --- the assistant's side -----------------------------------------------------------------------

    def _assistant(self, event: ev.Event) -> list[Wire]:
        match event:
            case ev.ReplyStarted():
                return self._reply_started(event)
            case ev.ReplyTextAdded(reply_id=reply_id, item_id=item_id, delta=delta):
                reply = self._reply(reply_id)
                reply.text += delta
                kind = "output_text" if reply.modality == "text" else "output_audio_transcript"
                return [self.event(f"response.{kind}.delta", **_part(reply_id, item_id), delta=delta)]
            case ev.ReplyAudioStarted(reply_id=reply_id):
                self._reply(reply_id).audible = True
                return [] if self.audio_deltas else [self.event("output_audio_buffer.started", response_id=reply_id)]
            case ev.ReplyWords(reply_id=reply_id, item_id=item_id, words=words):
                listed = [
                    {
                        "text": word.text,
                        "start_ms": round(samples_to_ms(word.start_samples), 1),
                        "end_ms": round(samples_to_ms(word.end_samples), 1),
                        "estimated": word.estimated,
                    }
                    for word in words
                ]
                return [self._extension("words", event.at, response_id=reply_id, item_id=item_id, words=listed)]
            case ev.PlayoutProgress():
                return [
                    self._extension(
                        "playout",
                        event.at,
                        response_id=event.reply_id,
                        sent_ms=round(event.sent_ms, 1),
                        heard_ms=round(event.heard_ms, 1),
                        evidence=event.evidence,
                        error_ms=round(event.error_ms, 1),
                    )
                ]
            case ev.ReplyHeld(reply_id=reply_id):
                return [self._extension("reply.held", event.at, response_id=reply_id)]
            case ev.ReplyResumed(reply_id=reply_id):
                return [self._extension("reply.resumed", event.at, response_id=reply_id)]
            case ev.ReplyTruncated():
                return [self._truncated(event)]
            case ev.ReplyFinished():
                return self._reply_finished(event)
            case _:
                raise AssertionError(f"no wire form for {event!r}")

    def _reply_started(self, event: ev.ReplyStarted) -> list[Wire]:
        reply = self._replies[event.reply_id] = _Reply(modality=self.modality)
        _bound(self._replies, 8)
        item = self._keep(_message(event.item_id, "assistant", None, "in_progress"))
        empty = {"type": "text", "text": ""} if reply.modality == "text" else {"type": "audio", "transcript": ""}
        previous = event.previous_item_id
        return [
            self.event("response.created", response=self._response(event.reply_id, reply, "in_progress", None, [])),
            self.event("response.output_item.added", response_id=event.reply_id, output_index=0, item=item),
            self.event("conversation.item.added", previous_item_id=previous, item=item),
            self.event("response.content_part.added", **_part(event.reply_id, event.item_id), part=empty),
        ]

    def _truncated(self, event: ev.ReplyTruncated) -> Wire:
        if reply := self._replies.get(event.reply_id):
            reply.heard_text = event.heard_text
        if event.item_id in self._items:
            content = {"type": "output_audio", "transcript": event.heard_text}
            self._keep(_message(event.item_id, "assistant", content, "incomplete"))
        return self.event(
            "conversation.item.truncated",
            item_id=event.item_id,
            content_index=0,
            audio_end_ms=round(event.heard_ms),
            duplex={
                "heard_text": event.heard_text,
                "evidence": event.evidence,
                "error_ms": round(event.error_ms, 1),
            },
        )

    def _reply_finished(self, event: ev.ReplyFinished) -> list[Wire]:
        reply_id, item_id = event.reply_id, event.item_id
        reply = self._reply(reply_id)
        self._replies.pop(reply_id, None)
        where = _part(reply_id, item_id)
        kept = event.text if reply.heard_text is None else reply.heard_text
        if reply.modality == "text":
            part: Wire = {"type": "text", "text": event.text}
            content = {"type": "output_text", "text": kept}
            told = [self.event("response.output_text.done", **where, text=event.text)]
        else:
            part = {"type": "audio", "transcript": event.text}
            content = {"type": "output_audio", "transcript": kept}
            told = [
                self.event("response.output_audio.done", **where),
                self.event("response.output_audio_transcript.done", **where, transcript=event.text),
            ]
        item_status = "completed" if event.status == "completed" else "incomplete"
        item = self._keep(_message(item_id, "assistant", content, item_status))
        told += [
            self.event("response.content_part.done", **where, part=part),
            self.event("response.output_item.done", response_id=reply_id, output_index=0, item=item),
            self.event("conversation.item.done", item=item),
            self.event(
                "response.done", response=self._response(reply_id, reply, event.status, _details(event, reply), [item])
            ),
        ]
        if reply.audible and not self.audio_deltas:
            kind = "stopped" if event.status == "completed" else "cleared"
            told.append(self.event(f"output_audio_buffer.{kind}", response_id=reply_id))
        return told

    def _reply(self, reply_id: str) -> _Reply:
        return self._replies.get(reply_id) or _Reply(modality=self.modality)

    def _response(self, reply_id: str, reply: _Reply, status: str, details: Wire | None, output: list[Wire]) -> Wire:
        """``usage`` null: tokens are not counted here."""
        return {
            "object": "realtime.response",
            "id": reply_id,
            "conversation_id": self._session_id.replace("sess_", "conv_", 1),
            "status": status,
            "status_details": details,
            "output": output,
            "output_modalities": [reply.modality],
            "usage": None,
        }

    # --- both sides -----------------------------------------------------------------------------------

    def _session(self, kind: str, settings: AgentSettings) -> Wire:
        session = session_object(self.defaults, self._session_id, settings, self.modality, self.transcribe)
        return self.event(kind, session=session)

    def _extension(self, name: str, at: ev.At, **fields: Any) -> Wire:
        return self.event(f"duplex.{name}", at_ms=round(samples_to_ms(at.pts), 1), at_s=round(at.at_s, 4), **fields)

    def _trace(self, event: ev.TurnTraced) -> Wire:
        return self._extension(
            "trace",
            event.at,
            turn_id=event.item_id,
            response_id=event.reply_id,
            marks=[{"name": name, "at_ms": round(at_ms, 1)} for name, at_ms in event.marks],
            spans=[
                {"name": name, "start_ms": round(start, 1), "end_ms": round(end, 1)} for name, start, end in event.spans
            ],
            end_of_turn_ms=round(event.end_of_turn_ms, 1),
            first_packet_ms=round(event.first_packet_ms, 1),
            voice_to_voice_ms=round(event.voice_to_voice_ms, 1),
            speculative=event.speculative,
        )

    def _error(self, event: ev.ErrorRaised) -> Wire:
        known = getattr(errors, event.code, None)
        ours = event.code in _SERVER_CODES or (isinstance(known, type) and not issubclass(known, errors.ProtocolError))
        return self.event(
            "error",
            error={
                "type": "server_error" if ours else "invalid_request_error",
                "code": _snake(event.code),
                "message": event.message,
                "param": event.param,
                "event_id": event.client_event_id,
            },
        )

    def _keep(self, item: Wire) -> Wire:
        self._items[item["id"]] = item
        _bound(self._items, _MAX_ITEMS)
        return item


def _message(item_id: str, role: str, content: Wire | None, status: str = "completed") -> Wire:
    return {
        "id": item_id,
        "object": "realtime.item",
        "type": "message",
        "status": status,
        "role": role,
        "content": [] if content is None else [content],
    }


def _details(event: ev.ReplyFinished, reply: _Reply) -> Wire | None:
    if event.status == "cancelled":
        return {"type": "cancelled", "reason": "client_cancelled" if reply.cancelled_by_client else "turn_detected"}
    if event.status == "failed":
        error = {"type": "server_error", "code": "reply_failed", "message": event.error or "The reply failed."}
        return {"type": "failed", "error": error}
    return None


def _part(reply_id: str, item_id: str) -> Wire:
    """Where in a response its one content part is."""
    return {"response_id": reply_id, "item_id": item_id, "output_index": 0, "content_index": 0}


def _whole_ms(pts: int) -> int:
    return max(0, round(samples_to_ms(pts)))


def _snake(code: str) -> str:
    """``AgentFaultError`` → ``agent_fault``; words that are snake case already stay as they are."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", code.removesuffix("Error")).lower()


def _bound(kept: dict[str, Any], limit: int) -> None:
    while len(kept) > limit:
        del kept[next(iter(kept))]
