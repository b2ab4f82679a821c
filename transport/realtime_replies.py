"""Replies as responses: what they say and which tools they ask for, as output items in the order in which they began.

A response begins empty. Its message begins with the first of its text or sound, a call when it is made; each is an item
with an index of its own, added and done on its own.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from duplex import events as ev
from duplex.agent import AgentSettings
from duplex.frames import samples_to_ms
from duplex.line import OutPacket
from duplex.transport.realtime_fields import SessionDefaults
from duplex.transport.realtime_items import Wire, call_object, message_object
from duplex.transport.realtime_session import Formats, voice_of
from duplex.transport.realtime_sound import SoundOut, format_object

_MAX_REPLIES = 16

MakeEvent = Callable[..., Wire]


@dataclass(slots=True)
class _Call:
    item_id: str
    index: int
    call_id: str
    name: str
    arguments: str = ""
    done: bool = False

    def shown(self, status: str) -> Wire:
        return call_object(self.item_id, self.call_id, self.name, self.arguments, status)


@dataclass(slots=True)
class _Reply:
    """``last_item_id``: what the next item of it follows. ``index``: its message's, once that has begun."""

    silent: bool = False
    in_conversation: bool = True
    metadata: dict[str, str] | None = None
    max_output_tokens: int | None = None
    last_item_id: str | None = None
    index: int | None = None
    text: str = ""
    heard_text: str | None = None  # once truncated
    audible: bool = False
    cancelled_by_client: bool = False
    calls: dict[str, _Call] = field(default_factory=dict)
    sound: SoundOut = field(default_factory=SoundOut)

    @property
    def next_index(self) -> int:
        return len(self.calls) + (self.index is not None)


class ReplyEncoder:
    """One session's. ``event`` makes a wire event, ``keep`` remembers an item as the client knows it."""

    def __init__(
        self, defaults: SessionDefaults, *, audio_deltas: bool, event: MakeEvent, keep: Callable[[Wire], Wire]
    ) -> None:
        self.settings, self.formats, self.session_id = AgentSettings(), Formats(), ""
        self._defaults, self._audio_deltas, self._event, self._keep = defaults, audio_deltas, event, keep
        self._replies: dict[str, _Reply] = {}
        self._aside: SoundOut | None = None

    def encode(self, event: ev.Event) -> list[Wire] | None:
        """None for an event that is no reply's."""
        match event:
            case ev.ReplyStarted():
                return self._started(event)
            case ev.ReplyTextAdded(reply_id=reply_id, item_id=item_id, delta=delta):
                reply = self._reply(reply_id)
                told = self._begin_message(reply_id, item_id)
                reply.text += delta
                kind = "output_text" if reply.silent else "output_audio_transcript"
                where = self._part(reply_id, item_id, reply)
                return [*told, self._event(f"response.{kind}.delta", **where, delta=delta)]
            case ev.ReplyAudioStarted(reply_id=reply_id, item_id=item_id):
                told = self._begin_message(reply_id, item_id)
                self._reply(reply_id).audible = True
                if self._audio_deltas:
                    return told
                return [*told, self._event("output_audio_buffer.started", response_id=reply_id)]
            case ev.ToolCallStarted():
                return self._call_started(event)
            case ev.ToolCallDelta(reply_id=reply_id, call_id=call_id, delta=delta):
                if (call := self._reply(reply_id).calls.get(call_id)) is None:
                    return []
                call.arguments += delta
                where = {"response_id": reply_id, "item_id": call.item_id, "output_index": call.index}
                return [self._event("response.function_call_arguments.delta", **where, call_id=call_id, delta=delta)]
            case ev.ToolCallDone(reply_id=reply_id, call_id=call_id, arguments=arguments):
                reply = self._reply(reply_id)
                if (call := reply.calls.get(call_id)) is None:
                    return []
                call.arguments = arguments
                return self._call_done(reply_id, reply, call, "completed")
            case ev.ReplyTruncated(reply_id=reply_id, heard_text=heard_text):
                if reply_id in self._replies:
                    self._replies[reply_id].heard_text = heard_text
                return None
            case ev.ReplyFinished():
                return self._finished(event)
            case _:
                return None

    def audio(self, packet: OutPacket) -> list[Wire]:
        """A packet as an audio delta, after what has to be told before it; nothing if it is silence."""
        if packet.reply_id is None:
            if not packet.aside:
                return []
            if self._aside is None or self._aside.kind != self.formats.output:
                self._aside = SoundOut(self.formats.output)
            return [self._event("duplex.aside.delta", delta=_base64(self._aside.write(packet.samples)))]
        reply, item_id = self._reply(packet.reply_id), packet.item_id or ""
        if reply.silent:
            return []
        told = self._begin_message(packet.reply_id, item_id) if packet.reply_id in self._replies else []
        delta = _base64(reply.sound.write(packet.samples))
        where = self._part(packet.reply_id, item_id, reply)
        return [*told, self._event("response.output_audio.delta", **where, delta=delta)]

    def cancelling(self, reply_id: str | None) -> None:
        """The client asked for the reply's end, so that is the reason to give."""
        for name, reply in self._replies.items():
            if reply_id in (None, name):
                reply.cancelled_by_client = True

    # --- beginning --------------------------------------------------------------------------------

    def _started(self, event: ev.ReplyStarted) -> list[Wire]:
        reply = self._replies[event.reply_id] = _Reply(
            silent=event.silent,
            in_conversation=event.in_conversation,
            metadata=None if event.labels is None else dict(event.labels),
            max_output_tokens=event.max_output_tokens,
            last_item_id=event.previous_item_id,
            sound=SoundOut(self.formats.output),
        )
        while len(self._replies) > _MAX_REPLIES:
            del self._replies[next(iter(self._replies))]
        return [self._event("response.created", response=self._response(event.reply_id, reply, "in_progress"))]

    def _begin_message(self, reply_id: str, item_id: str) -> list[Wire]:
        reply = self._reply(reply_id)
        if reply.index is not None:
            return []
        reply.index = reply.next_index
        empty = {"type": "text", "text": ""} if reply.silent else {"type": "audio", "transcript": ""}
        told = self._added(reply_id, reply, reply.index, message_object(item_id, "assistant", None, "in_progress"))
        part = self._event("response.content_part.added", **self._part(reply_id, item_id, reply), part=empty)
        return [*told, part]

    def _call_started(self, event: ev.ToolCallStarted) -> list[Wire]:
        reply = self._reply(event.reply_id)
        call = _Call(event.item_id, reply.next_index, event.call_id, event.name)
        reply.calls[event.call_id] = call
        reply.last_item_id = event.previous_item_id
        return self._added(event.reply_id, reply, call.index, call.shown("in_progress"))

    def _added(self, reply_id: str, reply: _Reply, index: int, item: Wire) -> list[Wire]:
        told = [self._event("response.output_item.added", response_id=reply_id, output_index=index, item=item)]
        if reply.in_conversation:
            self._keep(item)
            told.append(self._event("conversation.item.added", previous_item_id=reply.last_item_id, item=item))
        reply.last_item_id = item["id"]
        return told

    # --- ending -----------------------------------------------------------------------------------

    def _done(self, reply_id: str, reply: _Reply, index: int, item: Wire) -> list[Wire]:
        told = [self._event("response.output_item.done", response_id=reply_id, output_index=index, item=item)]
        if reply.in_conversation:
            told.append(self._event("conversation.item.done", item=self._keep(item)))
        return told

    def _call_done(self, reply_id: str, reply: _Reply, call: _Call, status: str) -> list[Wire]:
        call.done = True
        told = self._event(
            "response.function_call_arguments.done",
            response_id=reply_id,
            item_id=call.item_id,
            output_index=call.index,
            call_id=call.call_id,
            name=call.name,
            arguments=call.arguments,
        )
        return [told, *self._done(reply_id, reply, call.index, call.shown(status))]

    def _finished(self, event: ev.ReplyFinished) -> list[Wire]:
        reply_id = event.reply_id
        reply = self._reply(reply_id)
        self._replies.pop(reply_id, None)
        told: list[Wire] = []
        output: list[tuple[int, Wire]] = []
        status = "completed" if event.status == "completed" else "incomplete"
        if reply.index is not None:
            ended, item = self._message_done(event, reply, status)
            told += ended
            output.append((reply.index, item))
        for call in reply.calls.values():
            unfinished = not call.done
            if unfinished:
                told += self._call_done(reply_id, reply, call, "incomplete")
            output.append((call.index, call.shown("incomplete" if unfinished else "completed")))
        items = [item for _, item in sorted(output, key=lambda pair: pair[0])]
        response = self._response(reply_id, reply, event.status, _details(event, reply), items, event.usage)
        told.append(self._event("response.done", response=response))
        if reply.audible and not self._audio_deltas:
            kind = "stopped" if event.status in ("completed", "incomplete") else "cleared"
            told.append(self._event(f"output_audio_buffer.{kind}", response_id=reply_id))
        return told

    def _message_done(self, event: ev.ReplyFinished, reply: _Reply, status: str) -> tuple[list[Wire], Wire]:
        where = self._part(event.reply_id, event.item_id, reply)
        kept = event.text if reply.heard_text is None else reply.heard_text
        if reply.silent:
            part: Wire = {"type": "text", "text": event.text}
            content = {"type": "output_text", "text": kept}
            told = [self._event("response.output_text.done", **where, text=event.text)]
        else:
            part = {"type": "audio", "transcript": event.text}
            content = {"type": "output_audio", "transcript": kept}
            told = [
                self._event("response.output_audio.done", **where),
                self._event("response.output_audio_transcript.done", **where, transcript=event.text),
            ]
        item = message_object(event.item_id, "assistant", content, status)
        told.append(self._event("response.content_part.done", **where, part=part))
        assert reply.index is not None
        return [*told, *self._done(event.reply_id, reply, reply.index, item)], item

    # --- shared -----------------------------------------------------------------------------------

    def _reply(self, reply_id: str) -> _Reply:
        return self._replies.get(reply_id) or _Reply(silent=bool(self.settings.silent))

    @staticmethod
    def _part(reply_id: str, item_id: str, reply: _Reply) -> Wire:
        """Where in a response the one content part of its message is."""
        return {"response_id": reply_id, "item_id": item_id, "output_index": reply.index or 0, "content_index": 0}

    def _response(
        self,
        reply_id: str,
        reply: _Reply,
        status: str,
        details: Wire | None = None,
        output: list[Wire] | None = None,
        usage: ev.Usage | None = None,
    ) -> Wire:
        """``usage`` null: this agent does not count tokens."""
        longest = self.settings.max_output_tokens if reply.max_output_tokens is None else reply.max_output_tokens
        voice = {"format": format_object(reply.sound.kind), "voice": voice_of(self.settings, self._defaults)}
        return {
            "object": "realtime.response",
            "id": reply_id,
            "conversation_id": self.session_id.replace("sess_", "conv_", 1) if reply.in_conversation else None,
            "status": status,
            "status_details": details,
            "output": output or [],
            "output_modalities": ["text" if reply.silent else "audio"],
            "max_output_tokens": "inf" if longest is None else longest,
            "metadata": reply.metadata,
            "audio": None if reply.silent else {"output": voice},
            "usage": None if usage is None else _usage(usage),
        }


def _details(event: ev.ReplyFinished, reply: _Reply) -> Wire | None:
    if event.status == "cancelled":
        return {"type": "cancelled", "reason": "client_cancelled" if reply.cancelled_by_client else "turn_detected"}
    if event.status == "incomplete":
        return {"type": "incomplete", "reason": "max_output_tokens"}
    if event.status == "failed":
        error = {"type": "server_error", "code": "reply_failed", "message": event.error or "The reply failed."}
        return {"type": "failed", "error": error}
    return None


def _usage(usage: ev.Usage) -> Wire:
    """All of it is text: sound is understood before the thinker, and made after it."""
    cached = {"text_tokens": usage.cached_tokens, "audio_tokens": 0, "image_tokens": 0}
    return {
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "input_token_details": {
            "text_tokens": usage.input_tokens,
            "audio_tokens": 0,
            "image_tokens": 0,
            "cached_tokens": usage.cached_tokens,
            "cached_tokens_details": cached,
        },
        "output_token_details": {"text_tokens": usage.output_tokens, "audio_tokens": 0},
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def words_object(words: tuple[Any, ...]) -> list[Wire]:
    """``duplex.words``: when each word of released sound is heard, in milliseconds of the reply."""
    return [
        {
            "text": word.text,
            "start_ms": round(samples_to_ms(word.start_samples), 1),
            "end_ms": round(samples_to_ms(word.end_samples), 1),
            "estimated": word.estimated,
        }
        for word in words
    ]
