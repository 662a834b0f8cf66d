"""Objective weights over the steps, and the refusal of steps without a loss."""

import pytest

from triptych.core.errors import ConfigError
from triptych.train.config import ObjectiveWeight
from triptych.train.weights import ObjectiveSchedules, weight_at


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [2, 2, 2, 2, 2, 2, 2, 2]),
        ({"start_step": 3}, [0, 0, 0, 2, 2, 2, 2, 2]),
        ({"ramp_steps": 4}, [0.5, 1, 1.5, 2, 2, 2, 2, 2]),
        ({"start_step": 2, "ramp_steps": 2, "end_step": 5}, [0, 0, 1, 2, 2, 0, 0, 0]),
        ({"every_steps": 3, "start_step": 1}, [0, 2, 0, 0, 2, 0, 0, 2]),
        ({"every_steps": 2, "ramp_steps": 4}, [0.5, 0, 1.5, 0, 2, 0, 2, 0]),
    ],
)
def test_weight_by_step(fields, expected):
    schedule = ObjectiveWeight(name="itc", weight=2.0, **fields)
    assert [weight_at(schedule, step) for step in range(8)] == expected


def test_no_weights_mean_one_each_and_a_list_means_only_those():
    assert ObjectiveSchedules((), {"itc", "mlm"}).at(0) == {"itc": 1.0, "mlm": 1.0}
    listed = ObjectiveSchedules([ObjectiveWeight(name="mlm", weight=0.5)], {"itc", "mlm"})
    assert listed.at(0) == {"mlm": 0.5}


def test_a_step_without_a_loss_is_found_at_the_start():
    schedules = ObjectiveSchedules(
        [ObjectiveWeight(name="itc", end_step=5), ObjectiveWeight(name="mlm", start_step=7)],
        {"itc", "mlm"},
    )
    with pytest.raises(ConfigError, match="no objective is active at step 5 "):
        schedules.check(10)
    schedules.check(5)


def test_a_wrong_name_names_the_nearest_and_a_double_one_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'prefix_lm'"):
        ObjectiveSchedules([ObjectiveWeight(name="prefixlm")], {"itc", "prefix_lm"})
    with pytest.raises(ConfigError, match="'itc' has two weights"):
        ObjectiveSchedules([ObjectiveWeight(name="itc")] * 2, {"itc"})


@pytest.mark.parametrize(
    ("field", "value"), [("weight", -1.0), ("every_steps", 0), ("end_step", 0), ("start_step", -1)]
)
def test_impossible_values_are_refused(field, value):
    with pytest.raises(ConfigError, match=f"{field} = "):
        ObjectiveWeight(name="itc", **{field: value})
