"""Which models a recipe trains, and what it says of those that it does not."""

from dataclasses import replace

import pytest

from triptych.core.errors import ConfigError
from triptych.models.families import build_model, model_config
from triptych.recipes.registry import RECIPES, build_recipe
from triptych.tasks.registry import check_model
from triptych.workflows.run import train_run

from .small_runs import small_run, source_of
from .test_flava_data import write_tokenizer

OF_ANY = {
    "mplug.snli_ve", "vlmo.vqa", "vlmo.snli_ve", "flava.vqa", "flava.snli_ve",
    "mplug.hateful_memes", "vlmo.hateful_memes", "flava.hateful_memes", "flava.glue",
    "classify.answers", "classify.pairs", "classify.texts", "dino",
    "classify.images", "segment.images", "vlmo.segmentation",
}  # fmt: skip
"""Classifiers and DINO read what every family has."""


FAMILIES = ("mplug", "vlmo", "flava")


@pytest.fixture(scope="module")
def models():
    return {kind: build_model(model_config(f"{kind}_tiny", vocab_size=64)) for kind in FAMILIES}


@pytest.mark.parametrize("recipe", sorted(RECIPES))
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_recipe_refuses_models_of_other_families(models, recipe, kind):
    task = build_recipe(recipe, "smoke").task
    if recipe in OF_ANY or recipe.endswith(".nlvr2") or recipe.startswith(f"{kind}."):
        check_model(task, models[kind], recipe, "it")
        return
    with pytest.raises(
        ConfigError, match=f"^{recipe} trains .*models.*, and it is of .*: name another"
    ):
        check_model(task, models[kind], recipe, "it")


@pytest.mark.parametrize("recipe", ["flava.joint", "vlmo.retrieval"])
def test_a_start_of_another_family_is_named(scenes, pretrained, tmp_path, recipe):
    run = small_run(recipe, source_of(scenes, "mplug.pretrain"))
    start = str(pretrained / "model")
    with pytest.raises(ConfigError, match=f"{start} \\(model.init_from\\) is of mPLUG"):
        train_run(replace(run, model=replace(run.model, init_from=start)), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"model.name = mplug_tiny is of mPLUG"):
        train_run(replace(run, model=replace(run.model, name="mplug_tiny")), tmp_path / "named")


def test_codes_of_a_random_codebook_are_warned_of(scenes, tmp_path, capsys):
    run = small_run("flava.image", source_of(scenes, "mplug.pretrain"), max_steps=1)
    train_run(run, tmp_path / "random")
    assert "codebook has random weights" in capsys.readouterr().out
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    task = replace(run.task, image_tokenizer=str(tokenizer))
    train_run(replace(run, task=task), tmp_path / "named")
    assert "random weights" not in capsys.readouterr().out
    again = replace(run.model, init_from=str(tmp_path / "named" / "model"))
    train_run(replace(run, model=again), tmp_path / "again")
    assert "random weights" not in capsys.readouterr().out
