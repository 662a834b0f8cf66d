"""What a model gets before it trains: fusion network, published weights, colours of its start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from triptych.checkpoint.foreign import read_foreign
from triptych.checkpoint.model_folder import PREPROCESS
from triptych.checkpoint.released import find_folder
from triptych.core.config import check, from_dict
from triptych.core.console import Console
from triptych.core.errors import CapabilityError, CheckpointError, ConfigError, DataError
from triptych.core.reading import read_json_object
from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.distributed.env import is_main
from triptych.models.families import family_of
from triptych.recipes.config import FUSION_FIELDS, ModelSource, RunConfig
from triptych.recipes.registry import RECIPES, build_recipe
from triptych.recipes.scales import SCALES
from triptych.tasks.registry import task_spec
from triptych.text import Tokenizer

ITM_LEFT_OUT = (
    "fusion 'none' lets no text see its image, so that nothing can be matched: itm is skipped"
)


def choose_fusion(config: Any, source: ModelSource) -> Any:
    """Return a variant's config with the fusion network that a model source asks for.

    Args:
        config: The config of a registered variant, of any family.
        source: Its `fusion`, `connected_layers` and `connected_image_residual` count where they
            are given.

    Raises:
        ConfigError: The family has no choice of networks, or the network no connected layers to
            choose, or no such layer.
    """
    family = family_of(config)
    fields = {field: getattr(source, field) for field in FUSION_FIELDS}
    chosen = {field: value for field, value in fields.items() if value is not None}
    for field, value in chosen.items():
        check(
            field in family.choices,
            f"model.{field}",
            value,
            f"be absent: {source.name} is of {family.title}, which has one way to join image and "
            "text",
        )
    network = chosen.get("fusion", getattr(config, "fusion", None))
    for field in chosen.keys() - {"fusion"}:
        must = f"be absent with fusion {network!r}: only 'skip_connected' reads it"
        check(network == "skip_connected", f"model.{field}", chosen[field], must)
    try:
        return replace(config, **chosen)
    except ConfigError as error:
        raise ConfigError(f"model.{error}") from error


def check_start(config: RunConfig) -> None:
    """Raise a ConfigError where a recipe goes on from a model and none is named."""
    recipes = {recipe.name: recipe for recipe in task_spec(config.task).recipes}
    recipe = recipes.get(config.recipe)
    if recipe is not None and recipe.continues and config.model.init_from is None:
        raise ConfigError(
            f"{config.recipe} goes on from the model of an earlier run: name its folder with "
            "--init-from"
        )


def keep_normalisation(config: RunConfig, console: Console | None = None) -> RunConfig:
    """Return a run that normalises images as the model that it starts from was trained.

    A recipe that fine-tunes any family has the mean and deviation of one. What a user sets stays.
    """
    start = config.model.init_from
    if start is None or config.recipe not in RECIPES or config.scale not in SCALES:
        return config
    usual = build_recipe(config.recipe, config.scale).image
    file = find_folder(start) / PREPROCESS
    if (config.image.mean, config.image.std) != (usual.mean, usual.std) or not file.is_file():
        return config
    stored = from_dict(ImageTransformConfig, read_json_object(file), str(file))
    if (stored.mean, stored.std) == (usual.mean, usual.std):
        return config
    if is_main():
        said = f"images are normalised as for {start}: mean {stored.mean}, deviation {stored.std}"
        (console or Console()).print(said, highlight=False, markup=False)
    return replace(config, image=replace(config.image, mean=stored.mean, std=stored.std))


def skip_impossible_objectives(
    config: RunConfig, model: Any, console: Console | None = None
) -> RunConfig:
    """Return the run without a weight for ITM where the model's fusion network is "none".

    Such a model is late interaction (paper, figure 4): it learns from all other objectives.

    Args:
        config: What to do.
        model: What is trained.
        console: Where to print the note; standard output if absent.

    Raises:
        ConfigError: No other objective has a weight.
    """
    if "itm" not in task_spec(config.task).optional_objectives - model.capabilities:
        return config
    others = tuple(weight for weight in config.weights if weight.name != "itm")
    if config.weights and not others:
        raise ConfigError("weights: a model with fusion 'none' cannot learn from itm alone")
    if is_main():
        (console or Console()).print(ITM_LEFT_OUT, highlight=False)
    return replace(config, weights=others)


def init_parts(model: Any, source: ModelSource) -> list[str]:
    """Fill the parts that a model source names.

    Args:
        model: Randomly initialised; changed in place.
        source: Says what to start from: `init_vision_from` and `init_text_from`.

    Returns:
        What became of the tensors, a line a group; empty where nothing was asked for.

    Raises:
        CapabilityError: The family has no such start, or the weights compute something else.
        CheckpointError: A file cannot be read, or is of other sizes.
    """
    lines: list[str] = []
    for part, path in (("vision", source.init_vision_from), ("text", source.init_text_from)):
        if path is None:
            continue
        family = family_of(model.config)
        fill = None if family.converter is None else getattr(family.converter, f"init_{part}")
        if fill is None:
            raise CapabilityError(
                f"{family.title} has no start from published {part} weights: "
                f"omit model.init_{part}_from"
            )
        foreign = read_foreign(Path(path))
        try:
            report = fill(model, foreign.tensors, foreign.config)
        except (CheckpointError, CapabilityError) as error:
            raise type(error)(f"model.init_{part}_from = {path}: {error}") from error
        lines.append(f"{part} weights from {path}: {report.summary(long=False)}")
    return lines


def load_published_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer that lies beside published text weights.

    Args:
        path: The folder with the weights.

    Raises:
        DataError: There is none, or it keeps capitals, which our texts have lost.
    """
    hint = "name one with --tokenizer.path"
    if not path.is_dir():
        raise DataError(f"{path} is no folder with a vocabulary: {hint}")
    settings = path / "tokenizer_config.json"
    if settings.is_file() and read_json_object(settings).get("do_lower_case") is False:
        raise DataError(f"{path} is case-sensitive, but texts are lower-cased: {hint}")
    try:
        return Tokenizer.load(path)
    except DataError as error:
        raise DataError(f"{error}: {hint}") from error
