"""Texts that come in parts: questions with seen words, statements with two images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from triptych.core.errors import DataError
from triptych.data.collate.base import TextCache
from triptych.data.collate.finetuning import append_words
from triptych.serving.inputs import as_list, broadcast
from triptych.text import Tokenizer


def append_seen_words(
    tokenizer: Tokenizer,
    ids: Sequence[Sequence[int]],
    ocr_words: str | Sequence[str] | None,
    object_words: str | Sequence[str] | None,
    max_tokens: int,
) -> list[list[int]]:
    """Append what OCR and a detector found to questions, as training does.

    Args:
        tokenizer: The model's words.
        ids: `[CLS] question [SEP]` of each question.
        ocr_words: One text a question, one for all, or None.
        object_words: Likewise.
        max_tokens: Longest result.

    Raises:
        DataError: Not as many texts as questions.
    """
    encode = TextCache(tokenizer, max_tokens)
    columns = []
    for name, words in (("ocr_words", ocr_words), ("object_words", object_words)):
        column = [words or ""] * len(ids) if words is None or isinstance(words, str) else words
        if len(column) != len(ids):
            raise DataError(f"{len(ids)} questions and {len(column)} {name}: give one for each")
        columns.append(column)
    return [
        append_words(encode, np.array(question), words, max_tokens).tolist()
        for question, *words in zip(ids, *columns, strict=True)
    ]


def pair_up(
    first: Any, second: Any, statements: Any
) -> tuple[list[Any], list[Any], list[str], bool]:
    """Bring first images, second images and statements to one length.

    Returns:
        The three, one row a statement, and whether one of each was given.

    Raises:
        DataError: Lists of unequal length.
    """
    firsts, one_first = as_list(first)
    seconds, one_second = as_list(second)
    if len(firsts) != len(seconds):
        raise DataError(
            f"{len(firsts)} first images and {len(seconds)} second ones: give one of each a pair"
        )
    pairs = list(range(len(firsts)))
    chosen: Any = 0 if one_first and one_second else pairs
    rows, said, single = broadcast(chosen, statements, "statement")
    return [firsts[row] for row in rows], [seconds[row] for row in rows], said, single
