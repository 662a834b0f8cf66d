"""The learning rate at points worked by hand."""

import math

import pytest

from triptych.core.errors import ConfigError
from triptych.train.config import OptimConfig
from triptych.train.optim import build_optimizer, group_parameters
from triptych.train.schedule import apply_schedule, learning_rate_at

from .toy import ToyTask

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
    groups = group_parameters(ToyTask().modules.named_parameters(), CONFIG)
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
