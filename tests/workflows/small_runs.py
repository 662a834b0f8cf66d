"""Recipes made small enough for a unit test, without changing what they do."""

from dataclasses import replace

from triptych.data.source import DataSourceConfig
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.scenes.layout import SceneFiles
from triptych.serving.loading import load_model
from triptych.workflows.scene_data import scene_source

SOURCES = {"pretrain": "caption", "retrieval": "caption", "scst": "caption"}
"""Which of `scene_source`'s tasks a recipe reads, where the names differ."""


def trained_model(folder):
    """Return the model of a folder, ready to be trained, on the CPU."""
    return load_model(folder, device="cpu", train=True).model


def source_of(files: SceneFiles, recipe: str, split: str = "train") -> DataSourceConfig:
    """Return the written scenes in the format that a recipe reads."""
    kind = recipe.removeprefix("mplug.")
    if kind == "nlvr2":
        images = str(files.nlvr2_images(split))
        return DataSourceConfig(path=str(files.nlvr2(split)), reader="nlvr2", image_root=images)
    if kind == "snli_ve":
        images = str(files.split_images(split))
        return DataSourceConfig(path=str(files.snli_ve(split)), reader="snli_ve", image_root=images)
    return scene_source(files, SOURCES.get(kind, kind), split)


def small_run(recipe: str, *sources: DataSourceConfig, **train: object) -> RunConfig:
    """Return a recipe at scale "smoke" on these sources: one thread, fp32, nothing shown."""
    config = build_recipe(recipe, "smoke")
    quiet = {"progress": "off", "num_threads": 1, "precision": "fp32", "tensorboard": False}
    return replace(
        config,
        data=replace(config.data, train=sources, cache_mib=64),
        train=replace(config.train, **(quiet | train)),
    )
