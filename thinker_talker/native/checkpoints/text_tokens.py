"""The text stream's vocabulary: text to tokens that can be forced, tokens to text as they come.

The family's tokenizers are SentencePiece models. Two of their ids mean something else in the stream: *padding*, most
frames' token, and *end of padding*, which announces that a word begins with the next one. The latter is id 0, which
SentencePiece calls unknown, so a character the tokenizer does not know is left out rather than forced as that.

:class:`ByteTokens` is for random weights, which come without a tokenizer: one token a byte.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from duplex.errors import ConfigError, MissingDependencyError, WeightsCorruptError, WeightsMissingError

SPACE = "▁"
_MOST_BYTES = 64 << 20  # of a tokenizer file; the family's have half a megabyte


class TextVocabulary(Protocol):
    """``padding``: the token between two words, and the one that announces a word."""

    @property
    def padding(self) -> tuple[int, int]: ...

    def encode(self, text: str) -> list[int]:
        """The tokens to force for ``text``, one a frame, without padding."""
        ...

    def decode_piece(self, token: int) -> str:
        """A token's text; a space first if it begins a word. Empty for what is no text, and for a byte that is only
        part of a character: :class:`TextStream` puts those together."""
        ...

    def piece_byte(self, token: int) -> int | None:
        """The byte that the token stands for, if it does."""
        ...


class SentencePieceTokens:
    """A ``.model`` file. ``text_card``: what the model has; it must be the tokenizer's size.

    Raises ``WeightsMissingError``, ``WeightsCorruptError``, ``ConfigError`` (another vocabulary),
    ``MissingDependencyError``.
    """

    def __init__(self, path: Path, text_card: int, padding: tuple[int, int] = (3, 0)) -> None:
        processor = _processor(path)
        size = int(processor.vocab_size())
        if size != text_card:
            raise ConfigError(
                f"{path} has {size} pieces, and the model's text_card is {text_card}. "
                "Use the tokenizer the model was published with, or its config.json."
            )
        if max(padding) >= size:
            raise ConfigError(f"The padding tokens {padding} are outside the vocabulary of {size} pieces.")
        self.padding = padding
        self._processor = processor
        self._texts: list[str] = []
        self._bytes: list[int | None] = []
        for token in range(size):
            piece = str(processor.id_to_piece(token))
            byte = int(piece[3:-1], 16) if processor.is_byte(token) else None
            silent = token in padding or processor.is_control(token) or processor.is_unknown(token)
            self._bytes.append(byte)
            self._texts.append("" if silent else _ascii(byte) if byte is not None else piece.replace(SPACE, " "))

    def __len__(self) -> int:
        return len(self._texts)

    def encode(self, text: str) -> list[int]:
        tokens: Sequence[int] = self._processor.encode(text)
        return [token for token in tokens if token not in self.padding and not self._processor.is_unknown(token)]

    def decode_piece(self, token: int) -> str:
        return self._texts[token] if 0 <= token < len(self._texts) else ""

    def piece_byte(self, token: int) -> int | None:
        return self._bytes[token] if 0 <= token < len(self._bytes) else None


class ByteTokens:
    """Tokens 4 … 259 are the bytes of UTF-8; the others say nothing. Raises ``ConfigError`` below 260 tokens."""

    _FIRST = 4  # as in the family: 0 … 3 are end of padding, beginning, end, padding

    def __init__(self, text_card: int, padding: tuple[int, int] = (3, 0)) -> None:
        if text_card < self._FIRST + 256:
            raise ConfigError(f"text_card = {text_card} has no room for bytes; it needs {self._FIRST + 256} or more.")
        self.padding = padding

    def encode(self, text: str) -> list[int]:
        return [self._FIRST + byte for byte in text.encode("utf-8")]

    def decode_piece(self, token: int) -> str:
        byte = self.piece_byte(token)
        return "" if byte is None else _ascii(byte)

    def piece_byte(self, token: int) -> int | None:
        byte = token - self._FIRST
        return byte if 0 <= byte < 256 else None


class TextStream:
    """One call's tokens to text as it comes. Bytes of a character wait for each other; those that never become one are
    replaced by U+FFFD."""

    def __init__(self, tokens: TextVocabulary) -> None:
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that is whole with this token. Padding between the bytes of a character does not break it up."""
        if token in self._tokens.padding:
            return ""
        byte = self._tokens.piece_byte(token)
        if byte is None:
            return self.flush() + self._tokens.decode_piece(token)
        return self._decoder.decode(bytes([byte]))

    def flush(self) -> str:
        """What waits for more, as it is: at the end, or when it cannot go on."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def _ascii(byte: int) -> str:
    return chr(byte) if byte == 0x0A or 0x20 <= byte < 0x7F else ""


def _processor(path: Path) -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise MissingDependencyError("sentencepiece", "moshi") from error
    if not path.is_file():
        raise WeightsMissingError(f"There is no {path}, the text tokenizer. Put the file the model came with there.")
    if path.stat().st_size > _MOST_BYTES:
        raise WeightsCorruptError(
            f"{path} has {path.stat().st_size} bytes; no text tokenizer of this family is so big."
        )
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    except (RuntimeError, OSError, ValueError) as error:
        raise WeightsCorruptError(f"{path} is no SentencePiece model ({error}). Fetch it again.") from error
