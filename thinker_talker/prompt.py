"""What the thinker is shown: instructions, what was said and heard so far, and the open turn's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from duplex.conversation import Item, Message, Role
from duplex.frames import Image

from . import thinker as th

_WORTH_REMEMBERING_WORDS = 3  # a small model that is shown "I'm glad —" says it again
_UNHEARD = "The user interrupted you and did not hear the rest: {}"
_UNHEARD_WORDS = 40
_ROLES: Mapping[Role, th.Role] = {Role.SYSTEM: "system", Role.USER: "user", Role.ASSISTANT: "assistant"}


def prompt(
    system: str, history: Sequence[Item], said: str | None, pictures: tuple[Image, ...], *, tell_unheard: bool
) -> tuple[th.Message, ...]:
    """``said``: the open turn's words, shown with the newest ``pictures``; ``None`` if the user said nothing new.

    A reply that was cut off ends in a dash where it was cut, and ``tell_unheard`` adds what was not heard of it.
    """
    messages = [th.Message("system", system)]
    for message in history:
        if not isinstance(message, Message):
            continue
        if message.cut_off and len(message.text.split()) < _WORTH_REMEMBERING_WORDS:
            continue
        text = f"{message.text} —" if message.cut_off else message.text
        messages.append(th.Message(_ROLES[message.role], text, message.images))
        if message.unheard and tell_unheard:
            messages.append(th.Message("system", _UNHEARD.format(_first_words(message.unheard))))
    if said is not None:
        messages.append(th.Message("user", said, pictures))
    return tuple(messages)


def _first_words(text: str) -> str:
    words = text.split()
    return " ".join(words[:_UNHEARD_WORDS]) + (" …" if len(words) > _UNHEARD_WORDS else "")
