"""Caption metrics BLEU, ROUGE-L and CIDEr, equal to pycocoevalcap 1.2 in every constant.

All functions take tokenised captions (`ptb.tokenize`), words separated by spaces.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from triptych.core.errors import DataError

Array = npt.NDArray[np.float64]
Ngram = tuple[str, ...]
MAX_N = 4
ROUGE_BETA = 1.2
"""Weight of recall in ROUGE-L: F = (1 + b^2) P R / (R + b^2 P)."""


@dataclass(frozen=True, slots=True)
class CaptionScores:
    """One metric over a set of captions.

    Attributes:
        corpus: The number for the whole set. For BLEU this is not the mean over items.
        items: (num_items,) numbers of the single captions.
    """

    corpus: float
    items: Array


def count_ngrams(caption: str, max_n: int = MAX_N) -> Counter[Ngram]:
    """Count the n-grams of a tokenised caption for n = 1 to `max_n`."""
    words = caption.split()
    return Counter(
        tuple(words[start : start + n])
        for n in range(1, max_n + 1)
        for start in range(len(words) - n + 1)
    )


def _check(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raise DataError unless every candidate has at least one reference."""
    if len(candidates) != len(references):
        raise DataError(
            f"{len(candidates)} candidates but {len(references)} reference lists; give one list "
            "of references for each candidate"
        )
    if not candidates:
        raise DataError("there is no caption to score; evaluate at least one")
    for position, captions in enumerate(references):
        if not captions:
            raise DataError(f"candidate {position} has no reference caption; exclude it")


def _score_each(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    score: Callable[[str, Sequence[str]], float],
) -> CaptionScores:
    """Score each caption against its references; the corpus's number is the mean."""
    _check(candidates, references)
    items = np.array([score(c, r) for c, r in zip(candidates, references, strict=True)])
    return CaptionScores(float(items.mean()), items)


def count_bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
    """Count what BLEU needs; a corpus's counts are the sums over its captions.

    Args:
        candidates: N tokenised captions.
        references: For each candidate its tokenised references.

    Returns:
        (N, 10): matched n-grams for n = 1..4 (clipped to the largest count in one reference), all
        n-grams of the candidate for n = 1..4, its length, and the length of the reference that is
        closest in length (the shorter one of two).

    Raises:
        DataError: A candidate has no references.
    """
    _check(candidates, references)
    rows = np.zeros((len(candidates), 2 * MAX_N + 2))
    for row, candidate, captions in zip(rows, candidates, references, strict=True):
        most: Counter[Ngram] = Counter()
        for caption in captions:
            most |= count_ngrams(caption)
        for ngram, count in count_ngrams(candidate).items():
            row[len(ngram) - 1] += min(count, most[ngram])
        length = len(candidate.split())
        lengths = [len(caption.split()) for caption in captions]
        row[MAX_N : 2 * MAX_N] = np.maximum(0, length - np.arange(MAX_N))
        row[-2] = length
        row[-1] = min((abs(other - length), other) for other in lengths)[1]
    return rows


def bleu_from_counts(counts: Array) -> Array:
    """Return BLEU-1..4 from counts or sums of counts (Papineni et al., 2002).

    Args:
        counts: (..., 10) as `count_bleu` gives.

    Returns:
        (..., 4) BLEU-n in [0, 1]: the geometric mean of the precisions up to n, times the brevity
        penalty. pycocoevalcap's 1e-15 over 1e-9 stand in for zero counts.
    """
    tiny, small = 1e-15, 1e-9
    precision = (counts[..., :MAX_N] + tiny) / (counts[..., MAX_N : 2 * MAX_N] + small)
    bleu = np.cumprod(precision, axis=-1) ** (1.0 / np.arange(1, MAX_N + 1))
    ratio = (counts[..., -2] + tiny) / (counts[..., -1] + small)
    penalty = np.exp(np.minimum(0.0, 1.0 - 1.0 / ratio))
    return np.asarray(bleu * penalty[..., None])


def compute_bleu(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> list[CaptionScores]:
    """Return BLEU-1, BLEU-2, BLEU-3 and BLEU-4.

    Args:
        candidates: N tokenised captions.
        references: For each candidate its tokenised references.

    Returns:
        Four scores; their corpus numbers come from summed counts.

    Raises:
        DataError: A candidate has no references.
    """
    counts = count_bleu(candidates, references)
    corpus, items = bleu_from_counts(counts.sum(0)), bleu_from_counts(counts)
    return [CaptionScores(float(corpus[n]), items[:, n]) for n in range(MAX_N)]


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence of two word lists.

    One bit stands for each word of `first`, so a row of the usual table is one addition
    (Hyyro, 2004).
    """
    positions: dict[str, int] = {}
    for index, word in enumerate(first):
        positions[word] = positions.get(word, 0) | (1 << index)
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        matched = row & positions.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(first) - row.bit_count()


def rouge_l(candidate: str, references: Sequence[str]) -> float:
    """Return ROUGE-L of one caption (Lin, 2004) with beta 1.2.

    Precision and recall are each the best over the references, which need not be the same one.
    """
    words = candidate.split(" ")
    precision = recall = 0.0
    for reference in references:
        other = reference.split(" ")
        common = longest_common_subsequence(words, other)
        precision = max(precision, common / len(words))
        recall = max(recall, common / len(other))
    if precision == 0.0 or recall == 0.0:
        return 0.0
    weight = ROUGE_BETA**2
    return (1 + weight) * precision * recall / (recall + weight * precision)


def compute_rouge_l(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> CaptionScores:
    """Return ROUGE-L of each caption and the mean.

    Args:
        candidates: N tokenised captions.
        references: For each candidate its tokenised references.

    Raises:
        DataError: A candidate has no references.
    """
    return _score_each(candidates, references, rouge_l)


@dataclass(frozen=True, slots=True)
class DocumentFrequencies:
    """In how many documents each n-gram occurs; a document is all references of one image.

    Attributes:
        counts: Documents that hold the n-gram, for n = 1..4.
        num_documents: All documents.
    """

    counts: dict[Ngram, int]
    num_documents: int

    @classmethod
    def from_references(cls, references: Iterable[Sequence[str]]) -> DocumentFrequencies:
        """Count over a split, such as the training captions (for SCST) or the evaluated ones.

        Args:
            references: For each image its tokenised captions.
        """
        counts: Counter[Ngram] = Counter()
        num_documents = 0
        for captions in references:
            counts.update({ngram for caption in captions for ngram in count_ngrams(caption)})
            num_documents += 1
        return cls(dict(counts), num_documents)


@dataclass(frozen=True, slots=True)
class _Vector:
    """A caption as tf-idf weights, the squared norm of each n, and the number of its bigrams."""

    weights: dict[Ngram, float]
    norms: list[float]
    length: int


class CiderScorer:
    """CIDEr-D (Vedantam et al., 2015) as pycocoevalcap's `Cider` computes it.

    Differences from the paper, all pycocoevalcap's: no stemming, and the length penalty compares
    the numbers of bigrams. With frequencies of a training split this is the reward of SCST.
    """

    def __init__(self, document_frequencies: DocumentFrequencies, sigma: float = 6.0) -> None:
        """Prepare the inverse document frequencies.

        Args:
            document_frequencies: Counts and number of documents. With one document every weight
                is log 1 = 0, and so is every score.
            sigma: Width in words of the length penalty (the paper's 6).
        """
        if document_frequencies.num_documents < 1:
            raise DataError("CIDEr needs document frequencies of at least one image; none given")
        self.sigma = sigma
        self._log_documents = math.log(document_frequencies.num_documents)
        self._idf = {
            ngram: self._log_documents - math.log(count)
            for ngram, count in document_frequencies.counts.items()
        }

    def score(self, candidates: Sequence[str], references: Sequence[str]) -> Array:
        """Score several captions of one image against the same references.

        Args:
            candidates: K tokenised captions.
            references: The image's tokenised references, at least one.

        Returns:
            (K,) scores; 10 is a candidate equal to each reference.

        Raises:
            DataError: There is no reference.
        """
        if not references:
            raise DataError("an image has no reference caption; exclude it")
        targets = [self._vector(reference) for reference in references]
        scores = [
            sum(self._similarity(vector, target) for target in targets) / len(targets)
            for vector in map(self._vector, candidates)
        ]
        return 10.0 * np.array(scores, dtype=np.float64)

    def score_each(
        self, candidates: Sequence[str], references: Sequence[Sequence[str]]
    ) -> CaptionScores:
        """Score one caption for each of N images, like `compute_cider`."""
        return _score_each(candidates, references, lambda c, r: float(self.score([c], r)[0]))

    def _vector(self, caption: str) -> _Vector:
        """Weigh the n-grams of a caption; an unknown n-gram counts as one of one document."""
        weights, norms, length = {}, [0.0] * MAX_N, 0
        for ngram, count in count_ngrams(caption).items():
            weight = count * self._idf.get(ngram, self._log_documents)
            weights[ngram] = weight
            norms[len(ngram) - 1] += weight * weight
            if len(ngram) == 2:
                length += count
        return _Vector(weights, norms, length)

    def _similarity(self, candidate: _Vector, target: _Vector) -> float:
        """Return the mean over n of the clipped cosine, times the length penalty."""
        products = [0.0] * MAX_N
        for ngram in candidate.weights.keys() & target.weights.keys():
            wanted = target.weights[ngram]
            products[len(ngram) - 1] += min(candidate.weights[ngram], wanted) * wanted
        total = 0.0
        for product, first, second in zip(products, candidate.norms, target.norms, strict=True):
            if first > 0.0 and second > 0.0:
                total += product / math.sqrt(first * second)
        difference = candidate.length - target.length
        return total / MAX_N * math.exp(-(difference**2) / (2 * self.sigma**2))


def compute_cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Return CIDEr with document frequencies from the evaluated references themselves.

    Args:
        candidates: N tokenised captions.
        references: For each candidate its tokenised references.

    Raises:
        DataError: A candidate has no references.
    """
    _check(candidates, references)
    scorer = CiderScorer(DocumentFrequencies.from_references(references))
    return scorer.score_each(candidates, references)
