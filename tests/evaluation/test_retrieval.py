import numpy as np
import pytest
import torch

from triptych.core.errors import ConfigError, DataError
from triptych.evaluation import retrieval
from triptych.evaluation.retrieval import Relevance

SCORES = torch.tensor([[0.9, 0.1, 0.8], [0.7, 0.2, 0.3], [0.5, 0.6, 0.4]])
DIAGONAL = Relevance.from_lists([[0], [1], [2]], 3)


def slow_ranks(scores, relevant):
    ranks = []
    for row, right in zip(scores, relevant, strict=True):
        best = max(row[right])
        ranks.append(sum(1 for s, r in zip(row, right, strict=True) if not r and s >= best))
    return ranks


def test_ranks_of_a_hand_worked_matrix():
    ranks = retrieval.compute_ranks(SCORES, DIAGONAL)
    assert ranks.tolist() == [0, 2, 2]
    assert retrieval.recall_at(ranks, 1) == pytest.approx(1 / 3)
    assert retrieval.recall_at(ranks, 2) == pytest.approx(1 / 3)
    assert retrieval.recall_at(ranks, 3) == 1.0
    assert retrieval.median_rank(ranks) == 3.0
    assert retrieval.mean_rank(ranks) == pytest.approx(7 / 3)


def test_the_best_of_several_right_candidates_counts():
    relevance = Relevance.from_lists([[1, 2], [1], [0, 1, 2]], 3)
    assert retrieval.compute_ranks(SCORES, relevance).tolist() == [1, 2, 0]


def test_equal_scores_find_nothing():
    assert retrieval.compute_ranks(torch.zeros(3, 3), DIAGONAL).tolist() == [2, 2, 2]


def test_ranks_equal_a_loop_in_blocks_of_any_size():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 20, size=(23, 31)).astype(np.float32)  # many ties
    relevant = rng.random((23, 31)) < 0.15
    relevant[np.arange(23), rng.integers(31, size=23)] = True
    relevance = Relevance.from_matrix(torch.from_numpy(relevant))
    expected = slow_ranks(scores, relevant)
    table = torch.from_numpy(scores)
    for rows in (1, 7, 23, 100):
        ranks = retrieval.ranks_from_rows(lambda a, b: table[a:b], relevance, rows_at_once=rows)
        assert ranks.tolist() == expected


def test_embedding_ranks_equal_the_ranks_of_the_matrix():
    generator = torch.Generator().manual_seed(1)
    queries, candidates = (torch.randn(n, 8, generator=generator) for n in (11, 17))
    relevance = Relevance.from_lists([[i, i + 5] for i in range(11)], 17)
    ranks = retrieval.compute_embedding_ranks(queries, candidates, relevance, rows_at_once=4)
    scores = torch.einsum("qe,ce->qc", queries, candidates)
    assert ranks.tolist() == retrieval.compute_ranks(scores, relevance).tolist()


def test_keys_join_duplicate_images_and_captions():
    # Image p has captions x and y, image q has x (shared) and z.
    first, captions_of, images_of = retrieval.relevance_from_keys(list("ppqq"), list("xyxz"))
    assert first == [0, 2]

    def lists(relevance):
        rows, columns = relevance.rows(0, relevance.num_queries)
        return [columns[rows == q].tolist() for q in range(relevance.num_queries)]

    assert lists(captions_of) == [[0, 1, 2], [0, 2, 3]]
    assert lists(images_of) == [[0, 1], [0], [0, 1], [1]]
    assert (captions_of.num_candidates, images_of.num_candidates) == (4, 2)


def both_lists(topk):
    return (
        retrieval.shortlist_from_scores(SCORES, topk),
        retrieval.shortlist_from_scores(SCORES.T.contiguous(), topk),
    )


def test_rerank_by_matching_alone_and_with_similarity():
    matching = torch.tensor([[0.0, 9.0, 1.0], [0.0, 0.45, 0.0], [0.2, 0.0, 0.1]])
    seen = []

    def score(image, caption):
        seen.extend(zip(image.tolist(), caption.tolist(), strict=True))
        return matching[image, caption]

    captions, images = retrieval.rerank(*both_lists(2), score)
    # First two captions of the images: {0, 2}, {0, 2}, {1, 0}; first two images of the captions:
    # {0, 1}, {2, 1}, {0, 2}. (0, 0), (0, 2), (1, 0) and (2, 1) are on both sides' lists.
    assert seen == [(0, 0), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    # Caption 1 of image 1 and caption 2 of image 2 are not listed, so both wrong candidates are
    # ahead of them; image 0 prefers caption 2 now.
    assert retrieval.compute_shortlist_ranks(captions, DIAGONAL).tolist() == [1, 2, 2]
    # Caption 0: images 0 and 1 tie, image 2 is not listed. Caption 1: image 1 wins. Caption 2:
    # image 0 wins.
    assert retrieval.compute_shortlist_ranks(images, DIAGONAL).tolist() == [1, 0, 1]
    captions, _ = retrieval.rerank(*both_lists(3), score, "itm+itc")
    # Sums: [0.9, 9.1, 1.8], [0.7, 0.65, 0.3], [0.7, 0.6, 0.5].
    assert retrieval.compute_shortlist_ranks(captions, DIAGONAL).tolist() == [2, 1, 2]


def test_equal_captions_are_scored_once():
    asked = []

    def score(image, caption):
        asked.extend(zip(image.tolist(), caption.tolist(), strict=True))
        return image * 10.0 + caption

    numbers = torch.tensor([0, 1, 0])  # the third caption equals the first
    captions, images = retrieval.rerank(*both_lists(3), score, caption_numbers=numbers)
    assert asked == [(i, c) for i in range(3) for c in (0, 1)]
    for row, listed in enumerate(captions.candidates.tolist()):
        assert captions.scores[row].tolist() == [row * 10.0 + (c % 2) for c in listed]
    for row, listed in enumerate(images.candidates.tolist()):
        assert images.scores[row].tolist() == [i * 10.0 + (row % 2) for i in listed]


def test_rerank_equals_two_loops_over_random_lists():
    generator = torch.Generator().manual_seed(3)
    sim, matching = (torch.randn(8, 20, generator=generator) for _ in range(2))
    first = retrieval.shortlist_from_scores(sim, 5), retrieval.shortlist_from_scores(sim.T, 3)
    calls = []

    def score(image, caption):
        calls.append(len(image))
        return matching[image, caption]

    captions, images = retrieval.rerank(*first, score, pairs_at_once=7)
    for image, listed in enumerate(captions.candidates.tolist()):
        assert captions.scores[image].tolist() == [matching[image, c] for c in listed]
    for caption, listed in enumerate(images.candidates.tolist()):
        assert images.scores[caption].tolist() == [matching[i, caption] for i in listed]
    assert max(calls) == 7
    assert sum(calls) < 8 * 5 + 20 * 3


def test_shortlist_of_embeddings_equals_that_of_the_matrix():
    generator = torch.Generator().manual_seed(2)
    queries, candidates = (torch.randn(n, 6, generator=generator) for n in (9, 13))
    blocks = retrieval.shortlist(queries, candidates, 4, rows_at_once=2)
    order = np.argsort(-(queries @ candidates.T).numpy(), axis=1)[:, :4]
    assert blocks.candidates.tolist() == order.tolist()
    assert blocks.num_candidates == 13


def test_reranking_every_candidate_by_its_similarity_changes_nothing():
    captions, images = retrieval.rerank(*both_lists(3), lambda i, c: SCORES[i, c])
    for listed, scores in ((captions, SCORES), (images, SCORES.T)):
        ranks = retrieval.compute_shortlist_ranks(listed, DIAGONAL)
        assert ranks.tolist() == retrieval.compute_ranks(scores, DIAGONAL).tolist()


def test_wrong_input_is_named():
    with pytest.raises(DataError, match="query 1 has no right candidate"):
        Relevance.from_lists([[0], []], 2)
    with pytest.raises(DataError, match="NaN"):
        retrieval.compute_ranks(SCORES * torch.nan, DIAGONAL)
    with pytest.raises(DataError, match=r"shape \(3, 2\)"):
        retrieval.compute_ranks(SCORES[:, :2], DIAGONAL)
    with pytest.raises(DataError, match="2 image keys but 1"):
        retrieval.relevance_from_keys("ab", "a")
    with pytest.raises(ConfigError, match="topk = 0"):
        both_lists(0)
    with pytest.raises(ConfigError, match="choose 'itm'"):
        retrieval.rerank(*both_lists(1), lambda i, c: SCORES[i, c], "itc")
