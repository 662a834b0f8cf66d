"""Recipes by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from triptych.core.registry import Registry
from triptych.recipes import (
    classification,
    dino,
    dvae,
    flava,
    mplug,
    mplug_data,
    segmentation,
    vlmo,
)
from triptych.recipes.config import RunConfig
from triptych.tasks.registry import TASKS

Build = Callable[[str], RunConfig]


class _Recipes(Registry[Build]):
    """The papers' recipes, and those that registered tasks bring."""

    def entries(self) -> Mapping[str, Build]:
        """Return what builds each recipe, from its scale."""
        brought = (recipe for spec in TASKS.values() for recipe in spec.recipes)
        return self._entries | {r.name: r.build for r in brought if r.build is not None}


RECIPES = _Recipes("recipe")
for _build in (
    mplug.pretrain,
    mplug.caption,
    mplug.scst,
    mplug.retrieval,
    mplug.vqa,
    mplug.grounding,
    mplug.nlvr2,
    mplug.snli_ve,
    mplug.hateful_memes,
    mplug_data.pretrain_14m,
    mplug_data.continue_4m,
    mplug_data.vqa_vg,
    mplug_data.grounding_mixed,
    mplug_data.grounding_second,
):
    RECIPES.register(f"mplug.{_build.__name__}")(_build)
RECIPES.register("segment.images")(segmentation.images)
RECIPES.register("vlmo.segmentation")(segmentation.segmentation)
for _build in (
    classification.answers,
    classification.pairs,
    classification.images,
    classification.texts,
):
    RECIPES.register(f"classify.{_build.__name__}")(_build)
for _build in (
    vlmo.vision,
    vlmo.language,
    vlmo.pretrain,
    vlmo.retrieval,
    vlmo.vqa,
    vlmo.nlvr2,
    vlmo.snli_ve,
    vlmo.hateful_memes,
):
    RECIPES.register(f"vlmo.{_build.__name__}")(_build)
RECIPES.register(dvae.RECIPE)(dvae.dvae)
RECIPES.register(dino.RECIPE)(dino.dino)
for _build in (
    flava.image,
    flava.text,
    flava.joint,
    flava.retrieval,
    flava.vqa,
    flava.nlvr2,
    flava.snli_ve,
    flava.hateful_memes,
    flava.glue,
):
    RECIPES.register(f"flava.{_build.__name__}")(_build)


def build_recipe(name: str, scale: str) -> RunConfig:
    """Return the run of a recipe at a scale.

    Args:
        name: Such as "mplug.pretrain".
        scale: smoke, tiny, small, base or large.

    Raises:
        ConfigError: No such recipe or scale; the message names the nearest.
    """
    return RECIPES.get(name)(scale)
