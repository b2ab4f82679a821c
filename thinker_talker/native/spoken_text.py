"""A native model's inner monologue, token by token, as text deltas and as words with their place in the sound.

The family writes one text token a frame: padding most of the time, and a word's pieces in the frames where the word
begins to sound. So a word's start is known to the frame, its end is not: it is estimated from the word's length, and
marked so. A word is handed out as soon as it is whole, which is a frame after its last piece.
"""

from __future__ import annotations

from duplex.agent import Word
from duplex.frames import SAMPLE_RATE_HZ
from duplex.thinker_talker.native.checkpoints.text_tokens import TextStream, TextVocabulary

_SECONDS_PER_CHAR, _SECONDS_PER_WORD = 0.06, 0.1  # about 160 words of English a minute


def spoken_s(word: str) -> float:
    """About how long a word takes to say."""
    return _SECONDS_PER_WORD + _SECONDS_PER_CHAR * len(word)


class SpokenText:
    """The text of one reply at a time."""

    def __init__(self, tokens: TextVocabulary, frame_samples: int, lead_frames: int) -> None:
        self._tokens, self._frame_samples = tokens, frame_samples
        self._lead = lead_frames * frame_samples
        self.begin(0)

    def begin(self, preroll_samples: int) -> None:
        """A reply begins; its first frame's sound lies behind ``preroll_samples``."""
        self._stream = TextStream(self._tokens)
        self._at = preroll_samples  # where the sound of the next frame begins in the reply
        self._anything = False
        self._word = ""
        self._word_start = 0
        self._last_end = 0
        self._open = False  # pieces without a space belong to the word

    def push(self, token: int | None) -> tuple[str, tuple[Word, ...]]:
        """One frame's token (None: it had none). Returns the text it adds, and a word that is whole now."""
        start = self._at + self._lead
        self._at += self._frame_samples
        if token is None or token in self._tokens.padding:
            return "", self._whole(None)
        piece = self._stream.push(token)
        if not piece:
            return "", ()  # no text, or part of a character
        if not self._anything:
            piece = " " + piece.lstrip()
        words: tuple[Word, ...] = ()
        if piece[0].isspace():
            words = self._whole(start)
            self._word, self._word_start, self._open = piece.strip(), start, True
        elif self._open:
            self._word += piece
        delta = piece if self._anything else piece.lstrip()
        self._anything = self._anything or bool(delta)
        return delta, words

    def end(self) -> tuple[Word, ...]:
        """The reply is over; the word that was being said."""
        return self._whole(None)

    def _whole(self, next_start: int | None) -> tuple[Word, ...]:
        self._open = False
        word, self._word = self._word, ""
        if not word:
            return ()
        end = next_start if next_start is not None else self._word_start + round(spoken_s(word) * SAMPLE_RATE_HZ)
        self._last_end = max(end, self._last_end)  # a word is never heard before one that was said earlier
        return (Word(word, self._word_start, self._last_end, estimated=True),)
