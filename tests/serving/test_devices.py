"""Where a model computes, and what is said of a device that is not there."""

import pytest
import torch

from triptych.core.errors import ConfigError
from triptych.serving.loading import find_device


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device("auto") == torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "gpus", "says"),
    [
        ("cuda", 0, r"sees 0 GPUs here; take 'auto' or 'cpu'"),
        ("cuda:1", 1, r"device = 'cuda:1': torch .* sees 1 GPUs"),
        ("bogus", 0, "must be auto, cpu or cuda"),
    ],
)
def test_a_device_that_is_not_there_is_refused(monkeypatch, name, gpus, says):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ConfigError, match=says):
        find_device(name)


def test_devices_that_are_there():
    assert find_device("cpu") == torch.device("cpu")
