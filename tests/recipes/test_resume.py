"""The real recipe goes on bitwise: after kill -9 at random moments, and after a signal."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from triptych.models.registry import VARIANTS
from triptych.recipes.run import resume_run, train_run
from triptych.tasks.pretraining.mplug import MPLUGPretraining
from triptych.train.interrupts import TrainingInterrupted

from .kills import MAX_STEPS, full_run, same_run


@pytest.mark.slow
def test_ten_of_ten_killed_runs_go_on(tmp_path):
    """A process of its own forks the runs and kills them; see `kills.py`."""
    finished = subprocess.run(
        [sys.executable, "-m", "tests.recipes.kills"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout) == {"resume_kills": 10}, finished.stderr


@pytest.mark.slow
def test_a_terminated_run_goes_on_from_its_own_config(tmp_path, scenes, monkeypatch):
    monkeypatch.setattr(VARIANTS, "_entries", dict(VARIANTS._entries))  # forget the model after
    config = full_run(scenes, checkpoint_every_steps=100)
    train_run(config, tmp_path / "whole")
    after_step = MPLUGPretraining.after_step

    def terminate(task, step):
        after_step(task, step)
        if step == 5:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MPLUGPretraining, "after_step", terminate)
        with pytest.raises(TrainingInterrupted) as stop:
            train_run(config, tmp_path / "run")
    assert (stop.value.step, stop.value.exit_code) == (5, 143)
    assert not (tmp_path / "run" / "model").exists()
    assert resume_run(tmp_path / "run").step == MAX_STEPS
    assert same_run(tmp_path / "run", tmp_path / "whole")
