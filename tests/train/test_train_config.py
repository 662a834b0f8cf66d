"""Validation names the field and the value."""

import pytest

from triptych.core.config import from_dict, to_dict
from triptych.core.errors import ConfigError
from triptych.train.config import ObjectiveWeight, OptimConfig, TrainConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_steps": 0}, "max_steps = 0: must be at least 1"),
        ({"local_batch_size": 10, "accumulate": 4}, "local_batch_size = 10: .*accumulate = 4"),
        ({"max_grad_norm": 0.0}, "max_grad_norm = 0.0: must be above 0"),
        ({"keep_checkpoints": 0}, "keep_checkpoints = 0"),
        ({"evaluate_every_steps": 0}, "evaluate_every_steps = 0"),
    ],
)
def test_impossible_values_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**{"max_steps": 5, "local_batch_size": 8} | fields)


def test_the_micro_batch_is_the_split_batch():
    assert TrainConfig(max_steps=1, local_batch_size=12, accumulate=3).micro_batch_size == 4


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(max_steps=7, local_batch_size=4, max_grad_norm=None),
        OptimConfig(betas=(0.8, 0.95)),
        ObjectiveWeight(name="itm", ramp_steps=3),
    ],
)
def test_configs_survive_plain_values(config):
    assert from_dict(type(config), to_dict(config)) == config
