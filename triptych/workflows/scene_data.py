"""The built-in scenes as training data, for runs that name none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from triptych.core.console import Console
from triptych.core.errors import ConfigError
from triptych.core.reading import read_json_object
from triptych.data.source import DataSourceConfig
from triptych.recipes.config import RunConfig
from triptych.scenes.config import SceneConfig
from triptych.scenes.layout import SceneFiles
from triptych.scenes.write import write_scenes
from triptych.tasks.registry import recipe_needs

SCENES = {"smoke": 48, "tiny": 24_000, "small": 100_000}
"""Built-in scenes that a scale trains on."""

FORMATS_OF_NEEDS = {
    ("image", "caption"): "captions",
    ("image|video", "caption"): "captions",
    ("image",): "captions",
    ("caption|image|text",): "captions",
    ("text|caption",): "text",
    ("image|video", "question", "answers"): "vqa",
    ("image", "phrase", "box"): "refs",
    ("images", "statement", "label"): "nlvr2",
    ("image", "hypothesis", "label"): "snli_ve",
    ("image", "text|hypothesis", "label"): "snli_ve",
    ("image", "label"): "classes",
    ("image", "mask"): "masks",
}
"""By what a recipe needs of a record, the format of the scenes that has it."""


def scene_run(
    config: RunConfig, folder: Path, *, write: bool = True, console: Console | None = None
) -> RunConfig:
    """Return a run that trains on the built-in scenes.

    Args:
        config: A recipe's; its scale says how many scenes.
        folder: Where they are; written there first, unless they are there.
        write: Whether to write them; False in all but one of several processes.
        console: Where to report, before they are written; standard output if absent.

    Raises:
        ConfigError: The scale is the paper's, the scenes lack what the recipe reads, or the folder
            holds scenes of another seed or number.
    """
    kind = FORMATS_OF_NEEDS.get(recipe_needs().get(config.recipe, ()))
    if config.scale not in SCENES or kind is None:
        why = (
            f"the built-in scenes have no data for {config.recipe}"
            if kind is None
            else f"the built-in scenes serve the scales {', '.join(SCENES)}, not {config.scale}"
        )
        raise ConfigError(f"data.train is empty: name a manifest with --data PATH ({why})")
    files = SceneFiles(folder)
    if write:
        said = f"no --data: training on the built-in scenes in {folder}"
        (console or Console()).print(said, highlight=False, markup=False, soft_wrap=True)
        write_once(
            folder,
            config.scale,
            SCENES[config.scale],
            num_val=8,
            num_test=12 if config.scale == "smoke" else 500,
            config=SceneConfig(seed=config.data.seed),
            formats=tuple(dict.fromkeys(("captions", kind))),
        )
    source = format_source(files, kind, "train")
    return replace(config, data=replace(config.data, train=(source,)))


def write_once(
    folder: Path,
    scale: str,
    num_images: int,
    *,
    num_val: int,
    num_test: int,
    config: SceneConfig,
    formats: tuple[str, ...],
) -> SceneFiles:
    """Write scenes with one caption each, unless they are there.

    Args:
        folder: Receives them.
        scale: Of the run that trains on them; smoke has one worker.
        num_images: Images of the training split.
        num_val: Images of the validation split.
        num_test: Images of each of the splits test and compositional.
        config: The world that is shown.
        formats: Public formats to write.

    Raises:
        ConfigError: There are others, of another seed or number.
    """
    files = SceneFiles(folder)
    if not files.summary.is_file():
        workers = 1 if scale == "smoke" else 2
        return write_scenes(
            folder,
            num_images,
            num_val=num_val,
            num_test=num_test,
            num_compositional=num_test,
            config=config,
            formats=formats,
            captions_per_image=1,
            images_per_statement=1,  # with fewer statements, a model learns them by heart
            num_workers=workers,
        )
    summary = read_json_object(files.summary)
    found = (summary["config"]["seed"], summary["counts"]["train"])
    if found != (config.seed, num_images):
        raise ConfigError(
            f"{folder} holds {found[1]:,} scenes of seed {found[0]}, and this run needs "
            f"{num_images:,} of seed {config.seed}: choose another folder with --out, "
            f"or delete {folder}"
        )
    return files


def scene_source(files: SceneFiles, task: str, split: str) -> DataSourceConfig:
    """Return where the scenes of a split lie for a task, in that task's public format.

    Args:
        files: The written scenes.
        task: vqa, grounding, or any other for captions.
        split: Such as "train".
    """
    return format_source(files, {"vqa": "vqa", "grounding": "refs"}.get(task, "captions"), split)


def format_source(files: SceneFiles, kind: str, split: str) -> DataSourceConfig:
    """Return where the scenes of a split lie in a format, such as "nlvr2"."""
    return _SOURCES[kind](files, split)


def _captions(files: SceneFiles, split: str) -> DataSourceConfig:
    return DataSourceConfig(
        path=str(files.karpathy), reader="karpathy", image_root=str(files.images), split=split
    )


def _texts(files: SceneFiles, split: str) -> DataSourceConfig:
    assert split == "train", "texts alone are for training"
    return DataSourceConfig(path=str(files.corpus), reader="text")


def _questions(files: SceneFiles, split: str) -> DataSourceConfig:
    return DataSourceConfig(
        path=str(files.vqa_questions(split)),
        reader="vqav2",
        image_root=str(files.images),
        annotations=str(files.vqa_annotations(split)),
    )


def _phrases(files: SceneFiles, split: str) -> DataSourceConfig:
    return DataSourceConfig(
        path=str(files.refs), reader="refcoco", image_root=str(files.images), split=split
    )


def _statements(files: SceneFiles, split: str) -> DataSourceConfig:
    images = str(files.nlvr2_images(split))
    return DataSourceConfig(path=str(files.nlvr2(split)), reader="nlvr2", image_root=images)


def _hypotheses(files: SceneFiles, split: str) -> DataSourceConfig:
    images = str(files.split_images(split))
    return DataSourceConfig(path=str(files.snli_ve(split)), reader="snli_ve", image_root=images)


def _classes(files: SceneFiles, split: str) -> DataSourceConfig:
    return DataSourceConfig(path=str(files.classes(split)), reader="image_folder")


def _masks(files: SceneFiles, split: str) -> DataSourceConfig:
    return DataSourceConfig(path=str(files.masks(split)), image_root=str(files.root))


_SOURCES: dict[str, Callable[[SceneFiles, str], DataSourceConfig]] = {
    "captions": _captions,
    "text": _texts,
    "vqa": _questions,
    "refs": _phrases,
    "nlvr2": _statements,
    "snli_ve": _hypotheses,
    "classes": _classes,
    "masks": _masks,
}
