"""Lines through measured steps, kinds of steps, and what a step's memory consists of; by hand."""

from dataclasses import replace

import pytest

from triptych.train.config import ObjectiveWeight
from triptych.train.forecast import Line, Point, StateBytes, StepLines, step_kinds
from triptych.train.schedule import ObjectiveSchedules

STATE = StateBytes(weights=400.0, optimizer=800.0, teacher=0.0, queue=16.0, checkpoint=1216.0)
FLAT = Line(0.0, 0.0)


def test_a_line_goes_through_two_points():
    found = Line.through([Point(2, None, 30.0), Point(4, None, 50.0)])
    assert (found.base, found.per_sample) == pytest.approx((10.0, 10.0))
    assert found.at(64) == pytest.approx(650.0)


def test_of_one_point_everything_depends_on_the_samples():
    assert Line.through([Point(4, None, 50.0)]).at(8) == pytest.approx(100.0)


def test_noise_gives_no_batch_that_takes_less_than_nothing():
    falling = Line.through([Point(2, None, 30.0), Point(4, None, 20.0)])
    assert falling.per_sample == 0.0
    assert Line(-5.0, 1.0).at(2) == 0.0


def test_a_gradient_cache_has_a_slope_for_what_it_holds_and_one_for_its_chunk():
    """7 + 2 for each sample + 5 for each sample of a chunk; a chunk is no larger than the batch."""
    points = [Point(m, c, 7.0 + 2.0 * m + 5.0 * c) for m, c in ((2, 1), (4, 1), (4, 2))]
    found = Line.through(points)
    assert found.at(64, 8) == pytest.approx(7 + 128 + 40)
    assert found.at(4, 8) == found.at(4, 4)


def test_a_gradient_cache_takes_time_for_each_of_its_chunks(lines):
    """1 s + 0.5 s a sample + 0.25 s a chunk, as measured with chunks of 1 and 2."""
    points = [(2, 1), (4, 1), (4, 2)]
    seconds = [Point(m, m // c, 1 + 0.5 * m + 0.25 * m / c) for m, c in points]
    timed = replace(lines, alone_s=Line.through(seconds), micro_s=Line(9.0, 9.0))
    expected = 1 + 0.5 * 64 + 0.25 * 4 + 0.1 * 64 + 2.0
    assert timed.seconds(64, 1, chunk=16) == pytest.approx(expected)


def test_kinds_of_steps_are_those_that_compute_the_same():
    """100 steps: a alone for 40; then b too, every other step, for 60."""
    weights = [ObjectiveWeight(name="a"), ObjectiveWeight(name="b", start_step=40, every_steps=2)]
    objectives = ObjectiveSchedules(weights, ("a", "b"))
    shares = {kind.objectives: kind.share for kind in step_kinds(objectives, 100)}
    assert shares == pytest.approx({frozenset("a"): 0.7, frozenset("ab"): 0.3})
    for kind in step_kinds(objectives, 100):
        assert objectives.at(kind.number).keys() == kind.objectives


def test_an_objective_that_joins_after_the_end_has_no_steps():
    weights = [ObjectiveWeight(name="a"), ObjectiveWeight(name="b", start_step=40)]
    (kind,) = step_kinds(ObjectiveSchedules(weights, ("a", "b")), 30)
    assert (kind.objectives, kind.share) == (frozenset("a"), 1.0)


@pytest.fixture
def lines():
    return StepLines(
        first=Line(0.0, 100.0),
        later=Line(400.0, 100.0),
        update=Line(600.0, 1.0),
        alone_s=Line(0.5, 0.5),
        micro_s=Line(1.0, 0.5),
        data_s=Line(0.0, 0.1),
        update_s=2.0,
    )


def test_memory_is_the_state_and_the_higher_of_two_peaks(lines):
    small = lines.memory(STATE, 2, 1)  # the update's 602 are above the 200 of the batch
    assert (small.gradients, small.activations) == (600.0, 2.0)
    large = lines.memory(STATE, 20, 1)
    assert (large.gradients, large.activations) == (0.0, 2000.0)
    assert large.total == large.tensors == 400 + 800 + 16 + 2000 + 1216
    assert lines.memory(STATE, 20, 1, copies=False).total == large.total - 1216


def test_gradients_lie_beside_the_activations_of_later_micro_batches(lines):
    assert lines.memory(STATE, 20, 2).gradients == 400.0
    assert lines.memory(STATE, 20, 2).total == lines.memory(STATE, 20, 1).total + 400


def test_seconds_add_up_over_micro_batches_and_workers_prepare_meanwhile(lines):
    assert lines.seconds(4, 3) == pytest.approx(3 * (3.0 + 0.4) + 2.0)
    assert lines.seconds(4, 1) == pytest.approx(2.5 + 0.4 + 2.0)  # nothing is encoded twice
    assert lines.seconds(4, 3, workers=1) == pytest.approx(3 * 3.0 + 2.0)
    starved = StepLines(
        first=FLAT,
        later=FLAT,
        update=FLAT,
        alone_s=FLAT,
        micro_s=FLAT,
        data_s=Line(0.0, 1.0),
        update_s=0.0,
    )
    assert starved.seconds(4, 1, workers=2) == 2.0
