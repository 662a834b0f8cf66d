"""The real recipe goes on bitwise: after kill -9 at random moments, and after a signal."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.train.toy import exact_lines
from triptych.core.config import save_yaml
from triptych.core.errors import ConfigError
from triptych.models.families import VARIANTS
from triptych.tasks.pretraining.mplug import MPLUGPretraining
from triptych.train.interrupts import TrainingInterrupted
from triptych.workflows.run import resume_run, train_run

from .kills import MAX_STEPS, full_run, same_run
from .small_runs import small_run, source_of


@pytest.mark.slow
def test_four_of_four_killed_runs_go_on(tmp_path):
    """A process of its own forks the runs and kills them; see `kills.py`."""
    finished = subprocess.run(
        [sys.executable, "-m", "tests.workflows.kills", "4"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout) == {"resume_kills": 4}, finished.stderr


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


def test_equal_runs_leave_equal_files(tmp_path, scenes):
    """All but the times in `metrics.jsonl`, and TensorBoard's, which are called by theirs."""
    config = small_run(
        "mplug.pretrain",
        source_of(scenes, "mplug.pretrain"),
        max_steps=2,
        global_batch_size=4,
        tensorboard=True,
    )
    config = replace(config, data=replace(config.data, val_share=0.3))
    found = []
    for name in ("one", "two"):
        train_run(config, tmp_path / name)
        files = (path for path in (tmp_path / name).rglob("*") if path.is_file())
        found.append({path.relative_to(tmp_path / name): path for path in files})
    one, two = ({str(p): f for p, f in files.items()} for files in found)
    events = [name for name in {*one, *two} if name.startswith("tensorboard/")]
    assert len(events) == 2
    assert one.keys() - events == two.keys() - events
    assert {"best/model.safetensors", "model/model.safetensors", "config.yaml"} < one.keys()
    differ = [n for n in one.keys() - events if one[n].read_bytes() != two[n].read_bytes()]
    assert differ == ["metrics.jsonl"]
    assert exact_lines(tmp_path / "one") == exact_lines(tmp_path / "two")
    modes = {name: oct(path.stat().st_mode & 0o777) for name, path in one.items()}
    assert set(modes.values()) == {oct(0o666 & ~umask())}, modes


def umask():
    """Return what the process's files lack of mode 0666."""
    found = os.umask(0o022)
    os.umask(found)
    return found


def test_a_run_that_saved_nothing_is_replaced(tmp_path, scenes, capsys):
    config = small_run("mplug.pretrain", source_of(scenes, "mplug.pretrain"), max_steps=2)
    folder = tmp_path / "run"
    save_yaml(config, folder / "config.yaml")
    for name in ("metrics.jsonl", "skipped.jsonl", "skipped.rank1.jsonl"):
        (folder / name).write_text('{"step": 9, "where": "of the run before"}\n')
    train_run(config, folder)
    assert "held a run that saved nothing: it is replaced" in capsys.readouterr().out
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["step"] for line in lines} <= {1, 2}
    assert not list(folder.glob("skipped*"))


@pytest.mark.parametrize("saved", ["checkpoints/step_3", "model", "stages"])
def test_a_run_that_saved_something_is_kept(tmp_path, scenes, saved):
    config = small_run("mplug.pretrain", source_of(scenes, "mplug.pretrain"), max_steps=2)
    (tmp_path / "run" / saved).mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds an earlier run: resume it"):
        train_run(config, tmp_path / "run")
    assert (tmp_path / "run" / saved).is_dir()


def test_out_that_is_a_file_is_named(tmp_path, scenes):
    config = small_run("mplug.pretrain", source_of(scenes, "mplug.pretrain"), max_steps=2)
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ConfigError, match="there is a file of that name"):
        train_run(config, tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"
