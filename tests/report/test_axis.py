import pytest

from triptych.report.svg import build_step_axis, build_value_axis, format_tick, round_step


def test_a_linear_axis_begins_at_zero_and_ends_at_a_round_number():
    axis = build_value_axis(0.4, 3.3, 200, 0)
    assert axis.ticks == (0, 1, 2, 3, 4)
    assert (axis.position(0), axis.position(1), axis.position(4)) == (200, 150, 0)
    assert not axis.is_log


def test_values_far_above_zero_fill_the_axis():
    axis = build_value_axis(9.1, 9.9, 200, 0)
    assert (axis.low, axis.high) == pytest.approx((9.0, 10.0))


def test_a_wide_range_is_logarithmic_with_a_tick_at_each_power():
    axis = build_value_axis(0.01, 100, 400, 0)
    assert axis.is_log
    assert axis.ticks == pytest.approx((0.01, 0.1, 1, 10, 100))
    assert [axis.position(tick) for tick in axis.ticks] == pytest.approx([400, 300, 200, 100, 0])


def test_a_logarithmic_axis_ends_near_its_values_and_places_zero_below():
    axis = build_value_axis(0.06, 17, 400, 0)
    assert (axis.low, axis.high) == pytest.approx((0.05, 20))
    assert axis.ticks == pytest.approx((0.1, 1, 10))
    assert axis.position(0.0) > 400


@pytest.mark.parametrize("lowest, highest", [(0, 0), (2, 2), (-3, -3), (-1, 2), (0, 1e-7)])
def test_any_values_lie_within_a_linear_axis(lowest, highest):
    axis = build_value_axis(lowest, highest, 100, 0)
    assert axis.low < axis.high
    assert 0 <= axis.position(highest) <= axis.position(lowest) <= 100


def test_step_ticks_lie_between_the_first_and_the_last_step():
    axis = build_step_axis(10, 2990, 0, 298)
    assert axis.ticks == (1000, 2000)
    assert axis.position(1000) == pytest.approx(99)
    assert build_step_axis(5, 5, 0, 10).position(5) == 0


@pytest.mark.parametrize("length, step", [(10, 2), (12, 2.5), (0.7, 0.2), (2980, 1000)])
def test_round_step(length, step):
    assert round_step(length, 5) == pytest.approx(step)


@pytest.mark.parametrize("value, text", [(0.25, "0.25"), (2.0, "2"), (12500, "12.5k"), (10, "10")])
def test_tick_labels(value, text):
    assert format_tick(value) == text
