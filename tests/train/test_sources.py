"""Training on several sources: what each may teach, counts and curves, and exact resuming."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from triptych.core.errors import CheckpointError, ConfigError
from triptych.core.outputs import BatchKind
from triptych.data.mixture import MixtureSource, SourceOrder, build_mixture
from triptych.data.records import Record
from triptych.data.transforms.pipeline import ImageTransform, ImageTransformConfig
from triptych.train.config import ObjectiveWeight, OptimConfig, TrainConfig
from triptych.train.sources import BatchSource
from triptych.train.trainer import Trainer

from .test_resume import Crash
from .toy import CLASSES, FEATURES, ToyTask, exact_lines, is_vision

SEED, RATIOS = 4, (2.0, 1.0, 1.0)
SOURCES = (
    BatchSource(name="small", kind="labelled"),
    BatchSource(name="plain", kind="plain"),
    BatchSource(name="large", kind="labelled"),
)


class MixedToyTask(ToyTask):
    """`itm` needs labels, `itc` does not; notes which objectives each batch was asked for."""

    batch_keys = frozenset({"image"})
    batch_kinds = {  # noqa: RUF012 - a constant
        "labelled": BatchKind(frozenset({"image", "label"}), frozenset({"itm"})),
        "plain": BatchKind(frozenset({"image"}), frozenset({"itc"})),
    }

    def __init__(self, **settings):
        super().__init__(**settings)
        self.asked = []

    def losses(self, batch, *, active):
        self.asked.append((frozenset(batch), active))
        return super().losses(batch, active=active)


class Features:
    """Each sample's features are drawn by its own generator; its label is its number."""

    needs_boxes = False

    def __init__(self, labelled):
        self.labelled = labelled

    def text_sample(self, record, rng):
        return rng.normal(size=FEATURES).astype(np.float32), int(record.text)

    def batch(self, samples):
        batch = {"image": torch.tensor(np.stack([features for features, _ in samples]))}
        if self.labelled:
            batch["label"] = torch.tensor([number % CLASSES for _, number in samples])
        return batch


def source(name, size, labelled, ratio):
    return MixtureSource(
        name=name,
        records=[Record(record_id=str(i), text=str(i)) for i in range(size)],
        collator=Features(labelled),
        transform=ImageTransform(ImageTransformConfig(image_size=8), train=True),
        ratio=ratio,
    )


def batches(start, accumulate=1):
    sizes = (5, 7, 50)
    mixed = [
        source(label.name, size, label.kind == "labelled", ratio)
        for label, size, ratio in zip(SOURCES, sizes, RATIOS, strict=True)
    ]
    return build_mixture(
        mixed, seed=SEED, local_batch_size=4, accumulate=accumulate, start_step=start
    )


def trainer(folder, task=None, *, loader=None, weights=(), sources=SOURCES, **settings):
    config = {
        "max_steps": 9,
        "global_batch_size": 4,
        "log_every_steps": 1,
        "checkpoint_every_steps": 1,
        "precision": "fp32",
        "device": "cpu",
        "progress": "off",
        "tensorboard": False,
        "seed": 11,
    } | settings
    accumulate = 4 // config.get("micro_batch_size", 4)
    return Trainer(
        task or MixedToyTask(),
        loader or (lambda start: batches(start, accumulate)),
        config=TrainConfig(**config),
        optim=OptimConfig(learning_rate=1e-2, vision_learning_rate=1e-3, warmup_steps=2),
        weights=weights,
        run_folder=folder,
        is_vision=is_vision,
        sources=sources,
    )


def drawn(steps):
    order = SourceOrder(RATIOS, SEED)
    return [order.at(step) for step in range(steps)]


def test_each_step_trains_what_its_source_can_teach(tmp_path):
    task = MixedToyTask()
    trainer(tmp_path, task).fit()
    keys = {"labelled": {"image", "label", "index"}, "plain": {"image", "index"}}
    aims = {"labelled": {"itm"}, "plain": {"itc"}}
    kinds = [SOURCES[number].kind for number in drawn(9)]
    assert task.asked == [(frozenset(keys[kind]), frozenset(aims[kind])) for kind in kinds]
    assert set(kinds) == set(keys)


def test_the_log_has_a_curve_and_a_counter_for_each_source(tmp_path):
    trainer(tmp_path, log_every_steps=3, max_steps=9).fit()
    trainer(tmp_path / "each", max_steps=9).fit()
    each = exact_lines(tmp_path / "each")
    numbers = drawn(9)
    for line in exact_lines(tmp_path):
        counts = Counter(numbers[: line["step"]])
        for number, label in enumerate(SOURCES):
            assert line[f"source/{label.name}/steps"] == counts[number]
            steps = [
                s for s in range(line["step"] - 2, line["step"] + 1) if numbers[s - 1] == number
            ]
            key = f"source/{label.name}/total"
            assert (key in line) == bool(steps)
            if steps:
                own = [each[step - 1]["loss/total"] for step in steps]
                assert line[key] == pytest.approx(sum(own) / len(own), rel=1e-6)
    first = SOURCES[numbers[0]]
    objective = "itm" if first.kind == "labelled" else "itc"
    assert each[0][f"source/{first.name}/{objective}"] == each[0][f"loss/{objective}"]
    assert "loss/itm" not in each[numbers.index(1)]


@pytest.mark.parametrize("settings", [{}, {"micro_batch_size": 2}, {"log_every_steps": 4}])
def test_a_crash_in_any_step_changes_nothing(tmp_path, settings):
    expected = MixedToyTask()
    trainer(tmp_path / "whole", expected, **settings).fit()
    for step in (1, 4, 8):
        at = step * (4 // settings.get("micro_batch_size", 4))

        def crashing(start, at=at):
            for number, batch in enumerate(
                batches(start, (4 // settings.get("micro_batch_size", 4))), start
            ):
                if number == at:
                    raise Crash
                yield batch

        folder = tmp_path / str(step)
        with pytest.raises(Crash):
            trainer(folder, loader=crashing, **settings).fit()
        task = MixedToyTask(seed=99)  # other weights: all must come from the checkpoint
        trainer(folder, task, **settings).fit(resume=True)
        assert exact_lines(folder) == exact_lines(tmp_path / "whole")
        state, expected_state = task.modules.state_dict(), expected.modules.state_dict()
        assert all(torch.equal(state[name], expected_state[name]) for name in expected_state)


def test_a_run_on_other_sources_does_not_go_on(tmp_path):
    trainer(tmp_path, max_steps=1).fit()
    renamed = (*SOURCES[:2], BatchSource(name="other", kind="labelled"))
    with pytest.raises(CheckpointError, match=r"'large'.*'other'"):
        trainer(tmp_path, sources=renamed, max_steps=2).fit(resume=True)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ((), "several kinds .labelled, plain."),
        ((BatchSource(name="x", kind="lablled"),), "did you mean 'labelled'"),
        ((BatchSource(name="x"),), "has kind None"),
    ],
)
def test_kinds_must_be_known(tmp_path, sources, message):
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, sources=sources)


def test_a_task_of_one_kind_takes_sources_without_kinds(tmp_path):
    plain = tuple(BatchSource(name=name) for name in "ab")
    task = ToyTask()

    def labelled(start):
        return build_mixture(
            [source("a", 5, True, 1.0), source("b", 6, True, 1.0)],
            seed=0,
            local_batch_size=4,
            start_step=start,
        )

    result = trainer(tmp_path, task, loader=labelled, sources=plain).fit()
    assert {"itm", "itc", "total"} == set(result.losses)
    with pytest.raises(ConfigError, match="takes a single kind"):
        trainer(tmp_path, ToyTask(), sources=SOURCES)


def test_a_source_without_an_objective_at_some_step_is_refused(tmp_path):
    late = (ObjectiveWeight(name="itm"), ObjectiveWeight(name="itc", start_step=3))
    with pytest.raises(ConfigError, match=r"at step 0 .* on source 'plain'.*'itc'"):
        trainer(tmp_path, weights=late)
    with pytest.raises(ConfigError, match=r"on source 'plain'.*one of \['itc'\]"):
        trainer(tmp_path, weights=late[:1])


@pytest.mark.parametrize("number", [None, 3])
def test_a_batch_must_say_its_source(tmp_path, number):
    def unnamed(start):
        for batch in batches(start):
            batch.pop("source")
            yield batch if number is None else batch | {"source": torch.tensor(number)}

    with pytest.raises(ConfigError, match="a batch of 3 sources has 'source'"):
        trainer(tmp_path, loader=unnamed).fit()


def test_what_a_source_lacks_is_named(tmp_path):
    def without_labels(start):
        for batch in batches(start):
            batch.pop("label", None)
            yield batch

    with pytest.raises(ConfigError, match=r"the task reads \['label'\]"):
        trainer(tmp_path, loader=without_labels).fit()


def test_a_step_of_two_sources_is_refused(tmp_path):
    def alternating(start):
        for number, batch in enumerate(batches(start)):
            yield {"image": batch["image"], "label": torch.zeros(4, dtype=torch.int64),
                   "source": torch.tensor(number % 2)}  # fmt: skip

    with pytest.raises(ConfigError, match="step 1 mixes batches of two sources"):
        trainer(tmp_path, loader=alternating, micro_batch_size=2).fit()


def test_the_total_of_a_step_is_that_of_its_objectives(tmp_path):
    weights = (ObjectiveWeight(name="itm", weight=2.0), ObjectiveWeight(name="itc", weight=0.5))
    trainer(tmp_path, weights=weights).fit()
    for line in exact_lines(tmp_path):
        parts = 2.0 * line.get("loss/itm", 0.0) + 0.5 * line.get("loss/itc", 0.0)
        assert math.isclose(line["loss/total"], parts, rel_tol=1e-6)
