"""Perplexity against a NumPy loop, and by hand."""

import math

import numpy as np
import pytest

from triptych.core.errors import CapabilityError, DataError
from triptych.core.outputs import Predictions
from triptych.evaluation.perplexity import PerplexityMetric, compute_perplexity


def loop(nll, tokens):
    total, count = 0.0, 0
    for loss, number in zip(nll, tokens, strict=True):
        total += loss
        count += number
    return float(np.exp(total / count))


def metric_of(nll, tokens, expected=None):
    metric = PerplexityMetric(expected or len(nll), "perplexity", "Of texts.")
    half = len(nll) // 2
    for part in (slice(half, None), slice(0, half)):  # in any order, in parts
        index = list(range(len(nll)))[part]
        metric.update(
            Predictions(index=index, scores={"nll": np.array(nll)[part], "tokens": tokens[part]})
        )
    return metric


@pytest.mark.parametrize("seed", range(3))
def test_random_texts_equal_the_loop(seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 30, 40).tolist()
    nll = (rng.random(40) * 5 * tokens).tolist()
    assert compute_perplexity(nll, tokens) == pytest.approx(loop(nll, tokens), rel=1e-12)
    (value,) = metric_of(nll, tokens).compute()
    assert value.value == pytest.approx(loop(nll, tokens), rel=1e-12)
    assert value.low < value.value < value.high and value.num_items == 40
    assert f"{sum(tokens)} tokens; lower is better" in value.protocol


def test_a_uniform_model_is_as_surprised_as_its_vocabulary_is_large():
    tokens = [3, 1, 7]
    assert compute_perplexity([n * math.log(50) for n in tokens], tokens) == pytest.approx(50)


def test_ties_leave_no_interval():
    (value,) = metric_of([2.0, 2.0, 2.0], [2, 2, 2]).compute()
    assert value.value == value.low == value.high == pytest.approx(math.e)


def test_long_texts_weigh_more():
    assert compute_perplexity([1.0, 0.0], [1, 99]) == pytest.approx(math.exp(0.01))


def test_a_text_without_a_token_counts_nothing():
    assert compute_perplexity([1.0, 0.0], [1, 0]) == pytest.approx(math.e)


@pytest.mark.parametrize(
    ("nll", "tokens", "match"),
    [
        ([], [], "no token"),
        ([0.0], [0], "no token"),
        ([math.nan], [1], "finite"),
        ([-1.0], [1], "at least 0"),
    ],
)
def test_what_has_no_perplexity(nll, tokens, match):
    with pytest.raises(DataError, match=match):
        compute_perplexity(nll, tokens)


def test_unreadable_texts_are_told_and_other_predictions_refused():
    assert (
        "2 of 5 samples skipped" in metric_of([1.0, 2.0, 3.0], [1, 2, 3], 5).compute()[0].protocol
    )
    with pytest.raises(CapabilityError, match="no likelihood"):
        PerplexityMetric(1, "perplexity", "").update(Predictions(index=[0], texts=["a"]))
    with pytest.raises(DataError, match="no prediction"):
        PerplexityMetric(1, "perplexity", "").compute()
