"""Retrieval in both directions: ranks, recall at k, and a second stage that re-ranks pairs.

A candidate is right if it belongs to the query: one of several captions of an image, an image that
occurs twice, or a caption that two images share. A query's rank is the number of wrong candidates
that score at least as high as its best right one, so a tie with a wrong candidate counts
against it and scores that are all equal find nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from triptych.core.errors import ConfigError, DataError

ScoreRows = Callable[[int, int], Tensor]
"""From the first and the one after the last query to their (rows, C) scores."""
PairScores = Callable[[Tensor, Tensor], Tensor]
"""From (n,) image numbers and (n,) caption numbers to (n,) scores of the pairs."""
Combine = Literal["itm", "itm+itc"]
ROWS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Relevance:
    """Which candidates are right for each query, as rows of different lengths.

    Attributes:
        offsets: (Q + 1,) int64; query q has `candidates[offsets[q] : offsets[q + 1]]`.
        candidates: Numbers of the right candidates, row after row, int64.
        num_candidates: C, all candidates.
    """

    offsets: Tensor
    candidates: Tensor
    num_candidates: int

    @property
    def num_queries(self) -> int:
        """Q, the number of queries."""
        return len(self.offsets) - 1

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[int]], num_candidates: int) -> Relevance:
        """Build from a list of right candidates for each query.

        Raises:
            DataError: A query has no right candidate, or there is no query.
        """
        if not rows:
            raise DataError("retrieval needs at least one query; the split is empty")
        for query, row in enumerate(rows):
            if not row:
                raise DataError(f"query {query} has no right candidate; exclude it")
        offsets = torch.zeros(len(rows) + 1, dtype=torch.int64)
        offsets[1:] = torch.tensor([len(row) for row in rows]).cumsum(0)
        flat = torch.tensor([number for row in rows for number in row], dtype=torch.int64)
        return cls(offsets, flat, num_candidates)

    @classmethod
    def from_matrix(cls, relevant: Tensor) -> Relevance:
        """Build from a (Q, C) bool matrix, True = right.

        Raises:
            DataError: A query has no right candidate.
        """
        rows = [row.nonzero().flatten().tolist() for row in relevant]
        return cls.from_lists(rows, relevant.shape[1])

    def rows(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Return (row counted from `start`, candidate) of every right pair of queries."""
        lengths = self.offsets[start + 1 : end + 1] - self.offsets[start:end]
        rows = torch.repeat_interleave(torch.arange(end - start), lengths)
        return rows, self.candidates[self.offsets[start] : self.offsets[end]]


def first_of_equal(keys: Sequence[Hashable]) -> Tensor:
    """Return (M,) int64, for each of M keys the number of the first one that equals it."""
    first: dict[Hashable, int] = {}
    return torch.tensor([first.setdefault(key, number) for number, key in enumerate(keys)])


def relevance_from_keys(
    image_keys: Sequence[Hashable], caption_keys: Sequence[Hashable]
) -> tuple[list[int], Relevance, Relevance]:
    """Group the records of a split: one image candidate a distinct image, one caption a record.

    A caption is right for an image if any record joins that image with a caption of the same key.

    Args:
        image_keys: (M,) key of each record's image; records of one image share it.
        caption_keys: (M,) key of each record's caption; equal captions share it.

    Returns:
        The first record of each of the N distinct images; the relevance of captions for images
        (N queries, M candidates); the relevance of images for captions (M queries, N candidates).

    Raises:
        DataError: The lengths differ or there is no record.
    """
    if len(image_keys) != len(caption_keys):
        raise DataError(f"{len(image_keys)} image keys but {len(caption_keys)} caption keys")
    image_number: dict[Hashable, int] = {}
    first_record: list[int] = []
    images_of_caption: dict[Hashable, set[int]] = {}
    for record, (image, caption) in enumerate(zip(image_keys, caption_keys, strict=True)):
        if image not in image_number:
            image_number[image] = len(first_record)
            first_record.append(record)
        images_of_caption.setdefault(caption, set()).add(image_number[image])
    caption_rows = [sorted(images_of_caption[caption]) for caption in caption_keys]
    image_rows: list[list[int]] = [[] for _ in first_record]
    for record, images in enumerate(caption_rows):
        for image_index in images:
            image_rows[image_index].append(record)
    return (
        first_record,
        Relevance.from_lists(image_rows, len(caption_rows)),
        Relevance.from_lists(caption_rows, len(first_record)),
    )


def fold_parts(image_keys: Sequence[Hashable], folds: int) -> list[list[int]]:
    """Divide samples into parts of equally many distinct images, in their order.

    Args:
        image_keys: (M,) key of each sample's image.
        folds: How many parts; no more than there are images.

    Returns:
        The samples of each part, which holds all samples of its images.
    """
    numbers: dict[Hashable, int] = {}
    for key in image_keys:
        numbers.setdefault(key, len(numbers))
    folds = min(folds, len(numbers))
    parts: list[list[int]] = [[] for _ in range(folds)]
    for sample, key in enumerate(image_keys):
        parts[numbers[key] * folds // len(numbers)].append(sample)
    return parts


def ranks_from_rows(
    score_rows: ScoreRows, relevance: Relevance, *, rows_at_once: int = ROWS_AT_ONCE
) -> Tensor:
    """Rank the queries with only `rows_at_once` rows of the score matrix in memory.

    Args:
        score_rows: Gives the (rows, C) scores of a range of queries; higher is better.
        relevance: The right candidates of each query.
        rows_at_once: Queries in one block.

    Returns:
        (Q,) int64 ranks from 0.

    Raises:
        DataError: A score is NaN, or the scores do not fit the relevance.
    """
    ranks = torch.empty(relevance.num_queries, dtype=torch.int64)
    for start in range(0, relevance.num_queries, rows_at_once):
        end = min(start + rows_at_once, relevance.num_queries)
        scores = score_rows(start, end)
        _check_scores(scores, start, end, relevance)
        rows, columns = (part.to(scores.device) for part in relevance.rows(start, end))
        right = scores[rows, columns]
        best = scores.new_full((end - start,), -torch.inf)
        best = best.scatter_reduce(0, rows, right, "amax")
        ahead = (scores >= best[:, None]).sum(1)
        ahead -= torch.zeros_like(ahead).index_add_(0, rows, (right >= best[rows]).to(ahead.dtype))
        ranks[start:end] = ahead.cpu()
    return ranks


def _check_scores(scores: Tensor, start: int, end: int, relevance: Relevance) -> None:
    """Raise DataError if scores have the wrong shape or hold NaN."""
    expected = (end - start, relevance.num_candidates)
    if tuple(scores.shape) != expected:
        raise DataError(
            f"scores of queries {start} to {end} have shape {tuple(scores.shape)}, "
            f"expected {expected}"
        )
    if bool(scores.isnan().any()):
        raise DataError(f"a score of queries {start} to {end} is NaN; the model has diverged")


def compute_ranks(scores: Tensor, relevance: Relevance) -> Tensor:
    """Rank the queries of a whole matrix.

    Args:
        scores: (Q, C) float, higher is better.
        relevance: The right candidates of each query.

    Returns:
        (Q,) int64 ranks from 0.

    Raises:
        DataError: A score is NaN, or the shapes do not fit.
    """
    return ranks_from_rows(lambda start, end: scores[start:end], relevance)


def compute_embedding_ranks(
    queries: Tensor,
    candidates: Tensor,
    relevance: Relevance,
    *,
    rows_at_once: int = ROWS_AT_ONCE,
) -> Tensor:
    """Rank queries by the inner product of embeddings; the Q x C matrix never exists as a whole.

    Args:
        queries: (Q, E) float embeddings.
        candidates: (C, E) float embeddings.
        relevance: The right candidates of each query.
        rows_at_once: Queries in one block.

    Returns:
        (Q,) int64 ranks from 0.

    Raises:
        DataError: An embedding is NaN, or the shapes do not fit.
    """
    columns = candidates.t()
    return ranks_from_rows(
        lambda start, end: queries[start:end] @ columns, relevance, rows_at_once=rows_at_once
    )


def hits_at(ranks: Tensor, k: int) -> Tensor:
    """Return (Q,) float64, 1 where a right candidate is among the first k; its mean is R@k."""
    return (ranks < k).to(torch.float64)


def recall_at(ranks: Tensor, k: int) -> float:
    """Return the share of queries with a right candidate among the first k."""
    return float(hits_at(ranks, k).mean())


def median_rank(ranks: Tensor) -> float:
    """Return the median rank, counted from 1 as papers do; of two middle ranks their mean."""
    return float(ranks.to(torch.float64).quantile(0.5)) + 1.0


def mean_rank(ranks: Tensor) -> float:
    """Return the mean rank, counted from 1."""
    return float(ranks.to(torch.float64).mean()) + 1.0


@dataclass(frozen=True, slots=True)
class Shortlist:
    """The first candidates of each query with their scores.

    Attributes:
        candidates: (Q, K) int64 numbers of the candidates.
        scores: (Q, K) float.
        num_candidates: C, all candidates that the list was drawn from.
    """

    candidates: Tensor
    scores: Tensor
    num_candidates: int


def shortlist(
    queries: Tensor, candidates: Tensor, topk: int, *, rows_at_once: int = ROWS_AT_ONCE
) -> Shortlist:
    """Return the `topk` candidates with the largest inner products, block by block.

    Args:
        queries: (Q, E) float embeddings.
        candidates: (C, E) float embeddings.
        topk: Length of each list; no more than C are given.
        rows_at_once: Queries in one block.

    Raises:
        ConfigError: `topk` is not positive.
    """
    columns = candidates.t()
    blocks = [
        shortlist_from_scores(queries[start : start + rows_at_once] @ columns, topk)
        for start in range(0, len(queries), rows_at_once)
    ]
    return Shortlist(
        torch.cat([block.candidates for block in blocks]),
        torch.cat([block.scores for block in blocks]),
        len(candidates),
    )


def shortlist_from_scores(scores: Tensor, topk: int) -> Shortlist:
    """Return the `topk` candidates with the largest scores of a (Q, C) matrix.

    Raises:
        ConfigError: `topk` is not positive.
    """
    if topk < 1:
        raise ConfigError(f"topk = {topk}; rerank at least one candidate")
    values, numbers = scores.topk(min(topk, scores.shape[1]), dim=1)
    return Shortlist(numbers, values, scores.shape[1])


def rerank(
    captions_of: Shortlist,
    images_of: Shortlist,
    score_pairs: PairScores,
    combine: Combine = "itm",
    *,
    caption_numbers: Tensor | None = None,
    pairs_at_once: int = 256,
) -> tuple[Shortlist, Shortlist]:
    """Score the pairs of both directions' shortlists by image-text matching, each pair once.

    A pair that both an image's and a caption's list holds is scored once, and so are captions that
    are equal. Pairs are asked for image by image, so that what depends on the image alone can be
    computed once.

    Args:
        captions_of: The first captions of each of the N images.
        images_of: The first images of each of the M captions.
        score_pairs: Scores pairs, given image and caption numbers; higher is a better match.
        combine: "itm" takes the new score alone (ALBEF, mPLUG); "itm+itc" adds the similarity of
            the first stage (BLIP).
        caption_numbers: (M,) int64, for each caption the number of the first one that equals it;
            None if all differ.
        pairs_at_once: Pairs in one call of `score_pairs`.

    Returns:
        Both lists with new scores, their candidates in the old order.

    Raises:
        ConfigError: `combine` is unknown.
    """
    if combine not in ("itm", "itm+itc"):
        raise ConfigError(f"combine = {combine!r}; choose 'itm' or 'itm+itc'")
    num_captions = captions_of.num_candidates
    same = torch.arange(num_captions) if caption_numbers is None else caption_numbers.cpu()
    captions, images = captions_of.candidates.cpu(), images_of.candidates.cpu()
    by_image = torch.arange(len(captions))[:, None] * num_captions + same[captions]
    by_caption = images * num_captions + same[torch.arange(len(images))][:, None]
    pairs = torch.unique(torch.cat([by_image.flatten(), by_caption.flatten()]))  # in order
    scores = torch.cat(
        [
            score_pairs(part // num_captions, part % num_captions).cpu()
            for part in pairs.split(pairs_at_once)  # type: ignore[no-untyped-call]
        ]
    )
    found = []
    for first, asked in ((captions_of, by_image), (images_of, by_caption)):
        matching = scores[torch.searchsorted(pairs, asked)]
        if combine == "itm+itc":
            matching = matching + first.scores.cpu()
        found.append(Shortlist(first.candidates.cpu(), matching, first.num_candidates))
    return found[0], found[1]


def compute_shortlist_ranks(listed: Shortlist, relevance: Relevance) -> Tensor:
    """Rank queries by a shortlist; candidates outside it come last and tie.

    Args:
        listed: Candidates of each query with their final scores.
        relevance: The right candidates of each query.

    Returns:
        (Q,) int64 ranks from 0. A query none of whose right candidates is listed has all wrong
        candidates ahead of it.

    Raises:
        DataError: A score is NaN, or the shapes do not fit.
    """

    def rows(start: int, end: int) -> Tensor:
        block = listed.scores.new_full((end - start, listed.num_candidates), -torch.inf)
        return block.scatter(1, listed.candidates[start:end], listed.scores[start:end])

    return ranks_from_rows(rows, relevance)
