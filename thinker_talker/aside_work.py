"""A word that takes no floor, spoken by the session's voice and handed over whole."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from duplex.agent import AgentEvent, Aside, AsideKind
from duplex.errors import DuplexError
from duplex.frames import Samples

from .talker import Speech, Talker

log = logging.getLogger("duplex.cascade")


def speak_aside(kind: AsideKind, text: str, talker: Talker, post: Callable[[AgentEvent], None]) -> None:
    """Has ``text`` spoken and posts it as an :class:`~duplex.agent.Aside`, from the talker's thread."""
    utterance = talker.begin(_Whole(kind, text, post))
    utterance.say(text)
    utterance.end()


class _Whole:
    """Collects one aside: a :class:`~.talker.TalkSink`."""

    def __init__(self, kind: AsideKind, text: str, post: Callable[[AgentEvent], None]) -> None:
        self._kind, self._text, self._post = kind, text, post
        self._parts: list[Samples] = []

    def on_speech(self, speech: Speech) -> None:
        self._parts.append(speech.samples)

    def on_done(self) -> None:
        if self._parts:
            self._post(Aside(self._kind, self._text, np.concatenate(self._parts)))

    def on_error(self, error: DuplexError) -> None:
        log.warning("an aside could not be spoken: %s", error)  # nobody waits for it
