"""Intervals against scipy's t distribution, verdicts by hand."""

import pytest

from triptych.lab.statistics import Interval, judge, mean_interval, t_quantile

T_95 = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645, 9: 2.26216, 10: 2.22814, 30: 2.04227}
"""scipy.stats.t.ppf(0.975, freedom)."""


@pytest.mark.parametrize(("freedom", "value"), T_95.items())
def test_quantiles_are_those_of_scipy(freedom, value):
    assert t_quantile(freedom) == pytest.approx(value, rel=1e-5)


def test_an_interval_by_hand():
    found = mean_interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.high - found.mean == pytest.approx(4.30265 / 3**0.5, rel=1e-5)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_one_value_has_no_interval():
    assert mean_interval([0.5]) == Interval(0.5)
    assert not Interval(0.5).excludes_zero
    assert judge(Interval(0.5), "higher") == "cannot tell"


@pytest.mark.parametrize(
    ("low", "high", "predicts", "verdict"),
    [
        (0.1, 0.3, "higher", "agrees"),
        (-0.3, -0.1, "higher", "disagrees"),
        (-0.1, 0.3, "higher", "cannot tell"),
        (-0.3, -0.1, "lower", "agrees"),
        (0.1, 0.3, "lower", "disagrees"),
        (-0.1, 0.3, "lower", "cannot tell"),
        (-0.01, 0.02, "equal", "agrees"),
        (0.06, 0.1, "equal", "disagrees"),
        (-0.1, -0.06, "equal", "disagrees"),
        (0.01, 0.06, "equal", "cannot tell"),
    ],
)
def test_verdicts(low, high, predicts, verdict):
    assert judge(Interval((low + high) / 2, low, high), predicts, margin=0.05) == verdict
