"""Validation names the field and the value."""

import pytest

from triptych.core.config import from_dict, to_dict
from triptych.core.errors import ConfigError
from triptych.train.config import ObjectiveWeight, OptimConfig, TrainConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_steps": 0}, "max_steps = 0: must be at least 1"),
        ({"global_batch_size": 0}, "global_batch_size = 0: must be at least 1"),
        ({"micro_batch_size": 0}, "micro_batch_size = 0: must be at least 1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm = 0.0: must be above 0"),
        ({"keep_checkpoints": 0}, "keep_checkpoints = 0"),
        ({"evaluate_every_steps": 0}, "evaluate_every_steps = 0"),
    ],
)
def test_impossible_values_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**{"max_steps": 5, "global_batch_size": 8} | fields)


@pytest.mark.parametrize(
    ("world", "micro", "expected"),
    [(1, None, (12, 1)), (1, 4, (4, 3)), (3, 4, (4, 1)), (2, 3, (3, 2)), (6, 4, (2, 1))],
)
def test_processes_and_micro_batches_share_the_batch(world, micro, expected):
    config = TrainConfig(max_steps=1, global_batch_size=12, micro_batch_size=micro)
    split = config.split_batch(world)
    assert (split.micro_batch_size, split.accumulate) == expected


@pytest.mark.parametrize(
    ("world", "micro", "message"),
    [
        (5, None, "global_batch_size = 12: 5 processes must share it equally"),
        (24, None, "global_batch_size = 12: 24 processes"),
        (2, 4, "micro_batch_size = 4: each of 2 processes has 6 samples .* a divisor of 6"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused(world, micro, message):
    config = TrainConfig(max_steps=1, global_batch_size=12, micro_batch_size=micro)
    with pytest.raises(ConfigError, match=message):
        config.split_batch(world)


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(max_steps=7, global_batch_size=4, max_grad_norm=None),
        OptimConfig(betas=(0.8, 0.95)),
        ObjectiveWeight(name="itm", ramp_steps=3),
    ],
)
def test_configs_survive_plain_values(config):
    assert from_dict(type(config), to_dict(config)) == config
