"""Trackers get the numbers of the log: TensorBoard as it reads them, others by a stand-in."""

import sys
import types
from dataclasses import replace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.train.toy import toy_trainer
from triptych.core.config import from_dict, to_dict
from triptych.core.errors import CapabilityError, ConfigError
from triptych.train.config import TrainConfig
from triptych.train.metrics_log import (
    MetricsLog,
    RemoteTracker,
    TensorBoardTracker,
    open_trackers,
    read_metrics,
)


class Record:
    """What a tracking package gives for `init`."""

    def __init__(self, options):
        self.options, self.points, self.finished = options, [], False

    def log(self, values, step):
        self.points.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture(params=["wandb", "trackio"])
def package(request, monkeypatch):
    """A stand-in for a tracking package; `records` are those that were begun."""
    module = types.ModuleType(request.param)
    module.records = []

    def init(**options):
        module.records.append(Record(options))
        return module.records[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, request.param, module)
    return module


def test_tensorboard_reads_the_curves_and_drops_steps_done_twice(tmp_path):
    first = MetricsLog(tmp_path, trackers=[TensorBoardTracker(tmp_path / "tensorboard", 0)])
    for step in (1, 2, 3):
        first.write(step, {"loss/a": float(step)})
    first.close()
    again = TensorBoardTracker(tmp_path / "tensorboard", 2)
    second = MetricsLog(tmp_path, start_step=2, trackers=[again])
    second.write(3, {"loss/a": 30.0})
    second.flush_to_disk()
    reader = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    second.close()
    points = [(event.step, event.value) for event in reader.Scalars("loss/a")]
    assert points == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_without_tensorboard_a_run_says_so_once_and_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    toy_trainer(tmp_path, tensorboard=True, progress="plain").fit()
    assert capsys.readouterr().out.count("pip install 'triptych[tensorboard]'") == 1
    assert not (tmp_path / "tensorboard").exists()
    assert read_metrics(tmp_path / "metrics.jsonl")


def test_a_tracker_gets_every_line_of_the_log(tmp_path, package):
    toy_trainer(tmp_path, trackers=(package.__name__,)).fit()
    (record,) = package.records
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert record.points == [(line.pop("step"), line) for line in lines]
    assert record.finished and record.options["project"] == "triptych"


def test_a_resumed_run_goes_on_with_its_record(tmp_path, package):
    for _ in range(2):
        RemoteTracker(package.__name__, tmp_path / "run").close()
    other = tmp_path / "other"
    RemoteTracker(package.__name__, other).close()
    first, second, third = (record.options for record in package.records)
    assert first == second and first["resume"] == "allow"
    key = "id" if package.__name__ == "wandb" else "name"
    assert first[key] != third[key]


def test_a_package_that_is_missing_or_fails_is_named(tmp_path, package, monkeypatch):
    def init(**options):
        raise RuntimeError("no key")

    package.init = init
    with pytest.raises(ConfigError, match=f"{package.__name__} cannot start a run: no key"):
        open_trackers(tmp_path, 0, tensorboard=False, names=(package.__name__,))
    monkeypatch.setitem(sys.modules, package.__name__, None)
    with pytest.raises(CapabilityError, match=f"pip install 'triptych\\[{package.__name__}\\]'"):
        open_trackers(tmp_path, 0, tensorboard=False, names=(package.__name__,))


def test_configs_without_trackers_still_load():
    config = TrainConfig(max_steps=1, global_batch_size=1)
    plain = to_dict(config)
    assert plain.pop("trackers") == []
    assert from_dict(TrainConfig, plain) == config
    chosen = replace(config, trackers=("wandb",))
    assert from_dict(TrainConfig, to_dict(chosen)) == chosen
    with pytest.raises(ConfigError, match="trackers"):
        from_dict(TrainConfig, plain | {"trackers": ["tensorflow"]})
