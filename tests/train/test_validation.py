"""When a model is validated, which one is the best, and when it has been enough."""

import math

import pytest
import torch

from triptych.core.errors import ConfigError
from triptych.core.outputs import MetricValue
from triptych.train.metrics_log import read_metrics
from triptych.train.validation import ValidationConfig, Validator, main_values

from .toy import ToyTask, exact_lines, toy_trainer


def value(name="score", number=0.5, higher=True):
    return MetricValue(
        name=name,
        value=number,
        low=number,
        high=number,
        num_items=3,
        protocol="p",
        higher_is_better=higher,
    )


def validator(numbers=(), *, higher=True, every=2, max_steps=8, kept=None, **settings):
    """Return a validator whose n-th measurement is the n-th of these numbers."""
    left = list(numbers)

    def measure(device, precision, *, trial):
        torch.randn(5)
        return [value(number=-1.0 if trial else left.pop(0), higher=higher)]

    def keep(last, note):
        if kept is not None:
            kept.append(last.step)

    return Validator(measure, keep, ValidationConfig(**settings), every=every, max_steps=max_steps)


def test_the_steps_between_validations():
    sizes = {"max_steps": 1000, "num_records": 640, "global_batch_size": 64}
    assert ValidationConfig().steps_between(**sizes) == 50
    assert ValidationConfig(every_steps=7).steps_between(**sizes) == 7
    assert ValidationConfig(every_epochs=1.5).steps_between(**sizes) == 15
    assert ValidationConfig(every_epochs=0.001).steps_between(**sizes) == 1
    assert ValidationConfig().steps_between(**sizes | {"max_steps": 3}) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"every_steps": 0},
        {"patience": 0},
        {"limit": 0},
        {"every_epochs": 0.0},
        {"every_epochs": 1.0, "every_steps": 2},
        {"rerank_top_k": -1},
    ],
)
def test_settings_out_of_range(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        ValidationConfig(**settings)


def test_the_best_is_kept_beside_the_last_and_logged(tmp_path):
    kept = []
    found = validator([0.1, 0.4, 0.4, 0.2], kept=kept)
    result = toy_trainer(tmp_path, validator=found).fit()
    assert (result.step, result.best_step, result.stopped_early) == (8, 4, False)
    assert kept == [2, 4]  # of equal ones the first
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "val/score" in line]
    assert [(line["step"], line["val/score"]) for line in lines] == [
        (2, 0.1),
        (4, 0.4),
        (6, 0.4),
        (8, 0.2),
    ]


def test_the_model_after_the_last_step_is_validated(tmp_path):
    found = validator([0.1, 0.2, 0.3], every=3)
    toy_trainer(tmp_path, validator=found).fit()
    assert found.last.step == 8


def test_of_a_loss_the_lowest_is_best(tmp_path):
    result = toy_trainer(tmp_path, validator=validator([3.0, 1.0, 2.0, 1.5], higher=False)).fit()
    assert result.best_step == 4


def test_training_is_bitwise_the_same_with_and_without(tmp_path):
    plain, checked = ToyTask(), ToyTask()
    toy_trainer(tmp_path / "plain", plain).fit()
    toy_trainer(tmp_path / "checked", checked, validator=validator([1.0] * 8, every=1)).fit()
    for name, tensor in plain.modules.state_dict().items():
        assert torch.equal(tensor, checked.modules.state_dict()[name]), name
    own = [line for line in exact_lines(tmp_path / "checked") if "val/score" not in line]
    assert own == exact_lines(tmp_path / "plain")


NUMBERS = [0.3, 0.5, math.nan, 0.4, 0.2, 0.9, 0.9, 0.9]


def test_patience_ends_the_run_and_resuming_it_says_so(tmp_path, capsys):
    settings = {"progress": "plain"}
    found = validator(NUMBERS, every=1, patience=3)
    result = toy_trainer(tmp_path, validator=found, **settings).fit()
    assert (result.step, result.best_step, result.stopped_early) == (5, 2, True)
    assert (tmp_path / "checkpoints" / "step_5").is_dir()
    assert (
        "stopped early after step 5 of 8: 3 validations in a row without" in capsys.readouterr().out
    )
    again = validator([], every=1, patience=3)  # would fail if asked
    result = toy_trainer(tmp_path, validator=again, **settings).fit(resume=True)
    assert (result.step, result.best_step, result.stopped_early) == (5, 2, True)
    assert "stopped early after step 5" in capsys.readouterr().out
    assert again.last == found.last


def test_a_run_whose_patience_ends_with_it_has_not_stopped_early(tmp_path):
    found = validator([0.3, 0.2, 0.2, 0.2], patience=3)
    result = toy_trainer(tmp_path, validator=found).fit()
    assert (result.step, result.stopped_early) == (8, False)


@pytest.mark.parametrize("killed_after", [1, 2, 3, 4])
def test_a_resumed_run_has_the_same_best_and_patience(tmp_path, killed_after):
    whole = toy_trainer(tmp_path / "whole", validator=validator(NUMBERS, every=1, patience=3))
    expected = whole.fit()

    class KilledError(Exception):
        pass

    first = validator(NUMBERS, every=1, patience=3)
    add = first.add

    def add_and_die(step, values):
        add(step, values)
        if step == killed_after:  # after its validation, before its checkpoint
            raise KilledError

    first.add = add_and_die
    with pytest.raises(KilledError):
        toy_trainer(tmp_path / "run", validator=first).fit()
    second = validator(NUMBERS[killed_after - 1 :], every=1, patience=3)
    result = toy_trainer(tmp_path / "run", validator=second).fit(resume=True)
    assert (result.step, result.best_step) == (expected.step, expected.best_step)
    assert exact_lines(tmp_path / "run")[-1] == exact_lines(tmp_path / "whole")[-1]


def test_other_settings_on_resume_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"every_steps is 1 now and was 2 when the run began"):
        toy_trainer(tmp_path, validator=validator([1.0] * 4)).fit()
        toy_trainer(tmp_path, validator=validator([1.0] * 4, every=1), max_steps=9).fit(resume=True)


def test_an_unknown_metric_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(ConfigError, match=r"metric = 'scoer'.*score.*gives score"):
        toy_trainer(tmp_path, validator=validator([1.0], metric="scoer")).fit()
    assert not list(tmp_path.glob("checkpoints/step_*"))


def test_the_accuracy_of_a_class_may_decide_and_no_part_is_shown():
    values = [value("accuracy", 0.5), value("accuracy/cat", 0.7), value("accuracy/dog", 0.3)]
    assert [v.name for v in main_values(values)] == ["accuracy"]
    found = validator(metric="accuracy/dog")
    assert "accuracy/dog (higher is better)" in found.begin(values[:2])  # a trial without a dog
    assert found.add(2, values) and found.best.value == 0.3
    with pytest.raises(ConfigError, match=r"accuracy/dog.*gives accuracy, accuracy/cat"):
        found.add(4, values[:2])


def test_losses_have_names_of_their_own():
    values = [value("loss/total"), value("loss/itc")]
    assert main_values(values) == values


def test_a_model_that_scores_nan_is_never_the_best():
    found = validator()
    assert not found.add(2, [value(number=math.nan)])
    assert found.add(4, [value(number=-3.0)])
    assert not found.add(6, [value(number=math.inf)])
    assert "after step 4" in found.ranking()
    state = found.state()
    other = validator()
    other.load_state(state)
    assert other.state() == state
    assert other.best == found.best
