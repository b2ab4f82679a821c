"""The text stream: with a tokenizer trained on the spot, byte pieces and all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_tiny import TEXT_CARD, tiny_tokenizer

from duplex.errors import ConfigError, WeightsCorruptError, WeightsMissingError
from duplex.thinker_talker.native.checkpoints.text_tokens import ByteTokens, SentencePieceTokens, TextStream


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "text.model"
    path.write_bytes(tiny_tokenizer())
    return path


@pytest.fixture(scope="session")
def tokens(tokenizer_path: Path) -> SentencePieceTokens:
    return SentencePieceTokens(tokenizer_path, TEXT_CARD)


def read(tokens: SentencePieceTokens | ByteTokens, ids: list[int]) -> str:
    stream = TextStream(tokens)
    return "".join([*map(stream.push, ids), stream.flush()])


def test_text_survives_the_way_through_the_stream(tokens: SentencePieceTokens) -> None:
    ids = tokens.encode("the quick fox")
    assert read(tokens, ids) == " the quick fox"
    assert "".join(map(tokens.decode_piece, ids)) == " the quick fox"
    assert tokens.decode_piece(ids[0]).startswith(" ")
    assert not set(ids) & {0, 1, 2, 3}


def test_padding_says_nothing_and_breaks_nothing(tokens: SentencePieceTokens) -> None:
    assert tokens.padding == (3, 0)
    assert [tokens.decode_piece(token) for token in (0, 1, 2, 3, -1, TEXT_CARD, 10**6)] == [""] * 7
    spaced = [item for token in tokens.encode("fox café") for item in (3, 0, token, 3)]
    assert read(tokens, spaced) == " fox café"


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cf", "Zl", "Zp", "Zs")), max_size=20))
def test_any_character_comes_back_from_bytes(tokens: SentencePieceTokens, text: str) -> None:
    import unicodedata

    assert read(ByteTokens(TEXT_CARD), ByteTokens(TEXT_CARD).encode(text)) == text
    plain = unicodedata.normalize("NFKC", text)
    if plain == text and "▁" not in text:  # SentencePiece normalises; what is normal comes back as it was
        assert read(tokens, tokens.encode(text)).strip() == text.strip()


def test_half_a_character_waits_and_a_broken_one_is_replaced(tokens: SentencePieceTokens) -> None:
    def byte(value: int) -> int:
        return next(token for token in range(TEXT_CARD) if tokens.piece_byte(token) == value)

    stream = TextStream(tokens)
    assert [stream.push(byte(value)) for value in "é".encode()] == ["", "é"]
    assert stream.push(byte(0xC3)) == ""
    word = tokens.encode("fox")[0]
    assert stream.push(word) == "\ufffd" + tokens.decode_piece(word)
    assert stream.push(byte(0xC3)) == ""
    assert stream.flush() == "\ufffd"
    assert stream.push(byte(0x41)) == "A"
    assert stream.push(byte(0xFF)) == "\ufffd"


@given(st.lists(st.integers(-5, TEXT_CARD + 5), max_size=40))
def test_any_tokens_make_text(tokens: SentencePieceTokens, ids: list[int]) -> None:
    for vocabulary in (tokens, ByteTokens(TEXT_CARD)):
        read(vocabulary, ids).encode("utf-8")


def test_a_vocabulary_of_another_size_is_told(tokenizer_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has 320 pieces, and the model's text_card is 32000"):
        SentencePieceTokens(tokenizer_path, 32_000)
    with pytest.raises(ConfigError, match="no room for bytes"):
        ByteTokens(200)
    with pytest.raises(ConfigError, match="outside the vocabulary"):
        SentencePieceTokens(tokenizer_path, TEXT_CARD, padding=(TEXT_CARD, 0))


def test_a_tokenizer_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissingError, match=r"text\.model"):
        SentencePieceTokens(tmp_path / "text.model", TEXT_CARD)
    (tmp_path / "text.model").write_bytes(b"not a tokenizer")
    with pytest.raises(WeightsCorruptError, match="no SentencePiece model"):
        SentencePieceTokens(tmp_path / "text.model", TEXT_CARD)
