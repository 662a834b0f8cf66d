"""What a model can be asked: by what it was trained for, and by what its family can do."""

from dataclasses import replace
from pathlib import Path

import pytest

from triptych.core.errors import CapabilityError
from triptych.models.families import model_config
from triptych.models.flava.config import FLAVAConfig
from triptych.recipes.registry import RECIPES, build_recipe
from triptych.serving.loading import check_trained
from triptych.tasks.pretraining import flava
from triptych.tasks.registry import TASKS, models_to_take, recipe_that_teaches, trained_for_words

FOLDER = Path("runs/mine/model")


class Model:
    """A model as `require` sees it."""

    def __init__(self, name, *capabilities):
        self.config = model_config(name)
        self.capabilities = frozenset(capabilities)


def test_every_recipe_that_is_named_exists():
    named = [recipe for spec in TASKS.values() for recipe in spec.recipes]
    assert {recipe.name for recipe in named} == set(RECIPES)
    assert len(named) == len(RECIPES.names())
    for spec in TASKS.values():
        for recipe in spec.recipes:
            assert isinstance(build_recipe(recipe.name, "tiny").task, spec.config)
            assert set(recipe.teaches or ()) <= set(spec.uses())


@pytest.mark.parametrize(
    ("name", "asked", "recipe"),
    [
        ("mplug_tiny", "answer", "mplug.vqa"),
        ("vlmo_tiny", "answer", "vlmo.vqa"),
        ("vlmo_tiny", "match", "vlmo.retrieval"),
        ("flava_tiny", "answer", "flava.vqa"),
        ("flava_tiny", "match", "flava.retrieval"),
        ("flava_tiny", "embed", "flava.retrieval"),
    ],
)
def test_the_recipe_is_that_of_the_family(name, asked, recipe):
    with pytest.raises(CapabilityError, match=f"triptych train {recipe} "):
        check_trained(asked, Model(name, "decode"), ["language"], FOLDER)


def test_what_no_recipe_teaches_a_family_is_said():
    with pytest.raises(CapabilityError, match="No recipe teaches it to models of this family"):
        check_trained("judge", Model("dvae_tiny"), ["pretraining"], FOLDER)


def is_refused(asked, trained):
    try:
        check_trained(asked, Model("vlmo_tiny"), [trained], FOLDER)
    except CapabilityError:
        return True
    return False


def test_what_was_trained_is_not_refused():
    every = sorted(trained_for_words())
    enough = {
        asked: [word for word in every if not is_refused(asked, word)]
        for asked in ("answer", "match")
    }
    assert enough == {
        "answer": ["answer_classification", "vqa"],
        "match": ["pretraining", "retrieval"],
    }


def test_models_that_can_are_those_of_the_registered_recipes(monkeypatch):
    def message():
        with pytest.raises(CapabilityError) as error:
            check_trained("caption", Model("vlmo_tiny"), ["pretraining"], FOLDER)
        return str(error.value)

    assert message().endswith("take a model of mPLUG, which `triptych train mplug.pretrain` makes")
    joint = replace(flava.SPEC, serves=("caption",))
    monkeypatch.setattr("triptych.tasks.registry.TASKS", {"joint": joint})
    advice = "take a model of FLAVA, which `triptych train flava.joint` makes"
    assert models_to_take("caption") == advice
    assert models_to_take("judge") == "no known family of models can"


@pytest.mark.parametrize("asked", ["caption", "ground"])
def test_without_a_decoder_nothing_is_said(asked):
    with pytest.raises(CapabilityError, match="no decoder"):
        check_trained(asked, Model("vlmo_tiny"), ["pretraining", "grounding"], FOLDER)
    assert isinstance(model_config("flava_tiny"), FLAVAConfig)
    with pytest.raises(CapabilityError, match="no decoder"):
        check_trained(asked, Model("flava_tiny"), ["pretraining", "grounding"], FOLDER)


@pytest.mark.parametrize(
    ("name", "task", "recipe"),
    [
        ("flava_tiny", "retrieval", "flava.retrieval"),
        ("flava_tiny", "zero_shot", "flava.retrieval"),
        ("flava_tiny", "vqa", "flava.vqa"),
        ("flava_tiny", "snli_ve", "flava.snli_ve"),
        ("flava_tiny", "classification", "classify.pairs"),
        ("flava_tiny", "nlvr2", "flava.nlvr2"),
        ("flava_tiny", "hateful_memes", "flava.hateful_memes"),
        ("vlmo_tiny", "retrieval", "vlmo.retrieval"),
        ("vlmo_tiny", "zero_shot", "vlmo.retrieval"),
        ("mplug_tiny", "retrieval", "mplug.retrieval"),
        ("mplug_tiny", "vqa", "mplug.vqa"),
    ],
)
def test_eval_advises_a_recipe_of_the_family_too(name, task, recipe):
    assert recipe_that_teaches(task, Model(name, "itc", "itm")) == recipe
