import math

import numpy as np
import pytest

from triptych.core.errors import DataError
from triptych.evaluation import bootstrap


def test_interval_of_a_share_is_near_the_binomial_one():
    values = [1.0] * 300 + [0.0] * 700
    low, high = bootstrap.bootstrap_interval(values)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)  # normal approximation
    assert low == pytest.approx(0.3 - half, abs=0.004)
    assert high == pytest.approx(0.3 + half, abs=0.004)


def test_interval_depends_on_the_seed_only():
    values = np.random.default_rng(0).random(50)
    assert bootstrap.bootstrap_interval(values) == bootstrap.bootstrap_interval(values, seed=0)
    assert bootstrap.bootstrap_interval(values) != bootstrap.bootstrap_interval(values, seed=1)


def test_blocks_of_resamples_do_not_change_the_interval(monkeypatch):
    values = np.random.default_rng(0).random(50)
    whole = bootstrap.bootstrap_interval(values)
    monkeypatch.setattr(bootstrap, "_CELLS_AT_ONCE", 170)
    assert bootstrap.bootstrap_interval(values) == pytest.approx(whole, rel=1e-12)


def test_constant_values_have_no_width():
    assert bootstrap.bootstrap_interval([0.25] * 8) == (0.25, 0.25)


def test_ratio_of_sums():
    # Every item has the ratio 2, so has every resample.
    items = np.array([[2.0, 1.0], [4.0, 2.0], [10.0, 5.0]])
    assert bootstrap.bootstrap_sums(items, lambda s: s[:, 0] / s[:, 1]) == (2.0, 2.0)


def test_mean_value_carries_its_protocol():
    value = bootstrap.mean_value("vqa", [0.0, 1.0, 1.0, 1.0], "A test.")
    assert (value.name, value.value, value.num_items) == ("vqa", 0.75, 4)
    assert 0.0 <= value.low < 0.75 < value.high <= 1.0
    assert value.protocol == (
        "A test. Interval: 95 % percentile bootstrap over items, 1000 resamples."
    )


def test_ratio_value_draws_items_and_not_their_parts():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 5, 400)
    right = counts * (rng.random(400) < 0.5)  # all parts of an item are right, or none
    value = bootstrap.ratio_value("objects", right, counts, "A test.")
    assert value.value == pytest.approx(right.sum() / counts.sum())
    assert value.num_items == 400
    shares = np.repeat(right / counts, counts)
    low, high = bootstrap.bootstrap_interval(shares)
    assert value.high - value.low > 1.4 * (high - low)
    spread = math.sqrt(((right - value.value * counts) ** 2).sum()) / counts.sum()
    assert value.high - value.low == pytest.approx(2 * 1.96 * spread, rel=0.1)


def test_no_item_is_an_error():
    with pytest.raises(DataError, match="no item"):
        bootstrap.bootstrap_interval([])


def test_mean_of_means_weights_groups_equally():
    first, second = [1.0, 0.0], [1.0] * 98
    value = bootstrap.mean_of_means("both", [first, second], "Made up.")
    assert (value.value, value.num_items) == (0.75, 100)
    assert (value.low, value.high) == (0.5, 1.0)  # of two draws from 0 and 1, a quarter is 0
    with pytest.raises(DataError, match="no item"):
        bootstrap.mean_of_means("both", [first, []], "Made up.")


def test_mean_of_means_agrees_with_a_numpy_bootstrap():
    rng = np.random.default_rng(5)
    groups = [rng.random(40), rng.random(60)]
    drawn = [
        np.mean([rng.choice(group, len(group)).mean() for group in groups]) for _ in range(2000)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    value = bootstrap.mean_of_means("both", groups, "Made up.")
    assert value.low == pytest.approx(low, abs=0.02)
    assert value.high == pytest.approx(high, abs=0.02)
