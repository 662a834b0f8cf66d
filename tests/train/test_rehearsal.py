"""Steps that are done to be measured: their parts, their peaks, and that nothing of them stays."""

import itertools

import pytest
import torch

from triptych.train.rehearsal import OUTSIDE, PARTS, _peaks, measure_memory, time_steps

from .toy import toy_trainer

MIB = 2**20


def test_a_peak_belongs_to_the_part_in_which_it_is_reached():
    """Two micro-batches, whose gradients of 3 stay, and an update."""
    first = [("data", 0), ("[memory]", 1), ("forward", 0), ("[memory]", 10), ("[memory]", -4)]
    second = [("backward", 0), ("[memory]", 3), ("[memory]", -7), ("data", 0), ("[memory]", 10)]
    end = [("[memory]", -10), ("update", 0), ("[memory]", 5), ("[memory]", -8), ("end", 0)]
    assert _peaks([*first, *second, *end]) == (11, 13, 8)


def test_without_a_second_micro_batch_there_is_no_later_peak():
    assert _peaks([("data", 0), ("[memory]", 5), ("update", 0), ("[memory]", 1)]) == (5, 0, 6)


def test_seconds_of_parts_add_up_to_the_step(tmp_path):
    trainer = toy_trainer(tmp_path)
    ticks = itertools.count()
    found = time_steps(trainer, [0, 1, 2], clock=lambda: float(next(ticks)))
    assert [step.number for step in found] == [0, 1, 2]
    for step in found:
        assert set(step.seconds) == set(PARTS)
        assert step.seconds["forward"] == trainer.split.accumulate
        assert step.passes[OUTSIDE] == step.seconds["forward"]  # the toy has no blocks


def test_the_memory_of_a_known_tensor_is_seen(tmp_path, monkeypatch):
    trainer = toy_trainer(tmp_path)
    losses = trainer.task.losses

    def with_ballast(batch, *, active):
        torch.zeros(32 * MIB // 4)  # given back at once
        return losses(batch, active=active)

    small = measure_memory(trainer, [0, 1])[-1]
    monkeypatch.setattr(trainer.task, "losses", with_ballast)
    large = measure_memory(trainer, [0, 1])[-1]
    assert large.peaks[0] - small.peaks[0] == pytest.approx(32 * MIB, rel=0.01)
    assert large.peaks[2] == pytest.approx(small.peaks[2], abs=MIB)


def test_a_rehearsal_leaves_no_file_and_a_trainer_that_trains(tmp_path):
    trainer = toy_trainer(tmp_path)
    time_steps(trainer, [0])
    assert list(tmp_path.rglob("*")) == []
    assert trainer.fit().step == trainer.config.max_steps
