import json
import math
from pathlib import Path

import numpy as np
import pytest

from triptych.core.errors import DataError
from triptych.evaluation import captions, ptb

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "data" / "golden" / "caption_metrics.json").read_text()
)
ITEMS = GOLDEN["items"]


@pytest.fixture(scope="module")
def tokenized():
    candidates = [ptb.tokenize(item["candidate"]) for item in ITEMS]
    return candidates, [[ptb.tokenize(text) for text in item["references"]] for item in ITEMS]


def test_bleu_equals_pycocoevalcap(tokenized):
    scores = captions.compute_bleu(*tokenized)
    np.testing.assert_allclose([s.corpus for s in scores], GOLDEN["corpus"]["bleu"], atol=1e-6)
    items = np.stack([s.items for s in scores], axis=1)
    np.testing.assert_allclose(items, [item["bleu"] for item in ITEMS], atol=1e-6)


@pytest.mark.parametrize("metric", ["rouge_l", "cider"])
def test_rouge_and_cider_equal_pycocoevalcap(tokenized, metric):
    compute = {"rouge_l": captions.compute_rouge_l, "cider": captions.compute_cider}[metric]
    scores = compute(*tokenized)
    assert scores.corpus == pytest.approx(GOLDEN["corpus"][metric], abs=1e-6)
    np.testing.assert_allclose(scores.items, [item[metric] for item in ITEMS], atol=1e-6)


def test_bleu_of_a_hand_worked_pair():
    # 4 of 5 words and 2 of 4 bigrams match; the reference closest in length to 5 has 6 words.
    candidates, references = ["a red cat sat down"] * 2, [["a red dog sat down now", "x"]] * 2
    scores = captions.compute_bleu(candidates, references)
    penalty = math.exp(1 - 6 / 5)
    assert scores[0].corpus == pytest.approx(penalty * 4 / 5, abs=1e-6)
    assert scores[1].corpus == pytest.approx(penalty * math.sqrt(4 / 5 * 2 / 4), abs=1e-6)


def test_bleu_prefers_the_shorter_of_two_equally_close_references():
    counts = captions.count_bleu(["a b c"] * 2, [["a b c d", "a b"], ["a", "a b c d"]])
    assert counts[:, -1].tolist() == [2, 4]


def test_rouge_l_of_a_hand_worked_pair():
    # Common subsequence "a cat down" of 3; precision 3/4, recall 3/5, beta 1.2.
    expected = (1 + 1.44) * 0.75 * 0.6 / (0.6 + 1.44 * 0.75)
    assert captions.rouge_l("a cat lies down", ["a big cat sat down"]) == pytest.approx(expected)
    assert captions.rouge_l("dog", ["a cat"]) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_longest_common_subsequence_equals_the_table(seed):
    rng = np.random.default_rng(seed)
    first, second = (list(map(str, rng.integers(4, size=n))) for n in (70, 50))
    table = np.zeros((71, 51), dtype=int)
    for i in range(70):
        for j in range(50):
            equal = first[i] == second[j]
            table[i + 1, j + 1] = (
                table[i, j] + 1 if equal else max(table[i, j + 1], table[i + 1, j])
            )
    assert captions.longest_common_subsequence(first, second) == table[70, 50]


def test_cider_of_a_perfect_caption_is_ten():
    text = "one two three four five"
    scores = captions.compute_cider([text, "a b c d e"], [[text], ["p q r s t"]])
    np.testing.assert_allclose(scores.items, [10.0, 0.0], atol=1e-12)


def test_cider_of_a_hand_worked_pair():
    # Two documents; "a" is in both (weight 0), b, c, d in one (weight log 2).
    # Unigrams: candidate {b}, reference {b, c}: cosine 1 / sqrt 2. Bigrams: "a b" common to both,
    # reference also has "b c": 1 / sqrt 2. No longer n-gram. Bigram counts 1 and 2: delta 1.
    frequencies = captions.DocumentFrequencies.from_references([["a b c"], ["a d"]])
    scorer = captions.CiderScorer(frequencies)
    expected = 10 * (2 / math.sqrt(2)) / 4 * math.exp(-1 / 72)
    assert scorer.score(["a b"], ["a b c"])[0] == pytest.approx(expected)


def test_cider_clips_a_repeated_word_and_punishes_length():
    frequencies = captions.DocumentFrequencies.from_references([["b"], ["c"]])
    scorer = captions.CiderScorer(frequencies)
    # Weights log 2 and 3 log 2, clipped product over norms: 1 / 3; two bigrams more: delta 2.
    expected = 10 / 3 / 4 * math.exp(-4 / 72)
    assert scorer.score(["b b b"], ["b"])[0] == pytest.approx(expected)


def test_cider_with_given_frequencies_equals_cider_of_the_same_documents(tokenized):
    candidates, references = tokenized
    scorer = captions.CiderScorer(captions.DocumentFrequencies.from_references(references))
    several = scorer.score(candidates[:3], references[0])
    assert several[0] == pytest.approx(ITEMS[0]["cider"], abs=1e-6)
    assert several.shape == (3,)


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        (["a"], [], "1 candidates but 0"),
        ([], [], "no caption"),
        (["a"], [[]], "candidate 0 has no reference"),
    ],
)
def test_wrong_input_is_named(candidates, references, message):
    for compute in (captions.compute_bleu, captions.compute_rouge_l, captions.compute_cider):
        with pytest.raises(DataError, match=message):
            compute(candidates, references)
