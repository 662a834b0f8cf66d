"""The built-in studies: every run of each resolves, and its variants differ as they say."""

import re
from pathlib import Path

import pytest

from triptych.core.config import to_dict
from triptych.lab.definition import built_in_studies, load_study
from triptych.lab.plan import Plan, Settings, at_scale, score_format
from triptych.models.families import model_config

NAMES = (
    "systems",
    "mplug.fusion",
    "mplug.stride",
    "mplug.objectives",
    "mplug.momentum",
    "vlmo.multiway",
    "vlmo.stages",
    "vlmo.objectives",
    "vlmo.negatives",
    "flava.joint",
    "flava.losses",
    "flava.contrastive",
    "flava.init",
)


def test_there_is_a_study_for_each_question():
    assert sorted(built_in_studies()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [None, "smoke"])
def test_every_run_of_a_study_resolves(name, scale, tmp_path):
    study = load_study(name)
    study = at_scale(study, scale or study.scale, None)
    plan = Plan(study, Settings(), tmp_path, "fp32")
    runs = [plan.variant_run(variant, 1, 10).config for variant in study.variants]
    for config in (*runs, *(plan.stage_run(stage, 1).config for stage in study.stages)):
        model_config(config.model.name)
        assert config.train.precision == "fp32"
        assert config.data.train[0].path.startswith(str(tmp_path))
        assert "'{" not in str(to_dict(config)), "a stage's folder was not filled in"
    assert all(config.train.max_steps == 10 for config in runs)
    assert len({str(to_dict(config)) for config in runs}) == len(runs), "two variants are the same"
    assert all(score_format(score) for score in study.scores)


@pytest.mark.parametrize("name", NAMES)
def test_the_main_comparison_has_a_paper(name):
    main = load_study(name).comparisons[0]
    assert main.paper is not None
    assert main.paper.source
    assert main.paper.says


def test_the_study_of_the_guide_loads(tmp_path):
    guide = Path(__file__).parents[2] / "docs" / "how-to" / "compare.md"
    (text,) = re.findall(r"```yaml\n(.*?)```", guide.read_text(encoding="utf-8"), flags=re.DOTALL)
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    study = load_study(str(tmp_path / "mine.yaml"))
    plan = Plan(study, Settings(), tmp_path, "fp32")
    assert plan.variant_run(study.variant("longer"), 0, 1200).config.optim.warmup_steps == 600
    assert plan.variant_run(study.variant("longer"), 0, 400).config.optim.warmup_steps == 200


@pytest.mark.parametrize("name", NAMES)
def test_all_seeds_share_a_stage_that_is_not_their_own(name, tmp_path):
    plan = Plan(load_study(name), Settings(), tmp_path, "fp32")
    for stage in plan.study.stages:
        runs = [plan.stage_run(stage, seed) for seed in (None, 0, 1)]
        assert not stage.per_seed
        assert runs[0] == runs[1] == runs[2]
