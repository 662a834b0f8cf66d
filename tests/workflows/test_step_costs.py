"""What a step costs: operations against the counts on paper, phases by hand."""

from dataclasses import replace

import pytest

from triptych.data.collate import PretrainingTextConfig
from triptych.recipes.registry import build_recipe
from triptych.scenes.config import SceneConfig
from triptych.text import Tokenizer
from triptych.train.config import ObjectiveWeight
from triptych.workflows.estimate import count_run
from triptych.workflows.scene_data import format_source, write_once
from triptych.workflows.step_costs import count_step_flops, mean_of_step, phases_of, trial_run

LENGTH = 8
"""Tokens of a caption."""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    return write_once(
        folder, "smoke", 24, num_val=0, num_test=0, config=SceneConfig(), formats=("captions",)
    )


@pytest.mark.parametrize("recipe", ["mplug.pretrain", "vlmo.pretrain"])
def test_counted_operations_are_near_those_on_paper(recipe, scenes, tmp_path):
    """Every caption is cut to the length that the count on paper takes each to have.

    On paper a prefix is half of a caption, and so few tokens are a fraction of one to predict.
    """
    config = build_recipe(recipe, "smoke")
    config = replace(
        config,
        captions=PretrainingTextConfig(max_text_tokens=LENGTH),
        data=replace(config.data, train=(format_source(scenes, "captions", "train"),)),
        train=replace(config.train, precision="fp32", num_threads=1),
        weights=tuple(ObjectiveWeight(name=weight.name) for weight in config.weights),
    )
    counted = count_step_flops(config, tmp_path / "run", steps_of_phase=2)
    words = Tokenizer.load(tmp_path / "run").vocab_size
    config = replace(config, tokenizer=replace(config.tokenizer, vocab_size=words))
    on_paper = count_run(config).work.model_flops() * config.train.global_batch_size
    assert counted == pytest.approx(on_paper, rel=0.15)


def test_phases_begin_where_objectives_join_or_leave():
    run = build_recipe("mplug.pretrain", "tiny")
    late = ObjectiveWeight(name="itm", start_step=950, end_step=1425)
    run = replace(run, weights=(ObjectiveWeight(name="itc"), late))
    assert [(phase.start, phase.share) for phase in phases_of(run)] == [
        (0, 0.5),
        (950, 0.25),
        (1425, 0.25),
    ]
    trial = trial_run(run, 4)
    assert trial.train.max_steps == 12
    assert [(w.start_step, w.end_step) for w in trial.weights] == [(0, None), (4, 8)]


def test_an_objective_that_begins_after_the_end_is_in_no_phase():
    run = build_recipe("mplug.pretrain", "smoke")
    run = replace(
        run, weights=(ObjectiveWeight(name="itc"), ObjectiveWeight(name="itm", start_step=9))
    )
    assert len(phases_of(run)) == 1
    assert trial_run(run, 4).weights[1].start_step == 4


def test_a_mean_is_weighted_by_phases():
    assert mean_of_step([1.0, 1.0, 5.0, 7.0], [0.25, 0.75], 2) == 0.25 + 0.75 * 6
