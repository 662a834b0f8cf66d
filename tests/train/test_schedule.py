"""The learning rate at points worked by hand, objective weights, steps without a loss."""

import math

import pytest

from triptych.core.errors import ConfigError
from triptych.train.config import ObjectiveWeight, OptimConfig
from triptych.train.optim import build_optimizer, group_parameters
from triptych.train.schedule import (
    ObjectiveSchedules,
    apply_schedule,
    learning_rate_at,
    weight_at,
)

from .toy import ToyTask, is_vision

CONFIG = OptimConfig(
    learning_rate=1e-3,
    vision_learning_rate=1e-4,
    warmup_steps=9,
    warmup_learning_rate=1e-4,
    min_learning_rate=1e-5,
)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1e-4),
        (3, 1e-4 + 9e-4 / 3),
        (9, 1e-3),
        (9 + 25, 1e-5 + 99e-5 * (1 + math.sqrt(0.5)) / 2),
        (9 + 50, (1e-3 + 1e-5) / 2),
        (109, 1e-5),
        (500, 1e-5),
    ],
)
def test_linear_then_cosine(step, expected):
    rate = learning_rate_at(step, peak=1e-3, config=CONFIG, max_steps=109)
    assert rate == pytest.approx(expected, rel=1e-12)


def test_without_warm_up_the_first_step_has_the_peak():
    config = OptimConfig(warmup_steps=0)
    assert learning_rate_at(0, peak=1e-4, config=config, max_steps=10) == pytest.approx(1e-4)


def test_each_group_goes_to_its_own_peak_and_to_the_common_ends():
    groups = group_parameters(ToyTask().modules.named_parameters(), CONFIG, is_vision)
    optimizer = build_optimizer(groups, CONFIG)
    rates = []
    for step in (0, 9, 109):
        apply_schedule(optimizer, step, CONFIG, max_steps=109)
        rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})
    assert rates[0] == pytest.approx(dict.fromkeys(rates[0], 1e-4))
    assert rates[1]["vision_no_decay"] == pytest.approx(1e-4)
    assert rates[1]["rest_no_decay"] == pytest.approx(1e-3)
    assert rates[2] == pytest.approx(dict.fromkeys(rates[0], 1e-5))


def test_a_floor_above_a_peak_is_refused():
    with pytest.raises(ConfigError, match=r"min_learning_rate = 0.001: .* 1e-05"):
        OptimConfig(min_learning_rate=1e-3)


def test_linear_decay_ends_at_zero():
    config = OptimConfig(
        learning_rate=2e-4,
        warmup_steps=10,
        warmup_learning_rate=0.0,
        min_learning_rate=0.0,
        decay="linear",
    )
    rates = [learning_rate_at(s, peak=2e-4, config=config, max_steps=110) for s in (5, 10, 35, 110)]
    assert rates == pytest.approx([1e-4, 2e-4, 1.5e-4, 0.0])


def test_a_peak_below_the_common_end_stays():
    config = OptimConfig(learning_rate=1e-4, min_learning_rate=1e-6, warmup_steps=0)
    rates = [learning_rate_at(s, peak=1e-7, config=config, max_steps=10) for s in (0, 5, 10)]
    assert rates == pytest.approx([1e-7] * 3)


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
