"""Two runs at once compute what they compute in turn."""

import os
import signal
import threading
import time
from multiprocessing import active_children

import pytest
from safetensors.torch import load_file

from tests.train.toy import exact_lines
from triptych.core.errors import DataError
from triptych.data.source import DataSourceConfig
from triptych.train.interrupts import TrainingInterrupted
from triptych.workflows.side_by_side import train_side_by_side

from .kills import same_tensors
from .small_runs import small_run, source_of

NAMES = ("vqa", "grounding")


@pytest.mark.slow
@pytest.mark.usefixtures("spawned")  # whose output is this process's own
def test_runs_at_once_equal_runs_in_turn(tmp_path, scenes, capfd):
    runs = {
        name: small_run(f"mplug.{name}", source_of(scenes, name), max_steps=2, log_every_steps=1)
        for name in NAMES
    }
    folders = {
        threads: {name: tmp_path / str(threads) / name for name in NAMES} for threads in (1, 2)
    }
    for threads, each in folders.items():
        train_side_by_side(runs, each, num_threads=threads)
    said = capfd.readouterr().out
    for name in NAMES:
        assert f"{name} | step 2/2" in said  # only runs at once say their name
        alone, beside = folders[1][name], folders[2][name]
        assert exact_lines(alone) == exact_lines(beside)
        weights = [load_file(run / "model/model.safetensors") for run in (alone, beside)]
        assert same_tensors(*weights)


@pytest.mark.slow
def test_an_error_of_one_run_arrives_as_it_was(tmp_path, scenes):
    (tmp_path / "empty.jsonl").write_text('{"image": "absent.jpg", "caption": "a"}\n')
    bad = DataSourceConfig(path=str(tmp_path / "empty.jsonl"))
    runs = {"bad": small_run("mplug.pretrain", bad)}
    runs["good"] = small_run("mplug.vqa", source_of(scenes, "vqa"), max_steps=1)
    with pytest.raises(DataError, match="none of the 1 images"):
        train_side_by_side(runs, {name: tmp_path / name for name in runs}, num_threads=2)


@pytest.mark.slow
def test_a_signal_while_processes_start_is_an_interruption(tmp_path, scenes):
    runs = {name: small_run(f"mplug.{name}", source_of(scenes, name)) for name in NAMES}

    def send_at_once():
        while len(active_children()) < len(NAMES):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    sender = threading.Thread(target=send_at_once, daemon=True)
    sender.start()
    with pytest.raises(KeyboardInterrupt):
        train_side_by_side(runs, {name: tmp_path / name for name in NAMES}, num_threads=2)
    sender.join()


@pytest.mark.slow
@pytest.mark.parametrize("to", ["parent", "children"])
def test_a_signal_ends_runs_at_once_saved(tmp_path, scenes, to):
    """From this process it reaches both; what a child raises arrives here as it was."""
    runs = {
        name: small_run(f"mplug.{name}", source_of(scenes, name), max_steps=5000, log_every_steps=1)
        for name in NAMES
    }
    folders = {name: tmp_path / name for name in NAMES}

    def send_once_both_train():
        logs = [folder / "metrics.jsonl" for folder in folders.values()]
        while not all(log.is_file() and log.stat().st_size for log in logs):
            time.sleep(0.05)
        own = [os.getpid()]
        for target in own if to == "parent" else [p.pid for p in active_children()]:
            os.kill(target, signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    sender = threading.Thread(target=send_once_both_train, daemon=True)
    sender.start()
    with pytest.raises(TrainingInterrupted) as stop:
        train_side_by_side(runs, folders, num_threads=2)
    sender.join()
    assert signal.getsignal(signal.SIGTERM) == before
    assert (stop.value.signal_number, stop.value.exit_code) == (signal.SIGTERM, 143)
    assert stop.value.checkpoint.parent == folders[NAMES[0]] / "checkpoints"
    for folder in folders.values():
        (saved,) = (folder / "checkpoints").iterdir()
        assert exact_lines(folder)[-1]["step"] == int(saved.name.removeprefix("step_"))
        assert not (folder / "model").exists()
