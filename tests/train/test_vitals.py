"""The numbers for the run doctor: their values, and that they change nothing."""

import pytest
import torch

from triptych.core.console import Console
from triptych.objectives.vitals import PairWatch
from triptych.train.chance import Chance
from triptych.train.history import RunFacts
from triptych.train.vitals import Vitals, inputs

from .toy import ToyTask, exact_lines, is_vision, toy_batches, toy_trainer

CHANCES = {"itm": Chance(labels="label"), "itc": Chance(columns=True)}


class WatchedToy(ToyTask):
    """The toy task, which tells of its outputs."""

    def __init__(self):
        super().__init__()
        self.watch = PairWatch()

    def losses(self, batch, *, active):
        rows = torch.nn.functional.normalize(self.model(batch["image"]), dim=1)
        self.watch.note_embeddings(rows, rows.flip(0))
        return super().losses(batch, active=active)

    def batch_vitals(self, *, spread):
        return self.watch.take(spread=spread)

    def state_vitals(self):
        return {"temperature": float(self.model.logit_scale.detach())}


def trained(folder, task, resume=False, chances=None, **settings):
    trainer = toy_trainer(folder, task, **({"log_every_steps": 2} | settings))
    if chances:
        trainer = _with_chances(trainer, chances)
    trainer.fit(resume=resume)
    return trainer


def _with_chances(trainer, chances):
    trainer.facts = RunFacts(trainer.config.max_steps, 4, chances)
    trainer.vitals = Vitals(trainer.task, chances, is_vision=is_vision, num_columns=4, active=True)
    return trainer


def test_watching_changes_no_weight(tmp_path):
    plain = trained(tmp_path / "plain", ToyTask())
    watched = trained(tmp_path / "watched", ToyTask(), chances=CHANCES, log_every_steps=1)
    for name, value in plain.task.modules.state_dict().items():
        assert torch.equal(value, watched.task.modules.state_dict()[name]), name


def test_a_resumed_run_logs_the_same_numbers(tmp_path):
    trained(tmp_path / "whole", WatchedToy(), chances=CHANCES, log_every_steps=3)
    first = toy_trainer(tmp_path / "parts", WatchedToy(), log_every_steps=3)
    first = _with_chances(first, CHANCES)

    def stop(step):
        if step == 4:  # between two lines
            raise KeyboardInterrupt

    after = first.task.after_step
    first.task.after_step = lambda step: (after(step), stop(step - 1))
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    trained(tmp_path / "parts", WatchedToy(), resume=True, chances=CHANCES, log_every_steps=3)
    whole, parts = exact_lines(tmp_path / "whole"), exact_lines(tmp_path / "parts")
    assert whole == parts
    for name in (
        "chance/itm",
        "chance/itc",
        "embedding/image_cosine",
        "embedding/text_rank",
        "update/image",
        "update/rest",
        "input/image_spread",
        "temperature",
        "grad_norm_max",
    ):
        assert all(name in line for line in whole), name


def test_embeddings_are_looked_at_once_a_line_in_whichever_step_has_them():
    task = WatchedToy()
    task.modules.train()
    vitals = Vitals(task, {}, is_vision=is_vision, num_columns=4, active=True)
    batch = next(iter(toy_batches(0)))

    def step(*, has_pairs, due=False):
        if has_pairs:
            task.losses(batch, active=frozenset())
        found = vitals.of_batch()
        vitals.before_update(due=due)
        return "embedding/image_cosine" in found

    # the objective that has embeddings takes each other step, and no logged one
    assert [step(has_pairs=n % 2 == 1, due=n % 4 == 0) for n in range(1, 9)] == [
        *(True, False, False, False),
        *(True, False, False, False),
    ]
    assert step(has_pairs=False) is False
    again = Vitals(task, {}, is_vision=is_vision, num_columns=4, active=True)
    again.load_state(vitals.state())
    vitals = again
    assert step(has_pairs=True) is True


def test_a_frozen_image_side_is_told_by_its_change(tmp_path):
    task = ToyTask()
    task.model.visual_encoder.requires_grad_(False)
    trained(tmp_path, task)
    lines = exact_lines(tmp_path)
    assert {line["update/image"] for line in lines} == {0.0}
    assert all(line["update/rest"] > 0 for line in lines)


def test_a_finding_is_told_while_the_run_goes_on(tmp_path):
    def equal(start):
        for batch in toy_batches(start):
            yield {**batch, "image": torch.ones_like(batch["image"])}

    with (tmp_path / "log").open("w") as file:
        trainer = toy_trainer(
            tmp_path / "run", max_steps=40, progress="plain", batches=equal, log_every_steps=2
        )
        trainer.console = Console(file=file)
        trainer.fit()
    told = [line for line in (tmp_path / "log").read_text().splitlines() if "doctor" in line]
    assert [line.split(": ")[:2] for line in told] == [["doctor, step 10", "constant_images"]]


def test_inputs_that_are_equal_have_no_spread():
    image = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    texts = torch.tensor([[1, 2], [1, 2], [1, 3]])
    found = inputs({"image": image, "token_ids": texts})
    assert found["input/distinct_texts"] == 2 and found["input/image_spread"] > 0.1
    same = inputs({"image": image[:1].expand(3, -1, -1, -1), "token_ids": texts[:2]})
    assert same == {"input/image_spread": 0.0, "input/distinct_texts": 1.0}
    assert inputs({"image": image[:1], "token_ids": texts[:1], "index": texts}) == {}
