"""Words put in a native model's mouth, and text put before its eyes: one forced token a frame.

*To say a text word for word*, its pieces are forced into the text stream as the model itself would have written them:
the token that announces a word, the word's pieces, then padding for as long as the word takes to say. The sound stays
the model's own. *To tell it something*, the pieces are forced back to back while it is kept silent.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from duplex.conversation import Role
from duplex.thinker_talker.native.checkpoints.text_tokens import TextVocabulary

from .spoken_text import spoken_s

_TAIL_S = 1.6  # after the last word, at most, until it has been said


def say_plan(text: str, tokens: TextVocabulary, frame_s: float) -> list[int]:
    """The tokens of the frames that say ``text``, float time to frames of ``frame_s``."""
    pad, announces = tokens.padding
    plan: list[int] = []
    debt_s = 0.0  # what rounding to frames has cost or won so far
    for word in words_of(text, tokens):
        frames = [announces, *word]
        spelt = "".join(tokens.decode_piece(token) for token in word).strip()
        wanted_s = spoken_s(spelt) + debt_s
        n_frames = max(len(frames), math.floor(wanted_s / frame_s + 0.5))
        debt_s = wanted_s - n_frames * frame_s
        plan += [*frames, *[pad] * (n_frames - len(frames))]
    return plan


def words_of(text: str, tokens: TextVocabulary) -> list[list[int]]:
    """The pieces of ``text``, word by word."""
    words: list[list[int]] = []
    for token in tokens.encode(text):
        if not words or tokens.decode_piece(token)[:1].isspace():
            words.append([])
        words[-1].append(token)
    return words


_AS_SAID_BY = {
    Role.SYSTEM: "{text}",
    Role.USER: "The user wrote: {text}",
    Role.ASSISTANT: "You said: {text}",
}


def inject_plan(text: str, role: Role, template: str, tokens: TextVocabulary) -> list[int]:
    """The tokens of the frames in which the model reads ``text``. ``template`` has ``{text}`` in it."""
    told = _AS_SAID_BY[role].replace("{text}", " ".join(text.split()))
    return tokens.encode(template.replace("{text}", told))


class Kind(Enum):
    """What a frame was stepped for."""

    FREE = "free"  # the model does as it likes
    SAY = "say"  # a forced word or the padding between two
    TAIL = "tail"  # forced padding, until the last word has been said
    READ = "read"  # silent, reading
    SILENT = "silent"  # kept quiet


@dataclass(frozen=True, slots=True)
class Forced:
    """How one frame is stepped. ``token``: the text it is made to write, ``silent``: it makes no sound."""

    kind: Kind
    token: int | None = None
    silent: bool = False


FREE, SILENT = Forced(Kind.FREE), Forced(Kind.SILENT, silent=True)


@dataclass(slots=True)
class ForcedText:
    """What is still to be forced. A text that is being read is read to its end; one that waits to be, waits until
    the agent is quiet and has said what it must."""

    pad: int
    frame_s: float
    _say: deque[int] = field(default_factory=deque)
    _tail: int = 0
    _read: deque[int] = field(default_factory=deque)
    _reading: int = 0  # tokens of a text that was begun; it is read to its end
    _lengths: deque[int] = field(default_factory=deque)

    @property
    def saying(self) -> bool:
        return bool(self._say) or self._tail > 0

    @property
    def waiting_to_be_read(self) -> int:
        return len(self._read)

    def say(self, plan: list[int]) -> None:
        self._say, self._tail = deque(plan), math.ceil(_TAIL_S / self.frame_s) if plan else 0

    def stop_saying(self) -> None:
        self._say.clear()
        self._tail = 0

    def clear(self) -> None:
        self.stop_saying()
        self._read.clear()
        self._lengths.clear()
        self._reading = 0

    def said(self) -> None:
        """The last word has died away: no more padding is needed."""
        if not self._say:
            self._tail = 0

    def read(self, plan: list[int]) -> None:
        self._read.extend(plan)
        self._lengths.append(len(plan))

    def next(self, *, agent_quiet: bool, silenced: bool) -> Forced:
        """How the next frame is stepped. ``silenced``: it must be quiet, whatever else."""
        begins = not self._reading and self._lengths and not self.saying and (agent_quiet or silenced)
        if begins:
            self._reading = self._lengths.popleft()
        if self._reading:
            self._reading -= 1
            return Forced(Kind.READ, self._read.popleft(), silent=True)
        if not silenced and self._say:
            return Forced(Kind.SAY, self._say.popleft())
        if not silenced and self._tail:
            self._tail -= 1
            return Forced(Kind.TAIL, self.pad)
        return SILENT if silenced else FREE


@dataclass(slots=True)
class Silence:
    """Forced silence, from the moment an agent was made to yield until the user has finished."""

    min_s: float
    after_user_s: float
    max_s: float
    _held: bool = False
    _for_s: float = 0.0

    @property
    def holds(self) -> bool:
        return self._held

    def begin(self) -> None:
        self._held, self._for_s = True, 0.0

    def end(self) -> None:
        self._held = False

    def pass_frame(self, frame_s: float, user_quiet_s: float) -> None:
        """A frame goes by, after which the user has been quiet for ``user_quiet_s``."""
        if not self._held:
            return
        self._for_s += frame_s
        finished = self._for_s >= self.min_s - 1e-9 and user_quiet_s >= self.after_user_s - 1e-9
        self._held = not finished and self._for_s < self.max_s - 1e-9
