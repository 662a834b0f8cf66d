"""Correlations against SciPy's numbers and definitions written as loops."""

import numpy as np
import pytest

from triptych.core.errors import DataError
from triptych.evaluation.classification import average_ranks, compute_pearson, compute_spearman

FIRST = [1, 2, 2, 3, 5, 4.5, 0]
SECOND = [1.1, 1.9, 2.5, 2.5, 4.0, 5.0, 0.3]


def test_equal_values_share_their_mean_rank():
    assert average_ranks([10, 30, 20, 20, 20, 5]).tolist() == [2, 6, 4, 4, 4, 1]


def test_both_are_those_of_scipy():
    """scipy.stats 1.17.1: pearsonr and spearmanr."""
    assert compute_pearson(FIRST, SECOND) == pytest.approx(0.9529723590571407, abs=1e-12)
    assert compute_spearman(FIRST, SECOND) == pytest.approx(0.9363636363636364, abs=1e-12)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (3.0, -7.0), (1e-6, 1e6)])
def test_scale_and_shift_change_nothing_and_a_sign_turns_it(scale, shift):
    moved = [scale * x + shift for x in SECOND]
    assert compute_pearson(FIRST, moved) == pytest.approx(compute_pearson(FIRST, SECOND), abs=1e-4)
    turned = compute_pearson(FIRST, [-x for x in moved])
    assert turned == pytest.approx(-compute_pearson(FIRST, moved), abs=1e-12)


def test_spearman_sees_order_alone():
    assert compute_spearman(np.exp(FIRST), SECOND) == compute_spearman(FIRST, SECOND)
    assert compute_spearman([1, 2, 3], [1, 8, 9]) == pytest.approx(1.0)


def test_a_constant_has_no_correlation():
    assert compute_pearson([1, 2, 3], [5, 5, 5]) == 0.0
    assert compute_spearman([0.1, 0.1, 0.1], [1, 2, 3]) == 0.0


def test_unusable_numbers_are_named():
    with pytest.raises(DataError, match="2 predictions but 3"):
        compute_pearson([1, 2], [1, 2, 3])
    with pytest.raises(DataError, match="two items or more"):
        compute_spearman([1], [1])
    with pytest.raises(DataError, match="not finite"):
        compute_spearman([1, float("nan")], [1, 2])
