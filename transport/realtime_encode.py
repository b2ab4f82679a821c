"""Session events to OpenAI Realtime server events, with the bookkeeping the public vocabulary asks for.

One internal event becomes one or several wire events; names and fields are those of the official client's
models. What they cannot express goes out under a ``duplex.`` prefix, each with both times: ``at_ms``, media
time of the heard stream, and ``at_s``, the session's clock.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from duplex import errors
from duplex import events as ev
from duplex.agent import AgentSettings
from duplex.conversation import Role
from duplex.frames import ms_to_samples, samples_to_ms
from duplex.line import OutPacket
from duplex.transport.realtime_fields import SessionDefaults
from duplex.transport.realtime_items import Wire, call_object, message_object, result_object
from duplex.transport.realtime_replies import ReplyEncoder, words_object
from duplex.transport.realtime_session import Formats, SessionChange, session_object

DROPPABLE = frozenset({"duplex.transcript.partial", "duplex.playout", "duplex.floor"})
"""Events whose successor says all they said: a client that does not keep up may lose them."""

_SERVER_CODES = frozenset({"reply_timeout", "reply_stalled", "reply_too_long"})
_MAX_ITEMS = 400


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
    settings: AgentSettings = field(default_factory=AgentSettings)
    formats: Formats = field(default_factory=Formats)
    resume_token: str | None = None  # told once, with the session
    wished: SessionChange | None = None  # takes effect with the session's next SessionUpdated
    _session_id: str = ""
    _items: dict[str, Wire] = field(default_factory=dict)
    _speech: dict[str, _Speech] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _replies: ReplyEncoder = field(init=False)

    def __post_init__(self) -> None:
        self._replies = ReplyEncoder(self.defaults, audio_deltas=self.audio_deltas, event=self.event, keep=self._keep)

    def encode(self, event: ev.Event) -> list[Wire]:
        """The wire events for ``event``, in order; empty if the client asked not to be told."""
        if (told := self._replies.encode(event)) is not None:
            return told
        match event:
            case ev.SessionStarted(session_id=session_id, settings=settings):
                self._session_id = self._replies.session_id = session_id
                created = self._session("session.created", settings)
                if self.resume_token is not None:
                    created["session"]["duplex"]["resume_token"] = self.resume_token
                return [created]
            case ev.SessionUpdated(settings=settings):
                if self.wished is not None:
                    wished, self.wished = self.wished, None
                    self.formats = Formats(
                        wished.input_format or self.formats.input, wished.output_format or self.formats.output
                    )
                return [self._session("session.updated", settings)]
            case ev.SessionClosed(reason=reason):
                return [self._extension("session.closed", event.at, reason=reason)]
            case ev.ErrorRaised():
                return [self._error(event)]
            case ev.FloorChanged(floor=floor, user=user):
                return [self._extension("floor", event.at, floor=floor.value, user=user.value)]
            case ev.ItemAdded(item_id=item_id, role=role, text=text, previous_item_id=previous):
                kind = "output_text" if role is Role.ASSISTANT else "input_text"
                return self._item_added(message_object(item_id, role.value, {"type": kind, "text": text}), previous)
            case ev.ToolCallAdded(item_id=item_id, call_id=call_id, name=name, arguments=arguments):
                return self._item_added(call_object(item_id, call_id, name, arguments), event.previous_item_id)
            case ev.ToolResultAdded(item_id=item_id, call_id=call_id, output=output):
                return self._item_added(result_object(item_id, call_id, output), event.previous_item_id)
            case ev.KeyPressed(key=key):
                return [self._extension("key", event.at, key=key)]
            case ev.LineLost() | ev.LineBack() | ev.SessionDraining():
                return [self._standing(event)]
            case ev.AsideStarted(kind=purpose, text=text):
                return [self._extension("aside", event.at, purpose=purpose.value, transcript=text)]
            case ev.TurnTraced():
                return [self._trace(event)]
            case (
                ev.UserSpeechStarted()
                | ev.UserSpeechStopped()
                | ev.UserTurnCommitted()
                | ev.UserTurnReopened()
                | ev.UserTranscriptPartial()
                | ev.UserTranscriptFinal()
                | ev.IdleTimedOut()
            ):
                return self._user(event)
            case _:
                return [self._playing(event)]

    def audio(self, packet: OutPacket) -> list[Wire]:
        """A packet as an audio delta, after what has to be told before it; nothing if it is silence."""
        return self._replies.audio(packet)

    def item(self, item_id: str) -> Wire | None:
        """The conversation item as the client knows it."""
        return self._items.get(item_id)

    def forget(self, item_id: str) -> None:
        self._items.pop(item_id, None)

    def cancelling(self, reply_id: str | None) -> None:
        """The client asked for the reply's end, so that is the reason to give."""
        self._replies.cancelling(reply_id)

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
                prefix_s = (self.settings.turns.prefix_s if self.settings.turns is not None else None) or 0.0
                start_ms = _whole_ms(pts - ms_to_samples(prefix_s * 1000.0))
                return [self.event("input_audio_buffer.speech_started", audio_start_ms=start_ms, item_id=item_id)]
            case ev.UserSpeechStopped(item_id=item_id, audio_pts=pts):
                speech = self._speech.setdefault(item_id, _Speech())
                if speech.started_pts is not None:
                    speech.samples += max(0, pts - speech.started_pts)
                    speech.started_pts = None
                return [self.event("input_audio_buffer.speech_stopped", audio_end_ms=_whole_ms(pts), item_id=item_id)]
            case ev.UserTurnCommitted(item_id=item_id, previous_item_id=previous):
                told = [self.event("input_audio_buffer.committed", previous_item_id=previous, item_id=item_id)]
                if item_id not in self._items:  # a reopened turn is committed again, but is the same item
                    item = self._keep(message_object(item_id, "user", {"type": "input_audio", "transcript": None}))
                    told.append(self.event("conversation.item.added", previous_item_id=previous, item=item))
                return told
            case ev.UserTurnReopened(item_id=item_id):
                return [self._extension("turn.reopened", event.at, item_id=item_id)]
            case ev.UserTranscriptPartial(item_id=item_id, text=text):
                if self.settings.captions is False:
                    return []
                return [self._extension("transcript.partial", event.at, item_id=item_id, text=text)]
            case ev.UserTranscriptFinal():
                return self._transcribed(event)
            case ev.IdleTimedOut(item_id=item_id, start_pts=start_pts, end_pts=end_pts):
                silence = {"audio_start_ms": _whole_ms(start_pts), "audio_end_ms": _whole_ms(end_pts)}
                return [self.event("input_audio_buffer.timeout_triggered", item_id=item_id, **silence)]
            case _:
                raise AssertionError(f"not a user's event: {event!r}")

    def _transcribed(self, event: ev.UserTranscriptFinal) -> list[Wire]:
        item_id, text = event.item_id, event.text
        told, captions = [], self.settings.captions is not False
        content = {"type": "input_audio", "transcript": text if captions else None}
        item = message_object(item_id, "user", content)
        if item_id in self._items:  # and was not deleted meanwhile
            self._keep(item)
        where = {"item_id": item_id, "content_index": 0}
        if captions and event.error is not None and not text:
            error = {"type": "transcription_error", "code": "no_words", "message": event.error}
            told.append(self.event("conversation.item.input_audio_transcription.failed", **where, error=error))
        elif captions:
            if text:  # what was partial may have changed, so the words that stay come in one piece
                told.append(self.event("conversation.item.input_audio_transcription.delta", **where, delta=text))
            seconds = samples_to_ms(self._speech.get(item_id, _Speech()).samples) / 1000
            usage = {"type": "duration", "seconds": round(seconds, 3)}
            told.append(
                self.event(
                    "conversation.item.input_audio_transcription.completed", **where, transcript=text, usage=usage
                )
            )
        return [*told, self.event("conversation.item.done", item=item)]

    # --- the reply's way to the ear -----------------------------------------------------------------

    def _playing(self, event: ev.Event) -> Wire:
        match event:
            case ev.ReplyWords(reply_id=reply_id, item_id=item_id, words=words):
                listed = words_object(words)
                return self._extension("words", event.at, response_id=reply_id, item_id=item_id, words=listed)
            case ev.PlayoutProgress():
                return self._extension(
                    "playout",
                    event.at,
                    response_id=event.reply_id,
                    sent_ms=round(event.sent_ms, 1),
                    heard_ms=round(event.heard_ms, 1),
                    evidence=event.evidence,
                    error_ms=round(event.error_ms, 1),
                )
            case ev.ReplyHeld(reply_id=reply_id):
                return self._extension("reply.held", event.at, response_id=reply_id)
            case ev.ReplyResumed(reply_id=reply_id):
                return self._extension("reply.resumed", event.at, response_id=reply_id)
            case ev.ReplyTruncated():
                return self._truncated(event)
            case _:
                raise AssertionError(f"no wire form for {event!r}")

    def _truncated(self, event: ev.ReplyTruncated) -> Wire:
        if event.item_id in self._items:
            content = {"type": "output_audio", "transcript": event.heard_text}
            self._keep(message_object(event.item_id, "assistant", content, "incomplete"))
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

    # --- both sides -----------------------------------------------------------------------------------

    def _standing(self, event: ev.LineLost | ev.LineBack | ev.SessionDraining) -> Wire:
        """How the call itself stands."""
        match event:
            case ev.LineLost(silent_s=silent_s, reply_id=reply_id, heard_ms=heard_ms):
                where = {} if heard_ms is None else {"response_id": reply_id, "heard_ms": round(heard_ms, 1)}
                return self._extension("line.lost", event.at, silent_s=round(silent_s, 3), **where)
            case ev.LineBack(lost_s=lost_s, reply_id=reply_id, resumed_ms=resumed_ms):
                where = {} if resumed_ms is None else {"response_id": reply_id, "resumed_ms": round(resumed_ms, 1)}
                return self._extension("line.back", event.at, lost_s=round(lost_s, 3), **where)
            case ev.SessionDraining(deadline_s=deadline_s):
                return self._extension("session.draining", event.at, deadline_s=round(deadline_s, 3))

    def _session(self, kind: str, settings: AgentSettings) -> Wire:
        self.settings = self._replies.settings = settings
        self._replies.formats = self.formats
        return self.event(kind, session=session_object(self.defaults, self._session_id, settings, self.formats))

    def _item_added(self, item: Wire, previous: str | None) -> list[Wire]:
        self._keep(item)
        return [
            self.event("conversation.item.added", previous_item_id=previous, item=item),
            self.event("conversation.item.done", previous_item_id=previous, item=item),
        ]

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


def _whole_ms(pts: int) -> int:
    return max(0, round(samples_to_ms(pts)))


def _snake(code: str) -> str:
    """``AgentFaultError`` → ``agent_fault``; words that are snake case already stay as they are."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", code.removesuffix("Error")).lower()


def _bound(kept: dict[str, Any], limit: int) -> None:
    while len(kept) > limit:
        del kept[next(iter(kept))]
