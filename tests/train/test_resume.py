"""Resuming equals never stopping, bitwise: at every step, after a crash or a signal.

The kills with SIGKILL at random moments are in `tests/faults/kills.py`.
"""

import errno
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from triptych.checkpoint import sharded
from triptych.checkpoint.run import list_checkpoints, load_latest
from triptych.checkpoint.sharded import CheckpointWriter
from triptych.core.errors import CheckpointError
from triptych.distributed.env import is_main, run_processes
from triptych.train.interrupts import TrainingInterrupted

from .toy import ToyTask, exact_lines, toy_batches, toy_trainer

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
SETTINGS = [
    pytest.param({}, id="plain"),
    pytest.param({"micro_batch_size": 2}, id="accumulated"),
    pytest.param({"muon_learning_rate": 1e-2}, id="muon"),
    pytest.param({"precision": "fp16"}, id="fp16"),
    pytest.param({"log_every_steps": 3, "checkpoint_every_steps": 2}, id="sparse"),
]


class Crash(Exception):  # noqa: N818 - an event
    """Stands for a power cut: the trainer does not know it."""


def _stopping_batches(at: int, stop):
    """Return a loader factory that calls `stop` before it yields micro-batch `at`."""

    def batches(start):
        for number, batch in enumerate(toy_batches(start), start):
            if number == at:
                stop()
            yield batch

    return batches


def _crash():
    raise Crash


def _assert_same_run(folder: Path, task: ToyTask, reference: Path, expected: ToyTask) -> None:
    assert exact_lines(folder) == exact_lines(reference)
    state, expected_state = task.modules.state_dict(), expected.modules.state_dict()
    assert state.keys() == expected_state.keys()
    assert all(torch.equal(state[name], expected_state[name]) for name in state)


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_crash_in_any_step_changes_nothing(tmp_path, settings):
    expected = ToyTask()
    toy_trainer(tmp_path / "whole", expected, **settings).fit()
    for step in range(8):
        folder = tmp_path / str(step)
        at = step * (4 // settings.get("micro_batch_size", 4))
        with pytest.raises(Crash):
            toy_trainer(folder, batches=_stopping_batches(at, _crash), **settings).fit()
        task = ToyTask(seed=99)  # other weights: all must come from the checkpoint
        if step < settings.get("checkpoint_every_steps", 1):
            task = ToyTask()  # nothing was saved: the run begins again
        toy_trainer(folder, task, **settings).fit(resume=True)
        _assert_same_run(folder, task, tmp_path / "whole", expected)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(("number", "code"), CODES.items())
def test_a_signal_saves_after_the_step_and_the_run_goes_on(tmp_path, settings, number, code):
    expected = ToyTask()
    toy_trainer(tmp_path / "whole", expected, **settings).fit()
    for step in (1, 4, 7):
        folder = tmp_path / str(step)
        at = step * (4 // settings.get("micro_batch_size", 4))
        batches = _stopping_batches(at, lambda: signal.raise_signal(number))
        with pytest.raises(TrainingInterrupted) as caught:
            toy_trainer(folder, batches=batches, **settings).fit()
        assert caught.value.exit_code == code
        assert caught.value.step == step + 1
        assert caught.value.checkpoint == folder / "checkpoints" / f"step_{step + 1}"
        assert str(caught.value.checkpoint) in str(caught.value)
        task = ToyTask(seed=99)
        toy_trainer(folder, task, **settings).fit(resume=True)
        _assert_same_run(folder, task, tmp_path / "whole", expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_last_step_is_saved_is_heard(tmp_path, monkeypatch, number):
    save = CheckpointWriter.save

    def interrupted(writer, step, state):
        if step == 8:
            signal.raise_signal(number)
        save(writer, step, state)

    monkeypatch.setattr(CheckpointWriter, "save", interrupted)
    with pytest.raises(TrainingInterrupted) as caught:
        toy_trainer(tmp_path).fit()
    assert (caught.value.signal_number, caught.value.step) == (number, 8)
    assert caught.value.checkpoint == tmp_path / "checkpoints" / "step_8"
    assert toy_trainer(tmp_path).fit(resume=True).step == 8


def test_a_damaged_newest_checkpoint_costs_its_steps_only(tmp_path, capsys):
    expected = ToyTask()
    toy_trainer(tmp_path / "whole", expected).fit()
    with pytest.raises(Crash):
        toy_trainer(tmp_path / "run", batches=_stopping_batches(5, _crash)).fit()
    tensors = tmp_path / "run" / "checkpoints" / "step_5" / "shard_00000-of-00001.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:100])
    task = ToyTask(seed=99)
    toy_trainer(tmp_path / "run", task, progress="plain").fit(resume=True)
    _assert_same_run(tmp_path / "run", task, tmp_path / "whole", expected)
    shown = capsys.readouterr().out
    assert "checkpoint passed over" in shown
    assert "from step 4 to 8" in shown


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_stops_the_run_which_goes_on_when_there_is_space(
    tmp_path, monkeypatch, background
):
    expected = ToyTask()
    toy_trainer(tmp_path / "whole", expected).fit()
    write = sharded.write_tensors

    def full_at_5(path, *arguments, **options):
        if "step_5" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, *arguments, **options)

    monkeypatch.setattr(sharded, "write_tensors", full_at_5)
    with pytest.raises(CheckpointError, match=r"step_5: No space left on device"):
        toy_trainer(tmp_path / "run", async_checkpoints=background).fit()
    monkeypatch.undo()
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step_3",
        "step_4",
    ]
    task = ToyTask(seed=99)
    toy_trainer(tmp_path / "run", task, async_checkpoints=background).fit(resume=True)
    _assert_same_run(tmp_path / "run", task, tmp_path / "whole", expected)


def test_every_third_step_is_kept_beside_the_newest(tmp_path):
    toy_trainer(tmp_path, keep_every_steps=3, keep_checkpoints=1).fit()
    assert list_checkpoints(tmp_path / "checkpoints") == [3, 6, 8]


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    toy_trainer(tmp_path, max_steps=3).fit()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    task = ToyTask(seed=99)
    result = toy_trainer(tmp_path, task, max_steps=3).fit(resume=True)
    assert (result.step, result.losses, task.after_steps) == (3, {}, [])
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_the_precision_of_an_auto_run_is_not_measured_again(tmp_path, monkeypatch):
    choice = "triptych.train.trainer.resolve_precision"
    monkeypatch.setattr(choice, lambda *_: "bf16")
    toy_trainer(tmp_path, max_steps=2, precision="auto").fit()
    monkeypatch.setattr(choice, lambda *_: "fp32")
    resumed = toy_trainer(tmp_path, max_steps=4, precision="auto")
    resumed.fit(resume=True)
    assert resumed.precision == "bf16"


def test_a_run_keeps_why_it_took_its_precision(tmp_path, monkeypatch):
    module = "triptych.train.precision"
    monkeypatch.setattr(f"{module}.has_bf16", lambda _: False)
    toy_trainer(tmp_path, max_steps=2, precision="auto").fit()
    reason = "auto: this cpu has no bf16 instructions"
    assert load_latest(tmp_path / "checkpoints")[1]["precision_reason"] == reason
    monkeypatch.setattr(f"{module}.has_bf16", lambda _: True)  # another machine goes on
    resumed = toy_trainer(tmp_path, max_steps=3, precision="auto")
    resumed.fit(resume=True)
    assert (resumed.precision, resumed.precision_reason) == ("fp32", reason)
    assert load_latest(tmp_path / "checkpoints")[1]["precision_reason"] == reason
    chosen = toy_trainer(tmp_path, max_steps=4, precision="fp32")
    chosen.fit(resume=True)
    assert chosen.precision_reason == "as the config asks"


def test_state_beside_the_modules_is_restored(tmp_path):
    class CountingTask(ToyTask):
        calls = 0

        def after_step(self, step):
            super().after_step(step)
            self.calls += 1

        def extra_state(self):
            return {"calls": self.calls, "history": [torch.tensor([self.calls])]}

        def load_extra_state(self, state):
            assert torch.equal(state["history"][0], torch.tensor([state["calls"]]))
            self.calls = state["calls"]

    with pytest.raises(Crash):
        toy_trainer(tmp_path, CountingTask(), batches=_stopping_batches(5, _crash)).fit()
    task = CountingTask()
    toy_trainer(tmp_path, task).fit(resume=True)
    assert task.calls == 8
    assert task.after_steps == [6, 7, 8]


class _WiderTask(ToyTask):
    def __init__(self):
        super().__init__()
        self.model.head = torch.nn.Linear(5, 4)


class _DeeperTask(ToyTask):
    def __init__(self):
        super().__init__()
        self.model.extra = torch.nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("task_class", "message"),
    [
        (_WiderTask, r"model.head.weight is \(3, 5\) in the checkpoint and \(4, 5\) in the model"),
        (_DeeperTask, r"lacks 'model.extra.bias' \(2 such names\)"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, task_class, message):
    toy_trainer(tmp_path, max_steps=1).fit()
    with pytest.raises(CheckpointError, match=message):
        toy_trainer(tmp_path, task_class(), max_steps=2).fit(resume=True)


def _under_another_parallelism(folder: Path) -> None:
    """Train with FSDP; go on from step 4 with FSDP and with DDP, on weights of the checkpoint."""
    expected = ToyTask()
    toy_trainer(folder / "whole", expected, parallel="fsdp", keep_checkpoints=9).fit()
    assert len(list((folder / "whole" / "checkpoints" / "step_4").glob("shard_*"))) == 2
    for parallel in ("fsdp", "ddp"):
        task, other = ToyTask(seed=99), folder / parallel
        if is_main():
            shutil.copytree(folder / "whole", other)
            for step in range(5, 9):
                shutil.rmtree(other / "checkpoints" / f"step_{step}")
        dist.barrier()
        toy_trainer(other, task, parallel=parallel).fit(resume=True)
        if parallel == "fsdp":
            assert exact_lines(other) == exact_lines(folder / "whole")
        for line, whole in zip(exact_lines(other), exact_lines(folder / "whole"), strict=True):
            assert line.keys() == whole.keys()
            # Of how far weights moved, each process looks at a sample of those that it holds.
            shared = {key for key in whole if not key.startswith("update/")}
            assert {k: line[k] for k in shared} == pytest.approx(
                {k: whole[k] for k in shared}, rel=1e-5
            )
        for name, tensor in expected.modules.state_dict().items() if is_main() else ():
            torch.testing.assert_close(task.modules.state_dict()[name], tensor)


def test_a_sharded_run_goes_on_bitwise_and_under_another_parallelism(tmp_path):
    run_processes(_under_another_parallelism, 2, tmp_path)
    single = ToyTask(seed=99)
    shutil.rmtree(tmp_path / "whole" / "checkpoints" / "step_8")
    assert toy_trainer(tmp_path / "whole", single).fit(resume=True).step == 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_crash_on_a_gpu_changes_nothing(tmp_path):
    expected = ToyTask()
    toy_trainer(tmp_path / "whole", expected, device="cuda").fit()
    with pytest.raises(Crash):
        crashing = _stopping_batches(4, _crash)
        toy_trainer(tmp_path / "run", batches=crashing, device="cuda").fit()
    task = ToyTask(seed=99)
    toy_trainer(tmp_path / "run", task, device="cuda").fit(resume=True)
    _assert_same_run(tmp_path / "run", task, tmp_path / "whole", expected)
