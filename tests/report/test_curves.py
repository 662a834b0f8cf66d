import math

from triptych.report.curves import keep_finite, smooth, thin


def test_only_finite_points_remain_in_the_order_of_their_steps():
    points = [(3, 1.0), (1, math.nan), (2, math.inf), (0, 5.0)]
    assert keep_finite(points) == [(0, 5.0), (3, 1.0)]


def test_smoothing_is_a_centred_mean():
    # 60 points: the window reaches 2 to each side, at the start 0, then 1, and at the end what
    # there is: (0 + 0 + 9) / 3 at the last point, (0 + 0 + 0 + 9) / 4 at the one before.
    values = [0.0] * 60
    values[0], values[30], values[59] = 12.0, 5.0, 9.0
    smoothed = [value for _, value in smooth([(step, value) for step, value in enumerate(values)])]
    assert smoothed[0] == 12.0
    assert smoothed[1] == 4.0
    assert smoothed[2] == 2.4
    assert smoothed[28:33] == [1.0] * 5
    assert smoothed[27] == smoothed[33] == smoothed[56] == 0.0
    assert smoothed[57:] == [1.8, 2.25, 3.0]


def test_a_short_curve_is_not_smoothed():
    assert smooth([(0, 1.0), (1, 9.0), (2, 2.0)]) == [(0, 1.0), (1, 9.0), (2, 2.0)]


def test_thinning_keeps_every_peak():
    points = [(float(step), 0.0) for step in range(10_000)]
    points[4321], points[7777] = (4321.0, 9.0), (7777.0, -9.0)
    thinned = thin(points)
    assert len(thinned) <= 360
    assert (4321.0, 9.0) in thinned and (7777.0, -9.0) in thinned
    assert thinned == sorted(thinned)
