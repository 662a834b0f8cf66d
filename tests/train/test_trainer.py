"""The loop: its order, accumulation, non-finite stops, evaluation, refusals."""

import contextlib
import copy
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from triptych.core.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from triptych.train import trainer as trainer_module
from triptych.train.config import ObjectiveWeight, OptimConfig, TrainConfig
from triptych.train.trainer import Trainer

from .toy import ToyTask, exact_lines, is_vision, toy_batches, toy_trainer


class _RecordingTask(ToyTask):
    def __init__(self, events):
        super().__init__()
        self.events = events

    def losses(self, batch, *, active):
        self.events.append(f"losses {sorted(active)}")
        return super().losses(batch, active=active)

    def after_step(self, step):
        self.events.append(f"after_step {step}")
        super().after_step(step)


def test_the_order_of_a_step(tmp_path, monkeypatch):
    events: list[str] = []

    def batches(start):
        events.append(f"loader from {start}")
        for batch in toy_batches(start):
            events.append("fetch")
            yield batch

    def evaluate(step):
        events.append(f"evaluate {step}")
        return {"eval/score": 0.5}

    def record(name, function):
        def recorded(*args, **kwargs):
            events.append(name)
            return function(*args, **kwargs)

        return recorded

    trainer = toy_trainer(
        tmp_path,
        _RecordingTask(events),
        max_steps=1,
        micro_batch_size=2,
        evaluate_every_steps=1,
        batches=batches,
        evaluate=evaluate,
    )
    saving = trainer_module.CheckpointWriter
    monkeypatch.setattr(saving, "save", record("save", saving.save))
    for name in ("clip_gradients", "check_finite", "apply_schedule"):
        monkeypatch.setattr(trainer_module, name, record(name, getattr(trainer_module, name)))
    monkeypatch.setattr(trainer.optimizer, "step", record("optimizer", trainer.optimizer.step))
    monkeypatch.setattr(
        trainer.optimizer, "zero_grad", record("zero_grad", trainer.optimizer.zero_grad)
    )
    trainer.fit()
    assert events == [
        "apply_schedule",
        "loader from 0",
        *["fetch", "losses ['itm']"] * 2,
        "check_finite",
        "clip_gradients",
        "optimizer",
        "apply_schedule",
        "zero_grad",
        "after_step 1",
        "evaluate 1",
        "save",
    ]


def test_metrics_hold_losses_rates_norm_and_total(tmp_path):
    toy_trainer(tmp_path, max_steps=5).fit()
    lines = exact_lines(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    # warm-up over 2 steps from 1e-6 to 1e-2 and 1e-3
    assert [line["lr/rest"] for line in lines[:3]] == pytest.approx([1e-6, 5.0005e-3, 1e-2])
    assert [line["lr/vision"] for line in lines[:3]] == pytest.approx([1e-6, 5.005e-4, 1e-3])
    # itc counts at steps 2 and 4 (from 0), with half its weight at first
    assert ["loss/itc" in line for line in lines] == [False, False, True, False, True]
    assert lines[2]["loss/total"] == pytest.approx(
        lines[2]["loss/itm"] + 0.5 * lines[2]["loss/itc"], rel=1e-6
    )
    assert all(line["grad_norm"] > 0 for line in lines)


def test_a_line_holds_means_since_the_last_line(tmp_path):
    toy_trainer(tmp_path / "each").fit()
    toy_trainer(tmp_path / "third", log_every_steps=3).fit()
    each = exact_lines(tmp_path / "each")
    third = exact_lines(tmp_path / "third")
    assert [line["step"] for line in third] == [3, 6, 8]
    expected = sum(line["loss/itm"] for line in each[3:6]) / 3
    assert third[1]["loss/itm"] == pytest.approx(expected, rel=1e-12)
    assert third[1]["loss/itc"] == each[4]["loss/itc"]


def test_accumulation_equals_the_joined_batch(tmp_path):
    def joined(start):
        single = toy_batches(2 * start)
        while True:
            first, second = next(single), next(single)
            yield {key: torch.cat([first[key], second[key]]) for key in first}

    def train(folder, batches, accumulate):
        task = ToyTask(dropout=0.0)
        Trainer(
            task,
            batches,
            config=TrainConfig(
                max_steps=3,
                global_batch_size=8,
                micro_batch_size=8 // accumulate,
                precision="fp32",
                device="cpu",
                progress="off",
                tensorboard=False,
            ),
            optim=OptimConfig(learning_rate=1e-2, vision_learning_rate=1e-2, eps=1e-3),
            weights=[ObjectiveWeight(name="itm")],
            run_folder=folder,
            is_vision=is_vision,
        ).fit()
        return task.modules.state_dict()

    large = train(tmp_path / "large", joined, accumulate=1)
    split = train(tmp_path / "split", toy_batches, accumulate=2)
    torch.testing.assert_close(split, large, rtol=1e-5, atol=1e-6)
    assert not torch.equal(large["model.head.weight"], ToyTask().modules["model"].head.weight)


class _BadLossTask(ToyTask):
    """One loss is NaN in the third step."""

    def losses(self, batch, *, active):
        losses = super().losses(batch, active=active)
        if len(self.after_steps) == 2:
            losses["itc"] = losses["itc"] * float("nan")
        return losses


class _BadGradientTask(ToyTask):
    """The loss is finite and its gradient is not, in the third step: d/dx sqrt(0 * x)."""

    def losses(self, batch, *, active):
        losses = super().losses(batch, active=active)
        if len(self.after_steps) == 2:
            losses["itm"] = losses["itm"] + (self.model.head.bias[0] * 0).abs().sqrt()
        return losses


@pytest.mark.parametrize(
    ("task_class", "culprit"),
    [
        (_BadLossTask, "loss 'itc' is nan, loss 'total' is nan"),
        (_BadGradientTask, "the gradient of model.head.bias is not finite"),
    ],
)
def test_a_non_finite_step_changes_nothing_and_is_named(tmp_path, task_class, culprit):
    task = task_class()
    trainer = toy_trainer(tmp_path, task, checkpoint_every_steps=2)
    kept = {}
    original = task.after_step

    def after_step(step):
        original(step)
        kept[step] = copy.deepcopy(task.modules.state_dict())

    task.after_step = after_step
    with pytest.raises(NonFiniteError) as caught:
        trainer.fit()
    message = str(caught.value)
    assert message.startswith(f"step 3: {culprit}; parameters were not updated")
    assert str(tmp_path / "checkpoints" / "step_2") in message
    now = task.modules.state_dict()
    assert all(torch.equal(now[name], kept[2][name]) for name in now)
    assert [line["step"] for line in exact_lines(tmp_path)] == [1, 2]


def test_evaluation_is_logged_and_does_not_touch_the_training(tmp_path):
    def evaluate(step):
        torch.rand(100)
        task.modules.eval()
        return {"eval/step": float(step)}

    toy_trainer(tmp_path / "without").fit()
    task = ToyTask()
    toy_trainer(tmp_path / "with", task, evaluate=evaluate, evaluate_every_steps=3).fit()
    lines = exact_lines(tmp_path / "with")
    assert [line for line in lines if "eval/step" in line] == [
        {"step": 3, "eval/step": 3.0},
        {"step": 6, "eval/step": 6.0},
    ]
    training = [line for line in lines if "eval/step" not in line]
    assert training == exact_lines(tmp_path / "without")


def test_an_old_run_is_not_overwritten(tmp_path):
    toy_trainer(tmp_path, max_steps=2).fit()
    with pytest.raises(ConfigError, match="holds checkpoints of an earlier run: resume it"):
        toy_trainer(tmp_path, max_steps=2).fit()


def test_a_loader_that_ends_is_an_error(tmp_path):
    with pytest.raises(DataError, match="the loader ended after step 1; it must be endless"):
        toy_trainer(tmp_path, batches=lambda start: iter([next(toy_batches(0))])).fit()


def test_a_batch_without_a_needed_key_is_refused(tmp_path):
    def batches(start):
        return ({"image": batch["image"]} for batch in toy_batches(start))

    with pytest.raises(ConfigError, match=r"the task reads \['label'\]"):
        toy_trainer(tmp_path, batches=batches).fit()


class _Loader:
    """An iterable whose iterator cannot be closed, and which can."""

    def __init__(self, closed):
        self.closed = closed

    def __iter__(self):
        return map(dict, toy_batches(0))

    def close(self):
        self.closed.append("loader")


def _generator(closed):
    try:
        yield from toy_batches(0)
    finally:
        closed.append("generator")


@pytest.mark.parametrize(("make", "name"), [(_Loader, "loader"), (_generator, "generator")])
@pytest.mark.parametrize("task_class", [ToyTask, _BadLossTask])
def test_the_loader_is_closed_once_even_after_an_error(tmp_path, make, name, task_class):
    closed: list[str] = []
    trainer = toy_trainer(tmp_path, task_class(), batches=lambda start: make(closed), max_steps=3)
    with contextlib.suppress(NonFiniteError):
        trainer.fit()
    assert closed == [name]


def test_bf16_trains_and_keeps_fp32_weights(tmp_path):
    class DtypeTask(ToyTask):
        def losses(self, batch, *, active):
            self.seen = nn.functional.linear(batch["image"], self.model.visual_encoder.weight)
            return super().losses(batch, active=active)

    task = DtypeTask()
    result = toy_trainer(tmp_path, task, max_steps=3, precision="bf16").fit()
    assert task.seen.dtype is torch.bfloat16
    assert all(parameter.dtype is torch.float32 for parameter in task.modules.parameters())
    assert result.step == 3
    assert result.losses["total"] == exact_lines(tmp_path)[-1]["loss/total"]


def test_training_outside_the_main_thread_installs_no_handlers(tmp_path):
    results = []
    thread = threading.Thread(
        target=lambda: results.append(toy_trainer(tmp_path, max_steps=2).fit().step)
    )
    thread.start()
    thread.join()
    assert results == [2]


@pytest.mark.parametrize("settings", [{}, {"log_every_steps": 100, "async_checkpoints": False}])
def test_a_run_folder_that_is_removed_ends_the_run_and_does_not_come_back(tmp_path, settings):
    """Noticed at the next line of the log, or else at the next checkpoint."""
    folder = tmp_path / "run"

    def batches(start):
        for number, batch in enumerate(toy_batches(start), start):
            if number == 4:  # in one step: the checkpoint of step 3 may still be being written
                folder.rename(tmp_path / "removed")
            yield batch

    with pytest.raises(CheckpointError, match=r"was removed"):
        toy_trainer(folder, batches=batches, checkpoint_every_steps=3, **settings).fit()
    assert not folder.exists()


def test_a_run_folder_that_is_removed_while_a_checkpoint_begins_is_told_so(tmp_path, monkeypatch):
    folder, made = tmp_path / "run", Path.mkdir

    def mkdir(path, *arguments, **options):
        if path.name.startswith(".tmp") and folder.exists():
            made(path, exist_ok=True)
            folder.rename(tmp_path / "removed")
            raise FileExistsError(17, "File exists", str(path))
        made(path, *arguments, **options)

    trainer = toy_trainer(folder, checkpoint_every_steps=3, async_checkpoints=False)
    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(CheckpointError, match=r"was removed"):
        trainer.fit()
    assert not folder.exists()
