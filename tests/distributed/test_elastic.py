"""A run under torchrun outlives a killed process, a signal and another number of processes."""

import json
import signal
import time
from dataclasses import replace

import pytest

from benchmarks.parity import sample_log
from benchmarks.parity.engine_kills import (
    BOUND,
    evenly_drawn,
    largest_gap,
    processes_of,
    small_config,
    start,
    write_source,
)
from triptych.core.config import kind_of, load_yaml, save_yaml
from triptych.data.manifest import read_records
from triptych.recipes.config import RunConfig
from triptych.tasks.pretraining.mplug import MPLUGPretrainingConfig
from triptych.tasks.registry import TASKS
from triptych.train.metrics_log import METRICS_FILE, read_metrics
from triptych.workflows.run import train_run

STEPS = 9
KILLED_AFTER, ASKED_AFTER = 3, 5
ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
"""What torchrun tells a process that trains alone."""


@pytest.fixture
def run(tmp_path):
    """A mixture of two sources of different sizes, for one process."""
    sources = [write_source(tmp_path / name, size) for name, size in (("many", 7), ("few", 5))]
    named = [replace(source, name=name) for source, name in zip(sources, ("many", "few"))]
    named = [replace(s, ratio=ratio) for s, ratio in zip(named, (2.0, 1.0), strict=True)]
    config = small_config(named, max_steps=STEPS, checkpoint_every_steps=2, parallel="fsdp")
    return replace(config, data=replace(config.data, num_workers=1))


@pytest.fixture
def logged(tmp_path, monkeypatch):
    """Return a function that trains here, and logs to a folder of samples."""
    monkeypatch.setitem(TASKS, kind_of(MPLUGPretrainingConfig), sample_log.logged_spec())

    def train(config, folder, samples):
        monkeypatch.setenv(sample_log.FOLDER, str(samples))
        return train_run(config, folder, resume="auto")

    return train


def test_a_kill_a_signal_and_one_process_less_change_nothing(run, logged, tmp_path, monkeypatch):
    expected, samples = tmp_path / "expected_samples", tmp_path / "samples"
    for folder in (expected, samples):
        folder.mkdir()
    whole, folder = tmp_path / "whole", tmp_path / "run"
    logged(run, whole, expected)

    save_yaml(run, tmp_path / "run.yaml")
    due = [[KILLED_AFTER, 1, signal.SIGKILL], [ASKED_AFTER, 1, signal.SIGTERM]]
    variables = {
        "TRIPTYCH_PLUGINS": sample_log.__name__,
        sample_log.FOLDER: str(samples),
        sample_log.SIGNALS: json.dumps(due),
    }
    agent = start(tmp_path / "run.yaml", folder, 2, max_restarts=1, **variables)
    assert agent.wait() == 1  # the signal's end would be restarted too: once was enough
    said = folder.with_suffix(".txt").read_text()
    assert len(list(samples.glob("sent_*"))) == 2, said
    stopped = ASKED_AFTER + 1  # the processes tell each other within a step
    assert f"SIGTERM: stopped after step {stopped}; saved" in said
    assert (folder / "checkpoints" / f"step_{stopped}").is_dir()
    while processes_of(folder):
        time.sleep(0.05)  # ends only once the loaders' workers are gone

    assert load_yaml(RunConfig, folder / "config.yaml").train.num_processes == 2
    for name, value in ALONE.items():
        monkeypatch.setenv(name, value)
    assert logged(run, folder, samples).step == STEPS
    assert load_yaml(RunConfig, folder / "config.yaml").train.num_processes == 1
    found = sample_log.read_samples(samples)
    lines = read_metrics(folder / METRICS_FILE)
    assert [line["step"] for line in lines] == list(found) == list(range(1, STEPS + 1))
    assert found == sample_log.read_samples(expected)
    sizes = [len(read_records(source).records) for source in run.data.train]
    assert sizes == [14, 10]
    assert evenly_drawn(found, lines, sizes)
    assert largest_gap(folder, whole) <= BOUND
