"""Closed lists of classes and answers, drawn from the user's own data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from triptych.core.errors import DataError
from triptych.data.records import Record

Normalise = Callable[[str], str]


def class_names(records: Iterable[Record]) -> tuple[str, ...]:
    """Return the distinct labels of records, as text: numbers by value, then names by alphabet.

    Raises:
        DataError: Fewer than two records differ in their label.
    """
    labels = {record.label for record in records if record.label is not None}
    names = sorted({str(label) for label in labels}, key=_order)
    if len(names) < 2:
        found = f"all records have the label {names[0]!r}" if names else "no record has a label"
        raise DataError(
            f"a classifier needs two classes or more, and {found}: give each record its class in "
            "the field label"
        )
    return tuple(names)


def answer_vocabulary(
    records: Iterable[Record], *, min_count: int, max_answers: int, normalise: Normalise
) -> tuple[str, ...]:
    """Return the answers that a classifier chooses from, the most frequent first.

    Each question counts once, for its most frequent answer (of several the first), as the 3,129
    answers of VQAv2's classifiers were chosen; other answers of the same people only earn scores.

    Args:
        records: Training records.
        min_count: Questions that an answer must be the most frequent of (VQAv2: 9).
        max_answers: Most answers kept; of equally frequent ones the alphabet decides.
        normalise: Makes answers that mean the same equal.

    Raises:
        DataError: There are no answers, or none is frequent enough.
    """
    counts: Counter[str] = Counter()
    for record in records:
        given = [text for text in map(normalise, record.answers) if text]
        if given:
            counts[Counter(given).most_common(1)[0][0]] += 1
    if not counts:
        raise DataError(
            "no question has an answer: give each record its answers in the field answers"
        )
    kept = sorted(
        (text for text in counts if counts[text] >= min_count), key=lambda t: (-counts[t], t)
    )
    if not kept:
        text, count = counts.most_common(1)[0]
        raise DataError(
            f"no answer belongs to {min_count} questions or more (the most frequent, {text!r}, has "
            f"{count}): lower task.min_answer_count, or give more data"
        )
    return tuple(kept[:max_answers])


def answer_scores(answers: Sequence[str]) -> dict[str, float]:
    """Return what each distinct answer would score in VQA's accuracy.

    Each human answer is left out once, and m matches among the others score min(1, m / 3). Of ten
    answers one given by 1, 2, 3 or 4 people scores 0.3, 0.6, 0.9 or 1. With n < 4 answers n - 1
    matches are enough for 1, and a single answer scores 1.

    Args:
        answers: The human answers, normalised.
    """
    others = len(answers) - 1
    enough = min(3, others)
    scores = {}
    for answer, matches in Counter(answers).items():
        if others == 0:
            scores[answer] = 1.0
            continue
        left_out_match = matches * min(1.0, (matches - 1) / enough)
        left_out_other = (len(answers) - matches) * min(1.0, matches / enough)
        scores[answer] = (left_out_match + left_out_other) / len(answers)
    return scores


def _order(name: str) -> tuple[int, float, str]:
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name
