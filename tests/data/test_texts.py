"""Long texts in pieces: nothing is lost, and no piece is longer than the model reads."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.data.records import Record
from triptych.data.skips import SkipKind, Skipped
from triptych.data.texts import (
    cut_text,
    cut_texts,
    estimate_tokens,
    pack_sentences,
    split_sentences,
    token_counter,
)
from triptych.text import Tokenizer


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Mr. J. Smith went. He ran.", ["Mr. J. Smith went.", "He ran."]),
        ('He said "yes." Then (No.) 3.5 m.', ['He said "yes."', "Then (No.)", "3.5 m."]),
        ("about 3.5 m. high", ["about 3.5 m. high"]),
        ("  one.\n\nTwo. ", ["one.", "Two."]),
        ("", []),
    ],
)
def test_sentences(text, sentences):
    found = list(split_sentences(text))
    assert found == sentences
    assert " ".join(found).split() == text.split()


def one(word):
    return 1


@given(st.text(alphabet="ab .!?A1\n\t\u00e9\u6771", max_size=200), st.integers(3, 12))
def test_pieces_have_the_words_of_the_text(text, max_tokens):
    pieces = cut_text(text, max_tokens)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    for piece in pieces:
        sizes = [estimate_tokens(word) for word in piece.split()]
        assert sum(sizes) <= max_tokens - 2 or (len(sizes) == 1 and len(piece) == 1)
    assert [word for piece in cut_text(text, max_tokens, one) for word in piece.split()] == (
        text.split()
    )


def test_whole_sentences_stay_together_where_they_have_room():
    text = "One two three. Four five. Six seven eight nine ten eleven. End"
    assert cut_text(text, 7, one) == [
        "One two three. Four five.",
        "Six seven eight nine ten",
        "eleven. End",
    ]
    assert cut_text(text, 100, one) == [text]
    assert cut_text("", 7, one) == [] and cut_text(" \n ", 7, one) == []


def test_a_word_without_room_is_cut_between_letters():
    pieces = cut_text("x " + "abc" * 10 + " y", 4, lambda word: -(-len(word) // 3))
    assert "".join(pieces).replace(" ", "") == "x" + "abc" * 10 + "y"
    assert all(sum(-(-len(w) // 3) for w in piece.split()) <= 2 for piece in pieces)


def test_sentences_are_taken_one_at_a_time():
    taken = []

    def sentences():
        for number in range(1000):
            taken.append(number)
            yield f"a b c{number}."

    assert next(pack_sentences(sentences(), 12, one)) == "a b c0. a b c1. a b c2."
    assert len(taken) == 4


@pytest.mark.parametrize(
    ("word", "count"),
    [("a", 1), ("house", 1), ("houses", 2), ("don't", 3), ("(yes)", 3), ("1234567", 2),
     ("\u6771\u4eac", 2), ("", 0)],
)  # fmt: skip
def test_the_estimate(word, count):
    assert estimate_tokens(word) == count


def test_a_named_tokenizer_counts_exactly(tmp_path):
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcde"), rng.integers(1, 9))) for _ in range(400)]
    tokenizer = Tokenizer.train([" ".join(words)], 300, num_unused=0)
    tokenizer.save(tmp_path)
    count = token_counter(str(tmp_path))
    text = " ".join(f"{word.upper()}, {word}." for word in words)
    for piece in cut_text(text, 20, count):
        ids, _ = tokenizer.encode_words(piece.lower())
        assert len(ids) <= 18
        assert sum(count(word) for word in piece.split()) == len(ids)


def test_only_long_texts_alone_are_cut():
    skipped = Skipped(SkipKind.BAD_RECORD, "a:1", "bad")
    entries = [
        Record(record_id="0", text="a  b"),
        Record(record_id="1", text="a b c d e f", domain="x"),  # more letters than tokens
        Record(record_id="2", text="a b c d e f", label="x"),
        Record(record_id="3", caption="a b c d e f"),
        skipped,
    ]
    found = list(cut_texts(entries, 6, None))
    assert found[0] == entries[0] and found[3:] == entries[2:]
    assert found[1:3] == [
        Record(record_id="1#0", text="a b c d", domain="x"),
        Record(record_id="1#1", text="e f", domain="x"),
    ]
