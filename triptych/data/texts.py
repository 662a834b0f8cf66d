"""Long texts as pieces of a model's length, cut where a sentence ends or else between words.

Tokens are counted by the tokenizer where one is named, and else estimated: a word is a token for
every five letters begun, and each punctuation mark is one. That is mostly more than a vocabulary of
30,000 pieces makes of English; of rarer words it may be less, and then training cuts the end off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from triptych.data.records import Record, present_fields

T = TypeVar("T")
CountTokens = Callable[[str], int]
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-Z0-9])")
_ABBREVIATION = re.compile(r"(?:^|[\s(])(?:[A-Z]|Mrs?|Ms|Dr|Prof|St|Sr|Jr|vs|No|approx)\.$")
_PARTS = re.compile(r"\w+|[^\w\s]")
LETTERS_PER_TOKEN = 5
SPECIAL_TOKENS = 2  # [CLS] and [SEP], around each piece
MAX_KNOWN_WORDS = 2**18
TEXT_FIELDS = {"record_id", "text", "domain"}


def split_sentences(text: str) -> Iterator[str]:
    """Yield a text's sentences, without the space between them, which is all that is lost.

    A sentence ends at a full stop, question mark or exclamation mark before a space and a capital
    letter or a digit, but not after an initial or a title (`J.`, `Dr.`).
    """
    start = 0
    for found in _SENTENCE_END.finditer(text):
        sentence = text[start : found.end()].strip()
        if _ABBREVIATION.search(sentence) is None:
            yield sentence
            start = found.end()
    last = text[start:].strip()
    if last:
        yield last


@lru_cache(maxsize=MAX_KNOWN_WORDS)
def estimate_tokens(word: str) -> int:
    """Return about how many tokens a word has at most; ideographs are one each."""
    return sum(
        -(-len(part) // LETTERS_PER_TOKEN) if part.isascii() else len(part)
        for part in _PARTS.findall(word)
    )


def token_counter(tokenizer: str | None) -> CountTokens:
    """Return what counts a word's tokens: a stored tokenizer, or the estimate without one.

    Raises:
        DataError: The file is no tokenizer.
    """
    if tokenizer is None:
        return estimate_tokens
    from triptych.text import Tokenizer  # here: it imports torch

    known = Tokenizer.load(Path(tokenizer))

    @lru_cache(maxsize=MAX_KNOWN_WORDS)
    def count(word: str) -> int:
        return len(known.encode_words(word.lower())[0])

    return count


def cut_text(text: str, max_tokens: int, count: CountTokens = estimate_tokens) -> list[str]:
    """Return the pieces of a text; together they have its words, in order.

    Args:
        text: Any text; the white space in it is not kept.
        max_tokens: Most tokens of a piece, [CLS] and [SEP] counted.
        count: Tokens of a word.
    """
    return list(pack_sentences(split_sentences(text), max_tokens, count))


def pack_sentences(
    sentences: Iterable[str], max_tokens: int, count: CountTokens = estimate_tokens
) -> Iterator[str]:
    """Yield pieces of as many whole sentences as have room; a longer sentence is cut at words.

    A word that has no room in a piece of its own is cut between letters.
    """
    room = max_tokens - SPECIAL_TOKENS
    piece: list[str] = []
    used = 0
    for sentence in sentences:
        words = [part for word in sentence.split() for part in _fitting(word, room, count)]
        sizes = [count(word) for word in words]
        if piece and used + sum(sizes) > room:
            yield " ".join(piece)
            piece, used = [], 0
        for word, size in zip(words, sizes, strict=True):
            if piece and used + size > room:
                yield " ".join(piece)
                piece, used = [], 0
            piece.append(word)
            used += size
    if piece:
        yield " ".join(piece)


def _fitting(word: str, room: int, count: CountTokens) -> Iterator[str]:
    if count(word) <= room or len(word) < 2:
        yield word
        return
    half = len(word) // 2
    yield from _fitting(word[:half], room, count)
    yield from _fitting(word[half:], room, count)


def cut_texts(entries: Iterable[T], max_tokens: int, tokenizer: str | None) -> Iterator[T | Record]:
    """Yield what a reader yields, with each long text alone as several records.

    A record that has more than a text stays as it is, and so does a text that is not too long. The
    pieces of text `7` have the ids `7#0`, `7#1` ...
    """
    count = token_counter(tokenizer)
    for entry in entries:
        if not isinstance(entry, Record) or entry.text is None:
            yield entry
            continue
        is_short = entry.text.isascii() and len(entry.text) <= max_tokens - SPECIAL_TOKENS
        if is_short or not TEXT_FIELDS.issuperset(present_fields(entry)):
            yield entry
            continue
        pieces = cut_text(entry.text, max_tokens, count)
        if len(pieces) < 2:
            yield entry
            continue
        for number, piece in enumerate(pieces):
            yield replace(entry, record_id=f"{entry.record_id}#{number}", text=piece)
