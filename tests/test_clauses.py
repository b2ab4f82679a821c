"""The clause splitter: what it says, where it cuts, and that chunking cannot change either."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duplex.thinker_talker.clauses import ClauseLimits, ClauseSplitter, boundary_after, clean, split

# Text made of everything the machines treat specially, so that chunk borders fall inside all of it.
_PIECES = st.sampled_from(
    ["Hello", " ", "  ", "\n", ".", ",", "!", "...", "…", "3.14", "Dr.", "e.g.", "p.m.", "**", "_", "`", "#", "# ",
     "- ", "---", "1.", "[", "]", "](", "http://a.b/c", ")", "<", "<|", "|>", "<|im_end|>", "<think>", "</think>",
     "é", "日本", "🍎", "👩‍🔬", "\u200d", "°", "a_b", "U.S.", " and ", " the ", "\\", "|", "~", ">", "'", '"', "—"]
)  # fmt: skip
_TEXTS = st.one_of(st.lists(_PIECES, max_size=40).map("".join), st.text(max_size=120))


def _chunked(text: str, cuts: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(c % (len(text) + 1) for c in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@given(_TEXTS, st.lists(st.integers(0, 10_000), max_size=30))
def test_chunking_changes_neither_the_text_nor_the_clauses(text: str, cuts: list[int]) -> None:
    splitter = ClauseSplitter()
    clauses = [c for chunk in _chunked(text, cuts) for c in splitter.feed(chunk)]
    clauses += splitter.flush()
    assert "".join(clauses) == clean(text)
    assert clauses == split(text)


@given(_TEXTS)
def test_cleaned_text_is_speakable(text: str) -> None:
    cleaned = clean(text)
    assert cleaned == cleaned.strip()
    assert not set(cleaned) & set("*`~[]|\\\n\t")
    assert "  " not in cleaned
    assert "<|im_end|>" not in cleaned


@given(_TEXTS)
def test_a_splitter_is_reusable_after_flush(text: str) -> None:
    splitter = ClauseSplitter()
    first = [*splitter.feed(text), *splitter.flush()]
    assert [*splitter.feed(text), *splitter.flush()] == first


@pytest.mark.parametrize(
    ("raw", "spoken"),
    [
        ("**Bold** and *soft* and `code`", "Bold and soft and code"),
        ("Great 😀 stuff 👩‍🔬!", "Great stuff!"),
        ("Keycap 1️⃣ done", "Keycap 1 done"),
        ("It is 20 °C.", "It is 20 °C."),
        ("Done.<|im_end|>", "Done."),
        ("Done.<|im_e", "Done."),
        ("2 < 3 and 3 <| 4", "2 < 3 and 3"),
        ("<think>hm, 2+2</think>Four.", "Four."),
        ("See [the page](https://a.b/c_d?e=1).", "See the page."),
        ("snake_case stays, _this_ does not", "snake_case stays, this does not"),
        ("# Title\n\nText", "Title, Text"),
        ("Fruit:\n- apples\n* pears\n", "Fruit: apples, pears"),
        ("-5 degrees", "-5 degrees"),
        ("a\n---\nb", "a, b"),
        ("  lead  and   trail  ", "lead and trail"),
        ("", ""),
    ],
)
def test_clean(raw: str, spoken: str) -> None:
    assert clean(raw) == spoken


@pytest.mark.parametrize(
    "text",
    [
        "It is 3.14 or so.",
        "Dr. Smith is in.",
        "Ask J. R. Smith.",
        "Fruit, e.g. apples.",
        "Well... maybe.",
        "Visit https://example.org/a.b?c=d. ",
        "At 5 p.m. on Monday.",
        "In the U.S. it is.",
        "1. Apples.",
        "It costs 1,000,000 now.",
    ],
)
def test_no_cut_inside(text: str) -> None:
    limits = ClauseLimits(first_words=99, first_max_words=99, first_soft_chars=12, hard_chars=1)
    assert split(text, limits) == [text.strip()]


@pytest.mark.parametrize(
    ("text", "clauses"),
    [
        ("Yes. It is.", ["Yes. ", "It is."]),
        ("Sure, I can do that.", ["Sure, ", "I can do that."]),
        ('He said "Go." Then he left.', ['He said "Go." ', "Then he left."]),
        ("We left at 5 p.m. Then we ate dinner.", ["We left at 5 p.m. ", "Then we ate dinner."]),
        ("So did I. Then it rained.", ["So did I. ", "Then it rained."]),
        ("It ended in 1990. Then came peace.", ["It ended in 1990. ", "Then came peace."]),
    ],
)
def test_cuts(text: str, clauses: list[str]) -> None:
    assert split(text) == clauses


def test_a_sentence_goes_as_soon_as_the_next_word_begins() -> None:
    splitter = ClauseSplitter()
    assert splitter.feed("Paris is nice.") == []  # "nice.com" is still possible
    assert splitter.feed(" ") == []
    assert splitter.feed("I") == ["Paris is nice. "]


def test_a_long_first_clause_is_cut_before_a_breath() -> None:
    text = "The tall old tower beside the river was built in 1889"
    first = split(text)[0]
    assert len(first.split()) <= ClauseLimits().first_max_words + 3
    assert first.split()[-1] not in ("the", "a", "of", "was")


def test_later_commas_wait_for_some_length() -> None:
    clauses = split("Yes. Red, green, blue, and a rather long list of other colours, which goes on.")
    assert clauses[1].startswith("Red, green, blue, and")


def test_endless_text_without_punctuation_is_cut() -> None:
    limits = ClauseLimits()
    clauses = split("word " * 400, limits)
    assert max(map(len, clauses)) <= limits.max_chars + 10


def test_boundary_kinds() -> None:
    assert boundary_after("Mr. ", "S") == ""
    assert boundary_after("etc. ", "T") == "sentence"
    assert boundary_after("etc. ", "a") == ""
    assert boundary_after("Hello; ", "a") == "clause"
    assert boundary_after("", "a") == ""
