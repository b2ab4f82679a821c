"""From what another framework tells about its bot to the few events a call of ours waits for and is judged with.

The client says the next thing when every response it was told of is done, so none may look done too early. Two
things are told as responses:

* ``reply-N``, from the moment its words begin to be thought of until the last of them was spoken: also while its
  first sentence is still being synthesized. Its status tells a reply that was cut off from one that came to its
  own end; everything else is judged from the recorded sound.
* ``turn-N``, from the moment the bot takes the user to be speaking until it begins to think of a reply: a bot that
  began to answer in a pause, was interrupted by the rest, and is about to answer all of it, is not done. It never
  has sound, so nothing is judged by it.

Only the standard library: the bots that import it live in environments of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class ReplyEvents:
    """Six signals in; events of our vocabulary out, through ``send``."""

    def __init__(self, send: Callable[[Mapping[str, Any]], None]) -> None:
        self._send = send
        self._replies = 0
        self._reply_open = False
        self._cut_off = False
        self._thinking = False
        self._speaking = False
        self._owes_speech = False  # words were thought of that nobody has heard yet
        self._turns = 0
        self._turn_open = False
        self._listening = False
        self._understood = 0

    def turn_started(self) -> None:
        """The user is speaking, as the bot sees it."""
        self._listening = True
        if not self._turn_open:
            self._turns, self._turn_open = self._turns + 1, True
            self._created(f"turn-{self._turns}")

    def turn_stopped(self, text: str) -> None:
        """``text``: what the bot understood. Without any it may well not answer, and is not waited for."""
        self._listening = False
        if not text.strip():
            self._close_turn()
            return
        self._understood += 1
        item_id = f"item-{self._understood}"
        self._send({"type": "input_audio_buffer.committed", "item_id": item_id})
        kind = "conversation.item.input_audio_transcription.completed"
        self._send({"type": kind, "item_id": item_id, "transcript": text})

    def thinking_started(self) -> None:
        self._thinking = self._owes_speech = True
        self._settle()
        if not self._listening:  # else this thought is about to be dropped: the user has gone on
            self._close_turn()

    def thinking_stopped(self, text: str, interrupted: bool) -> None:
        """``text``: what was said, by the bot's own account; empty if there was nothing to say."""
        self._thinking = False
        self._cut_off = self._cut_off or interrupted
        self._owes_speech = self._owes_speech and bool(text.strip()) and not interrupted and not self._speaking
        if text.strip():
            self._send({"type": "response.output_audio_transcript.done", "transcript": text})
        self._settle()

    def speaking_started(self) -> None:
        self._speaking, self._owes_speech = True, False
        self._settle()
        self._send({"type": "output_audio_buffer.started", "response_id": f"reply-{self._replies}"})

    def speaking_stopped(self) -> None:
        self._speaking = False
        self._settle()

    def _close_turn(self) -> None:
        if self._turn_open:
            self._turn_open = False
            self._done(f"turn-{self._turns}", "completed")

    def _settle(self) -> None:
        is_open = self._thinking or self._speaking or self._owes_speech
        if is_open == self._reply_open:
            return
        self._reply_open = is_open
        if is_open:
            self._replies, self._cut_off = self._replies + 1, False
            self._created(f"reply-{self._replies}")
        else:
            self._done(f"reply-{self._replies}", "cancelled" if self._cut_off else "completed")

    def _created(self, response_id: str) -> None:
        self._send({"type": "response.created", "response": {"id": response_id}})

    def _done(self, response_id: str, status: str) -> None:
        self._send({"type": "response.done", "response": {"id": response_id, "status": status}})
