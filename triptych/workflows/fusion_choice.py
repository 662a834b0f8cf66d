"""Which fusion network a fresh mPLUG model gets, and what a run without one leaves out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rich.console import Console

from triptych.core.config import check
from triptych.core.errors import ConfigError
from triptych.distributed.env import is_main
from triptych.models.families import family_of
from triptych.recipes.config import FUSION_FIELDS, ModelSource, RunConfig
from triptych.tasks.registry import task_spec

ITM_LEFT_OUT = (
    "fusion 'none' lets no text see its image, so that nothing can be matched: itm is left out"
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


def skip_impossible_objectives(
    config: RunConfig, model: Any, console: Console | None = None
) -> RunConfig:
    """Return the run without a weight for ITM where the model's fusion network is "none".

    Such a model is late interaction (paper, figure 4): it learns from all other objectives.

    Args:
        config: What to do.
        model: What is trained.
        console: Where to say it; standard output if absent.

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
